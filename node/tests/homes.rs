//! What a node finds when it starts, and what it leaves.

use std::path::Path;

use iptl_node::{HomeError, StartError};
use iptl_wire::control::{ListKind, Reply, Request};

use crate::lab::{Dag, home, node, options, start_again};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_a_home_is_refused() {
    let first = node().await;
    match iptl_node::start(home(&first.dir), options()).await {
        Err(StartError::Home(HomeError::Locked { path })) => assert!(same(&path, first.dir.path())),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_a_home_is_named() {
    let rows: [(&str, &[u8], &str); 5] = [
        ("node.toml", b"listen = [", "node.toml"),
        ("node.toml", b"lisen = []", "lisen"),
        ("identity.key", b"short", "5 bytes instead of 32"),
        ("lab.cbor", b"\xff\xff", "lab.cbor"),
        ("pins.cbor", b"\xff\xff", "pins.cbor"),
    ];
    for (file, content, said) in rows {
        let dir = tempfile::tempdir().unwrap();
        let home = home(&dir);
        std::fs::write(dir.path().join(file), content).unwrap();
        let error = iptl_node::start(home, options()).await.err().expect("a damaged home starts no node");
        let text = error.to_string();
        assert!(text.contains(file) && text.contains(said), "{file}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stopped_starts_again_with_what_it_had() {
    let first = node().await;
    let (peer, dag) = (first.peer(), Dag::new(1, 3, 1000));
    first.put(&dag.blocks()).await;
    let publish =
        Request::Publish { root: *dag.cid(), kind: "data".to_owned(), name: "things".to_owned(), public: None };
    first.ask(publish).await.unwrap();
    first.running.stop().await;
    let again = start_again(first.dir).await;
    assert_eq!(again.peer(), peer);
    let (report, _) = again.fetch(dag.cid(), vec![], 0).await;
    assert_eq!(report.unwrap().bytes_fetched, 0);
    let rows = again.ask(Request::List { what: ListKind::Pins }).await.unwrap();
    let is_pinned = |reply: &Reply| matches!(reply, Reply::Row(row) if row["cid"] == dag.cid().to_string());
    assert!(rows.iter().any(is_pinned), "{rows:?}");
}

fn same(a: &Path, b: &Path) -> bool {
    a.canonicalize().unwrap() == b.canonicalize().unwrap()
}
