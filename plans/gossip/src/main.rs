//! Gossipsub of rust-libp2p among the instances of a run: how soon messages reach everybody, and how often.
//!
//! Every instance connects to some others and subscribes to one topic. Some publish, all of those that stay note when a
//! message reaches them, and some may leave and come back meanwhile. [`node`] is one node with its swarm, [`message`]
//! what is published. This file is the order of events.

mod message;
mod node;

use std::time::Duration;

use futures::FutureExt;
use futures_timer::Delay;
use iptl_sdk::{Env, Json, Result, Rng, event, metric, pending};
use iptl_stack::churn::Churn;
use iptl_stack::{lab, runtime};

use crate::node::Node;

/// What a run chooses.
struct Settings {
    publishers: u32,
    /// Messages of each publisher.
    messages: u32,
    /// Time from one message of a publisher to the next.
    interval: Duration,
    /// Bytes of a message.
    payload: usize,
    /// Time for the mesh to form, before the first message.
    warm_up: Duration,
    /// Time for the last message to reach everybody.
    settle: Duration,
    churn: Churn,
    node: node::Settings,
}

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    let settings = Settings {
        publishers: env.param("publishers")?,
        messages: env.param("messages")?,
        interval: env.param("interval")?,
        payload: env.param("payload")?,
        warm_up: env.param("warm-up")?,
        settle: env.param("settle")?,
        churn: Churn::of(&env)?,
        node: node::Settings {
            dials: env.param("dials")?,
            mesh: env.param("mesh")?,
            heartbeat: env.param("heartbeat")?,
            patience: env.param("dial-timeout")?,
        },
    };
    runtime::run(go(env, settings))
}

async fn go(env: Env, settings: Settings) -> Result<()> {
    let total = u64::from(env.total);
    let mut rng = env.rng();
    let mut node = Node::start(&env, settings.node)?;
    iptl_sdk::signal_and_wait("listening", total)?;
    node.connect(&env, &mut rng)?;
    node.serve(Delay::new(settings.warm_up)).await?;
    node.serve(lab::answer(pending::signal_and_wait("warm", total)?)).await??;
    event("warm", [("mesh", Json::from(node.mesh() as u64)), ("connections", Json::from(node.connected() as u64))])?;

    let leavers = settings.churn.leavers(&env, 0);
    let stayers: Vec<u32> = (0..env.total).filter(|ordinal| !leavers.contains(ordinal)).collect();
    let publishers: Vec<u32> = stayers.iter().copied().take(settings.publishers as usize).collect();
    let last_message = settings.interval * settings.messages;
    if leavers.contains(&env.ordinal) {
        come_and_go(&env, &settings, node, &mut rng, last_message + settings.settle).await?;
    } else {
        let own = if publishers.contains(&env.ordinal) { settings.messages } else { 0 };
        for number in 0..own {
            node.publish(message::new(env.ordinal, number, settings.payload))?;
            node.serve(Delay::new(settings.interval)).await?;
        }
        let rest = if own == 0 { last_message + settings.settle } else { settings.settle };
        node.serve(Delay::new(rest)).await?;
        tell(&node, publishers.len() as u32 * settings.messages - own)?;
        // Who has heard everything goes on passing it to others.
        node.serve(lab::answer(pending::signal_and_wait("done", stayers.len() as u64)?)).await??;
    }
    Ok(())
}

/// Leaves what the node has heard with the lab.
fn tell(node: &Node, expected: u32) -> Result<()> {
    let heard = node.heard();
    let of = |count: u64, all: u64| if all == 0 { 1.0 } else { count as f64 / all as f64 };
    metric("gossip.delivered", of(heard.delivered, expected.into()), "share")?;
    if heard.delivered > 0 {
        metric("gossip.duplicates", heard.duplicates as f64 / heard.delivered as f64, "per message")?;
    }
    let counts = [
        ("expected", expected.into()),
        ("delivered", heard.delivered),
        ("duplicates", heard.duplicates),
        ("mesh", node.mesh() as u64),
        ("connections", node.connected() as u64),
    ];
    event("heard", counts.map(|(name, count)| (name, Json::from(count))))
}

/// Leaves and comes back with an empty memory, for as long as messages are under way.
async fn come_and_go(env: &Env, settings: &Settings, mut node: Node, rng: &mut Rng, time: Duration) -> Result<()> {
    let over = Delay::new(time).shared();
    loop {
        if node.serve_for(over.clone(), settings.churn.stay(rng)).await?.is_some() {
            return Ok(());
        }
        drop(node);
        event("left", [("for_ms", Json::from(settings.churn.away.as_millis() as u64))])?;
        Delay::new(settings.churn.away).await;
        node = Node::start(env, settings.node)?;
        node.connect(env, rng)?;
    }
}
