//! Lablets behind home NATs and firewalls: they ask the lab's orchestrator for a place by themselves, meet through it, and
//! directly where they can, from when they can. What comes by way of the relay is marked.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use iptl_dag::PeerId;
use iptl_e2e::{Foreground, Home, docker_is_required, not_run, until};
use iptl_labnet::{Access, Dependence, NatConfig, Ports, RealmId, Topology};
use iptl_labnet_tun::{Namespace, Network};
use iptl_net::{Config, KadMode, Net, Reached};
use serde_json::Value;
use tokio::sync::watch;

use crate::machines;
use crate::network::ping_over;

/// One way between any two machines, in nanoseconds.
const APART_NS: u64 = 5_000_000;

/// Time in which nobody reaches a node at its own address before it counts as one that nobody can reach.
const GRACE: Duration = Duration::from_secs(20);

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

/// What two machines are behind.
#[derive(Clone, Copy)]
enum Behind {
    Nat(NatConfig),
    /// Nobody is let in who was not called first; whoever calls at the same time is. Addresses stay what they are.
    Firewall,
}

/// A machine that everybody reaches, and two that are behind something.
fn machines(behind: Behind) -> (Network, Vec<(Namespace, Ipv4Addr)>) {
    let mut topology = Topology::new(vec![vec![APART_NS]]).unwrap();
    let public = Ipv4Addr::new(10, 79, 0, 1);
    let mut nodes = vec![(topology.add_node(RealmId::PUBLIC, public, None, Access::default()).unwrap(), public)];
    for number in [1, 2] {
        let outside = Ipv4Addr::new(10, 79, 1, number);
        let (external, config, addr) = match behind {
            Behind::Nat(nat) => (Some(outside), nat, Ipv4Addr::new(192, 168, number, 2)),
            Behind::Firewall => (None, passable(), outside),
        };
        let (_, inside) = topology.add_gateway(RealmId::PUBLIC, external, config, Access::default()).unwrap();
        nodes.push((topology.add_node(inside, addr, None, Access::default()).unwrap(), addr));
    }
    machines::machines(topology, nodes, 24)
}

/// A lab whose orchestrator everybody reaches, and two lablets behind something, all started as their owners would.
struct Lab {
    homes: Vec<Home>,
    _nodes: Vec<Foreground>,
    _network: Network,
}

impl Lab {
    /// None where this machine makes no network namespaces.
    fn behind(behind: Behind) -> Option<Lab> {
        if !Lab::is_possible() {
            return None;
        }
        let (network, machines) = machines(behind);
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

    /// Tells whether this machine makes network namespaces.
    fn is_possible() -> bool {
        let Err(error) = Namespace::empty() else { return true };
        assert!(!docker_is_required(), "network namespaces cannot be made: {error}");
        not_run(&format!("network namespaces cannot be made: {error}"));
        false
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
                let has_place = status["reach"]["through"].as_array().is_some_and(|relays| !relays.is_empty());
                // The address there may come a moment after the place.
                (has_place && status["addrs"].to_string().contains("/p2p-circuit")).then_some(status)
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

    /// Runs two instances that talk to each other, one on each lablet, and returns the result as it is shown.
    fn ping(&self, rounds: u32) -> Value {
        let network = "[network]\nregions = [\"here\"]\ndelays = [[\"100ms\"]]\n";
        let plan = ping_over(self.owner().path(), network).display().to_string();
        let rounds = format!("rounds={rounds}");
        // No datagram is lost by waiting for too short a time.
        let run = ["run", &plan, "--no-build", "-g", "node=2", "-p", &rounds, "-p", "udp-timeout=20s", "--json"];
        let last = self.owner().run(&run).exits(0).last_json();
        assert_eq!(last["verdict"], "pass", "{last}");
        self.owner().run(&["show", last["result"].as_str().unwrap(), "--json"]).exits(0).json()
    }
}

#[test]
fn lablets_behind_nats_that_cannot_be_passed_meet_through_the_orchestrator_and_their_packets_are_marked() {
    let Some(lab) = Lab::behind(Behind::Nat(impassable())) else { return };
    lab.is_relayed();
    let shown = lab.ping(5);
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
    let text = lab.owner().run(&["show", shown["cid"].as_str().unwrap()]).exits(0).stdout;
    let distorted: Vec<&str> = text.lines().filter(|line| line.starts_with("distorted ")).collect();
    assert!(distorted.iter().any(|line| line.contains("relay")), "{text}");
    assert!(text.contains(", relayed;") && text.contains("came over a relay"), "{text}");
}

#[test]
fn lablets_behind_nats_that_can_be_passed_meet_directly_after_hole_punching() {
    let Some(lab) = Lab::behind(Behind::Nat(passable())) else { return };
    // Their NATs let no relay in that dials them: each has its place, and is reached there first.
    lab.is_relayed();
    // On a slow machine the direct connection comes after a first run has begun, and is there for the next.
    let is_met = |shown: &Value| shown["ways"].as_array().unwrap().iter().all(|way| way["relayed"] == false);
    is_direct(&(0..3).map(|_| lab.ping(5)).find(is_met).expect("a direct connection"));
}

/// Fails unless every packet of a result between two lablets came directly.
#[track_caller]
fn is_direct(shown: &Value) {
    let ways = shown["ways"].as_array().unwrap();
    assert!(ways.len() == 2 && ways.iter().all(|way| way["relayed"] == false), "{ways:?}");
    let cells = shown["links"]["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2, "one on each: {shown}");
    for cell in cells {
        assert!(cell["across"]["offered"].as_u64().unwrap() > 10 && cell["relayed"] == 0, "{cell}");
    }
}

/// Runs a node on a machine of its own for as long as something takes.
fn with_node<T: Send>(machine: &(Namespace, Ipv4Addr), number: u8, act: impl AsyncFnOnce(Net) -> T + Send) -> T {
    let (namespace, addr) = machine;
    let config = Config {
        seed: [number; 32],
        listen: vec![format!("/ip4/{addr}/tcp/4001")],
        relay_server: number == 0,
        // Nobody learns where a node is but by the way that is tested.
        kad: KadMode::Client,
        ..Config::default()
    };
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (net, _events) = iptl_net::start(config).await.unwrap();
            act(net).await
        })
    };
    namespace.run(run).unwrap()
}

