//! The fetcher: from whom blocks come, what a cut costs, and what a provider may do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts_iroh::Provider;
use iptl_dag::unixfs::{FileBuilder, Profile};
use iptl_dag::walk::Limits;
use iptl_dag::{Block, Cid, Codec, Multihash, PeerId};
use iptl_net::{Bitswap, SessionEvent};
use iptl_node::fetch::{FetchError, Fetcher, Wanted};
use iptl_node::framed;
use iptl_node::links::Links;
use iptl_trust::Keypair;
use iptl_wire::control::{FailureKind, FetchReport, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Dag, Node, Stranger, answer_to, answering, bystander, parent, store_of, within};

/// Long enough for everything that succeeds.
const PATIENT_MS: u64 = 60_000;

/// Time after which a fetch that cannot succeed gives up.
const SHORT_MS: u64 = 300;

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_dag_comes_from_one_provider() {
    let (provider, asker) = (bystander().await, bystander().await);
    let dag = Dag::new(3, 40, 1000);
    provider.put(&dag.blocks()).await;
    let report = fetched(&asker, dag.cid(), &[&provider]).await;
    assert_eq!((report.blocks, report.bytes, report.bytes_fetched), (124, dag.bytes(), dag.bytes()));
    assert_eq!(report.providers, [(provider.peer(), dag.bytes())]);
    assert_eq!(report.dropped, []);
    assert_eq!(present(&asker, &dag).await, dag.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_not_fetched_again() {
    let (provider, asker) = (bystander().await, bystander().await);
    let dag = Dag::new(2, 10, 1000);
    provider.put(&dag.blocks()).await;
    fetched(&asker, dag.cid(), &[&provider]).await;
    let again = fetched(&asker, dag.cid(), &[&provider]).await;
    assert_eq!((again.bytes, again.bytes_fetched), (dag.bytes(), 0));
    assert_eq!(again.providers, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_providers_with_half_each_make_a_whole() {
    let (first, second, asker) = (bystander().await, bystander().await, bystander().await);
    let dag = Dag::new(2, 40, 1000);
    let (even, odd): (Vec<_>, Vec<_>) = dag.leaves.iter().cloned().enumerate().partition(|(i, _)| i % 2 == 0);
    let half = |leaves: Vec<(usize, Block)>| leaves.into_iter().map(|(_, block)| block).collect::<Vec<_>>();
    first.put(&[vec![dag.root.clone()], half(even)].concat()).await;
    second.put(&[dag.nodes.clone(), half(odd)].concat()).await;
    let report = fetched(&asker, dag.cid(), &[&first, &second]).await;
    assert_eq!((report.bytes, report.bytes_fetched), (dag.bytes(), dag.bytes()));
    let by: Vec<_> = report.providers.iter().map(|(peer, _)| peer.clone()).collect();
    assert_eq!(BTreeSet::from_iter(by), BTreeSet::from([first.peer(), second.peer()]));
    assert_eq!(report.providers.iter().map(|(_, bytes)| bytes).sum::<u64>(), dag.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_where_its_provider_left_it() {
    let (poor, rich, asker) = (bystander().await, bystander().await, bystander().await);
    let dag = Dag::new(4, 40, 1000);
    poor.put(&[std::slice::from_ref(&dag.root), &dag.nodes, &dag.leaves[..50]].concat()).await;
    rich.put(&dag.blocks()).await;

    let (cut, told) = asker.fetch(dag.cid(), vec![poor.addr().await], SHORT_MS).await;
    assert_eq!(cut.unwrap_err().code, "fetch.no-provider");
    let before = told.iter().fold(0, |bytes, reply| match reply {
        Reply::Progress(progress) => progress.bytes_fetched,
        _ => bytes,
    });
    assert!(before > 0 && before < dag.bytes(), "{before} of {}", dag.bytes());
    assert_eq!(before, present(&asker, &dag).await);

    let report = fetched(&asker, dag.cid(), &[&rich]).await;
    assert_eq!((report.bytes, report.bytes_fetched), (dag.bytes(), dag.bytes() - before));
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_a_batch_that_was_cut_are_kept() {
    let asker = bystander().await;
    let dag = Dag::new(1, 40, 1000);
    // Answers with the first blocks and then says nothing more, nor ends.
    let stalling = Stranger::new(31).await;
    let mut incoming = stalling.blob_streams().await;
    let some = Provider::over(store_of([&dag.blocks()[..2], &dag.leaves[..10]].concat()).await);
    let serving = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Some((_, mut stream)) = incoming.next().await {
            let answer = answer_to(&mut stream, &some).await;
            stream.write_all(&answer).await.unwrap();
            stream.flush().await.unwrap();
            match answer.len() {
                // The leaves, all in one batch.
                5_000.. => open.push(stream),
                _ => stream.shutdown().await.unwrap(),
            }
        }
    });
    let mut asking = asker.running.connect();
    let peers = vec![stalling.addr().await];
    let request = Request::Fetch { root: *dag.cid(), peers, timeout_ms: PATIENT_MS, shallow: false };
    framed::write(&mut asking, &request).await.unwrap();
    let expected = dag.bytes() - 30_000;
    let kept = async {
        while present(&asker, &dag).await < expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the blocks that came", kept).await;
    assert_eq!(present(&asker, &dag).await, expected);
    drop(asking);
    serving.abort();

    let honest = bystander().await;
    honest.put(&dag.blocks()).await;
    assert_eq!(fetched(&asker, dag.cid(), &[&honest]).await.bytes_fetched, 30_000);
}

/// What one batch of them would hold does not fit into memory, and shows only when they come.
#[tokio::test(flavor = "multi_thread")]
async fn large_leaves_are_asked_for_a_few_at_a_time_once_some_came() {
    let asker = bystander().await;
    let dag = Dag::new(1, 40, 1 << 20);
    let origin = Stranger::new(33).await;
    let mut incoming = origin.blob_streams().await;
    let provider = Provider::over(store_of(dag.blocks()).await);
    let (asked, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.unwrap();
            // Some bytes around 32 of each hash.
            asked.send(request.len() / 32).unwrap();
            let (mut pipe, end) = tokio::io::duplex(1 << 20);
            pipe.write_all(&request).await.unwrap();
            pipe.shutdown().await.unwrap();
            let provider = provider.clone();
            tokio::spawn(async move { provider.serve(end).await });
            // The asker lets go of a stream whose batch is full.
            tokio::spawn(async move {
                if tokio::io::copy(&mut pipe, &mut stream).await.is_ok() {
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    let (report, _) = asker.fetch(dag.cid(), vec![origin.addr().await], PATIENT_MS).await;
    serving.abort();
    let report = report.unwrap();
    assert_eq!((report.bytes, report.bytes_fetched), (dag.bytes(), dag.bytes()), "none is counted twice");
    assert_eq!(report.dropped, []);
    let mut counts = Vec::new();
    while let Ok(count) = heard.try_recv() {
        counts.push(count);
    }
    let leaves = &counts[2..];
    assert_eq!(leaves[0], 40, "{counts:?}");
    assert!(leaves[1..].iter().all(|count| *count <= 4) && leaves.len() >= 7, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_dropped_and_named_and_the_honest_serves_the_rest() {
    let (honest, asker) = (bystander().await, bystander().await);
    let liar = liar(32).await;
    // Two batches on one level: both are asked, whatever the order of their names.
    let dag = Dag::new(2, 40, 1000);
    honest.put(&dag.blocks()).await;
    let peers = vec![liar.addr().await, honest.addr().await];
    let report = asker.fetch(dag.cid(), peers, PATIENT_MS).await.0.unwrap();
    assert_eq!((report.bytes, report.bytes_fetched), (dag.bytes(), dag.bytes()));
    assert_eq!(report.providers, [(honest.peer(), dag.bytes())]);
    assert_eq!(report.dropped.len(), 1);
    assert_eq!(report.dropped[0].0, *liar.net.peer());
    assert!(report.dropped[0].1.starts_with("lied"), "{}", report.dropped[0].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_alone_is_a_failure_that_names_it() {
    let asker = bystander().await;
    let liar = liar(33).await;
    let dag = Dag::new(1, 1, 1000);
    let failure = asker.fetch(dag.cid(), vec![liar.addr().await], SHORT_MS).await.0.unwrap_err();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::NotFound, "fetch.liar"));
    assert!(failure.message.contains(&liar.net.peer().short()), "{}", failure.message);
    assert_eq!(present(&asker, &dag).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_announces_too_large_a_block_is_a_liar() {
    let asker = bystander().await;
    let boaster = answering(34, u64::MAX.to_le_bytes().to_vec()).await;
    let dag = Dag::new(1, 1, 1000);
    let failure = asker.fetch(dag.cid(), vec![boaster.addr().await], SHORT_MS).await.0.unwrap_err();
    assert_eq!(failure.code, "fetch.liar");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_is_not_found_in_time() {
    let (other, asker) = (bystander().await, bystander().await);
    let dag = Dag::new(1, 1, 1000);
    for peers in [vec![], vec![other.addr().await]] {
        let (failed, told) = asker.fetch(dag.cid(), peers, SHORT_MS).await;
        let failure = failed.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::NotFound, "fetch.no-provider"));
        assert!(failure.message.contains(&dag.cid().to_string()), "{}", failure.message);
        let waiting =
            |reply: &Reply| matches!(reply, Reply::Progress(p) if p.waiting.contains("looking for a provider"));
        assert!(told.iter().any(waiting), "nothing said what it waits for");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_that_cannot_be_fetched_and_a_damaged_node_say_so() {
    let asker = bystander().await;
    let sha1 = Cid::new_v1(Codec::Raw.number(), Multihash::wrap(0x11, &[1; 20]).unwrap());
    assert_eq!(asker.fetch(&sha1, vec![], PATIENT_MS).await.0.unwrap_err().code, "fetch.hash");
    let damaged = Block::new(Codec::DagCbor, vec![0xff; 9]);
    asker.put(std::slice::from_ref(&damaged)).await;
    assert_eq!(asker.fetch(damaged.cid(), vec![], PATIENT_MS).await.0.unwrap_err().code, "fetch.damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dag_beyond_the_limits_is_refused() {
    let dag = Dag::new(2, 2, 1000);
    let rows = [
        (Limits { depth: 2, blocks: 7, bytes: dag.bytes() }, true),
        (Limits { depth: 1, ..Limits::default() }, false),
        (Limits { blocks: 6, ..Limits::default() }, false),
        (Limits { bytes: dag.bytes() - 1, ..Limits::default() }, false),
    ];
    for (limits, accepted) in rows {
        let links = Links::new(Keypair::from_seed(&[1; 32]).peer().clone(), None);
        let fetcher = Fetcher::new(store_of(dag.blocks()).await, links).within(limits);
        let wanted =
            Wanted { root: *dag.cid(), from: vec![], fellows: Vec::new(), timeout: Duration::ZERO, shallow: false };
        match fetcher.fetch(&wanted, |_| {}).await {
            Ok(report) => assert!(accepted && report.blocks == 7, "{limits:?}"),
            Err(FetchError::TooLarge { root, .. }) => assert!(!accepted && root == *dag.cid(), "{limits:?}"),
            Err(error) => panic!("{limits:?}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_as_long_as_a_log_is_fetched() {
    let mut chain = vec![Block::new(Codec::Raw, "first")];
    for _ in 0..2000 {
        chain.push(parent(std::slice::from_ref(chain.last().unwrap())));
    }
    let root = *chain.last().unwrap().cid();
    let links = Links::new(Keypair::from_seed(&[1; 32]).peer().clone(), None);
    let fetcher = Fetcher::new(store_of(chain).await, links);
    let wanted = Wanted { root, from: vec![], fellows: Vec::new(), timeout: Duration::ZERO, shallow: false };
    assert_eq!(fetcher.fetch(&wanted, |_| {}).await.unwrap().blocks, 2001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shallow_fetch_takes_the_root_alone() {
    let (provider, asker) = (bystander().await, bystander().await);
    let dag = Dag::new(2, 2, 1000);
    provider.put(&dag.blocks()).await;
    let peers = vec![provider.addr().await];
    let request = Request::Fetch { root: *dag.cid(), peers, timeout_ms: PATIENT_MS, shallow: true };
    asker.ask(request).await.unwrap();
    assert_eq!(present(&asker, &dag).await, dag.root.data().len() as u64);
}

/// SHA2-256 does not move by iroh-blobs.
#[tokio::test(flavor = "multi_thread")]
async fn a_dag_under_another_hash_comes_by_bitswap() {
    let (provider, asker) = (bystander().await, bystander().await);
    let mut blocks = Vec::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut file = FileBuilder::with_profile(Profile::UnixFsV1);
    file.push(&bytes, &mut blocks);
    let root = file.finish(&mut blocks).cid;
    assert_eq!((root.hash().code(), blocks.len()), (0x12, 4));
    provider.put(&blocks).await;
    let report = fetched(&asker, &root, &[&provider]).await;
    let size: u64 = blocks.iter().map(|block| block.data().len() as u64).sum();
    assert_eq!((report.blocks, report.bytes, report.bytes_fetched), (4, size, size));
    assert_eq!(report.providers, [(provider.peer(), size)]);
    assert_eq!(report.dropped, []);
}

/// A peer that speaks Bitswap alone gives what is under BLAKE3 too.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_speaks_only_bitswap_is_good_for_blake3() {
    let asker = bystander().await;
    let outsider = Stranger::new(35).await;
    let dag = Dag::new(3, 40, 1000);
    let everything = Arc::new(|_: &PeerId, _: &Multihash| true);
    let _serving = Bitswap::start(&outsider.net, store_of(dag.blocks()).await, everything).await.unwrap();
    let report = asker.fetch(dag.cid(), vec![outsider.addr().await], PATIENT_MS).await.0.unwrap();
    assert_eq!((report.blocks, report.bytes, report.bytes_fetched), (124, dag.bytes(), dag.bytes()));
    assert_eq!(report.providers, [(outsider.net.peer().clone(), dag.bytes())]);
    assert_eq!(present(&asker, &dag).await, dag.bytes());
}

/// What an outsider asks for by Bitswap it gets, whatever the hash.
#[tokio::test(flavor = "multi_thread")]
async fn an_outsider_gets_blocks_by_bitswap() {
    let provider = bystander().await;
    let outsider = Stranger::new(36).await;
    let mut blocks = Dag::new(1, 3, 1000).blocks();
    let others = [(0x12, 32), (0x13, 64), (0x16, 32), (0xb214, 20), (0x12, 20), (0x16, 20), (0x1e, 20), (0x1e, 64)];
    blocks.extend(others.map(|(code, size)| Block::hashed_to(code, size, &b"under another hash"[..]).unwrap()));
    provider.put(&blocks).await;
    let everything = Arc::new(|_: &PeerId, _: &Multihash| true);
    let bitswap = Bitswap::start(&outsider.net, store_of(Vec::new()).await, everything).await.unwrap();
    let mut session = bitswap.session().await;
    session.peers(vec![(provider.peer(), vec![provider.addr().await])]).await;
    session.want(blocks.iter().map(|block| *block.cid()).collect()).await;
    for _ in 0..blocks.len() {
        let event = within("a block", session.next()).await.unwrap();
        assert!(matches!(&event, SessionEvent::Block { block, .. } if blocks.contains(block)), "{event:?}");
    }
}

/// Fetches what must succeed.
async fn fetched(asker: &Node, root: &Cid, from: &[&Node]) -> FetchReport {
    let mut peers = Vec::new();
    for provider in from {
        peers.push(provider.addr().await);
    }
    asker.fetch(root, peers, PATIENT_MS).await.0.unwrap()
}

/// Returns the bytes of a DAG that a node has.
async fn present(node: &Node, dag: &Dag) -> u64 {
    let mut bytes = 0;
    for block in dag.blocks() {
        match node.ask(Request::Blocks { cids: vec![*block.cid()] }).await {
            Ok(_) => bytes += block.data().len() as u64,
            Err(failure) => assert_eq!(failure.code, "block.missing", "{failure}"),
        }
    }
    bytes
}

/// A peer that answers every request for blocks with a small block of garbage.
async fn liar(seed: u8) -> Stranger {
    answering(seed, [&100_u64.to_le_bytes()[..], &[9; 100]].concat()).await
}
