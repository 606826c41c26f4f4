//! `iptl lab approve`: lets a peer in that asked.

use iptl_dag::PeerId;
use iptl_wire::control::Request;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::node;

/// Lets a peer in that asked to join.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl status                       # shows who asks\n  iptl lab approve 12D3KooW…")]
pub struct Args {
    /// Peer ID, as `iptl status` shows it
    peer: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let peer: PeerId = args.peer.parse().map_err(|e| {
        Error::usage("peer.garbled", format!("`{}` is {e}", args.peer), "copy the peer ID from `iptl status`")
    })?;
    let client = node::daemon(ctx).await?;
    client.call_all(Request::Approve { peer: peer.clone() }).await?;
    if ctx.json {
        ctx.answer_json("approved", json!({"peer": peer.to_string()}));
    } else {
        ctx.say(format!("{} is in", peer.short()));
    }
    Ok(Exit::Ok)
}
