//! `iptl down`: stops the node of this home.

use std::time::Duration;

use iptl_wire::control::Request;
use serde_json::json;

use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};

/// Stops the node; running work is finished first unless --now.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl down\n  iptl down --now")]
pub struct Args {
    /// Stop running work at once
    #[arg(long)]
    now: bool,
    /// Finish running work first (the default)
    #[arg(long, conflicts_with = "now")]
    finish: bool,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let home = ctx.home();
    let Some(client) = Client::connect(&home).await else {
        ctx.say(format!("no node runs at {}", home.display()));
        if ctx.json {
            ctx.answer_json("stopped", json!({"home": home.display().to_string(), "was_running": false}));
        }
        return Ok(Exit::Ok);
    };
    let what = if args.now { "stopping the node" } else { "finishing running work (Ctrl-C leaves it to it)" };
    let stop = stop(&home, &client, !args.now, None);
    tokio::select! {
        result = ctx.waiting(what, stop) => result?,
        _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
    }
    if ctx.json {
        ctx.answer_json("stopped", json!({"home": home.display().to_string(), "was_running": true}));
    } else {
        ctx.say("stopped");
    }
    Ok(Exit::Ok)
}

/// Asks a node to stop and waits until it is gone, at most for `limit`.
pub async fn stop(home: &std::path::Path, client: &Client, finish: bool, limit: Option<Duration>) -> Result<()> {
    let pid = node_pid(home);
    client.call_all(Request::Shutdown { finish }).await?;
    let gone = async {
        loop {
            let alive = match pid {
                Some(pid) => is_alive(pid),
                None => Client::connect(home).await.is_some(),
            };
            if !alive {
                return;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    match limit {
        None => gone.await,
        Some(limit) => tokio::time::timeout(limit, gone).await.map_err(|_| {
            Error::broken(
                "node.will-not-stop",
                format!("the node at {} did not stop in {} s", home.display(), limit.as_secs()),
                "see the end of its log, then kill it by its process ID",
            )
        })?,
    }
    Ok(())
}

/// Reads the process ID that a running node wrote into its home.
pub fn node_pid(home: &std::path::Path) -> Option<u32> {
    std::fs::read_to_string(home.join("run.pid")).ok()?.trim().parse().ok()
}

/// Returns whether a process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state is the first field after the name, which may itself hold brackets.
        Ok(stat) => stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).is_some_and(|s| s != 'Z'),
        Err(_) => false,
    }
}
