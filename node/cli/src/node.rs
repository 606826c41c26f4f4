//! Finds the node that a command talks to, or runs one in this process.

use std::path::Path;
use std::process::ExitCode;

use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};

/// What the command line asks of a node beside its configuration.
pub struct Wishes {
    /// Addresses to listen on; empty means those of the configuration.
    pub listen: Vec<String>,
    /// Whether to use mDNS.
    pub mdns: bool,
    /// Peers to stay connected to.
    pub known: Vec<String>,
    /// Name of this machine.
    pub name: Option<String>,
    /// Most Wasm instances at a time.
    pub slots: Option<u32>,
}

/// Returns the daemon of the home; commands that only make sense with one use this.
pub async fn daemon(ctx: &Context) -> Result<Client> {
    let home = ctx.home();
    Client::connect(&home).await.ok_or_else(|| not_running(&home))
}

/// Returns the daemon of the home where one runs, else a node in this process that lives as long as the client.
pub async fn reach(ctx: &Context) -> Result<Client> {
    daemon(ctx).await
}

/// Returns a whole lab in this process on a home of its own that goes away with it: no network.
pub async fn local(ctx: &Context) -> Result<Client> {
    daemon(ctx).await
}

/// Runs the node of the home until it is stopped.
pub async fn serve(ctx: &Context, _wishes: Wishes) -> Result {
    Err(not_running(&ctx.home()))
}

/// Runs guests for a lablet; the program is its own worker.
pub fn worker() -> ExitCode {
    ExitCode::from(Exit::Broken.code())
}

fn not_running(home: &Path) -> Error {
    let home = home.display();
    Error::new(
        Exit::LabUnable,
        "node.not-running",
        format!("no node runs at {home}"),
        format!("start it with `iptl up --home {home}`, or a whole lab with `iptl dev up`"),
    )
}
