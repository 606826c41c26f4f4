//! Blocks in and out, publishing, fetching.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptl_artifacts::{PinKind, StoreError, read_block};
use iptl_dag::{Block, Cid, Codec, model};
use iptl_wire::control::{Failure, FailureKind, FetchProgress, MAX_FRAME_SIZE, MAX_PROVIDERS_TOLD, Reply, Upload};

use super::{Caller, Talk, broken, failure};
use crate::fetch::{FetchError, Wanted};
use crate::framed;
use crate::node::Node;

/// Bytes of uploaded blocks that are put at once.
const PUT_BYTES: usize = 8 << 20;

/// Time between two words about a fetch that goes on.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn put(node: &Node, caller: &Caller, talk: &mut Talk) -> Result<(), Failure> {
    caller.owner()?;
    let _grace = node.keeper.grace();
    let mut blocks = Vec::new();
    let mut size = 0;
    loop {
        match framed::expect::<Upload>(&mut talk.reader, MAX_FRAME_SIZE).await.map_err(broken)? {
            Upload::Block { cid, data } => {
                size += data.len();
                let block = Block::verify(cid, data).map_err(|e| {
                    failure(FailureKind::Usage, "block.bad", e.to_string(), "send the bytes that the CID names")
                })?;
                blocks.push(block);
            }
            Upload::End {} => break,
        }
        if size >= PUT_BYTES {
            node.store.put(std::mem::take(&mut blocks)).await.map_err(store)?;
            size = 0;
        }
    }
    node.store.put(blocks).await.map_err(store)?;
    node.store.flush().await.map_err(store)
}

pub(super) async fn publish(
    node: &Node,
    caller: &Caller,
    root: Cid,
    kind: &str,
    name: &str,
    public: Option<bool>,
) -> Result<(), Failure> {
    caller.owner()?;
    let kind = match kind {
        "plan" => PinKind::Plan,
        "workload" => PinKind::Workload,
        "data" => PinKind::Data,
        "result" => PinKind::Result,
        other => {
            let message = format!("{other:?} is no kind of thing that is published");
            return Err(failure(FailureKind::Usage, "publish.kind", message, "one of plan, workload, data, result"));
        }
    };
    node.store.flush().await.map_err(store)?;
    node.keeper.keep(root, kind, name, public).await.map_err(broken)
}

pub(super) async fn share(node: &Node, caller: &Caller, root: Cid, talk: &mut Talk) -> Result<(), Failure> {
    caller.owner()?;
    stored(node, &root).await?;
    node.store.flush().await.map_err(store)?;
    let added = node.keeper.share(root).await.map_err(broken)?;
    talk.say(Reply::Shared { blocks: added.blocks, missing: added.missing, still_public: true }).await
}

pub(super) async fn unshare(node: &Node, caller: &Caller, root: Cid, talk: &mut Talk) -> Result<(), Failure> {
    caller.owner()?;
    let (found, still_public) = node.keeper.unshare(&root).await.map_err(broken)?;
    if !found {
        let help = "see what is: `iptl ls pins`";
        return Err(failure(FailureKind::NotFound, "share.not-pinned", format!("{root} is not kept here"), help));
    }
    talk.say(Reply::Shared { blocks: 0, missing: 0, still_public }).await
}

/// Keeps what is here. Whether all of it is, whoever asks has seen to: what a fetch brought stays for some minutes.
pub(super) async fn pin(
    node: &Node,
    caller: &Caller,
    root: Cid,
    direct: bool,
    name: Option<String>,
) -> Result<(), Failure> {
    caller.owner()?;
    let kind = kind_of(&stored(node, &root).await?);
    node.store.flush().await.map_err(store)?;
    if !direct {
        return node.keeper.pin(root, kind, name).await.map_err(broken);
    }
    if node.keeper.pin_block(root, kind, name).await.map_err(broken)? {
        return Ok(());
    }
    let message = format!("{root} is pinned with all that it leads to");
    Err(failure(FailureKind::Usage, "pin.recursive", message, "to keep less of it, take that pin away: `iptl unpin`"))
}

/// Says what a root is, for lists.
fn kind_of(root: &Block) -> PinKind {
    let Some(Codec::DagCbor) = Codec::of(root.cid()) else { return PinKind::Data };
    match model::Node::from_bytes(root.data()) {
        Ok(model::Node::Plan(_)) => PinKind::Plan,
        Ok(model::Node::Workload(_)) => PinKind::Workload,
        Ok(model::Node::Result(_) | model::Node::FormerResult(_)) => PinKind::Result,
        Ok(_) | Err(_) => PinKind::Data,
    }
}

/// Reads a block that has to be here.
async fn stored(node: &Node, cid: &Cid) -> Result<Block, Failure> {
    read_block(&*node.store, cid).await.map_err(store)?.ok_or_else(|| {
        let help = "fetch it first: `iptl get`";
        failure(FailureKind::NotFound, "block.missing", format!("{cid} is not in this node's store"), help)
    })
}

pub(super) async fn unpin(node: &Node, caller: &Caller, root: Cid) -> Result<(), Failure> {
    caller.owner()?;
    if node.keeper.unpin(&root).await.map_err(broken)? {
        return Ok(());
    }
    let help = "see what is: `iptl ls pins`";
    Err(failure(FailureKind::NotFound, "pin.unknown", format!("{root} is not pinned here"), help))
}

