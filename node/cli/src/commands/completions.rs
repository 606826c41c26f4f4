//! `iptl completions`: completions for a shell.

use crate::context::Context;
use crate::exit::{Exit, Result};

/// Prints completions for a shell.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl completions bash > ~/.local/share/bash-completion/completions/iptl\n  iptl completions fish > ~/.config/fish/completions/iptl.fish"
)]
pub struct Args {
    /// Shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub fn run(ctx: &Context, args: Args) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::definition(), "iptl", &mut script);
    ctx.answer(String::from_utf8_lossy(&script).trim_end());
    Ok(Exit::Ok)
}
