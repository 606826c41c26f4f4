//! `iptl watch`: follows an execution from its first event.

use crate::context::Context;
use crate::exit::Result;
use crate::{narrative, node, series};

/// Follows an execution, or all of a series; Ctrl-C detaches.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl watch last\n  iptl watch x-7k3pq --json")]
pub struct Args {
    /// Execution: alias, CID, or `last`; or the CID of a series
    #[arg(default_value = "last")]
    execution: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::daemon(ctx).await?;
    if let Some((begun, series)) = series::find(&client, &args.execution).await? {
        return series::follow(ctx, &client, &begun, series).await;
    }
    narrative::attach(ctx, &client, &args.execution).await
}
