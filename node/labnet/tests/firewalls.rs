//! Firewalls: what was asked for comes in for as long as they remember, to the nanosecond, and nothing else does.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use iptl_dag::model::{GatewayModel, IpModel, LinkModel};
use iptl_labnet::{Dependence, Nat, NatConfig, Refusal, Sockets, v6_of};

use crate::bytes::{ICMP, TCP, UDP, at};
use crate::hosts::{World, ip, network};
use crate::nats::{back, out};
use crate::rng::Rng;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

const FIN_ACK: u8 = 17;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const SYN_ACK: u8 = 18;

/// Lives that differ, so that none is taken for another.
const LIVES: NatConfig = NatConfig {
    mapping: Dependence::Endpoint,
    filtering: Dependence::AddressPort,
    ports: iptl_labnet::Ports::Preserve,
    hairpin: true,
    inbound_refresh: false,
    udp_timeout_ns: 20 * SECOND,
    tcp_timeout_ns: 700 * SECOND,
    tcp_transitory_timeout_ns: 50 * SECOND,
    icmp_timeout_ns: 30 * SECOND,
    max_mappings: 1_000,
};

/// Who is inside, whom it asks, somebody beside that one, and somebody else; of either family.
fn ends() -> [[SocketAddr; 4]; 2] {
    [
        ["10.0.0.5:4000", "8.0.0.1:10", "8.0.0.1:11", "8.0.0.2:10"].map(at),
        ["[fd00::5]:4000", "[fd00::9]:10", "[fd00::9]:11", "[fd00::8]:10"].map(at),
    ]
}

fn wall(config: NatConfig) -> Nat {
    Nat::new(config, None, 1)
}

/// Lets a packet out, which stays as it was.
#[track_caller]
fn asks(wall: &mut Nat, now: u64, protocol: u8, inner: SocketAddr, remote: SocketAddr, flags: u8) {
    assert_eq!(out(wall, now, protocol, inner, remote, flags), Ok(inner));
}

/// Tells whether a packet comes in; if it does, it is as it was.
fn comes_in(wall: &mut Nat, now: u64, protocol: u8, remote: SocketAddr, inner: SocketAddr, flags: u8) -> bool {
    match back(wall, now, protocol, remote, inner, flags) {
        Ok(to) => to == inner,
        Err(refusal) => {
            assert_eq!(refusal, Refusal::Filtered);
            false
        }
    }
}

/// Fails unless a packet comes in up to an instant and not from it on, were it the next one.
#[track_caller]
fn ends_at(wall: &Nat, end: u64, protocol: u8, remote: SocketAddr, inner: SocketAddr) {
    for (now, is_open) in [(end - 1, true), (end, false), (end + 1, false), (2 * end, false)] {
        let came = comes_in(&mut wall.clone(), now, protocol, remote, inner, ACK);
        assert_eq!(came, is_open, "protocol {protocol} from {remote} at {now} of {end}");
    }
}

#[test]
fn answers_come_in_for_exactly_the_life_of_what_was_last_sent_out() {
    for inbound_refresh in [false, true] {
        for [inner, remote, _, _] in ends() {
            for (protocol, life) in [(UDP, 20 * SECOND), (TCP, 50 * SECOND), (ICMP, 30 * SECOND)] {
                if protocol == ICMP && inner.is_ipv6() {
                    continue;
                }
                let mut wall = wall(NatConfig { inbound_refresh, ..LIVES });
                assert!(!comes_in(&mut wall, 0, protocol, remote, inner, SYN), "nobody has asked");
                asks(&mut wall, 7, protocol, inner, remote, SYN);
                ends_at(&wall, 7 + life, protocol, remote, inner);
                // It counts from the last one, also from one that comes in the very last moment.
                for again in [9, 7 + life - 1] {
                    let mut wall = wall.clone();
                    asks(&mut wall, again, protocol, inner, remote, SYN);
                    ends_at(&wall, again + life, protocol, remote, inner);
                }
                // And anew after the end.
                asks(&mut wall, 90 * life, protocol, inner, remote, SYN);
                ends_at(&wall, 91 * life, protocol, remote, inner);
            }
        }
    }
}

