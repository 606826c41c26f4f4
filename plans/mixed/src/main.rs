//! Components and containers in one run: they meet at the same barriers and hear each other on the same topic.

use std::collections::BTreeSet;
use std::time::Instant;

use iptl_sdk::{Error, Result, event, metric, publish, signal_and_wait, subscribe};

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    let total = u64::from(env.total);
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
