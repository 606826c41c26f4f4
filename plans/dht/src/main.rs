//! Kademlia of rust-libp2p among the instances of a run: join, find peers, provide, find providers.
//!
//! Instances of the group `boot` are what everybody knows at first; they tell each peer whether it can be dialled, as
//! AutoNAT does, and answer until all is over. Those of the group `peer` do the experiment. [`node`] is one node with
//! its swarm, [`joined`] who has joined and whose turn it is, [`lookup`] what one query found and took, [`pace`] when who
//! asks, [`churn`] the coming and going of some. This file is the order of events.

mod churn;
mod joined;
mod lookup;
mod node;
mod pace;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_timer::Delay;
use iptl_sdk::{Env, Error, Json, Result, Rng, event, metric, pending};
use iptl_stack::churn::Churn;
use iptl_stack::{PORT, keys, lab, resolve, runtime, tcp};
use libp2p::PeerId;

use crate::joined::{Joined, Report};
use crate::lookup::Lookup;
use crate::node::Node;
use crate::pace::Pace;

/// What a run chooses.
struct Settings {
    /// Keys that each peer provides.
    provides: u32,
    /// Look-ups of each kind by each peer that stays, at most.
    lookups: u32,
    /// Time from the start after which nobody begins another.
    until: Duration,
    /// Peers that begin to join in a second.
    joins: f64,
    /// Peers that join at the same time, at most.
    joining: u32,
    /// Keys that all together provide in a second, and look-ups that they make.
    queries: f64,
    /// Whether nobody provides before all have joined, and nobody looks up before all have provided.
    together: bool,
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
        until: env.param("until")?,
        together: env.param("together")?,
        joins: env.param("joins")?,
        joining: env.param("joining")?,
        queries: env.param("queries")?,
        node: node::Settings {
            dial: env.param("dial-timeout")?,
            query: env.param("query-timeout")?,
            idle: env.param("idle-timeout")?,
            clients: env.param("clients")?,
            refresh: env.param("refresh")?,
        },
        churn: Churn::of(&env)?,
    };
    if env.group == BOOT { runtime::run(boot(env, settings)) } else { runtime::run(peer(env, settings)) }
}

/// Tells peers whether they can be dialled, and answers until all are done.
async fn boot(env: Env, settings: Settings) -> Result<()> {
    let mut node = Node::start(&env, settings.node, true)?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;
    let states: &[&str] = if settings.together { &["joined", "provided", "done"] } else { &["done"] };
    for state in states {
        let reached = lab::answer(pending::signal_and_wait(state, env.total.into())?);
        node.serve(reached).await?;
    }
    Ok(())
}

async fn peer(env: Env, settings: Settings) -> Result<()> {
    let end = Instant::now() + settings.until;
    let mut rng = env.rng();
    let mut node = Node::start(&env, settings.node, false)?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;

    let peers = env.total - boots(&env);
    let mut joined = Joined::of()?;
    joined.await_turn(&env, &settings, &mut node).await?;
    let began = Instant::now();
    let dialable = node.meet_boots().await?;
    node.join().await?;
    metric("dht.join", ms(began), "ms")?;
    event("joined", [("dialable", Json::from(dialable)), ("peers", Json::from(node.known() as u64))])?;
    node.serve(joined::say(Report::Joined { ordinal: env.ordinal, dialable })).await?;
    if settings.together {
        node.serve(lab::answer(pending::signal_and_wait("joined", env.total.into())?)).await?;
    }

    let mut pace = Pace::new(&mut rng, peers, settings.queries);
    for number in 0..settings.provides {
        node.serve(Delay::new(pace.wait())).await;
        let query = node.provide(key(&env, env.ordinal, number))?;
        let found = node.finish(query, None).await;
        metric("dht.provide", found.took_ms, "ms")?;
        metric("dht.provide.requests", found.requests.into(), "requests")?;
    }
    node.serve(joined::say(Report::Provided { ordinal: env.ordinal })).await?;
    if settings.together {
        node.serve(lab::answer(pending::signal_and_wait("provided", env.total.into())?)).await?;
        joined.await_all(&env, &mut node).await?;
    }

    let leavers = settings.churn.leavers(&env, boots(&env));
    let stayers = u64::from(peers) - leavers.len() as u64;
    if leavers.contains(&env.ordinal) {
        let looked = pending::barrier("looked-up", stayers)?;
        node = churn::come_and_go(&env, node, &settings.churn, settings.node, &mut rng, looked).await?;
    } else {
        look_up(&env, &settings, end, &mut node, &mut rng, (joined, &leavers)).await?;
        iptl_sdk::signal("looked-up")?;
    }
    node.serve(lab::answer(pending::signal_and_wait("done", env.total.into())?)).await?;
    node.tell()
}

/// Looks for peers that can be dialled and stay, and for providers of what has been provided.
async fn look_up(
    env: &Env,
    settings: &Settings,
    end: Instant,
    node: &mut Node,
    rng: &mut Rng,
    (mut joined, leavers): (Joined, &BTreeSet<u32>),
) -> Result<()> {
    let mut pace = Pace::new(rng, env.total - boots(env), settings.queries);
    for _ in 0..settings.lookups {
        if !await_turn(&mut pace, end, node).await {
            break;
        }
        joined.look(env)?;
        joined.without(leavers);
        if let Some(ordinal) = one(&joined.dialable, rng) {
            let target: PeerId = keys::peer(env.seed, ordinal);
            node.forget(&target);
            let query = node.find_peer(target);
            let lookup = node.finish(query, Some(target)).await;
            lookup.record("dht.find-peer")?;
            if lookup.found {
                compare(env, node, ordinal, &lookup).await?;
            }
        }
        if !await_turn(&mut pace, end, node).await {
            break;
        }
        joined.look(env)?;
        if let Some(provider) = one(&joined.providers, rng) {
            let number = rng.below(settings.provides.into()) as u32;
            let query = node.find_providers(key(env, provider, number));
            node.finish(query, Some(keys::peer(env.seed, provider))).await.record("dht.find-providers")?;
        }
    }
    Ok(())
}

/// Returns one of several by lot.
fn one(of: &[u32], rng: &mut Rng) -> Option<u32> {
    (!of.is_empty()).then(|| of[rng.below(of.len() as u64) as usize])
}

/// Answers others until it is this peer's turn to ask; returns whether that is before the end.
async fn await_turn(pace: &mut Pace, end: Instant, node: &mut Node) -> bool {
    let wait = pace.wait();
    let in_time = Instant::now() + wait < end;
    if in_time {
        node.serve(Delay::new(wait)).await;
    }
    in_time
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
