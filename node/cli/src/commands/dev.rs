//! `iptl dev`: a whole lab on this computer, each node a process with identity, store and ports of its own.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use iptl_wire::control::Request;
use iptl_wire::lab::Role;
use serde_json::{Value, json};

use super::{down, invite, join, status};
use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::{narrative, ui};

/// File that marks a home as holding a lab on this computer.
pub const STATE_FILE: &str = "dev.json";

/// How long a node may take to answer for the first time; a cold store on a busy machine takes some seconds.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a node may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Lowest port that a node is given.
const FIRST_PORT: u16 = 10_000;

/// Ports that are looked at for a node before the system is left to choose one, and that it tries to listen on.
const PORT_TRIES: u32 = 16;

/// A lab on this computer.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Start an orchestrator and lablets
    Up(UpArgs),
    /// Stop them
    Down(DownArgs),
}

/// Starts a lab under the home: one orchestrator and N lablets.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl dev up -n 3\n  iptl dev up --home /tmp/lab --json")]
pub struct UpArgs {
    /// Number of lablets
    #[arg(short, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    n: u32,
    /// Run no containers, also where an engine can be used
    #[arg(long)]
    no_docker: bool,
    /// Let developers execute commands in containers of their runs, where the plan allows it too
    #[arg(long)]
    allow_exec: bool,
}

impl UpArgs {
    /// What each node gets for its own command line.
    fn flags(&self) -> Vec<&'static str> {
        [(self.no_docker, "--no-docker"), (self.allow_exec, "--allow-exec")]
            .into_iter()
            .filter_map(|(wanted, flag)| wanted.then_some(flag))
            .collect()
    }
}

/// Stops the lab under the home; what it has stored stays.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl dev down\n  iptl dev down --purge")]
pub struct DownArgs {
    /// Remove what the lab stored as well
    #[arg(long)]
    purge: bool,
}

struct Node {
    role: Role,
    name: String,
    home: PathBuf,
}

pub async fn run(ctx: &Context, command: Command) -> Result {
    match command {
        Command::Up(args) => up(ctx, args).await,
        Command::Down(args) => down(ctx, args).await,
    }
}

async fn up(ctx: &Context, args: UpArgs) -> Result {
    let started = Instant::now();
    let (base, flags) = (&ctx.base, args.flags());
    std::fs::create_dir_all(base).map_err(|e| {
        Error::broken("home.not-writable", format!("{}: {e}", base.display()), "name another directory with --home")
    })?;
    let orchestrator =
        Node { role: Role::Orchestrator, name: "orchestrator".to_owned(), home: base.join("orchestrator") };
    let lablets: Vec<Node> = (1..=args.n)
        .map(|i| Node { role: Role::Lablet, name: format!("lablet-{i}"), home: base.join(format!("lablet-{i}")) })
        .collect();

    ctx.say(format!("starting an orchestrator and {} under {}", ui::count(args.n.into(), "lablet"), base.display()));
    let client = ctx.waiting("starting the orchestrator", start(&orchestrator, &[], &flags)).await?;
    let mut status = status::ask(&client).await?;
    if status.lab.is_none() {
        client.call_all(Request::LabInit { name: "dev".to_owned(), open: false, private: false }).await?;
        status = status::ask(&client).await?;
    }
    std::fs::write(base.join(STATE_FILE), json!({"schema": "iptl.dev-state/1", "lablets": args.n}).to_string())?;
    // The lablets know where the orchestrator is; no multicast is needed on one computer.
    let known: Vec<String> = status.addrs.clone();
    let starting = lablets.iter().map(|node| {
        let (known, client, flags) = (&known, &client, &flags);
        async move {
            let lablet = start(node, known, flags).await?;
            if status::ask(&lablet).await?.lab.is_none() {
                let ticket = invite::mint(client, Role::Lablet, Duration::from_secs(600)).await?;
                let request = Request::Join { target: ticket, name: node.name.clone(), role: Role::Lablet };
                join::ask(ctx, &lablet, request).await?;
            }
            Ok::<(), Error>(())
        }
    });
    ctx.waiting("starting the lablets", futures::future::try_join_all(starting)).await?;
    ctx.waiting("waiting for the lablets to come online", until_ready(&client, args.n)).await?;

    let mut rows = Vec::new();
    for node in std::iter::once(&orchestrator).chain(&lablets) {
        rows.push(describe(node).await?);
    }
    if ctx.json {
        let mut rows = rows.into_iter();
        let first = rows.next();
        ctx.answer_json(
            "dev",
            json!({
                "home": base.display().to_string(), "lab": status.lab.as_ref().map(ToString::to_string),
                "orchestrator": first, "lablets": rows.collect::<Vec<_>>(), "after_ms": narrative::since(started),
            }),
        );
        return Ok(Exit::Ok);
    }
    if ctx.quiet {
        ctx.answer(orchestrator.home.display());
        return Ok(Exit::Ok);
    }
    let mut cells = vec![["ROLE", "PEER", "PID", "ADDRESS"].map(str::to_owned).to_vec()];
    for row in &rows {
        let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let addr = row["addrs"].get(0).and_then(Value::as_str).unwrap_or_default().to_owned();
        cells.push(vec![text("role"), text("peer"), row["pid"].to_string(), addr]);
    }
    ctx.answer(ui::table(&cells).trim_end());
    ctx.say(format!("online after {}", ui::duration(narrative::since(started))));
    let home = if std::env::var_os("IPTL_HOME").is_some() || *base == default_base() {
        String::new()
    } else {
        format!(" --home {}", base.display())
    };
    ctx.next(format!("iptl run{home} ./my-plan · iptl status{home} · iptl dev down{home}"));
    Ok(Exit::Ok)
}

