//! `iptl lab`: makes a lab, lets peers in, takes memberships away and hands over.

use iptl_wire::control::Request;
use serde_json::json;

use super::{approve, handover, revoke, status};
use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::node;

/// Commands about a lab as its owner.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a lab of which this node is the orchestrator
    Init(InitArgs),
    /// Let a peer in that asked to join
    Approve(approve::Args),
    /// Take a member's membership away
    Revoke(revoke::Args),
    /// Have another orchestrator lead the lab
    Handover(handover::Args),
}

/// Makes a lab; the node of this home becomes its orchestrator.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl lab init --name homelab\n  iptl lab init --name class --open\n  iptl lab \
                  init --name secret --private")]
pub struct InitArgs {
    /// Name for people
    #[arg(long, default_value = "lab")]
    name: String,
    /// Let everybody in who asks
    #[arg(long)]
    open: bool,
    /// Keep what members publish, and results, for members alone, until somebody runs `iptl share`
    #[arg(long)]
    private: bool,
}

pub async fn run(ctx: &Context, command: Command) -> Result {
    match command {
        Command::Init(args) => init(ctx, args).await,
        Command::Approve(args) => approve::run(ctx, args).await,
        Command::Revoke(args) => revoke::run(ctx, args).await,
        Command::Handover(args) => handover::run(ctx, args).await,
    }
}

async fn init(ctx: &Context, args: InitArgs) -> Result {
    let client = node::reach(ctx).await?;
    let request = Request::LabInit { name: args.name.clone(), open: args.open, private: args.private };
    ctx.waiting("making the lab", client.call_all(request)).await?;
    let status = status::ask(&client).await?;
    let lab = status.lab.as_ref().map(ToString::to_string).unwrap_or_default();
    if ctx.json {
        ctx.answer_json(
            "lab",
            json!({
                "lab": lab, "name": args.name, "open": args.open, "private": args.private,
                "orchestrator": status.peer.to_string(),
                "addrs": status.addrs, "home": ctx.home().display().to_string(),
            }),
        );
        return Ok(Exit::Ok);
    }
    ctx.answer(&lab);
    ctx.say(format!("lab \"{}\" made; its orchestrator is {}", args.name, status.peer));
    if client.is_temporary() {
        ctx.next("iptl up    then `iptl invite` for everybody who lends a machine");
    } else {
        ctx.next("iptl invite    for everybody who lends a machine");
    }
    Ok(Exit::Ok)
}
