//! Many small blocks: in one DAG between our own stores, and by Bitswap between our nodes and the peer on boxo; and what a
//! second version of a file costs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iptl_artifacts::contract::sample;
use iptl_artifacts::import::{ImportOptions, import_path};
use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_iroh::{PROTOCOL, Provider, get_many};
use iptl_artifacts_pack::PackStore;
use iptl_dag::{Block, Cid, Ipld, block, codec};
use iptl_net::{Bitswap, Net};
use iptl_node::fetch::{Fetcher, Wanted};
use iptl_node::links::Links;

use crate::blocks::write_noise;
use crate::lab::repository;
use crate::process::own_cpu;
use crate::reference::Transport;
use crate::report::Row;

/// Blocks of the DAG that moves between our stores.
const BLOCKS: u64 = 50_000;

/// Bytes of each.
const SIZE: usize = 4 << 10;

/// Links of a node of that DAG.
const WIDTH: usize = 1000;

/// Blocks that are moved over a stream each, and streams at a time.
const STREAM_EACH: usize = 4_000;
const STREAMS: usize = 16;

/// Leaves that move by Bitswap: the peer on boxo links all of them from one node, which may have 2 MiB.
const TRADED: u64 = 20_000;

/// Bytes of the file that has a second version.
const FILE: u64 = 100_000_000;

/// Streams that wait to be served.
const QUEUE: usize = 64;

/// Measures everything.
pub async fn measure() -> Result<Vec<Row>> {
    let mut rows = vec![many(Transport::Quic).await?, many(Transport::Tcp).await?, traded().await?];
    rows.extend(versions().await?);
    Ok(rows)
}

/// Two nodes, of which the first serves a store.
struct Pair {
    a: Net,
    b: Net,
    serving: tokio::task::JoinHandle<()>,
}

impl Pair {
    async fn new(transport: Transport, store: Arc<dyn BlobStore>) -> Result<Pair> {
        let (a, b) = (transport.node(105).await?, transport.node(106).await?);
        let provider = Provider::over(store);
        let mut incoming = Links::new(a.peer().clone(), Some(a.clone())).accept(PROTOCOL, QUEUE).await;
        let serving = tokio::spawn(async move {
            while let Some((_, stream)) = incoming.recv().await {
                let provider = provider.clone();
                // Whoever asked sees it when a stream breaks.
                tokio::spawn(async move { provider.serve(stream).await });
            }
        });
        b.connect(a.peer(), &a.addrs().await).await?;
        Ok(Pair { a, b, serving })
    }

    async fn wanted(&self, root: Cid) -> Wanted {
        let from = vec![(self.a.peer().clone(), self.a.addrs().await)];
        Wanted { root, from, fellows: Vec::new(), timeout: Duration::from_secs(30), shallow: false }
    }

    fn fetcher(&self, sink: Arc<dyn BlobStore>) -> Fetcher {
        Fetcher::new(sink, Links::new(self.b.peer().clone(), Some(self.b.clone())))
    }

    async fn end(self) {
        self.serving.abort();
        self.a.shutdown().await;
        self.b.shutdown().await;
    }
}

fn node(children: &[Cid]) -> Block {
    codec::to_block(&Ipld::List(children.iter().map(|child| Ipld::Link(*child)).collect()))
}