#[test]
fn answers_keep_it_open_only_where_packets_from_outside_count() {
    const LIFE: u64 = LIVES.udp_timeout_ns;
    for [inner, remote, _, other] in ends() {
        let mut silent = wall(LIVES);
        asks(&mut silent, 0, UDP, inner, remote, 0);
        for part in 1..10 {
            assert!(comes_in(&mut silent, part * LIFE / 10, UDP, remote, inner, 0));
        }
        ends_at(&silent, LIFE, UDP, remote, inner);

        let mut refreshed = wall(NatConfig { inbound_refresh: true, ..LIVES });
        asks(&mut refreshed, 0, UDP, inner, remote, 0);
        for round in 1..10 {
            // Whoever was not asked is refused, and changes nothing.
            assert!(!comes_in(&mut refreshed, round * (LIFE - 1), UDP, other, inner, 0));
            assert!(comes_in(&mut refreshed, round * (LIFE - 1), UDP, remote, inner, 0));
        }
        let last = 9 * (LIFE - 1);
        assert!(!comes_in(&mut refreshed, last + LIFE / 2, UDP, other, inner, 0));
        ends_at(&refreshed, last + LIFE, UDP, remote, inner);
    }
}

#[test]
fn each_that_was_asked_has_a_time_of_its_own_as_far_as_the_filter_tells_them_apart() {
    use Dependence::{Address, AddressPort, Endpoint};
    const LIFE: u64 = LIVES.udp_timeout_ns;
    const LATER: u64 = 15 * SECOND;
    for [inner, remote, beside, other] in ends() {
        // When each is shut out: the first asked, one of its address that was asked later, and one that nobody asked.
        for (filtering, ends) in [
            (AddressPort, [LIFE, LATER + LIFE, 0]),
            (Address, [LATER + LIFE, LATER + LIFE, 0]),
            (Endpoint, [LATER + LIFE, LATER + LIFE, LATER + LIFE]),
        ] {
            let mut wall = wall(NatConfig { filtering, ..LIVES });
            asks(&mut wall, 0, UDP, inner, remote, 0);
            asks(&mut wall, LATER, UDP, inner, beside, 0);
            for (from, end) in [remote, beside, other].into_iter().zip(ends) {
                match end {
                    0 => assert!(!comes_in(&mut wall, LATER, UDP, from, inner, 0), "{filtering:?} {from}"),
                    end => ends_at(&wall, end, UDP, from, inner),
                }
            }
            // What is open for one endpoint inside is open for no other, and not for another protocol.
            let another = SocketAddr::new(inner.ip(), inner.port() + 1);
            assert!(!comes_in(&mut wall, LATER, UDP, remote, another, 0));
            assert!(!comes_in(&mut wall, LATER, TCP, remote, inner, SYN));
        }
    }
}

#[test]
fn a_connection_has_the_time_of_what_its_ends_have_said() {
    const OPENING: u64 = LIVES.tcp_transitory_timeout_ns;
    const OPEN: u64 = LIVES.tcp_timeout_ns;
    const OPENED: [(bool, u8); 3] = [(true, SYN), (false, SYN_ACK), (true, ACK)];
    // What is said further (out?, flags), each a second after the one before, and how long it is open after the last.
    let rows: [(&[(bool, u8)], u64); 10] = [
        (&[(true, SYN)], OPENING),
        (&[(true, SYN), (false, SYN_ACK)], OPEN),
        (&[(true, SYN), (false, SYN)], OPEN),
        (&[OPENED[0], OPENED[1], OPENED[2], (true, FIN_ACK)], OPEN),
        (&[OPENED[0], OPENED[1], OPENED[2], (false, FIN_ACK), (true, ACK)], OPEN),
        (&[OPENED[0], OPENED[1], OPENED[2], (true, FIN_ACK), (false, FIN_ACK)], OPENING),
        (&[OPENED[0], OPENED[1], OPENED[2], (false, RST)], OPENING),
        (&[OPENED[0], OPENED[1], OPENED[2], (true, RST), (false, ACK)], OPENING),
        // The same ports again, at once.
        (&[OPENED[0], OPENED[1], (true, FIN_ACK), (false, FIN_ACK), (true, SYN), (false, SYN_ACK)], OPEN),
        // One whose beginning it has not seen: it was restarted in between.
        (&[(true, ACK), (false, ACK), (true, ACK)], OPENING),
    ];
    // Segments from outside count whatever is said of datagrams: both ends know that there is a connection.
    for inbound_refresh in [false, true] {
        for [inner, remote, beside, _] in ends() {
            for (said, life) in rows {
                let mut wall = wall(NatConfig { inbound_refresh, ..LIVES });
                assert!(!comes_in(&mut wall, 0, TCP, remote, inner, SYN), "nobody inside has opened one");
                let mut now = 0;
                for (is_out, flags) in said {
                    now += SECOND;
                    match is_out {
                        true => asks(&mut wall, now, TCP, inner, remote, *flags),
                        false => assert!(comes_in(&mut wall, now, TCP, remote, inner, *flags), "{said:?}"),
                    }
                    assert!(!comes_in(&mut wall, now, TCP, beside, inner, SYN), "{said:?}");
                }
                ends_at(&wall, now + life, TCP, remote, inner);
            }
        }
    }
}

