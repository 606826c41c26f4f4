//! Peers, ports and stores that are not what they should be.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::WorkloadKind;
use iptl_e2e::{Foreground, Home, Lab, iptl, run, until};
use iptl_trust::Keypair;
use iptl_wire::frame;
use iptl_wire::lab::{MemberToken, Role};
use iptl_wire::session::{Hello, Inventory, Slots, ToLablet, ToOrchestrator};
use iptl_wire::time::WallTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port());
    let home = Home::new();
    let output = home.run(&["up", "--no-mdns", "--listen", &address]).fails(1, "net.port-in-use");
    assert!(output.stderr.contains(&taken.local_addr().unwrap().port().to_string()), "{}", output.stderr);
}

#[test]
fn store_opened_twice() {
    let home = Home::new();
    let _node = Foreground::start(home.path(), &[]);
    home.run(&["up", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0"]).fails(1, "home.locked");
    // The first one does not notice.
    home.run(&["status"]).exits(0);
}

#[test]
fn two_lablets_with_one_identity() {
    let lab = Lab::start(1);
    let copy = Home::new();
    for name in ["identity.key", "lab.cbor"] {
        std::fs::copy(lab.lablets[0].home.join(name), copy.path().join(name)).unwrap();
    }
    let _twin = Foreground::start(copy.path(), &[]);
    let log = || std::fs::read_to_string(copy.path().join("node.log")).unwrap_or_default();
    until("a word about the other one", || log().contains("identity").then_some(()));
    // The lab goes on with the one that it knows.
    let status = lab.run(&["status", "--json"]).exits(0).json();
    assert_eq!((status["lablets"].as_u64(), status["lablets_ready"].as_u64()), (Some(1), Some(1)), "{status}");
    assert_eq!(run(&mut iptl(copy.path(), &["status"])).code, 5);
}

#[test]
fn bid_from_a_stranger() {
    let lab = Lab::start(1);
    let lab_peer: PeerId = {
        let status = lab.run(&["status", "--json"]).exits(0).json();
        status["lab"].as_str().unwrap().parse().unwrap()
    };
    let seed = [23; 32];
    let stranger = Keypair::from_seed(&seed);
    // It has written its own token: the lab has not signed it.
    let token = MemberToken {
        lab: lab_peer,
        member: stranger.peer().clone(),
        role: Role::Lablet,
        expires: WallTime(u64::MAX / 2),
    };
    let hello = ToOrchestrator::Hello(Hello {
        token: iptl_trust::sign(&stranger, token),
        version: "0.1.0".to_owned(),
        boot: [1; 16],
        inventory: Inventory {
            name: "stranger".to_owned(),
            slots: BTreeMap::from([(WorkloadKind::Wasm, Slots::of(1000))]),
            ..Default::default()
        },
        cells: Vec::new(),
        promised: None,
        finished: Vec::new(),
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answer = runtime.block_on(async {
        let config =
            iptl_net::Config { seed, listen: Vec::new(), mdns: false, private_addrs_ok: true, ..Default::default() };
        let (net, _events) = iptl_net::start(config).await.unwrap();
        let orchestrator = net.connect_addr(&lab.orchestrator.addrs[0]).await.unwrap();
        let mut stream = net.open(&orchestrator, iptl_wire::session::PROTOCOL).await.unwrap();
        stream.write_all(&frame::encode(&hello)).await.unwrap();
        let read = async {
            let mut header = [0; frame::HEADER_SIZE];
            stream.read_exact(&mut header).await.ok()?;
            let mut body = vec![0; frame::length(header, 1 << 20).ok()?];
            stream.read_exact(&mut body).await.ok()?;
            frame::decode::<ToLablet>(&body).ok()
        };
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("an answer or an end")
    });
    runtime.shutdown_background();
    match answer {
        Some(ToLablet::Turned(reason)) => assert!(!reason.is_empty()),
        None => {}
        Some(other) => panic!("a stranger got {other:?}"),
    }
    let status = lab.run(&["status", "--json"]).exits(0).json();
    assert_eq!(status["lablets"], 1, "{status}");
    let log = std::fs::read_to_string(lab.orchestrator.home.join("node.log")).unwrap();
    assert!(log.contains(&stranger.peer().to_string()), "the refusal is not in the log:\n{log}");
}
