//! Between engines: the nodes of one network may be on several machines, each with an engine of the same topology.
//!
//! The cut is the link between two regions. The engine of the sender does all that happens before it, that of the
//! receiver the link itself and all that follows. So a packet is held where it arrives, for what is left of the link's
//! delay once it is there, and is late where nothing is left.

use super::line::Flight;
use super::{Engine, LinkId};
use crate::ip::{Header, Offload, Transport};
use crate::topology::{Entity, NodeId, Topology};

/// A packet between two engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// A node on the side where it goes: the receiver, or one behind the gateway that is the receiver.
    pub to: NodeId,
    /// The node that sent it; none where a router did.
    pub origin: Option<NodeId>,
    /// The packet, with nothing left to be done to it.
    pub bytes: Vec<u8>,
    /// When it came to the link between the regions, in nanoseconds of the engine that says so.
    pub from_ns: u64,
    /// Whether it came by way of a third machine.
    pub relayed: bool,
}

/// Version of the encoding, in the high half of the first byte, where packets of sockets have another.
const VERSION: u8 = 2;

/// How much longer than its delay a packet may take and be no more than late: as late as one packet in a hundred may be
/// before a result says so.
const GRACE_NS: u64 = 1_000_000;

/// Bytes before the packet.
const HEAD: usize = 17;

impl Away {
    /// Returns whether bytes are an encoded packet of this kind rather than one of sockets.
    pub fn is_encoded(bytes: &[u8]) -> bool {
        bytes.first().is_some_and(|first| first >> 4 == VERSION)
    }

    /// Returns the node that sent an encoded packet, or nothing where a router did; none where it is none.
    pub fn origin_of(encoded: &[u8]) -> Option<Option<NodeId>> {
        let head = encoded.first_chunk::<HEAD>().filter(|head| Away::is_encoded(&head[..]))?;
        let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(if number == u32::MAX { None } else { Some(NodeId(usize::try_from(number).ok()?)) })
    }

    /// Returns a node where an encoded packet goes; none where it is none.
    pub fn target_of(encoded: &[u8]) -> Option<NodeId> {
        let head = encoded.first_chunk::<HEAD>().filter(|head| Away::is_encoded(&head[..]))?;
        usize::try_from(u32::from_be_bytes([head[1], head[2], head[3], head[4]])).ok().map(NodeId)
    }

    /// Encodes it: version and whether it was relayed, number of a receiver, number of the sender or all ones, time, packet. Numbers are big-endian.
    pub fn encode(&self) -> Vec<u8> {
        let number = |node: NodeId| u32::try_from(node.0).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEAD + self.bytes.len());
        bytes.push(VERSION << 4 | u8::from(self.relayed));
        bytes.extend_from_slice(&number(self.to).to_be_bytes());
        bytes.extend_from_slice(&self.origin.map_or(u32::MAX, number).to_be_bytes());
        bytes.extend_from_slice(&self.from_ns.to_be_bytes());
        bytes.extend_from_slice(&self.bytes);
        bytes
    }

    /// Decodes it; none where it is none. Never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Option<Away> {
        let (head, packet) = bytes.split_first_chunk::<HEAD>()?;
        if !Away::is_encoded(head) || head[0] & 0x0e != 0 {
            return None;
        }
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let node = |number: u32| usize::try_from(number).ok().map(NodeId);
        let from_ns = u64::from(number(9)) << 32 | u64::from(number(13));
        let origin = Away::origin_of(bytes)?;
        let relayed = head[0] & 1 != 0;
        Some(Away { to: node(number(1))?, origin, bytes: packet.to_vec(), from_ns, relayed })
    }

    /// Writes into encoded bytes how they travel: whether over a relay, and their time by the receiver's clock. Nothing
    /// happens where they are no such packet.
    pub fn stamp(encoded: &mut [u8], relayed: bool, change: impl FnOnce(u64) -> u64) {
        if !Away::is_encoded(encoded) {
            return;
        }
        encoded[0] = VERSION << 4 | u8::from(relayed);
        if let Some(field) = encoded.get_mut(9..HEAD).and_then(|field| field.first_chunk_mut::<8>()) {
            *field = change(u64::from_be_bytes(*field)).to_be_bytes();
        }
    }
}

