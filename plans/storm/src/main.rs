//! Barriers and topics at scale: how long they take, and that they keep what they promise.
//!
//! [`order`] checks the promise about topics: every instance sees all messages, once each, in one order.

mod order;

use std::time::Instant;

use iptl_sdk::{Env, Error, Pending, Result, metric, pending, subscribe, wait_any};
use order::{Order, decode, encode};

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    let total = u64::from(env.total);

    // Starting takes each instance another time; from here on they go together.
    iptl_sdk::signal_and_wait("ready", total)?;
    for round in 0..env.param::<u32>("barriers")? {
        let started = Instant::now();
        let seq = iptl_sdk::signal_and_wait(&format!("round-{round}"), total)?;
        record("barrier.time", started)?;
        if !(1..=total).contains(&seq) {
            return Err(Error::Refused(format!("signal {seq} of {total} in round {round}")));
        }
    }
    topics(&env)?;
    iptl_sdk::signal_and_wait("done", total)?;
    Ok(())
}

fn topics(env: &Env) -> Result<()> {
    let publishes: u32 = env.param("publishes")?;
    let payload: usize = env.param("payload")?;
    let mut messages = subscribe("storm")?;
    let mut order = Order::new(env.total, publishes);
    for number in 0..publishes {
        let started = Instant::now();
        let mut answer = Some(pending::publish("storm", &encode(env.ordinal, number, payload))?);
        let mut is_back = false;
        // Others publish meanwhile, and what is not read waits in the lab: so read while waiting for the answer.
        while answer.is_some() || !is_back {
            match &answer {
                Some(answer) => wait_any(&[answer, &messages]),
                None => wait_any(&[&messages]),
            };
            if let Some(position) = answer.as_mut().and_then(Pending::try_take) {
                position?;
                record("publish.time", started)?;
                answer = None;
            }
            while let Some(message) = messages.try_next().transpose()? {
                order.see(message.position, &message.payload).map_err(Error::Refused)?;
                if decode(&message.payload) == Some((env.ordinal, number)) {
                    is_back = true;
                    record("message.time", started)?;
                }
            }
        }
    }
    while !order.is_complete() {
        let message = messages.next()?;
        order.see(message.position, &message.payload).map_err(Error::Refused)?;
    }
    agree(env, order.digest())
}

/// Compares what all instances saw: each publishes the digest of its order, and all must be the same.
fn agree(env: &Env, digest: u64) -> Result<()> {
    let mut digests = subscribe("digests")?;
    iptl_sdk::publish("digests", &digest.to_le_bytes())?;
    for _ in 0..env.total {
        let other = digests.next()?;
        if other.payload != digest.to_le_bytes() {
            return Err(Error::Refused(format!("instance of message {} saw another order", other.position)));
        }
    }
    iptl_sdk::event("agreed", [("digest", format!("{digest:016x}"))])
}

fn record(name: &str, since: Instant) -> Result<()> {
    metric(name, since.elapsed().as_secs_f64() * 1e3, "ms")
}
