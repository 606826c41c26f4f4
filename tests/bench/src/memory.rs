//! What both sides use of memory while much moves from one node to another.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iptl_artifacts::BlobStore;
use iptl_artifacts::import::at_once;
use iptl_artifacts_pack::PackStore;
use iptl_dag::unixfs::FileBuilder;
use iptl_dag::{Block, Cid, Codec, Ipld, codec};
use serde_json::Value;

use crate::blocks::Noise;
use crate::lab::{iptl, program};
use crate::process::{peak_kib, pss_kib};
use crate::reference::{Transport, mb_per};
use crate::report::Row;

/// Bytes that are handed to the builder at a time.
const PIECE: usize = 1 << 20;

/// Between two looks at the memory of both.
pub const PAUSE: Duration = Duration::from_millis(50);

/// Room on the disk beside both stores.
pub const RESERVE: u64 = 2 << 30;

/// Most memory of either side, in MB.
const GOAL_MB: f64 = 150.0;

/// Moves `bytes` from a node to one of a command, by each transport, and then many small blocks. Both have them on the disk,
/// so twice the room is taken.
pub async fn measure(bytes: u64) -> Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    let stat = nix::sys::statvfs::statvfs(dir.path())?;
    let room = stat.blocks_available() * stat.fragment_size();
    ensure!(room >= 2 * bytes + RESERVE, "{room} bytes are free, and moving {bytes} takes twice as much and some more");
    let large = dir.path().join("large");
    let root = fill(&large.join("store"), bytes).await?;
    let mut rows = by_each(dir.path(), &large, &root, &format!("{} MiB", bytes >> 20), bytes)?;
    std::fs::remove_dir_all(large)?;
    let small = dir.path().join("small");
    let root = fill_small(&small.join("store")).await?;
    let what = format!("{SMALL} blocks of {SMALL_SIZE} bytes");
    rows.extend(by_each(dir.path(), &small, &root, &what, SMALL * SMALL_SIZE as u64)?);
    Ok(rows)
}

/// Moves everything under a root that a home has, by each transport.
fn by_each(dir: &Path, home: &Path, root: &Cid, what: &str, bytes: u64) -> Result<Vec<Row>> {
    let origin = Origin::start(home)?;
    iptl(home, &["-q", "share", &root.to_string()])?;
    let mut rows = Vec::new();
    for transport in [Transport::Quic, Transport::Tcp] {
        let receiver = dir.join("receiver");
        rows.push(move_all(&origin, &receiver, root, transport, what, bytes)?);
        std::fs::remove_dir_all(receiver)?;
    }
    Ok(rows)
}

fn move_all(origin: &Origin, home: &Path, root: &Cid, transport: Transport, what: &str, bytes: u64) -> Result<Row> {
    let addr = origin.addr(transport)?;
    let begun = Instant::now();
    let args = ["-q", "get", &root.to_string(), "--store-only", "--peer", addr, "--timeout", "60s"];
    let mut receiver = program(home, &args)?.stdout(Stdio::null()).spawn()?;
    let mut peaks = [Peak::default(), Peak::default()];
    let status = loop {
        let status = receiver.try_wait()?;
        if let Some(status) = status {
            break status;
        }
        for (peak, pid) in peaks.iter_mut().zip([origin.child.id(), receiver.id()]) {
            // The receiver may end between the look whether it has and this one.
            if let (Ok(pss), Ok(rss)) = (pss_kib(pid), peak_kib(pid)) {
                peak.pss_kib = peak.pss_kib.max(pss);
                peak.rss_kib = peak.rss_kib.max(rss);
            }
        }
        std::thread::sleep(PAUSE);
    };
    ensure!(status.success(), "the receiver: {status}");
    let took = begun.elapsed();
    let mb = |kib: u64| (kib << 10) as f64 / 1e6;
    let [sent, received] = peaks.map(|peak| (mb(peak.rss_kib), mb(peak.pss_kib)));
    Ok(Row {
        measure: format!("memory while {what} move into another node's store over {}", transport.name()),
        figure: format!(
            "origin {:.0} MB, receiver {:.0} MB at most ({:.0} and {:.0} MB PSS); {:.0} MB/s",
            sent.0,
            received.0,
            sent.1,
            received.1,
            mb_per(bytes, took)
        ),
        reference: "–".into(),
        ratio: "–".into(),
        goal: format!("< {GOAL_MB} MB on both sides"),
        reached: Some(sent.0.max(received.0) < GOAL_MB),
        bound: "resident pages, the program's own included; batches in flight, windows of the transport, the index"
            .into(),
    })
}

