//! Collecting and checking the store of a node.

use std::time::Duration;

use iptl_artifacts::contract::sample;
use iptl_dag::Cid;
use iptl_node::Home;
use iptl_node::home::{Config, Store};
use iptl_wire::control::{Reply, Request};

use crate::lab::{Dag, Node, bystander, node, start_again, start_as_it_is, within};

async fn collect(node: &Node) -> iptl_wire::control::CollectReport {
    match node.ask(Request::Collect {}).await.unwrap().as_slice() {
        [Reply::Collected(report)] => *report,
        other => panic!("{other:?}"),
    }
}

async fn check(node: &Node) -> iptl_wire::control::CheckReport {
    match node.ask(Request::Check { repair: true }).await.unwrap().pop() {
        Some(Reply::Checked(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_pins_is_collected_once_its_grace_is_over() {
    let node = node().await;
    let (kept, loose) = (sample(1, 3_000), sample(2, 5_000));
    node.put_hidden(&[kept.clone(), loose.clone()]).await;
    let publish =
        Request::Publish { root: *kept.cid(), kind: "data".to_owned(), name: "kept".to_owned(), public: None };
    node.ask(publish).await.unwrap();
    assert_eq!(collect(&node).await.removed, 0, "it was just uploaded");
    let node = start_again(node.stopped().await).await;
    let report = collect(&node).await;
    assert_eq!((report.kept, report.removed), (1, 1));
    assert!(node.ask(Request::Blocks { cids: vec![*kept.cid()] }).await.is_ok());
    assert!(node.ask(Request::Blocks { cids: vec![*loose.cid()] }).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_block_is_named_by_a_check_and_absent_from_then_on() {
    let node = node().await;
    let blocks = [sample(1, 3_000), sample(2, 5_000)];
    node.put_hidden(&blocks).await;
    assert_eq!(check(&node).await.blocks, 2);
    let dir = node.stopped().await;
    let pack = dir.path().join("store/00000001.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let node = start_again(dir).await;
    let report = check(&node).await;
    assert_eq!((report.blocks, report.damaged, report.repaired, report.left.len()), (1, 1, 0, 1));
    assert_eq!(report.left, [blocks[1].cid().to_string()]);
    node.put_hidden(&blocks).await;
    let report = check(&node).await;
    assert_eq!((report.blocks, report.damaged), (2, 0), "it was put again");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_block_is_fetched_again_from_a_peer_that_has_it() {
    let (node, other) = (node().await, bystander().await);
    let blocks = [sample(1, 3_000), sample(2, 5_000)];
    node.put_hidden(&blocks).await;
    other.put(&blocks).await;
    let dir = node.stopped().await;
    let pack = dir.path().join("store/00000001.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let node = start_again(dir).await;
    // A peer that is connected is asked.
    node.fetch(blocks[0].cid(), vec![other.addr().await], 60_000).await.0.unwrap();
    let report = check(&node).await;
    assert_eq!((report.damaged, report.repaired, report.left.len()), (1, 1, 0), "{report:?}");
    assert!(node.ask(Request::Blocks { cids: vec![*blocks[1].cid()] }).await.is_ok());
    assert_eq!(check(&node).await.damaged, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unpinned_goes_with_the_next_collection() {
    let node = node().await;
    let block = sample(1, 3_000);
    node.put_hidden(std::slice::from_ref(&block)).await;
    let publish =
        Request::Publish { root: *block.cid(), kind: "data".to_owned(), name: "kept".to_owned(), public: None };
    node.ask(publish).await.unwrap();
    let node = start_again(node.stopped().await).await;
    assert_eq!(collect(&node).await.removed, 0);
    node.ask(Request::Unpin { root: *block.cid() }).await.unwrap();
    assert_eq!(node.denied(Request::Unpin { root: *block.cid() }).await, "pin.unknown");
    assert_eq!(collect(&node).await.removed, 1);
}

async fn has(node: &Node, root: &Cid) -> bool {
    node.ask(Request::Blocks { cids: vec![*root] }).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_over_its_quota_drops_what_was_used_longest_ago_and_no_more_than_it_must() {
    let (node, provider) = (node().await, bystander().await);
    // Leaves of different sizes are different.
    let dags: Vec<Dag> = (0..4).map(|number| Dag::new(1, 30, 10_000 + number)).collect();
    let pinned = Dag::new(1, 30, 9_000);
    for dag in dags.iter().chain([&pinned]) {
        provider.put(&dag.blocks()).await;
        node.fetch(dag.cid(), vec![provider.addr().await], 60_000).await.0.unwrap();
    }
    let publish =
        Request::Publish { root: *pinned.cid(), kind: "data".to_owned(), name: "kept".to_owned(), public: None };
    node.ask(publish).await.unwrap();
    // The first is used once more, so the second is what was used longest ago.
    node.fetch(dags[0].cid(), vec![provider.addr().await], 60_000).await.0.unwrap();

    let dir = node.stopped().await;
    let home = Home::open(dir.path()).unwrap();
    let mut config: Config = home.config().unwrap();
    // Room for the pinned one and two others, and a little.
    config.store = Store { quota_bytes: Some(1_000_000) };
    home.set_config(&config).unwrap();
    drop(home);
    let node = start_as_it_is(dir).await;
    // Looked at from outside: what is read while it is collected stays.
    let store = node.dir.path().join("store");
    let on_disk = || {
        let files = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap());
        let packs = files.filter(|entry| entry.path().extension().is_some_and(|ext| ext == "pack"));
        // One may go between the list and the look.
        packs.map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum::<u64>()
    };
    let evicting = async {
        while on_disk() > 1_000_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the store to be within its quota", evicting).await;
    for kept in [&dags[0], &dags[3], &pinned] {
        for block in kept.blocks() {
            assert!(has(&node, block.cid()).await, "{} was dropped", block.cid());
        }
    }
    for gone in &dags[1..3] {
        assert!(!has(&node, gone.cid()).await, "{} stayed", gone.cid());
    }
}