/// Asks again until there is an answer; fails the test after a minute.
async fn comes<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let answered = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), answered)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come about"))
}

/// A node, and where it is.
type At = Option<(PeerId, Vec<String>)>;

/// Names a relay to a node behind a firewall, and waits until that has given it a place.
async fn gets_a_place(net: &Net, relay: &mut watch::Receiver<At>) {
    let (peer, addrs) = relay.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let before = Instant::now();
    net.set_relays(vec![(peer.clone(), addrs.clone())]).await.unwrap();
    net.connect(&peer, &addrs).await.unwrap();
    // It is seen at its own address: nothing tells it from a node that everybody reaches but that nobody comes.
    let given = async || net.reach().await.filter(|reach| !reach.places.is_empty());
    assert_eq!(comes("the place", given).await.reached, Some(Reached::Relayed));
    assert!(before.elapsed() >= GRACE, "it asked after {:?}", before.elapsed());
}

#[test]
fn node_behind_a_firewall_asks_for_a_place_once_nobody_has_reached_it_for_twenty_seconds_and_is_met_by_hole_punching() {
    if !Lab::is_possible() {
        return;
    }
    let (_network, machines) = machines(Behind::Firewall);
    let (tell_relay, relay) = watch::channel(At::None);
    let (tell_place, place) = watch::channel(At::None);
    let (tell_met, met) = watch::channel(false);
    std::thread::scope(|scope| {
        let mut until_met = met.clone();
        scope.spawn(|| {
            with_node(&machines[0], 0, async move |net| {
                tell_relay.send(Some((net.peer().clone(), net.addrs().await))).unwrap();
                until_met.wait_for(|met| *met).await.unwrap();
            })
        });
        let (mut until_met, mut at) = (met, relay.clone());
        scope.spawn(|| {
            with_node(&machines[1], 1, async move |net| {
                gets_a_place(&net, &mut at).await;
                let relayed = net.addrs().await.into_iter().filter(|addr| addr.contains("/p2p-circuit"));
                tell_place.send(Some((net.peer().clone(), relayed.collect::<Vec<_>>()))).unwrap();
                until_met.wait_for(|met| *met).await.unwrap();
            })
        });
        let (mut at, mut place) = (relay, place);
        with_node(&machines[2], 2, async move |net| {
            gets_a_place(&net, &mut at).await;
            let (peer, addrs) = place.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            // Only by way of the relay: both have to call for one to be let in.
            net.connect(&peer, &addrs).await.unwrap();
            let is_met = async || net.peers().await.iter().any(|info| info.peer == peer && !info.relayed).then_some(());
            comes("the direct connection", is_met).await;
            tell_met.send(true).unwrap();
        });
    });
}
