//! `iptl share`: lets everybody read what a CID leads to.

use iptl_dag::Cid;
use iptl_wire::control::{Reply, Request};
use serde_json::json;

use crate::client::unexpected;
use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::{node, ui};

/// Lets everybody read what a CID leads to, by every protocol that this node serves blocks with; keeps it from then on.
///
/// A result leads to its run, plan and workloads.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl share bafy…\n  iptl share last          # the result of the last run")]
pub struct Args {
    /// CID, or the alias of a run for its result
    what: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::reach(ctx).await?;
    let root = crate::fetch::resolve_name(&client, &args.what).await?;
    match ctx.waiting("looking what it leads to", client.call_one(Request::Share { root })).await? {
        Reply::Shared { blocks, missing, .. } => {
            answer(ctx, &root, blocks, missing);
            Ok(Exit::Ok)
        }
        other => Err(unexpected(&format!("{other:?}"))),
    }
}

fn answer(ctx: &Context, root: &Cid, blocks: u64, missing: u64) {
    if ctx.json {
        ctx.answer_json("shared", json!({"cid": root.to_string(), "blocks": blocks, "missing": missing}));
        return;
    }
    let what = match blocks {
        0 => "everybody may read it already".to_owned(),
        _ => format!("everybody may read it: {} more than before", ui::count(blocks, "block")),
    };
    ctx.say(what);
    if missing > 0 {
        let count = ui::count(missing, "block");
        ctx.say(format!("{count} under it missing here: what is below is shared when you share it again"));
        ctx.next(format!("iptl get {root}"));
    }
}
