//! What the DHT is told of what is kept: public roots by their hashes, others only to who knows the lab and the root.

use std::time::Duration;

use iptl_dag::{Cid, PeerId};
use iptl_node::announce::members_key;
use iptl_wire::control::{Reply, Request};
use iptl_wire::lab::Role;

use crate::lab::{Dag, Node, Stranger, lab, member, node, within};

/// Long enough for everything that succeeds.
const PATIENT_MS: u64 = 60_000;

/// Time for one search in a DHT of few nodes, all of which answer.
const SEARCH: Duration = Duration::from_secs(5);

async fn publish(keeper: &Node, dag: &Dag, public: bool) -> Cid {
    keeper.put_hidden(&dag.blocks()).await;
    let root = *dag.cid();
    keeper
        .ask(Request::Publish { root, kind: "data".to_owned(), name: "x".to_owned(), public: Some(public) })
        .await
        .unwrap();
    root
}

/// A peer in the same DHT that knows the keeper alone.
async fn stranger(keeper: &Node, seed: u8) -> Stranger {
    let stranger = Stranger::new(seed).await;
    stranger.net.connect(&keeper.peer(), &[keeper.addr().await]).await.unwrap();
    stranger
}

async fn is_found(keeper: &Node, by: &Stranger, key: &[u8]) -> bool {
    by.net.providers(key, SEARCH).await.contains(&keeper.peer())
}

/// Waits until a key is found: the DHT is told beside what was asked for.
async fn becomes_found(keeper: &Node, by: &Stranger, key: &[u8]) {
    within("a provider", async { while !is_found(keeper, by, key).await {} }).await;
}

async fn lab_of(keeper: &Node) -> PeerId {
    match keeper.ask(Request::Status {}).await.unwrap().pop() {
        Some(Reply::Status(status)) => status.lab.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_members_alone_may_read_is_told_to_nobody_by_its_name() {
    let keeper = lab(false).await;
    let (hidden, shown) = (Dag::new(1, 3, 300), Dag::new(1, 3, 310));
    let hidden = publish(&keeper, &hidden, false).await;
    let shown = publish(&keeper, &shown, true).await;
    let lab = lab_of(&keeper).await;
    let first = stranger(&keeper, 120).await;
    becomes_found(&keeper, &first, &shown.hash().to_bytes()).await;
    becomes_found(&keeper, &first, &members_key(&lab, &hidden)).await;
    assert!(!is_found(&keeper, &first, &hidden.hash().to_bytes()).await);
    assert!(!is_found(&keeper, &first, &members_key(&lab, &shown)).await);

    // Shared, it is for everybody.
    keeper.ask(Request::Share { root: hidden }).await.unwrap();
    becomes_found(&keeper, &first, &hidden.hash().to_bytes()).await;

    // Shared no more, whoever was told before may remember it, and nobody else is told.
    keeper.ask(Request::Unshare { root: hidden }).await.unwrap();
    first.net.shutdown().await;
    let second = stranger(&keeper, 121).await;
    becomes_found(&keeper, &second, &members_key(&lab, &hidden)).await;
    assert!(!is_found(&keeper, &second, &hidden.hash().to_bytes()).await);

    // Nor is it after a restart.
    second.net.shutdown().await;
    let keeper = keeper.restarted().await;
    let third = stranger(&keeper, 122).await;
    becomes_found(&keeper, &third, &shown.hash().to_bytes()).await;
    becomes_found(&keeper, &third, &members_key(&lab, &hidden)).await;
    assert!(!is_found(&keeper, &third, &hidden.hash().to_bytes()).await);

    // What is pinned no more is not announced either.
    keeper.ask(Request::Unpin { root: shown }).await.unwrap();
    third.net.shutdown().await;
    let fourth = stranger(&keeper, 123).await;
    becomes_found(&keeper, &fourth, &members_key(&lab, &hidden)).await;
    assert!(!is_found(&keeper, &fourth, &shown.hash().to_bytes()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_else_may_read_is_announced_once_there_is_a_lab() {
    let keeper = node().await;
    let (hidden, shown) = (Dag::new(1, 3, 320), Dag::new(1, 3, 330));
    let hidden = publish(&keeper, &hidden, false).await;
    let shown = publish(&keeper, &shown, true).await;
    let stranger = stranger(&keeper, 124).await;
    becomes_found(&keeper, &stranger, &shown.hash().to_bytes()).await;
    assert!(!is_found(&keeper, &stranger, &hidden.hash().to_bytes()).await);
    keeper.ask(Request::LabInit { name: "lab".to_owned(), open: false, private: false }).await.unwrap();
    let lab = lab_of(&keeper).await;
    becomes_found(&keeper, &stranger, &members_key(&lab, &hidden)).await;
    assert!(!is_found(&keeper, &stranger, &hidden.hash().to_bytes()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_find_what_they_keep_for_each_other() {
    let lab = lab(false).await;
    let (keeper, reader) = (member(&lab, Role::Developer).await, member(&lab, Role::Developer).await);
    let dag = Dag::new(2, 5, 340);
    let root = publish(&keeper, &dag, false).await;
    let report = reader.fetch(&root, Vec::new(), PATIENT_MS).await.0.unwrap();
    assert_eq!(report.providers, [(keeper.peer(), dag.bytes())]);
}
