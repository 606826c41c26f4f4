//! `iptl doctor`: checks this computer; each finding comes with its fix.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use iptl_runner_docker::Images;
use serde_json::json;

use crate::client::Client;
use crate::commands::{down, status};
use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::ui;

/// Checks this computer and says how to mend what is wrong; exits 1 where something is.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl doctor\n  iptl doctor --json | jq 'select(.state != \"ok\")'")]
pub struct Args {}

/// Room on disk below which a lablet would soon refuse work, in bytes.
const MIN_DISK: u64 = 2 << 30;

/// Seconds since 1970 before which a clock is surely wrong: the start of 2026.
const MIN_CLOCK: u64 = 1_767_225_600;

/// Memory mappings that one parked Wasm instance needs: its memory and its fiber, each with a guard.
const MAPS_PER_INSTANCE: u64 = 4;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ok,
    /// Works, but not for everything.
    Note,
    Wrong,
}

struct Finding {
    what: &'static str,
    state: State,
    found: String,
    fix: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, state: State::Ok, found: found.into(), fix: String::new() }
    }

    fn note(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { what, state: State::Note, found: found.into(), fix: fix.into() }
    }

    fn wrong(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { what, state: State::Wrong, found: found.into(), fix: fix.into() }
    }
}

pub async fn run(ctx: &Context, _: Args) -> Result {
    let home = ctx.home();
    let mut findings =
        vec![home_writable(&home), disk_space(&home), mappings(), memory(), clock(), cargo(), wasm_target()];
    findings.push(docker(&home).await);
    findings.extend(devices(&home));
    findings.extend(ports(&home).await);
    findings.push(daemon(&home).await);
    let wrong = findings.iter().any(|f| f.state == State::Wrong);
    for finding in &findings {
        let (glyph, word, style) = match finding.state {
            State::Ok => ("✓", "ok", "32"),
            State::Note => ("!", "note", "33"),
            State::Wrong => ("✗", "wrong", "31"),
        };
        if ctx.json {
            ctx.answer_json(
                "check",
                json!({"check": finding.what, "state": word, "found": finding.found, "fix": finding.fix}),
            );
            continue;
        }
        ctx.answer(format!("{} {word:<5} {:<10} {}", ctx.paint(style, glyph), finding.what, finding.found));
        if !finding.fix.is_empty() {
            ctx.answer(format!("                   fix: {}", finding.fix));
        }
    }
    Ok(if wrong { Exit::Broken } else { Exit::Ok })
}

/// Returns the nearest directory that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}

fn home_writable(home: &Path) -> Finding {
    let place = existing(home);
    match tempfile::tempfile_in(&place) {
        Ok(_) => Finding::ok("home", home.display().to_string()),
        Err(e) => Finding::wrong(
            "home",
            format!("{}: {e}", place.display()),
            "name a directory that you may write to with --home or IPTL_HOME",
        ),
    }
}

fn disk_space(home: &Path) -> Finding {
    let place = existing(home);
    match nix::sys::statvfs::statvfs(&place) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            if free < MIN_DISK {
                let text = format!("{} free", ui::bytes(free));
                Finding::wrong(
                    "disk",
                    text,
                    format!("free at least {} on the disk of {}", ui::bytes(MIN_DISK), place.display()),
                )
            } else {
                Finding::ok("disk", format!("{} free", ui::bytes(free)))
            }
        }
        Err(e) => Finding::wrong("disk", format!("{}: {e}", place.display()), "check that the disk is mounted"),
    }
}

fn mappings() -> Finding {
    let read = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|t| t.trim().parse::<u64>().ok());
    match read {
        None => Finding::note("mappings", "vm.max_map_count cannot be read", "capacity is bound by memory alone"),
        Some(count) => {
            let instances = count / MAPS_PER_INSTANCE;
            let text = format!("vm.max_map_count {count}: about {instances} Wasm instances per lablet");
            if count < 262_144 {
                Finding::note("mappings", text, "for 10,000 and more:  sudo sysctl -w vm.max_map_count=262144")
            } else {
                Finding::ok("mappings", text)
            }
        }
    }
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total), Some(free)) => {
            let text = format!("{} of {} free", ui::bytes(free), ui::bytes(total));
            if free < 512 << 20 {
                Finding::note("memory", text, "close something: instances of 64 MiB each will not fit many times")
            } else {
                Finding::ok("memory", text)
            }
        }
        _ => Finding::note("memory", "unknown", "/proc/meminfo cannot be read; capacity is guessed"),
    }
}

fn clock() -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if now < MIN_CLOCK {
        Finding::wrong("clock", "before 2026", "set the clock: tickets and certificates would not be valid yet")
    } else {
        Finding::ok("clock", format!("{now} s since 1970"))
    }
}

