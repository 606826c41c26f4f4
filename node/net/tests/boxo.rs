//! Bitswap with software that knows nothing of the lab: the peer on boxo and go-libp2p in `tests/interop/go`.
//!
//! `cargo xtask witnesses` builds it, which `cargo xtask test` does too.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_dag::unixfs::{FileBuilder, Profile};
use iptl_dag::{Block, Cid, Multihash, PeerId, walk};
use iptl_net::{Bitswap, BitswapSession, SessionEvent};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::lab::{Node, QUIC, TCP, config, node, within};

/// BLAKE3-256 and SHA2-256, as boxo calls them.
const HASHES: [&str; 2] = ["blake3", "sha2-256"];

/// A running peer on boxo.
struct Boxo {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    addr: String,
}

impl Boxo {
    async fn start(listen: &str) -> Boxo {
        let program = built("go/witness");
        let mut command = Command::new(&program);
        command.arg(listen).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = within("the address of boxo's peer", lines.next_line()).await.unwrap().unwrap();
        Boxo { stdin: child.stdin.take().unwrap(), lines, addr, _child: child }
    }

    async fn ask(&mut self, command: &str) -> String {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let answer = within(command, self.lines.next_line()).await.unwrap().expect("it runs");
        let answer = answer.strip_prefix("ok").unwrap_or_else(|| panic!("{command}: {answer}"));
        answer.trim().to_owned()
    }

    fn peer(&self) -> PeerId {
        self.addr.rsplit('/').next().unwrap().parse().unwrap()
    }
}

/// Returns a file that `cargo xtask witnesses` makes.
fn built(path: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the build folder");
    let path = target.join("interop").join(path);
    assert!(path.exists(), "{} is missing: run `cargo xtask witnesses`", path.display());
    path
}

/// A file of some megabytes under a hash: its root and blocks.
fn file(hash: &str) -> (Cid, Vec<Block>) {
    let profile = if hash == "blake3" { Profile::Iptl } else { Profile::UnixFsV1 };
    let bytes: Vec<u8> = (0..1_250_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (mut file, mut blocks) = (FileBuilder::with_profile(profile), Vec::new());
    file.push(&bytes, &mut blocks);
    let root = file.finish(&mut blocks).cid;
    (root, blocks)
}

async fn serving(node: &Node, blocks: Vec<Block>) -> Bitswap {
    let store = MemStore::default();
    store.put(blocks).await.unwrap();
    Bitswap::start(&node.net, Arc::new(store), Arc::new(|_: &PeerId, _: &Multihash| true)).await.unwrap()
}

/// Fetches a whole DAG, level by level, and returns its blocks.
async fn fetch(session: &mut BitswapSession, root: Cid) -> Vec<Block> {
    let (mut blocks, mut wanted) = (Vec::new(), 1);
    session.want(vec![root]).await;
    while wanted > 0 {
        match within("a block of boxo's", session.next()).await.unwrap() {
            SessionEvent::Block { block, .. } => {
                let links = walk::links(block.cid(), block.data()).unwrap();
                wanted = wanted + links.len() - 1;
                session.want(links).await;
                blocks.push(block);
            }
            SessionEvent::Lacking { .. } => {}
            SessionEvent::Dropped { fault, .. } => panic!("boxo's peer was dropped: {fault}"),
        }
    }
    blocks
}

async fn check_boxo_fetches(listen: &str) {
    for hash in HASHES {
        let here = node(config(&[listen])).await;
        let (root, blocks) = file(hash);
        let bytes: usize = blocks.iter().map(|block| block.data().len()).sum();
        let count = blocks.len();
        let _serving = serving(&here, blocks).await;
        let mut boxo = Boxo::start(listen).await;
        boxo.ask(&format!("connect {}", here.net.addrs().await[0])).await;
        assert_eq!(boxo.ask(&format!("fetch {root}")).await, format!("{count} {bytes}"), "{hash}");
    }
}

async fn check_boxo_serves(listen: &str) {
    for hash in HASHES {
        let here = node(config(&[listen])).await;
        let bitswap = serving(&here, Vec::new()).await;
        let mut boxo = Boxo::start(listen).await;
        for (count, size) in [(200, 10_000), (3, 1 << 20)] {
            let root: Cid = boxo.ask(&format!("put {hash} {count} {size}")).await.parse().unwrap();
            let mut session = bitswap.session().await;
            session.peers(vec![(boxo.peer(), vec![boxo.addr.clone()])]).await;
            let blocks = fetch(&mut session, root).await;
            assert_eq!(blocks.len(), count + 1, "{hash}");
            assert!(blocks[1..].iter().all(|block| block.data().len() == size), "{hash}");
        }
    }
}

#[tokio::test]
async fn boxo_fetches_a_dag_over_tcp() {
    check_boxo_fetches(TCP).await;
}

#[tokio::test]
async fn boxo_fetches_a_dag_over_quic() {
    check_boxo_fetches(QUIC).await;
}

#[tokio::test]
async fn a_dag_that_only_boxo_has_is_fetched_over_tcp() {
    check_boxo_serves(TCP).await;
}

#[tokio::test]
async fn a_dag_that_only_boxo_has_is_fetched_over_quic() {
    check_boxo_serves(QUIC).await;
}
