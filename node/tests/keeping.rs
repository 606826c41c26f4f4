//! Collecting and checking the store of a node.

use iptl_artifacts::contract::sample;
use iptl_wire::control::{Reply, Request};

use crate::lab::{Node, node, start_again};

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
