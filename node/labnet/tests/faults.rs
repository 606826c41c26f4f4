//! Faults happen when a schedule says, to whom it says, the same ones everywhere.

use std::collections::BTreeMap;

use iptl_dag::model::{
    AccessClass, Fault, FaultSchedule, FaultTarget, GatewayModel, GroupNetwork, InstanceId, IpModel, LinkModel,
    NetworkModel, ScheduledFault, SiteShare,
};
use iptl_labnet::{Act, Compiled, Engine, EngineConfig, FaultError, Faults, LinkId, compile};

const MS: u64 = 1_000_000;

fn groups() -> BTreeMap<String, u32> {
    BTreeMap::from([("boot".to_owned(), 4), ("peers".to_owned(), 100)])
}

/// Two regions; peers have `dsl` and are behind NATs.
fn network() -> NetworkModel {
    let class = |delay_us| {
        let link = LinkModel { delay_us, ..LinkModel::default() };
        AccessClass { up: link, down: link, mtu: 1500 }
    };
    let group = |access: &str, gateways| GroupNetwork {
        regions: BTreeMap::new(),
        access: BTreeMap::from([(access.to_owned(), 1)]),
        sites: vec![SiteShare { weight: 1, gateways }],
        per: 1,
    };
    NetworkModel {
        ip: IpModel::default(),
        regions: vec!["east".into(), "west".into()],
        delays_us: vec![vec![1_000, 30_000], vec![30_000, 1_000]],
        access: BTreeMap::from([("dsl".to_owned(), class(5_000)), ("fibre".to_owned(), class(1_000))]),
        groups: BTreeMap::from([
            ("boot".to_owned(), group("fibre", Vec::new())),
            ("peers".to_owned(), group("dsl", vec![GatewayModel::default()])),
        ]),
    }
}

fn target(group: Option<&str>, region: Option<&str>, share_ppm: u32) -> FaultTarget {
    FaultTarget { group: group.map(str::to_owned), region: region.map(str::to_owned), share_ppm }
}

fn scheduled(at_ms: u64, every_ms: u64, fault: Fault) -> ScheduledFault {
    ScheduledFault { at_ms, every_ms, fault }
}

/// A run to which something is done.
struct World {
    faults: Faults,
    engine: Engine,
    compiled: Compiled,
}

fn faults(faults: Vec<ScheduledFault>) -> Result<Faults, FaultError> {
    let compiled = compile(&network(), &groups(), 7).unwrap();
    Faults::new(&[FaultSchedule { faults }], &network(), &compiled, &groups(), 7)
}

fn world(scheduled: Vec<ScheduledFault>) -> World {
    let compiled = compile(&network(), &groups(), 7).unwrap();
    let engine = Engine::new(compiled.topology.clone(), EngineConfig::default());
    World { faults: faults(scheduled).unwrap(), engine, compiled }
}

impl World {
    /// Returns what happens up to a time, in milliseconds from the start.
    fn until(&mut self, at_ms: u64) -> Vec<(u64, &'static str, Vec<InstanceId>)> {
        let mut happened = Vec::new();
        while let Some(next) = self.faults.advance(500 * MS, (500 + at_ms) * MS, &mut self.engine) {
            happened.push((next.due_ns / MS, next.what.name(), next.hit));
        }
        happened
    }
}

#[test]
fn faults_happen_in_the_order_of_their_times_and_again_where_they_are_to() {
    let crash = Fault::Crash {
        who: target(Some("peers"), None, 100_000),
        restart_ms: 250,
        files_lost: false,
        new_address: false,
    };
    let mut world = world(vec![scheduled(40, 0, Fault::Heal {}), scheduled(10, 15, crash)]);
    assert_eq!(world.faults.poll_timeout(), Some(10 * MS));
    assert!(world.until(9).is_empty());
    let times: Vec<(u64, &str)> = world.until(45).into_iter().map(|(at, what, _)| (at, what)).collect();
    assert_eq!(times, [(10, "crash"), (25, "crash"), (40, "heal"), (40, "crash")]);
    assert_eq!(world.faults.poll_timeout(), Some(55 * MS));
}

