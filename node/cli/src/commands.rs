//! The commands, one file each. [`Command`] is the table; [`run()`] is the only dispatch.

pub mod approve;
pub mod audit;
pub mod cancel;
pub mod check;
pub mod completions;
pub mod dag;
pub mod dev;
pub mod doctor;
pub mod down;
pub mod exec;
pub mod explain;
pub mod gc;
pub mod get;
pub mod handover;
pub mod import;
pub mod invite;
pub mod join;
pub mod lab;
pub mod leave;
pub mod logs;
pub mod ls;
pub mod net;
pub mod new;
pub mod overview;
pub mod pin;
pub mod publish;
pub mod revoke;
pub mod run;
pub mod share;
pub mod show;
pub mod status;
pub mod store;
pub mod top;
pub mod unpin;
pub mod unshare;
pub mod up;
pub mod watch;

use clap::Subcommand;

use crate::context::Context;
use crate::exit::Result;

/// What can be asked of the program.
#[derive(Subcommand)]
pub enum Command {
    /// Make a folder with a plan that builds and runs at once
    New(new::Args),
    /// Validate a plan offline
    Check(check::Args),
    /// Import a plan, a workload or data, announce it, and print its CID
    Publish(publish::Args),
    /// Run a plan; ends with the result's CID and the exit code of the verdict
    Run(run::Args),
    /// Follow an execution
    Watch(watch::Args),
    /// End an execution; a partial result is sealed
    Cancel(cancel::Args),
    /// Check and print the log of an execution
    Audit(audit::Args),
    /// Output of instances, live or out of the result
    Logs(logs::Args),
    /// What an execution does now: groups, barriers, CPU, memory
    Top(top::Args),
    /// Execute a command in a running container, where plan and owner allow it
    Exec(exec::Args),
    /// What is going on
    Status(status::Args),
    /// List runs, plans, results, lablets or pins
    Ls(ls::Args),
    /// Fetch, verify and write out
    Get(get::Args),
    /// Take the blocks of a CAR
    Import(import::Args),
    /// Let everybody read what a CID leads to
    Share(share::Args),
    /// Let only members of the lab read what a CID leads to
    Unshare(unshare::Args),
    /// Keep a CID with all that it leads to; what is not here is fetched first
    Pin(pin::Args),
    /// Keep a CID no more: it goes with the next `iptl gc`
    Unpin(unpin::Args),
    /// Drop what no pin and no execution leads to
    Gc(gc::Args),
    /// Look after the stored blocks
    #[command(subcommand)]
    Store(store::Command),
    /// Summary of anything that has a CID; a result is verified
    Show(show::Args),
    /// Look at the DAG itself
    #[command(subcommand)]
    Dag(dag::Command),
    /// Look at networks before they are trusted
    #[command(subcommand)]
    Net(net::Command),
    /// Make and manage a lab
    #[command(subcommand)]
    Lab(lab::Command),
    /// Make a ticket with which somebody joins
    Invite(invite::Args),
    /// Join a lab by ticket or by the peer ID of its orchestrator
    Join(join::Args),
    /// Run the node of this home in the foreground
    Up(up::Args),
    /// Stop the node of this home
    Down(down::Args),
    /// Leave the lab
    Leave(leave::Args),
    /// A whole lab on this computer
    #[command(subcommand)]
    Dev(dev::Command),
    /// Check this computer and say how to mend what is wrong
    Doctor(doctor::Args),
    /// Completions for a shell
    Completions(completions::Args),
    /// Explain an error code
    Explain(explain::Args),
}

/// Carries a command out.
pub async fn run(ctx: &Context, command: Option<Command>) -> Result {
    match command {
        None => overview::run(ctx).await,
        Some(Command::New(args)) => new::run(ctx, args),
        Some(Command::Check(args)) => check::run(ctx, args),
        Some(Command::Publish(args)) => publish::run(ctx, args).await,
        Some(Command::Run(args)) => run::run(ctx, args).await,
        Some(Command::Watch(args)) => watch::run(ctx, args).await,
        Some(Command::Cancel(args)) => cancel::run(ctx, args).await,
        Some(Command::Audit(args)) => audit::run(ctx, args).await,
        Some(Command::Logs(args)) => logs::run(ctx, args).await,
        Some(Command::Top(args)) => top::run(ctx, args).await,
        Some(Command::Exec(args)) => exec::run(ctx, args).await,
        Some(Command::Status(args)) => status::run(ctx, args).await,
        Some(Command::Ls(args)) => ls::run(ctx, args).await,
        Some(Command::Get(args)) => get::run(ctx, args).await,
        Some(Command::Import(args)) => import::run(ctx, args).await,
        Some(Command::Share(args)) => share::run(ctx, args).await,
        Some(Command::Unshare(args)) => unshare::run(ctx, args).await,
        Some(Command::Pin(args)) => pin::run(ctx, args).await,
        Some(Command::Unpin(args)) => unpin::run(ctx, args).await,
        Some(Command::Gc(args)) => gc::run(ctx, args).await,
        Some(Command::Store(command)) => store::run(ctx, command).await,
        Some(Command::Show(args)) => show::run(ctx, args).await,
        Some(Command::Dag(command)) => dag::run(ctx, command).await,
        Some(Command::Net(command)) => net::run(ctx, command).await,
        Some(Command::Lab(command)) => lab::run(ctx, command).await,
        Some(Command::Invite(args)) => invite::run(ctx, args).await,
        Some(Command::Join(args)) => join::run(ctx, args).await,
        Some(Command::Up(args)) => up::run(ctx, args).await,
        Some(Command::Down(args)) => down::run(ctx, args).await,
        Some(Command::Leave(args)) => leave::run(ctx, args).await,
        Some(Command::Dev(command)) => dev::run(ctx, command).await,
        Some(Command::Doctor(args)) => doctor::run(ctx, args).await,
        Some(Command::Completions(args)) => completions::run(ctx, args),
        Some(Command::Explain(args)) => explain::run(ctx, args),
    }
}
