//! The engine: packets of all nodes, from where they come in to where they go out.
//!
//! An [`Engine`] is told of packets ([`handle_packet`](Engine::handle_packet)) and of time
//! ([`handle_timeout`](Engine::handle_timeout)), and asked when it wants to be told next
//! ([`poll_timeout`](Engine::poll_timeout)) and what is to be delivered ([`poll_output`](Engine::poll_output)). Same
//! inputs at same times have same outputs.
//!
//! Packets may come as systems hand them down to network cards, many in one: see [`Offload`](crate::Offload). Such a
//! packet passes whole where nothing looks at packets one by one, and is cut where a link does.
//!
//! Nodes may be [elsewhere](Engine::set_away): an engine of the same topology on another machine has them. What is for
//! them leaves between the regions ([`poll_away`](Engine::poll_away)), and what they send comes in there
//! ([`handle_away`](Engine::handle_away)), held back for what is left of the delay.
//!
//! A packet goes from its node up a link into the node's realm, out through gateways as far as it has to, across to the
//! region of who has its destination, and in again. Each step happens at the time that the links before it ask for,
//! even if the engine is told late, so that lateness does not add up. `line.rs` has a link with what is under way on
//! it, `own.rs` what nodes ask of their own network, `route.rs` the steps from link to link, `names.rs` the lab's server of
//! names, `doors.rs` ways out of the lab, `away.rs` what leaves and comes in between regions, `stats.rs` what is counted.

mod away;
mod doors;
mod line;
mod names;
mod own;
mod route;
mod stats;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::capture::{Captured, Captures};
use crate::draw::mix;
use crate::ip::{Header, IpError, OFFLOAD_SIZE, Offload};
use crate::link::{Fate, LinkConfig};
use crate::nat::Nat;
use crate::topology::{Addrs, Entity, GatewayId, NodeId, Topology};

pub use away::Away;
pub use doors::{Door, Doors};
use line::{Flight, Held, Line};
use names::Served;
use own::Own;
pub use stats::{Between, EngineStats, Lateness, LinkStats, between_regions};

/// Bytes of a small buffer: a packet of Ethernet with room for what it grows by. Large ones would waste memory on the
/// small packets that are under way.
const SMALL: usize = 2048;

/// Bytes from which a packet gets a large buffer: then at least half of it is used.
const LARGE: usize = 32 << 10;

/// Bytes of a large buffer: the largest packet.
const LARGEST: usize = 0xffff;

/// Buffers kept for further packets: small and large ones. Those between are few.
const MAX_SPARE: [usize; 2] = [4096, 64];

/// Where the server of names is, if nobody says otherwise: among the addresses that are set aside for documentation.
pub const NAMES: Addrs =
    Addrs { v4: Some(Ipv4Addr::new(192, 0, 2, 53)), v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53)) };

/// First address that a node gets in mid-run, and how many there are: what is set aside for measuring networks, without
/// its first and its last.
const FIRST_MOVED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const MOVED: u32 = (1 << 17) - 2;

/// Settings of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Seed of all that is random.
    pub seed: u64,
    /// Most bytes that are under way at once; what comes beyond is dropped, and counted as the lab's doing.
    pub max_held_bytes: u64,
    /// Address from which routers send errors over IPv4.
    pub router_v4: Ipv4Addr,
    /// The same over IPv6.
    pub router_v6: Ipv6Addr,
    /// Addresses at which every node reaches the server of names, where there is one.
    pub names: Addrs,
}

impl Default for EngineConfig {
    /// Half a gibibyte under way; routers have addresses that are set aside for documentation.
    fn default() -> EngineConfig {
        EngineConfig {
            seed: 0,
            max_held_bytes: 512 << 20,
            router_v4: Ipv4Addr::new(192, 0, 2, 1),
            router_v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
            names: NAMES,
        }
    }
}

