//! `iptl join`: makes this node a member of a lab.

use std::time::Instant;

use iptl_wire::control::{Reply, Request};
use serde_json::json;

use super::invite::RoleArg;
use crate::client::{Client, unexpected};
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::{narrative, node, ui};

/// Joins a lab: at once with a ticket, after approval with the peer ID or address of its orchestrator.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl join lab1qpz7…\n  iptl join /ip4/192.168.1.7/udp/4001/quic-v1/p2p/12D3KooW…")]
pub struct Args {
    /// Ticket, peer ID, or multiaddr with a peer ID
    target: String,
    /// Name of this machine
    #[arg(long)]
    name: Option<String>,
    /// What to ask for where there is no ticket
    #[arg(long, value_enum, default_value = "lablet")]
    role: RoleArg,
}

/// What joining gave.
pub struct Joined {
    /// The lab's key.
    pub lab: iptl_dag::PeerId,
    /// Its name.
    pub name: String,
    /// Role in it.
    pub role: iptl_wire::lab::Role,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let started = Instant::now();
    let client = node::reach(ctx).await?;
    let name = args.name.unwrap_or_else(host_name);
    let request = Request::Join { target: args.target, name: name.clone(), role: args.role.into() };
    let joined = tokio::select! {
        joined = ask(ctx, &client, request) => joined?,
        _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
    };
    if ctx.json {
        ctx.answer_json(
            "joined",
            json!({
                "lab": joined.lab.to_string(), "lab_name": joined.name, "role": joined.role.to_string(),
                "name": name, "home": ctx.home().display().to_string(), "after_ms": narrative::since(started),
            }),
        );
        return Ok(Exit::Ok);
    }
    ctx.answer(&joined.lab);
    ctx.say(format!(
        "joined lab \"{}\" as {} in {}",
        joined.name,
        joined.role,
        ui::duration(narrative::since(started))
    ));
    if client.is_temporary() {
        ctx.next("iptl up    go online    (stop: iptl down · remove: iptl leave)");
    } else {
        ctx.next("iptl status    (stop: iptl down · remove: iptl leave)");
    }
    Ok(Exit::Ok)
}

/// Asks a node to join and tells what it waits for.
pub async fn ask(ctx: &Context, client: &Client, request: Request) -> Result<Joined> {
    let mut replies = client.call(request).await?;
    let mut joined = None;
    let mut told = String::new();
    while let Some(reply) = ctx.waiting("asking the lab", replies.next()).await? {
        match reply {
            Reply::Note { text } => {
                if text != told {
                    ctx.say(format!("… {text}"));
                    told = text;
                }
            }
            Reply::Joined { lab, name, role } => joined = Some(Joined { lab, name, role }),
            other => return Err(unexpected(&format!("{other:?}"))),
        }
    }
    joined.ok_or_else(|| Error::broken("join.no-answer", "the lab gave no answer", "repeat the command"))
}

/// Returns this machine's name, for lists of lablets.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "lablet".to_owned() } else { name.trim().to_owned() }
}
