//! A description becomes the network that it asks for, the same one everywhere.

use std::collections::BTreeMap;

use iptl_dag::model::{
    AccessClass, DependenceModel, GatewayModel, GroupNetwork, InstanceId, IpModel, LinkModel, NetworkModel, PortsModel,
    SiteShare,
};
use iptl_labnet::{
    CompileError, Compiled, Directory, Engine, EngineConfig, MAX_GATEWAYS, NodeId, PRIVATE_ADDR, TopologyError, compile,
};

use crate::bytes::{ends, udp};

const MS: u64 = 1_000_000;

fn map<T: Clone>(rows: &[(&str, T)]) -> BTreeMap<String, T> {
    rows.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn cone() -> GatewayModel {
    GatewayModel {
        translates: true,
        mapping: DependenceModel::Endpoint,
        filtering: DependenceModel::AddressPort,
        ports: PortsModel::Preserve,
        hairpin: true,
        inbound_refresh: true,
        udp_timeout_ms: 120_000,
        tcp_timeout_ms: 7_440_000,
    }
}

/// Two regions and two classes; of the peers 70 % are behind a NAT, 10 % behind two, 5 % behind a firewall.
fn network() -> NetworkModel {
    let class = |delay_us| AccessClass {
        up: LinkModel { delay_us, ..LinkModel::default() },
        down: LinkModel { delay_us, ..LinkModel::default() },
        mtu: 1500,
    };
    let site = |weight, gateways| SiteShare { weight, gateways };
    let firewall = GatewayModel { translates: false, ..cone() };
    let peers = GroupNetwork {
        regions: map(&[("east", 3), ("west", 1)]),
        access: map(&[("dsl", 1)]),
        sites: vec![site(70, vec![cone()]), site(10, vec![cone(); 2]), site(5, vec![firewall]), site(15, vec![])],
    };
    NetworkModel {
        ip: IpModel::default(),
        regions: vec!["east".into(), "west".into()],
        delays_us: vec![vec![1_000, 35_000], vec![36_000, 1_000]],
        access: map(&[("dsl", class(8_000)), ("fibre", class(1_000))]),
        groups: map(&[("peers", peers)]),
    }
}

fn groups() -> BTreeMap<String, u32> {
    map(&[("boot", 4), ("peers", 200)])
}

fn instance(group: &str, index: u32) -> InstanceId {
    InstanceId { group: group.into(), index }
}

/// Says of each peer its region, its address for itself, and how many gateways it is behind.
fn places(compiled: &Compiled) -> Vec<(u16, bool, usize)> {
    let topology = &compiled.topology;
    let place = |node: NodeId| {
        let private = topology.addr(node) == Some(PRIVATE_ADDR);
        (topology.region(node).unwrap(), private, topology.gateways(node).len())
    };
    (0..200).map(|index| place(compiled.nodes[&instance("peers", index)])).collect()
}

#[test]
fn shares_are_met_exactly_and_the_seed_says_who_is_where() {
    let compiled = compile(&network(), &groups(), 1).unwrap();
    assert_eq!(compiled.nodes.len(), 204);
    let found = places(&compiled);
    let count = |wanted: &dyn Fn(&(u16, bool, usize)) -> bool| found.iter().filter(|place| wanted(place)).count();
    assert_eq!([count(&|p| p.0 == 0), count(&|p| p.0 == 1)], [150, 50]);
    let behind = |private, gateways| count(&|p| (p.1, p.2) == (private, gateways));
    assert_eq!([behind(true, 1), behind(true, 2), behind(false, 1), behind(false, 0)], [140, 20, 10, 30]);

    assert_eq!(places(&compile(&network(), &groups(), 1).unwrap()), found);
    assert_ne!(places(&compile(&network(), &groups(), 2).unwrap()), found);
}

#[test]
fn whole_numbers_come_as_near_to_a_share_as_they_can() {
    let mut network = network();
    network.groups.get_mut("peers").unwrap().regions = map(&[("east", 1), ("west", 2)]);
    for size in 0..20 {
        let compiled = compile(&network, &map(&[("peers", size)]), 9).unwrap();
        let west = compiled.nodes.values().filter(|node| compiled.topology.region(**node) == Some(1)).count();
        assert!((west as f64 - f64::from(size) * 2.0 / 3.0).abs() < 1.0, "{west} of {size}");
    }
}

#[test]
fn instances_that_are_reachable_have_the_address_of_the_directory() {
    let compiled = compile(&network(), &groups(), 1).unwrap();
    let directory = Directory::new(&groups()).unwrap();
    for (instance, node) in &compiled.nodes {
        let addr = compiled.topology.addr(*node).unwrap();
        assert!(addr == PRIVATE_ADDR || Some(addr) == directory.addr(instance), "{instance}");
    }
}

#[test]
fn a_compiled_network_carries_packets_with_its_delays_through_its_nats() {
    let compiled = compile(&network(), &groups(), 1).unwrap();
    let topology = &compiled.topology;
    let is_home = |node: &NodeId| topology.addr(*node) == Some(PRIVATE_ADDR) && topology.gateways(*node).len() == 1;
    let peer = (0..200).map(|index| compiled.nodes[&instance("peers", index)]).find(is_home).unwrap();
    let boot = compiled.nodes[&instance("boot", 0)];
    let (from, to) = (topology.region(peer).unwrap(), topology.region(boot).unwrap());
    let region_ms = [[1, 35], [36, 1]][usize::from(from)][usize::from(to)];
    let addr = topology.addr(boot).unwrap();
    let mut engine = Engine::new(compiled.topology, EngineConfig::default());
    engine.handle_packet(0, peer, udp("192.168.1.2:4000", &format!("{addr}:6")));
    while let Some(at_ns) = engine.poll_timeout() {
        engine.handle_timeout(at_ns);
    }
    let output = engine.poll_output().unwrap();
    assert_eq!(output.node, boot);
    let links_ms = output.due_ns / MS - region_ms;
    assert!(links_ms == 9 || links_ms == 16, "8 ms up, and 1 or 8 ms down: {links_ms}");
    assert_eq!(ends(&output.bytes).0.ip().to_string().split('.').next(), Some("172"));
}

#[test]
fn descriptions_that_are_no_network_are_refused() {
    let changed = |change: &dyn Fn(&mut NetworkModel)| {
        let mut network = network();
        change(&mut network);
        compile(&network, &groups(), 1).unwrap_err()
    };
    let peers = |network: &mut NetworkModel, change: &dyn Fn(&mut GroupNetwork)| {
        change(network.groups.get_mut("peers").unwrap());
    };
    let group = || "peers".to_owned();
    assert_eq!(
        changed(&|network| network.delays_us[1].truncate(1)),
        CompileError::Topology(TopologyError::Matrix { rows: 2, columns: 1 })
    );
    assert_eq!(changed(&|network| network.regions.truncate(1)), CompileError::Regions { regions: 1, rows: 2 });
    assert_eq!(
        changed(&|network| network.regions[1] = "east".into()),
        CompileError::Regions { regions: 2, rows: 2 },
        "a name that is taken"
    );
    assert_eq!(changed(&|network| network.access.clear()), CompileError::NoAccess);
    assert_eq!(
        changed(&|network| network.delays_us[0][1] = u64::MAX),
        CompileError::OutOfRange { access: String::new() }
    );
    assert_eq!(
        changed(&|network| network.access.get_mut("dsl").unwrap().up.loss_ppm = 1_000_001),
        CompileError::OutOfRange { access: "dsl".into() }
    );
    assert_eq!(
        changed(&|network| network.access.get_mut("dsl").unwrap().mtu = 60),
        CompileError::Topology(TopologyError::Mtu { mtu: 60, least: iptl_labnet::MIN_MTU })
    );
    let stranger = |network: &mut NetworkModel| {
        let group = network.groups["peers"].clone();
        network.groups.insert("others".into(), group);
    };
    assert_eq!(changed(&stranger), CompileError::UnknownGroup { group: "others".into() });
    assert_eq!(
        changed(&|network| peers(network, &|group| group.regions = map(&[("north", 1)]))),
        CompileError::UnknownName { group: group(), name: "north".into() }
    );
    assert_eq!(
        changed(&|network| peers(network, &|group| group.access = map(&[("dsl", 0)]))),
        CompileError::NoWeight { group: group() }
    );
    assert_eq!(
        changed(&|network| peers(network, &|group| group.sites[0].gateways = vec![cone(); MAX_GATEWAYS + 1])),
        CompileError::TooDeep { group: group(), gateways: MAX_GATEWAYS + 1 }
    );
}
