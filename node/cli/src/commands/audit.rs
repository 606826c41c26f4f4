//! `iptl audit`: checks and prints the log of an execution.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use iptl_dag::model::fact::CellFact;
use iptl_dag::model::{self, Epoch, ExecutionId, Fact, FactKind, FaultDone, InstanceId, Signed};
use iptl_dag::{Block, Cid, Codec, PeerId};
use iptl_scheduler::log::{self, Audit, Misfit, Tail};
use iptl_wire::control::{LogTail, Reply, Request};
use serde_json::{Value, json};

use crate::client::unexpected;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::{node, ui};

/// Faults of one fact that its line tells.
const MAX_FAULTS: usize = 4;

/// Checks every fact of an execution's log, and prints them.
///
/// What the orchestrator decided stands in a log whose facts are signed and name each other by hash. The check is made
/// here: signatures, the chain, terms, and whether things happened in an order in which they can.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl audit last\n  iptl audit x-7k3pq --json\n  iptl audit backup/bafy….log")]
pub struct Args {
    /// Execution: alias, CID, or `last`; or a log file
    execution: String,
}

/// A log as it came, before anything of it was checked.
struct Log {
    execution: ExecutionId,
    /// Who may have written it.
    writers: BTreeSet<PeerId>,
    blocks: Vec<Block>,
    tail: Tail,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let path = Path::new(&args.execution);
    let log = match path.extension().is_some_and(|e| e == "log") {
        true => read_file(path)?,
        false => ask(ctx, &args.execution).await?,
    };
    let audit = log::audit(log.execution, log.writers.iter().cloned(), &log.blocks);
    let began_ms = audit.facts.first().map_or(0, |(_, fact)| fact.at_ms);
    for (cid, fact) in &audit.facts {
        if ctx.json {
            ctx.answer_json("fact", to_json(cid, fact)?);
        } else {
            let after_s = fact.at_ms.saturating_sub(began_ms) as f64 / 1e3;
            let text = ui::harmless(&describe(&fact.kind));
            let (seq, term) = (fact.seq, fact.epoch.counter);
            ctx.answer(format!("{seq:>5}  +{after_s:<9.3}  term {term:<4}  {text}"));
        }
    }
    conclude(ctx, &log, &audit)
}

/// Reads a log file; whoever signed its first fact may have written it, and whoever took over from them.
fn read_file(path: &Path) -> Result<Log> {
    let unreadable = |e: std::io::Error| {
        Error::new(Exit::NotFound, "log.unreadable", format!("{}: {e}", path.display()), "name a file that can be read")
    };
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let found = log::records(&bytes);
    let blocks: Vec<Block> =
        found.bodies.into_iter().map(|body| Block::new(Codec::DagCbor, bytes[body].to_vec())).collect();
    let facts = || blocks.iter().filter_map(|b| model::from_bytes::<Signed<Fact>>(b.data()).ok());
    let Some(first) = facts().next() else {
        let message = format!("{} holds no whole fact", path.display());
        return Err(Error::broken("log.empty", message, "name a file that an orchestrator wrote as EXECUTION.log"));
    };
    let heirs = facts().filter(|f| matches!(f.body.kind, FactKind::TakenOver { .. })).map(|f| f.signer);
    let writers = std::iter::once(first.signer.clone()).chain(heirs).collect();
    Ok(Log { execution: first.body.execution, writers, blocks, tail: found.tail })
}

/// Gets the log from the orchestrator.
async fn ask(ctx: &Context, execution: &str) -> Result<Log> {
    let client = node::reach(ctx).await?;
    let request = Request::Audit { execution: execution.to_owned() };
    let mut replies = ctx.waiting("reading the log", client.call_all(request)).await?.into_iter();
    let mut log = match replies.next() {
        Some(Reply::Log { execution, writers, tail }) => {
            let tail = match tail {
                LogTail::Clean => Tail::Clean,
                LogTail::Torn => Tail::Torn,
                LogTail::Damaged => Tail::Damaged,
            };
            let writers = writers.into_iter().collect();
            Log { execution: ExecutionId(execution), writers, blocks: Vec::new(), tail }
        }
        other => return Err(unexpected(&format!("{other:?}"))),
    };
    for reply in replies {
        let Reply::Block { cid, data } = reply else { return Err(unexpected(&format!("{reply:?}"))) };
        let block = Block::verify(cid, data).map_err(|e| unexpected(&e.to_string()))?;
        log.blocks.push(block);
    }
    Ok(log)
}

