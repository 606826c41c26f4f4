//! `iptl unshare`: lets only members of the lab read what a CID leads to.

use iptl_wire::control::{Reply, Request};
use serde_json::json;

use crate::client::unexpected;
use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::node;

/// Lets only members of the lab read what a CID leads to. It is kept, and what others have fetched is theirs.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl unshare bafy…\n  iptl ls pins             # shows who may read what")]
pub struct Args {
    /// CID, or the alias of a run for its result
    what: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::reach(ctx).await?;
    let root = crate::fetch::resolve_name(&client, &args.what).await?;
    match ctx.waiting("looking what stays public", client.call_one(Request::Unshare { root })).await? {
        Reply::Shared { still_public, .. } => {
            if ctx.json {
                ctx.answer_json("unshared", json!({"cid": root.to_string(), "still_public": still_public}));
            } else if still_public {
                ctx.say(
                    "no root of its own any more, but another public root leads to it: everybody may still read it",
                );
                ctx.next("iptl ls pins");
            } else {
                ctx.say("only members of the lab may read it");
            }
            Ok(Exit::Ok)
        }
        other => Err(unexpected(&format!("{other:?}"))),
    }
}
