//! Gateways between realms: address translation after RFC 4787, 5382 and 5508, and stateful firewalls.
//!
//! A [`Nat`] is handed the packets that leave its inner realm ([`outbound`](Nat::outbound)) and those that come to its
//! address ([`inbound`](Nat::inbound)), and changes them in place or refuses them. Time is an input. Where it has no
//! external address for a packet's family it translates nothing and is a firewall: the same table decides what may
//! come in, each inner endpoint mapped to itself.
//!
//! `table.rs` has mappings and their sessions; this file has packets: transports, errors and fragments.

mod table;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::ip::{End, Fragment, Header, ICMP, ICMPV6, TCP, Transport, UDP, embedded, finish_icmp, set_end};

use table::{Direction, Key, Table};

/// First fragments whose translation is kept for the fragments that follow.
const MAX_FRAGMENTED: usize = 256;

/// How long it is kept, in nanoseconds: as long as a receiver waits for the rest (RFC 791 and 8200 say up to 60 s).
const FRAGMENTED_NS: u64 = 30 * SECOND_NS;

const SECOND_NS: u64 = 1_000_000_000;

/// What of the remote endpoint a NAT's behaviour depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// Nothing: endpoint-independent.
    Endpoint,
    /// Its address.
    Address,
    /// Its address and port.
    AddressPort,
}

/// Which external port a mapping gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The inner one if it is free, else the next that is.
    Preserve,
    /// The one after that of the last mapping.
    Sequential,
    /// Any, drawn from the NAT's seed.
    Random,
}

/// Behaviour of a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatConfig {
    /// When an inner endpoint keeps its mapping.
    pub mapping: Dependence,
    /// Who may send to a mapping.
    pub filtering: Dependence,
    /// Which external ports there are.
    pub ports: Ports,
    /// Whether inner hosts reach each other by the external address.
    pub hairpin: bool,
    /// Whether packets from outside keep a mapping alive; those from inside always do.
    pub inbound_refresh: bool,
    /// Life of a UDP mapping after its last packet, in nanoseconds.
    pub udp_timeout_ns: u64,
    /// Life of an established TCP connection after its last packet, in nanoseconds.
    pub tcp_timeout_ns: u64,
    /// Life of a TCP connection that is being opened or closed, in nanoseconds.
    pub tcp_transitory_timeout_ns: u64,
    /// Life of a mapping for echoes, in nanoseconds.
    pub icmp_timeout_ns: u64,
    /// Most mappings at once; also the most sessions of one mapping.
    pub max_mappings: usize,
}

impl Default for NatConfig {
    /// A port-restricted cone with the timeouts that the RFCs ask for.
    fn default() -> NatConfig {
        NatConfig {
            mapping: Dependence::Endpoint,
            filtering: Dependence::AddressPort,
            ports: Ports::Preserve,
            hairpin: true,
            inbound_refresh: true,
            udp_timeout_ns: 120 * SECOND_NS,
            tcp_timeout_ns: 7_440 * SECOND_NS,
            tcp_transitory_timeout_ns: 240 * SECOND_NS,
            icmp_timeout_ns: 60 * SECOND_NS,
            max_mappings: 32_768,
        }
    }
}

/// Why a gateway does not let a packet pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It comes from outside, and nothing inside has asked for it.
    Filtered,
    /// There are no more ports, mappings or sessions.
    Exhausted,
    /// It is of a protocol without ports, or a fragment whose first was not seen.
    Untranslatable,
}

/// A fragmented packet on its way through: sender, receiver, protocol, number.
type FragmentKey = (IpAddr, IpAddr, u8, u32);

/// A NAT or a firewall.
#[derive(Clone, Debug)]
pub struct Nat {
    config: NatConfig,
    external: Option<Ipv4Addr>,
    table: Table,
    /// What the first fragment of a packet became, and until when the others follow.
    fragmented: BTreeMap<FragmentKey, (SocketAddr, u64)>,
}

impl Nat {
    /// Makes a NAT with this external address, or a firewall where there is none.
    pub fn new(config: NatConfig, external: Option<Ipv4Addr>, seed: u64) -> Nat {
        Nat { config, external, table: Table::new(config, external, seed), fragmented: BTreeMap::new() }
    }

    /// Returns its behaviour.
    pub fn config(&self) -> &NatConfig {
        &self.config
    }

    /// Returns its external address.
    pub fn external(&self) -> Option<Ipv4Addr> {
        self.external
    }

    /// Returns how many mappings live at a time.
    pub fn mappings(&self, now_ns: u64) -> usize {
        self.table.live(now_ns)
    }

    /// Forgets all mappings, as a gateway does that is restarted.
    pub fn forget(&mut self) {
        self.table.clear();
        self.fragmented.clear();
    }

    /// Gives it another external address, and forgets all mappings: theirs was the old one.
    pub(crate) fn set_external(&mut self, external: Option<Ipv4Addr>) {
        self.forget();
        self.external = external;
        self.table.set_external(external);
    }

    /// Translates a packet that leaves the inner realm. The header is that of the bytes, before and after.
    ///
    /// # Errors
    ///
    /// Returns why it may not pass; the packet is then unchanged.
    pub fn outbound(&mut self, now_ns: u64, bytes: &mut [u8], header: &mut Header) -> Result<(), Refusal> {
        if header.transport == Transport::Error {
            return self.outbound_error(now_ns, bytes, header);
        }
        if let Some(to) = self.follow_fragment(now_ns, header)? {
            set_end(bytes, header, End::Src, to);
            return Ok(());
        }
        let (key, remote, flags) = endpoints(header, Direction::Out).ok_or(Refusal::Untranslatable)?;
        let external = self.table.outbound(now_ns, key, remote, flags)?;
        self.remember_fragment(now_ns, header, external);
        if external != key.endpoint {
            set_end(bytes, header, End::Src, external);
        }
        Ok(())
    }

