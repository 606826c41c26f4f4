//! Finds the node that a command talks to, or runs one in this process.
//!
//! [`daemon`] wants one that runs; [`reach`] takes it where there is one and else starts the node of the home for as
//! long as the command lasts; [`local`] is a whole lab in this process; [`serve`] is `iptl up`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptl_artifacts_pack::OpenError;
use iptl_node::home::{Home, HomeError};
use iptl_node::{Options, Running, StartError};
use iptl_wire::control::Request;
use iptl_wire::lab::Role;
use serde_json::json;

use crate::client::Client;
use crate::commands::status;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};

/// Hidden verb under which the program is its own worker.
pub const WORKER: &str = "worker";

/// How long a command waits for another one that uses the same home.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// How long a node waits for one that dies on the same home.
const DYING_LIMIT: Duration = Duration::from_secs(2);

/// How long the lablet of a lab in this process may take to come up.
const LOCAL_LIMIT: Duration = Duration::from_secs(60);

/// What the owner sets on the command line; kept in `node.toml`.
#[derive(Default)]
pub struct Wishes {
    /// Addresses to listen on; empty leaves them as they are.
    pub listen: Vec<String>,
    /// Whether to use mDNS.
    pub mdns: Option<bool>,
    /// Further peers to stay connected to.
    pub known: Vec<String>,
    /// Name of this machine.
    pub name: Option<String>,
    /// Most Wasm instances at a time.
    pub slots: Option<u32>,
    /// Run no containers; false leaves it as it is.
    pub no_docker: bool,
    /// Whether developers may execute commands in containers of their runs.
    pub allow_exec: bool,
}

/// Returns the daemon of the home; commands that only make sense with one use this.
pub async fn daemon(ctx: &Context) -> Result<Client> {
    let home = ctx.home();
    Client::connect(&home).await.ok_or_else(|| not_running(&home))
}

/// Returns the daemon of the home where one runs, else a node in this process that lives as long as the client.
///
/// Such a node lends no machine: it has the roles of an orchestrator, which answers questions, and no others.
pub async fn reach(ctx: &Context) -> Result<Client> {
    let path = ctx.home();
    if let Some(client) = Client::connect(&path).await {
        return Ok(client);
    }
    let home = Home::open(&path)?;
    let orchestrates = home.membership()?.is_some_and(|m| m.role() == Role::Orchestrator);
    let options =
        Options { worker: worker_command()?, offline: false, roles: orchestrates, lend: false, socket: false };
    let node = ctx.waiting("starting a node for this command", start(ctx, &home, options)).await?;
    Ok(Client::of_node(node))
}

/// Returns a whole lab in this process, on a home of its own beside the node's: no network, no daemon.
pub async fn local(ctx: &Context) -> Result<Client> {
    let home = Home::open(ctx.local_home())?;
    let options = Options { worker: worker_command()?, offline: true, roles: true, lend: true, socket: false };
    let node = ctx.waiting("starting a lab in this process", start(ctx, &home, options)).await?;
    let client = Client::of_node(node);
    if status::ask(&client).await?.lab.is_none() {
        client.call_all(Request::LabInit { name: "local".to_owned(), open: false, private: false }).await?;
    }
    let ready = async {
        while status::ask(&client).await?.lablets_ready == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok::<(), Error>(())
    };
    match ctx.waiting("waiting for this machine as a lablet", tokio::time::timeout(LOCAL_LIMIT, ready)).await {
        Ok(result) => result.map(|()| client),
        Err(_) => Err(Error::new(
            Exit::LabUnable,
            "local.no-lablet",
            format!("this machine did not become a lablet in {} s", LOCAL_LIMIT.as_secs()),
            "see why with -v, and `iptl doctor`",
        )),
    }
}

