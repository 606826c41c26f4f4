//! Components and containers in one run: they meet at the same barriers, hear each other on the same topic, and talk over
//! the lab network, each with one of the other kind.
//!
//! `mixed about` tells what it sees of where it runs, for whoever executes a command in a running container.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Instant;

use iptl_sdk::{Env, Error, Result, event, metric, publish, signal_and_wait, subscribe};

/// Port that every instance listens on.
const PORT: u16 = 7000;

/// Bytes that each sends to its partner and gets back.
const GREETING_SIZE: usize = 50_000;

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("about") {
        about();
        return Ok(());
    }
    let env = iptl_sdk::env()?;
    let total = u64::from(env.total);
    let listener = TcpListener::bind((env.addr, PORT))?;
    event("began", [("group", env.group.clone())])?;
    signal_and_wait("ready", total)?;
    talk(&env, &listener)?;
    for round in 0..env.param::<u32>("rounds")? {
        let started = Instant::now();
        let seq = signal_and_wait(&format!("round-{round}"), total)?;
        metric("barrier.time", started.elapsed().as_secs_f64() * 1e3, "ms")?;
        if !(1..=total).contains(&seq) {
            return Err(Error::Refused(format!("signal {seq} of {total} in round {round}")));
        }
    }

    let mut greetings = subscribe("greetings")?;
    publish("greetings", format!("{}-{}", env.group, env.index).as_bytes())?;
    println!("{}-{} pauses", env.group, env.index);
    // Time for somebody to do something to the lab in the middle of a run.
    std::thread::sleep(env.param("pause")?);
    let mut heard = BTreeSet::new();
    for _ in 0..total {
        let greeting = greetings.next()?;
        heard.insert(String::from_utf8_lossy(&greeting.payload).into_owned());
    }
    if heard.len() as u64 != total {
        return Err(Error::Refused(format!("{} of {total} were heard", heard.len())));
    }
    println!("{}-{} heard {} others", env.group, env.index, heard.len() - 1);
    event("heard", [("instances", heard.len().to_string())])?;
    signal_and_wait("done", total)?;
    Ok(())
}

/// Sends something to the partner, answers those whose partner this instance is, and hears the own again.
fn talk(env: &Env, listener: &TcpListener) -> Result<()> {
    let partner = self::partner(env, &env.group, env.index);
    let greeting: Vec<u8> = (0..GREETING_SIZE).map(|at| (at as u32 * 7 + env.ordinal) as u8).collect();
    let began = Instant::now();
    let mut stream = TcpStream::connect((partner.as_str(), PORT))?;
    metric("connect.time", began.elapsed().as_secs_f64() * 1e3, "ms")?;
    stream.write_all(&greeting)?;
    stream.shutdown(Shutdown::Write)?;
    let own = format!("{}-{}", env.group, env.index);
    for _ in env.instances().filter(|peer| self::partner(env, &peer.group, peer.index) == own) {
        let (mut stream, _) = listener.accept()?;
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard)?;
        stream.write_all(&heard)?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer != greeting {
        return Err(Error::Refused(format!("{partner} answered {} bytes of {GREETING_SIZE}", answer.len())));
    }
    println!("{own} was answered by {partner}");
    Ok(())
}

/// Returns the instance of the other kind that one talks to; the next of its own where there is no other kind.
fn partner(env: &Env, group: &str, index: u32) -> String {
    let (own, others): (Vec<_>, Vec<_>) = env.instances().partition(|peer| peer.group == group);
    match others.len() {
        0 => own[(index as usize + 1) % own.len()].host(),
        count => others[index as usize % count].host(),
    }
}

fn about() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()).unwrap_or("?");
    println!("user        {user}");
    println!("processes   {}", names("/proc").filter(|name| name.parse::<u32>().is_ok()).count());
    println!("interfaces  {}", names("/sys/class/net").collect::<Vec<_>>().join(" "));
    println!("files       {}", names("/").collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" "));
}

/// Lists a directory; what cannot be read is empty.
fn names(dir: &str) -> impl Iterator<Item = String> + use<> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned())
}
