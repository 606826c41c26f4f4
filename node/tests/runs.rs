//! Executions on a lab that has no lablets: queued, cancelled, sealed, and carried on by the next life of the node.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use iptl_dag::model::{
    self, Counts, Engine, Epoch, Execution, ExecutionId, Fact, FactKind, GroupRun, LossPolicy, Network, Placing, Plan,
    Requirements, Resources, ResultVerdict, Run, Workload, WorkloadKind,
};
use iptl_dag::walk::{Limits, Walk};
use iptl_dag::{Block, Cid, Codec};
use iptl_node::framed;
use iptl_scheduler::log::append_record;
use iptl_trust::{Keypair, sign};
use iptl_wire::control::{Event, Failure, FailureKind, ListKind, LogTail, MAX_FRAME_SIZE, Reply, Request};
use tokio::io::AsyncRead;

use crate::lab::{Node, bystander, lab, start_again, within};

const INSTANCES: u32 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_is_sealed_and_anybody_can_verify_its_result() {
    let (lab, reader) = (lab(false).await, bystander().await);
    let run = publish(&lab).await;
    let alias = submit(&lab, run).await;
    let mut watching = watch(&lab, &alias).await;
    let waits = event(&mut watching, |event| match event {
        Event::Waiting { reason } => Some(reason),
        _ => None,
    });
    assert!(waits.await.contains("none is connected"));
    let early = lab.ask(Request::Resolve { name: alias.clone() }).await.unwrap_err();
    assert_eq!((early.kind, early.code.as_str()), (FailureKind::NotFound, "execution.no-result"));

    lab.ask(Request::Cancel { execution: alias.clone() }).await.unwrap();
    let result = finished(&mut watching).await;
    let resolved = lab.ask(Request::Resolve { name: alias }).await.unwrap();
    assert_eq!(resolved, [Reply::Resolved { cid: result }]);
    verify(&lab, &reader, &result).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_goes_on_in_the_next_life_of_its_node() {
    let (lab, reader) = (lab(false).await, bystander().await);
    let run = publish(&lab).await;
    let alias = submit(&lab, run).await;
    let lab = lab.restarted().await;
    let rows = lab.ask(Request::List { what: ListKind::Runs }).await.unwrap();
    assert!(
        matches!(&rows[..], [Reply::Row(row)] if row["alias"] == alias && row["run"] == run.to_string()),
        "{rows:?}"
    );
    let mut watching = watch(&lab, "last").await;
    lab.ask(Request::Cancel { execution: alias }).await.unwrap();
    let result = finished(&mut watching).await;

    let lab = lab.restarted().await;
    let rows = lab.ask(Request::List { what: ListKind::Results }).await.unwrap();
    assert!(matches!(&rows[..], [Reply::Row(row)] if row["result"] == result.to_string()), "{rows:?}");
    verify(&lab, &reader, &result).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_runs_are_two_executions() {
    let lab = lab(false).await;
    let run = publish(&lab).await;
    assert_ne!(submit(&lab, run).await, submit(&lab, run).await);
    let placed = lab.ask(Request::DryRun { run }).await.unwrap();
    assert!(matches!(&placed[..], [Reply::Placement { unplaced: 3, .. }]), "{placed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_ends_its_execution_alone_and_is_kept_byte_for_byte() {
    let lab = lab(false).await;
    let run = publish(&lab).await;
    let (hurt, goes_on) = (submit(&lab, run).await, submit(&lab, run).await);
    let dir = lab.stopped().await;
    let logs = dir.path().join("log");
    let log = std::fs::read_dir(&logs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "log") && alias_of(path) == hurt)
        .expect("it has a log");
    let mut bytes = std::fs::read(&log).unwrap();
    // In the first fact, which says what it runs.
    bytes[60] ^= 1;
    std::fs::write(&log, &bytes).unwrap();

    let mut lab = start_again(dir).await;
    for life in 0..2 {
        let failure = failed(&mut watch(&lab, &hurt).await).await;
        assert_eq!(failure.code, "execution.log-damaged", "in life {life}");
        assert!(failure.help.contains("run it again") && failure.help.contains(&format!("iptl audit {hurt}")));
        let audited = lab.ask(Request::Audit { execution: hurt.clone() }).await.unwrap();
        assert!(matches!(audited[0], Reply::Log { tail: LogTail::Damaged, .. }), "{audited:?}");
        let kept = lab.dir.path().join("log/damaged").join(log.file_name().unwrap());
        assert_eq!(std::fs::read(kept).unwrap(), bytes);
        assert!(!log.exists());
        lab = lab.restarted().await;
    }
    // The rest of the lab did not notice.
    let mut watching = watch(&lab, &goes_on).await;
    lab.ask(Request::Cancel { execution: goes_on.clone() }).await.unwrap();
    let result = finished(&mut watching).await;
    verify(&lab, &bystander().await, &result).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_block_that_a_log_names_ends_its_execution_alone_and_whoever_asks_is_told() {
    let lab = lab(false).await;
    let run = publish(&lab).await;
    let goes_on = submit(&lab, run).await;
    // Whoever wrote it had the run, which is not here.
    let missing = *Block::new(Codec::DagCbor, "a run").cid();
    let key = iptl_node::Home::open(lab.dir.path()).unwrap().identity().unwrap();
    let execution = Execution { run: missing, orchestrator: key.peer().clone(), nonce: [7; 16] };
    let id = execution.id();
    lab.put(&[model::to_block(execution)]).await;
    let bytes = log_of_one(&key, id, missing);
    let dir = lab.stopped().await;
    let log = dir.path().join("log").join(format!("{id}.log"));
    std::fs::write(&log, &bytes).unwrap();

    let mut lab = start_again(dir).await;
    // Its log is kept as it is, where the next life does not read it again.
    let kept = lab.dir.path().join("log/over").join(log.file_name().unwrap());
    assert_eq!((std::fs::read(&kept).unwrap(), log.exists()), (bytes, false));
    for life in 0..2 {
        let failure = failed(&mut watch(&lab, &id.alias()).await).await;
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::LabUnable, "execution.block-missing"));
        assert!(failure.message.contains(&missing.to_string()), "in life {life}: {}", failure.message);
        assert_ne!(row(&lab, &goes_on).await["state"], "failed", "in life {life}");
        let row = row(&lab, &id.alias()).await;
        let told = (row["state"].as_str(), row["run"].as_str(), row["submitted_ms"].as_str());
        assert_eq!(told, ("failed", missing.to_string().as_str(), "1"), "in life {life}");
        assert!(!row.contains_key("plan") && !row.contains_key("case"), "it cannot be known: {row:?}");
        let audited = lab.ask(Request::Audit { execution: id.alias() }).await.unwrap();
        assert!(matches!(audited[..], [Reply::Log { tail: LogTail::Clean, .. }, Reply::Block { .. }]), "{audited:?}");
        let shown = lab.ask(Request::Resolve { name: id.alias() }).await.unwrap_err();
        assert_eq!(shown.code, "execution.no-result");
        let cancelled = lab.ask(Request::Cancel { execution: id.alias() }).await.unwrap();
        assert!(matches!(cancelled[..], [Reply::Cancelled { over: true, .. }]), "{cancelled:?}");
        lab = lab.restarted().await;
    }
    let mut watching = watch(&lab, &goes_on).await;
    lab.ask(Request::Cancel { execution: goes_on.clone() }).await.unwrap();
    let result = finished(&mut watching).await;
    verify(&lab, &bystander().await, &result).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_of_which_nothing_can_be_read_is_told_to_have_ended() {
    let lab = lab(false).await;
    let key = iptl_node::Home::open(lab.dir.path()).unwrap().identity().unwrap();
    // Neither the run nor the block that names the execution is here, and its log is damaged in the first fact.
    let missing = *Block::new(Codec::DagCbor, "a run").cid();
    let id = Execution { run: missing, orchestrator: key.peer().clone(), nonce: [7; 16] }.id();
    let mut bytes = log_of_one(&key, id, missing);
    bytes[60] ^= 1;
    let dir = lab.stopped().await;
    std::fs::write(dir.path().join("log").join(format!("{id}.log")), bytes).unwrap();

    let lab = start_again(dir).await;
    assert_eq!(failed(&mut watch(&lab, "last").await).await.code, "execution.log-damaged");
    let row = row(&lab, &id.alias()).await;
    assert_eq!((row["state"].as_str(), row.get("run")), ("failed", None));
    let lab = lab.restarted().await;
    assert_eq!(failed(&mut watch(&lab, &id.to_string()).await).await.code, "execution.log-damaged");
}

/// Returns a log that says what was submitted, and nothing more.
fn log_of_one(key: &Keypair, id: ExecutionId, run: Cid) -> Vec<u8> {
    let kind = FactKind::Submitted { execution: id.0, run, by: key.peer().clone(), priority: 0, order: 0 };
    let epoch = Epoch { counter: 1, peer: key.peer().clone() };
    let fact = Fact { execution: id, seq: 0, prev: None, epoch, at_ms: 1, kind };
    let mut bytes = Vec::new();
    append_record(&mut bytes, model::to_block(sign(key, fact)).data());
    bytes
}

/// Returns what a lab says of an execution where it lists all of them.
async fn row(lab: &Node, alias: &str) -> BTreeMap<String, String> {
    let rows = lab.ask(Request::List { what: ListKind::Runs }).await.unwrap().into_iter();
    let mut rows = rows.map(|reply| match reply {
        Reply::Row(row) => row,
        other => panic!("a list was answered by {other:?}"),
    });
    rows.find(|row| row["alias"] == alias).unwrap_or_else(|| panic!("{alias} is not listed"))
}

/// Returns the alias of the execution whose log this is.
fn alias_of(log: &Path) -> String {
    let name = log.file_stem().and_then(|name| name.to_str()).unwrap();
    ExecutionId(name.split('.').next().unwrap().parse().unwrap()).alias()
}

/// Puts a run into a node's store, with a plan and a program that nobody will start.
async fn publish(node: &Node) -> Cid {
    let program = Block::new(Codec::Raw, "no component");
    let (content, size) = (*program.cid(), program.data().len() as u64);
    let workload = model::to_block(Workload { name: "idle".to_owned(), kind: WorkloadKind::Wasm, content, size });
    let plan = model::to_block(Plan {
        name: "idle".to_owned(),
        version: "0.1.0".to_owned(),
        description: String::new(),
        source: None,
        workloads: BTreeMap::from([("idle".to_owned(), *workload.cid())]),
        cases: BTreeMap::new(),
    });
    let group = GroupRun {
        workload: *workload.cid(),
        kind: WorkloadKind::Wasm,
        count: INSTANCES,
        args: Vec::new(),
        env: BTreeMap::new(),
        resources: Resources::default(),
        requires: Requirements::default(),
        container: None,
        loss: None,
        start: None,
    };
    let run = model::to_block(Run {
        plan: *plan.cid(),
        case: "idle".to_owned(),
        groups: BTreeMap::from([("node".to_owned(), group)]),
        params: BTreeMap::new(),
        seed: 1,
        engine: Engine::Live,
        network: Network::Clean,
        faults: Vec::new(),
        loss: LossPolicy::default(),
        thresholds: Vec::new(),
        timeout_ms: 10_000,
        placing: Placing::default(),
        captures: BTreeMap::new(),
    });
    let cid = *run.cid();
    node.put(&[program, workload, plan, run]).await;
    cid
}

async fn submit(node: &Node, run: Cid) -> String {
    match &node.ask(Request::Submit { run, source: None, source_addrs: vec![], priority: 0 }).await.unwrap()[..] {
        [Reply::Submitted { alias, .. }] => alias.clone(),
        other => panic!("a submission was answered by {other:?}"),
    }
}

async fn watch(node: &Node, execution: &str) -> impl AsyncRead + Unpin + use<> {
    let mut stream = node.running.connect();
    framed::write(&mut stream, &Request::Watch { execution: execution.to_owned() }).await.unwrap();
    stream
}

/// Reads events up to one that is wanted.
async fn event<T>(stream: &mut (impl AsyncRead + Unpin), mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    let reading = async {
        loop {
            match framed::expect::<Reply>(stream, MAX_FRAME_SIZE).await.unwrap() {
                Reply::Event(event) => {
                    if let Some(found) = wanted(event) {
                        return found;
                    }
                }
                other => panic!("a watch was answered by {other:?}"),
            }
        }
    };
    within("an event", reading).await
}

/// Waits for an end without a result and returns why.
async fn failed(stream: &mut (impl AsyncRead + Unpin)) -> Failure {
    event(stream, |event| match event {
        Event::Failed { failure, .. } => Some(failure),
        _ => None,
    })
    .await
}

/// Waits for the end of a run of which nothing was started.
async fn finished(stream: &mut (impl AsyncRead + Unpin)) -> Cid {
    let (result, verdict, counts) = event(stream, |event| match event {
        Event::Finished { result, verdict, counts, .. } => Some((result, verdict, counts)),
        _ => None,
    })
    .await;
    assert_eq!(verdict, ResultVerdict::Inconclusive);
    assert_eq!(counts, Counts { ok: 0, failed: 0, lost: u64::from(INSTANCES) });
    result
}

/// Fetches a result by its CID and checks all of it.
async fn verify(lab: &Node, reader: &Node, result: &Cid) {
    reader.fetch(result, vec![lab.addr().await], 60_000).await.0.unwrap();
    let mut walk = Walk::new([*result], Limits::default()).unwrap();
    let mut blocks: BTreeMap<Cid, Bytes> = BTreeMap::new();
    loop {
        let cids = walk.wants(100);
        if cids.is_empty() {
            break;
        }
        for reply in reader.ask(Request::Blocks { cids }).await.unwrap() {
            let Reply::Block { cid, data } = reply else { panic!("asked for blocks, answered {reply:?}") };
            walk.accept(&Block::verify(cid, data.clone()).unwrap()).unwrap();
            blocks.insert(cid, data.into());
        }
    }
    let found = iptl_result::verify(result, &mut |cid| blocks.get(cid).cloned(), &iptl_trust::is_signature).unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
    assert_eq!((found.missing_instances, found.signatures_bad), (u64::from(INSTANCES), 0));
    assert!(found.facts > 0 && found.outcome_equal && found.files_equal);
}
