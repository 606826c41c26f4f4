//! The suite that every runner passes.
//!
//! An implementation gives a [`Fixture`]: the runner, and for each [`Behaviour`] a workload that behaves so. Each
//! function here is one fact about cells; [`check_all`] checks them one after the other. `lab.rs` is a lab of one cell,
//! which answers sync calls and collects what is said; `places.rs` has networks for tests that runners have beside these.

mod lab;
pub mod places;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptl_dag::model::{Exit, InstanceId, Resources, WorkloadKind};

use crate::cell::{Artifact, CellSpec, ContainerSpec, InstanceSpec, Origin, OutputStream};
use crate::runner::{PrepareError, Runner};
pub use lab::{Lab, Outcome};

/// Time in which a cell is over after it was stopped, whatever its workloads do.
const STOP_BOUND: Duration = Duration::from_secs(8);

/// How a workload of the suite behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behaviour {
    /// Ends with status 0.
    Succeed,
    /// Ends with status 3.
    Fail,
    /// Writes the lines `one` and `two` to stdout, `three` to stderr, and `four` without an end of line to stdout.
    Print,
    /// Writes the variables whose names begin with `IPTL_` to stdout, as `NAME=value`, then its arguments.
    Environment,
    /// Computes for ever.
    Spin,
    /// Waits for ever.
    Park,
    /// Allocates memory until it is refused.
    EatMemory,
    /// Writes to stdout for ever.
    FloodOutput,
    /// Records events for ever.
    FloodRecords,
    /// Appends to an artifact for ever.
    FloodArtifacts,
    /// Recurses for ever.
    Recurse,
    /// Breaks.
    Trap,
    /// Signals `ready`, waits until as many have signalled as the run has instances, writes `open`.
    Barrier,
    /// Publishes its index on `t`, then writes the first `IPTL_TOTAL` messages of `t`, each as a line.
    Gossip,
    /// Records the event `hello` with `{"a":1}`, the metric `m` of 1.5 ms, and the artifact `dir/file` with `abc`.
    Record,
}

impl Behaviour {
    /// All of them.
    pub const ALL: [Behaviour; 15] = [
        Behaviour::Succeed,
        Behaviour::Fail,
        Behaviour::Print,
        Behaviour::Environment,
        Behaviour::Spin,
        Behaviour::Park,
        Behaviour::EatMemory,
        Behaviour::FloodOutput,
        Behaviour::FloodRecords,
        Behaviour::FloodArtifacts,
        Behaviour::Recurse,
        Behaviour::Trap,
        Behaviour::Barrier,
        Behaviour::Gossip,
        Behaviour::Record,
    ];

    /// Returns its name, for arguments of programs.
    pub fn name(self) -> &'static str {
        match self {
            Behaviour::Succeed => "succeed",
            Behaviour::Fail => "fail",
            Behaviour::Print => "print",
            Behaviour::Environment => "environment",
            Behaviour::Spin => "spin",
            Behaviour::Park => "park",
            Behaviour::EatMemory => "eat-memory",
            Behaviour::FloodOutput => "flood-output",
            Behaviour::FloodRecords => "flood-records",
            Behaviour::FloodArtifacts => "flood-artifacts",
            Behaviour::Recurse => "recurse",
            Behaviour::Trap => "trap",
            Behaviour::Barrier => "barrier",
            Behaviour::Gossip => "gossip",
            Behaviour::Record => "record",
        }
    }
}

/// What an implementation gives to the suite.
pub struct Fixture {
    /// The runner.
    pub runner: Arc<dyn Runner>,
    /// Returns the workload that behaves so, and its arguments.
    pub workload: Box<dyn Fn(Behaviour) -> (Artifact, Vec<String>) + Send + Sync>,
    /// Settings of containers, where they are any.
    pub container: Option<ContainerSpec>,
}

