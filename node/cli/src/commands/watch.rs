//! `iptl watch`: follows an execution from its first event.

use crate::context::Context;
use crate::exit::Result;
use crate::{narrative, node};

/// Follows an execution; Ctrl-C detaches.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl watch last\n  iptl watch x-7k3pq --json")]
pub struct Args {
    /// Execution: alias, CID, or `last`
    #[arg(default_value = "last")]
    execution: String,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::daemon(ctx).await?;
    narrative::attach(ctx, &client, &args.execution).await
}
