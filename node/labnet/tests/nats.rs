//! NATs behave as RFC 4787 names it: rows of facts, and random schedules against a model that searches a list.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use iptl_labnet::{Dependence, Header, IcmpError, Nat, NatConfig, Ports, Refusal, fragments};

use crate::bytes::{ICMP, TCP, UDP, assert_sound, at, ends, packet, parts, seal};
use crate::rng::Rng;

const SECOND: u64 = 1_000_000_000;
const ALL: [Dependence; 3] = [Dependence::Endpoint, Dependence::Address, Dependence::AddressPort];
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(5, 5, 5, 5);

fn nat(config: NatConfig) -> Nat {
    Nat::new(config, Some(OUTSIDE), 7)
}

/// Sends a packet out; returns its external endpoint.
pub(crate) fn out(
    nat: &mut Nat,
    now: u64,
    protocol: u8,
    src: SocketAddr,
    dst: SocketAddr,
    flags: u8,
) -> Result<SocketAddr, Refusal> {
    let mut bytes = packet(protocol, src, dst, flags, b"hello");
    let mut header = Header::parse(&bytes).unwrap();
    nat.outbound(now, &mut bytes, &mut header)?;
    assert_sound(&bytes);
    assert_eq!(Header::parse(&bytes), Ok(header), "the header is brought up to date");
    if protocol != ICMP {
        assert_eq!(ends(&bytes).1, dst, "the other end stays");
    }
    Ok(ends(&bytes).0)
}

/// Sends a packet in; returns who gets it.
pub(crate) fn back(
    nat: &mut Nat,
    now: u64,
    protocol: u8,
    src: SocketAddr,
    dst: SocketAddr,
    flags: u8,
) -> Result<SocketAddr, Refusal> {
    let mut bytes = packet(protocol, src, dst, flags, b"hello");
    if protocol == ICMP {
        bytes = packet(protocol, SocketAddr::new(src.ip(), dst.port()), dst, flags, b"hello");
    }
    let mut header = Header::parse(&bytes).unwrap();
    nat.inbound(now, &mut bytes, &mut header)?;
    assert_sound(&bytes);
    assert_eq!(Header::parse(&bytes), Ok(header), "the header is brought up to date");
    Ok(ends(&bytes).1)
}

#[test]
fn nine_behaviours_are_what_their_names_say() {
    let inner = at("192.168.1.2:4000");
    let (a, a2, b) = (at("8.0.0.1:10"), at("8.0.0.1:11"), at("8.0.0.2:10"));
    for mapping in ALL {
        for filtering in ALL {
            let mut nat = nat(NatConfig { mapping, filtering, ports: Ports::Random, ..NatConfig::default() });
            let external = out(&mut nat, 0, UDP, inner, a, 0).unwrap();
            assert_eq!(external.ip(), IpAddr::V4(OUTSIDE));
            let mut comes = |from| back(&mut nat, 1, UDP, from, external, 0) == Ok(inner);
            assert!(comes(a));
            assert_eq!(comes(a2), filtering != Dependence::AddressPort, "{mapping:?} {filtering:?}");
            assert_eq!(comes(b), filtering == Dependence::Endpoint, "{mapping:?} {filtering:?}");
            let to_a2 = out(&mut nat, 2, UDP, inner, a2, 0).unwrap();
            let to_b = out(&mut nat, 2, UDP, inner, b, 0).unwrap();
            assert_eq!(to_a2 == external, mapping != Dependence::AddressPort);
            assert_eq!(to_b == external, mapping == Dependence::Endpoint);
        }
    }
}

#[test]
fn ports_are_preserved_where_they_are_free_or_counted_or_drawn() {
    let (one, two) = (at("192.168.1.2:4000"), at("192.168.1.3:4000"));
    let remote = at("8.0.0.1:10");
    let port = |nat: &mut Nat, inner| out(nat, 0, UDP, inner, remote, 0).unwrap().port();
    let mut preserving = nat(NatConfig::default());
    assert_eq!((port(&mut preserving, one), port(&mut preserving, two)), (4000, 4001));
    let mut counting = nat(NatConfig { ports: Ports::Sequential, ..NatConfig::default() });
    assert_eq!((port(&mut counting, one), port(&mut counting, two)), (1024, 1025));
    let mut drawing = nat(NatConfig { ports: Ports::Random, ..NatConfig::default() });
    let drawn = (port(&mut drawing, one), port(&mut drawing, two));
    assert!(drawn.0 != 4000 && drawn.0 != drawn.1 && drawn.0 >= 1024 && drawn.1 >= 1024, "{drawn:?}");
}

