//! Containers that take all processors do not take their lablet's: its heartbeats go out, and its lease holds.

use iptl_e2e::{Home, Lab, docker_is_required};

use super::network::program;

/// Seconds for which the containers burn: three leases.
const BURNING_S: u64 = 16;

#[test]
fn containers_that_burn_all_processors_do_not_cost_their_lablet_its_lease() {
    engine!();
    let lab = Lab::start_with_docker(1);
    let dir = lab.path().join("plan-that-burns");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(program(), dir.join("work")).unwrap();
    // Each has a whole processor by what it may use, and there are four of them for each that the machine has.
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let burning = 4 * processors;
    let text = format!(
        "[plan]\nname = \"burning\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"docker\"\n\
         binary = \"work\"\n\n[cases.only]\ntimeout = \"3m\"\n\n[cases.only.groups.burning]\nworkload = \"work\"\n\
         count = {burning}\nargs = [\"spin\"]\n\
         resources = {{ memory = \"16MiB\", cpu = \"10m\", wall = \"{BURNING_S}s\" }}\n\n\
         [cases.only.groups.burning.container]\ncpu = 1.0\n"
    );
    std::fs::write(dir.join("plan.toml"), text).unwrap();
    let last = lab.run(&["run", &dir.display().to_string(), "--json"]).exits(10).last_json();
    // They ran out of time, each of them once: nobody was lost and placed again.
    let count = |key: &str| last[key].as_u64();
    assert_eq!((count("failed"), count("lost")), (Some(burning as u64), Some(0)), "{last}");
    let shown = lab.run(&["show", "last", "--json"]).exits(0).json();
    assert_eq!(shown["receipts"].as_u64(), Some(burning as u64), "one receipt each: {shown}");
    let audit = lab.run(&["audit", "last"]).exits(0).stdout;
    assert!(!audit.contains("lost") && !audit.contains("not heard"), "{audit}");
}
