//! `iptl lab handover`: another orchestrator leads from now on.

use std::time::{Duration, Instant};

use iptl_dag::PeerId;
use iptl_wire::control::{Reply, Request};
use serde_json::json;

use super::status;
use crate::client::unexpected;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::node;

/// How long the other one has to take the post.
const LIMIT: Duration = Duration::from_secs(15);

/// Pause between two looks at who leads.
const PAUSE: Duration = Duration::from_millis(100);

/// Has another orchestrator lead the lab; runs go on. Run it on the node that leads.
///
/// The other one is the first in rank that follows, or the one that is named; it fetches what it lacks first. This node follows from
/// then on, and can be stopped.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl lab handover\n  iptl lab handover 12D3KooW…")]
pub struct Args {
    /// Peer ID of the one that is to lead
    peer: Option<PeerId>,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::daemon(ctx).await?;
    let request = Request::HandOver { to: args.peer };
    let (to, term) = match ctx.waiting("handing over", client.call_one(request)).await? {
        Reply::HandedOver { to, term } => (to, term),
        other => return Err(unexpected(&format!("{other:?}"))),
    };
    let asked = Instant::now();
    let taken = async {
        loop {
            let leads = status::ask(&client).await?.leads;
            if leads.is_some_and(|leads| leads.leader == to && leads.term >= term) {
                return Ok(());
            }
            if asked.elapsed() > LIMIT {
                return Err(Error::new(
                    Exit::LabUnable,
                    "handover.not-taken",
                    format!("{} was not heard to lead within {} s", to.short(), LIMIT.as_secs()),
                    "see who leads: `iptl status`; where nobody does, this orchestrator takes the lab back by itself",
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    ctx.waiting("waiting until it leads", taken).await?;
    if ctx.json {
        ctx.answer_json("handover", json!({"leader": to.to_string(), "term": term}));
        return Ok(Exit::Ok);
    }
    ctx.answer(&to);
    ctx.say(format!("{} leads the lab in term {term}; this node follows", to.short()));
    Ok(Exit::Ok)
}
