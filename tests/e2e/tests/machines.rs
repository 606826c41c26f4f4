//! Network namespaces, as machines in a network of their own would be.

use std::net::Ipv4Addr;

use iptl_labnet::{Engine, EngineConfig, NodeId, Topology};
use iptl_labnet_tun::{DEVICE_NAME, Interface, Namespace, Network, Options, Outlets};

/// Makes one for each node of a topology, in a subnet with a prefix of so many bits.
pub(crate) fn machines(
    topology: Topology,
    nodes: Vec<(NodeId, Ipv4Addr)>,
    prefix: u8,
) -> (Network, Vec<(Namespace, Ipv4Addr)>) {
    let outlets = Outlets {
        away: Box::new(|_| {}),
        captured: Box::new(|_| {}),
        happened: Box::new(|_| {}),
        ended: Box::new(|_| {}),
    };
    let engine = Engine::new(topology, EngineConfig::default());
    let network = Network::start(engine, Options::default(), outlets).unwrap();
    let machine = |(node, addr): (NodeId, Ipv4Addr)| {
        let namespace = Namespace::empty().unwrap();
        let interface = Interface { name: DEVICE_NAME.to_owned(), addrs: vec![(addr.into(), prefix)], mtu: 1500 };
        network.attach(node, namespace.open(&interface).unwrap());
        (namespace, addr)
    };
    let machines = nodes.into_iter().map(machine).collect();
    (network, machines)
}
