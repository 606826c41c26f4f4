//! The environment of an instance.

use std::path::PathBuf;

use iptl_dag::Cid;
use iptl_dag::model::{Resources, WorkloadKind};
use iptl_runner::cell::Origin;
use iptl_runner::{Addrs, Artifact, CellSpec, InstanceSpec};
use iptl_testground::environment::{Setting, environment};

use crate::lab::instance;

/// Every variable that some SDK asks for; the Rust SDK does not start where one is missing.
const VARIABLES: [&str; 24] = [
    "TEST_PLAN",
    "TEST_CASE",
    "TEST_RUN",
    "TEST_REPO",
    "TEST_BRANCH",
    "TEST_TAG",
    "TEST_INSTANCE_COUNT",
    "TEST_INSTANCE_ROLE",
    "TEST_INSTANCE_PARAMS",
    "TEST_GROUP_ID",
    "TEST_GROUP_INSTANCE_COUNT",
    "TEST_OUTPUTS_PATH",
    "TEST_TEMP_PATH",
    "TEST_SIDECAR",
    "TEST_SUBNET",
    "TEST_START_TIME",
    "TEST_CAPTURE_PROFILES",
    "TEST_DISABLE_METRICS",
    "SYNC_SERVICE_HOST",
    "SYNC_SERVICE_PORT",
    "INFLUXDB_URL",
    "REDIS_HOST",
    "HOSTNAME",
    "LOG_LEVEL",
];

fn cell() -> (CellSpec, InstanceSpec) {
    let instance = InstanceSpec {
        id: instance(1),
        artifact: Artifact { cid: Cid::default(), path: PathBuf::new() },
        args: Vec::new(),
        env: [("MINE", "yes"), ("TEST_RUN", "forged"), ("LOG_LEVEL", "debug")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        limits: Resources::default(),
        attempt: 1,
        start_after_ms: 0,
        kind: WorkloadKind::Docker,
        container: None,
        capture: false,
    };
    let cell = CellSpec {
        name: "x-test".into(),
        seed: 7,
        run_id: "bafyrun".into(),
        plan: "bafyplan".into(),
        case: "a/case".into(),
        params: [("rounds", "3"), ("label", "x=y")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        groups: [("g", 2), ("other", 3)].map(|(name, size)| (name.to_owned(), size)).into(),
        network: None,
        mixed: false,
        faults: Vec::new(),
        instances: vec![instance.clone()],
        scratch: PathBuf::new(),
        origin: Origin::default(),
    };
    (cell, instance)
}

fn setting() -> Setting {
    Setting {
        plan: "demo/plan".into(),
        ordinal: 1,
        addrs: Addrs { v4: Some([10, 0, 0, 2].into()), v6: None },
        subnet: "10.0.0.0/8".into(),
        hostname: "g-1".into(),
        sync_host: "testground-sync-service".into(),
        sync_port: 5050,
        outputs: "/outputs".into(),
        temp: "/temp".into(),
        start_time: "2026-01-01T00:00:00Z".into(),
    }
}

#[test]
fn every_variable_of_every_sdk_is_set() {
    let (cell, instance) = cell();
    let env = environment(&cell, &instance, &setting());
    for name in VARIABLES {
        assert!(env.contains_key(name), "{name}");
    }
    for (name, value) in [
        ("TEST_PLAN", "demo-plan"),
        ("TEST_CASE", "a-case"),
        ("TEST_RUN", "bafyrun"),
        ("TEST_INSTANCE_COUNT", "5"),
        ("TEST_INSTANCE_PARAMS", "label=x=y|rounds=3"),
        ("TEST_GROUP_ID", "g"),
        ("TEST_GROUP_INSTANCE_COUNT", "2"),
        ("TEST_OUTPUTS_PATH", "/outputs"),
        ("TEST_SIDECAR", "true"),
        ("TEST_SUBNET", "10.0.0.0/8"),
        ("SYNC_SERVICE_PORT", "5050"),
        ("HOSTNAME", "g-1"),
        ("INFLUXDB_URL", ""),
        ("LOG_LEVEL", "debug"),
        ("MINE", "yes"),
        ("IPTL_RUN", "bafyrun"),
        ("IPTL_INDEX", "1"),
        ("IPTL_ADDR", "10.0.0.2"),
        ("IPTL_PARAM_ROUNDS", "3"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[test]
fn keys_made_of_the_environment_are_taken() {
    let (cell, instance) = cell();
    let env = environment(&cell, &instance, &setting());
    let key = format!("run:{}:plan:{}:case:{}:states:x", env["TEST_RUN"], env["TEST_PLAN"], env["TEST_CASE"]);
    assert_eq!(iptl_testground::environment::identity(&cell, &setting()).state(&key), Ok("x"));
}
