//! A description becomes the network that it asks for, the same one everywhere.

use std::collections::BTreeMap;

use iptl_dag::model::{
    AccessClass, GatewayModel, GroupNetwork, InstanceId, IpModel, LinkModel, NetworkModel, SiteShare,
};
use iptl_labnet::{
    CompileError, Compiled, Directory, Engine, EngineConfig, MAX_GATEWAYS, NodeId, PRIVATE_ADDR, TopologyError, compile,
};

use crate::bytes::{at, ends, udp};

const MS: u64 = 1_000_000;

fn map<T: Clone>(rows: &[(&str, T)]) -> BTreeMap<String, T> {
    rows.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn cone() -> GatewayModel {
    GatewayModel { inbound_refresh: true, udp_timeout_ms: 120_000, ..GatewayModel::default() }
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
        per: 1,
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

/// The network in which three of the peers are in each place.
fn homes() -> NetworkModel {
    let mut network = network();
    network.groups.get_mut("peers").unwrap().per = 3;
    network
}

#[test]
fn neighbours_share_what_they_are_behind() {
    let compiled = compile(&homes(), &groups(), 1).unwrap();
    let topology = &compiled.topology;
    let node = |index| compiled.nodes[&instance("peers", index)];
    // 67 places, the last of which has two: 47 behind a NAT, 7 behind two, 3 behind a firewall, 10 behind nothing.
    let behind =
        |from: u32| (from..(from + 3).min(200)).map(|index| topology.gateways(node(index))).collect::<Vec<_>>();
    let places: Vec<_> = (0..200).step_by(3).map(behind).collect();
    assert!(places.iter().all(|place| place.iter().all(|gateways| *gateways == place[0])), "{places:?}");
    let mut gateways: Vec<_> = places.iter().filter_map(|place| place[0].first()).collect();
    gateways.sort();
    gateways.dedup();
    assert_eq!(gateways.len(), 57, "each place with any has its own");
    for from in (0..198).step_by(3) {
        let all = [node(from), node(from + 1), node(from + 2)];
        let addrs = all.map(|node| topology.addr(node).unwrap());
        let public = all.map(|node| topology.public_addr(node).unwrap());
        let regions = all.map(|node| topology.public_region(node).unwrap());
        if topology.gateways(all[0]).is_empty() {
            assert_eq!(addrs, public);
        } else if addrs[0] == PRIVATE_ADDR {
            assert_eq!(addrs.map(|addr| addr.octets()[3]), [2, 3, 4]);
            assert!(public.iter().all(|addr| *addr == public[0] && addr.octets()[0] == 172), "{public:?}");
            assert!(regions.iter().all(|region| *region == regions[0]));
        } else {
            assert_eq!(addrs, public, "a firewall translates nothing");
        }
    }
    // With one in each place all is as it was without a word about it.
    let mut alone = homes();
    alone.groups.get_mut("peers").unwrap().per = 1;
    assert_eq!(places_of(&alone), places_of(&network()));
}

fn places_of(network: &NetworkModel) -> Vec<(u16, bool, usize)> {
    places(&compile(network, &groups(), 1).unwrap())
}

#[test]
fn neighbours_reach_each_other_inside_all_at_once_and_others_by_one_address() {
    let compiled = compile(&homes(), &groups(), 1).unwrap();
    let topology = &compiled.topology;
    let node = |index| compiled.nodes[&instance("peers", index)];
    let is_home =
        |from: &u32| topology.addr(node(*from)) == Some(PRIVATE_ADDR) && topology.gateways(node(*from)).len() == 1;
    let first = (0..198).step_by(3).find(is_home).unwrap();
    let [a, b, c] = [node(first), node(first + 1), node(first + 2)];
    let boot = compiled.nodes[&instance("boot", 0)];
    let (outside, home) = (topology.addr(boot).unwrap(), topology.public_addr(a).unwrap());
    let mut engine = Engine::new(compiled.topology, EngineConfig::default());
    let mut send = |from, packet| {
        let start = engine.poll_timeout().unwrap_or(0);
        engine.handle_packet(start, from, packet);
        while let Some(at_ns) = engine.poll_timeout() {
            engine.handle_timeout(at_ns);
        }
        std::iter::from_fn(|| engine.poll_output()).collect::<Vec<_>>()
    };
    let got = send(b, udp("192.168.1.3:5", "192.168.1.4:6"));
    assert_eq!(
        got.iter().map(|output| (output.node, ends(&output.bytes).0)).collect::<Vec<_>>(),
        [(c, at("192.168.1.3:5"))]
    );
    // What is to all of them is to all others of this LAN, and to nobody elsewhere.
    let got = send(b, udp("192.168.1.3:5353", "224.0.0.251:5353"));
    assert_eq!(got.iter().map(|output| output.node).collect::<Vec<_>>(), [a, c]);
    // Outside all of them are one address, each with ports of its own.
    let seen: Vec<_> = [(a, "192.168.1.2:5"), (b, "192.168.1.3:5"), (c, "192.168.1.4:5")]
        .into_iter()
        .map(|(node, from)| {
            let got = send(node, udp(from, &format!("{outside}:6")));
            assert_eq!(got.len(), 1);
            let seen = ends(&got[0].bytes).0;
            // The answer comes to who asked.
            let back = send(boot, udp(&format!("{outside}:6"), &seen.to_string()));
            assert_eq!(back.iter().map(|output| output.node).collect::<Vec<_>>(), [node]);
            seen
        })
        .collect();
    assert!(seen.iter().all(|seen| seen.ip() == home), "{seen:?}");
    let mut ports: Vec<u16> = seen.iter().map(|seen| seen.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3);
}

#[test]
fn a_cell_has_all_of_a_lan_or_nobody() {
    let compiled = compile(&homes(), &groups(), 1).unwrap();
    let home = |index: &u32| {
        let gateways = compiled.topology.gateways(compiled.nodes[&instance("peers", *index)]);
        (!gateways.is_empty()).then_some(*index)
    };
    let first = (0..198).step_by(3).find_map(|index| home(&index)).unwrap();
    let cell = |indices: &[u32]| indices.iter().map(|index| instance("peers", *index)).collect();
    compiled.check_cell(&cell(&[first, first + 1, first + 2])).unwrap();
    compiled.check_cell(&cell(&[])).unwrap();
    let error = compiled.check_cell(&cell(&[first, first + 2])).unwrap_err();
    assert_eq!(
        error,
        CompileError::PartedLan { here: instance("peers", first + 2), elsewhere: instance("peers", first + 1) }
    );
    assert_eq!(
        error.to_string(),
        format!("peers/{} and peers/{} share a LAN, and are not on one lablet", first + 2, first + 1)
    );
    let alone = compile(&network(), &groups(), 1).unwrap();
    alone.check_cell(&cell(&[first])).unwrap();
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
    for per in [0, GroupNetwork::MAX_PER + 1, u32::MAX] {
        let error = changed(&|network| peers(network, &|group| group.per = per));
        assert_eq!(error, CompileError::Per { group: group(), per });
    }
    assert_eq!(
        changed(&|network| peers(network, &|group| group.sites[0].gateways = vec![cone(); MAX_GATEWAYS + 1])),
        CompileError::TooDeep { group: group(), gateways: MAX_GATEWAYS + 1 }
    );
}
