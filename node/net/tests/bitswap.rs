//! Bitswap over real streams: this node's client and server, and peers that speak it badly.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_bitswap::{Ask, Entry, Fault, Frames, Message, PROTOCOL, PROTOCOL_1_1, Payload, Visible, frame};
use iptl_dag::{Block, Cid, Codec, Multihash, PeerId};
use iptl_net::{Bitswap, BitswapSession, Net, SessionEvent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{Node, QUIC, TCP, config, node, pair, within};

fn blocks(count: u64, size: usize) -> Vec<Block> {
    let bytes = |i: u64| [&i.to_le_bytes()[..], &vec![7; size]].concat();
    (0..count).map(|i| Block::new(Codec::Raw, bytes(i))).collect()
}

fn cids(blocks: &[Block]) -> Vec<Cid> {
    blocks.iter().map(|block| *block.cid()).collect()
}

fn everything() -> Visible {
    Arc::new(|_: &PeerId, _: &Multihash| true)
}

/// Serves blocks out of memory.
async fn serving(net: &Net, blocks: Vec<Block>, visible: Visible) -> Bitswap {
    let store = MemStore::default();
    store.put(blocks).await.unwrap();
    Bitswap::start(net, Arc::new(store), visible).await.unwrap()
}

/// A session of a node that has nothing, with one peer.
async fn asking(node: &Node, peer: &Node) -> (Bitswap, BitswapSession) {
    let bitswap = serving(&node.net, Vec::new(), everything()).await;
    let session = bitswap.session().await;
    session.peers(vec![(peer.net.peer().clone(), Vec::new())]).await;
    (bitswap, session)
}

async fn next(session: &mut BitswapSession) -> SessionEvent {
    within("what a session is told", session.next()).await.expect("the node runs")
}

/// Takes blocks until as many have come.
async fn take(session: &mut BitswapSession, count: usize) -> BTreeSet<Cid> {
    let mut taken = BTreeSet::new();
    while taken.len() < count {
        match next(session).await {
            SessionEvent::Block { block, .. } => assert!(taken.insert(*block.cid())),
            other => panic!("{other:?}"),
        }
    }
    taken
}

async fn check_many(listen: &str, count: u64, size: usize) {
    let (a, b) = pair(listen).await;
    let blocks = blocks(count, size);
    let _serving = serving(&b.net, blocks.clone(), everything()).await;
    let (_bitswap, mut session) = asking(&a, &b).await;
    session.want(cids(&blocks)).await;
    assert_eq!(take(&mut session, blocks.len()).await, cids(&blocks).into_iter().collect());
}

#[tokio::test]
async fn blocks_come_over_tcp() {
    check_many(TCP, 3_000, 1_000).await;
}

#[tokio::test]
async fn blocks_come_over_quic() {
    check_many(QUIC, 3_000, 1_000).await;
}

#[tokio::test]
async fn blocks_of_the_largest_size_come() {
    check_many(TCP, 12, (2 << 20) - 8).await;
}

#[tokio::test]
async fn a_peer_that_is_not_connected_is_dialled_at_the_addresses_that_are_named() {
    let (a, b) = (node(config(&[TCP])).await, node(config(&[TCP])).await);
    let blocks = blocks(3, 100);
    let _serving = serving(&b.net, blocks.clone(), everything()).await;
    let bitswap = serving(&a.net, Vec::new(), everything()).await;
    let mut session = bitswap.session().await;
    session.peers(vec![(b.net.peer().clone(), b.net.addrs().await)]).await;
    session.want(cids(&blocks)).await;
    take(&mut session, 3).await;
}

#[tokio::test]
async fn other_hashes_than_blake3_come_too() {
    let (a, b) = pair(TCP).await;
    let data = b"under another hash".to_vec();
    let blocks: Vec<Block> = [0x12, 0x13, 0x16, 0xb220].map(|code| Block::hashed(code, data.clone()).unwrap()).into();
    let _serving = serving(&b.net, blocks.clone(), everything()).await;
    let (_bitswap, mut session) = asking(&a, &b).await;
    session.want(cids(&blocks)).await;
    assert_eq!(take(&mut session, 4).await, cids(&blocks).into_iter().collect());
}

#[tokio::test]
async fn what_a_peer_may_not_read_is_lacking_until_it_may() {
    let (a, b) = pair(TCP).await;
    let blocks = blocks(2, 100);
    let hidden: Arc<Mutex<BTreeSet<Multihash>>> = Arc::new(Mutex::new([*blocks[0].cid().hash()].into()));
    let (rule, asker) = (hidden.clone(), a.net.peer().clone());
    let visible =
        Arc::new(move |peer: &PeerId, hash: &Multihash| *peer != asker || !rule.lock().unwrap().contains(hash));
    let served = serving(&b.net, blocks.clone(), visible).await;
    let (_bitswap, mut session) = asking(&a, &b).await;
    session.want(cids(&blocks)).await;
    let first = [next(&mut session).await, next(&mut session).await];
    assert!(first.contains(&SessionEvent::Lacking { cid: *blocks[0].cid() }), "{first:?}");
    hidden.lock().unwrap().clear();
    served.arrived(vec![*blocks[0].cid().hash()]).await;
    assert_eq!(take(&mut session, 1).await, [*blocks[0].cid()].into());
}

#[tokio::test]
async fn a_peer_that_does_not_speak_it_is_dropped_at_once() {
    let (a, b) = pair(TCP).await;
    let (_bitswap, mut session) = asking(&a, &b).await;
    session.want(cids(&blocks(1, 10))).await;
    let (mut dropped, mut lacking) = (false, false);
    while !(dropped && lacking) {
        match next(&mut session).await {
            SessionEvent::Dropped { peer, fault: Fault::Unreachable { .. } } => dropped = peer == *b.net.peer(),
            SessionEvent::Lacking { .. } => lacking = true,
            other => panic!("{other:?}"),
        }
    }
}

/// A peer that reads the other's wants, and answers on a stream of its own what `answer` makes of each message.
async fn playing(node: Node, protocol: &'static str, answer: impl Fn(Message) -> Vec<u8> + Send + 'static) {
    let mut incoming = node.net.accept(protocol, 4).await.unwrap();
    tokio::spawn(async move {
        let (peer, mut stream) = incoming.next().await.unwrap();
        let mut out = node.net.open(&peer, protocol).await.unwrap();
        let mut frames = Frames::default();
        loop {
            while let Some(bytes) = frames.pop().unwrap() {
                let answer = answer(Message::decode(&bytes).unwrap());
                // Whoever is lied to hangs up.
                if out.write_all(&answer).await.is_err() || out.flush().await.is_err() {
                    return;
                }
            }
            if !matches!(stream.read_buf(frames.buffer()).await, Ok(1..)) {
                return;
            }
        }
    });
}

#[tokio::test]
async fn a_liar_is_dropped_and_an_honest_peer_asked() {
    let (a, liar) = pair(TCP).await;
    let honest = node(config(&[TCP])).await;
    a.net.connect(honest.net.peer(), &honest.net.addrs().await).await.unwrap();
    let blocks = blocks(5, 100);
    let _serving = serving(&honest.net, blocks.clone(), everything()).await;
    let liars_name = liar.net.peer().clone();
    playing(liar, PROTOCOL, |message| {
        let lie = |entry: &Entry| Payload::new(&entry.cid, entry.cid.to_string().into_bytes().into());
        frame(&Message { payload: message.entries.iter().map(lie).collect(), ..Message::default() }).to_vec()
    })
    .await;
    let bitswap = serving(&a.net, Vec::new(), everything()).await;
    let mut session = bitswap.session().await;
    session.peers(vec![(liars_name.clone(), Vec::new()), (honest.net.peer().clone(), Vec::new())]).await;
    session.want(cids(&blocks)).await;
    let (mut came, mut named) = (0, false);
    while came < 5 || !named {
        match next(&mut session).await {
            SessionEvent::Block { from, .. } => {
                assert_eq!(from, *honest.net.peer());
                came += 1;
            }
            SessionEvent::Dropped { peer, fault } => named = peer == liars_name && fault.is_lie(),
            SessionEvent::Lacking { .. } => {}
        }
    }
}

#[tokio::test]
async fn what_is_no_message_ends_the_service_of_its_sender() {
    let garbage = [vec![0xff; 20], vec![3, 0x0a, 0x7f, 0], vec![0x81, 0x80, 0x80, 0x02]];
    for bytes in garbage {
        let (a, b) = pair(TCP).await;
        let (_bitswap, mut session) = asking(&a, &b).await;
        let who = b.net.peer().clone();
        playing(b, PROTOCOL, move |_| bytes.clone()).await;
        session.want(cids(&blocks(1, 10))).await;
        loop {
            match next(&mut session).await {
                SessionEvent::Dropped { peer, fault } => {
                    assert!(peer == who && matches!(fault, Fault::Malformed { .. }), "{fault}");
                    break;
                }
                SessionEvent::Lacking { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_peer_of_the_version_before_is_asked_in_its_way() {
    let (a, old) = pair(TCP).await;
    let blocks = blocks(4, 100);
    let store = blocks.clone();
    playing(old, PROTOCOL_1_1, move |message| {
        let found = |entry: &Entry| {
            assert_ne!(entry.ask, Ask::Have);
            store.iter().find(|block| block.cid() == &entry.cid).map(|b| Payload::new(b.cid(), b.data().clone()))
        };
        frame(&Message { payload: message.entries.iter().filter_map(found).collect(), ..Message::default() }).to_vec()
    })
    .await;
    // Until a stream is open nothing is known of its version, so a single peer is asked for the bytes.
    let bitswap = serving(&a.net, Vec::new(), everything()).await;
    let mut session = bitswap.session().await;
    let peer = a.net.peers().await[0].peer.clone();
    session.peers(vec![(peer, Vec::new())]).await;
    session.want(cids(&blocks)).await;
    take(&mut session, 4).await;
}

#[tokio::test]
async fn a_node_that_is_shut_down_lets_go_of_the_store() {
    let node = node(config(&[TCP])).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let bitswap = Bitswap::start(&node.net, store.clone(), everything()).await.unwrap();
    let mut session = bitswap.session().await;
    node.net.shutdown().await;
    assert_eq!(within("the end of the session", session.next()).await, None);
    within("the store to be let go of", async {
        while Arc::strong_count(&store) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