    /// Translates a packet that comes to the external address, or to an inner one that is not translated.
    ///
    /// # Errors
    ///
    /// Returns why it may not pass; the packet is then unchanged.
    pub fn inbound(&mut self, now_ns: u64, bytes: &mut [u8], header: &mut Header) -> Result<(), Refusal> {
        if header.transport == Transport::Error {
            return self.inbound_error(now_ns, bytes, header);
        }
        if let Some(to) = self.follow_fragment(now_ns, header)? {
            set_end(bytes, header, End::Dst, to);
            return Ok(());
        }
        let (key, remote, flags) = endpoints(header, Direction::In).ok_or(Refusal::Filtered)?;
        let inner = self.table.inbound(now_ns, key, remote, flags)?;
        self.remember_fragment(now_ns, header, inner);
        if inner != key.endpoint {
            set_end(bytes, header, End::Dst, inner);
        }
        Ok(())
    }

    /// An inner host complains about a packet that came to it: what it quotes becomes what was sent to us.
    fn outbound_error(&self, now_ns: u64, bytes: &mut [u8], header: &mut Header) -> Result<(), Refusal> {
        let at = embedded(header).ok_or(Refusal::Untranslatable)?;
        let quoted_bytes = bytes.get_mut(at..).ok_or(Refusal::Untranslatable)?;
        let mut quoted = Header::parse_start(quoted_bytes).map_err(|_| Refusal::Untranslatable)?;
        let (key, remote, _) = endpoints(&quoted, Direction::In).ok_or(Refusal::Untranslatable)?;
        let external = self.table.external_of(now_ns, key, remote).ok_or(Refusal::Untranslatable)?;
        set_end(quoted_bytes, &mut quoted, End::Dst, external);
        set_end(bytes, header, End::Src, SocketAddr::new(external.ip(), 0));
        finish_icmp(bytes, header);
        Ok(())
    }

    /// Somebody outside complains about a packet that we sent: what is quoted becomes what the inner host sent.
    fn inbound_error(&self, now_ns: u64, bytes: &mut [u8], header: &mut Header) -> Result<(), Refusal> {
        let at = embedded(header).ok_or(Refusal::Filtered)?;
        let quoted_bytes = bytes.get_mut(at..).ok_or(Refusal::Filtered)?;
        let mut quoted = Header::parse_start(quoted_bytes).map_err(|_| Refusal::Filtered)?;
        let (key, remote, _) = endpoints(&quoted, Direction::Out).ok_or(Refusal::Filtered)?;
        // The error goes to who sent what it quotes, or it is forged.
        if quoted.src != header.dst {
            return Err(Refusal::Filtered);
        }
        let inner = self.table.inner_of(now_ns, key, remote).ok_or(Refusal::Filtered)?;
        set_end(quoted_bytes, &mut quoted, End::Src, inner);
        set_end(bytes, header, End::Dst, SocketAddr::new(inner.ip(), 0));
        finish_icmp(bytes, header);
        Ok(())
    }

    /// Returns where a fragment goes that is not the first; none where the packet has its own ports.
    fn follow_fragment(&self, now_ns: u64, header: &Header) -> Result<Option<SocketAddr>, Refusal> {
        match (fragment_key(header), header.fragment) {
            (Some(key), Some(Fragment { offset: 1.., .. })) => {
                let known = self.fragmented.get(&key).filter(|(_, until_ns)| now_ns < *until_ns);
                known.map(|(to, _)| Some(*to)).ok_or(Refusal::Untranslatable)
            }
            _ => Ok(None),
        }
    }

    fn remember_fragment(&mut self, now_ns: u64, header: &Header, to: SocketAddr) {
        let Some(key) = fragment_key(header) else { return };
        if self.fragmented.len() >= MAX_FRAGMENTED {
            self.fragmented.retain(|_, (_, until_ns)| now_ns < *until_ns);
        }
        if self.fragmented.len() >= MAX_FRAGMENTED {
            // The one that would be forgotten first makes room.
            let oldest = self.fragmented.iter().min_by_key(|(_, (_, until_ns))| *until_ns).map(|(key, _)| *key);
            oldest.map(|key| self.fragmented.remove(&key));
        }
        self.fragmented.insert(key, (to, now_ns.saturating_add(FRAGMENTED_NS)));
    }
}

fn fragment_key(header: &Header) -> Option<FragmentKey> {
    header.fragment.map(|fragment| (header.src, header.dst, header.protocol, fragment.id))
}

/// Returns a packet's endpoint on our side and that of the other, with the flags of TCP; none where the protocol has
/// no ports.
fn endpoints(header: &Header, direction: Direction) -> Option<(Key, SocketAddr, u8)> {
    let (src, dst, flags) = match header.transport {
        Transport::Udp { src, dst } => (src, dst, 0),
        Transport::Tcp { src, dst, flags } => (src, dst, flags),
        Transport::Echo { id } => (id, id, 0),
        Transport::Error | Transport::Other => return None,
    };
    let (src, dst) = (SocketAddr::new(header.src, src), SocketAddr::new(header.dst, dst));
    let (endpoint, mut remote) = match direction {
        Direction::Out => (src, dst),
        Direction::In => (dst, src),
    };
    if matches!(header.transport, Transport::Echo { .. }) {
        // The identifier is ours alone.
        remote.set_port(0);
    }
    debug_assert!(matches!(header.protocol, UDP | TCP | ICMP | ICMPV6), "these are the protocols that have ports");
    Some((Key { protocol: header.protocol, endpoint }, remote, flags))
}
