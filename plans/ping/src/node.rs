//! The sockets of one instance, all non-blocking, in one thread.
//!
//! A node answers whoever pings it, at all times, while two clients (one over TCP, one over UDP) go through its peers,
//! one ping in flight each. Nothing waits for a single peer: a step polls all sockets and handles what is there, so no
//! set of nodes can wait for each other in a circle.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use iptl_sdk::net::{Interest, wait};

/// How a node pings.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Pings per peer and protocol.
    pub rounds: u32,
    /// Time from one ping of a peer to the next, where the answer is there by then.
    pub interval: Duration,
    /// Bytes per ping, [`HEADER`] at least.
    pub payload: usize,
    /// Longest time for a peer to connect or to answer over TCP.
    pub patience: Duration,
    /// Time after which a datagram counts as lost.
    pub udp_timeout: Duration,
}

/// How a ping travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// As a stream.
    Tcp,
    /// As a datagram.
    Udp,
}

/// Who is told what a node finds out.
pub trait Observer {
    /// A TCP connection was made.
    fn connected(&mut self, time: Duration);
    /// A ping was answered.
    fn answered(&mut self, protocol: Protocol, time: Duration);
    /// A datagram got no answer and is sent again.
    fn lost(&mut self);
    /// A peer was given up.
    fn failed(&mut self, protocol: Protocol, peer: &str, why: &str);
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Peers are left.
    Busy,
    /// All peers were pinged or given up.
    Done,
}

/// A ping begins with its kind and its number.
pub const HEADER: usize = 9;
const REQUEST: u8 = 0;
const REPLY: u8 = 1;

/// Datagrams sent for one ping before its peer is given up.
const UDP_ATTEMPTS: u32 = 5;

/// Times that connecting is tried.
const CONNECT_ATTEMPTS: u32 = 3;

/// Longest time in one poll: a bound for what a lost wake-up costs.
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// Bytes that wait for a slow reader before its connection is no longer read.
const MOST_UNSENT: usize = 64 << 10;

/// Datagrams handled in one step.
const DATAGRAMS_PER_STEP: usize = 64;

/// One instance.
pub struct Node {
    config: Config,
    listener: TcpListener,
    udp: UdpSocket,
    servers: Vec<Server>,
    tcp: TcpClient,
    udp_client: UdpClient,
}

/// A connection that somebody else opened.
struct Server {
    stream: TcpStream,
    unsent: VecDeque<u8>,
    open: bool,
}

/// A peer with its TCP and UDP addresses.
type Peer = (String, SocketAddr, SocketAddr);

#[derive(Default)]
struct TcpClient {
    left: VecDeque<(String, SocketAddr)>,
    current: Option<TcpPing>,
}

/// Pings of one peer over TCP.
struct TcpPing {
    peer: String,
    stream: TcpStream,
    round: u32,
    sent: Vec<u8>,
    unsent: usize,
    received: Vec<u8>,
    /// When it may be sent.
    due: Instant,
    sent_at: Instant,
}

#[derive(Default)]
struct UdpClient {
    left: VecDeque<(String, SocketAddr)>,
    current: Option<UdpPing>,
    number: u64,
}

/// The ping of one peer over UDP that is in flight.
struct UdpPing {
    peer: String,
    addr: SocketAddr,
    round: u32,
    attempt: u32,
    number: u64,
    /// When it may be sent.
    due: Instant,
    /// None where it was not sent yet.
    sent_at: Option<Instant>,
}

impl Node {
    /// Makes a node of its sockets.
    pub fn new(config: Config, listener: TcpListener, udp: UdpSocket) -> io::Result<Node> {
        listener.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        Ok(Node {
            config: Config { payload: config.payload.max(HEADER), ..config },
            listener,
            udp,
            servers: Vec::new(),
            tcp: TcpClient::default(),
            udp_client: UdpClient::default(),
        })
    }

    /// Sets the peers to ping.
    pub fn start(&mut self, peers: Vec<Peer>) {
        self.tcp.left = peers.iter().map(|(peer, tcp, _)| (peer.clone(), *tcp)).collect();
        self.udp_client.left = peers.into_iter().map(|(peer, _, udp)| (peer, udp)).collect();
        // Half of the peers apart, so that a peer does not get both at once.
        let half = self.udp_client.left.len() / 2;
        self.udp_client.left.rotate_left(half);
    }