/// Says what the audit came to.
fn conclude(ctx: &Context, log: &Log, audit: &Audit) -> Result {
    let alias = log.execution.alias();
    let facts = audit.facts.len();
    if let Some(misfit) = &audit.misfit {
        let help = "the facts above hold; what follows counts for nothing: restore the log from a copy, and look at \
                    the disk or at whoever wrote it";
        return Err(Error::broken(code_of(misfit), format!("the log of {alias}: {misfit}"), help));
    }
    let over = audit.facts.last().is_some_and(|(_, fact)| fact.kind.end().is_some());
    match log.tail {
        Tail::Damaged => {
            let message = format!("the log of {alias}: what follows fact {} is not what was written", facts.max(1) - 1);
            let help = "the disk changed it: restore the log from a copy, and look at the disk";
            return Err(Error::broken("log.damaged", message, help));
        }
        Tail::Torn if facts == 0 => {
            let message = format!("the log of {alias} holds no whole fact");
            return Err(Error::broken("log.empty", message, "restore the log from a copy"));
        }
        Tail::Torn | Tail::Clean => {}
    }
    let torn = log.tail == Tail::Torn;
    let attempts = attempts(audit);
    if ctx.json {
        let head = audit.facts.last().map(|(cid, _)| cid.to_string());
        let body = json!({
            "execution": log.execution.to_string(),
            "facts": facts,
            "head": head,
            "over": over,
            "torn": torn,
            "attempts": attempts.iter().map(|(id, n)| (id.to_string(), *n)).collect::<BTreeMap<_, _>>(),
            "writers": log.writers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        ctx.answer_json("audited", body);
        return Ok(Exit::Ok);
    }
    let by: Vec<String> = log.writers.iter().map(PeerId::short).collect();
    let state = if over { "it is over" } else { "it goes on, or was cut off here" };
    ctx.say(format!(
        "the log of {alias} holds: {facts} facts, each signed and in its place, by {}; {state}",
        by.join(", ")
    ));
    if !attempts.is_empty() {
        let most = attempts.values().max().copied().unwrap_or(1);
        let further: u64 = attempts.values().map(|n| u64::from(n - 1)).sum();
        let instances = ui::count(attempts.len() as u64, "instance");
        ctx.say(format!(
            "{instances} began anew, {} in all, {most} for one at most",
            ui::count(further, "further attempt")
        ));
    }
    if torn {
        ctx.say(
            "after them stands the beginning of one more, which was never acted on: it is cut off at the next start",
        );
    }
    Ok(Exit::Ok)
}

/// Returns the last attempt of every instance that was granted more than once after the start.
fn attempts(audit: &Audit) -> BTreeMap<InstanceId, u32> {
    let mut attempts = BTreeMap::new();
    for (_, fact) in &audit.facts {
        if let Some((_, CellFact::Held { assignments, attempt })) = fact.kind.of_cell()
            && attempt > 1
        {
            for instance in assignments.iter().flat_map(model::Assignment::instances) {
                let last: &mut u32 = attempts.entry(instance).or_default();
                *last = (*last).max(attempt);
            }
        }
    }
    attempts
}

fn code_of(misfit: &Misfit) -> &'static str {
    match misfit {
        Misfit::NoFact { .. } => "log.not-a-fact",
        Misfit::OtherExecution { .. } => "log.other-execution",
        Misfit::OutOfOrder { .. } => "log.facts-missing",
        Misfit::Forked { .. } => "log.forked",
        Misfit::Stranger { .. } | Misfit::NotTakenOver { .. } => "log.stranger",
        Misfit::BadSignature { .. } => "log.bad-signature",
        Misfit::TermBack { .. } => "log.term-back",
        Misfit::TermSpent { .. } => "log.term-spent",
        Misfit::Impossible { .. } => "log.impossible",
    }
}

fn to_json(cid: &Cid, fact: &Fact) -> Result<Value> {
    let kind = serde_json::to_value(&fact.kind).map_err(anyhow::Error::from)?;
    Ok(json!({
        "seq": fact.seq,
        "fact": cid.to_string(),
        "at_ms": fact.at_ms,
        "term": fact.epoch.counter,
        "by": fact.epoch.peer.to_string(),
        "what": describe(&fact.kind),
        "body": kind,
    }))
}

/// Says in a line what a fact states.
fn describe(kind: &FactKind) -> String {
    let counted = |assignments: &[model::Assignment]| {
        let count: u64 = assignments.iter().map(|a| u64::from(a.count)).sum();
        if count == 1 { "1 instance".to_owned() } else { format!("{count} instances") }
    };
    match kind {
        FactKind::Submitted { run, by, priority, .. } => {
            let before = if *priority == 0 { String::new() } else { format!(", priority {priority}") };
            format!("submitted  run {} by {}{before}", ui::short(run), by.short())
        }
        FactKind::Placed { placement } => format!("placed     {}", ui::short(placement)),
        FactKind::Granted { lablet, assignments, attempt } => {
            format!("granted    {} to {}, attempt {attempt}", counted(assignments), lablet.short())
        }
        FactKind::Accepted { lablet } => format!("accepted   by {}", lablet.short()),
        FactKind::Refused { lablet, reason } => format!("refused    by {}: {reason}", lablet.short()),
        FactKind::Started {} => "started".to_owned(),
        FactKind::Measured { lablet, ways } => {
            let slow = ways.iter().filter(|way| way.is_too_slow()).count();
            let slow = if slow == 0 {
                String::new()
            } else {
                format!(", {slow} longer than the delays that are to hide them")
            };
            format!("measured   {} by {}{slow}", ui::count(ways.len() as u64, "way"), lablet.short())
        }
        FactKind::Faulted { lablet, faults } => {
            let done: Vec<String> = faults.iter().take(MAX_FAULTS).map(fault).collect();
            let more = match faults.len().saturating_sub(MAX_FAULTS) {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            format!("faulted    on {}: {}{more}", lablet.short(), done.join(", "))
        }
        FactKind::Received { lablet, shard, count } => {
            format!("received   {count} receipts of {}, {}", lablet.short(), ui::short(shard))
        }
        FactKind::Lost { lablet, instances, reason } => {
            let whose = lablet.as_ref().map_or_else(|| "nobody".to_owned(), PeerId::short);
            format!("lost       {} of {whose}: {reason}", instances.len())
        }
        FactKind::Cancelled { by } => format!("cancelled  by {}", by.short()),
        FactKind::TimedOut {} => "timed out".to_owned(),
        FactKind::EndedEarly { reason } => format!("ended early: {reason}"),
        FactKind::CannotStart(why) => format!("not started: {} ({})", why.reason, why.code),
        FactKind::Sealed { result, term } => format!("sealed     {result}{}", in_term(term.as_ref())),
        FactKind::Failed { reason, term } => format!("failed     {reason}{}", in_term(term.as_ref())),
        FactKind::TakenOver { from } => {
            format!("taken over from {}, whose last term was {}", from.peer.short(), from.counter)
        }
        FactKind::Recovered { lablet, assignments, attempt, .. } => {
            format!("recovered  a grant of {} to {}, attempt {attempt}", counted(assignments), lablet.short())
        }
        FactKind::Snapshot { part, facts, .. } => format!("snapshot   part {part}, {} facts", facts.len()),
    }
}

/// Says in which term of the lab an execution ended, where the lab had any.
fn in_term(term: Option<&Epoch>) -> String {
    term.map_or_else(String::new, |term| format!(", in term {} of {}", term.counter, term.peer.short()))
}

/// Says what was done on purpose, and when: as asked for, and as it was.
fn fault(done: &FaultDone) -> String {
    format!(
        "{} of {} at {:.3} s, done {:.3} s",
        done.kind.name(),
        ui::count(u64::from(done.instances), "instance"),
        done.due_us as f64 / 1e6,
        done.done_us as f64 / 1e6
    )
}
