//! Instances that share a LAN and its NAT: whom they find there, and how they are seen outside.
//!
//! The programs of the tests of containers have this file too.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use crate::mirror::{PORT, PRIVATE, receive};

/// Where mDNS is asked and answered.
const MDNS: (Ipv4Addr, u16) = (Ipv4Addr::new(224, 0, 0, 251), 5353);

/// Rounds in which it still says that it is there when it has found everybody: others may begin later.
const MORE: u32 = 20;

/// Looks for two neighbours by their addresses, and by multicast where that is there, and asks another how it is seen.
pub(crate) fn run(address: Ipv4Addr, mirror: &str, multicast: bool) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let many = multicast.then(|| {
        let many = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, MDNS.1)).unwrap();
        many.join_multicast_v4(&MDNS.0, &address).unwrap();
        many.set_multicast_loop_v4(false).unwrap();
        many.set_nonblocking(true).unwrap();
        many
    });
    let mirror = (mirror, PORT).to_socket_addrs().unwrap().next().unwrap();
    let [a, b, c, first] = PRIVATE.octets();
    let others = (first..first + 3).map(|last| Ipv4Addr::new(a, b, c, last)).filter(|other| *other != address);
    let others: Vec<Ipv4Addr> = others.collect();
    let (mut near, mut heard, mut seen) = (BTreeSet::new(), BTreeSet::new(), None);
    let mut more = MORE;
    while more > 0 {
        for other in &others {
            let _lost = socket.send_to(b"hello", (*other, PORT));
        }
        let _lost = socket.send_to(b"who am I?", mirror);
        if let Some(many) = &many {
            let _lost = many.send_to(b"here", MDNS);
            while let Some((_, from)) = receive(many, Instant::now()) {
                heard.insert(from.ip());
            }
        }
        let until = Instant::now() + Duration::from_millis(50);
        while let Some((text, from)) = receive(&socket, until) {
            match text.parse::<SocketAddr>() {
                Ok(as_whom) => seen = Some(as_whom.ip()),
                Err(_) => drop(near.insert(from.ip())),
            }
        }
        let all = |found: &BTreeSet<IpAddr>| found.len() == others.len();
        more -= u32::from(all(&near) && seen.is_some() && (!multicast || all(&heard)));
    }
    let list = |found: &BTreeSet<IpAddr>| found.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
    println!("{address} finds {}", list(&near));
    if multicast {
        println!("by multicast {}", list(&heard));
    }
    println!("seen as {}", seen.unwrap());
}
