//! Faults happen when a schedule says, to whom it says, the same ones everywhere.

use std::collections::BTreeMap;

use iptl_dag::model::{
    AccessClass, DependenceModel, Fault, FaultSchedule, FaultTarget, GatewayModel, GroupNetwork, InstanceId, LinkModel,
    NetworkModel, PortsModel, ScheduledFault, SiteShare,
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
    let nat = GatewayModel {
        translates: true,
        mapping: DependenceModel::Endpoint,
        filtering: DependenceModel::AddressPort,
        ports: PortsModel::Preserve,
        hairpin: true,
        inbound_refresh: false,
        udp_timeout_ms: 300_000,
        tcp_timeout_ms: 7_440_000,
    };
    let group = |access: &str, gateways| GroupNetwork {
        regions: BTreeMap::new(),
        access: BTreeMap::from([(access.to_owned(), 1)]),
        sites: vec![SiteShare { weight: 1, gateways }],
    };
    NetworkModel {
        regions: vec!["east".into(), "west".into()],
        delays_us: vec![vec![1_000, 30_000], vec![30_000, 1_000]],
        access: BTreeMap::from([("dsl".to_owned(), class(5_000)), ("fibre".to_owned(), class(1_000))]),
        groups: BTreeMap::from([
            ("boot".to_owned(), group("fibre", Vec::new())),
            ("peers".to_owned(), group("dsl", vec![nat])),
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
    let crash = Fault::Crash { who: target(Some("peers"), None, 100_000), restart_ms: 250 };
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
    let crash = Fault::Crash { who: who(), restart_ms: 250 };
    let pause = Fault::Pause { who: who(), for_ms: 1_500 };
    let mut world = world(vec![scheduled(10, 0, crash), scheduled(20, 0, pause), scheduled(30, 0, Fault::Heal {})]);
    let mut next = || world.faults.advance(0, 30 * MS, &mut world.engine).map(|next| (next.what.name(), next.act));
    assert_eq!(next(), Some(("crash", Some(Act::Crash { restart_ns: 250 * MS }))));
    assert_eq!(next(), Some(("pause", Some(Act::Pause { for_ns: 1_500 * MS }))));
    assert_eq!((next(), next()), (Some(("heal", None)), None));
}

#[test]
fn a_share_hits_so_many_others_each_time_and_the_same_ones_everywhere() {
    let crash = || Fault::Crash { who: target(Some("peers"), None, 100_000), restart_ms: 250 };
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
