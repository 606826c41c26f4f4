//! A node on rust-libp2p and `artifacts/bitswap` that exchanges content with the others of a run by Bitswap.
//!
//! [`node`] is the node, [`streams`] what it has of the swarm, [`writer`] one way of a connection, [`content`] what is
//! exchanged, and [`round`] who fetches from whom. This file is the order of events, which the nodes in Go and JavaScript
//! share: it is on the plan's page.

mod content;
mod node;
mod round;
mod streams;
mod writer;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use iptl_sdk::{Env, Json, Result, event, metric, pending};
use iptl_stack::{keys, lab, runtime};
use libp2p::PeerId;

use crate::content::content;
use crate::node::Node;

/// What a run chooses.
struct Settings {
    /// Instances of each kind that have what is fetched of it.
    seeds: u32,
    connections: usize,
    blocks: usize,
    size: usize,
    patience: Duration,
}

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    let settings = Settings {
        seeds: env.param("seeds")?,
        connections: env.param("connections")?,
        blocks: env.param("blocks")?,
        size: env.param("block-size")?,
        patience: env.param("patience")?,
    };
    runtime::run(go(env, settings))
}

async fn go(env: Env, settings: Settings) -> Result<()> {
    let mut node = Node::start(&env, settings.patience)?;
    let rounds = round::all(&env);
    let is_seed = env.index < settings.seeds;
    let mut roots = Vec::new();
    for round in &rounds {
        let blocks = content(env.seed, &round.name, settings.blocks, settings.size);
        roots.push(*blocks.last().expect("the root is there").cid());
        if is_seed && round.from.contains(&env.group) {
            node.put(blocks);
        }
    }
    let kind_of: BTreeMap<PeerId, String> =
        env.instances().map(|peer| (keys::peer(env.seed, peer.ordinal), peer.group)).collect();
    meet(&mut node, &env, "listening").await?;

    let began = Instant::now();
    node.connect(&env, &round::neighbours(&env, settings.connections), settings.patience).await?;
    metric("exchange.connect", ms(began), "ms")?;
    meet(&mut node, &env, "connected").await?;

    for (round, root) in rounds.iter().zip(roots) {
        let has = is_seed && round.from.contains(&env.group);
        if round.to.contains(&env.group) && !has {
            let began = Instant::now();
            let bytes = node.fetch(root, settings.patience).await?;
            let took = ms(began);
            metric("exchange.fetch", took, "ms")?;
            metric(&round.metric("fetch", None, &env), took, "ms")?;
            metric("exchange.rate", (settings.blocks * settings.size) as f64 / 1e3 / took, "MB/s")?;
            for from in &round.from {
                let given: u64 = bytes.iter().filter(|(peer, _)| kind_of.get(peer) == Some(from)).map(|(_, n)| n).sum();
                metric(&round.metric("bytes", Some(from), &env), given as f64, "B")?;
            }
        }
        // Who has everything goes on giving it to others.
        meet(&mut node, &env, &format!("fetched-{}", round.name)).await?;
    }
    if node.received > 0 {
        metric("exchange.duplicates", node.duplicates as f64 / node.received as f64, "share")?;
    }
    let counts = [
        ("received", node.received),
        ("duplicates", node.duplicates),
        ("sent", node.sent),
        ("peers", node.connected() as u64),
    ];
    event("exchanged", counts.map(|(name, count)| (name, Json::from(count))))
}

/// Waits until all instances have come here, and gives others what they want meanwhile.
async fn meet(node: &mut Node, env: &Env, state: &str) -> Result<()> {
    let all = pending::signal_and_wait(state, env.total.into())?;
    node.serve(lab::answer(all)).await.map(drop)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
