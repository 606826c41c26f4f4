//! Follows an execution and tells what happens: lines for people, NDJSON for programs.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use iptl_dag::model::{FaultDone, ResultVerdict};
use iptl_wire::control::{Event, Reply, Request};
use serde_json::{Value, json};

use crate::client::{Client, unexpected};
use crate::context::{Context, millis};
use crate::exit::{Error, Exit, Result};
use crate::progress;
use crate::ui;

/// Silence after which a follower says that it still waits.
const SILENCE: Duration = Duration::from_secs(10);

/// Most groups whose instances are counted one by one while a run goes on.
const MAX_GROUPS: usize = 4;

/// Time between two lines about what lablets fetch, where somebody looks on and where lines are kept.
const FETCHING_ON_TERMINAL: Duration = Duration::from_secs(2);
const FETCHING_ELSEWHERE: Duration = Duration::from_secs(10);

/// Lablets of which it is told that they did the same fault.
const MAX_FAULT_LINES: usize = 3;

/// How long a node that went away is looked for.
pub const AWAY_LIMIT: Duration = Duration::from_secs(60);

/// Time between two looks for it.
pub const AWAY_PAUSE: Duration = Duration::from_millis(250);

/// How long a second Ctrl-C counts as the wish to cancel.
const SECOND_INTERRUPT: Duration = Duration::from_secs(2);

/// Follows an execution to its end and returns the exit of its verdict.
///
/// Ctrl-C detaches: the execution goes on. Where the node dies it is looked for again: the execution outlives it.
pub async fn attach(ctx: &Context, client: &Client, execution: &str) -> Result {
    let mut last = None;
    follow(ctx, client, execution, Telling::All, &mut last).await
}

/// How much of what happens is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// All of it, up to the result.
    All,
    /// What it waits for and what becomes of lablets, by its alias: it is one of several.
    Briefly,
}

/// Follows an execution as [`attach`] does; its last event goes to `last`. An end without a result is an error.
pub async fn follow(
    ctx: &Context,
    client: &Client,
    execution: &str,
    telling: Telling,
    last: &mut Option<Event>,
) -> Result {
    let mut replies = client.call(Request::Watch { execution: execution.to_owned() }).await?.into_channel();
    let mut teller = Teller {
        ctx,
        own_home: client.is_temporary(),
        execution: execution.to_owned(),
        alias: execution.to_owned(),
        last_wait: String::new(),
        last_progress: None,
        last_fetching: None,
        told: Vec::new(),
        telling,
    };
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            reply = replies.recv() => {
                heard = Instant::now();
                match reply.transpose() {
                    Ok(Some(Reply::Event(event))) => {
                        if matches!(event, Event::Finished { .. } | Event::Failed { .. }) {
                            *last = Some(event.clone());
                        }
                        if let Some(exit) = teller.tell(event)? {
                            return Ok(exit);
                        }
                    }
                    Ok(Some(Reply::Note { text })) => ctx.say(format!("… {text}")),
                    Ok(Some(other)) => return Err(unexpected(&format!("{other:?}"))),
                    Err(error) if !is_away(&error) || client.is_temporary() => return Err(error),
                    Ok(None) | Err(_) => {
                        tokio::select! {
                            again = attach_again(&teller, client) => replies = again?,
                            _ = tokio::signal::ctrl_c() => return detach(ctx, client, &teller.alias).await,
                        }
                    }
                }
            }
            () = tokio::time::sleep_until((heard + SILENCE).into()) => {
                heard = Instant::now();
                if !ctx.json {
                    ctx.say(format!("    … {} goes on; nothing new for 10 s", teller.alias));
                }
            }
            _ = tokio::signal::ctrl_c() => return detach(ctx, client, &teller.alias).await,
        }
    }
}

/// Whether an error says that a node went away, which may come back.
pub fn is_away(error: &Error) -> bool {
    ["node.gone", "node.not-running", "lab.offline", "lab.elsewhere"].contains(&error.code.as_str())
}

