//! Kademlia of rust-libp2p among the instances of a run: join, find peers, provide, find providers.
//!
//! Instances of the group `boot` are what everybody knows at first; they tell each peer whether it can be dialled, as
//! AutoNAT does, and answer until all is over. Those of the group `peer` do the experiment. [`node`] is one node with
//! its swarm, [`lookup`] what one query found and took, [`pace`] when whose turn is, [`churn`] the coming and going of some.
//! This file is the order of events.

mod churn;
mod lookup;
mod node;
mod pace;

use std::net::SocketAddr;
use std::time::Instant;

use futures_timer::Delay;
use iptl_sdk::{Env, Error, Json, Result, Rng, event, metric, pending};
use iptl_stack::churn::Churn;
use iptl_stack::{PORT, keys, lab, resolve, runtime, tcp};
use libp2p::PeerId;

use crate::lookup::Lookup;
use crate::node::Node;
use crate::pace::Pace;

/// What a run chooses.
struct Settings {
    /// Keys that each peer provides.
    provides: u32,
    /// Look-ups of each kind by each peer that stays.
    lookups: u32,
    /// Peers that join in a second.
    joins: f64,
    /// Keys that all together provide in a second, and look-ups that they make.
    queries: f64,
    node: node::Settings,
    churn: Churn,
}

/// The group of peers that everybody knows.
const BOOT: &str = "boot";

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    let settings = Settings {
        provides: env.param("provides")?,
        lookups: env.param("lookups")?,
        joins: env.param("joins")?,
        queries: env.param("queries")?,
        node: node::Settings {
            dial: env.param("dial-timeout")?,
            query: env.param("query-timeout")?,
            idle: env.param("idle-timeout")?,
            clients: env.param("clients")?,
        },
        churn: Churn::of(&env)?,
    };
    if env.group == BOOT { runtime::run(boot(env, settings)) } else { runtime::run(peer(env, settings)) }
}

/// Tells peers whether they can be dialled, and answers until all are done.
async fn boot(env: Env, settings: Settings) -> Result<()> {
    let mut node = Node::start(&env, settings.node, true)?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;
    for state in ["joined", "provided", "done"] {
        let reached = lab::answer(pending::signal_and_wait(state, env.total.into())?);
        node.serve(reached).await?;
    }
    Ok(())
}

async fn peer(env: Env, settings: Settings) -> Result<()> {
    let mut rng = env.rng();
    let mut node = Node::start(&env, settings.node, false)?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;

    let peers = env.total - boots(&env);
    node.serve(Delay::new(Pace::new(&mut rng, peers, settings.joins).wait())).await;
    let began = Instant::now();
    let dialable = node.meet_boots().await?;
    node.join().await?;
    metric("dht.join", ms(began), "ms")?;
    event("joined", [("dialable", Json::from(dialable)), ("peers", Json::from(node.known() as u64))])?;
    let mut reports = iptl_sdk::subscribe("dialable")?;
    iptl_sdk::publish("dialable", format!("{} {dialable}", env.ordinal).as_bytes())?;
    node.serve(lab::answer(pending::signal_and_wait("joined", env.total.into())?)).await?;

    let mut pace = Pace::new(&mut rng, peers, settings.queries);
    for number in 0..settings.provides {
        node.serve(Delay::new(pace.wait())).await;
        let query = node.provide(key(&env, env.ordinal, number))?;
        let found = node.finish(query, None).await;
        metric("dht.provide", found.took_ms, "ms")?;
        metric("dht.provide.requests", found.requests.into(), "requests")?;
    }
    node.serve(lab::answer(pending::signal_and_wait("provided", env.total.into())?)).await?;

    let mut dialables = Vec::new();
    for _ in 0..peers {
        let report = node.serve(lab::next(&mut reports)).await?.payload;
        dialables.extend(dialable_one(&report).filter(|ordinal| *ordinal != env.ordinal));
    }
    let leavers = settings.churn.leavers(&env, boots(&env));
    let stayers = u64::from(peers) - leavers.len() as u64;
    if leavers.contains(&env.ordinal) {
        let looked = pending::barrier("looked-up", stayers)?;
        node = churn::come_and_go(&env, node, &settings.churn, settings.node, &mut rng, looked).await?;
    } else {
        dialables.retain(|ordinal| !leavers.contains(ordinal));
        look_up(&env, &settings, &mut node, &mut rng, &dialables).await?;
        iptl_sdk::signal("looked-up")?;
    }
    node.serve(lab::answer(pending::signal_and_wait("done", env.total.into())?)).await?;
    node.tell()
}

/// Looks for peers that can be dialled and stay, and for providers of what all have provided.
async fn look_up(env: &Env, settings: &Settings, node: &mut Node, rng: &mut Rng, dialables: &[u32]) -> Result<()> {
    let first = boots(env);
    let mut pace = Pace::new(rng, env.total - first, settings.queries);
    for _ in 0..settings.lookups {
        if !dialables.is_empty() {
            node.serve(Delay::new(pace.wait())).await;
            let ordinal = dialables[rng.below(dialables.len() as u64) as usize];
            let target: PeerId = keys::peer(env.seed, ordinal);
            node.forget(&target);
            let query = node.find_peer(target);
            let lookup = node.finish(query, Some(target)).await;
            lookup.record("dht.find-peer")?;
            if lookup.found {
                compare(env, node, ordinal, &lookup).await?;
            }
        }
        // Ordinals follow the names of groups, and `boot` comes before `peer`.
        let provider = first + rng.below(u64::from(env.total - first)) as u32;
        let number = rng.below(settings.provides.into()) as u32;
        node.serve(Delay::new(pace.wait())).await;
        let query = node.find_providers(key(env, provider, number));
        node.finish(query, Some(keys::peer(env.seed, provider))).await.record("dht.find-providers")?;
    }
    Ok(())
}

/// Records what the network alone takes to a peer that was found and back, and what the look-up took of that.
async fn compare(env: &Env, node: &mut Node, ordinal: u32, lookup: &Lookup) -> Result<()> {
    let Some(peer) = env.instances().find(|peer| peer.ordinal == ordinal) else { return Ok(()) };
    let at = SocketAddr::new(resolve(&peer.host())?, PORT);
    // Whoever has no room for one more connection, or is too slow to answer, has nothing to compare with.
    if let Some(Ok(trip)) = node.serve_for(tcp::round_trip(at), node.patience()).await {
        let trip_ms = trip.as_secs_f64() * 1e3;
        metric("dht.round-trip", trip_ms, "ms")?;
        metric("dht.find-peer.trips", lookup.took_ms / trip_ms, "round trips")?;
    }
    Ok(())
}

/// Returns the key of something that a peer provides.
fn key(env: &Env, provider: u32, number: u32) -> Vec<u8> {
    format!("{} {provider} {number}", env.seed).into_bytes()
}

/// Reads who says of itself that it can be dialled.
fn dialable_one(report: &[u8]) -> Option<u32> {
    let (ordinal, dialable) = std::str::from_utf8(report).ok()?.split_once(' ')?;
    ordinal.parse().ok().filter(|_| dialable == "true")
}

/// Returns how many boots there are.
fn boots(env: &Env) -> u32 {
    env.groups.iter().find(|(name, _)| name == BOOT).map_or(0, |(_, size)| *size)
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// What a behaviour of libp2p refused.
fn refused(error: impl std::fmt::Display) -> Error {
    Error::Refused(error.to_string())
}