#[test]
fn what_a_restart_forgets_is_shut_at_once_until_somebody_inside_speaks_again() {
    for [inner, remote, _, _] in ends() {
        let mut wall = wall(LIVES);
        for protocol in [UDP, TCP] {
            asks(&mut wall, 0, protocol, inner, remote, SYN);
        }
        assert!(comes_in(&mut wall, 1, TCP, remote, inner, SYN_ACK) && comes_in(&mut wall, 1, UDP, remote, inner, 0));
        wall.forget();
        assert_eq!(wall.mappings(1), 0);
        for (protocol, life) in [(UDP, LIVES.udp_timeout_ns), (TCP, LIVES.tcp_transitory_timeout_ns)] {
            assert!(!comes_in(&mut wall, 2, protocol, remote, inner, ACK));
            asks(&mut wall, 3, protocol, inner, remote, ACK);
            ends_at(&wall, 3 + life, protocol, remote, inner);
        }
    }
}

#[test]
fn random_schedules_agree_with_a_list_of_what_was_sent() {
    for seed in 0..120 {
        let mut rng = Rng(seed);
        let [filtering, inbound_refresh] = [seed / 2 % 2, seed % 2];
        let filtering = [Dependence::Endpoint, Dependence::AddressPort][filtering as usize];
        let config = NatConfig { filtering, inbound_refresh: inbound_refresh == 1, ..LIVES };
        let mut wall = wall(config);
        // When, who inside, who outside: each lets in for a life.
        let mut counts: Vec<(u64, SocketAddr, SocketAddr)> = Vec::new();
        let (mut now, mut let_in, mut kept_out) = (0, 0, 0);
        for step in 0..400 {
            now += rng.next() % (4 * SECOND);
            let family = ends()[rng.below(2)];
            let inner = SocketAddr::new(family[0].ip(), 4000 + rng.below(2) as u16);
            let remote = family[1 + rng.below(3)];
            if rng.below(6) == 0 {
                asks(&mut wall, now, UDP, inner, remote, 0);
                counts.push((now, inner, remote));
                continue;
            }
            let lets = |(then, whose, whom): &(u64, SocketAddr, SocketAddr)| {
                let is_meant = filtering == Dependence::Endpoint || *whom == remote;
                *whose == inner && is_meant && now < then + config.udp_timeout_ns
            };
            let expected = counts.iter().any(lets);
            assert_eq!(comes_in(&mut wall, now, UDP, remote, inner, 0), expected, "seed {seed} step {step}");
            if expected && config.inbound_refresh {
                counts.push((now, inner, remote));
            }
            let_in += usize::from(expected);
            kept_out += usize::from(!expected);
        }
        assert!(let_in > 10 && kept_out > 10, "seed {seed}: {let_in} came in, {kept_out} did not");
    }
}

#[test]
fn a_described_firewall_counts_by_when_packets_pass_it() {
    let gateway = GatewayModel { translates: false, udp_timeout_ms: 20_000, ..GatewayModel::default() };
    // How long before the end of its time an answer comes to it, in nanoseconds.
    for (family, before, comes) in
        [(IpModel::Ipv4, 1, true), (IpModel::Ipv4, 0, false), (IpModel::Ipv6, 1, true), (IpModel::Ipv6, 0, false)]
    {
        let mut described = network(10_000, LinkModel { delay_us: 3_000, ..LinkModel::default() });
        described.ip = family;
        described.groups.get_mut("n").unwrap().sites[0].gateways = vec![gateway];
        let mut world = World::new(&described);
        let addr = |host, port| match family {
            IpModel::Ipv6 => SocketAddr::from((v6_of(ip(host)), port)),
            IpModel::Ipv4 | IpModel::Both => SocketAddr::from((ip(host), port)),
        };
        let any = |port| match family {
            IpModel::Ipv6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            IpModel::Ipv4 | IpModel::Both => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        };
        let (inside, outside) = (world.udp_on(4, any(9)), world.udp_on(1, any(9)));
        // Nobody is let in before.
        world.send(outside, addr(4, 9), b"early");
        world.run_to(SECOND);
        assert!(!world.hosts.is_readable(inside));
        world.send(inside, addr(1, 9), b"asks");
        assert!(world.until(2 * SECOND, |hosts| hosts.is_readable(outside)));
        assert_eq!(world.now_ns, SECOND + 13 * MS, "its link up, and the way");
        // The answer is as long on its way to the firewall, where the question was at once.
        world.run_to(SECOND + 20 * SECOND - 13 * MS - before);
        world.send(outside, addr(4, 9), b"answer");
        assert_eq!(world.until(100 * SECOND, |hosts| hosts.is_readable(inside)), comes, "{family:?} {before}");
    }
}