/// Starts a node; where another command uses the home for a moment, waits for it.
async fn start(ctx: &Context, home: &Home, options: Options) -> Result<Arc<Running>> {
    let began = Instant::now();
    loop {
        match iptl_node::start(home.clone(), options.clone()).await {
            Ok(running) => {
                let running = Arc::new(running);
                ctx.keep_node(running.clone());
                return Ok(running);
            }
            Err(StartError::Home(HomeError::Locked { .. }) | StartError::Store(OpenError::Locked { .. }))
                if began.elapsed() < LOCK_LIMIT =>
            {
                tracing::debug!(home = %ctx.base.display(), "the home is in use");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs the node of the home until it is stopped.
pub async fn serve(ctx: &Context, wishes: Wishes) -> Result {
    let home = Home::open(ctx.home())?;
    configure(&home, wishes)?;
    let options = Options { worker: worker_command()?, offline: false, roles: true, lend: false, socket: true };
    let running = ctx.waiting("starting the node", start_alone(&home, options)).await?;
    // For people and scripts that want to know which process it is; the lock is what keeps a second one out.
    let pid_file = home.path("run.pid");
    std::fs::write(&pid_file, format!("{}\n", std::process::id()))?;
    let peer = running.peer().to_string();
    let addrs = running.addrs().await;
    if ctx.json {
        let body =
            json!({"peer": peer, "addrs": addrs, "home": home.root().display().to_string(), "pid": std::process::id()});
        ctx.answer_json("node", body);
    } else {
        ctx.answer(&peer);
        for addr in &addrs {
            ctx.say(format!("  listens on {addr}"));
        }
        ctx.say("  stop it with Ctrl-C or `iptl down`");
    }
    let exit = tokio::select! {
        () = running.stopped() => Exit::Ok,
        _ = tokio::signal::ctrl_c() => {
            ctx.say("stopping");
            Exit::Ok
        }
        // A service is ended so when it is started again, too: what can outlive it is left for its next life.
        () = terminated() => {
            running.leave().await;
            let _ = std::fs::remove_file(pid_file);
            return Ok(Exit::Ok);
        }
    };
    running.stop().await;
    // Gone already where the home was purged.
    let _ = std::fs::remove_file(pid_file);
    Ok(exit)
}

/// Starts a node; one that was killed a moment ago may hold the home for as long as the system takes to bury it.
async fn start_alone(home: &Home, options: Options) -> std::result::Result<Running, StartError> {
    let began = Instant::now();
    loop {
        match iptl_node::start(home.clone(), options.clone()).await {
            Err(StartError::Home(HomeError::Locked { .. })) if began.elapsed() < DYING_LIMIT => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}

/// Returns when the system asks the process to end.
async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        // Without a handler the signal ends the process by itself.
        Err(_) => std::future::pending().await,
    }
}

/// Writes what was asked on the command line into the node's configuration.
fn configure(home: &Home, wishes: Wishes) -> Result<()> {
    let before = home.config()?;
    let mut config = before.clone();
    if !wishes.listen.is_empty() {
        config.listen = wishes.listen;
    }
    for addr in wishes.known {
        if !config.known.contains(&addr) {
            config.known.push(addr);
        }
    }
    config.mdns = wishes.mdns.or(config.mdns);
    config.name = wishes.name.unwrap_or(config.name);
    config.limits.instances = wishes.slots.or(config.limits.instances);
    config.docker.enabled &= !wishes.no_docker;
    config.docker.exec |= wishes.allow_exec;
    if config != before {
        home.set_config(&config)?;
    }
    Ok(())
}

/// Has a node listen on the ports that it has now, from its next start on.
pub fn keep_addresses(home: &Path, addrs: &[String]) -> Result<()> {
    let home = Home::open(home)?;
    let mut config = home.config()?;
    config.listen = addrs.iter().map(|addr| addr.split("/p2p/").next().unwrap_or(addr).to_owned()).collect();
    home.set_config(&config)?;
    Ok(())
}

/// Runs guests for a lablet; the program is its own worker.
pub fn worker() -> ExitCode {
    iptl_runner_wasm::worker_main()
}

fn worker_command() -> Result<(std::path::PathBuf, Vec<String>)> {
    Ok((std::env::current_exe()?, vec![WORKER.to_owned()]))
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

impl From<HomeError> for Error {
    fn from(error: HomeError) -> Error {
        let text = error.to_string();
        match error {
            HomeError::Locked { .. } => Error::broken(
                "home.locked",
                text,
                "stop it with `iptl down`, or give this one a home of its own with --home",
            ),
            HomeError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Error::broken("store.full", text, "free some space on that disk, then repeat the command")
            }
            HomeError::Io { .. } => Error::broken(
                "home.io",
                text,
                "check that the directory may be written to, or name another with --home",
            ),
            HomeError::Damaged { path, .. } => Error::broken(
                "home.damaged",
                text,
                format!("mend {}, or move it away: what it held is then made anew", path.display()),
            ),
        }
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Error {
        let text = error.to_string();
        match error {
            StartError::Home(error) => error.into(),
            StartError::Store(OpenError::Locked { .. }) => Error::broken(
                "store.locked",
                text,
                "stop the process that holds it, or give this node a home of its own with --home",
            ),
            StartError::Store(OpenError::Corrupt { path, .. }) => Error::broken(
                "store.corrupt",
                text,
                format!("move {} away and start again: what is fetched anew is verified anew", path.display()),
            ),
            StartError::Store(OpenError::Io { source, .. }) => {
                let mut error = Error::from(source);
                error.message = format!("{text}: {}", error.message);
                error
            }
            StartError::Net(iptl_node::SwarmError::PortInUse { .. }) => Error::broken(
                "net.port-in-use",
                text,
                "listen elsewhere: `iptl up --listen MULTIADDR`, with port 0 for any that is free",
            ),
            StartError::Net(iptl_node::SwarmError::Listen { .. } | iptl_node::SwarmError::BadAddr(_)) => {
                Error::usage("net.bad-address", text, "for example:  iptl up --listen /ip4/0.0.0.0/udp/4001/quic-v1")
            }
            StartError::Net(iptl_node::SwarmError::Setup { .. }) => {
                Error::broken("net.setup", text, "check the network of this machine with `iptl doctor`")
            }
            StartError::Pins(_) | StartError::Public(_) | StartError::Orchestrator(_) | StartError::Socket { .. } => {
                Error::broken("node.start", text, "check disk and permissions of the home with `iptl doctor`")
            }
        }
    }
}