impl Fixture {
    /// Makes a cell of one group `g`; the directory for its files is below `scratch`.
    pub fn cell(&self, scratch: &Path, behaviours: &[Behaviour]) -> CellSpec {
        let size = u32::try_from(behaviours.len()).expect("cells of the suite are small");
        let instances = (0..size)
            .zip(behaviours)
            .map(|(index, behaviour)| {
                let (artifact, args) = (self.workload)(*behaviour);
                InstanceSpec {
                    id: instance(index),
                    kind: self.runner.kind(),
                    artifact,
                    args,
                    env: BTreeMap::from([("MINE".to_owned(), "yes".to_owned())]),
                    limits: limits(),
                    attempt: 1,
                    start_after_ms: 0,
                    container: self.container.clone(),
                    capture: false,
                }
            })
            .collect();
        CellSpec {
            name: "x-test".to_owned(),
            seed: 1,
            run_id: "run".to_owned(),
            plan: "plan".to_owned(),
            case: "case".to_owned(),
            params: BTreeMap::from([("fan-out".to_owned(), "4".to_owned())]),
            groups: BTreeMap::from([("g".to_owned(), size)]),
            network: None,
            mixed: false,
            faults: Vec::new(),
            instances,
            scratch: scratch.to_owned(),
            origin: Origin { lab: "lab".to_owned(), execution: scratch.display().to_string(), epoch: 1 },
        }
    }

    async fn run(&self, behaviours: &[Behaviour]) -> (Outcome, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lab = Lab::prepare(&*self.runner, self.cell(dir.path(), behaviours)).await;
        lab.control.start().await;
        (lab.finish().await, dir)
    }
}

/// Returns the instance of the suite's group with this index.
pub fn instance(index: u32) -> InstanceId {
    InstanceId { group: "g".to_owned(), index }
}

/// Returns limits that every misbehaviour meets within a second or two.
///
/// Time is none of them: on a machine with much else to do, containers come last.
fn limits() -> Resources {
    Resources {
        memory_bytes: 32 << 20,
        cpu_ms: 1_000,
        wall_ms: 100_000,
        output_bytes: 64 << 10,
        record_bytes: 64 << 10,
        artifact_bytes: 64 << 10,
        sockets: 16,
    }
}

/// Checks everything, one fact after the other.
pub async fn check_all(fixture: &Fixture) {
    statuses_are_told(fixture).await;
    output_is_told_and_logged(fixture).await;
    environment_is_the_labs(fixture).await;
    misbehaviour_ends_its_instance_and_no_other(fixture).await;
    what_was_within_the_limit_is_kept(fixture).await;
    records_and_artifacts_are_left(fixture).await;
    barrier_opens_for_all(fixture).await;
    messages_come_in_one_order(fixture).await;
    nothing_runs_before_start(fixture).await;
    each_starts_when_its_delay_is_over(fixture).await;
    stop_ends_whatever_runs(fixture).await;
    stop_before_start_ends_all(fixture).await;
    wall_time_ends_what_waits(fixture).await;
    killed_worker_ends_its_cell_and_no_other(fixture).await;
    dropped_control_stops_the_cell(fixture).await;
    cell_beyond_capacity_is_refused(fixture).await;
}

/// Statuses of programs are told as they are.
pub async fn statuses_are_told(fixture: &Fixture) {
    let (outcome, _dir) = fixture.run(&[Behaviour::Succeed, Behaviour::Fail]).await;
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 3 });
    for ended in outcome.ended.values() {
        assert!(ended.started_ms > 0 && ended.ended_ms >= ended.started_ms, "{ended:?}");
        assert_eq!(
            (&ended.left.logs, &ended.left.artifacts),
            (&None, &None),
            "nothing was written, so nothing is left"
        );
    }
}

/// Lines are told while the instance runs, and logged in order.
pub async fn output_is_told_and_logged(fixture: &Fixture) {
    let (outcome, _dir) = fixture.run(&[Behaviour::Print]).await;
    assert_eq!(outcome.lines(0, OutputStream::Out), ["one", "two", "four"]);
    assert_eq!(outcome.lines(0, OutputStream::Err), ["three"]);
    let log = read_json_lines(outcome.ended[&instance(0)].left.logs.as_ref());
    let logged: Vec<(&str, &str)> = log.iter().map(|line| (text(&line["stream"]), text(&line["line"]))).collect();
    assert_eq!(logged, [("out", "one"), ("out", "two"), ("err", "three"), ("out", "four")]);
    assert!(log.iter().all(|line| line["t"].is_u64()));
}