#[test]
fn a_mapping_lives_as_long_as_its_timeout_and_inbound_packets_refresh_it_if_asked() {
    let (inner, remote) = (at("192.168.1.2:4000"), at("8.0.0.1:10"));
    for inbound_refresh in [false, true] {
        let mut nat = nat(NatConfig { udp_timeout_ns: 30 * SECOND, inbound_refresh, ..NatConfig::default() });
        let external = out(&mut nat, 0, UDP, inner, remote, 0).unwrap();
        assert_eq!(back(&mut nat, 29 * SECOND, UDP, remote, external, 0), Ok(inner));
        assert_eq!(back(&mut nat, 31 * SECOND, UDP, remote, external, 0).is_ok(), inbound_refresh);
        assert_eq!(back(&mut nat, 62 * SECOND, UDP, remote, external, 0), Err(Refusal::Filtered));
        assert_eq!(nat.mappings(62 * SECOND), 0);
    }
}

#[test]
fn an_established_connection_lives_longer_than_one_that_opens_or_has_closed() {
    const FIN_ACK: u8 = 17;
    const SYN: u8 = 2;
    const SYN_ACK: u8 = 18;
    const ACK: u8 = 16;
    const RST: u8 = 4;
    let (inner, remote) = (at("192.168.1.2:4000"), at("8.0.0.1:80"));
    // Segments (out?, flags), and whether the connection is still there ten minutes later.
    let rows: [(&[(bool, u8)], bool); 5] = [
        (&[(true, SYN)], false),
        (&[(true, SYN), (false, SYN_ACK), (true, ACK)], true),
        (&[(true, SYN), (false, SYN_ACK), (true, FIN_ACK)], true),
        (&[(true, SYN), (false, SYN_ACK), (true, FIN_ACK), (false, FIN_ACK)], false),
        (&[(true, SYN), (false, SYN_ACK), (false, RST)], false),
    ];
    for (segments, lives) in rows {
        let mut nat = nat(NatConfig::default());
        let mut external = SocketAddr::new(OUTSIDE.into(), 4000);
        for (outbound, flags) in segments {
            if *outbound {
                external = out(&mut nat, 0, TCP, inner, remote, *flags).unwrap();
            } else {
                assert_eq!(back(&mut nat, 0, TCP, remote, external, *flags), Ok(inner));
            }
        }
        assert_eq!(back(&mut nat, 600 * SECOND, TCP, remote, external, ACK).is_ok(), lives, "{segments:?}");
    }
}

#[test]
fn echoes_come_back_to_who_sent_them() {
    let mut nat = nat(NatConfig::default());
    let (one, two) = (at("192.168.1.2:77"), at("192.168.1.3:77"));
    let remote = at("8.0.0.1:0");
    let first = out(&mut nat, 0, ICMP, one, remote, 0).unwrap();
    let second = out(&mut nat, 0, ICMP, two, remote, 0).unwrap();
    assert_ne!(first, second);
    assert_eq!(back(&mut nat, 1, ICMP, remote, first, 0), Ok(one));
    assert_eq!(back(&mut nat, 1, ICMP, remote, second, 0), Ok(two));
    assert_eq!(back(&mut nat, 1, ICMP, at("8.0.0.2:0"), first, 0), Err(Refusal::Filtered));
}

