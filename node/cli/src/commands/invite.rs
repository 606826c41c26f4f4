//! `iptl invite`: makes a ticket.

use std::time::Duration;

use iptl_wire::control::{Reply, Request};
use iptl_wire::lab::Role;
use serde_json::json;

use crate::client::{Client, unexpected};
use crate::context::{Context, millis};
use crate::exit::{Exit, Result};
use crate::{node, ui};

/// Makes a ticket that lets one machine join.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl invite\n  iptl invite --role developer --ttl 7d\n  iptl invite --role orchestrator"
)]
pub struct Args {
    /// What the one who joins may do
    #[arg(long, value_enum, default_value = "lablet")]
    role: RoleArg,
    /// How long the ticket is valid
    #[arg(long, default_value = "24h", value_parser = ui::parse_duration)]
    ttl: Duration,
}

/// Roles that can be asked for.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum RoleArg {
    /// Lends its machine
    Lablet,
    /// Submits runs
    Developer,
    /// Follows the one that leads the lab, and leads on where that one is gone
    Orchestrator,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Role {
        match role {
            RoleArg::Lablet => Role::Lablet,
            RoleArg::Developer => Role::Developer,
            RoleArg::Orchestrator => Role::Orchestrator,
        }
    }
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::reach(ctx).await?;
    let ticket = mint(&client, args.role.into(), args.ttl).await?;
    if ctx.json {
        ctx.answer_json(
            "ticket",
            json!({"ticket": ticket, "role": Role::from(args.role).to_string(), "ttl_ms": millis(args.ttl)}),
        );
        return Ok(Exit::Ok);
    }
    ctx.answer(&ticket);
    if client.is_temporary() {
        ctx.say("the orchestrator does not run: start it with `iptl up` before the ticket is used");
    }
    ctx.next("on the other machine:  iptl join TICKET && iptl up    (the ticket works once)");
    Ok(Exit::Ok)
}

/// Asks an orchestrator for a ticket.
pub async fn mint(client: &Client, role: Role, ttl: Duration) -> Result<String> {
    match client.call_one(Request::Invite { role, ttl_ms: millis(ttl) }).await? {
        Reply::Ticket { ticket } => Ok(ticket),
        other => Err(unexpected(&format!("{other:?}"))),
    }
}
