//! `iptl gc`: drops what nothing keeps.

use iptl_wire::control::{Reply, Request};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::{node, ui};

/// Drops every block that no pin and no execution leads to, and gives the space back to the disk.
///
/// Runs and fetches go on meanwhile; what they use stays. So does, for ten minutes, what was just fetched or imported.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl gc\n  iptl ls pins")]
pub struct Args {}

pub async fn run(ctx: &Context, _: Args) -> Result {
    let client = node::reach(ctx).await?;
    let collecting = async {
        let mut replies = client.call(Request::Collect {}).await?;
        let mut report = None;
        while let Some(reply) = replies.next().await? {
            if let Reply::Collected(found) = reply {
                report = Some(found);
            }
        }
        report.ok_or_else(|| crate::client::unexpected("no report"))
    };
    let report = ctx.waiting("collecting", collecting).await?;
    if ctx.json {
        ctx.answer_json(
            "collected",
            json!({
                "kept": report.kept, "removed": report.removed, "freed_bytes": report.freed,
                "missing": report.missing, "on_disk_bytes": report.on_disk,
            }),
        );
        return Ok(Exit::Ok);
    }
    ctx.say(format!("  removed  {}, {} given back", ui::count(report.removed, "block"), ui::bytes(report.freed)));
    ctx.say(format!("  kept     {}, {} on the disk", ui::count(report.kept, "block"), ui::bytes(report.on_disk)));
    if report.missing > 0 {
        ctx.say(format!("  missing  {} of what is kept", ui::count(report.missing, "block")));
    }
    Ok(Exit::Ok)
}
