//! Mappings of a NAT, and who may use them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Dependence, NatConfig, Ports, Refusal};
use crate::draw::Draw;
use crate::ip::{ICMP, ICMPV6, TCP};

/// First port that is given out where the inner one is not kept.
const FIRST_PORT: u16 = 1024;

/// Flags of TCP.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Which way a packet goes, seen from the inner realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Out,
    In,
}

/// An endpoint of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) protocol: u8,
    pub(super) endpoint: SocketAddr,
}

/// What a mapping depends on: the inner endpoint, and of the remote one what the behaviour looks at.
type MappedKey = (Key, Option<IpAddr>, Option<u16>);

/// An inner endpoint with its external one.
#[derive(Clone, Debug)]
struct Mapping {
    inner: SocketAddr,
    external: SocketAddr,
    /// By remote endpoint.
    sessions: BTreeMap<SocketAddr, Session>,
    /// When the last session ends.
    until_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Session {
    until_ns: u64,
    tcp: Tcp,
}

/// How far a TCP connection is.
#[derive(Clone, Copy, Debug, Default)]
struct Tcp {
    /// Whether an end has sent its SYN: ours, theirs.
    syn: [bool; 2],
    /// Whether an end has sent its FIN.
    fin: [bool; 2],
    reset: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    config: NatConfig,
    external: Option<Ipv4Addr>,
    mappings: BTreeMap<MappedKey, Mapping>,
    /// Mappings by external endpoint.
    by_external: BTreeMap<Key, MappedKey>,
    /// Number of mappings at which those that have ended are cleared away.
    sweep_at: usize,
    seed: u64,
    /// Mappings made so far.
    made: u64,
    last_port: u16,
}

/// Fewest mappings that are worth a sweep.
const SWEEP_MIN: usize = 64;

impl Table {
    pub(super) fn new(config: NatConfig, external: Option<Ipv4Addr>, seed: u64) -> Table {
        Table {
            config,
            external,
            mappings: BTreeMap::new(),
            by_external: BTreeMap::new(),
            sweep_at: SWEEP_MIN,
            seed,
            made: 0,
            last_port: FIRST_PORT - 1,
        }
    }

    pub(super) fn clear(&mut self) {
        self.mappings.clear();
        self.by_external.clear();
    }

    pub(super) fn live(&self, now_ns: u64) -> usize {
        self.mappings.values().filter(|mapping| now_ns < mapping.until_ns).count()
    }

    /// Maps to another address from now on.
    pub(super) fn set_external(&mut self, external: Option<Ipv4Addr>) {
        self.external = external;
    }

    /// Notes a packet from an inner endpoint to a remote one; returns the external endpoint.
    pub(super) fn outbound(
        &mut self,
        now_ns: u64,
        inner: Key,
        remote: SocketAddr,
        flags: u8,
    ) -> Result<SocketAddr, Refusal> {
        let mapped = self.mapped(inner, remote);
        if self.mappings.get(&mapped).is_some_and(|mapping| mapping.until_ns <= now_ns) {
            self.remove(&mapped);
        }
        if !self.mappings.contains_key(&mapped) {
            self.make(now_ns, mapped)?;
        }
        let config = self.config;
        let mapping = self.mappings.get_mut(&mapped).ok_or(Refusal::Exhausted)?;
        note(&config, mapping, now_ns, inner.protocol, remote, flags, Direction::Out)?;
        Ok(mapping.external)
    }