/// A packet for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The node.
    pub node: NodeId,
    /// The packet.
    pub bytes: Vec<u8>,
    /// Its head.
    pub header: Header,
    /// What is still to be done to it.
    pub offload: Offload,
    /// When it was to arrive, in nanoseconds.
    pub due_ns: u64,
}

/// Which of the links of a topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkId {
    /// From a node into its realm.
    NodeUp(NodeId),
    /// From its realm to a node.
    NodeDown(NodeId),
    /// From a gateway into the realm outside it.
    GatewayUp(GatewayId),
    /// From the realm outside it to a gateway.
    GatewayDown(GatewayId),
    /// Between regions, or within one.
    Region {
        /// Sending region.
        from: u16,
        /// Receiving region.
        to: u16,
    },
}

/// The network of all nodes of a topology.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    topology: Topology,
    nats: Vec<Nat>,
    /// Up and down of each node, up and down of each gateway, regions row by row, then those that nodes asked for.
    lines: Vec<Line>,
    /// For each of the last kind whose it is.
    owners: Vec<usize>,
    /// For each node what it asked of its own network.
    own: Vec<Option<Box<Own>>>,
    /// The next packet of each line that has any: time, order, line. Entries whose packet is no longer the next one
    /// of its line are passed over.
    heads: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// For each node and gateway the side of a partition on which it is.
    node_sides: Vec<Option<u8>>,
    gateway_sides: Vec<Option<u8>>,
    now_ns: u64,
    order: u64,
    held_bytes: u64,
    outputs: VecDeque<Output>,
    away: Vec<bool>,
    /// For each node the packets that it sent with another source than its own.
    spoofed: Vec<u64>,
    /// For each gateway the first node behind it.
    behind: Vec<Option<usize>>,
    leaving: VecDeque<Away>,
    spare: [Vec<Vec<u8>>; 2],
    captures: Captures,
    names: Option<Served>,
    /// Of nodes that have any.
    doors: BTreeMap<usize, Doors>,
    /// How often a node got other addresses.
    moves: u32,
    stats: EngineStats,
    lateness: Lateness,
}

impl Engine {
    /// Makes the engine of a topology.
    pub fn new(topology: Topology, config: EngineConfig) -> Engine {
        let mut lines = Vec::new();
        let mut line = |link: LinkConfig| {
            let seed = mix(config.seed, lines.len() as u64);
            lines.push(Line::new(link, seed));
        };
        let accesses = topology.nodes.iter().map(|node| &node.access);
        for access in accesses.chain(topology.gateways.iter().map(|gateway| &gateway.access)) {
            line(access.up);
            line(access.down);
        }
        for delay_ns in topology.delays_ns.iter().flatten() {
            line(LinkConfig { delay_ns: *delay_ns, ..LinkConfig::default() });
        }
        // Links take the first numbers.
        let seed = |gateway: usize| mix(!config.seed, gateway as u64);
        let gateways = topology.gateways.iter().enumerate();
        let nats = gateways.map(|(i, gateway)| Nat::new(gateway.nat, gateway.external, seed(i))).collect();
        Engine {
            config,
            nats,
            lines,
            owners: Vec::new(),
            own: (0..topology.nodes.len()).map(|_| None).collect(),
            heads: BinaryHeap::new(),
            node_sides: vec![None; topology.nodes.len()],
            gateway_sides: vec![None; topology.gateways.len()],
            away: vec![false; topology.nodes.len()],
            spoofed: vec![0; topology.nodes.len()],
            behind: away::behind(&topology),
            leaving: VecDeque::new(),
            topology,
            now_ns: 0,
            order: 0,
            held_bytes: 0,
            outputs: VecDeque::new(),
            spare: [Vec::new(), Vec::new()],
            captures: Captures::default(),
            names: None,
            doors: BTreeMap::new(),
            moves: 0,
            stats: EngineStats::default(),
            lateness: Lateness::default(),
        }
    }

