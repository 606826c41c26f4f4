//! A result: everything under it fetched, verified, and said in lines.

use std::collections::BTreeMap;

use iptl_dag::model::{
    self, Adopted, Intervention, Network, NetworkModel, Node, Plan, ResultNode, ResultVerdict, Run, Way,
};
use iptl_dag::{Cid, PeerId};
use iptl_result::Verification;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::fetch::{self, Sources};
use crate::remote::RemoteStore;
use crate::{narrative, ui};
use iptl_wire::control::FetchReport;

/// Commands of people that are shown; all stand in the receipts, and in the answer with `--json`.
const MAX_TOUCHED: usize = 20;

/// A result whose every part was looked at.
pub(super) struct Looked {
    /// What verifying it said.
    pub(super) verified: Verification,
    /// Its plan.
    pub(super) plan: Plan,
    /// What had to be fetched.
    report: FetchReport,
}

/// Fetches and verifies a result.
pub(super) async fn look(
    ctx: &Context,
    client: &Client,
    cid: Cid,
    result: &ResultNode,
    sources: &Sources,
) -> Result<Looked> {
    let report = fetch::fetch(ctx, client, cid, sources, false).await?;
    let store = RemoteStore::new(client.clone());
    let plan = read::<Plan>(ctx, client, &read::<Run>(ctx, client, &result.run).await?.plan).await?;
    let checking = tokio::task::spawn_blocking(move || {
        // Verification is pure and asks for blocks one by one; this thread may wait for them.
        let runtime = Handle::current();
        let mut read = |cid: &Cid| {
            let block = runtime.block_on(iptl_artifacts::read_block(&store, cid)).ok().flatten()?;
            Some(block.data().clone())
        };
        iptl_result::verify(&cid, &mut read, &iptl_trust::is_signature)
    });
    let verified = ctx
        .waiting("verifying", checking)
        .await
        .map_err(|e| Error::broken("internal", e, "report this: it is a mistake in iptl"))?
        .map_err(|e| not_valid(std::error::Error::source(&e).map_or(e.to_string(), |s| format!("{e}: {s}"))))?;
    Ok(Looked { verified, plan, report })
}

