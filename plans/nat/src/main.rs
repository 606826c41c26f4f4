//! Which pairs of NATs let peers reach each other directly: relay and DCUtR of rust-libp2p, behind each kind of NAT.
//!
//! Instances of the group `relay` are in public. Every other group is behind a NAT of one kind and named after it:
//! `ad-apd` maps by the remote address and filters by address and port ([`kind`]). Peers have a reservation at the relay, and
//! in each round everybody is in one pair: one of it dials the other through the relay, and both try for a direct
//! connection. [`rounds`] says who is in a pair with whom, [`node`] is the swarm, [`table`] what became of all pairs. This
//! file is the order of events.

mod kind;
mod node;
mod rounds;
mod table;

use std::time::Duration;

use iptl_sdk::{Env, Error, Json, Message, Result, Subscription, event, metric, pending};

use crate::kind::Kind;
use crate::node::{Node, Outcome};
use crate::table::Pair;

/// The group in public.
const RELAY: &str = "relay";

/// Time between two looks at whether the lab has answered.
const LOOKS: Duration = Duration::from_millis(20);

/// The topic on which each peer says, at its end, what became of the pairs in which it dialled.
const PAIRS: &str = "pairs";

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { if env.group == RELAY { relay(&env).await } else { peer(&env).await } })
}

async fn relay(env: &Env) -> Result<()> {
    let mut node = Node::start(env, true)?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;
    let peers = env.total - relays(env);
    if env.index == 0 {
        let mut reports = iptl_sdk::subscribe(PAIRS)?;
        let mut pairs = Vec::new();
        for _ in 0..peers {
            let report = node.serve(next(&mut reports)).await?.payload;
            let report = std::str::from_utf8(&report).ok().and_then(table::read);
            pairs.extend(report.ok_or_else(|| Error::Refused("a report of pairs that is none".to_owned()))?);
        }
        let table = table::markdown(&pairs);
        print!("{table}");
        iptl_sdk::artifact("pairs.md", table.as_bytes())?;
    }
    node.serve(answer(pending::barrier("done", peers.into())?)).await
}

async fn peer(env: &Env) -> Result<()> {
    let patience: Duration = env.param("patience")?;
    let most: u32 = env.param("rounds")?;
    let first = relays(env);
    let peers: Vec<(u32, Kind)> =
        env.instances().filter_map(|peer| Kind::named(&peer.group).map(|kind| (peer.ordinal, kind))).collect();
    let me = peers
        .iter()
        .position(|(ordinal, _)| *ordinal == env.ordinal)
        .ok_or_else(|| Error::Refused(format!("{} is no kind of NAT", env.group)))?;

    let mut node = Node::start(env, false)?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;
    node.reserve(patience).await?;
    let everybody = u64::from(env.total - first);
    node.serve(answer(pending::signal_and_wait("reserved", everybody)?)).await?;

    let mut dialled = Vec::new();
    for (round, pairs) in rounds::all(peers.len(), env.seed).into_iter().take(most as usize).enumerate() {
        if let Some((dialer, listener)) = pairs.into_iter().find(|(a, b)| *a == me || *b == me) {
            let (other, other_kind) = peers[if dialer == me { listener } else { dialer }];
            if dialer == me {
                let outcome = node.punch(env, other, patience).await?;
                record(peers[me].1, other_kind, &outcome)?;
                dialled.push(Pair {
                    dialer: peers[me].1,
                    listener: other_kind,
                    relayed: outcome.relayed.is_some(),
                    direct: outcome.direct.is_some(),
                });
            } else {
                node.await_punch(env, other, patience).await;
            }
        }
        let state = format!("round-{round}");
        node.serve(answer(pending::signal_and_wait(&state, everybody)?)).await?;
        node.hang_up();
    }
    node.serve(answer(pending::publish(PAIRS, table::write(&dialled).as_bytes())?)).await?;
    node.serve(answer(pending::signal("done")?)).await
}

/// Leaves what became of a pair with the lab.
fn record(dialer: Kind, listener: Kind, outcome: &Outcome) -> Result<()> {
    let share = if outcome.direct.is_some() { 1.0 } else { 0.0 };
    metric("nat.relayed", if outcome.relayed.is_some() { 1.0 } else { 0.0 }, "share")?;
    metric(&format!("nat.direct.{dialer}.to.{listener}"), share, "share")?;
    if let Some(expected) = kind::expected(dialer, listener) {
        metric(if expected { "nat.direct.should" } else { "nat.direct.cannot" }, share, "share")?;
    }
    if let Some(relayed) = outcome.relayed {
        metric("nat.relayed-after", ms(relayed), "ms")?;
        if let Some(direct) = outcome.direct {
            metric("nat.direct-after", ms(direct.saturating_sub(relayed)), "ms")?;
        }
    }
    event(
        "pair",
        [
            ("dialer", Json::from(dialer.to_string())),
            ("listener", Json::from(listener.to_string())),
            ("direct", Json::from(outcome.direct.is_some())),
            ("relayed", Json::from(outcome.relayed.is_some())),
        ],
    )
}

/// Returns how many relays there are.
fn relays(env: &Env) -> u32 {
    env.groups.iter().find(|(name, _)| name == RELAY).map_or(0, |(_, size)| *size)
}

/// Waits for the answer of the lab.
async fn answer(mut call: iptl_sdk::Pending) -> Result<()> {
    loop {
        if let Some(answer) = call.try_take() {
            return answer.map(drop);
        }
        tokio::time::sleep(LOOKS).await;
    }
}

/// Waits for the next message of a topic.
async fn next(topic: &mut Subscription) -> Result<Message> {
    loop {
        if let Some(message) = topic.try_next() {
            return message;
        }
        tokio::time::sleep(LOOKS).await;
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
