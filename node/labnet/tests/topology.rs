//! What cannot be in a network is refused, and nothing is left of it.

use std::net::{Ipv4Addr, Ipv6Addr};

use iptl_labnet::{Access, MIN_MTU_V6, NatConfig, RealmId, Topology, TopologyError};

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

#[test]
fn matrices_must_be_square_and_hold_at_least_one_region() {
    assert_eq!(Topology::new(vec![]).unwrap_err(), TopologyError::Matrix { rows: 0, columns: 0 });
    assert_eq!(Topology::new(vec![vec![1, 2], vec![3]]).unwrap_err(), TopologyError::Matrix { rows: 2, columns: 1 });
    assert!(matches!(Topology::new(vec![vec![0; 300]; 300]), Err(TopologyError::Matrix { rows: 300, .. })));
}

#[test]
fn addresses_that_clash_and_places_that_are_not_there_are_refused() {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let access = Access::default();
    let nat = NatConfig::default();
    let public = RealmId::PUBLIC;
    topology.add_node(public, v4("10.0.0.1"), None, access).unwrap();
    let taken = TopologyError::AddressTaken { addr: v4("10.0.0.1").into() };
    assert_eq!(topology.add_node(public, v4("10.0.0.1"), None, access), Err(taken.clone()));
    assert_eq!(topology.add_gateway(public, Some(v4("10.0.0.1")), nat, access), Err(taken.clone()));

    // Behind two NATs an address is the realm's own; behind a firewall it is everybody's.
    let (_, home) = topology.add_gateway(public, Some(v4("5.0.0.1")), nat, access).unwrap();
    let (_, other) = topology.add_gateway(public, Some(v4("5.0.0.2")), nat, access).unwrap();
    topology.add_node(home, v4("192.168.1.2"), None, access).unwrap();
    topology.add_node(other, v4("192.168.1.2"), None, access).unwrap();
    let (_, walled) = topology.add_gateway(public, None, nat, access).unwrap();
    assert_eq!(topology.add_node(walled, v4("10.0.0.1"), None, access), Err(taken));

    let far = Access { region: 1, ..access };
    assert_eq!(
        topology.add_node(public, v4("10.0.0.2"), None, far),
        Err(TopologyError::NoRegion { region: 1, regions: 1 })
    );
    let narrow = Access { mtu: 100, ..access };
    let refused = Err(TopologyError::Mtu { mtu: 100, least: iptl_labnet::MIN_MTU });
    assert_eq!(topology.add_node(public, v4("10.0.0.2"), None, narrow), refused);
    let refused = Err(TopologyError::Mtu { mtu: 1279, least: MIN_MTU_V6 });
    let less = Access { mtu: 1279, ..access };
    assert_eq!(topology.add_node(public, v4("10.0.0.2"), "fd00::2".parse::<Ipv6Addr>().ok(), less), refused);
    assert_eq!(topology.add_node(public, None, None, access), Err(TopologyError::NoAddress));
    for addr in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        let refused = topology.add_node(public, v4(addr), None, access);
        assert_eq!(refused, Err(TopologyError::BadAddress { addr: v4(addr).into() }));
    }
    assert_eq!(topology.len(), 3, "what was refused left nothing behind");
    topology.add_node(public, v4("10.0.0.2"), None, access).unwrap();
}