#[test]
fn errors_are_translated_with_what_they_quote() {
    for protocol in [UDP, TCP, ICMP] {
        let mut nat = nat(NatConfig { ports: Ports::Sequential, ..NatConfig::default() });
        let (inner, remote) = (at("192.168.1.2:4000"), at("8.0.0.1:10"));
        let original = packet(protocol, inner, remote, 2, b"hello");
        let mut sent = original.clone();
        let mut header = Header::parse(&sent).unwrap();
        nat.outbound(0, &mut sent, &mut header).unwrap();
        let mut error = Vec::new();
        assert!(IcmpError::HostUnreachable.write(&sent, "9.9.9.9".parse().unwrap(), &mut error));
        assert_sound(&error);
        let mut header = Header::parse(&error).unwrap();
        nat.inbound(1, &mut error, &mut header).unwrap();
        assert_sound(&error);
        let (_, dst, _, message) = parts(&error);
        assert_eq!(dst, inner.ip());
        assert_eq!(message[8..], original, "the sender knows its packet again");

        // An error about a packet that nobody sent is kept out.
        let forged = packet(protocol, SocketAddr::new(OUTSIDE.into(), 9), remote, 2, b"hello");
        assert!(IcmpError::HostUnreachable.write(&forged, "9.9.9.9".parse().unwrap(), &mut error));
        let mut header = Header::parse(&error).unwrap();
        assert_eq!(nat.inbound(1, &mut error, &mut header), Err(Refusal::Filtered));
    }
}

#[test]
fn an_inner_host_complains_under_the_external_address() {
    let mut nat = nat(NatConfig { ports: Ports::Sequential, ..NatConfig::default() });
    let (inner, remote) = (at("192.168.1.2:4000"), at("8.0.0.1:10"));
    let external = out(&mut nat, 0, UDP, inner, remote, 0).unwrap();
    let came = packet(UDP, remote, external, 0, b"hello");
    let mut translated = came.clone();
    let mut header = Header::parse(&translated).unwrap();
    nat.inbound(1, &mut translated, &mut header).unwrap();
    let mut error = Vec::new();
    assert!(IcmpError::HostUnreachable.write(&translated, inner.ip(), &mut error));
    let mut header = Header::parse(&error).unwrap();
    nat.outbound(2, &mut error, &mut header).unwrap();
    assert_sound(&error);
    let (src, _, _, message) = parts(&error);
    assert_eq!((src, &message[8..]), (external.ip(), &came[..]));
}

#[test]
fn fragments_follow_the_first_and_join_to_a_sound_packet() {
    let mut nat = nat(NatConfig { ports: Ports::Sequential, ..NatConfig::default() });
    let (inner, remote) = (at("192.168.1.2:4000"), at("8.0.0.1:10"));
    let whole = packet(UDP, inner, remote, 0, &[7; 3_000]);
    let parts = fragments(&whole, &Header::parse(&whole).unwrap(), 1_000).unwrap();
    let mut joined = Vec::new();
    for part in &parts {
        let mut part = part.clone();
        let mut header = Header::parse(&part).unwrap();
        nat.outbound(0, &mut part, &mut header).unwrap();
        joined.extend_from_slice(&part[if joined.is_empty() { 0 } else { 20 }..]);
    }
    joined[2..4].copy_from_slice(&whole[2..4]);
    joined[6..8].fill(0);
    seal(&mut joined);
    assert_sound(&joined);
    assert_eq!(ends(&joined).0, SocketAddr::new(OUTSIDE.into(), 1024));

    // A later fragment whose first has not come is nobody's.
    let mut stray = parts[1].clone();
    stray[4] ^= 1;
    seal(&mut stray);
    let mut header = Header::parse(&stray).unwrap();
    assert_eq!(nat.outbound(0, &mut stray, &mut header), Err(Refusal::Untranslatable));
}

#[test]
fn a_firewall_translates_nothing_and_lets_in_only_what_was_asked_for() {
    let mut wall = Nat::new(NatConfig { mapping: Dependence::AddressPort, ..NatConfig::default() }, None, 1);
    for (inner, remote, other) in
        [("10.0.0.5:4000", "8.0.0.1:10", "8.0.0.2:10"), ("[fd00::5]:4000", "[fd00::9]:10", "[fd00::8]:10")]
    {
        let (inner, remote, other) = (at(inner), at(remote), at(other));
        assert_eq!(back(&mut wall, 0, UDP, remote, inner, 0), Err(Refusal::Filtered));
        assert_eq!(out(&mut wall, 1, UDP, inner, remote, 0), Ok(inner));
        assert_eq!(out(&mut wall, 1, UDP, inner, at(&remote.to_string()), 0), Ok(inner));
        assert_eq!(back(&mut wall, 2, UDP, remote, inner, 0), Ok(inner));
        assert_eq!(back(&mut wall, 2, UDP, other, inner, 0), Err(Refusal::Filtered));
    }
}