/// Small blocks of a DAG, and bytes of each.
pub const SMALL: u64 = 1_000_000;
pub const SMALL_SIZE: usize = 1024;

/// Small blocks under one node.
const WIDTH: usize = 1000;

/// Fills a store with many small blocks under nodes, and those under one root.
pub async fn fill_small(store: &Path) -> Result<Cid> {
    let store = PackStore::open(store).await?;
    let node = |cids: Vec<Cid>| codec::to_block(&Ipld::List(cids.into_iter().map(Ipld::Link).collect()));
    let mut nodes = Vec::new();
    for first in (0..SMALL).step_by(WIDTH) {
        let leaf = |number: u64| {
            let mut data = vec![7; SMALL_SIZE];
            data[..8].copy_from_slice(&number.to_le_bytes());
            Block::new(Codec::Raw, data)
        };
        let mut blocks: Vec<Block> = (first..first + WIDTH as u64).map(leaf).collect();
        blocks.push(node(blocks.iter().map(|block| *block.cid()).collect()));
        nodes.extend(blocks.last().map(|block| *block.cid()));
        store.put(blocks).await?;
    }
    let root = node(nodes);
    let cid = *root.cid();
    store.put(vec![root]).await?;
    store.close().await?;
    Ok(cid)
}

/// The most that a process had.
#[derive(Clone, Copy, Default)]
struct Peak {
    rss_kib: u64,
    pss_kib: u64,
}

/// Fills a store with one file of bytes that do not repeat; returns its root.
pub async fn fill(store: &Path, bytes: u64) -> Result<Cid> {
    let store = PackStore::open(store).await?;
    let (mut noise, mut piece) = (Noise::default(), vec![0; PIECE]);
    let (mut file, mut blocks) = (FileBuilder::new().at_once(at_once), Vec::new());
    for _ in 0..bytes / PIECE as u64 {
        noise.fill(&mut piece);
        file.push(&piece, &mut blocks);
        if !blocks.is_empty() {
            store.put(std::mem::take(&mut blocks)).await?;
        }
    }
    let entry = file.finish(&mut blocks);
    store.put(blocks).await?;
    store.close().await?;
    Ok(entry.cid)
}

/// A node that serves; it ends with the value.
struct Origin {
    child: Child,
    addrs: Vec<String>,
}

impl Origin {
    fn start(home: &Path) -> Result<Origin> {
        let listen = ["--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--listen", "/ip4/127.0.0.1/tcp/0"];
        let mut command = program(home, &["up", "--no-mdns", "--json"])?;
        let mut child = command.args(listen).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("it is piped")?;
        let mut origin = Origin { child, addrs: Vec::new() };
        let line = BufReader::new(stdout).lines().next().context("it tells its addresses")??;
        let up: Value = serde_json::from_str(&line)?;
        let addrs = up["addrs"].as_array().context("no addresses")?;
        origin.addrs = addrs.iter().filter_map(|addr| Some(addr.as_str()?.to_owned())).collect();
        Ok(origin)
    }

    fn addr(&self, transport: Transport) -> Result<&str> {
        let part = match transport {
            Transport::Quic => "/quic-v1/",
            Transport::Tcp => "/tcp/",
        };
        let found = self.addrs.iter().find(|addr| addr.contains(part));
        Ok(found.with_context(|| format!("no address with {part} in {:?}", self.addrs))?)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
