//! Pings its peers over TCP and UDP and records every round trip.
//!
//! All instances listen, meet at a barrier, ping, and answer others until all are done. [`node`] has the sockets; this
//! file has what the lab is told.

mod node;

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use iptl_sdk::{Env, Error, Json, Result};
use node::{Config, Node, Observer, Protocol, Step};

/// Ports that every instance listens on.
const TCP_PORT: u16 = 7000;
const UDP_PORT: u16 = 7001;

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    let config = Config {
        rounds: env.param("rounds")?,
        interval: env.param("interval")?,
        payload: env.param("payload")?,
        patience: env.param("patience")?,
        udp_timeout: env.param("udp-timeout")?,
    };
    let targets = targets(&env, env.param("peers")?);

    let listener = std::net::TcpListener::bind((env.addr, TCP_PORT))?;
    let udp = UdpSocket::bind((env.addr, UDP_PORT))?;
    let mut node = Node::new(config, listener, udp)?;
    iptl_sdk::event("listening", [("addr", env.addr.to_string())])?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;

    // Whatever happens, the others learn that this instance is done, so that one failure is not everybody's.
    let outcome = resolve(&targets).and_then(|peers| ping(&mut node, peers));
    let mut done = iptl_sdk::pending::barrier("done", env.total.into())?;
    iptl_sdk::signal("done")?;
    let gives_up = Instant::now() + config.patience;
    while done.try_take().is_none() && Instant::now() < gives_up {
        node.serve(Duration::from_millis(5))?;
    }
    outcome
}

/// Returns the hosts that this instance pings: the next one, so that all are reached, and others at random.
fn targets(env: &Env, most: u32) -> Vec<String> {
    let mut others: Vec<_> = env.instances().filter(|peer| peer.ordinal != env.ordinal).collect();
    if others.is_empty() {
        return Vec::new();
    }
    let next = env.ordinal as usize % others.len();
    others.swap(0, next);
    env.rng().shuffle(&mut others[1..]);
    others.truncate(most as usize);
    others.iter().map(|peer| peer.host()).collect()
}

fn resolve(hosts: &[String]) -> Result<Vec<(String, SocketAddr, SocketAddr)>> {
    let lookup = |host: &String| {
        let mut found = (host.as_str(), TCP_PORT).to_socket_addrs()?;
        let tcp = found.next().ok_or_else(|| Error::Refused(format!("{host} has no address")))?;
        Ok((host.clone(), tcp, SocketAddr::new(tcp.ip(), UDP_PORT)))
    };
    hosts.iter().map(lookup).collect()
}

fn ping(node: &mut Node, peers: Vec<(String, SocketAddr, SocketAddr)>) -> Result<()> {
    let mut lab = Lab::default();
    node.start(peers);
    while node.step(&mut lab)? == Step::Busy {}
    if let Some(error) = lab.error {
        return Err(error);
    }
    iptl_sdk::event(
        "pinged",
        [
            ("tcp", Json::from(lab.answered[0])),
            ("udp", lab.answered[1].into()),
            ("udp-lost", lab.lost.into()),
            ("failed", lab.failed.clone().into()),
        ],
    )?;
    match lab.failed.first() {
        None => Ok(()),
        Some(first) => Err(Error::Refused(format!("{} peers did not answer; first {first}", lab.failed.len()))),
    }
}

/// What is told to the lab.
#[derive(Default)]
struct Lab {
    answered: [u64; 2],
    lost: u32,
    failed: Vec<String>,
    error: Option<Error>,
}

impl Lab {
    fn metric(&mut self, name: &str, time: Duration) {
        if let Err(error) = iptl_sdk::metric(name, time.as_secs_f64() * 1e3, "ms") {
            self.error.get_or_insert(error);
        }
    }
}

impl Observer for Lab {
    fn connected(&mut self, time: Duration) {
        self.metric("ping.tcp.connect", time);
    }

    fn answered(&mut self, protocol: Protocol, time: Duration) {
        match protocol {
            Protocol::Tcp => {
                self.answered[0] += 1;
                self.metric("ping.tcp.rtt", time);
            }
            Protocol::Udp => {
                self.answered[1] += 1;
                self.metric("ping.udp.rtt", time);
            }
        }
    }

    fn lost(&mut self) {
        self.lost += 1;
    }

    fn failed(&mut self, protocol: Protocol, peer: &str, why: &str) {
        let what = format!("{peer} over {protocol:?}: {why}");
        eprintln!("{what}");
        self.failed.push(what);
    }
}
