//! `iptl cancel`: ends an execution.

use iptl_wire::control::{Reply, Request};
use serde_json::json;

use crate::client::unexpected;
use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::{node, series};

/// Ends an execution, or all of a series; what it has is sealed as a partial result.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl cancel x-7k3pq\n  iptl cancel last && iptl watch last")]
pub struct Args {
    /// Execution: alias, CID, or `last`; or the CID of a series
    execution: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::daemon(ctx).await?;
    if let Some((cid, series)) = series::find(&client, &args.execution).await? {
        return series::cancel(ctx, &client, &cid, &series).await;
    }
    let reply = ctx.waiting("cancelling", client.call_one(Request::Cancel { execution: args.execution })).await?;
    let Reply::Cancelled { execution, alias, over } = reply else { return Err(unexpected(&format!("{reply:?}"))) };
    if ctx.json {
        ctx.answer_json("cancelled", json!({"execution": execution.to_string(), "alias": alias, "over": over}));
    } else if over {
        ctx.say(format!("{alias} was over: there is nothing to cancel"));
        ctx.next(format!("iptl show {alias}"));
    } else {
        ctx.say(format!("cancelled {alias}; what it has is being sealed"));
        ctx.next(format!("iptl watch {alias}"));
    }
    Ok(Exit::Ok)
}