/// Finds for each gateway the first node behind it.
pub(super) fn behind(topology: &Topology) -> Vec<Option<usize>> {
    let mut behind = vec![None; topology.gateways.len()];
    for node in 0..topology.nodes.len() {
        for gateway in topology.gateways(NodeId(node)) {
            behind[gateway.0].get_or_insert(node);
        }
    }
    behind
}

impl Engine {
    /// Says whether another engine has a node. All nodes behind one gateway are to be on one side.
    pub fn set_away(&mut self, node: NodeId, away: bool) {
        if let Some(is_away) = self.away.get_mut(node.0) {
            *is_away = away;
        }
    }

    /// Returns the next packet for another engine.
    pub fn poll_away(&mut self) -> Option<Away> {
        self.leaving.pop_front()
    }

    /// Takes a packet from another engine, whose caller answers for it that `origin` is one of its nodes. `from_ns` is
    /// in nanoseconds of this engine. Everything else is checked: it may be any bytes.
    pub fn handle_away(&mut self, now_ns: u64, packet: Away) {
        self.handle_timeout(now_ns);
        self.stats.came_from_away += 1;
        let Away { origin, bytes, from_ns, relayed, .. } = packet;
        self.stats.relayed += u64::from(relayed);
        let Ok(header) = Header::parse(&bytes) else {
            self.stats.malformed += 1;
            return self.recycle(bytes);
        };
        let Some(sender) = self.sender_of(origin, &header) else {
            self.stats.spoofed += 1;
            return self.recycle(bytes);
        };
        // Not for us to pass on: the sender's engine knows where everybody is.
        let target = self.topology.realms[0].addresses.get(&header.dst).copied();
        let Some(target) = target.filter(|target| self.elsewhere(*target).is_none()) else {
            self.stats.unroutable += 1;
            return self.recycle(bytes);
        };
        let to = self.region_of(target);
        let from = sender.map_or(to, |sender| self.region_of(sender));
        let from_ns = from_ns.min(self.now_ns);
        let delay_ns = self.link(LinkId::Region { from, to }).map_or(0, |link| link.delay_ns);
        let overdue_ns = (self.now_ns - from_ns).saturating_sub(delay_ns);
        if delay_ns == 0 {
            // Nothing holds it, so that nobody else notes how late it is.
            self.lateness.note(overdue_ns);
        }
        if overdue_ns > GRACE_NS {
            self.stats.overdue += 1;
            self.stats.max_overdue_ns = self.stats.max_overdue_ns.max(overdue_ns);
        }
        let origin = origin.map(|node| node.0);
        let mut flight = Flight { bytes, header, offload: Offload::default(), origin };
        flight.bytes.truncate(header.len);
        self.offer(from_ns, self.between(from, to), flight);
        // What is overdue goes on at once.
        self.handle_timeout(now_ns);
    }

    /// Returns the node that stands for what has an address in the public realm, where another engine has it.
    pub(super) fn elsewhere(&self, target: Entity) -> Option<NodeId> {
        let node = match target {
            Entity::Node(node) => Some(node),
            Entity::Gateway(gateway) => self.behind[gateway],
        };
        node.filter(|node| self.away[*node]).map(NodeId)
    }

    /// Hands a packet to the engine that has a node.
    pub(super) fn send_away(&mut self, at_ns: u64, to: NodeId, mut flight: Flight) {
        if flight.offload.segment.is_some() {
            for flight in self.split(flight) {
                self.send_away(at_ns, to, flight);
            }
            return;
        }
        flight.offload.complete(&mut flight.bytes, &mut flight.header);
        self.stats.sent_away += 1;
        let origin = flight.origin.map(NodeId);
        self.leaving.push_back(Away { to, origin, bytes: flight.bytes, from_ns: at_ns, relayed: false });
    }

    /// Returns what stands in the public realm for the node that a packet claims to come from, and none where a router
    /// says something; nothing where the claim is false.
    fn sender_of(&self, origin: Option<NodeId>, header: &Header) -> Option<Option<Entity>> {
        let Some(origin) = origin else {
            let router = header.src == self.config.router_v4 || header.src == self.config.router_v6;
            return (router && header.transport == Transport::Error).then_some(None);
        };
        if !self.away.get(origin.0).copied().unwrap_or(false) {
            return None;
        }
        let outermost = self.topology.gateways(origin).last().map(|gateway| Entity::Gateway(gateway.0));
        let sender = outermost.unwrap_or(Entity::Node(origin.0));
        (self.topology.realms[0].addresses.get(&header.src) == Some(&sender)).then_some(Some(sender))
    }
}
