//! `iptl cancel`: ends an execution.

use iptl_wire::control::Request;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::node;

/// Ends an execution; what it has is sealed as a partial result.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl cancel x-7k3pq\n  iptl cancel last && iptl watch last")]
pub struct Args {
    /// Execution: alias, CID, or `last`
    execution: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::daemon(ctx).await?;
    ctx.waiting("cancelling", client.call_all(Request::Cancel { execution: args.execution.clone() })).await?;
    if ctx.json {
        ctx.answer_json("cancelled", json!({"execution": args.execution}));
    } else {
        ctx.say(format!("cancelled {}; what it has is being sealed", args.execution));
        ctx.next(format!("iptl watch {}", args.execution));
    }
    Ok(Exit::Ok)
}