    /// Answers others for as long as `time`, or until something happened.
    pub fn serve(&mut self, time: Duration) -> io::Result<()> {
        let ready = self.poll(time)?;
        self.answer(&ready, None);
        Ok(())
    }

    /// Pings, answers others, and waits for sockets where there is nothing to do.
    pub fn step(&mut self, observer: &mut dyn Observer) -> io::Result<Step> {
        self.ping_tcp(observer);
        self.ping_udp(observer);
        if self.tcp.is_done() && self.udp_client.is_done() {
            return Ok(Step::Done);
        }
        let now = Instant::now();
        let idle = [self.tcp.due(), self.udp_client.due()].into_iter().flatten().filter(|due| *due > now);
        let time = idle.map(|due| due - now).fold(LONGEST_POLL, Duration::min);
        let ready = self.poll(time)?;
        self.answer(&ready, Some(observer));
        Ok(Step::Busy)
    }

    /// Waits until a socket has something; returns which have, in the order listener, datagrams, servers, client.
    fn poll(&self, time: Duration) -> io::Result<Vec<usize>> {
        let mut interests = vec![Interest::read(&self.listener), Interest::read(&self.udp)];
        for server in &self.servers {
            interests.push(if server.unsent.is_empty() {
                Interest::read(&server.stream)
            } else if server.unsent.len() < MOST_UNSENT && server.open {
                Interest::read_write(&server.stream)
            } else {
                Interest::write(&server.stream)
            });
        }
        if let Some(ping) = &self.tcp.current {
            interests.push(if (1..ping.sent.len()).contains(&ping.unsent) {
                Interest::read_write(&ping.stream)
            } else {
                Interest::read(&ping.stream)
            });
        }
        wait(&interests, time)
    }

    /// Answers on the sockets that have something.
    fn answer(&mut self, ready: &[usize], observer: Option<&mut dyn Observer>) {
        let mut at = 1;
        self.servers.retain_mut(|server| {
            at += 1;
            !ready.contains(&at) || server.answer().is_ok_and(|more| more)
        });
        if ready.contains(&0) {
            self.accept();
        }
        if ready.contains(&1) {
            self.answer_datagrams(observer);
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                let _ = stream.set_nodelay(true);
                // What it sends at once is read now, and not only after another poll.
                let mut server = Server { stream, unsent: VecDeque::new(), open: true };
                if server.answer().is_ok_and(|more| more) {
                    self.servers.push(server);
                }
            }
        }
    }

    fn answer_datagrams(&mut self, mut observer: Option<&mut dyn Observer>) {
        let mut buffer = [0u8; 2048];
        for _ in 0..DATAGRAMS_PER_STEP {
            let Ok((length, from)) = self.udp.recv_from(&mut buffer) else { return };
            match buffer.first() {
                Some(&REQUEST) if length >= HEADER => {
                    buffer[0] = REPLY;
                    // One that cannot be sent now is one that is lost: whoever pinged asks again.
                    let _ = self.udp.send_to(&buffer[..length], from);
                }
                Some(&REPLY) if length >= HEADER => {
                    if let Some(observer) = observer.as_deref_mut() {
                        self.udp_client.take(&buffer[..length], from, self.config, observer);
                    }
                }
                _ => {}
            }
        }
    }

    fn ping_tcp(&mut self, observer: &mut dyn Observer) {
        if self.tcp.current.is_none() {
            let Some((peer, addr)) = self.tcp.left.pop_front() else { return };
            let started = Instant::now();
            match connect(addr, self.config.patience) {
                Ok(stream) => {
                    observer.connected(started.elapsed());
                    self.tcp.current = Some(TcpPing::new(peer, stream, self.config));
                }
                Err(error) => observer.failed(Protocol::Tcp, &peer, &format!("connect: {error}")),
            }
        }
        let Some(ping) = &mut self.tcp.current else { return };
        match ping.advance(self.config, observer) {
            Ok(Step::Busy) => {}
            Ok(Step::Done) => self.tcp.current = None,
            Err(error) => {
                observer.failed(Protocol::Tcp, &ping.peer, &format!("round {}: {error}", ping.round));
                self.tcp.current = None;
            }
        }
    }

    fn ping_udp(&mut self, observer: &mut dyn Observer) {
        let client = &mut self.udp_client;
        if client.current.is_none() {
            let Some((peer, addr)) = client.left.pop_front() else { return };
            let due = Instant::now();
            client.current = Some(UdpPing { peer, addr, round: 0, attempt: 0, number: 0, due, sent_at: None });
        }
        let Some(ping) = &mut client.current else { return };
        match ping.sent_at {
            Some(at) if at.elapsed() < self.config.udp_timeout => return,
            Some(_) if ping.attempt < UDP_ATTEMPTS => observer.lost(),
            Some(_) => {
                let why = format!("round {}: {UDP_ATTEMPTS} datagrams lost", ping.round);
                observer.failed(Protocol::Udp, &ping.peer, &why);
                client.current = None;
                return;
            }
            None if Instant::now() < ping.due => return,
            None => {}
        }
        client.number += 1;
        ping.number = client.number;
        let sent_at = Instant::now();
        match self.udp.send_to(&frame(self.config.payload, ping.number), ping.addr) {
            Ok(_) => {
                ping.attempt += 1;
                ping.sent_at = Some(sent_at);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => ping.sent_at = None,
            Err(error) => {
                observer.failed(Protocol::Udp, &ping.peer, &format!("round {}: {error}", ping.round));
                client.current = None;
            }
        }
    }
}

