//! Runs: submitting, watching, listing. What needs the lab's orchestrator is passed on to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::{PinKind, read_block};
use iptl_dag::model::{self, Attestation, Execution, ExecutionId, InstanceId, ReceiptShard, ResultNode, Run, Signed};
use iptl_dag::walk::Limits;
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::log::Tail;
use iptl_wire::control::{Event, Failure, FailureKind, ListKind, LogTail, MAX_PRIORITY, PlacementRow, Reply, Request};
use iptl_wire::session::{KnownRun, OutputLine};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use super::content::{fetch_failure, store};
use super::{Caller, Talk, broken, failure, leading, remote, stopped};
use crate::fetch::Wanted;
use crate::node::Node;
use crate::orchestrator::{Ask, Cancelled, LabletRow, RunRecord, RunRow};

/// A submitted run's blocks must arrive within so long after the last one that did.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes of a run with its plan and its workloads: a developer may not fill the lab's disk by a few words.
const MAX_RUN_SIZE: u64 = 4 << 30;

/// Logs that are not followed end once a running execution said nothing for so long.
const QUIET: Duration = Duration::from_millis(500);

/// Longest log of one instance that is read, in bytes; the lab's own limit on output is far below.
const MAX_LOG_SIZE: u64 = 64 << 20;

/// Most instances of one run.
const MAX_INSTANCES: u64 = 1_000_000;

pub(super) async fn submit(
    node: &Arc<Node>,
    caller: &Caller,
    run: Cid,
    source: Option<PeerId>,
    source_addrs: Vec<String>,
    priority: i32,
    talk: &mut Talk,
) -> Result<(), Failure> {
    caller.developer()?;
    if !(-MAX_PRIORITY..=MAX_PRIORITY).contains(&priority) {
        let message = format!("a priority of {priority}; there is -{MAX_PRIORITY} to {MAX_PRIORITY}");
        return Err(failure(FailureKind::Usage, "run.priority", message, "leave it out, or take one within"));
    }
    let Some(lab) = leading(node).await else {
        let source_addrs = match node.links.net() {
            Some(net) => net.addrs().await,
            None => Vec::new(),
        };
        let request = Request::Submit { run, source: Some(node.links.peer().clone()), source_addrs, priority };
        let answer = remote::ask(node, caller, &request).await?;
        let submitted = match answer.first() {
            Reply::Submitted { execution, .. } => Some(ExecutionId(*execution)),
            _ => None,
        };
        let told = answer.pass_on(talk).await;
        if let (Err(_), Some(id)) = (&told, submitted) {
            let answer = remote::ask(node, caller, &Request::Cancel { execution: id.to_string() }).await;
            withdrawn(id, answer.and_then(remote::Answer::accepted));
        }
        return told;
    };
    let from = source.into_iter().map(|peer| (peer, source_addrs.clone())).collect();
    // Until the execution holds it itself.
    let _grace = node.keeper.grace();
    let wanted = Wanted { root: run, from, fellows: Vec::new(), timeout: SUBMIT_TIMEOUT, shallow: false };
    let limits = Limits { bytes: MAX_RUN_SIZE, ..Limits::default() };
    node.fetcher.clone().within(limits).fetch(&wanted, |_| {}).await.map_err(fetch_failure)?;
    let known = read_run(node, run).await?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).expect("the kernel gives random bytes");
    let execution = Execution { run, orchestrator: node.links.peer().clone(), nonce };
    node.store.put(vec![model::to_block(execution.clone())]).await.map_err(store)?;
    let by = caller.peer(node);
    let submitter = by.clone();
    let id = lab
        .ask(|answer| Ask::Submit { execution, run: Box::new(known), by: submitter, priority, answer })
        .await
        .map_err(stopped)?;
    let told = talk.say(Reply::Submitted { execution: id.0, alias: id.alias() }).await;
    if told.is_err() {
        let answer = lab.ask(|answer| Ask::Cancel { name: id.to_string(), by, answer }).await;
        withdrawn(id, answer.map_err(stopped).flatten().map(|_| ()));
    }
    told
}