/// Looks for a node that went away until it answers about the execution.
async fn attach_again(teller: &Teller<'_>, client: &Client) -> Result<tokio::sync::mpsc::Receiver<Result<Reply>>> {
    let ctx = teller.ctx;
    let gone_at = Instant::now();
    ctx.say(format!(
        "… the node went away; {} goes on without it. Attaching again for up to {} s",
        teller.alias,
        AWAY_LIMIT.as_secs()
    ));
    loop {
        tokio::time::sleep(AWAY_PAUSE).await;
        let first = match client.call(Request::Watch { execution: teller.execution.clone() }).await {
            Ok(replies) => {
                let mut replies = replies.into_channel();
                match replies.recv().await {
                    Some(Ok(first)) => Ok((first, replies)),
                    Some(Err(error)) => Err(error),
                    None => continue,
                }
            }
            Err(error) => Err(error),
        };
        match first {
            Ok((first, mut rest)) => {
                ctx.say(format!("… attached to {} again after {}", teller.alias, ui::duration(since(gone_at))));
                let (sender, replies) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move {
                    let mut next = Some(Ok(first));
                    while let Some(reply) = next {
                        if sender.send(reply).await.is_err() {
                            return;
                        }
                        next = rest.recv().await;
                    }
                });
                return Ok(replies);
            }
            Err(error) if is_away(&error) && gone_at.elapsed() < AWAY_LIMIT => {}
            Err(error) if is_away(&error) => {
                return Err(Error::broken(
                    "node.gone",
                    format!("the node went away and did not come back in {} s", AWAY_LIMIT.as_secs()),
                    format!("start it with `iptl up`, then attach again: `iptl watch {}`", teller.alias),
                ));
            }
            Err(error) => return Err(error),
        }
    }
}

async fn detach(ctx: &Context, client: &Client, alias: &str) -> Result {
    ctx.say(format!("\ndetached; {alias} goes on"));
    ctx.say(format!("  re-attach: iptl watch {alias}   cancel: iptl cancel {alias}"));
    if !client.is_temporary() && !std::io::stderr().is_terminal() {
        return Ok(Exit::Interrupted);
    }
    if client.is_temporary() {
        ctx.say("  the node lives in this process: leaving ends the execution");
    } else {
        ctx.say("  Ctrl-C again within 2 s cancels it");
    }
    let again = tokio::time::timeout(SECOND_INTERRUPT, tokio::signal::ctrl_c()).await.is_ok();
    if again || client.is_temporary() {
        client.call_all(Request::Cancel { execution: alias.to_owned() }).await?;
        ctx.say(format!("cancelled {alias}"));
    }
    Ok(Exit::Interrupted)
}

struct Teller<'a> {
    ctx: &'a Context,
    /// Whether the node has a home that commands do not look at by themselves.
    own_home: bool,
    /// The execution as the command names it.
    execution: String,
    alias: String,
    last_wait: String,
    last_progress: Option<Instant>,
    last_fetching: Option<Instant>,
    /// What happens once and is told from the start to whoever attaches, again too.
    told: Vec<Event>,
    telling: Telling,
}