    /// Notes a packet from a remote endpoint to an external one; returns the inner endpoint.
    pub(super) fn inbound(
        &mut self,
        now_ns: u64,
        external: Key,
        remote: SocketAddr,
        flags: u8,
    ) -> Result<SocketAddr, Refusal> {
        let config = self.config;
        let mapped = self.by_external.get(&external).ok_or(Refusal::Filtered)?;
        let mapping = self.mappings.get_mut(mapped).ok_or(Refusal::Filtered)?;
        if mapping.until_ns <= now_ns || !admits(&config, mapping, now_ns, remote) {
            return Err(Refusal::Filtered);
        }
        // A connection has to be known to live longer than its opening; of datagrams nothing is kept but the time.
        if external.protocol == TCP || mapping.sessions.contains_key(&remote) {
            note(&config, mapping, now_ns, external.protocol, remote, flags, Direction::In)?;
        } else if config.inbound_refresh {
            mapping.until_ns = mapping.until_ns.max(now_ns.saturating_add(timeout_ns(&config, external.protocol)));
        }
        Ok(mapping.inner)
    }

    /// Returns the external endpoint under which an inner one talks to a remote one.
    pub(super) fn external_of(&self, now_ns: u64, inner: Key, remote: SocketAddr) -> Option<SocketAddr> {
        let mapping = self.mappings.get(&self.mapped(inner, remote))?;
        (now_ns < mapping.until_ns).then_some(mapping.external)
    }

    /// Returns the inner endpoint that talks to a remote one under an external one.
    pub(super) fn inner_of(&self, now_ns: u64, external: Key, remote: SocketAddr) -> Option<SocketAddr> {
        let mapping = self.mappings.get(self.by_external.get(&external)?)?;
        let session = mapping.sessions.get(&remote)?;
        (now_ns < session.until_ns).then_some(mapping.inner)
    }

    fn mapped(&self, inner: Key, remote: SocketAddr) -> MappedKey {
        // Where nothing is translated, an inner endpoint is its own, one external endpoint.
        let translated = self.external.is_some() && inner.endpoint.is_ipv4();
        match if translated { self.config.mapping } else { Dependence::Endpoint } {
            Dependence::Endpoint => (inner, None, None),
            Dependence::Address => (inner, Some(remote.ip()), None),
            Dependence::AddressPort => (inner, Some(remote.ip()), Some(remote.port())),
        }
    }

    fn make(&mut self, now_ns: u64, mapped: MappedKey) -> Result<(), Refusal> {
        if self.mappings.len() >= self.sweep_at.min(self.config.max_mappings) {
            self.sweep(now_ns);
        }
        if self.mappings.len() >= self.config.max_mappings {
            return Err(Refusal::Exhausted);
        }
        let inner = mapped.0;
        let external = match self.external {
            Some(address) if inner.endpoint.is_ipv4() => {
                let taken = |table: &Table, port: u16| {
                    let endpoint = SocketAddr::new(address.into(), port);
                    table.by_external.contains_key(&Key { protocol: inner.protocol, endpoint })
                };
                let port = match self.free_port(inner.endpoint.port(), taken) {
                    Some(port) => port,
                    None => {
                        // Ports of mappings that have ended are free.
                        self.sweep(now_ns);
                        self.free_port(inner.endpoint.port(), taken).ok_or(Refusal::Exhausted)?
                    }
                };
                self.last_port = port;
                SocketAddr::new(address.into(), port)
            }
            _ => inner.endpoint,
        };
        self.made += 1;
        let key = Key { protocol: inner.protocol, endpoint: external };
        self.by_external.insert(key, mapped);
        let mapping = Mapping { inner: inner.endpoint, external, sessions: BTreeMap::new(), until_ns: 0 };
        self.mappings.insert(mapped, mapping);
        Ok(())
    }

    /// Returns the first free port, from where the behaviour begins to look.
    fn free_port(&self, inner: u16, taken: impl Fn(&Table, u16) -> bool) -> Option<u16> {
        let first = match self.config.ports {
            Ports::Preserve => inner,
            Ports::Sequential => self.last_port.checked_add(1).unwrap_or(FIRST_PORT),
            Ports::Random => {
                let choices = u64::from(u16::MAX - FIRST_PORT) + 1;
                let shift = Draw::new(self.seed, self.made).below(0, choices);
                FIRST_PORT + u16::try_from(shift).unwrap_or(0)
            }
        };
        let rest = (first.max(FIRST_PORT)..=u16::MAX).chain(FIRST_PORT..first.max(FIRST_PORT));
        std::iter::once(first).chain(rest).find(|port| !taken(self, *port))
    }