/// Notes that an execution was withdrawn since whoever submitted it has gone, and does not know of it.
fn withdrawn(id: ExecutionId, answer: Result<(), Failure>) {
    match answer {
        Ok(()) => {
            tracing::info!(execution = %id.alias(), "withdrawn: who submitted it has gone and does not know of it")
        }
        Err(failed) => {
            tracing::warn!(execution = %id.alias(), error = failed.message, "nobody knows of it, and it goes on");
        }
    }
}

pub(super) async fn dry_run(node: &Arc<Node>, caller: &Caller, run: Cid, talk: &mut Talk) -> Result<(), Failure> {
    let Some(lab) = leading(node).await else {
        // The orchestrator needs the run alone, and fetches it from here.
        return remote::forward(node, caller, Request::DryRun { run }, talk).await;
    };
    let from = match caller {
        Caller::Owner => Vec::new(),
        Caller::Member { peer, .. } => vec![(peer.clone(), Vec::new())],
    };
    let wanted = Wanted { root: run, from, fellows: Vec::new(), timeout: SUBMIT_TIMEOUT, shallow: true };
    node.fetcher.fetch(&wanted, |_| {}).await.map_err(fetch_failure)?;
    let known = read_run(node, run).await?;
    let dry = lab.ask(|answer| Ask::DryRun { run: Box::new(known), answer }).await.map_err(stopped)?;
    let name = |peer: &PeerId| dry.names.get(peer).cloned().unwrap_or_else(|| peer.short());
    let rows = dry
        .placed
        .assignments
        .iter()
        .map(|a| PlacementRow {
            lablet: name(&a.lablet),
            peer: a.lablet.clone(),
            group: a.group.clone(),
            start: a.start,
            count: a.count,
        })
        .collect();
    let refused = dry.placed.refused.iter().map(|r| (name(&r.lablet), r.reason.clone())).collect();
    talk.say(Reply::Placement { rows, refused, unplaced: dry.placed.unplaced.values().map(|n| u64::from(*n)).sum() })
        .await
}