/// The environment is what the lab and the group set, and nothing of the machine.
pub async fn environment_is_the_labs(fixture: &Fixture) {
    let (outcome, _dir) = fixture.run(&[Behaviour::Succeed, Behaviour::Environment]).await;
    let lines = outcome.lines(1, OutputStream::Out);
    let variables: BTreeMap<&str, &str> = lines.iter().filter_map(|line| line.split_once('=')).collect();
    let expected = [
        ("IPTL_RUN", "run"),
        ("IPTL_CASE", "case"),
        ("IPTL_GROUP", "g"),
        ("IPTL_INDEX", "1"),
        ("IPTL_GROUP_SIZE", "2"),
        ("IPTL_TOTAL", "2"),
        ("IPTL_ORDINAL", "1"),
        ("IPTL_SEED", "1"),
        ("IPTL_ADDR", "10.0.0.2"),
        ("IPTL_ADDR6", "fd69:7074:6c00::a00:2"),
        ("IPTL_PARAM_FAN_OUT", "4"),
        ("IPTL_GROUPS", "g=2"),
    ];
    for (name, value) in expected {
        assert_eq!(variables.get(name), Some(&value), "{name} in {lines:?}");
    }
    assert_eq!(variables.len(), expected.len(), "{lines:?}");
}

/// Each misbehaviour ends as what it is, and its neighbours meet at their barrier as if nothing had happened.
pub async fn misbehaviour_ends_its_instance_and_no_other(fixture: &Fixture) {
    // A program of a machine ends by the signals that these are there.
    let signalled = |signal: &str| Exit::Signalled { signal: signal.to_owned() };
    let (overflow, trap) = match fixture.runner.kind() {
        WorkloadKind::Wasm => (Exit::StackOverflow {}, Exit::Trapped { trap: "unreachable".to_owned() }),
        WorkloadKind::Docker => (signalled("SIGSEGV"), signalled("SIGILL")),
    };
    let bad = [
        (Behaviour::Spin, Exit::OutOfCpu {}),
        (Behaviour::EatMemory, Exit::OutOfMemory {}),
        (Behaviour::FloodOutput, Exit::TooMuchOutput { what: "output".to_owned() }),
        (Behaviour::FloodRecords, Exit::TooMuchOutput { what: "records".to_owned() }),
        (Behaviour::FloodArtifacts, Exit::TooMuchOutput { what: "artifacts".to_owned() }),
        (Behaviour::Recurse, overflow),
        (Behaviour::Trap, trap),
    ];
    let mut behaviours: Vec<Behaviour> = bad.iter().map(|(behaviour, _)| *behaviour).collect();
    behaviours.extend([Behaviour::Print, Behaviour::Record, Behaviour::Succeed]);
    let (outcome, _dir) = fixture.run(&behaviours).await;
    for (index, (behaviour, exit)) in (0..).zip(&bad) {
        assert_eq!(outcome.exit(index), exit, "{behaviour:?}");
    }
    let neighbours = u32::try_from(bad.len()).expect("seven");
    for index in neighbours..neighbours + 3 {
        assert_eq!(outcome.exit(index), &Exit::Exited { code: 0 }, "neighbour {index}");
    }
}

/// A flood is cut at its limit; what came before is kept.
pub async fn what_was_within_the_limit_is_kept(fixture: &Fixture) {
    let (outcome, _dir) = fixture.run(&[Behaviour::FloodOutput]).await;
    assert_eq!(outcome.exit(0), &Exit::TooMuchOutput { what: "output".to_owned() });
    let log = read_json_lines(outcome.ended[&instance(0)].left.logs.as_ref());
    let bytes: u64 = log.iter().map(|line| text(&line["line"]).len() as u64 + 1).sum();
    let limit = limits().output_bytes;
    assert!((limit / 2..=limit + 1).contains(&bytes), "{bytes} bytes are logged");
}