#[test]
fn what_is_to_be_done_to_instances_is_told() {
    let who = || target(Some("peers"), None, 10_000);
    let crash = Fault::Crash { who: who(), restart_ms: 250, files_lost: false, new_address: false };
    let pause = Fault::Pause { who: who(), for_ms: 1_500 };
    let mut world = world(vec![scheduled(10, 0, crash), scheduled(20, 0, pause), scheduled(30, 0, Fault::Heal {})]);
    let mut next = || world.faults.advance(0, 30 * MS, &mut world.engine).map(|next| (next.what.name(), next.act));
    assert_eq!(next(), Some(("crash", Some(Act::Crash { restart_ns: 250 * MS, files_lost: false }))));
    assert_eq!(next(), Some(("pause", Some(Act::Pause { for_ns: 1_500 * MS }))));
    assert_eq!((next(), next()), (Some(("heal", None)), None));
}

#[test]
fn a_share_hits_so_many_others_each_time_and_the_same_ones_everywhere() {
    let crash = || Fault::Crash {
        who: target(Some("peers"), None, 100_000),
        restart_ms: 250,
        files_lost: false,
        new_address: false,
    };
    let mut one = world(vec![scheduled(10, 10, crash())]);
    let mut other = world(vec![scheduled(10, 10, crash())]);
    let hits = one.until(40);
    assert_eq!(hits, other.until(40));
    assert!(hits.iter().all(|(_, _, hit)| hit.len() == 10 && hit.iter().all(|id| id.group == "peers")));
    assert!(hits.windows(2).all(|pair| pair[0].2 != pair[1].2), "others each time");
}

#[test]
fn a_region_is_where_its_gateways_stand() {
    let sides = vec![vec![target(None, Some("east"), 1_000_000)], vec![target(None, Some("west"), 1_000_000)]];
    let mut world = world(vec![scheduled(10, 0, Fault::Partition { sides })]);
    let (_, _, hit) = world.until(10).remove(0);
    assert_eq!(hit.len(), 104, "all are in one of the two");
}

#[test]
fn links_of_a_class_change_at_whoever_stands_in_the_public_realm() {
    let up = LinkModel { loss_ppm: 50_000, ..LinkModel::default() };
    let link = Fault::Link { access: "dsl".into(), up, down: LinkModel::default() };
    let mut world = world(vec![scheduled(10, 0, link)]);
    let (_, _, hit) = world.until(10).remove(0);
    assert_eq!(hit.len(), 100);
    let node = world.compiled.nodes[&hit[0]];
    let gateway = *world.compiled.topology.gateways(node).last().unwrap();
    assert_eq!(world.engine.link(LinkId::GatewayUp(gateway)).unwrap().loss_ppm, 50_000);
    assert_eq!(world.engine.link(LinkId::GatewayDown(gateway)).unwrap().delay_ns, 0);
    let boot = world.compiled.nodes[&InstanceId { group: "boot".into(), index: 0 }];
    assert_eq!(world.engine.link(LinkId::NodeUp(boot)).unwrap().loss_ppm, 0);
}

#[test]
fn delays_between_regions_change_one_way() {
    let delay = Fault::Delay { from: "east".into(), to: "west".into(), delay_us: 90_000 };
    let mut world = world(vec![scheduled(10, 0, delay)]);
    world.until(10);
    let between = |from, to| world.engine.link(LinkId::Region { from, to }).unwrap().delay_ns;
    assert_eq!((between(0, 1), between(1, 0)), (90 * MS, 30 * MS));
}

