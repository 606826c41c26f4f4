//! `iptl`: the command line of the lab.
//!
//! [`commands`] holds one file per command; [`context`] is what each of them gets; [`client`] speaks to a node,
//! [`node`] finds one or runs one in this process; [`progress`] tells how far something is, [`exit`] lists how the
//! program ends. Start reading at [`commands::Command`].

#![allow(unreachable_pub, reason = "a binary has no outside; `pub` here says what a module means for its siblings")]

mod client;
mod commands;
mod context;
mod exit;
mod fetch;
mod narrative;
mod node;
mod plan;
mod progress;
mod remote;
mod series;
mod terminal;
mod ui;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::context::{ColorChoice, Context};
use crate::exit::Exit;

/// A lab for peer-to-peer software in which everything that matters has a CID.
#[derive(Parser)]
#[command(name = "iptl", version, max_term_width = 110, disable_help_subcommand = true)]
#[command(after_help = "Examples:\n  iptl dev up -n 3\n  iptl run ./my-plan -g peers=30\n  iptl show last")]
struct Cli {
    /// Directory of the node to talk to
    #[arg(long, global = true, env = "IPTL_HOME", value_name = "DIR", help_heading = "Global options")]
    home: Option<PathBuf>,
    /// Only the CID or name on stdout, nothing else but errors
    #[arg(short, long, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Answers as JSON: one object, or one per line
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// When to colour
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        value_name = "WHEN",
        help_heading = "Global options"
    )]
    color: ColorChoice,
    /// No progress bars
    #[arg(long, global = true, help_heading = "Global options")]
    no_progress: bool,
    /// More of what happens inside; twice for all of it
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    verbose: u8,
    #[command(subcommand)]
    command: Option<commands::Command>,
}

/// Returns the definition of the command line, for completions.
fn definition() -> clap::Command {
    Cli::command()
}

/// Has the allocator of the C library keep as many pools of memory as there are processors, and not eight times as many:
/// blocks that many threads take and give back in turn leave each pool as large as it ever was.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "a setting of the C library")]
fn limit_arenas() {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // SAFETY: takes numbers, before there is any other thread. Where it is refused, more memory is used.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, processors.try_into().unwrap_or(libc::c_int::MAX)) };
}

#[cfg(not(target_env = "gnu"))]
fn limit_arenas() {}

fn main() -> ExitCode {
    // Two providers are in the tree: without a choice, the first TLS configuration panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A worker runs guests; it must not carry the threads of a runtime.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == node::WORKER) {
        return node::worker();
    }
    limit_arenas();
    let cli = Cli::parse();
    let ctx = Context::new(cli.home, cli.quiet, cli.json, cli.color, cli.no_progress);
    start_logging(cli.verbose, matches!(cli.command, Some(commands::Command::Up(_))));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            ctx.report(&error.into());
            return ExitCode::from(Exit::Broken.code());
        }
    };
    let result = runtime.block_on(async {
        let result = commands::run(&ctx, cli.command).await;
        ctx.stop_nodes().await;
        result
    });
    // A blocked reader of a terminal or a slow disk must not hold the program up.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match result {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            ctx.report(&error);
            ExitCode::from(error.exit.code())
        }
    }
}

/// Logs go to stderr: lines for people on a terminal, JSON otherwise where a node runs; `IPTL_LOG` filters them.
fn start_logging(verbose: u8, is_node: bool) {
    let level = match (verbose, is_node) {
        (0, false) => "error",
        (0, true) => "warn,iptl=info,iptl_node=info,iptl_net=info",
        (1, _) => "warn,iptl=debug,iptl_node=debug,iptl_net=debug,iptl_scheduler=debug,iptl_runner_wasm=debug",
        (_, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("IPTL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    if is_node && !terminal { builder.json().init() } else { builder.init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        definition().debug_assert();
    }
}
