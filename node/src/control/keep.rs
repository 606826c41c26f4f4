//! What is kept: collecting, and checking what is stored.

use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::{CollectError, HashName};
use iptl_dag::{Cid, Codec, Multihash, PeerId};
use iptl_wire::control::{CheckReport, CollectReport, Failure, FailureKind, Reply};

use super::content::store;
use super::{Caller, Talk, failure};
use crate::fetch::Wanted;
use crate::node::Node;

/// Time between two words about a check that goes on.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// A damaged block is given up after so long without anybody who has it.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(5);

/// Damaged blocks that are named in an answer; all are counted.
const MAX_NAMED: usize = 1000;

pub(super) async fn collect(node: &Node, caller: &Caller, talk: &mut Talk) -> Result<(), Failure> {
    caller.owner()?;
    let collected = node.keeper.collect().await.map_err(|error| match error {
        CollectError::Store(error) => store(error),
        CollectError::Walk(error) => {
            let help = "list the pins with `iptl ls pins`: one of them is larger than anything this tool makes";
            failure(FailureKind::Broken, "gc.walk", error.to_string(), help)
        }
    })?;
    let usage = node.store.usage().await.map_err(store)?;
    talk.say(Reply::Collected(CollectReport {
        kept: collected.kept,
        removed: collected.removed,
        freed: collected.freed,
        missing: collected.missing.len() as u64,
        on_disk: usage.on_disk,
    }))
    .await
}

pub(super) async fn check(node: &Arc<Node>, caller: &Caller, repair: bool, talk: &mut Talk) -> Result<(), Failure> {
    caller.owner()?;
    let (told, mut seen) = tokio::sync::watch::channel((0, 0));
    let packs = node.packs.clone();
    let checking = packs.check(move |blocks, bytes| {
        told.send_replace((blocks, bytes));
    });
    tokio::pin!(checking);
    let checked = loop {
        tokio::select! {
            done = &mut checking => break done.map_err(store)?,
            () = tokio::time::sleep(PROGRESS_PAUSE) => {
                let (blocks, bytes) = *seen.borrow_and_update();
                talk.say(Reply::Checking { blocks, bytes }).await?;
            }
        }
    };
    let damaged = checked.damaged.len() as u64;
    let left = if repair { fetch_again(node, checked.damaged).await? } else { checked.damaged };
    talk.say(Reply::Checked(CheckReport {
        blocks: checked.blocks,
        bytes: checked.bytes,
        damaged,
        repaired: damaged - left.len() as u64,
        reframed: checked.reframed,
        reindexed: checked.reindexed,
        left: left.iter().take(MAX_NAMED).map(|hash| HashName(hash).to_string()).collect(),
    }))
    .await
}

/// Fetches blocks from whoever has them; returns those that nobody gave.
async fn fetch_again(node: &Arc<Node>, damaged: Vec<Multihash>) -> Result<Vec<Multihash>, Failure> {
    let Some(net) = node.links.net() else { return Ok(damaged) };
    let from: Vec<(PeerId, Vec<String>)> = net.peers().await.into_iter().map(|info| (info.peer, Vec::new())).collect();
    let mut left = Vec::new();
    for hash in damaged {
        let root = Cid::new_v1(Codec::Raw.number(), hash);
        let wanted = Wanted { root, from: from.clone(), fellows: Vec::new(), timeout: REPAIR_TIMEOUT, shallow: true };
        if let Err(error) = node.fetcher.fetch(&wanted, |_| {}).await {
            tracing::warn!(%root, %error, "a damaged block cannot be repaired");
            left.push(hash);
        }
    }
    node.store.flush().await.map_err(store)?;
    Ok(left)
}
