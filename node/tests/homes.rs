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
    let rows: [(&str, &[u8], &str); 6] = [
        ("node.toml", b"listen = [", "node.toml"),
        ("node.toml", b"lisen = []", "lisen"),
        ("node.toml", b"[network]\negress = [\"192.0.2.7:443\"]", "HOST:PORT/tcp"),
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

#[test]
fn what_an_owner_says_of_the_network_is_kept_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(&dir);
    assert!(home.config().unwrap().network.egress.is_empty() && home.config().unwrap().network.realtime);
    // A label that looks like a grant is none.
    let text = "[labels]\nregion = \"eu\"\n\"egress/10.0.0.1:1/tcp\" = \"granted\"\n\n[network]\nrealtime = false\n\
                egress = [\"192.0.2.7:443/tcp\", \"bootstrap.example:4001/udp\"]\n";
    std::fs::write(dir.path().join("node.toml"), text).unwrap();
    let config = home.config().unwrap();
    home.set_config(&config).unwrap();
    assert_eq!(home.config().unwrap(), config);
    assert!(!config.docker.runner(dir.path().to_owned(), config.limits, &config.network).realtime);
    let told: Vec<(String, String)> = config.told_labels().into_iter().collect();
    let granted = |place: &str| (format!("egress/{place}"), "granted".to_owned());
    let region = ("region".to_owned(), "eu".to_owned());
    assert_eq!(told, [granted("192.0.2.7:443/tcp"), granted("bootstrap.example:4001/udp"), region]);
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