impl Teller<'_> {
    /// Tells one event; returns the exit where it was the last.
    fn tell(&mut self, event: Event) -> Result<Option<Exit>> {
        match &event {
            Event::Submitted { .. } | Event::Started { .. } => {
                let kind = std::mem::discriminant(&event);
                if self.told.iter().any(|told| std::mem::discriminant(told) == kind) {
                    return Ok(None);
                }
                self.told.push(event.clone());
            }
            Event::Placed { .. } | Event::Preparing { .. } | Event::Lablet { .. } | Event::Fault { .. } => {
                if self.told.contains(&event) {
                    return Ok(None);
                }
                self.told.push(event.clone());
            }
            Event::Waiting { .. }
            | Event::Fetching { .. }
            | Event::Progress { .. }
            | Event::Barrier { .. }
            | Event::Finished { .. }
            | Event::Failed { .. } => {}
        }
        if self.telling == Telling::Briefly {
            self.brief_line(&event);
        } else if self.ctx.json {
            let finished = matches!(event, Event::Finished { .. });
            let body = to_json(&event);
            self.ctx.answer_json(if finished { "result" } else { "event" }, body);
        } else {
            self.line(&event);
        }
        match event {
            Event::Finished { verdict, result, failure, .. } => {
                if !self.ctx.json && self.telling == Telling::All {
                    let prefix = if std::io::stdout().is_terminal() && !self.ctx.quiet { "result    " } else { "" };
                    self.ctx.answer(format!("{prefix}{result}"));
                    if !self.own_home {
                        self.ctx.next("iptl show last · iptl get last/files -o out/");
                    }
                }
                failure.map_or(Ok(Some(Exit::of_verdict(verdict))), |failure| Err((*failure).into()))
            }
            Event::Failed { failure, .. } => Err(failure.into()),
            Event::Submitted { alias, execution, .. } => {
                self.alias = alias;
                // `last` may be another one by the time that it is asked for again.
                self.execution = execution.to_string();
                Ok(None)
            }
            Event::Placed { .. }
            | Event::Waiting { .. }
            | Event::Preparing { .. }
            | Event::Fetching { .. }
            | Event::Started { .. }
            | Event::Progress { .. }
            | Event::Barrier { .. }
            | Event::Fault { .. }
            | Event::Lablet { .. } => Ok(None),
        }
    }

    fn brief_line(&mut self, event: &Event) {
        let alias = &self.alias;
        match event {
            Event::Waiting { reason } if *reason != self.last_wait && !self.ctx.json => {
                self.ctx.say(format!("    {alias} {reason}"));
                self.last_wait.clone_from(reason);
            }
            Event::Lablet { lablet, what } if !self.ctx.json => {
                self.ctx.say(format!("    {alias}: lablet {lablet} {what}"))
            }
            _ => {}
        }
    }

    /// Time between two lines about what lablets fetch.
    fn fetching_pause(&self) -> Duration {
        if self.ctx.progress { FETCHING_ON_TERMINAL } else { FETCHING_ELSEWHERE }
    }

    fn head(&self, text: impl std::fmt::Display) {
        let mark = self.ctx.paint("1;36", "==>");
        self.ctx.say(format!("{mark} {text}"));
    }

    fn line(&mut self, event: &Event) {
        let ctx = self.ctx;
        match event {
            Event::Submitted { alias, lab, groups, .. } => {
                let groups: Vec<String> = groups.iter().map(|(name, n)| format!("{name} {n}")).collect();
                self.head(format!("scheduling {alias} on lab \"{lab}\"   {}", groups.join("  ")));
            }
            Event::Placed { matching, lablets, refused, instances, after_ms } => {
                let reasons = tally(refused);
                ctx.say(format!("    {matching} of {} match{reasons}", ui::count(u64::from(*lablets), "lablet")));
                ctx.say(format!("    {} placed in {}", ui::count(*instances, "instance"), ui::duration(*after_ms)));
            }
            Event::Waiting { reason } => {
                if *reason != self.last_wait {
                    ctx.say(format!("    {reason}"));
                    self.last_wait.clone_from(reason);
                }
            }
            Event::Preparing { prepared, cells } => {
                self.head(format!("preparing   {prepared}/{} ready", ui::count(u64::from(*cells), "cell")));
            }
            Event::Fetching { lablets, fetching, sum, rate, behind, waiting } => {
                let is_due = self.last_fetching.is_none_or(|told| told.elapsed() >= self.fetching_pause());
                // That all is there stands below what was said to be missing.
                if !is_due && *fetching > 0 {
                    return;
                }
                self.last_fetching = Some(Instant::now());
                let mut text = progress::preparing(sum, *lablets, *rate);
                if let Some((lablet, bytes, size)) = behind {
                    let share = u128::from(*bytes) * 100 / u128::from((*size).max(1));
                    text.push_str(&format!(", {lablet} has {share} %"));
                }
                if let Some((lablet, what)) = waiting {
                    text.push_str(&format!(", {lablet} is {what}"));
                }
                ctx.say(format!("    {text}"));
            }
            Event::Started { after_ms } => {
                self.head(format!("running     started {} after submission", ui::duration(*after_ms)));
            }
            Event::Progress { running, ended } => {
                // A line per second says as much as one per change.
                if self.last_progress.is_some_and(|t| t.elapsed() < Duration::from_secs(1)) {
                    return;
                }
                self.last_progress = Some(Instant::now());
                let mut parts = Vec::new();
                let names: std::collections::BTreeSet<&String> = running.keys().chain(ended.keys()).collect();
                for name in names {
                    let (r, e) = (running.get(name).unwrap_or(&0), ended.get(name).unwrap_or(&0));
                    parts.push(format!("{name} {r} running, {e} ended"));
                }
                // A run of many groups is told of as a whole; `iptl status` and the result know each of them.
                if parts.len() > MAX_GROUPS {
                    let (r, e): (u32, u32) = (running.values().sum(), ended.values().sum());
                    parts = vec![format!("{} groups: {r} running, {e} ended", parts.len())];
                }
                ctx.say(format!("    {}", parts.join("    ")));
            }
            Event::Barrier { state, count, target, missing, after_ms } => {
                let missing =
                    if missing.is_empty() { String::new() } else { format!("   missing: {}", some(missing, 5)) };
                ctx.say(format!("    {}  barrier \"{state}\"  {count}/{target}{missing}", ui::clock(*after_ms)));
            }
            Event::Fault { lablet, done } => {
                // In a large lab each part does the same: the first few say enough.
                let same = |told: &&Event| {
                    matches!(told, Event::Fault { done: other, .. }
                        if (other.kind, other.due_us) == (done.kind, done.due_us))
                };
                if self.told.iter().filter(same).count() <= MAX_FAULT_LINES {
                    ctx.say(format!("    {}", fault(done, lablet)));
                }
            }
            Event::Lablet { lablet, what } => ctx.say(format!("    lablet {lablet} {what}")),
            // What is wrong follows as the command's error.
            Event::Finished { failure: Some(_), counts, after_ms, .. } => {
                let instances = ui::count(counts.ok + counts.failed + counts.lost, "instance");
                let none = format!("none of {instances} was started in {}", ui::duration(*after_ms));
                self.head(format!("{none:<52} verdict  {}", ctx.paint("1;33", "INCONCLUSIVE")));
            }
            Event::Finished { verdict, counts, thresholds, inconclusive, failures, notes, after_ms, .. } => {
                let (style, word) = match verdict {
                    ResultVerdict::Pass => ("1;32", "PASS"),
                    ResultVerdict::Fail => ("1;31", "FAIL"),
                    ResultVerdict::Inconclusive => ("1;33", "INCONCLUSIVE"),
                };
                let took = format!("finished in {}", ui::duration(*after_ms));
                self.head(format!("{took:<52} verdict  {}", ctx.paint(style, word)));
                for (i, (text, measured, holds)) in thresholds.iter().enumerate() {
                    let lead = if i == 0 { "thresholds" } else { "" };
                    let glyph = if *holds { ctx.paint("32", "✓") } else { ctx.paint("31", "✗") };
                    let measured = measured.map_or("nothing measured".to_owned(), number);
                    ctx.say(format!("    {lead:<10}  {glyph} {text}   ({measured})"));
                }
                ctx.say(format!("    instances   {} ok · {} lost · {} failed", counts.ok, counts.lost, counts.failed));
                for (instance, cause) in failures {
                    ctx.say(format!("      {instance}: {cause}"));
                }
                for note in notes {
                    ctx.say(format!("    {note}"));
                }
                for reason in inconclusive {
                    ctx.say(format!("    cannot tell: {reason}"));
                }
            }
            Event::Failed { .. } => {}
        }
    }
}