fn program(name: &str, args: &[&str]) -> Option<String> {
    let output = Process::new(name).args(args).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn cargo() -> Finding {
    match program("cargo", &["--version"]) {
        Some(version) => Finding::ok("cargo", version),
        None => Finding::note(
            "cargo",
            "not found",
            "only for building plans: install Rust from https://rustup.rs, or run plans by CID",
        ),
    }
}

fn wasm_target() -> Finding {
    let installed = program("rustc", &["--print", "sysroot"])
        .map(|root| Path::new(&root).join("lib/rustlib/wasm32-wasip2/lib").is_dir());
    match installed {
        Some(true) => Finding::ok("wasm", "target wasm32-wasip2 is installed"),
        Some(false) => Finding::note(
            "wasm",
            "target wasm32-wasip2 is missing",
            "for building plans:  rustup target add wasm32-wasip2",
        ),
        None => Finding::note("wasm", "no rustc", "only for building plans: install Rust from https://rustup.rs"),
    }
}

/// Returns what the owner of a home has set for containers.
fn docker_config(home: &Path) -> std::result::Result<iptl_node::home::Docker, iptl_node::HomeError> {
    match home.join("node.toml").exists() {
        true => iptl_node::Home::open(home).and_then(|home| home.config()).map(|config| config.docker),
        false => Ok(iptl_node::home::Docker::default()),
    }
}

/// Finds out whether containers could have a network, where they are wanted.
fn devices(home: &Path) -> Option<Finding> {
    // What is wrong with the settings is said of the ports.
    if !docker_config(home).map_or(true, |docker| docker.enabled) {
        return None;
    }
    Some(match iptl_runner_docker::device_maker() {
        Ok(who) => Finding::ok("network", who),
        Err(unusable) => Finding::note("network", format!("{}: none is run", unusable.reason), unusable.fix),
    })
}

/// Asks for the container engine, as a lablet of this home would.
async fn docker(home: &Path) -> Finding {
    let socket = match docker_config(home) {
        Ok(docker) if !docker.enabled => {
            return Finding::note("docker", "switched off in node.toml", "set `enabled = true` below [docker]");
        }
        Ok(docker) => docker.socket,
        // Said of the ports already.
        Err(_) => None,
    };
    match Images::connect(socket).await {
        Ok(images) => Finding::ok("docker", format!("engine {}: containers can be run", images.engine_version())),
        Err(unusable) => Finding::note("docker", format!("{}: no containers", unusable.reason), unusable.fix),
    }
}

/// Tries the ports that the node is to listen on; a node that runs holds them itself.
async fn ports(home: &Path) -> Option<Finding> {
    if !home.join("node.toml").exists() || Client::connect(home).await.is_some() {
        return None;
    }
    let config = match iptl_node::Home::open(home).and_then(|home| home.config()) {
        Ok(config) => config,
        Err(e) => return Some(Finding::wrong("ports", e.to_string(), "correct node.toml")),
    };
    let fixed: Vec<&String> =
        config.listen.iter().filter(|addr| socket(addr).is_some_and(|(_, at)| at.port() != 0)).collect();
    for addr in &fixed {
        let Some((udp, at)) = socket(addr) else { continue };
        let bound = if udp { UdpSocket::bind(at).map(drop) } else { TcpListener::bind(at).map(drop) };
        if let Err(e) = bound {
            let fix = "end what holds it (see `ss -lptu`), or listen elsewhere: `iptl up --listen MULTIADDR`";
            return Some(Finding::wrong("ports", format!("{addr}: {e}"), fix));
        }
    }
    Some(match fixed.len() {
        0 => Finding::ok("ports", "any that is free"),
        n => Finding::ok("ports", format!("{n} of node.toml are free")),
    })
}

/// Reads an address of an interface with its port; true where it is UDP.
fn socket(addr: &str) -> Option<(bool, SocketAddr)> {
    let mut parts = addr.split('/').skip(1);
    let ip = match parts.next()? {
        "ip4" | "ip6" => parts.next()?.parse::<IpAddr>().ok()?,
        _ => return None,
    };
    let udp = match parts.next()? {
        "udp" => true,
        "tcp" => false,
        _ => return None,
    };
    Some((udp, SocketAddr::new(ip, parts.next()?.parse().ok()?)))
}

async fn daemon(home: &Path) -> Finding {
    match Client::connect(home).await {
        Some(client) => match status::ask(&client).await {
            Ok(status) => {
                let addrs = ui::count(status.addrs.len() as u64, "address").replace("addresss", "addresses");
                let text = format!(
                    "{} {}, {addrs}, {}",
                    status.peer.short(),
                    status::role_word(status.role),
                    ui::count(status.peers.into(), "peer")
                );
                if status.addrs.is_empty() {
                    Finding::wrong("node", text, "it listens nowhere: see `listen` in node.toml")
                } else if status.lab.is_some() && !status.online {
                    Finding::wrong(
                        "node",
                        format!("{text}; the lab is offline"),
                        "the orchestrator cannot be reached: check that it runs, and the network between",
                    )
                } else if let Some((reach, line)) =
                    status.reach.as_ref().and_then(|r| Some((r, status::reach_line(r)?)))
                {
                    let text = format!("{text}; {line}");
                    match reach.through.is_empty() {
                        false => Finding::ok("node", text),
                        true => Finding::note(
                            "node",
                            text,
                            "the lab's owner can let an orchestrator relay (`[relay] serve` in node.toml, on by itself), and \
                             this node asks unless `[relay] ask` is off; or open its ports in your router",
                        ),
                    }
                } else {
                    Finding::ok("node", text)
                }
            }
            Err(e) => Finding::wrong("node", e.message, "restart it: iptl down --now, then iptl up"),
        },
        None => match down::node_pid(home).filter(|pid| down::is_alive(*pid)) {
            Some(pid) => Finding::wrong(
                "node",
                format!("process {pid} does not answer on {}", home.join("api.sock").display()),
                "see its log, then end it by that process ID and start it again with `iptl up`",
            ),
            None => Finding::note("node", "not running", "iptl up    (or a whole lab: iptl dev up)"),
        },
    }
}
