//! `iptl dag`: the DAG itself.

use crate::context::Context;
use crate::exit::{Exit, Result};

/// Commands about blocks.
#[derive(clap::Subcommand)]
pub enum Command {
    /// One node as DAG-JSON
    Get {},
}

pub async fn run(_ctx: &Context, command: Command) -> Result {
    match command {
        Command::Get {} => Ok(Exit::Ok),
    }
}