/// Fetches and verifies a result and shows it; exits 1 where it does not verify.
///
/// What links did is shown where there are few, and where `links` asks for it.
pub async fn show(
    ctx: &Context,
    client: Client,
    cid: Cid,
    result: &ResultNode,
    sources: &Sources,
    links: bool,
) -> Result {
    let Looked { verified, plan, report } = look(ctx, &client, cid, result, sources).await?;
    let (run, outcome, attestation) = (&verified.run, &verified.outcome, &verified.attestation);
    let sound = verified.is_good();
    let regions = match run.network {
        Network::Clean => Vec::new(),
        Network::Model(cid) => read::<NetworkModel>(ctx, &client, &cid).await?.regions,
    };
    if ctx.json {
        let thresholds: Vec<Value> = outcome
            .thresholds
            .iter()
            .map(|t| json!({"threshold": t.threshold.to_string(), "measured": t.measured, "holds": t.holds}))
            .collect();
        let interventions: Vec<Value> = verified
            .interventions
            .iter()
            .map(|(instance, done)| {
                json!({
                    "instance": instance.to_string(), "by": done.by.to_string(), "at_ms": done.at_ms,
                    "command": done.command, "exit": done.exit,
                })
            })
            .collect();
        let faults: Vec<Value> = verified
            .faults
            .iter()
            .map(|(lablet, done)| {
                json!({
                    "lablet": lablet.to_string(), "fault": done.kind.name(), "instances": done.instances,
                    "due_us": done.due_us, "done_us": done.done_us,
                })
            })
            .collect();
        let ways: Vec<Value> = verified
            .ways
            .iter()
            .map(|(lablet, way)| {
                json!({
                    "lablet": lablet.to_string(), "to": way.to.to_string(), "from_region": way.from_region,
                    "to_region": way.to_region, "asked_us": way.asked_us, "measured_us": way.measured_us,
                    "relayed": way.relayed,
                })
            })
            .collect();
        let adopted: Vec<Value> = verified
            .adopted
            .iter()
            .map(|(instance, how)| {
                json!({"instance": instance.to_string(), "at_ms": how.at_ms, "sync_lost": how.sync_lost})
            })
            .collect();
        ctx.answer_json(
            "show",
            json!({
                "cid": cid.to_string(), "kind": "result", "verdict": narrative::verdict_word(result.verdict),
                "run": result.run.to_string(), "execution": result.execution.to_string(),
                "outcome": result.outcome.to_string(), "attestation": result.attestation.to_string(),
                "files": result.files.to_string(), "plan": run.plan.to_string(), "plan_name": plan.name,
                "case": run.case, "seed": run.seed,
                "ok": result.counts.ok, "failed": result.counts.failed, "lost": result.counts.lost,
                "thresholds": thresholds, "inconclusive": attestation.body.inconclusive,
                "verified": sound, "problems": verified.problems, "signatures": verified.signatures_good,
                "signatures_bad": verified.signatures_bad, "receipts": verified.receipts,
                "instances": run.instances(), "facts": verified.facts, "outcome_equal": verified.outcome_equal,
                "files_equal": verified.files_equal, "interventions": interventions, "faults": faults, "ways": ways,
                "adopted": adopted, "used": super::used::to_json(&verified.used),
                "links": super::links::to_json(&verified.networked, &regions),
                "attempts": attestation.body.attempts, "ended_early": attestation.body.ended_early,
                "cannot_start": attestation.body.cannot_start,
                "fail_fast": outcome.fail_fast, "losses": outcome.losses,
                "fetch": fetch::report_json(&report),
            }),
        );
    } else if !ctx.quiet {
        let body = &attestation.body;
        let (style, word) = match result.verdict {
            ResultVerdict::Pass => ("1;32", "PASS"),
            ResultVerdict::Fail => ("1;31", "FAIL"),
            ResultVerdict::Inconclusive => ("1;33", "INCONCLUSIVE"),
        };
        ctx.answer(format!("result    {cid}"));
        ctx.answer(format!("verdict   {}", ctx.paint(style, word)));
        ctx.answer(format!("plan      {} {}   case {}   seed {}", plan.name, plan.version, run.case, run.seed));
        ctx.answer(format!("run       {}   execution {}", result.run, result.execution.alias()));
        let took = body.ended_ms.saturating_sub(body.started_ms);
        ctx.answer(format!("lab       {}   took {}", body.lab.short(), ui::duration(took)));
        let counts = result.counts;
        ctx.answer(format!("instances {} ok · {} lost · {} failed", counts.ok, counts.lost, counts.failed));
        for (name, group) in &outcome.groups {
            let c = group.counts;
            ctx.answer(format!("  {name:<10} {} ok · {} lost · {} failed", c.ok, c.lost, c.failed));
        }
        for line in super::losses(outcome) {
            ctx.answer(format!("losses    {line}"));
        }
        for (instances, attempt) in &body.attempts {
            ctx.answer(format!("attempts  {instances} began anew, {attempt} in all of {}", bound_of(run, instances)));
        }
        if let Some(why) = &body.cannot_start {
            ctx.answer(format!("unable    nothing was started: {} ({})", why.reason, why.code));
        }
        if let Some(reason) = &body.ended_early {
            ctx.answer(format!("early     the plan had it ended: {reason}"));
        }
        for t in &outcome.thresholds {
            let glyph = if t.holds { ctx.paint("32", "✓") } else { ctx.paint("31", "✗") };
            let measured = t.measured.map_or("nothing measured".to_owned(), narrative::number);
            ctx.answer(format!("threshold {glyph} {}   ({measured})", t.threshold));
        }
        super::used::lines(&verified.used).into_iter().for_each(|line| ctx.answer(line));
        for lablet in &body.lablets {
            let offset = lablet.clock_offset_us;
            ctx.answer(format!(
                "lablet    {:<12} {}   {}, {}   clock {offset:+} µs ± {}",
                lablet.name,
                lablet.peer.short(),
                ui::count(lablet.cpus.into(), "cpu"),
                ui::bytes(lablet.memory_bytes),
                lablet.clock_error_us
            ));
        }
        let names: BTreeMap<&PeerId, &str> = body.lablets.iter().map(|l| (&l.peer, l.name.as_str())).collect();
        let name_of = |peer: &PeerId| names.get(peer).map_or_else(|| peer.short(), |name| (*name).to_owned());
        for (lablet, way) in verified.ways.iter().take(MAX_TOUCHED) {
            ctx.answer(format!("way       {}", way_line(&name_of(lablet), &name_of(&way.to), way)));
        }
        if verified.ways.len() > MAX_TOUCHED {
            ctx.answer(format!("way       and {} more", verified.ways.len() - MAX_TOUCHED));
        }
        for (instance, reason) in &body.missing {
            ctx.answer(format!("missing   {instance}: {reason}"));
        }
        for distortion in &body.distortions {
            ctx.answer(format!("distorted {}: {}", distortion.place, distortion.what));
        }
        for (lablet, done) in verified.faults.iter().take(MAX_TOUCHED) {
            ctx.answer(format!("fault     {}", narrative::fault(done, &name_of(lablet))));
        }
        if verified.faults.len() > MAX_TOUCHED {
            let (more, alias) = (verified.faults.len() - MAX_TOUCHED, result.execution.alias());
            ctx.answer(format!("fault     and {more} more: `iptl audit {alias}`"));
        }
        for (instance, done) in verified.interventions.iter().take(MAX_TOUCHED) {
            ctx.answer(format!("touched   {instance}: {}", intervention(done, body.started_ms)));
        }
        if verified.interventions.len() > MAX_TOUCHED {
            ctx.answer(format!("touched   and {} more times", verified.interventions.len() - MAX_TOUCHED));
        }
        for (instance, how) in verified.adopted.iter().take(MAX_TOUCHED) {
            ctx.answer(format!("adopted   {instance}: {}", adoption(how, body.started_ms)));
        }
        if verified.adopted.len() > MAX_TOUCHED {
            ctx.answer(format!("adopted   and {} more instances", verified.adopted.len() - MAX_TOUCHED));
        }
        super::links::lines(&verified.networked, &regions, links, &name_of)
            .into_iter()
            .for_each(|line| ctx.answer(line));
        for reason in &body.inconclusive {
            ctx.answer(format!("unclear   {reason}"));
        }
        let mark = if sound { ctx.paint("1;32", "verified") } else { ctx.paint("1;31", "NOT VALID") };
        ctx.answer(format!(
            "{mark}  {} · {} of {} receipts · outcome {} · {}, {}{}",
            ui::count(verified.signatures_good, "signature"),
            run.instances().saturating_sub(verified.missing_instances),
            run.instances(),
            if verified.outcome_equal { "recomputed, the same" } else { "not the same when recomputed" },
            ui::count(report.blocks, "block"),
            ui::bytes(report.bytes),
            fetch::shares(&report)
        ));
        ctx.next(format!("iptl get {cid}/files -o out/"));
        ctx.next(format!("iptl run {}    (the same experiment again)", result.run));
    }
    if sound {
        return Ok(Exit::Ok);
    }
    Err(not_valid(verified.problems.join("; ")))
}

