//! Components and containers in one run: they meet at the same barriers and hear each other on the same topic.
//!
//! `mixed about` tells what it sees of where it runs, for whoever executes a command in a running container.

use std::collections::BTreeSet;
use std::time::Instant;

use iptl_sdk::{Error, Result, event, metric, publish, signal_and_wait, subscribe};

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("about") {
        about();
        return Ok(());
    }
    let env = iptl_sdk::env()?;
    let total = u64::from(env.total);
    event("began", [("group", env.group.clone())])?;
    signal_and_wait("ready", total)?;
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