impl TcpClient {
    /// Returns when the next ping may be sent, unless one is in flight.
    fn due(&self) -> Option<Instant> {
        self.current.as_ref().filter(|ping| ping.unsent == 0).map(|ping| ping.due)
    }

    fn is_done(&self) -> bool {
        self.left.is_empty() && self.current.is_none()
    }
}

impl UdpClient {
    /// Returns when the next ping may be sent, unless one is in flight.
    fn due(&self) -> Option<Instant> {
        self.current.as_ref().filter(|ping| ping.sent_at.is_none()).map(|ping| ping.due)
    }

    fn is_done(&self) -> bool {
        self.left.is_empty() && self.current.is_none()
    }

    /// Takes a reply; late ones and those of nobody's ping are ignored.
    fn take(&mut self, reply: &[u8], from: SocketAddr, config: Config, observer: &mut dyn Observer) {
        let Some(ping) = &mut self.current else { return };
        let mut expected = frame(config.payload, ping.number);
        expected[0] = REPLY;
        let (Some(sent_at), true) = (ping.sent_at, reply == expected && from == ping.addr) else { return };
        observer.answered(Protocol::Udp, sent_at.elapsed());
        ping.due = sent_at + config.interval;
        ping.round += 1;
        ping.attempt = 0;
        ping.sent_at = None;
        if ping.round >= config.rounds {
            self.current = None;
        }
    }
}