pub(super) async fn watch(
    node: &Arc<Node>,
    caller: &Caller,
    execution: String,
    talk: &mut Talk,
) -> Result<(), Failure> {
    let Some(lab) = leading(node).await else {
        return remote::forward(node, caller, Request::Watch { execution }, talk).await;
    };
    let (id, watching) = lab.ask(|answer| Ask::Watch { name: execution, answer }).await.map_err(stopped)??;
    let mut over = false;
    for event in watching.history {
        over |= is_last(&event);
        talk.say(Reply::Event(event)).await?;
    }
    let Some(mut events) = watching.events else { return Ok(()) };
    while !over {
        match events.recv().await {
            Ok(event) => {
                over = is_last(&event);
                talk.say(Reply::Event(event)).await?;
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => {
                // The end was told between the history and the subscription, or the node stops.
                let name = id.to_string();
                let again = lab.ask(|answer| Ask::Watch { name, answer }).await.map_err(stopped)??.1;
                for event in again.history.into_iter().filter(is_last) {
                    talk.say(Reply::Event(event)).await?;
                }
                return Ok(());
            }
        }
    }
    Ok(())
}

fn is_last(event: &Event) -> bool {
    matches!(event, Event::Finished { .. } | Event::Failed { .. })
}

pub(super) async fn cancel(
    node: &Arc<Node>,
    caller: &Caller,
    execution: String,
    talk: &mut Talk,
) -> Result<(), Failure> {
    caller.developer()?;
    let Some(lab) = leading(node).await else {
        return remote::forward(node, caller, Request::Cancel { execution }, talk).await;
    };
    let by = caller.peer(node);
    let Cancelled { execution, over } =
        lab.ask(|answer| Ask::Cancel { name: execution, by, answer }).await.map_err(stopped)??;
    talk.say(Reply::Cancelled { execution: execution.0, alias: execution.alias(), over }).await
}

/// Hands the log of an execution over as it is on disk: whoever asks checks it.
pub(super) async fn audit(
    node: &Arc<Node>,
    caller: &Caller,
    execution: String,
    talk: &mut Talk,
) -> Result<(), Failure> {
    let Some(lab) = leading(node).await else {
        return remote::forward(node, caller, Request::Audit { execution }, talk).await;
    };
    let log = lab.ask(|answer| Ask::Audit { name: execution, answer }).await.map_err(stopped)??;
    let tail = match log.tail {
        Tail::Clean => LogTail::Clean,
        Tail::Torn => LogTail::Torn,
        Tail::Damaged => LogTail::Damaged,
    };
    talk.say(Reply::Log { execution: log.id.0, writers: log.writers, tail }).await?;
    for block in log.blocks {
        talk.say(Reply::Block { cid: *block.cid(), data: block.data().to_vec() }).await?;
    }
    Ok(())
}

pub(super) async fn resolve(node: &Arc<Node>, caller: &Caller, name: String, talk: &mut Talk) -> Result<(), Failure> {
    if let Ok(cid) = name.parse::<Cid>() {
        return talk.say(Reply::Resolved { cid }).await;
    }
    let Some(lab) = leading(node).await else {
        return remote::forward(node, caller, Request::Resolve { name }, talk).await;
    };
    let shown = name.clone();
    let (id, record) = lab.ask(|answer| Ask::Find { name, answer }).await.map_err(stopped)??;
    match record.and_then(|record| record.result()) {
        Some((cid, ..)) => talk.say(Reply::Resolved { cid }).await,
        None => Err(failure(
            FailureKind::NotFound,
            "execution.no-result",
            format!("{shown} has no result yet"),
            &format!("follow it: `iptl watch {}`", id.alias()),
        )),
    }
}

/// Whose output is asked for.
pub(super) struct LogsOf {
    pub(super) execution: String,
    pub(super) group: Option<String>,
    pub(super) index: Option<u32>,
    pub(super) follow: bool,
}

impl LogsOf {
    fn wants(&self, id: &InstanceId) -> bool {
        self.group.as_ref().is_none_or(|group| *group == id.group) && self.index.is_none_or(|index| index == id.index)
    }
}

pub(super) async fn logs(node: &Arc<Node>, caller: &Caller, of: LogsOf, talk: &mut Talk) -> Result<(), Failure> {
    let Some(lab) = leading(node).await else {
        let LogsOf { execution, group, index, follow } = of;
        return remote::forward(node, caller, Request::Logs { execution, group, index, follow }, talk).await;
    };
    let name = of.execution.clone();
    let (id, record) = lab.ask(|answer| Ask::Find { name, answer }).await.map_err(stopped)??;
    if let Some(record) = record {
        return match record.result() {
            Some((result, ..)) => logs_of_result(node, result, &of, talk).await,
            None => Ok(()),
        };
    }
    let Some(mut lines) = lab.ask(|answer| Ask::Follow { id, answer }).await.map_err(stopped)? else { return Ok(()) };
    loop {
        let next = if of.follow {
            lines.recv().await
        } else {
            match tokio::time::timeout(QUIET, lines.recv()).await {
                Ok(next) => next,
                Err(_) => return Ok(()),
            }
        };
        match next {
            Ok(line) if of.wants(&line.instance) => talk.say(Reply::Output(line)).await?,
            Ok(_) => {}
            Err(RecvError::Lagged(lost)) => {
                talk.say(Reply::Note {
                    text: format!("{lost} lines were too fast to be shown; all are in the result"),
                })
                .await?;
            }
            Err(RecvError::Closed) => {
                // Either the execution is over, or who leads is another now: that one says how it goes on.
                let name = id.to_string();
                let (_, record) = lab.ask(|answer| Ask::Find { name, answer }).await.map_err(stopped)??;
                return record.map(|_| ()).ok_or_else(remote::elsewhere);
            }
        }
    }
}

/// A line as it stands in a log file.
#[derive(Deserialize)]
struct LogLine {
    t: u64,
    stream: String,
    line: String,
}

async fn logs_of_result(node: &Node, result: Cid, of: &LogsOf, talk: &mut Talk) -> Result<(), Failure> {
    let result: ResultNode = read_node(node, &result).await?;
    let attestation: Signed<Attestation> = read_node(node, &result.attestation).await?;
    let mut logs = BTreeMap::new();
    for shard in &attestation.body.receipts {
        let shard: ReceiptShard = read_node(node, shard).await?;
        for receipt in shard.receipts.into_iter().map(|signed| signed.body) {
            if let Some(cid) = receipt.logs.filter(|_| of.wants(&receipt.instance)) {
                logs.insert((receipt.instance, receipt.attempt), cid);
            }
        }
    }
    for ((instance, _), cid) in logs {
        let bytes = iptl_artifacts::export::read_file(&*node.store, &cid, MAX_LOG_SIZE).await.map_err(broken)?;
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(LogLine { t, stream, line }) = serde_json::from_slice(line) else { continue };
            talk.say(Reply::Output(OutputLine { instance: instance.clone(), stream, at_us: t, line })).await?;
        }
    }
    Ok(())
}

