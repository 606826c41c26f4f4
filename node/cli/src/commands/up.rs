//! `iptl up`: runs the node of this home in the foreground.

use crate::context::Context;
use crate::exit::Result;
use crate::node;

/// Runs the node of this home until it is stopped; started again after a crash, it goes on. What the flags set is kept
/// in `node.toml`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl up\n  iptl up --home /srv/iptl --listen /ip4/0.0.0.0/udp/4001/quic-v1")]
pub struct Args {
    /// Address to listen on, from now on; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,
    /// Neither look for peers on the local network nor show up to them, from now on
    #[arg(long)]
    no_mdns: bool,
    /// Further peer to stay connected to, with /p2p/…; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    known: Vec<String>,
    /// Name of this machine, for lists of lablets
    #[arg(long)]
    name: Option<String>,
    /// Most instances of each runner at a time; without it, what the machine can hold
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// Run no containers, also where an engine can be used, from now on
    #[arg(long)]
    no_docker: bool,
    /// Let developers execute commands in containers of their runs, where the plan allows it too, from now on
    #[arg(long)]
    allow_exec: bool,
    /// Leave the terminal: a session of its own, as `iptl dev up` starts nodes
    #[arg(long, hide = true)]
    detached: bool,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    if args.detached {
        // Fails only where the process leads a group already, and then it has left the terminal.
        let _ = nix::unistd::setsid();
    }
    let wishes = node::Wishes {
        listen: args.listen,
        mdns: args.no_mdns.then_some(false),
        known: args.known,
        name: args.name,
        slots: args.slots,
        no_docker: args.no_docker,
        allow_exec: args.allow_exec,
    };
    node::serve(ctx, wishes).await
}
