//! Runners of two kinds under one cell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iptl_dag::model::{Exit, InstanceId, Resources, WorkloadKind};
use iptl_runner::contract::Lab;
use iptl_runner::{
    Artifact, CellSpec, FakeRunner, InstanceSpec, Origin, OutputStream, PrepareError, Runner, Runners, Step,
};

fn instance(group: &str, index: u32) -> InstanceId {
    InstanceId { group: group.to_owned(), index }
}

/// Two instances of each kind.
fn cell(scratch: &Path) -> CellSpec {
    let artifact = Artifact { cid: iptl_dag::codec::cid_of(&"a script"), path: PathBuf::new() };
    let kinds = [("component", WorkloadKind::Wasm), ("container", WorkloadKind::Docker)];
    let spec = |id, kind| InstanceSpec {
        id,
        kind,
        artifact: artifact.clone(),
        args: Vec::new(),
        env: BTreeMap::new(),
        limits: Resources::default(),
        attempt: 1,
        start_after_ms: 0,
        container: None,
        capture: false,
    };
    CellSpec {
        name: "x-test".to_owned(),
        seed: 1,
        run_id: "run".to_owned(),
        plan: "plan".to_owned(),
        case: "case".to_owned(),
        params: BTreeMap::new(),
        groups: kinds.iter().map(|(group, _)| ((*group).to_owned(), 2)).collect(),
        network: None,
        mixed: true,
        faults: Vec::new(),
        instances: kinds
            .iter()
            .flat_map(|(group, kind)| (0..2).map(|index| spec(instance(group, index), *kind)))
            .collect(),
        scratch: scratch.to_owned(),
        origin: Origin::default(),
    }
}

fn runner(kind: WorkloadKind, script: fn(&InstanceSpec) -> Vec<Step>) -> Arc<dyn Runner> {
    Arc::new(FakeRunner::new(script).of_kind(kind))
}

fn meets(_: &InstanceSpec) -> Vec<Step> {
    vec![
        Step::Signal("ready".to_owned()),
        Step::Barrier("ready".to_owned(), 4),
        Step::Print(OutputStream::Out, "open".to_owned()),
    ]
}

#[tokio::test]
async fn instances_of_both_kinds_meet_and_the_cell_is_over_once() {
    let dir = tempfile::tempdir().unwrap();
    let runners = Runners::new([runner(WorkloadKind::Wasm, meets), runner(WorkloadKind::Docker, meets)]);
    let lab = Lab::of(runners.prepare(cell(dir.path())).await.unwrap());
    lab.control.start().await;
    let outcome = lab.finish().await;
    assert_eq!(outcome.ended.len(), 4);
    for (id, ended) in &outcome.ended {
        assert_eq!(ended.exit, Exit::Exited { code: 0 }, "{id}");
        assert!(ended.left.logs.is_some(), "{id}");
    }
}

#[tokio::test]
async fn stop_ends_the_instances_of_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let forever = |_: &InstanceSpec| vec![Step::Forever];
    let runners = Runners::new([runner(WorkloadKind::Wasm, forever), runner(WorkloadKind::Docker, forever)]);
    let lab = Lab::of(runners.prepare(cell(dir.path())).await.unwrap());
    lab.control.start().await;
    lab.control.stop("enough".to_owned()).await;
    let outcome = lab.finish().await;
    let ids: BTreeSet<&InstanceId> = outcome.ended.keys().collect();
    assert_eq!(ids.len(), 4);
    assert!(outcome.ended.values().all(|ended| ended.exit == Exit::Stopped { reason: "enough".to_owned() }));
}

#[tokio::test]
async fn cell_with_a_kind_that_nobody_runs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let runners = Runners::new([runner(WorkloadKind::Wasm, meets)]);
    let refused = runners.prepare(cell(dir.path())).await.err();
    assert!(matches!(refused, Some(PrepareError::NoRunner { kind: WorkloadKind::Docker })), "{refused:?}");
}
