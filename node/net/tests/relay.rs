//! A node that nobody can dial, reached through a relay, and directly once that is possible.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iptl_net::{Config, KadMode, Net, NetEvent, Place, Reached, RelayLimits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{Node, QUIC, TCP, config, node, until, within};

const ECHO: &str = "/iptl/test/echo/1";

async fn relay(listen: &str) -> (Node, String) {
    let relay = node(Config { relay_server: true, kad: KadMode::Server, ..config(&[listen]) }).await;
    let circuit = format!("{}/p2p-circuit", relay.net.addrs().await[0]);
    (relay, circuit)
}

/// Echoes each stream once it is complete.
async fn serve(net: &Net) {
    let mut incoming = net.accept(ECHO, 16).await.unwrap();
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            tokio::spawn(async move {
                let mut message = Vec::new();
                stream.read_to_end(&mut message).await.unwrap();
                stream.write_all(&message).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
}

async fn echo(net: &Net, to: &Net, message: &[u8]) {
    let mut stream = net.open(to.peer(), ECHO).await.unwrap();
    stream.write_all(message).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within("the echo", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, message);
}

async fn check_relayed_then_direct(listen: &str) {
    let (relay, circuit) = relay(listen).await;
    // No listen address of its own: only the relay reaches it.
    let mut hidden = node(Config { listen: vec![circuit.clone()], ..config(&[]) }).await;
    let external = hidden
        .wait("the reservation", |event| match event {
            NetEvent::External { addr } => Some(addr.clone()),
            _ => None,
        })
        .await;
    assert!(external.contains("/p2p-circuit/p2p/"), "{external}");
    // A reservation confirms an address, and must not make the hidden node a server of the DHT.
    assert!(!hidden.net.is_kad_server().await);
    serve(&hidden.net).await;
    // A client of the DHT, or the hidden node would find it there and dial it.
    let mut open = node(Config { kad: KadMode::Client, ..config(&[listen]) }).await;
    open.net.connect(hidden.net.peer(), &[external]).await.unwrap();
    let relayed = open
        .wait("the relayed connection", |event| match event {
            NetEvent::Connected { peer, relayed, .. } if peer == hidden.net.peer() => Some(*relayed),
            _ => None,
        })
        .await;
    assert!(relayed);
    echo(&open.net, &hidden.net, &vec![1; 1 << 20]).await;

    // The hidden node dials out as well: both connections are there now, and new streams of either side take the direct
    // one, which shows when the relay ends.
    hidden.net.connect(open.net.peer(), &open.net.addrs().await).await.unwrap();
    let direct = |node: &Node, other: &Node| {
        let (net, other) = (node.net.clone(), other.net.peer().clone());
        async move {
            let peers = net.peers().await;
            peers.into_iter().find(|peer| peer.peer == other && !peer.relayed)
        }
    };
    for (node, other) in [(&open, &hidden), (&hidden, &open)] {
        let peer = until("the direct connection", || direct(node, other)).await;
        assert!(peer.addrs.len() >= 2, "{:?}", peer.addrs);
    }
    let mut stream = open.net.open(hidden.net.peer(), ECHO).await.unwrap();
    stream.write_all(b"before the relay ends").await.unwrap();
    relay.net.shutdown().await;
    stream.write_all(b" and after").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within("the echo", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"before the relay ends and after");
    echo(&open.net, &hidden.net, b"direct").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_node_is_reached_over_tcp_relay_and_then_directly() {
    check_relayed_then_direct(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_node_is_reached_over_quic_relay_and_then_directly() {
    check_relayed_then_direct(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_stays_on_the_connection_that_it_was_opened_on_and_says_whether_that_leads_through_a_relay() {
    let (relay, circuit) = relay(TCP).await;
    // Neither listens, so that hole punching finds nobody.
    let (near, far) = (node(config(&[])).await.net, node(config(&[])).await.net);
    let place = within("the place", far.listen(&circuit)).await.unwrap();
    let mut incoming = far.accept(ECHO, 16).await.unwrap();
    near.connect(far.peer(), &place).await.unwrap();
    let mut relayed = near.open(far.peer(), ECHO).await.unwrap();
    let (_, mut accepted) = within("the stream", incoming.next()).await.unwrap();
    assert!(relayed.is_relayed() && accepted.is_relayed());

    far.connect(near.peer(), &near.listen(TCP).await.unwrap()).await.unwrap();
    let is_direct = || async { near.peers().await.iter().any(|i| i.peer == *far.peer() && !i.relayed).then_some(()) };
    until("the direct connection", is_direct).await;
    let mut direct = near.open(far.peer(), ECHO).await.unwrap();
    let (_, mut other) = within("the stream", incoming.next()).await.unwrap();
    assert!(!direct.is_relayed() && !other.is_relayed());
    relayed.write_all(&[1]).await.unwrap();
    assert_eq!(accepted.read_u8().await.unwrap(), 1);
    assert!(relayed.is_relayed() && accepted.is_relayed(), "where they were");

    relay.net.shutdown().await;
    let end = within("the end of the first", relayed.read_u8()).await;
    assert!(end.is_err(), "it went with the relay: {end:?}");
    direct.write_all(&[2]).await.unwrap();
    assert_eq!(within("what the second carries", other.read_u8()).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_record_leads_through_the_relay() {
    let (relay, circuit) = relay(TCP).await;
    let known = relay.net.addrs().await;
    let hidden = node(Config { listen: vec![circuit], known: known.clone(), ..config(&[]) }).await;
    serve(&hidden.net).await;
    let seeker = node(Config { known, ..config(&[TCP]) }).await;
    until("the record", || async { seeker.net.connect(hidden.net.peer(), &[]).await.ok() }).await;
    echo(&seeker.net, &hidden.net, b"found").await;
}

#[tokio::test]
async fn reservation_can_be_asked_for_later() {
    let (_relay, circuit) = relay(QUIC).await;
    let hidden = node(config(&[])).await;
    let addrs = within("the reservation", hidden.net.listen(&circuit)).await.unwrap();
    assert!(addrs[0].contains("/p2p-circuit/p2p/"), "{addrs:?}");
    let stranger = node(config(&[QUIC])).await;
    let no_relay = format!("{}/p2p-circuit", stranger.net.addrs().await[0]);
    within("the refusal", hidden.net.listen(&no_relay)).await.unwrap_err();
}

#[tokio::test]
async fn reservation_is_made_again_after_the_relay_came_back() {
    let relay_config = Config { relay_server: true, kad: KadMode::Server, ..config(&[TCP]) };
    let relay = node(relay_config.clone()).await;
    let addr = relay.net.addrs().await.remove(0);
    let mut hidden = node(Config { listen: vec![format!("{addr}/p2p-circuit")], ..config(&[]) }).await;
    let reserved = |event: &NetEvent| matches!(event, NetEvent::External { .. }).then_some(());
    hidden.wait("the reservation", reserved).await;
    relay.net.shutdown().await;
    let listen = addr.rsplit_once("/p2p/").unwrap().0.to_owned();
    let _relay = node(Config { listen: vec![listen], ..relay_config }).await;
    hidden.wait("the second reservation", reserved).await;
}

/// Names relays to a node.
async fn name(node: &Node, relays: &[&Node]) {
    let mut named = Vec::new();
    for relay in relays {
        named.push((relay.net.peer().clone(), relay.net.addrs().await));
    }
    node.net.set_relays(named).await.unwrap();
}

/// Returns the relays at which a node has places, once they are what `wanted` wants.
async fn places(node: &Node, what: &str, wanted: impl Fn(&[Place]) -> bool) -> Vec<Place> {
    until(what, || async { node.net.reach().await.map(|reach| reach.places).filter(|places| wanted(places)) }).await
}

async fn relay_with(limits: RelayLimits) -> Node {
    node(Config { relay_server: true, relay_limits: limits, kad: KadMode::Server, ..config(&[TCP]) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_nobody_can_dial_asks_for_a_place_by_itself_and_renews_it() {
    // It listens nowhere, so its relay sees it at an address that is none of its own, as behind a NAT.
    let relay = relay_with(RelayLimits { reservation_time: Duration::from_secs(4), ..RelayLimits::default() }).await;
    let hidden = node(config(&[])).await;
    serve(&hidden.net).await;
    name(&hidden, &[&relay]).await;
    // Naming dials nobody: a node is at its orchestrators anyway.
    hidden.net.connect(relay.net.peer(), &relay.net.addrs().await).await.unwrap();
    places(&hidden, "the place", |places| places.len() == 1).await;
    assert_eq!(hidden.net.reach().await.unwrap().reached, Some(Reached::Relayed));
    let renewed = places(&hidden, "two renewals", |places| places.first().is_some_and(|one| one.renewed >= 2)).await;
    assert_eq!(renewed[0].relay, *relay.net.peer());

    let addrs = hidden.net.addrs().await;
    assert!(!addrs.is_empty() && addrs.iter().all(|addr| addr.contains("/p2p-circuit/p2p/")), "{addrs:?}");
    let seeker = node(config(&[])).await;
    seeker.net.connect(hidden.net.peer(), &addrs).await.unwrap();
    echo(&seeker.net, &hidden.net, &vec![1; 1 << 20]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_relay_is_asked_when_one_goes_and_there_are_never_more_than_two_places() {
    let relays = [relay_with(RelayLimits::default()).await, relay_with(RelayLimits::default()).await];
    let third = relay_with(RelayLimits::default()).await;
    let hidden = node(config(&[])).await;
    name(&hidden, &[&relays[0], &relays[1], &third]).await;
    hidden.net.connect(third.net.peer(), &third.net.addrs().await).await.unwrap();
    let first = places(&hidden, "two places", |places| places.len() == 2).await;
    let at: Vec<_> = first.iter().map(|place| &place.relay).collect();
    assert_eq!(at, [relays[0].net.peer(), relays[1].net.peer()], "in the order of their naming");
    relays[0].net.shutdown().await;
    let gone = relays[0].net.peer();
    let next =
        places(&hidden, "the third", |places| places.len() == 2 && places.iter().all(|place| place.relay != *gone));
    assert_eq!(next.await[1].relay, *third.net.peer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_without_room_refuses_and_the_next_one_is_asked() {
    let full = relay_with(RelayLimits { reservations: 1, ..RelayLimits::default() }).await;
    let free = relay_with(RelayLimits::default()).await;
    let (first, second) = (node(config(&[])).await, node(config(&[])).await);
    for (node, wanted) in [(&first, &full), (&second, &free)] {
        name(node, &[&full, &free]).await;
        node.net.connect(full.net.peer(), &full.net.addrs().await).await.unwrap();
        places(node, "a place", |places| places.iter().any(|place| place.relay == *wanted.net.peer())).await;
    }
    let at_full = second.net.reach().await.unwrap().places.iter().any(|place| place.relay == *full.net.peer());
    assert!(!at_full);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_gives_places_only_to_whom_it_is_for_and_only_while_it_serves() {
    let (is_member, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let relay_for: iptl_net::RelayFor = {
        let (is_member, asked) = (is_member.clone(), asked.clone());
        Arc::new(move |_| {
            asked.store(true, Ordering::SeqCst);
            is_member.load(Ordering::SeqCst)
        })
    };
    let relay = node(Config { relay_for: Some(relay_for), kad: KadMode::Server, ..config(&[TCP]) }).await;
    let hidden = node(config(&[])).await;
    name(&hidden, &[&relay]).await;
    hidden.net.connect(relay.net.peer(), &relay.net.addrs().await).await.unwrap();
    until("its lot", || async { hidden.net.reach().await.filter(|reach| reach.reached == Some(Reached::Relayed)) })
        .await;
    assert!(!asked.load(Ordering::SeqCst), "a node that does not serve asks nobody whether it may");
    relay.net.serve_relay(true).await;
    assert!(relay.net.reach().await.unwrap().relays);
    until("the refusal", || async { asked.load(Ordering::SeqCst).then_some(()) }).await;
    assert_eq!(hidden.net.reach().await.unwrap().places, []);
    is_member.store(true, Ordering::SeqCst);
    places(&hidden, "the place", |places| places.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn place_is_given_back_once_a_relay_reaches_the_node() {
    let relay = relay_with(RelayLimits::default()).await;
    let node = node(config(&[])).await;
    name(&node, &[&relay]).await;
    node.net.connect(relay.net.peer(), &relay.net.addrs().await).await.unwrap();
    places(&node, "the place", |places| places.len() == 1).await;
    node.net.listen(TCP).await.unwrap();
    places(&node, "no place", <[Place]>::is_empty).await;
    assert_eq!(node.net.reach().await.unwrap().reached, Some(Reached::Directly));
    let circuit = |addrs: Vec<String>| addrs.iter().all(|addr| !addr.contains("p2p-circuit")).then_some(());
    until("its addresses to be direct", || async { circuit(node.net.addrs().await) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuit_that_carried_what_it_may_ends() {
    let relay = relay_with(RelayLimits { circuit_bytes: 64 << 10, ..RelayLimits::default() }).await;
    let hidden = node(config(&[])).await;
    serve(&hidden.net).await;
    name(&hidden, &[&relay]).await;
    hidden.net.connect(relay.net.peer(), &relay.net.addrs().await).await.unwrap();
    places(&hidden, "the place", |places| places.len() == 1).await;
    let seeker = node(config(&[])).await;
    seeker.net.connect(hidden.net.peer(), &hidden.net.addrs().await).await.unwrap();
    echo(&seeker.net, &hidden.net, b"little").await;
    let mut stream = seeker.net.open(hidden.net.peer(), ECHO).await.unwrap();
    let too_much = async {
        stream.write_all(&vec![1; 1 << 20]).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map(|_| answer.len())
    };
    let came = within("the end of the circuit", too_much).await;
    assert!(came.as_ref().map_or(true, |bytes| *bytes < 1 << 20), "{came:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_address_is_dialled_only_where_direct_ones_do_not_answer() {
    let (_relay, circuit) = relay(TCP).await;
    let mut listed = node(Config { listen: vec![TCP.to_owned(), circuit], ..config(&[]) }).await;
    let external = |event: &NetEvent| match event {
        NetEvent::External { addr } if addr.contains("p2p-circuit") => Some(addr.clone()),
        _ => None,
    };
    let relayed = listed.wait("the reservation", external).await;
    let direct = listed.net.addrs().await.into_iter().find(|addr| !addr.contains("p2p-circuit")).unwrap();
    let seeker = node(config(&[])).await;
    seeker.net.connect(listed.net.peer(), &[relayed.clone(), direct]).await.unwrap();
    let peers = seeker.net.peers().await;
    let of_listed: Vec<_> = peers.iter().filter(|info| info.peer == *listed.net.peer()).collect();
    assert!(of_listed.len() == 1 && !of_listed[0].relayed && of_listed[0].addrs.len() == 1, "{of_listed:?}");

    // Whoever listens here takes connections and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port());
    let other = node(config(&[])).await;
    other.net.connect(listed.net.peer(), &[silent, relayed]).await.unwrap();
    let peers = other.net.peers().await;
    assert!(peers.iter().any(|info| info.peer == *listed.net.peer() && info.relayed), "{peers:?}");
}
