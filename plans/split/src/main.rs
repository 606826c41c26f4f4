//! Counts together with its peers over UDP while their network parts and heals.
//!
//! Every instance counts for itself and sends all that it knows to all others with each heartbeat; whoever receives
//! keeps the larger of two counts. So the two sides of a partition go on without each other, and know the same soon
//! after it has healed. [`counts`] is what an instance knows; this file has the socket and what the lab is told.

mod counts;

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use counts::Counts;
use iptl_sdk::net::{Interest, wait};
use iptl_sdk::{Env, Error, Json, Result};

const PORT: u16 = 7100;

/// A datagram of any ordinary network.
const MAX_DATAGRAM: usize = 1200;

struct Settings {
    counting: Duration,
    interval: Duration,
    silence: Duration,
    patience: Duration,
}

/// What is known of another instance.
struct Peer {
    name: String,
    addr: SocketAddr,
    heard: Instant,
    lost: bool,
}

struct Node {
    me: usize,
    socket: UdpSocket,
    peers: Vec<Peer>,
    counts: Counts,
}

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    let settings = Settings {
        counting: env.param("counting")?,
        interval: env.param("interval")?,
        silence: env.param("silence")?,
        patience: env.param("patience")?,
    };
    let socket = UdpSocket::bind((env.addr, PORT))?;
    socket.set_nonblocking(true)?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;
    let mut node =
        Node { me: env.ordinal as usize, socket, peers: peers(&env)?, counts: Counts::new(env.total as usize) };

    let begun = Instant::now();
    node.beat_until(begun + settings.counting, &settings, true)?;
    iptl_sdk::event("counted", [("own", Json::from(node.counts.of(node.me)))])?;

    // From here on nobody counts: what one knows that another does not is on its way, or lost and sent again.
    let counted = Instant::now();
    iptl_sdk::signal("counted")?;
    let mut all_counted = iptl_sdk::pending::barrier("counted", env.total.into())?;
    let mut agreed = iptl_sdk::pending::barrier("agreed", env.total.into())?;
    let (mut last_change, mut all_stopped, mut told) = (counted, false, false);
    loop {
        if let Some(outcome) = agreed.try_take() {
            outcome?;
            break;
        }
        // The answer can be taken once.
        if !all_stopped && let Some(outcome) = all_counted.try_take() {
            outcome?;
            all_stopped = true;
        }
        let before = node.counts.sum();
        node.beat_until(Instant::now() + settings.interval, &settings, false)?;
        if node.counts.sum() != before {
            last_change = Instant::now();
        }
        // Everybody has stopped, and for some heartbeats nobody knew anything new.
        let quiet = last_change.elapsed() > 5 * settings.interval;
        if !told && all_stopped && quiet && node.lost() == 0 {
            told = true;
            iptl_sdk::publish("sums", node.counts.sum().to_string().as_bytes())?;
            iptl_sdk::metric("split.agreed", last_change.duration_since(counted).as_secs_f64() * 1e3, "ms")?;
            iptl_sdk::signal("agreed")?;
        }
        if counted.elapsed() > settings.patience {
            return Err(Error::Refused(format!("after {:?} {} peers are still lost", counted.elapsed(), node.lost())));
        }
    }
    check(&env, node.counts.sum())
}

/// Fails where another instance knows something else.
fn check(env: &Env, own: u64) -> Result<()> {
    let mut sums = iptl_sdk::subscribe("sums")?;
    for _ in 0..env.total {
        let sum = sums.next()?.payload;
        if sum != own.to_string().as_bytes() {
            let other = String::from_utf8_lossy(&sum).into_owned();
            return Err(Error::Refused(format!("it counted {own} together, and another {other}")));
        }
    }
    iptl_sdk::event("agreed", [("sum", Json::from(own))])
}

/// Returns all instances in the order of their numbers, this one included.
fn peers(env: &Env) -> Result<Vec<Peer>> {
    let now = Instant::now();
    env.instances()
        .map(|peer| {
            let name = peer.host();
            let addr = (name.as_str(), PORT).to_socket_addrs()?.next();
            let addr = addr.ok_or_else(|| Error::Refused(format!("{name} has no address")))?;
            Ok(Peer { name, addr, heard: now, lost: false })
        })
        .collect()
}

impl Node {
    /// Sends heartbeats and takes those of others until some time.
    fn beat_until(&mut self, until: Instant, settings: &Settings, counting: bool) -> Result<()> {
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(());
            }
            if now >= next {
                next = now + settings.interval;
                if counting {
                    self.counts.count(self.me);
                }
                self.send();
                self.look(settings.silence)?;
            }
            wait(&[Interest::read(&self.socket)], next.min(until).saturating_duration_since(Instant::now()))?;
            self.receive()?;
        }
    }

    fn send(&self) {
        for part in self.counts.parts(self.me, MAX_DATAGRAM) {
            for (ordinal, peer) in self.peers.iter().enumerate() {
                if ordinal != self.me {
                    // What cannot be sent now is sent with the next heartbeat.
                    let _ = self.socket.send_to(&part, peer.addr);
                }
            }
        }
    }

    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; MAX_DATAGRAM];
        while let Ok((size, _)) = self.socket.recv_from(&mut buffer) {
            let Some(from) = self.counts.take(&buffer[..size]) else { continue };
            let Some(peer) = self.peers.get_mut(from) else { continue };
            let silent = peer.heard.elapsed();
            peer.heard = Instant::now();
            if peer.lost {
                peer.lost = false;
                iptl_sdk::metric("split.silence", silent.as_secs_f64() * 1e3, "ms")?;
                iptl_sdk::event("found", [("peer", Json::from(peer.name.clone()))])?;
            }
        }
        Ok(())
    }

    /// Notes whom nobody has heard for too long.
    fn look(&mut self, silence: Duration) -> Result<()> {
        for (ordinal, peer) in self.peers.iter_mut().enumerate() {
            if ordinal != self.me && !peer.lost && peer.heard.elapsed() > silence {
                peer.lost = true;
                iptl_sdk::event("lost", [("peer", Json::from(peer.name.clone()))])?;
            }
        }
        Ok(())
    }

    fn lost(&self) -> usize {
        self.peers.iter().filter(|peer| peer.lost).count()
    }
}
