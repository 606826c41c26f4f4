//! `iptl store`: the blocks of this node.

use clap::Subcommand;
use iptl_wire::control::{CheckReport, Reply, Request};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::{node, ui};

/// What can be done with the store.
#[derive(Subcommand)]
pub enum Command {
    /// Read and hash every block again; what is damaged is named and no longer served
    Check(CheckArgs),
}

/// Reads and hashes every block again.
///
/// A damaged block is absent from then on, so that it can be fetched again. Ends with 1 where damage is left.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl store check\n  iptl store check --repair")]
pub struct CheckArgs {
    /// Fetch damaged blocks from connected peers that have them
    #[arg(long)]
    repair: bool,
}

pub async fn run(ctx: &Context, command: Command) -> Result {
    match command {
        Command::Check(args) => check(ctx, args).await,
    }
}

async fn check(ctx: &Context, args: CheckArgs) -> Result {
    let client = node::reach(ctx).await?;
    let checking = async {
        let mut replies = client.call(Request::Check { repair: args.repair }).await?;
        let mut report = None;
        while let Some(reply) = replies.next().await? {
            if let Reply::Checked(found) = reply {
                report = Some(found);
            }
        }
        report.ok_or_else(|| crate::client::unexpected("no report"))
    };
    let report: CheckReport = ctx.waiting("reading every block", checking).await?;
    let left = report.damaged - report.repaired;
    if ctx.json {
        ctx.answer_json(
            "store-checked",
            json!({
                "blocks": report.blocks, "bytes": report.bytes, "damaged": report.damaged,
                "repaired": report.repaired, "reframed": report.reframed, "reindexed": report.reindexed,
                "left": report.left,
            }),
        );
    } else {
        tell(ctx, &report);
    }
    if left > 0 {
        return Err(Error::broken(
            "store.damaged",
            format!("{} damaged and not repaired", ui::count(left, "block")),
            "connect to a node that has them and run `iptl store check --repair`, or import or fetch them again",
        ));
    }
    Ok(Exit::Ok)
}

fn tell(ctx: &Context, report: &CheckReport) {
    ctx.say(format!("  whole    {}, {}", ui::count(report.blocks, "block"), ui::bytes(report.bytes)));
    if report.reindexed {
        ctx.say("  index    was damaged, and was made again from the packs");
    }
    if report.reframed > 0 {
        ctx.say(format!("  frames   {} written again", ui::count(report.reframed, "block")));
    }
    if report.repaired > 0 {
        ctx.say(format!("  repaired {}", ui::count(report.repaired, "block")));
    }
    for cid in &report.left {
        ctx.answer(cid);
    }
}
