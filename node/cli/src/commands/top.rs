//! `iptl top`: what an execution does now, live on a terminal or once.

use std::io::{IsTerminal, Read};

use iptl_wire::control::{Reply, Request, Top};
use iptl_wire::exec::Window;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::unexpected;
use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::terminal::{self, Raw, Screen};
use crate::{node, ui};

/// Keys that end it: q, Q, Ctrl-C, Ctrl-D.
const LEAVE: [u8; 4] = [b'q', b'Q', 3, 4];

/// Shows groups, barriers and who is missing at them, and the instances that use most. Live on a terminal, until `q`;
/// otherwise once.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl top\n  iptl top x-7k3pq\n  iptl top last --json --follow | jq .groups")]
pub struct Args {
    /// Execution: CID, alias, or `last`
    #[arg(default_value = "last")]
    execution: String,
    /// Go on until the execution is over, also where this is no terminal
    #[arg(short, long)]
    follow: bool,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let live = std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && !ctx.json;
    let client = node::daemon(ctx).await?;
    let request = Request::Top { execution: args.execution, once: !live && !args.follow };
    let mut replies = client.call(request).await?.into_channel();
    if live {
        return watch(ctx, &mut replies).await;
    }
    loop {
        let reply = tokio::select! {
            reply = replies.recv() => reply,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        };
        match reply {
            None => return Ok(Exit::Ok),
            Some(reply) => {
                let top = expect(reply)?;
                if ctx.json {
                    ctx.answer_json("top", to_json(&top));
                } else {
                    ctx.answer(lines(&top).join("\n"));
                }
            }
        }
    }
}

fn expect(reply: Result<Reply>) -> Result<Box<Top>> {
    match reply? {
        Reply::Top(top) => Ok(top),
        other => Err(unexpected(&format!("{other:?}"))),
    }
}

/// Shows it on the whole terminal until a key or the end of the execution ends that.
async fn watch(ctx: &Context, replies: &mut mpsc::Receiver<Result<Reply>>) -> Result {
    let mut last = expect(replies.recv().await.unwrap_or_else(|| Err(unexpected("nothing"))))?;
    let raw = Raw::enter()?;
    let screen = Screen::enter()?;
    let (sender, mut keys) = mpsc::channel(4);
    // Not on the runtime: a read of a terminal cannot be given up, and must not hold the end of the program up.
    let _reads_until_the_end = std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
        let mut key = [0];
        while let Ok(1..) = std::io::stdin().lock().read(&mut key) {
            if sender.blocking_send(key[0]).is_err() {
                return;
            }
        }
    });
    let mut resized = signal(SignalKind::window_change())?;
    let ended = loop {
        screen.show(&page(&last, terminal::window()))?;
        tokio::select! {
            reply = replies.recv() => match reply.map(expect) {
                Some(Ok(top)) => last = top,
                Some(Err(error)) => break Err(error),
                None => break Ok(Exit::Ok),
            },
            key = keys.recv() => if key.is_none_or(|key| LEAVE.contains(&key)) { break Ok(Exit::Ok) },
            _ = resized.recv() => {}
        }
    };
    drop(screen);
    drop(raw);
    // What was seen last stays on the terminal.
    ctx.answer(lines(&last).join("\n"));
    ended
}

/// Cuts what is shown to the size of the terminal.
fn page(top: &Top, window: Window) -> Vec<String> {
    let (columns, rows) = (usize::from(window.columns), usize::from(window.rows));
    let mut page = lines(top);
    page.resize(rows.saturating_sub(1), String::new());
    page.push("q leaves; the execution goes on".to_owned());
    page.into_iter().map(|line| ui::harmless(&line).chars().take(columns).collect()).collect()
}

fn lines(top: &Top) -> Vec<String> {
    let heard = format!("{} of {} heard", top.heard, ui::count(top.lablets.into(), "lablet"));
    let mut lines = vec![format!("{}   {}   {}   {heard}", top.alias, top.phase, ui::clock(top.after_ms))];
    let heads = ["GROUP", "INSTANCES", "RUNNING", "ENDED", "CPU", "CPU TIME", "MEMORY", "SENT", "RECEIVED"];
    let groups = top.groups.iter().map(|(name, group)| {
        let used = group.usage;
        vec![
            name.clone(),
            group.count.to_string(),
            used.running.to_string(),
            group.ended.to_string(),
            processors(used.cpu_milli),
            ui::duration(used.cpu_us / 1000),
            ui::bytes(used.memory_bytes),
            ui::bytes(used.sent_bytes),
            ui::bytes(used.received_bytes),
        ]
    });
    table(&mut lines, &heads, groups);
    let barriers = top.barriers.iter().map(|barrier| {
        let missing = match barrier.missing.as_slice() {
            [] => "not known yet".to_owned(),
            names => names.join(", "),
        };
        vec![barrier.state.clone(), format!("{}/{}", barrier.count, barrier.target), missing]
    });
    table(&mut lines, &["BARRIER", "SIGNALS", "MISSING"], barriers);
    let busiest = top.busiest.iter().map(|row| {
        let used = &row.usage;
        let id = used.instance.to_string();
        vec![id, processors(used.cpu_milli), ui::bytes(used.memory_bytes), row.lablet.clone()]
    });
    table(&mut lines, &["INSTANCE", "CPU", "MEMORY", "LABLET"], busiest);
    lines
}

/// Adds a table, where it has rows.
fn table(lines: &mut Vec<String>, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut all = vec![heads.iter().map(|head| (*head).to_owned()).collect()];
    all.extend(rows);
    if all.len() > 1 {
        lines.push(String::new());
        lines.extend(ui::table(&all).lines().map(str::to_owned));
    }
}

/// Writes thousandths of a processor: `0.25`.
fn processors(milli: u64) -> String {
    format!("{}.{:02}", milli / 1000, milli % 1000 / 10)
}

fn to_json(top: &Top) -> Value {
    let groups: serde_json::Map<String, Value> = top
        .groups
        .iter()
        .map(|(name, group)| {
            let used = group.usage;
            let row = json!({
                "count": group.count, "running": used.running, "ended": group.ended, "cpu_milli": used.cpu_milli,
                "cpu_us": used.cpu_us, "memory_bytes": used.memory_bytes, "sent_bytes": used.sent_bytes,
                "received_bytes": used.received_bytes,
            });
            (name.clone(), row)
        })
        .collect();
    let barriers: Vec<Value> = top
        .barriers
        .iter()
        .map(|b| json!({"state": b.state, "count": b.count, "target": b.target, "missing": b.missing}))
        .collect();
    let busiest: Vec<Value> = top
        .busiest
        .iter()
        .map(|row| {
            json!({
                "instance": row.usage.instance.to_string(), "cpu_milli": row.usage.cpu_milli,
                "memory_bytes": row.usage.memory_bytes, "lablet": row.lablet,
            })
        })
        .collect();
    json!({
        "execution": top.execution.to_string(), "alias": top.alias, "phase": top.phase, "after_ms": top.after_ms,
        "lablets": top.lablets, "heard": top.heard, "groups": groups, "barriers": barriers, "busiest": busiest,
    })
}
