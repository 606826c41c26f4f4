//! One node: its swarm, and what it has heard.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{Either, select};
use futures_timer::Delay;
use iptl_sdk::{Env, Error, Result, Rng, metric};
use iptl_stack::{PORT, keys, multiaddr, own_address, resolve};
use libp2p::Swarm;
use libp2p::gossipsub::{Behaviour, ConfigBuilder, Event, IdentTopic, MessageAuthenticity, MessageId, PublishError};
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;

use crate::message;

/// Connections stay, also outside of the mesh, over which news of messages is gossiped.
const IDLE: Duration = Duration::from_secs(3600);

/// How nodes behave.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Others that a node connects to.
    pub dials: u32,
    /// Others that it wants in its mesh.
    pub mesh: usize,
    /// Time from one look at the mesh to the next.
    pub heartbeat: Duration,
    /// Time to connect.
    pub patience: Duration,
}

/// What a node has heard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    /// Messages of others.
    pub delivered: u64,
    /// Times that one came again.
    pub duplicates: u64,
}

/// A node.
pub struct Node {
    swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    dials: u32,
    /// Messages that came or were published, counted where libp2p asks for the name of each.
    named: Arc<AtomicU64>,
    published: u64,
    delivered: u64,
}

impl Node {
    /// Listens and subscribes; it connects to nobody.
    pub fn start(env: &Env, settings: Settings) -> Result<Node> {
        let key = keys::key(env.seed, env.ordinal);
        let named = Arc::new(AtomicU64::new(0));
        let counted = named.clone();
        let config = ConfigBuilder::default()
            .heartbeat_interval(settings.heartbeat)
            .mesh_n(settings.mesh)
            .mesh_n_low(settings.mesh.saturating_sub(2).max(1))
            .mesh_n_high(settings.mesh * 2)
            .mesh_outbound_min((settings.mesh / 3).min(settings.mesh.saturating_sub(2).max(1)))
            .message_id_fn(move |message| {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut id = message.source.map(|peer| peer.to_bytes()).unwrap_or_default();
                id.extend_from_slice(&message.sequence_number.unwrap_or_default().to_be_bytes());
                MessageId::from(id)
            })
            .build()
            .map_err(refused)?;
        let mut behaviour = Behaviour::new(MessageAuthenticity::Signed(key.clone()), config).map_err(refused)?;
        let topic = IdentTopic::new("news");
        behaviour.subscribe(&topic).map_err(refused)?;
        let mut swarm = iptl_stack::swarm(&key, behaviour, IDLE, settings.patience)?;
        swarm.listen_on(multiaddr(own_address(env))).map_err(|error| refused(format!("port {PORT}: {error}")))?;
        Ok(Node { swarm, topic, dials: settings.dials, named, published: 0, delivered: 0 })
    }

    /// Connects to the next instance, so that all are reached by somebody, and to others at random.
    pub fn connect(&mut self, env: &Env, rng: &mut Rng) -> Result<()> {
        let mut others: Vec<_> = env.instances().filter(|peer| peer.ordinal != env.ordinal).collect();
        let next = env.ordinal as usize % others.len().max(1);
        others.rotate_left(next);
        if let Some((_, rest)) = others.split_first_mut() {
            rng.shuffle(rest);
        }
        for peer in others.into_iter().take(self.dials as usize) {
            let address = multiaddr(resolve(&peer.host())?);
            let options = DialOpts::peer_id(keys::peer(env.seed, peer.ordinal)).addresses(vec![address]);
            // Refused where the other was faster.
            let _ = self.swarm.dial(options.build());
        }
        Ok(())
    }

    /// Publishes a message.
    pub fn publish(&mut self, message: Vec<u8>) -> Result<()> {
        match self.swarm.behaviour_mut().publish(self.topic.clone(), message) {
            Ok(_) => {
                self.published += 1;
                Ok(())
            }
            // Nobody will hear it, which is a result.
            Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_)) => {
                self.published += 1;
                Ok(())
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// Returns what was heard until now.
    pub fn heard(&self) -> Heard {
        let came = self.named.load(Ordering::Relaxed).saturating_sub(self.published);
        Heard { delivered: self.delivered, duplicates: came.saturating_sub(self.delivered) }
    }

    /// Returns how many others are in the mesh.
    pub fn mesh(&self) -> usize {
        self.swarm.behaviour().mesh_peers(&self.topic.hash()).count()
    }

    /// Returns how many others are connected.
    pub fn connected(&self) -> usize {
        self.swarm.connected_peers().count()
    }

    /// Passes on what comes until a future has its value.
    pub async fn serve<T>(&mut self, until: impl Future<Output = T>) -> Result<T> {
        let mut until = pin!(until);
        loop {
            match select(until.as_mut(), self.swarm.select_next_some()).await {
                Either::Left((value, _)) => return Ok(value),
                Either::Right((SwarmEvent::Behaviour(Event::Message { message, .. }), _)) => {
                    self.delivered += 1;
                    if let Some(age) = message::age_ms(&message.data) {
                        metric("gossip.propagation", age, "ms")?;
                    }
                }
                Either::Right(_) => {}
            }
        }
    }

    /// Does so until a future has its value, or for some time; returns none where the time came first.
    pub async fn serve_for<T>(&mut self, until: impl Future<Output = T>, time: Duration) -> Result<Option<T>> {
        let either = async {
            match select(pin!(until), Delay::new(time)).await {
                Either::Left((value, _)) => Some(value),
                Either::Right(_) => None,
            }
        };
        self.serve(either).await
    }
}

/// What a behaviour of libp2p refused.
fn refused(error: impl std::fmt::Display) -> Error {
    Error::Refused(error.to_string())
}