/// What is to be fetched, as it is asked for.
pub(super) struct Fetch {
    pub(super) root: Cid,
    pub(super) part: Part,
    pub(super) peers: Vec<String>,
    pub(super) timeout_ms: u64,
}

/// How much of it.
pub(super) enum Part {
    /// The block of the root.
    Root,
    /// Everything.
    All,
    /// What holds these bytes of a file.
    Bytes(Range<u64>),
}

pub(super) async fn fetch(node: &Arc<Node>, caller: &Caller, what: Fetch, talk: &mut Talk) -> Result<(), Failure> {
    caller.owner()?;
    let Fetch { root, part, peers, timeout_ms } = what;
    let mut from = Vec::new();
    for addr in peers {
        from.push((reach(node, &addr).await?, vec![addr]));
    }
    let _grace = node.keeper.grace();
    let shallow = matches!(part, Part::Root);
    let wanted = Wanted { root, from, fellows: Vec::new(), timeout: Duration::from_millis(timeout_ms), shallow };
    let (progress, mut told) = tokio::sync::watch::channel(FetchProgress::default());
    let tell = |now| {
        progress.send_replace(now);
    };
    let fetching = async {
        match &part {
            Part::Root | Part::All => node.fetcher.fetch(&wanted, tell).await,
            Part::Bytes(range) => node.fetcher.fetch_range(&wanted, range.clone(), tell).await,
        }
    };
    tokio::pin!(fetching);
    let mut last = Instant::now();
    let report = loop {
        tokio::select! {
            done = &mut fetching => break done.map_err(fetch_failure)?,
            Ok(()) = told.changed() => {
                let now = told.borrow_and_update().clone();
                if last.elapsed() >= PROGRESS_PAUSE || !now.waiting.is_empty() {
                    last = Instant::now();
                    talk.say(Reply::Progress(bounded(now))).await?;
                }
            }
        }
    };
    node.store.flush().await.map_err(store)?;
    match part {
        Part::Root => {}
        Part::All => node.keeper.used(root, Some(report.bytes)),
        Part::Bytes(_) => node.keeper.used(root, None),
    }
    talk.say(Reply::Fetched(report)).await
}

/// Names no more providers than are told: those that gave most.
fn bounded(mut now: FetchProgress) -> FetchProgress {
    now.from.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    now.from.truncate(MAX_PROVIDERS_TOLD);
    now
}

/// Connects to a multiaddr that a person gave.
async fn reach(node: &Node, addr: &str) -> Result<iptl_dag::PeerId, Failure> {
    let net = node.links.net().ok_or_else(|| {
        let help = "leave `--peer` out, or run without `--local`";
        failure(FailureKind::Usage, "fetch.offline", "this node runs without a network".to_owned(), help)
    })?;
    net.connect_addr(addr).await.map_err(|e| {
        let (kind, help) = match e {
            iptl_net::DialError::BadAddr(_) => (FailureKind::Usage, "for example /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…"),
            _ => (FailureKind::NotFound, "see whether a node runs there: `iptl status` on that machine"),
        };
        failure(kind, "fetch.peer", format!("{addr}: {e}"), help)
    })
}

pub(super) fn fetch_failure(error: FetchError) -> Failure {
    let message = error.to_string();
    match error {
        FetchError::NoProvider { dropped, .. } => {
            let code = if dropped.iter().any(|(_, reason)| reason.starts_with("lied")) {
                "fetch.liar"
            } else {
                "fetch.no-provider"
            };
            let help = "see that a node which has it runs and can be reached; name one with `--peer ADDR`, or wait longer \
                        with `--timeout`; what came is kept";
            failure(FailureKind::NotFound, code, message, help)
        }
        FetchError::NotFetchable { .. } => {
            failure(FailureKind::NotFound, "fetch.hash", message, "publish the content again with this tool")
        }
        FetchError::Damaged { .. } => {
            failure(FailureKind::Broken, "fetch.damaged", message, "whoever published it wrote a broken DAG; tell them")
        }
        FetchError::NotAFile { .. } => {
            failure(FailureKind::Usage, "fetch.not-a-file", message, "leave the range out, or name a file below it")
        }
        FetchError::TooLarge { .. } => {
            failure(FailureKind::Usage, "fetch.too-large", message, "fetch a part of it: `iptl get CID/path`")
        }
        FetchError::NoRoom { .. } => {
            let help =
                "free some space, raise the quota of the store in node.toml, or fetch a part: `iptl get CID/path`";
            failure(FailureKind::Broken, "fetch.no-room", message, help)
        }
        FetchError::Store(error) => store(error),
    }
}

pub(super) async fn blocks(node: &Node, caller: &Caller, cids: Vec<Cid>, talk: &mut Talk) -> Result<(), Failure> {
    caller.owner()?;
    for cid in cids {
        let block = stored(node, &cid).await?;
        talk.say(Reply::Block { cid, data: block.data().to_vec() }).await?;
    }
    Ok(())
}

pub(super) fn store(error: StoreError) -> Failure {
    match error {
        StoreError::Full { .. } => {
            let help = "free some space or move the home to a larger disk (`--home`); nothing was lost, run it again";
            failure(FailureKind::Broken, "store.full", error.to_string(), help)
        }
        _ => broken(error),
    }
}