pub(super) async fn list(node: &Arc<Node>, caller: &Caller, what: ListKind, talk: &mut Talk) -> Result<(), Failure> {
    let rows = match what {
        ListKind::Plans => pins(node, Some(PinKind::Plan)),
        ListKind::Pins => pins(node, None),
        ListKind::Runs | ListKind::Results | ListKind::Lablets => {
            let Some(lab) = leading(node).await else {
                return remote::forward(node, caller, Request::List { what }, talk).await;
            };
            if what == ListKind::Lablets {
                let lablets = lab.ask(|answer| Ask::Lablets { answer }).await.map_err(stopped)?;
                lablets.iter().map(lablet_row).collect()
            } else {
                let runs = lab.ask(|answer| Ask::Runs { answer }).await.map_err(stopped)?;
                runs.iter().filter_map(|row| run_row(row, what)).collect()
            }
        }
    };
    for row in rows {
        talk.say(Reply::Row(row)).await?;
    }
    Ok(())
}

fn pins(node: &Node, kind: Option<PinKind>) -> Vec<BTreeMap<String, String>> {
    node.keeper
        .pins()
        .into_iter()
        .filter(|pin| kind.is_none_or(|kind| pin.kind == kind))
        .map(|pin| {
            row([
                ("cid", pin.root.to_string()),
                ("kind", pin.kind.name().to_owned()),
                ("mode", pin.mode.name().to_owned()),
                ("name", pin.name),
                ("readers", if pin.public { "everybody" } else { "members" }.to_owned()),
                ("pinned_ms", pin.pinned_ms.to_string()),
            ])
        })
        .collect()
}

fn lablet_row(lablet: &LabletRow) -> BTreeMap<String, String> {
    let slots = lablet.inventory.sum();
    let by_kind: Vec<_> = lablet
        .inventory
        .slots
        .iter()
        .map(|(kind, slots)| format!("{}={}/{}", kind.name(), slots.free, slots.total))
        .collect();
    let labels: Vec<_> = lablet.inventory.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    row([
        ("peer", lablet.peer.to_string()),
        ("name", lablet.inventory.name.clone()),
        ("state", state(lablet).to_owned()),
        ("version", lablet.version.clone()),
        ("cpus", lablet.inventory.cpus.to_string()),
        ("memory_bytes", lablet.inventory.memory_bytes.to_string()),
        ("slots", slots.total.to_string()),
        ("addrs", lablet.inventory.addrs.join(" ")),
        ("free_slots", slots.free.to_string()),
        ("slots_by_kind", by_kind.join(",")),
        ("labels", labels.join(",")),
    ])
}

