//! rust-libp2p for plans, of one source for components and for programs in containers.
//!
//! A component has one thread, no runtime that knows its sockets, and no TCP transport in libp2p. So this crate has
//! what is missing, written on std, `socket2` and the SDK's `poll(2)` alone: [`runtime`] runs tasks and waits for
//! sockets and timers, [`tcp`] is the transport, [`swarm`] puts TCP, noise and yamux together, [`lab`] waits for the
//! lab's answers without stopping the swarm, and [`churn`] says who leaves. What peers say to each other is libp2p's own.

pub mod churn;
pub mod keys;
pub mod lab;
pub mod runtime;
pub mod tcp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use iptl_sdk::{Env, Error, Result};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::swarm::{self, NetworkBehaviour};
use libp2p::{Multiaddr, Swarm, Transport, noise, yamux};

/// Port on which nodes of plans listen.
pub const PORT: u16 = 4001;

/// The address of whoever is behind a NAT, in a network of its own.
const BEHIND_NAT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2));

/// Makes a swarm over TCP. Connections that nobody uses are closed after `idle`; one that is not made, encrypted and
/// multiplexed after `patience` is given up.
///
/// # Errors
///
/// Fails where there is no randomness for a key of noise.
pub fn swarm<B: NetworkBehaviour>(key: &Keypair, behaviour: B, idle: Duration, patience: Duration) -> Result<Swarm<B>> {
    let noise = noise::Config::new(key).map_err(|error| Error::Refused(error.to_string()))?;
    let transport = tcp::Tcp::default()
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(patience)
        .boxed();
    let config = swarm::Config::with_executor(runtime::spawn).with_idle_connection_timeout(idle);
    Ok(Swarm::new(transport, behaviour, key.public().to_peer_id(), config))
}

/// Returns this instance's own address: the one that the lab's directory has, or that of every home.
pub fn own_address(env: &Env) -> IpAddr {
    if TcpListener::bind((env.addr, 0)).is_ok() { env.addr } else { BEHIND_NAT }
}

/// Returns the address of an instance by its name.
///
/// # Errors
///
/// Fails where the lab knows no such name.
pub fn resolve(host: &str) -> Result<IpAddr> {
    let mut found = (host, PORT).to_socket_addrs()?;
    found.next().map(|addr| addr.ip()).ok_or_else(|| Error::Refused(format!("{host} has no address")))
}

/// Returns the address of whoever listens there, as libp2p writes it.
pub fn multiaddr(ip: IpAddr) -> Multiaddr {
    tcp::multiaddr(SocketAddr::new(ip, PORT))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use libp2p::identify;
    use libp2p::swarm::SwarmEvent;

    use super::*;

    fn node(ordinal: u32) -> Swarm<identify::Behaviour> {
        let key = keys::key(7, ordinal);
        let behaviour = identify::Behaviour::new(identify::Config::new("test/1".into(), key.public()));
        swarm(&key, behaviour, Duration::from_secs(10), Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn two_nodes_in_one_thread_learn_who_they_are() {
        let identified = runtime::run(async {
            let (mut one, mut two) = (node(1), node(2));
            two.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
            loop {
                let event = futures::select! {
                    event = one.select_next_some() => event,
                    event = two.select_next_some() => event,
                };
                match event {
                    SwarmEvent::NewListenAddr { address, .. } => one.dial(address).unwrap(),
                    SwarmEvent::Behaviour(identify::Event::Received { peer_id, .. }) => return Ok(peer_id),
                    _ => {}
                }
            }
        });
        assert!([keys::peer(7, 1), keys::peer(7, 2)].contains(&identified.unwrap()));
    }
}
