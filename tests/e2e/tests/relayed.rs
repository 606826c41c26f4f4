//! Lablets behind home NATs: they ask the lab's orchestrator for a place by themselves, meet through it, and directly where
//! their NATs can be passed. What comes by way of the relay is marked.

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

/// Nobody is let in who was not called first, and calls go out at ports that cannot be guessed.
fn impassable() -> NatConfig {
    NatConfig {
        mapping: Dependence::AddressPort,
        filtering: Dependence::AddressPort,
        ports: Ports::Random,
        ..NatConfig::default()
    }
}

/// Nobody is let in who was not called first; whoever calls at the same time is.
fn passable() -> NatConfig {
    NatConfig {
        mapping: Dependence::Endpoint,
        filtering: Dependence::AddressPort,
        ports: Ports::Preserve,
        ..NatConfig::default()
    }
}

/// A machine that everybody reaches, and two behind such NATs.
fn machines(nat: NatConfig) -> (Network, Vec<(Namespace, Ipv4Addr)>) {
    let mut topology = Topology::new(vec![vec![APART_NS]]).unwrap();
    let public = Ipv4Addr::new(10, 79, 0, 1);
    let mut nodes = vec![(topology.add_node(RealmId::PUBLIC, public, None, Access::default()).unwrap(), public)];
    for number in [1, 2] {
        let outside = Ipv4Addr::new(10, 79, 1, number);
        let (_, inside) = topology.add_gateway(RealmId::PUBLIC, Some(outside), nat, Access::default()).unwrap();
        let addr = Ipv4Addr::new(192, 168, number, 2);
        nodes.push((topology.add_node(inside, addr, None, Access::default()).unwrap(), addr));
    }
    machines::machines(topology, nodes, 24)
}

/// A lab whose orchestrator everybody reaches, and two lablets behind NATs, all started as their owners would.
struct Lab {
    homes: Vec<Home>,
    _nodes: Vec<Foreground>,
    _network: Network,
}

impl Lab {
    /// None where this machine makes no network namespaces.
    fn behind(nat: NatConfig) -> Option<Lab> {
        if let Err(error) = Namespace::empty() {
            assert!(!docker_is_required(), "network namespaces cannot be made: {error}");
            not_run(&format!("network namespaces cannot be made: {error}"));
            return None;
        }
        let (network, machines) = machines(nat);
        let homes: Vec<Home> = machines.iter().map(|_| Home::new()).collect();
        let start = |(home, (namespace, addr)): (&Home, &(Namespace, Ipv4Addr))| {
            let listen = format!("/ip4/{addr}/tcp/4001");
            let args = ["--no-mdns", "--no-docker", "--listen", &listen];
            namespace.run(|| Foreground::again(home.path(), &args)).unwrap()
        };
        let nodes: Vec<Foreground> = homes.iter().zip(&machines).map(start).collect();
        // The lab is made, and joined, by nodes that are up already.
        homes[0].run(&["lab", "init", "--name", "relayed"]).exits(0);
        for (name, home) in ["one", "two"].iter().zip(&homes[1..]) {
            let ticket = homes[0].run(&["invite", "-q"]).exits(0).word();
            home.run(&["join", &ticket, "--name", name]).exits(0);
        }
        let lab = Lab { homes, _nodes: nodes, _network: network };
        until("two lablets", || {
            let status = lab.owner().run(&["status", "--json"]).json();
            (status["lablets_ready"].as_u64() == Some(2)).then_some(())
        });
        Some(lab)
    }

    fn owner(&self) -> &Home {
        &self.homes[0]
    }

    /// Waits until both lablets are reached by way of the orchestrator, and it knows.
    fn is_relayed(&self) {
        let owner = self.owner().run(&["status", "--json"]).json();
        assert_eq!(owner["reach"]["relays"], true, "{owner}");
        for home in &self.homes[1..] {
            let status = until("a place at the orchestrator", || {
                let status = home.run(&["status", "--json"]).json();
                (status["reach"]["through"].as_array().is_some_and(|relays| !relays.is_empty())).then_some(status)
            });
            assert_eq!(status["reach"]["directly"], false, "{status}");
            assert_eq!(status["reach"]["through"], serde_json::json!([owner["peer"]]), "{status}");
            let addrs: Vec<&str> = status["addrs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let first_relayed = addrs.iter().position(|addr| addr.contains("/p2p-circuit")).expect("it is told");
            assert!(
                first_relayed > 0 && addrs[first_relayed..].iter().all(|a| a.contains("/p2p-circuit")),
                "{addrs:?}"
            );
            let shown = home.run(&["status"]).exits(0).stdout;
            assert!(shown.contains("nobody can dial this node; relayed through 12D3"), "{shown}");
            let checked = home.run(&["doctor"]).stdout;
            assert!(checked.contains("relayed through 12D3"), "{checked}");
        }
        until("the orchestrator's knowing the places", || {
            let rows = self.owner().run(&["ls", "lablets", "--json"]).exits(0).stdout;
            (rows.matches("/p2p-circuit/p2p/").count() >= 2).then_some(())
        });
    }

    /// Runs two instances that talk to each other, one on each lablet, and returns the result.
    fn ping(&self) -> String {
        let network = "[network]\nregions = [\"here\"]\ndelays = [[\"100ms\"]]\n";
        let plan = ping_over(self.owner().path(), network).display().to_string();
        let run = ["run", &plan, "--no-build", "-g", "node=2", "-p", "rounds=5", "--json"];
        let last = self.owner().run(&run).exits(0).last_json();
        assert_eq!(last["verdict"], "pass", "{last}");
        last["result"].as_str().unwrap().to_owned()
    }
}

#[test]
fn lablets_behind_nats_that_cannot_be_passed_meet_through_the_orchestrator_and_their_packets_are_marked() {
    let Some(lab) = Lab::behind(impassable()) else { return };
    lab.is_relayed();
    let result = lab.ping();
    let owner = lab.owner();
    let shown = owner.run(&["show", &result, "--json"]).exits(0).json();
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
    let text = owner.run(&["show", &result]).exits(0).stdout;
    let distorted: Vec<&str> = text.lines().filter(|line| line.starts_with("distorted ")).collect();
    assert!(distorted.iter().any(|line| line.contains("relay")), "{text}");
    assert!(text.contains(", relayed;") && text.contains("came over a relay"), "{text}");
}

#[test]
fn lablets_behind_nats_that_can_be_passed_meet_directly_after_hole_punching() {
    let Some(lab) = Lab::behind(passable()) else { return };
    // Their NATs let no relay in that dials them: each has its place, and is reached there first.
    lab.is_relayed();
    let result = lab.ping();
    let shown = lab.owner().run(&["show", &result, "--json"]).exits(0).json();
    let ways = shown["ways"].as_array().unwrap();
    assert!(ways.len() == 2 && ways.iter().all(|way| way["relayed"] == false), "{ways:?}");
    let cells = shown["links"]["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2, "one on each: {shown}");
    for cell in cells {
        assert!(cell["across"]["offered"].as_u64().unwrap() > 10 && cell["relayed"] == 0, "{cell}");
    }
}