/// Events, metrics and artifacts are left as files.
pub async fn records_and_artifacts_are_left(fixture: &Fixture) {
    let (outcome, _dir) = fixture.run(&[Behaviour::Record]).await;
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    let ended = &outcome.ended[&instance(0)];
    let events = read_json_lines(ended.left.events.as_ref());
    assert_eq!(events.len(), 1);
    assert_eq!((text(&events[0]["name"]), &events[0]["data"]["a"]), ("hello", &serde_json::json!(1)));
    let metrics = read_json_lines(ended.left.metrics.as_ref());
    assert_eq!(metrics.len(), 1);
    assert_eq!((text(&metrics[0]["name"]), text(&metrics[0]["unit"])), ("m", "ms"));
    assert_eq!(metrics[0]["value"], serde_json::json!(1.5));
    let artifacts = ended.left.artifacts.as_ref().expect("an artifact was left");
    assert_eq!(std::fs::read(artifacts.join("dir/file")).expect("the artifact"), b"abc");
}

/// A barrier opens for all when the last one signals.
pub async fn barrier_opens_for_all(fixture: &Fixture) {
    let (outcome, _dir) = fixture.run(&[Behaviour::Barrier; 20]).await;
    for index in 0..20 {
        assert_eq!(outcome.exit(index), &Exit::Exited { code: 0 }, "instance {index}");
        assert_eq!(outcome.lines(index, OutputStream::Out), ["open"], "instance {index}");
    }
}

/// Everybody sees all messages of a topic in one order.
pub async fn messages_come_in_one_order(fixture: &Fixture) {
    let (outcome, _dir) = fixture.run(&[Behaviour::Gossip; 5]).await;
    let first = outcome.lines(0, OutputStream::Out);
    let mut sorted = first.clone();
    sorted.sort();
    assert_eq!(sorted, ["0", "1", "2", "3", "4"]);
    for index in 1..5 {
        assert_eq!(outcome.lines(index, OutputStream::Out), first, "instance {index}");
    }
}

/// An instance says nothing before the cell is started.
pub async fn nothing_runs_before_start(fixture: &Fixture) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut lab = Lab::prepare(&*fixture.runner, fixture.cell(dir.path(), &[Behaviour::Print])).await;
    let early = tokio::time::timeout(Duration::from_millis(100), lab.step()).await;
    assert!(early.is_err(), "an event before the start");
    lab.control.start().await;
    assert_eq!(lab.finish().await.exit(0), &Exit::Exited { code: 0 });
}

/// Instances start when their delays are over, and no wall time of theirs runs before; who is stopped meanwhile never
/// starts.
pub async fn each_starts_when_its_delay_is_over(fixture: &Fixture) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut cell = fixture.cell(dir.path(), &[Behaviour::Succeed, Behaviour::Succeed, Behaviour::Succeed]);
    cell.instances[1].start_after_ms = 1_500;
    cell.instances[1].limits.wall_ms = 1_500;
    cell.instances[2].start_after_ms = 3_600_000;
    let mut lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    while lab.outcome.ended.len() < 2 {
        assert!(lab.step().await, "the cell was over before its last instance started");
    }
    lab.control.stop("enough".to_owned()).await;
    let outcome = lab.finish().await;
    assert_eq!((outcome.exit(0), outcome.exit(1)), (&Exit::Exited { code: 0 }, &Exit::Exited { code: 0 }));
    assert_eq!(outcome.exit(2), &Exit::Stopped { reason: "enough".to_owned() });
    let [first, second, last] = [0, 1, 2].map(|index| outcome.ended[&instance(index)].started_ms);
    assert!(second >= first + 1_500, "started {} ms after the first", second.saturating_sub(first));
    assert_eq!(last, 0, "it never started");
}

/// Stopping ends what computes and what waits, within a bound, and keeps what was said.
pub async fn stop_ends_whatever_runs(fixture: &Fixture) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let behaviours = [Behaviour::Spin, Behaviour::Park, Behaviour::Print];
    let mut cell = fixture.cell(dir.path(), &behaviours);
    for instance in &mut cell.instances {
        instance.limits.cpu_ms = 60_000;
    }
    let mut lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    while lab.outcome.ended.is_empty() {
        assert!(lab.step().await, "the cell was over before it was stopped");
    }
    let stopped = Instant::now();
    lab.control.stop("enough".to_owned()).await;
    let outcome = lab.finish().await;
    assert!(stopped.elapsed() < STOP_BOUND, "stopping took {:?}", stopped.elapsed());
    let enough = Exit::Stopped { reason: "enough".to_owned() };
    assert_eq!((outcome.exit(0), outcome.exit(1)), (&enough, &enough));
    assert_eq!(outcome.exit(2), &Exit::Exited { code: 0 });
}

