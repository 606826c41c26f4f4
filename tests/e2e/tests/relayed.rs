//! Lablets that reach each other by way of a third machine alone: what comes that way is marked.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use iptl_e2e::{Foreground, Home, docker_is_required, not_run, until};
use iptl_labnet::{Access, Dependence, NatConfig, Ports, RealmId, Topology};
use iptl_labnet_tun::{Namespace, Network};
use serde_json::Value;

use crate::machines;
use crate::network::ping_over;

/// One way between any two machines, in nanoseconds.
const APART_NS: u64 = 5_000_000;

/// A machine that everybody reaches, and two behind NATs through which nobody is reached who was not called first, at ports
/// that cannot be guessed.
fn machines() -> (Network, Vec<(Namespace, Ipv4Addr)>) {
    let mut topology = Topology::new(vec![vec![APART_NS]]).unwrap();
    let symmetric = NatConfig {
        mapping: Dependence::AddressPort,
        filtering: Dependence::AddressPort,
        ports: Ports::Random,
        ..NatConfig::default()
    };
    let public = Ipv4Addr::new(10, 79, 0, 1);
    let mut nodes = vec![(topology.add_node(RealmId::PUBLIC, public, None, Access::default()).unwrap(), public)];
    for number in [1, 2] {
        let outside = Ipv4Addr::new(10, 79, 1, number);
        let (_, inside) = topology.add_gateway(RealmId::PUBLIC, Some(outside), symmetric, Access::default()).unwrap();
        let addr = Ipv4Addr::new(192, 168, number, 2);
        nodes.push((topology.add_node(inside, addr, None, Access::default()).unwrap(), addr));
    }
    machines::machines(topology, nodes, 24)
}

#[test]
fn packets_between_lablets_that_only_a_relay_joins_are_marked_in_the_result() {
    if let Err(error) = Namespace::empty() {
        assert!(!docker_is_required(), "network namespaces cannot be made: {error}");
        return not_run(&format!("network namespaces cannot be made: {error}"));
    }
    let (_network, machines) = machines();
    let homes: Vec<Home> = machines.iter().map(|_| Home::new()).collect();
    let mut nodes = Vec::new();
    let mut relay = Vec::new();
    let owner = &homes[0];
    for (home, (namespace, addr)) in homes.iter().zip(&machines) {
        let mut args = vec!["--no-mdns".to_owned(), "--no-docker".to_owned()];
        args.extend(["--listen".to_owned(), format!("/ip4/{addr}/tcp/4001")]);
        args.extend_from_slice(&relay);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        nodes.push(namespace.run(|| Foreground::again(home.path(), &args)).unwrap());
        if relay.is_empty() {
            // The others ask the first for a place at which they can be reached.
            owner.run(&["lab", "init", "--name", "relayed"]).exits(0);
            drop(nodes.pop());
            nodes.push(namespace.run(|| Foreground::again(home.path(), &args)).unwrap());
            let status = owner.run(&["status", "--json"]).json();
            let addrs = status["addrs"].as_array().unwrap().iter().filter_map(Value::as_str);
            let addr = addrs.into_iter().find(|known| known.contains("/tcp/")).expect("it listens");
            let peer = status["peer"].as_str().unwrap();
            let addr = if addr.contains("/p2p/") { addr.to_owned() } else { format!("{addr}/p2p/{peer}") };
            relay = vec!["--listen".to_owned(), format!("{addr}/p2p-circuit")];
        }
    }
    for (name, home) in ["one", "two"].iter().zip(&homes[1..]) {
        let ticket = owner.run(&["invite", "-q"]).exits(0).word();
        home.run(&["join", &ticket, "--name", name]).exits(0);
    }
    until("two lablets", || {
        let status = owner.run(&["status", "--json"]).json();
        (status["lablets_ready"].as_u64() == Some(2)).then_some(())
    });
    let network = "[network]\nregions = [\"here\"]\ndelays = [[\"100ms\"]]\n";
    let plan = ping_over(owner.path(), network).display().to_string();
    let last =
        owner.run(&["run", &plan, "--no-build", "-g", "node=2", "-p", "rounds=5", "--json"]).exits(0).last_json();
    assert_eq!(last["verdict"], "pass", "{last}");
    let result = last["result"].as_str().unwrap();

    let shown = owner.run(&["show", result, "--json"]).exits(0).json();
    let ways = shown["ways"].as_array().unwrap();
    assert!(ways.len() == 2 && ways.iter().all(|way| way["relayed"] == true), "measured before the start: {ways:?}");
    let cells = shown["links"]["cells"].as_array().unwrap();
    let lablets: BTreeSet<String> = cells.iter().map(|cell| cell["lablet"].to_string()).collect();
    assert_eq!((cells.len(), lablets.len()), (2, 2), "one on each: {shown}");
    for cell in cells {
        // There is one region, and every packet that crosses it came from the other lablet.
        let came = cell["across"]["offered"].as_u64().unwrap();
        assert!(came > 10 && cell["relayed"] == came, "{cell}");
    }
    let text = owner.run(&["show", result]).exits(0).stdout;
    let distorted: Vec<&str> = text.lines().filter(|line| line.starts_with("distorted ")).collect();
    assert!(distorted.iter().any(|line| line.contains("relay")), "{text}");
    assert!(text.contains(", relayed;") && text.contains("came over a relay"), "{text}");
    drop(nodes);
}
