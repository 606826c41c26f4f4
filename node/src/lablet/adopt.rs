//! What an earlier life of the lablet left: cells whose instances run on are taken over, everything else is removed.

use std::collections::BTreeSet;

use iptl_artifacts::read_block;
use iptl_dag::Cid;
use iptl_dag::model::{self, InstanceId, ReceiptShard, Run};
use iptl_runner::{Origin, PreparedCell};
use iptl_wire::session::{CellRef, Grant};

use super::driver::{Parts, describe};
use super::journal::Journal;
use super::memory::Memory;
use super::prepare::{Adopted, Preparer, memory_path, scratch_path};

/// A cell that runs on, with all that its driver needs to go on with it.
pub(super) struct Found {
    pub(super) cell: CellRef,
    pub(super) grant: Grant,
    pub(super) run: Run,
    pub(super) prepared: PreparedCell,
    /// Instances with a receipt.
    pub(super) sealed: BTreeSet<InstanceId>,
    /// Instances that died with the lablet.
    pub(super) gone: BTreeSet<InstanceId>,
}

/// Takes over the cells that run on, and removes what is left of others.
///
/// Dropped half-way, some are taken over and nothing is removed.
pub(super) async fn adopt(parts: &Parts, journal: &Journal, preparer: &Preparer) -> Vec<Found> {
    let (mut found, mut keep) = (Vec::new(), BTreeSet::<Origin>::new());
    let mut scratch = BTreeSet::new();
    for (grant, shards) in journal.held() {
        let alias = grant.cell.execution.alias();
        match one(parts, preparer, &grant, &shards).await {
            Ok(Some((cell, origin))) => {
                tracing::info!(execution = %alias, gone = cell.gone.len(), "a cell runs on after a restart");
                scratch.insert(scratch_path(&parts.home, &grant));
                keep.insert(origin);
                found.push(cell);
            }
            Ok(None) => {}
            Err(reason) => tracing::warn!(execution = %alias, reason, "a cell cannot be taken over"),
        }
    }
    parts.runners.reap(&keep).await;
    let dir = parts.home.path("scratch");
    for path in std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if scratch.contains(&path) {
            continue;
        }
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(%error, path = %path.display(), "cannot remove the files of a cell");
        }
    }
    found
}

async fn one(
    parts: &Parts,
    preparer: &Preparer,
    grant: &Grant,
    shards: &[Cid],
) -> Result<Option<(Found, Origin)>, String> {
    // Without its memory a cell would contribute to sync what it has contributed before, or less.
    let memory = memory_path(&parts.home, grant);
    if memory.is_none_or(|path| !path.is_file()) {
        return Ok(None);
    }
    let mut sealed = BTreeSet::new();
    for shard in shards {
        let block = read_block(&*parts.store, shard).await.map_err(|e| describe(&e))?;
        let block = block.ok_or("its receipts are gone")?;
        let shard: ReceiptShard = model::from_bytes(block.data()).map_err(|e| e.to_string())?;
        sealed.extend(shard.receipts.into_iter().map(|receipt| receipt.body.instance));
    }
    let Some(Adopted { run, cell, gone, origin }) = preparer.adopt(grant).await.map_err(|e| describe(&e))? else {
        return Ok(None);
    };
    let gone = gone.difference(&sealed).cloned().collect();
    let found = Found { cell: grant.cell.clone(), grant: grant.clone(), run, prepared: cell, sealed, gone };
    Ok(Some((found, origin)))
}

/// Opens the memory of a cell's sync.
pub(super) fn memory(parts: &Parts, grant: &Grant) -> Option<(Memory, Vec<iptl_sync::Record>)> {
    let path = memory_path(&parts.home, grant)?;
    match Memory::open(&path) {
        Ok(memory) => Some(memory),
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "a cell will not survive a restart of this lablet");
            None
        }
    }
}
