//! `iptl leave`: ends the membership in a lab.

use iptl_wire::control::Request;
use serde_json::json;

use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::node;

/// Leaves the lab; identity and store stay unless --purge.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl leave\n  iptl leave --purge    # removes the whole home, and lists what it removes"
)]
pub struct Args {
    /// Remove the home as well: identity, store, logs
    #[arg(long)]
    purge: bool,
}

/// What a home may hold; anything else in it is not ours to remove.
const HOME_ENTRIES: [&str; 19] = [
    "api.sock",
    "run.pid",
    "node.log",
    "node.toml",
    "identity.key",
    "lab.cbor",
    "lab.key",
    "admission.cbor",
    "state.cbor",
    "lablet.cbor",
    "pins.cbor",
    "store",
    "log",
    "runs",
    "cache",
    "scratch",
    "local",
    "docker",
    "lock",
];

pub async fn run(ctx: &Context, args: Args) -> Result {
    let home = ctx.home();
    let client = node::reach(ctx).await?;
    ctx.waiting("leaving", client.call_all(Request::Leave {})).await?;
    let mut removed = Vec::new();
    // Its work belonged to the lab: a daemon ends after it has left.
    if client.is_temporary() {
        drop(client);
        ctx.stop_nodes().await;
    } else {
        let gone = async {
            while Client::connect(&home).await.is_some() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        ctx.waiting("the node ends", gone).await;
    }
    if args.purge {
        for name in HOME_ENTRIES {
            let path = home.join(name);
            let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
            let result = if meta.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            result
                .map_err(|e| Error::broken("leave.purge", format!("{}: {e}", path.display()), "remove it by hand"))?;
            removed.push(path.display().to_string());
        }
        // Only where nothing of somebody else's is in it.
        if std::fs::remove_dir(&home).is_ok() {
            removed.push(home.display().to_string());
        }
    }
    if ctx.json {
        ctx.answer_json("left", json!({"removed": removed}));
    } else {
        ctx.say("left the lab");
        for path in removed {
            ctx.say(format!("  removed {path}"));
        }
    }
    Ok(Exit::Ok)
}