/// A cell that never started ends too.
pub async fn stop_before_start_ends_all(fixture: &Fixture) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let lab = Lab::prepare(&*fixture.runner, fixture.cell(dir.path(), &[Behaviour::Park, Behaviour::Succeed])).await;
    lab.control.stop("never mind".to_owned()).await;
    let outcome = lab.finish().await;
    for ended in outcome.ended.values() {
        assert_eq!(ended.exit, Exit::Stopped { reason: "never mind".to_owned() });
        assert_eq!(ended.started_ms, 0);
    }
}

/// An instance that waits too long is ended.
pub async fn wall_time_ends_what_waits(fixture: &Fixture) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut cell = fixture.cell(dir.path(), &[Behaviour::Park]);
    cell.instances[0].limits.wall_ms = 200;
    let lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    assert_eq!(lab.finish().await.exit(0), &Exit::OutOfTime {});
}

/// A worker that is killed ends its cell with receipts that say so; what it had logged is kept, other cells live on.
pub async fn killed_worker_ends_its_cell_and_no_other(fixture: &Fixture) {
    let (dir, other_dir) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let mut behaviours = vec![Behaviour::Print];
    behaviours.extend([Behaviour::Park; 3]);
    let mut lab = Lab::prepare(&*fixture.runner, fixture.cell(dir.path(), &behaviours)).await;
    let other = Lab::prepare(&*fixture.runner, fixture.cell(other_dir.path(), &[Behaviour::Barrier; 3])).await;
    let Some(pid) = lab.control.worker_pid() else { return };
    lab.control.start().await;
    while lab.outcome.ended.is_empty() {
        assert!(lab.step().await, "the cell was over before its worker was killed");
    }
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill");
    assert!(status.success());
    let outcome = lab.finish().await;
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    assert!(outcome.ended[&instance(0)].left.logs.as_ref().is_some_and(|path| path.exists()));
    for index in 1..4 {
        assert_eq!(outcome.exit(index), &Exit::WorkerDied { reason: "signal 9".to_owned() });
        assert!(outcome.ended[&instance(index)].started_ms > 0);
    }
    other.control.start().await;
    let outcome = other.finish().await;
    for index in 0..3 {
        assert_eq!(outcome.exit(index), &Exit::Exited { code: 0 });
    }
    statuses_are_told(fixture).await;
}

/// A cell that nobody controls any more is stopped.
pub async fn dropped_control_stops_the_cell(fixture: &Fixture) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let lab = Lab::prepare(&*fixture.runner, fixture.cell(dir.path(), &[Behaviour::Park])).await;
    lab.control.start().await;
    let outcome = lab.abandon().await;
    assert!(matches!(outcome.exit(0), Exit::Stopped { .. }), "{:?}", outcome.exit(0));
}

/// A cell that is larger than the capacity is refused before anything is started, and the room it wanted is not lost.
pub async fn cell_beyond_capacity_is_refused(fixture: &Fixture) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut cell = fixture.cell(dir.path(), &[Behaviour::Succeed]);
    let model = cell.instances[0].clone();
    let most = fixture.runner.capacity().instances;
    cell.groups.insert("g".to_owned(), most + 1);
    cell.instances = (0..=most).map(|index| InstanceSpec { id: instance(index), ..model.clone() }).collect();
    let refused = fixture.runner.prepare(cell).await.err();
    assert!(matches!(refused, Some(PrepareError::NoCapacity { .. })), "{refused:?}");
    statuses_are_told(fixture).await;
}

/// Reads JSON lines; every line must be complete.
fn read_json_lines(path: Option<&PathBuf>) -> Vec<serde_json::Value> {
    let path = path.expect("a file was left");
    let text = std::fs::read_to_string(path).expect("the file is text");
    assert!(text.ends_with('\n'), "the last line is complete");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().expect("text")
}