fn state(lablet: &LabletRow) -> &'static str {
    match (lablet.ready, lablet.inventory.draining) {
        (false, _) if lablet.unknown => "unknown",
        (false, _) => "offline",
        (true, true) => "draining",
        (true, false) => "ready",
    }
}

fn run_row(entry: &RunRow, what: ListKind) -> Option<BTreeMap<String, String>> {
    match entry {
        RunRow::Ended(record) => ended_row(record, what),
        RunRow::Active { .. } if what == ListKind::Results => None,
        RunRow::Active { id, run, plan, case, submitted_ms, instances, ended, phase } => {
            let mut columns = row([
                ("execution", id.to_string()),
                ("alias", id.alias()),
                ("state", phase.clone()),
                ("instances", instances.to_string()),
                ("ended", ended.to_string()),
                ("submitted_ms", submitted_ms.to_string()),
            ]);
            columns.extend(what_runs(*run, *plan, case.clone()));
            Some(columns)
        }
    }
}

fn ended_row(record: &RunRecord, what: ListKind) -> Option<BTreeMap<String, String>> {
    let result = record.result();
    if what == ListKind::Results && result.is_none() {
        return None;
    }
    let mut columns = row([
        ("execution", record.execution.to_string()),
        ("alias", record.execution.alias()),
        ("submitted_ms", record.submitted_ms.to_string()),
        ("ended_ms", record.ended_ms.to_string()),
        ("state", if result.is_some() { "sealed" } else { "failed" }.to_owned()),
    ]);
    columns.extend(what_runs(record.run, record.plan, record.case.clone()));
    if let Some((cid, verdict, counts)) = result {
        let instances = counts.ok + counts.failed + counts.lost;
        columns.extend(row([
            ("result", cid.to_string()),
            ("verdict", verdict.name().to_owned()),
            ("instances", instances.to_string()),
            ("ok", counts.ok.to_string()),
            ("failed", counts.failed.to_string()),
            ("lost", counts.lost.to_string()),
        ]));
    }
    Some(columns)
}

/// Says what an execution runs, as far as it is known.
fn what_runs(run: Option<Cid>, plan: Option<Cid>, case: Option<String>) -> impl Iterator<Item = (String, String)> {
    let columns =
        [("run", run.map(|run| run.to_string())), ("plan", plan.map(|plan| plan.to_string())), ("case", case)];
    columns.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)))
}

fn row<const N: usize>(columns: [(&str, String); N]) -> BTreeMap<String, String> {
    columns.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

async fn read_run(node: &Node, cid: Cid) -> Result<KnownRun, Failure> {
    let run: Run = read_node(node, &cid).await?;
    let instances = run.instances();
    if instances == 0 || instances > MAX_INSTANCES {
        let message = format!("a run of {instances} instances; there must be 1 to {MAX_INSTANCES}");
        return Err(failure(FailureKind::Usage, "run.size", message, "change the groups' counts: `-g group=n`"));
    }
    Ok(KnownRun { cid, run })
}

async fn read_node<T>(node: &Node, cid: &Cid) -> Result<T, Failure>
where
    T: TryFrom<model::Node, Error = iptl_dag::DecodeError>,
{
    let block = read_block(&*node.store, cid).await.map_err(broken)?.ok_or_else(|| {
        failure(FailureKind::NotFound, "block.missing", format!("{cid} is not in this node's store"), "fetch it first")
    })?;
    model::from_bytes(block.data())
        .map_err(|e| failure(FailureKind::Usage, "node.kind", format!("{cid}: {e}"), "see what it is: `iptl show CID`"))
}