/// Says what was done on purpose, to whom, when that was asked for and when it was done.
pub fn fault(done: &FaultDone, lablet: &str) -> String {
    format!(
        "{}  {:<9}  {} on {lablet}, asked for {:.3} s, done {:.3} s",
        ui::clock(done.due_us / 1000),
        done.kind.name(),
        ui::count(u64::from(done.instances), "instance"),
        done.due_us as f64 / 1e6,
        done.done_us as f64 / 1e6,
    )
}

/// Writes a measured number without noise behind the point.
pub fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e12 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Counts reasons: `   (1 draining, 2 without a free slot)`.
fn tally(refused: &[(String, String)]) -> String {
    if refused.is_empty() {
        return String::new();
    }
    let mut reasons: BTreeMap<&str, u32> = BTreeMap::new();
    for (_, reason) in refused {
        *reasons.entry(reason).or_default() += 1;
    }
    let parts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    format!("   ({})", parts.join(", "))
}

fn some(items: &[String], most: usize) -> String {
    let shown = items.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    if items.len() > most { format!("{shown} and {} more", items.len() - most) } else { shown }
}

/// Returns an event as the body of a JSON line.
pub fn to_json(event: &Event) -> Value {
    match event {
        Event::Submitted { execution, alias, run, lab, groups } => json!({
            "event": "submitted", "execution": execution.to_string(), "alias": alias, "run": run.to_string(),
            "lab": lab, "groups": groups,
        }),
        Event::Placed { matching, lablets, refused, instances, after_ms } => json!({
            "event": "placed", "matching": matching, "lablets": lablets, "refused": pairs("lablet", "reason", refused),
            "instances": instances, "after_ms": after_ms,
        }),
        Event::Waiting { reason } => json!({"event": "waiting", "reason": reason}),
        Event::Preparing { prepared, cells } => json!({"event": "preparing", "prepared": prepared, "cells": cells}),
        Event::Fetching { lablets, fetching, sum, rate, behind, waiting } => {
            let behind =
                behind.as_ref().map(|(lablet, bytes, size)| json!({"lablet": lablet, "bytes": bytes, "size": size}));
            let waiting = waiting.as_ref().map(|(lablet, what)| json!({"lablet": lablet, "what": what}));
            json!({
                "event": "fetching", "lablets": lablets, "fetching": fetching, "bytes": sum.bytes, "size": sum.size,
                "left": sum.left(), "rate": rate, "behind": behind, "waiting": waiting,
                "from": {"orchestrators": sum.from_orchestrators, "lablets": sum.from_lablets, "others": sum.from_others},
            })
        }
        Event::Started { after_ms } => json!({"event": "started", "after_ms": after_ms}),
        Event::Progress { running, ended } => json!({"event": "progress", "running": running, "ended": ended}),
        Event::Barrier { state, count, target, missing, after_ms } => json!({
            "event": "barrier", "state": state, "count": count, "target": target, "missing": missing,
            "after_ms": after_ms,
        }),
        Event::Fault { lablet, done } => json!({
            "event": "fault", "fault": done.kind.name(), "lablet": lablet, "instances": done.instances,
            "due_us": done.due_us, "done_us": done.done_us,
        }),
        Event::Lablet { lablet, what } => json!({"event": "lablet", "lablet": lablet, "what": what}),
        Event::Finished {
            run,
            execution,
            result,
            verdict,
            counts,
            thresholds,
            inconclusive,
            failures,
            notes,
            after_ms,
            failure,
        } => {
            let thresholds: Vec<Value> = thresholds
                .iter()
                .map(|(text, measured, holds)| json!({"threshold": text, "measured": measured, "holds": holds}))
                .collect();
            json!({
                "run": run.to_string(), "execution": execution.to_string(), "result": result.to_string(),
                "verdict": verdict_word(*verdict), "ok": counts.ok, "failed": counts.failed, "lost": counts.lost,
                "thresholds": thresholds, "inconclusive": inconclusive,
                "failures": pairs("instance", "cause", failures), "notes": notes, "after_ms": after_ms,
                "code": failure.as_ref().map(|failure| &failure.code),
            })
        }
        Event::Failed { execution, failure } => json!({
            "event": "failed", "execution": execution.to_string(), "code": failure.code, "message": failure.message,
        }),
    }
}

/// Returns the verdict as it is written in JSON.
pub fn verdict_word(verdict: ResultVerdict) -> &'static str {
    match verdict {
        ResultVerdict::Pass => "pass",
        ResultVerdict::Fail => "fail",
        ResultVerdict::Inconclusive => "inconclusive",
    }
}

fn pairs(first: &str, second: &str, rows: &[(String, String)]) -> Vec<Value> {
    rows.iter()
        .map(|(a, b)| {
            let mut map = serde_json::Map::new();
            map.insert(first.to_owned(), json!(a));
            map.insert(second.to_owned(), json!(b));
            Value::Object(map)
        })
        .collect()
}

/// Milliseconds since an instant, for lines that carry a time.
pub fn since(start: Instant) -> u64 {
    millis(start.elapsed())
}
