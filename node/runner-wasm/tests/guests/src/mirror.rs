//! One instance behind a NAT and one that tells it how it is seen: what a NAT makes of a sender, and when that changes.
//!
//! The programs of the tests of containers have this file too.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

pub(crate) const PORT: u16 = 4100;

/// Address of whoever is behind a NAT.
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

/// Time in which an answer comes, where one comes at all.
const PATIENCE: Duration = Duration::from_secs(1);

/// Mirrors, or is mirrored by the other of the two where it is behind a NAT: says how it is seen, how once that has
/// changed, and whether it can still be reached under what it was seen as before.
pub(crate) fn run(address: Ipv4Addr, other: &str) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    socket.set_nonblocking(true).unwrap();
    if address == PRIVATE { mirrored(&socket, other) } else { mirror(&socket) }
}

/// Answers every datagram with its source; one that names an address is answered there, and then at its source.
fn mirror(socket: &UdpSocket) {
    loop {
        let Some((text, from)) = receive(socket, Instant::now() + PATIENCE) else { continue };
        match text.parse::<SocketAddr>() {
            Ok(named) => {
                let _lost = socket.send_to(b"old", named);
                let _lost = socket.send_to(b"new", from);
            }
            Err(_) => {
                let _lost = socket.send_to(from.to_string().as_bytes(), from);
            }
        }
    }
}

fn mirrored(socket: &UdpSocket, other: &str) {
    let to = (other, PORT).to_socket_addrs().unwrap().next().unwrap();
    let seen = || loop {
        let _lost = socket.send_to(b"who am I?", to);
        let answer = receive(socket, Instant::now() + Duration::from_millis(50));
        if let Some(seen) = answer.and_then(|(text, _)| text.parse::<SocketAddr>().ok()) {
            break seen;
        }
    };
    let first = seen();
    println!("seen as {first}");
    let now = loop {
        let now = seen();
        if now != first {
            break now;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    println!("seen as {now}");
    socket.send_to(first.to_string().as_bytes(), to).unwrap();
    let (mut heard, until) = (Vec::new(), Instant::now() + PATIENCE);
    while let Some((text, _)) = receive(socket, until) {
        heard.push(text);
    }
    for mapping in ["old", "new"] {
        let word = if heard.iter().any(|text| text == mapping) { "heard" } else { "nothing" };
        println!("{mapping} mapping: {word}");
    }
}

/// Returns the next datagram as text; none where none comes until then.
pub(crate) fn receive(socket: &UdpSocket, until: Instant) -> Option<(String, SocketAddr)> {
    let mut bytes = [0; 64];
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((size, from)) => return Some((String::from_utf8_lossy(&bytes[..size]).into_owned(), from)),
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            // An ICMP error that came for what was sent is no answer.
            Err(e) if e.kind() != ErrorKind::WouldBlock && Instant::now() < until => {}
            Err(_) => return None,
        }
    }
}