#[test]
fn a_flood_of_endpoints_is_refused_at_the_limit_and_ends_with_its_timeout() {
    let mut nat = nat(NatConfig { max_mappings: 100, ..NatConfig::default() });
    let remote = at("8.0.0.1:10");
    let inner = |port| SocketAddr::new("192.168.1.2".parse().unwrap(), port);
    for port in 1..=100 {
        out(&mut nat, 0, UDP, inner(port), remote, 0).unwrap();
    }
    assert_eq!(out(&mut nat, 1, UDP, inner(101), remote, 0), Err(Refusal::Exhausted));
    assert!(out(&mut nat, 121 * SECOND, UDP, inner(101), remote, 0).is_ok());
    assert_eq!(nat.mappings(121 * SECOND), 1);
}

/// The model: every packet that ever left, searched from the start.
struct Model {
    config: NatConfig,
    /// When, who, to whom, as whom.
    left: Vec<(u64, SocketAddr, SocketAddr, SocketAddr)>,
}

impl Model {
    fn same(dependence: Dependence, a: SocketAddr, b: SocketAddr) -> bool {
        match dependence {
            Dependence::Endpoint => true,
            Dependence::Address => a.ip() == b.ip(),
            Dependence::AddressPort => a == b,
        }
    }

    fn lives(&self, left: u64, now: u64) -> bool {
        now < left + self.config.udp_timeout_ns
    }

    /// Returns the external endpoint that a packet must have; none where it may be any that is free.
    fn expected(&self, now: u64, src: SocketAddr, dst: SocketAddr) -> Option<SocketAddr> {
        let same = |&&(left, inner, remote, _): &&(u64, SocketAddr, SocketAddr, SocketAddr)| {
            inner == src && Model::same(self.config.mapping, remote, dst) && self.lives(left, now)
        };
        self.left.iter().rev().find(same).map(|row| row.3)
    }

    fn gets(&self, now: u64, src: SocketAddr, external: SocketAddr) -> Option<SocketAddr> {
        let admits = |&&(left, _, remote, held): &&(u64, SocketAddr, SocketAddr, SocketAddr)| {
            held == external
                && self.lives(left, now)
                && (self.config.filtering == Dependence::Endpoint || Model::same(self.config.filtering, remote, src))
        };
        self.left.iter().rev().find(admits).map(|row| row.1)
    }

    fn is_taken(&self, now: u64, external: SocketAddr) -> bool {
        self.left.iter().any(|(left, _, _, held)| *held == external && self.lives(*left, now))
    }
}

#[test]
fn random_schedules_agree_with_a_model_that_searches_a_list() {
    for seed in 0..90 {
        let mut rng = Rng(seed);
        let ports = [Ports::Preserve, Ports::Sequential, Ports::Random][rng.below(3)];
        let config = NatConfig {
            mapping: ALL[seed as usize % 3],
            filtering: ALL[seed as usize / 3 % 3],
            ports,
            inbound_refresh: false,
            udp_timeout_ns: 30 * SECOND,
            ..NatConfig::default()
        };
        let mut nat = nat(config);
        let mut model = Model { config, left: Vec::new() };
        let mut now = 0;
        for step in 0..400 {
            now += rng.next() % (3 * SECOND);
            let remote = at(&format!("8.0.0.{}:{}", 1 + rng.below(3), 10 + rng.below(3)));
            if rng.below(2) == 0 {
                let inner = at(&format!("192.168.1.{}:{}", 2 + rng.below(3), 4000 + rng.below(2)));
                let external = out(&mut nat, now, UDP, inner, remote, 0).unwrap();
                match model.expected(now, inner, remote) {
                    Some(expected) => assert_eq!(external, expected, "seed {seed} step {step}"),
                    None => assert!(!model.is_taken(now, external), "seed {seed} step {step}: {external} is taken"),
                }
                model.left.push((now, inner, remote, external));
            } else {
                let known = (!model.left.is_empty()).then(|| model.left[rng.below(model.left.len())].3);
                let external = known.unwrap_or(at("5.5.5.5:4000"));
                let got = back(&mut nat, now, UDP, remote, external, 0).ok();
                assert_eq!(got, model.gets(now, remote, external), "seed {seed} step {step}");
            }
        }
    }
}