/// A DAG of many small blocks from one store on disk into another, and the same blocks over a stream each.
async fn many(transport: Transport) -> Result<Row> {
    let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    let source = PackStore::open(dir.path().join("source")).await?;
    let (mut leaves, mut nodes) = (Vec::new(), Vec::new());
    for first in (0..BLOCKS).step_by(WIDTH) {
        let blocks: Vec<Block> = (first..first + WIDTH as u64).map(|seed| sample(seed, SIZE)).collect();
        let cids: Vec<Cid> = blocks.iter().map(|block| *block.cid()).collect();
        nodes.push(node(&cids));
        leaves.extend(cids);
        source.put(blocks).await?;
    }
    let root = node(&nodes.iter().map(|node| *node.cid()).collect::<Vec<_>>());
    nodes.push(root.clone());
    source.put(nodes).await?;
    source.flush().await?;
    let pair = Pair::new(transport, Arc::new(source)).await?;

    let sink: Arc<dyn BlobStore> = Arc::new(PackStore::open(dir.path().join("sink")).await?);
    let (begun, cpu) = (Instant::now(), own_cpu());
    let report = pair.fetcher(sink.clone()).fetch(&pair.wanted(*root.cid()).await, |_| {}).await?;
    sink.flush().await?;
    let ours = report.blocks as f64 / begun.elapsed().as_secs_f64();
    let busy = (own_cpu() - cpu).as_secs_f64() * 1e6 / report.blocks as f64;
    ensure!(report.blocks > BLOCKS, "{} blocks came", report.blocks);

    let (begun, cpu) = (Instant::now(), own_cpu());
    let mut tasks = tokio::task::JoinSet::new();
    let (peer, addrs) = (pair.a.peer().clone(), pair.a.addrs().await);
    for part in leaves[..STREAM_EACH].chunks(STREAM_EACH / STREAMS) {
        let (part, peer, addrs) = (part.to_vec(), peer.clone(), addrs.clone());
        let links = Links::new(pair.b.peer().clone(), Some(pair.b.clone()));
        tasks.spawn(async move {
            for cid in part {
                let hash = block::blake3_digest(&cid).context("a leaf is under BLAKE3")?;
                let stream = links.open(&peer, &addrs, PROTOCOL).await?;
                let outcome = get_many(stream, &[hash], &mut |_, _| {}).await?;
                ensure!(outcome.received == 1, "a block did not come");
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let each = STREAM_EACH as f64 / begun.elapsed().as_secs_f64();
    let each_busy = (own_cpu() - cpu).as_secs_f64() * 1e6 / STREAM_EACH as f64;
    pair.end().await;
    let ratio = ours / each;
    Ok(Row {
        measure: format!("DAG of {BLOCKS} blocks of {SIZE} bytes into the store over {}", transport.name()),
        figure: format!("{ours:.0} blocks/s, {busy:.0} µs of the processors each"),
        reference: format!(
            "a stream per block, {STREAMS} at a time, stored nowhere: {each:.0} blocks/s, {each_busy:.0} µs each"
        ),
        ratio: format!("{ratio:.1} ×, {:.1} × per CPU second", each_busy / busy),
        goal: "≥ 5 ×, ≥ 40,000 blocks/s".into(),
        reached: Some(ratio >= 5.0 && ours >= 40_000.0),
        bound: "both sides share the processors: the kernel's pages under the new store, then hashing and encryption; \
                the reference does less, since it stores nothing and knows all hashes beforehand"
            .into(),
    })
}

/// The peer on boxo, as the tests use it.
struct Boxo {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    addr: String,
}

impl Boxo {
    fn start(program: &Path) -> Result<Boxo> {
        let mut command = Command::new(program);
        command.arg("/ip4/127.0.0.1/tcp/0").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let input = child.stdin.take().context("it is piped")?;
        let output = BufReader::new(child.stdout.take().context("it is piped")?);
        let mut boxo = Boxo { child, input, output, addr: String::new() };
        boxo.addr = boxo.line()?;
        Ok(boxo)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}")?;
        let answer = self.line()?;
        Ok(answer.strip_prefix("ok").with_context(|| format!("{command}: {answer}"))?.trim().to_owned())
    }
}

impl Drop for Boxo {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One DAG by Bitswap, four ways over TCP.
async fn traded() -> Result<Row> {
    let program = witness()?;
    let (mut first, mut second) = (Boxo::start(&program)?, Boxo::start(&program)?);
    let root: Cid = first.ask(&format!("put sha2-256 {TRADED} {SIZE}"))?.parse()?;
    second.ask(&format!("connect {}", first.addr))?;
    let begun = Instant::now();
    second.ask(&format!("fetch {root}"))?;
    let boxo_boxo = begun.elapsed().as_secs_f64();

    let peer = first.addr.rsplit('/').next().context("an address with its peer")?.parse()?;
    let (net, store) = (Transport::Tcp.node(107).await?, Arc::new(MemStore::new()));
    let ours_boxo = fetch_traded(&net, store.clone(), root, (peer, vec![first.addr.clone()])).await?;

    let everybody = Arc::new(|_: &iptl_dag::PeerId, _: &iptl_artifacts::Multihash| true);
    let serving = Transport::Tcp.node(108).await?;
    let _bitswap = Bitswap::start(&serving, store, everybody).await?;
    let mut third = Boxo::start(&program)?;
    third.ask(&format!("connect {}", serving.addrs().await.first().context("it listens")?))?;
    let begun = Instant::now();
    third.ask(&format!("fetch {root}"))?;
    let boxo_ours = begun.elapsed().as_secs_f64();

    let fresh = Transport::Tcp.node(109).await?;
    let source = (serving.peer().clone(), serving.addrs().await);
    let ours_ours = fetch_traded(&fresh, Arc::new(MemStore::new()), root, source).await?;
    for net in [net, serving, fresh] {
        net.shutdown().await;
    }
    let rate = |seconds: f64| TRADED as f64 / seconds;
    let worst = [ours_boxo, boxo_ours, ours_ours].into_iter().fold(0.0, f64::max);
    Ok(Row {
        measure: format!("DAG of {TRADED} blocks of {SIZE} bytes by Bitswap over TCP, in memory"),
        figure: format!(
            "ours ← ours {:.0}, boxo ← ours {:.0}, ours ← boxo {:.0} blocks/s",
            rate(ours_ours),
            rate(boxo_ours),
            rate(ours_boxo)
        ),
        reference: format!("boxo ← boxo: {:.0} blocks/s", rate(boxo_boxo)),
        ratio: format!(
            "{:.2} ×, {:.2} ×, {:.2} ×",
            boxo_boxo / ours_ours,
            boxo_boxo / boxo_ours,
            boxo_boxo / ours_boxo
        ),
        goal: "not slower".into(),
        reached: Some(worst <= boxo_boxo),
        bound: "messages of boxo carry 16 KiB of blocks, each on a stream of its own; SHA2-256 on both sides".into(),
    })
}

async fn fetch_traded(
    net: &Net,
    store: Arc<dyn BlobStore>,
    root: Cid,
    source: (iptl_dag::PeerId, Vec<String>),
) -> Result<f64> {
    let everybody = Arc::new(|_: &iptl_dag::PeerId, _: &iptl_artifacts::Multihash| true);
    let bitswap = Bitswap::start(net, store.clone(), everybody).await?;
    let links = Links::new(net.peer().clone(), Some(net.clone()));
    let fetcher = Fetcher::new(store, links).with_bitswap(Some(bitswap));
    net.connect(&source.0, &source.1).await?;
    let (from, timeout) = (vec![source], Duration::from_secs(30));
    let begun = Instant::now();
    let report = fetcher.fetch(&Wanted { root, from, fellows: Vec::new(), timeout, shallow: false }, |_| {}).await?;
    ensure!(report.blocks == TRADED + 1, "{} blocks came", report.blocks);
    Ok(begun.elapsed().as_secs_f64())
}

fn witness() -> Result<PathBuf> {
    let program = repository().join("target/interop/go/witness");
    ensure!(program.exists(), "{} is missing: run `cargo xtask witnesses`", program.display());
    Ok(program)
}

/// What moves of a file of which some bytes changed.
async fn versions() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (edits, size, goal) in [(1_u64, 1_000_000_usize, Some(2.0)), (10, 100_000, Some(4.0)), (100, 10_000, None)] {
        let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
        let file = dir.path().join("file");
        write_noise(&file, FILE)?;
        let source = PackStore::open(dir.path().join("source")).await?;
        let first = import_path(&source, &file, &ImportOptions::default()).await?.cid;
        let changed = fs::File::options().write(true).open(&file)?;
        for edit in 0..edits {
            let bytes: Vec<u8> = (0..size as u64).map(|at| (at.wrapping_mul(edit * 2 + 0x9e37) >> 3) as u8).collect();
            // Not where they would meet the leaves' own edges more often than chance has it.
            changed.write_all_at(&bytes, edit * (FILE / edits) + FILE / edits / 3)?;
        }
        let second = import_path(&source, &file, &ImportOptions::default()).await?.cid;
        source.flush().await?;
        let pair = Pair::new(Transport::Tcp, Arc::new(source)).await?;
        let fetcher = pair.fetcher(Arc::new(MemStore::new()));
        let whole = fetcher.fetch(&pair.wanted(first).await, |_| {}).await?.bytes_fetched;
        let moved = fetcher.fetch(&pair.wanted(second).await, |_| {}).await?.bytes_fetched;
        pair.end().await;
        let percent = moved as f64 / whole as f64 * 100.0;
        rows.push(Row {
            measure: format!("second version of a file of {FILE} bytes, {edits} edits of {size} bytes: bytes moved"),
            figure: format!("{:.2} MB", moved as f64 / 1e6),
            reference: format!("the first version: {:.2} MB", whole as f64 / 1e6),
            ratio: format!("{percent:.2} %"),
            goal: goal.map_or("report".into(), |goal| format!("≤ {goal} %")),
            reached: goal.map(|goal| percent <= goal),
            bound: "leaves that an edit touches, 64 KiB on average, and the nodes above them".into(),
        });
    }
    Ok(rows)
}
