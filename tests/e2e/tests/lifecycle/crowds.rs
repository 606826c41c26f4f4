//! Size: many instances on few lablets. They take minutes on a small machine: `cargo xtask soak` runs them.

use std::time::{Duration, Instant};

use iptl_e2e::{Lab, repository};

/// Runs a plan that ships on three lablets.
#[track_caller]
fn passes(plan: &str, group: &str, params: &[&str], within: Duration) {
    let lab = Lab::start(3);
    let folder = repository().join("plans").join(plan).display().to_string();
    let mut args = vec!["run", &folder, "--no-build", "-g", group, "--json"];
    args.extend(params.iter().flat_map(|param| ["-p", *param]));
    let began = Instant::now();
    let last = lab.run(&args).last_json();
    let took = began.elapsed();
    eprintln!("{plan} with {group} took {took:?}: {}", last["verdict"]);
    assert_eq!((last["failed"].as_u64(), last["lost"].as_u64()), (Some(0), Some(0)), "{last}");
    assert_eq!(last["verdict"], "pass", "{last}");
    assert!(took < within, "{took:?}");
}

#[test]
#[ignore = "soak: 200 instances that ping each other"]
fn two_hundred_instances_ping_each_other() {
    passes("ping", "node=200", &["rounds=3", "peers=8", "interval=500ms"], Duration::from_secs(100));
}

#[test]
#[ignore = "soak: 1,000 instances at barriers"]
fn a_thousand_instances_pass_barriers_together() {
    passes("storm", "node=1000", &["publishes=1"], Duration::from_secs(150));
}
