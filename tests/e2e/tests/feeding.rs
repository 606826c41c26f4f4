//! Lablets that all want one large artifact at once: they feed each other, and its origin sends little more than one copy.

use iptl_e2e::{Lab, Node, noise, repository};
use wasm_encoder::{ComponentSection, CustomSection};

/// Lablets, each of which gets one instance.
const LABLETS: u32 = 8;

/// Bytes of the artifact, a few kilobytes of program aside.
const SIZE: usize = 64 << 20;

/// Writes a plan whose component carries `SIZE` bytes that no other has; returns its size.
fn write_plan(dir: &std::path::Path) -> u64 {
    let program = repository().join("plans/hostile/target/wasm32-wasip2/release/hostile.wasm");
    let mut component = std::fs::read(program).unwrap();
    CustomSection { name: "ballast".into(), data: noise(SIZE).into() }.append_to_component(&mut component);
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("work.wasm"), &component).unwrap();
    let plan = format!(
        "[plan]\nname = \"heavy\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"wasm\"\npath = \"work.wasm\"\n\n\
         [cases.only]\ntimeout = \"2m\"\n\n[cases.only.params.watch]\ntype = \"duration\"\ndefault = \"10ms\"\n\
         min = \"1ms\"\nmax = \"1m\"\n\n[cases.only.groups.node]\nworkload = \"work\"\nargs = [\"rest\"]\n\
         count = {{ default = {LABLETS}, min = 1, max = {LABLETS} }}\naffinity = \"spread\"\n\
         resources = {{ memory = \"16MiB\", cpu = \"10s\", wall = \"1m\" }}\n"
    );
    std::fs::write(dir.join("plan.toml"), plan).unwrap();
    component.len() as u64
}

/// Returns the bytes of blocks that a node sent and received since it started.
#[track_caller]
fn moved(node: &Node) -> (u64, u64) {
    let status = node.run(&["status", "--json"]).exits(0).json();
    let bytes = |key: &str| status["blocks"][key].as_u64().unwrap_or_else(|| panic!("{key} in {status}"));
    (bytes("sent_bytes"), bytes("received_bytes"))
}

#[test]
fn eight_lablets_that_want_one_artifact_take_little_more_than_one_copy_from_its_origin() {
    let lab = Lab::start(LABLETS);
    let dir = lab.path().join("heavy");
    let size = write_plan(&dir);
    let before = moved(&lab.orchestrator).0;
    let said = lab.run(&["run", &dir.display().to_string(), "--no-build", "--json"]).exits(0);
    let last = said.last_json();
    assert_eq!((last["verdict"].as_str(), last["ok"].as_u64()), (Some("pass"), Some(LABLETS.into())), "{last}");
    let told: Vec<_> = said.json_lines().into_iter().filter(|line| line["event"] == "fetching").collect();
    assert!(!told.is_empty(), "nobody says how far lablets are: {}", said.stdout);
    for line in &told {
        let number = |key: &str| line[key].as_u64().unwrap_or_else(|| panic!("{key} in {line}"));
        let from = |key: &str| line["from"][key].as_u64().unwrap_or_else(|| panic!("{key} in {line}"));
        let lablets = number("lablets");
        assert!((1..=LABLETS.into()).contains(&lablets) && number("fetching") <= lablets, "{line}");
        assert!(number("size") >= lablets * SIZE as u64, "what is needed is known before it comes: {line}");
        assert_eq!(number("left"), number("size") - number("bytes"), "{line}");
        let fetched = from("orchestrators") + from("lablets") + from("others");
        assert!(fetched == number("bytes") && from("others") == 0, "nothing was there before: {line}");
        // One copy of it, and the nodes above leaves for each.
        assert!(from("orchestrators") <= size + size / 2, "{line}");
    }
    let sent = moved(&lab.orchestrator).0 - before;
    assert!(sent >= size && sent * 2 <= size * 3, "the origin sent {sent} bytes of an artifact of {size}");
    for lablet in &lab.lablets {
        let (_, received) = moved(lablet);
        // What it needs, and nothing of that twice: the run and its result are small.
        assert!(received >= size && received < size + size / 50, "{} received {received} bytes", lablet.home.display());
    }
}
