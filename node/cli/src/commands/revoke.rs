//! `iptl lab revoke`: takes a member's membership away.

use iptl_dag::PeerId;
use iptl_wire::control::Request;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::node;

/// Takes a member's membership away: it gets no more work, and reads only what everybody may read.
///
/// Members that are connected hear of it at once, others when they next speak with one that has. It comes back by a new
/// ticket, or by asking and being approved.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl ls lablets                  # shows who lends a machine\n  iptl lab revoke 12D3KooW…"
)]
pub struct Args {
    /// Peer ID, as `iptl ls lablets` shows it
    peer: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let peer: PeerId = args.peer.parse().map_err(|e| {
        Error::usage("peer.garbled", format!("`{}` is {e}", args.peer), "copy the peer ID from `iptl ls lablets`")
    })?;
    let client = node::daemon(ctx).await?;
    ctx.waiting("telling the members", client.call_all(Request::Revoke { peer: peer.clone() })).await?;
    if ctx.json {
        ctx.answer_json("revoked", json!({"peer": peer.to_string()}));
    } else {
        ctx.say(format!("{} is no member any more", peer.short()));
    }
    Ok(Exit::Ok)
}