#[test]
fn schedules_that_do_not_fit_their_run_are_refused() {
    let unknown = |what, name: &str| FaultError::Unknown { number: 1, what, name: name.to_owned() };
    let link = Fault::Link { access: "x".into(), up: LinkModel::default(), down: LinkModel::default() };
    for (fault, error) in [
        (scheduled(1, 0, Fault::Rebind { who: target(Some("x"), None, 1) }), unknown("group", "x")),
        (scheduled(1, 0, Fault::Rebind { who: target(None, Some("x"), 1) }), unknown("region", "x")),
        (scheduled(1, 0, link), unknown("access class", "x")),
        (scheduled(1, 0, Fault::Rebind { who: target(None, None, 1_000_001) }), FaultError::OutOfRange { number: 1 }),
        (scheduled(1, 3, Fault::Heal {}), FaultError::TooOften { number: 1, every_ms: 3 }),
        (
            scheduled(1, 0, Fault::Partition { sides: vec![Vec::new(); 256] }),
            FaultError::TooMany { count: 256, what: "sides", limit: 255 },
        ),
    ] {
        assert_eq!(faults(vec![fault]).err(), Some(error));
    }
    assert!(matches!(faults(vec![scheduled(1, 0, Fault::Heal {}); 10_001]), Err(FaultError::TooMany { .. })));
}

/// A world of both families, whose peers are behind NATs.
fn of_both(scheduled: Vec<ScheduledFault>) -> World {
    let network = NetworkModel { ip: IpModel::Both, ..network() };
    let compiled = compile(&network, &groups(), 7).unwrap();
    let engine = Engine::new(compiled.topology.clone(), EngineConfig::default());
    let faults = Faults::new(&[FaultSchedule { faults: scheduled }], &network, &compiled, &groups(), 7).unwrap();
    World { faults, engine, compiled }
}

#[test]
fn who_shares_a_nat_is_found_at_its_new_address_too() {
    let mut network = NetworkModel { ip: IpModel::Both, ..network() };
    network.groups.get_mut("peers").unwrap().per = 4;
    let compiled = compile(&network, &groups(), 7).unwrap();
    let mut engine = Engine::new(compiled.topology.clone(), EngineConfig::default());
    // One of the hundred.
    let address = Fault::Address { who: target(Some("peers"), None, 10_000) };
    let schedule = [FaultSchedule { faults: vec![scheduled(10, 0, address)] }];
    let mut faults = Faults::new(&schedule, &network, &compiled, &groups(), 7).unwrap();
    let happened = faults.advance(0, 10 * MS, &mut engine).unwrap();
    let [hit] = happened.hit.as_slice() else { panic!("{happened:?}") };
    assert_eq!(happened.moved.len(), 4);
    let place = hit.index / 4;
    for moved in &happened.moved {
        assert_eq!(moved.id.index / 4, place);
        assert_eq!(moved.public.v4, Some([198, 18, 0, 1].into()));
        assert_eq!(moved.before.v4, moved.now.v4, "inside all stays");
        assert_eq!(moved.before.v6 != moved.now.v6, moved.id == *hit, "over IPv6 each has its own");
        assert_eq!(engine.topology().public_addrs(moved.node), Some(moved.public));
    }
}