impl Server {
    /// Sends back what came in; false where the other side has closed and has all of it.
    fn answer(&mut self) -> io::Result<bool> {
        let mut buffer = [0u8; 4096];
        while self.open && self.unsent.len() < MOST_UNSENT {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.open = false,
                Ok(length) => self.unsent.extend(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while !self.unsent.is_empty() {
            match self.stream.write(self.unsent.as_slices().0) {
                Ok(0) => return Ok(false),
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.open || !self.unsent.is_empty())
    }
}

impl TcpPing {
    fn new(peer: String, stream: TcpStream, config: Config) -> TcpPing {
        let sent = frame(config.payload, 0);
        let now = Instant::now();
        TcpPing { peer, stream, round: 0, sent, unsent: 0, received: Vec::new(), due: now, sent_at: now }
    }

    /// Sends and receives what is possible now.
    fn advance(&mut self, config: Config, observer: &mut dyn Observer) -> io::Result<Step> {
        loop {
            if self.unsent == 0 {
                let now = Instant::now();
                if now < self.due {
                    return Ok(Step::Busy);
                }
                self.sent_at = now;
            }
            while self.unsent < self.sent.len() {
                match self.stream.write(&self.sent[self.unsent..]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(length) => self.unsent += length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            let mut buffer = [0u8; 4096];
            let want = (self.sent.len() - self.received.len()).min(buffer.len());
            match self.stream.read(&mut buffer[..want]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.sent_at.elapsed() > config.patience {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    return Ok(Step::Busy);
                }
                Err(error) => return Err(error),
            }
            if self.received.len() < self.sent.len() {
                continue;
            }
            if self.received != self.sent {
                return Err(io::Error::new(ErrorKind::InvalidData, "the echo differs from what was sent"));
            }
            observer.answered(Protocol::Tcp, self.sent_at.elapsed());
            self.round += 1;
            if self.round >= config.rounds {
                return Ok(Step::Done);
            }
            self.sent = frame(config.payload, self.round.into());
            self.unsent = 0;
            self.received.clear();
            self.due = self.sent_at + config.interval;
        }
    }
}

/// Connects; the other side's system completes it, whatever its program is doing.
fn connect(addr: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let mut attempt = 1;
    let stream = loop {
        match TcpStream::connect_timeout(&addr, patience / CONNECT_ATTEMPTS) {
            Ok(stream) => break stream,
            Err(error) if attempt >= CONNECT_ATTEMPTS => return Err(error),
            Err(_) => {
                std::thread::sleep(Duration::from_millis(20) * attempt);
                attempt += 1;
            }
        }
    };
    let _ = stream.set_nodelay(true);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Makes a request: its kind, its number, and bytes that depend on both place and number.
fn frame(size: usize, number: u64) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..size).map(|at| (at as u64).wrapping_mul(31).wrapping_add(number) as u8).collect();
    frame[0] = REQUEST;
    frame[1..HEADER].copy_from_slice(&number.to_le_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    #[derive(Default)]
    struct Seen {
        connected: u32,
        tcp: u32,
        udp: u32,
        failed: Vec<String>,
    }

    impl Observer for Seen {
        fn connected(&mut self, _: Duration) {
            self.connected += 1;
        }
        fn answered(&mut self, protocol: Protocol, _: Duration) {
            match protocol {
                Protocol::Tcp => self.tcp += 1,
                Protocol::Udp => self.udp += 1,
            }
        }
        fn lost(&mut self) {}
        fn failed(&mut self, protocol: Protocol, peer: &str, why: &str) {
            self.failed.push(format!("{protocol:?} {peer} {why}"));
        }
    }

    const CONFIG: Config = Config {
        interval: Duration::from_millis(1),
        rounds: 3,
        payload: 100,
        patience: Duration::from_secs(20),
        udp_timeout: Duration::from_millis(500),
    };

    fn node() -> (Node, Peer) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = ("peer".to_owned(), listener.local_addr().unwrap(), udp.local_addr().unwrap());
        (Node::new(CONFIG, listener, udp).unwrap(), peer)
    }

    #[test]
    fn all_of_forty_nodes_ping_all_others() {
        let (nodes, peers): (Vec<Node>, Vec<Peer>) = (0..40).map(|_| node()).unzip();
        let done = Arc::new(Barrier::new(nodes.len()));
        let all: Vec<_> = nodes
            .into_iter()
            .enumerate()
            .map(|(at, mut node)| {
                let others: Vec<Peer> = [&peers[at + 1..], &peers[..at]].concat();
                let done = Arc::clone(&done);
                std::thread::spawn(move || {
                    let mut seen = Seen::default();
                    node.start(others);
                    while node.step(&mut seen).unwrap() == Step::Busy {}
                    // Others may still ping: a second thread says when all are done.
                    let waiting = std::thread::spawn(move || done.wait());
                    while !waiting.is_finished() {
                        node.serve(Duration::from_millis(5)).unwrap();
                    }
                    seen
                })
            })
            .collect();
        for thread in all {
            let seen = thread.join().unwrap();
            assert_eq!(seen.failed, Vec::<String>::new());
            assert_eq!((seen.connected, seen.tcp, seen.udp), (39, 39 * 3, 39 * 3));
        }
    }

    #[test]
    fn peers_that_are_not_there_are_given_up() {
        let (_, gone) = node();
        let (mut node, _) = node();
        node.config.patience = Duration::from_millis(100);
        node.config.udp_timeout = Duration::from_millis(5);
        node.start(vec![gone]);
        let mut seen = Seen::default();
        while node.step(&mut seen).unwrap() == Step::Busy {}
        assert_eq!(seen.failed.len(), 2);
    }
}