    fn remove(&mut self, mapped: &MappedKey) {
        if let Some(mapping) = self.mappings.remove(mapped) {
            self.by_external.remove(&Key { protocol: mapped.0.protocol, endpoint: mapping.external });
        }
    }

    /// Clears away what has ended. Each sweep pays for the mappings made since the last, so that making one costs the
    /// same on average however many there are.
    fn sweep(&mut self, now_ns: u64) {
        self.mappings.retain(|_, mapping| now_ns < mapping.until_ns);
        let mappings = &self.mappings;
        self.by_external.retain(|_, mapped| mappings.contains_key(mapped));
        self.sweep_at = (2 * self.mappings.len()).max(SWEEP_MIN);
    }
}

/// Returns whether a remote endpoint may send to a mapping.
fn admits(config: &NatConfig, mapping: &Mapping, now_ns: u64, remote: SocketAddr) -> bool {
    let lives = |session: &Session| now_ns < session.until_ns;
    match config.filtering {
        Dependence::Endpoint => true,
        Dependence::Address => {
            let (first, last) = (SocketAddr::new(remote.ip(), 0), SocketAddr::new(remote.ip(), u16::MAX));
            mapping.sessions.range(first..=last).any(|(_, session)| lives(session))
        }
        Dependence::AddressPort => mapping.sessions.get(&remote).is_some_and(lives),
    }
}

/// Notes a packet of a session and how long the session lives after it.
fn note(
    config: &NatConfig,
    mapping: &mut Mapping,
    now_ns: u64,
    protocol: u8,
    remote: SocketAddr,
    flags: u8,
    direction: Direction,
) -> Result<(), Refusal> {
    if mapping.sessions.len() >= config.max_mappings && !mapping.sessions.contains_key(&remote) {
        mapping.sessions.retain(|_, session| now_ns < session.until_ns);
        if mapping.sessions.len() >= config.max_mappings {
            return Err(Refusal::Exhausted);
        }
    }
    let session = mapping.sessions.entry(remote).or_default();
    if session.until_ns <= now_ns {
        session.tcp = Tcp::default();
    }
    let life_ns =
        if protocol == TCP { session.tcp.advance(config, flags, direction) } else { timeout_ns(config, protocol) };
    let until_ns = now_ns.saturating_add(life_ns);
    if direction == Direction::Out || config.inbound_refresh || protocol == TCP {
        session.until_ns = until_ns;
        mapping.until_ns = if until_ns >= mapping.until_ns {
            until_ns
        } else {
            // A connection that closes may have been what kept the mapping.
            mapping.sessions.values().map(|session| session.until_ns).max().unwrap_or(until_ns)
        };
    }
    Ok(())
}

fn timeout_ns(config: &NatConfig, protocol: u8) -> u64 {
    match protocol {
        ICMP | ICMPV6 => config.icmp_timeout_ns,
        TCP => config.tcp_transitory_timeout_ns,
        _ => config.udp_timeout_ns,
    }
}

impl Tcp {
    /// Notes a segment; returns how long the connection lives after it, in nanoseconds.
    fn advance(&mut self, config: &NatConfig, flags: u8, direction: Direction) -> u64 {
        let side = match direction {
            Direction::Out => 0,
            Direction::In => 1,
        };
        if flags & (SYN | ACK) == SYN && (self.reset || self.fin == [true; 2]) {
            // The endpoints use their ports again.
            *self = Tcp::default();
        }
        self.syn[side] |= flags & SYN != 0;
        self.fin[side] |= flags & FIN != 0;
        self.reset |= flags & RST != 0;
        let established = self.syn == [true; 2] && self.fin != [true; 2] && !self.reset;
        if established { config.tcp_timeout_ns } else { config.tcp_transitory_timeout_ns }
    }
}