#[test]
fn who_gets_another_address_is_reached_by_it_and_nobody_has_the_old_one() {
    let address = |group: &str| Fault::Address { who: target(Some(group), None, 1_000_000) };
    let mut world = of_both(vec![scheduled(10, 0, address("boot")), scheduled(20, 20, address("peers"))]);
    let node = |world: &World, group: &str, index| world.compiled.nodes[&InstanceId { group: group.to_owned(), index }];
    let (first, second, home) = (node(&world, "boot", 0), node(&world, "boot", 1), node(&world, "peers", 0));
    let old = world.engine.topology().public_addrs(first).unwrap();
    let moved = world.faults.advance(0, 10 * MS, &mut world.engine).unwrap().moved;
    assert_eq!(moved.len(), 4);
    assert!(moved.iter().all(|moved| moved.before != moved.now && moved.public == moved.now));
    let now = world.engine.topology().public_addrs(first).unwrap();
    assert_eq!(now.v4.map(|addr| addr.to_string()), Some("198.18.0.1".to_owned()));
    assert_eq!(now.v6.map(|addr| addr.to_string()), Some("fd69:7074:6c00:1::c612:1".to_owned()));
    let sender = world.engine.topology().public_addrs(second).unwrap();
    for (from, new, gone) in sender.iter().zip(now.iter()).zip(old.iter()).map(|((from, new), gone)| (from, new, gone))
    {
        let mut send = |node, from, to| {
            let packet = crate::bytes::packet(crate::bytes::UDP, (from, 5).into(), (to, 5).into(), 0, b"hello");
            let start = world.engine.poll_timeout().unwrap_or(0);
            world.engine.handle_packet(start, node, packet);
            while let Some(at_ns) = world.engine.poll_timeout() {
                world.engine.handle_timeout(at_ns);
            }
            std::iter::from_fn(|| world.engine.poll_output()).map(|output| output.node).collect::<Vec<_>>()
        };
        assert_eq!(send(second, from, new), [first]);
        assert_eq!(send(second, from, gone), [second], "an error comes back");
        assert_eq!(send(first, gone, from), [], "who says so lies");
        assert_eq!(send(first, new, from), [second]);
    }
    assert_eq!(world.engine.stats().spoofed, 2);

    // Behind a NAT it is the NAT's that changes over IPv4, again and again; inside all stays.
    for _ in 0..2 {
        let before = world.engine.topology().public_addrs(home).unwrap();
        let happened = world.faults.advance(0, 60 * MS, &mut world.engine).unwrap();
        assert_eq!((happened.what.name(), happened.hit.len(), happened.moved.len()), ("address", 100, 100));
        let now = world.engine.topology().public_addrs(home).unwrap();
        assert!(before.v4 != now.v4 && before.v6 != now.v6);
        let own = world.engine.addrs(home).unwrap();
        assert_eq!((own.v4, own.v6), (Some(iptl_labnet::PRIVATE_ADDR), now.v6));
        let to = world.engine.addrs(first).unwrap().v4.unwrap();
        let packet =
            crate::bytes::packet(crate::bytes::UDP, "192.168.1.2:5".parse().unwrap(), (to, 5).into(), 0, b"hello");
        let start = world.engine.poll_timeout().unwrap_or(0);
        world.engine.handle_packet(start, home, packet);
        while let Some(at_ns) = world.engine.poll_timeout() {
            world.engine.handle_timeout(at_ns);
        }
        let output = world.engine.poll_output().unwrap();
        assert_eq!((output.node, output.header.src), (first, now.v4.unwrap().into()));
    }
}

#[test]
fn engines_of_one_network_give_the_same_addresses() {
    let faults = || vec![scheduled(10, 10, Fault::Address { who: target(Some("boot"), None, 500_000) })];
    let (mut one, mut other) = (of_both(faults()), of_both(faults()));
    for at_ms in [10, 20, 30, 40] {
        let [a, b] =
            [&mut one, &mut other].map(|world| world.faults.advance(0, at_ms * MS, &mut world.engine).unwrap());
        assert_eq!(a, b);
        assert_eq!(a.moved.len(), 2);
    }
}

#[test]
fn a_clock_that_jumps_too_far_is_refused_and_others_are_told() {
    let clock = |by_ms| vec![scheduled(10, 0, Fault::Clock { who: target(Some("boot"), None, 1_000_000), by_ms })];
    assert_eq!(faults(clock(i64::MIN)).unwrap_err(), FaultError::OutOfRange { number: 1 });
    let mut world = world(clock(-3_600_000));
    let happened = world.faults.advance(0, 10 * MS, &mut world.engine).unwrap();
    assert_eq!((happened.what.name(), happened.act), ("clock", Some(Act::Clock { by_ms: -3_600_000 })));
}