fn default_base() -> PathBuf {
    Context::new(None, true, false, crate::context::ColorChoice::Never, true).base
}

/// Starts a node where none runs, and returns once it answers.
async fn start(node: &Node, known: &[String], flags: &[&str]) -> Result<Client> {
    if let Some(client) = Client::connect(&node.home).await {
        return Ok(client);
    }
    std::fs::create_dir_all(&node.home)?;
    let log_path = node.home.join("node.log");
    let is_new = !node.home.join("node.toml").exists();
    let mut child = spawn(node, known, flags, is_new)?;
    let mut tries = 1;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(client) = Client::connect(&node.home).await {
            // Started again, it is where the others look for it.
            crate::node::keep_addresses(&node.home, &status::ask(&client).await?.addrs)?;
            return Ok(client);
        }
        if let Some(ended) = child.try_wait()? {
            let said = tail(&log_path);
            if is_new && tries < PORT_TRIES && said.contains("net.port-in-use") {
                // Somebody else had the same idea.
                child = spawn(node, known, flags, is_new)?;
                tries += 1;
                continue;
            }
            return Err(Error::broken(
                "dev.node-ended",
                format!("{} ended at once ({ended}):\n{said}", node.name),
                format!("its log is {}", log_path.display()),
            ));
        }
        if Instant::now() > deadline {
            return Err(Error::broken(
                "dev.no-answer",
                format!("{} did not answer in {} s", node.name, START_LIMIT.as_secs()),
                format!("its log is {}; stop it with `iptl dev down`", log_path.display()),
            ));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Starts the process of a node; a new one is told where to listen.
fn spawn(node: &Node, known: &[String], flags: &[&str], is_new: bool) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(node.home.join("node.log"))?;
    let mut process = Process::new(std::env::current_exe()?);
    process.arg("--home").arg(&node.home).args(["up", "--detached", "--no-mdns", "--name", &node.name]);
    process.args(flags);
    if is_new {
        let port = quiet_port();
        process.args(["--listen", &format!("/ip4/127.0.0.1/udp/{port}/quic-v1")]);
        process.args(["--listen", &format!("/ip4/127.0.0.1/tcp/{port}")]);
    }
    for addr in known {
        process.args(["--known", addr]);
    }
    process.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env_remove("IPTL_HOME");
    Ok(process.spawn()?)
}

/// Returns a port that nobody listens on, below those that the system gives to whoever names none: while a node is away,
/// nobody is given its port by chance, and it finds it again. Zero, which has the system choose, where there is none.
fn quiet_port() -> u16 {
    let given = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_given: u16 = given.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768);
    let ports = first_given.saturating_sub(FIRST_PORT);
    for _ in 0..PORT_TRIES {
        // Each state hashes nothing to another number.
        let drawn = RandomState::new().build_hasher().finish() % u64::from(ports.max(1));
        let port = FIRST_PORT.saturating_add(u16::try_from(drawn).unwrap_or(0));
        let here = (Ipv4Addr::LOCALHOST, port);
        if ports > 0 && TcpListener::bind(here).is_ok() && UdpSocket::bind(here).is_ok() {
            return port;
        }
    }
    0
}

async fn until_ready(client: &Client, lablets: u32) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let status = status::ask(client).await?;
        if status.lablets_ready >= lablets {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::new(
                Exit::LabUnable,
                "dev.lablets-offline",
                format!("{} of {lablets} lablets came online", status.lablets_ready),
                "their logs are `lablet-*/node.log` under the home",
            ));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn describe(node: &Node) -> Result<Value> {
    let client = Client::connect(&node.home)
        .await
        .ok_or_else(|| Error::broken("dev.node-ended", format!("{} ended", node.name), "see its log under the home"))?;
    let status = status::ask(&client).await?;
    Ok(json!({
        "role": node.role.to_string(), "name": node.name, "peer": status.peer.to_string(), "addrs": status.addrs,
        "home": node.home.display().to_string(), "pid": down::node_pid(&node.home),
    }))
}

async fn down(ctx: &Context, args: DownArgs) -> Result {
    let base = &ctx.base;
    let mut homes = Vec::new();
    if base.join(STATE_FILE).exists() {
        for entry in std::fs::read_dir(base)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "orchestrator" || name.starts_with("lablet-") {
                homes.push(entry.path());
            }
        }
    }
    homes.sort();
    let mut stopped = Vec::new();
    // Lablets first ("l" before "o"): they leave an orchestrator that still hears them.
    for home in &homes {
        if let Some(client) = Client::connect(home).await {
            ctx.waiting("stopping nodes", down::stop(home, &client, false, Some(STOP_LIMIT))).await?;
            stopped.push(home.display().to_string());
        } else if let Some(pid) = down::node_pid(home).filter(|pid| is_ours(*pid, home)) {
            // It runs but does not answer: its process says that it is this home's node, so it may be ended.
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).map_err(std::io::Error::from)?;
            stopped.push(home.display().to_string());
        }
    }
    if args.purge {
        for home in &homes {
            std::fs::remove_dir_all(home)?;
        }
        if !homes.is_empty() {
            std::fs::remove_file(base.join(STATE_FILE))?;
        }
    }
    if ctx.json {
        ctx.answer_json("stopped", json!({"homes": stopped}));
    } else {
        ctx.say(format!("stopped {}", ui::count(stopped.len() as u64, "node")));
    }
    Ok(Exit::Ok)
}

/// Returns whether a process is the node of this home, by its command line.
fn is_ours(pid: u32, home: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let home = home.as_os_str().as_encoded_bytes();
    line.split(|b| *b == 0).any(|arg| arg == home)
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