    /// Takes a packet that a node sends. Everything about it is checked: it may be any bytes.
    ///
    /// Time does not go back: an earlier time than one told before is taken as that.
    pub fn handle_packet(&mut self, now_ns: u64, node: NodeId, bytes: Vec<u8>) {
        self.handle(now_ns, node, bytes, |_, _| Ok(Offload::default()));
    }

    /// Takes a packet with the description that a TUN device puts before it.
    pub fn handle_offloaded(&mut self, now_ns: u64, node: NodeId, bytes: Vec<u8>, description: [u8; OFFLOAD_SIZE]) {
        self.handle(now_ns, node, bytes, |bytes, header| Offload::decode(description, bytes, header));
    }

    fn handle(
        &mut self,
        now_ns: u64,
        node: NodeId,
        bytes: Vec<u8>,
        offload: impl FnOnce(&[u8], &Header) -> Result<Offload, IpError>,
    ) {
        self.handle_timeout(now_ns);
        self.stats.received += 1;
        let Some(sender) = self.topology.nodes.get(node.0) else {
            self.stats.spoofed += 1;
            return self.recycle(bytes);
        };
        self.captures.take(node.0, self.now_ns, &bytes);
        let parsed = Header::parse(&bytes).and_then(|header| offload(&bytes, &header).map(|offload| (header, offload)));
        let Ok((mut header, offload)) = parsed else {
            self.stats.malformed += 1;
            return self.recycle(bytes);
        };
        header.partial = offload.checksum.is_some();
        if !sender.addrs.contains(header.src) {
            if is_talk_of_a_link(&header) {
                self.stats.multicast += 1;
                return self.recycle(bytes);
            }
            self.stats.spoofed += 1;
            self.spoofed[node.0] += 1;
            return self.recycle(bytes);
        }
        if self.is_for_names(&header) {
            match self.ask_names(&header, &bytes) {
                Some(reply) => {
                    self.stats.names += 1;
                    self.hand_over(node, reply);
                }
                None => self.stats.malformed += 1,
            }
            return self.recycle(bytes);
        }
        let Some(bytes) = self.try_doors(node, bytes, header, offload) else { return };
        let mut flight = Flight { bytes, header, offload, origin: Some(node.0) };
        flight.bytes.truncate(header.len);
        // Many in one are many.
        self.stats.received += flight.on_the_wire().0 - 1;
        self.set_out(self.now_ns, node.0, flight);
    }