/// Says how many attempts the group of some instances allows.
fn bound_of(run: &Run, instances: &str) -> u32 {
    instances.rsplit_once('/').map_or(1, |(group, _)| run.attempts_of(group))
}

/// Says how far a lablet was from another, and which delay was to hide that.
fn way_line(from: &str, to: &str, way: &Way) -> String {
    let ms = |us: u64| format!("{:.1} ms", us as f64 / 1e3);
    let measured = way.measured_us.map_or("nobody knows how long".to_owned(), ms);
    let relayed = if way.relayed { ", relayed" } else { "" };
    let Way { from_region, to_region, asked_us, .. } = way;
    let asked = ms(*asked_us);
    format!("{from} → {to}   {measured} one way{relayed}; {from_region} to {to_region} asks for {asked}")
}

/// Says what somebody did in an instance, and when of the run.
fn intervention(done: &Intervention, started_ms: u64) -> String {
    let command: Vec<String> = done
        .command
        .iter()
        .map(|arg| if arg.contains(char::is_whitespace) || arg.is_empty() { format!("{arg:?}") } else { arg.clone() })
        .collect();
    let exit = done.exit.map_or("its end is not known".to_owned(), |code| format!("exit {code}"));
    let at = ui::clock(done.at_ms.saturating_sub(started_ms));
    format!("{} executed {} at {at}, {exit}", done.by.short(), command.join(" "))
}

/// Says when of the run the lablet of an instance was there again, and what that cost it.
fn adoption(how: &Adopted, started_ms: u64) -> String {
    let at: Vec<String> = how.at_ms.iter().map(|at_ms| ui::clock(at_ms.saturating_sub(started_ms))).collect();
    let cost = if how.sync_lost { "; its connection to sync was lost" } else { "" };
    format!("its lablet was started again, and had it back at {}{cost}", at.join(", "))
}

pub(super) fn not_valid(why: impl std::fmt::Display) -> Error {
    Error::broken(
        "result.not-valid",
        format!("the result does not verify: {why}"),
        "do not rely on it; fetch it from somebody else, or run it again",
    )
}

async fn read<T>(ctx: &Context, client: &Client, cid: &Cid) -> Result<T>
where
    T: TryFrom<Node, Error = iptl_dag::DecodeError>,
{
    let block = fetch::block(ctx, client, cid, &Sources::default()).await?;
    model::from_bytes(block.data()).map_err(|e| not_valid(format!("{cid}: {e}")))
}
