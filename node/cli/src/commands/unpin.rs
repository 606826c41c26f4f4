//! `iptl unpin`: keeps a CID no more.

use iptl_wire::control::Request;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::node;

/// Keeps a CID no more. What only it leads to goes with the next `iptl gc`; what others have fetched is theirs.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl unpin bafy…\n  iptl unpin last          # the result of the last run\n  iptl ls pins"
)]
pub struct Args {
    /// CID, or the alias of a run for its result
    what: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::reach(ctx).await?;
    let root = crate::fetch::resolve_name(&client, &args.what).await?;
    ctx.waiting("unpinning", client.call_all(Request::Unpin { root })).await?;
    if ctx.json {
        ctx.answer_json("unpinned", json!({"cid": root.to_string()}));
    } else {
        ctx.say("no longer kept");
        ctx.next("iptl gc");
    }
    Ok(Exit::Ok)
}