    /// Carries out what is due at a time.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        while let Some(Reverse((at_ns, order, line))) = self.heads.peek().copied() {
            if at_ns > self.now_ns {
                break;
            }
            self.heads.pop();
            if self.lines[line].next() != Some((at_ns, order)) {
                continue;
            }
            let Some(held) = self.lines[line].pop() else { continue };
            if let Some((at_ns, order)) = self.lines[line].next() {
                self.heads.push(Reverse((at_ns, order, line)));
            }
            self.held_bytes -= held.flight.bytes.len() as u64;
            let (packets, bytes) = held.flight.on_the_wire();
            let stats = &mut self.lines[line].stats;
            stats.delivered += packets;
            stats.delivered_bytes += bytes;
            stats.asked_ns += packets * (at_ns - held.from_ns);
            stats.measured_ns += packets * (self.now_ns - held.from_ns);
            self.lateness.note(self.now_ns - at_ns);
            self.leave(at_ns, line, held.flight);
        }
    }

    /// Returns when [`handle_timeout`](Engine::handle_timeout) has something to do, in nanoseconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.heads.peek().map(|Reverse((at_ns, _, _))| *at_ns)
    }

    /// Returns the next packet for a node.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Captures what a node sends and gets from now on, up to so many bytes; `ahead_ns` is what the wall clock, since
    /// 1970, is ahead of the engine's.
    pub fn capture(&mut self, node: NodeId, limit: u64, ahead_ns: u64) {
        self.captures.begin(node.0, limit, ahead_ns);
    }

    /// Returns the next piece of what was captured.
    pub fn poll_captured(&mut self) -> Option<Captured> {
        self.captures.poll()
    }

    /// Returns an empty buffer with room for this many bytes, one of those given back if there is any of the kind.
    pub fn buffer(&mut self, size: usize) -> Vec<u8> {
        match size {
            ..=SMALL => self.spare[0].pop().unwrap_or_else(|| Vec::with_capacity(SMALL)),
            LARGE.. => self.spare[1].pop().unwrap_or_else(|| Vec::with_capacity(LARGEST.max(size))),
            _ => Vec::with_capacity(size),
        }
    }

    /// Gives back the buffer of a packet, to be used for another.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        let class = match buffer.capacity() {
            0 => return,
            1..=SMALL => 0,
            LARGEST.. => 1,
            _ => return,
        };
        if self.spare[class].len() < MAX_SPARE[class] {
            buffer.clear();
            self.spare[class].push(buffer);
        }
    }

    /// Returns the network.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Changes what a link does to packets from now on; returns whether there is such a link.
    pub fn configure(&mut self, link: LinkId, config: LinkConfig) -> bool {
        let Some(line) = self.line(link) else { return false };
        self.lines[line].link.configure(config);
        true
    }

    /// Returns what a link does to packets; none where there is no such link.
    pub fn link(&self, link: LinkId) -> Option<&LinkConfig> {
        self.line(link).map(|line| self.lines[line].link.config())
    }

    /// Returns the IPv4 address that a node has for itself.
    pub fn addr(&self, node: NodeId) -> Option<Ipv4Addr> {
        self.topology.addr(node)
    }

    /// Returns the addresses that a node has for itself.
    pub fn addrs(&self, node: NodeId) -> Option<Addrs> {
        self.topology.addrs(node)
    }

    /// Returns the largest packet that a node can send, in bytes.
    pub fn mtu(&self, node: NodeId) -> Option<u16> {
        self.topology.nodes.get(node.0).map(|node| node.access.mtu)
    }

    /// Parts the network: nothing passes between nodes of different sides; who is on no side reaches all. Nodes are
    /// given in their order, and those beyond the end are on no side; so an empty slice heals the network.
    pub fn partition(&mut self, sides: &[Option<u8>]) {
        for (node, side) in self.node_sides.iter_mut().enumerate() {
            *side = sides.get(node).copied().flatten();
        }
        // A gateway is on the side of what is inside it, where that is one side: then packets from the other one do
        // not even reach its table. Inner gateways come after outer ones.
        let mut inside: Vec<Option<Option<u8>>> = vec![None; self.topology.realms.len()];
        let join = |so_far: &mut Option<Option<u8>>, side| {
            *so_far = Some(if so_far.is_none_or(|so_far| so_far == side) { side } else { None });
        };
        for (node, side) in self.topology.nodes.iter().zip(&self.node_sides) {
            join(&mut inside[node.realm], *side);
        }
        for (gateway, side) in self.topology.gateways.iter().zip(&mut self.gateway_sides).rev() {
            *side = inside[gateway.inner].flatten();
            join(&mut inside[gateway.outer], *side);
        }
    }

    /// Makes a gateway forget its mappings, as one does that restarts; returns whether there is such a gateway.
    pub fn restart_gateway(&mut self, gateway: GatewayId) -> bool {
        self.nats.get_mut(gateway.0).map(Nat::forget).is_some()
    }

    /// Gives a node other addresses, which nobody had before: out of 198.18.0.0/15, and `fd69:7074:6c00:1::/96` over IPv6;
    /// over IPv4 its outermost NAT gets it, where there is one, and forgets its mappings. Engines of one topology that are
    /// asked the same in the same order give the same. Returns what it had for itself and what it has now; none where there
    /// is no such node, or no address left.
    pub fn readdress(&mut self, node: NodeId) -> Option<(Addrs, Addrs)> {
        let before = self.topology.addrs(node)?;
        let v4 = u32::from(FIRST_MOVED).checked_add(self.moves).filter(|_| self.moves < MOVED)?;
        let [a, b] = [u16::try_from(v4 >> 16).ok()?, u16::try_from(v4 & 0xffff).ok()?];
        let v6 = Ipv6Addr::new(0xfd69, 0x7074, 0x6c00, 1, 0, 0, a, b);
        let to = Addrs { v4: Some(Ipv4Addr::from(v4)), v6: Some(v6) };
        self.moves += 1;
        if let Some(nat) = self.topology.readdress(node, to).ok()?
            && let Some(nat) = self.nats.get_mut(nat.0)
        {
            nat.set_external(to.v4);
        }
        Some((before, self.topology.addrs(node)?))
    }

    /// Returns what a link did; none where there is no such link.
    pub fn link_stats(&self, link: LinkId) -> Option<LinkStats> {
        self.line(link).map(|line| self.lines[line].stats)
    }

    /// Returns what the links of a node and of the gateways before it did, up and down, its own first.
    pub fn links_of(&self, node: NodeId) -> (Vec<LinkStats>, Vec<LinkStats>) {
        let stats = |link| self.link_stats(link).unwrap_or_default();
        let (mut up, mut down) = (vec![stats(LinkId::NodeUp(node))], vec![stats(LinkId::NodeDown(node))]);
        for gateway in self.topology.gateways(node) {
            up.push(stats(LinkId::GatewayUp(gateway)));
            down.push(stats(LinkId::GatewayDown(gateway)));
        }
        (up, down)
    }

    /// Returns how many packets a node sent with another source than its own; none where there is no such node.
    pub fn spoofed_by(&self, node: NodeId) -> Option<u64> {
        self.spoofed.get(node.0).copied()
    }

    /// Returns what happened to packets elsewhere than in links.
    pub fn stats(&self) -> EngineStats {
        self.stats
    }

    /// Returns how late the engine was told that packets were due.
    pub fn lateness(&self) -> &Lateness {
        &self.lateness
    }

    /// Returns the bytes that are under way.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    fn line(&self, link: LinkId) -> Option<usize> {
        let (nodes, gateways) = (self.topology.nodes.len(), self.topology.gateways.len());
        match link {
            LinkId::NodeUp(node) => (node.0 < nodes).then(|| self.up(Entity::Node(node.0))),
            LinkId::NodeDown(node) => (node.0 < nodes).then(|| self.down(Entity::Node(node.0))),
            LinkId::GatewayUp(gateway) => (gateway.0 < gateways).then(|| self.up(Entity::Gateway(gateway.0))),
            LinkId::GatewayDown(gateway) => (gateway.0 < gateways).then(|| self.down(Entity::Gateway(gateway.0))),
            LinkId::Region { from, to } => {
                let known = usize::from(from.max(to)) < self.topology.regions();
                known.then(|| self.between(from, to))
            }
        }
    }

    fn up(&self, entity: Entity) -> usize {
        match entity {
            Entity::Node(node) => 2 * node,
            Entity::Gateway(gateway) => 2 * (self.topology.nodes.len() + gateway),
        }
    }

    fn down(&self, entity: Entity) -> usize {
        self.up(entity) + 1
    }

    fn between(&self, from: u16, to: u16) -> usize {
        let first = 2 * (self.topology.nodes.len() + self.topology.gateways.len());
        first + usize::from(from) * self.topology.regions() + usize::from(to)
    }

    /// Returns the first of the lines that nodes asked for.
    fn first_own(&self) -> usize {
        self.lines.len() - self.owners.len()
    }

    /// Puts a packet on a line.
    fn offer(&mut self, now_ns: u64, line: usize, mut flight: Flight) {
        if flight.offload.segment.is_some() && self.lines[line].link.config().is_per_packet() {
            for flight in self.split(flight) {
                self.offer(now_ns, line, flight);
            }
            return;
        }
        let len = flight.bytes.len();
        let (packets, bytes) = flight.on_the_wire();
        let held = &mut self.lines[line];
        held.stats.offered += packets;
        held.stats.offered_bytes += bytes;
        if held.is_open() {
            held.stats.delivered += packets;
            held.stats.delivered_bytes += bytes;
            return self.leave(now_ns, line, flight);
        }
        let (at_ns, copy_at_ns, turned_bit) = match held.link.offer(now_ns, len) {
            Fate::Lost => {
                held.stats.lost += packets;
                return self.recycle(flight.bytes);
            }
            Fate::Overflow => {
                held.stats.overflowed += 1;
                return self.recycle(flight.bytes);
            }
            Fate::Arrives { at_ns, copy_at_ns, turned_bit } => (at_ns, copy_at_ns, turned_bit),
        };
        if let Some(bit) = turned_bit {
            held.stats.corrupted += 1;
            // Who is to complete a checksum would make the wrong bit right.
            flight.offload.complete(&mut flight.bytes, &mut flight.header);
            turn(&mut flight.bytes, bit);
            match Header::parse(&flight.bytes) {
                Ok(header) => {
                    flight.header = header;
                    flight.bytes.truncate(header.len);
                }
                Err(_) => {
                    self.stats.malformed += 1;
                    return self.recycle(flight.bytes);
                }
            }
        }
        if let Some(copy_at_ns) = copy_at_ns {
            let copy = self.copy(&flight);
            self.lines[line].stats.duplicated += 1;
            self.hold(now_ns, at_ns, line, flight);
            self.hold(now_ns, copy_at_ns, line, copy);
        } else {
            self.hold(now_ns, at_ns, line, flight);
        }
    }

    /// Cuts a packet into those on the wire.
    fn split(&mut self, flight: Flight) -> Vec<Flight> {
        let Flight { bytes, header, offload, origin } = flight;
        let parts = offload.split(&bytes, &header, |size| self.buffer(size));
        self.recycle(bytes);
        let offload = Offload { segment: None, ..offload };
        let parts = parts.into_iter().filter_map(|bytes| {
            let header = Header { partial: header.partial, ..Header::parse(&bytes).ok()? };
            Some(Flight { bytes, header, offload, origin })
        });
        parts.collect()
    }

    fn copy(&mut self, flight: &Flight) -> Flight {
        let mut bytes = self.buffer(flight.bytes.len());
        bytes.extend_from_slice(&flight.bytes);
        Flight { bytes, ..*flight }
    }

    fn hold(&mut self, from_ns: u64, at_ns: u64, line: usize, flight: Flight) {
        let len = flight.bytes.len() as u64;
        if self.held_bytes.saturating_add(len) > self.config.max_held_bytes {
            self.lines[line].stats.dropped_by_lab += flight.on_the_wire().0;
            return self.recycle(flight.bytes);
        }
        self.held_bytes += len;
        self.order += 1;
        if self.lines[line].push(Held { from_ns, at_ns, order: self.order, flight }) {
            self.heads.push(Reverse((at_ns, self.order, line)));
        }
    }
}

/// Returns whether it is what an IPv6 system says to its own link, whoever listens: from nobody or from an address of
/// that link alone, to all on it. There is no such link, and it is no lie about who sends it.
fn is_talk_of_a_link(header: &Header) -> bool {
    match (header.src, header.dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            (src.is_unspecified() || src.is_unicast_link_local()) && dst.segments()[0] & 0xff0f == 0xff02
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => false,
    }
}

/// Turns one bit.
fn turn(bytes: &mut [u8], bit: u64) {
    let bits = (bytes.len() as u64 * 8).max(1);
    let bit = bit % bits;
    if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1 << (bit % 8);
    }
}
