//! Receipts: what instances left goes into the store, and a signed statement about each.

use std::path::Path;
use std::sync::Arc;

use iptl_artifacts::{BlobStore, import, read_block};
use iptl_dag::model::receipt::{MAX_RECEIPTS_PER_SHARD, RECEIPT_SHARD_BYTES};
use iptl_dag::model::{self, InstanceId, Receipt, ReceiptShard, Run, Signed};
use iptl_dag::{Cid, PeerId, codec};
use iptl_runner::{Ended, Runners};
use iptl_trust::Keypair;
use iptl_wire::session::Grant;

use super::interventions::Interventions;

/// What is known of a cell whose instances end.
#[derive(Clone)]
pub(super) struct Sealer {
    pub(super) store: Arc<dyn BlobStore>,
    pub(super) key: Arc<Keypair>,
    pub(super) lablet: PeerId,
    pub(super) runners: Runners,
}

/// Receipts that are to be one block.
#[derive(Default)]
struct Chunk {
    receipts: Vec<Signed<Receipt>>,
    bytes: usize,
}

impl Chunk {
    /// Adds a receipt; returns all of them once there is room for no more, and begins anew.
    fn add(&mut self, receipt: Signed<Receipt>) -> Option<Vec<Signed<Receipt>>> {
        self.bytes += codec::encode(&receipt).len();
        self.receipts.push(receipt);
        let is_full = self.receipts.len() == MAX_RECEIPTS_PER_SHARD || self.bytes >= RECEIPT_SHARD_BYTES;
        is_full.then(|| std::mem::take(self).receipts)
    }
}

impl Sealer {
    /// Writes receipts of ended instances and returns the chunks with the number of receipts in each; the store is
    /// flushed when this returns.
    pub(super) async fn seal(
        &self,
        grant: &Grant,
        run: Option<&Run>,
        interventions: &Interventions,
        mut ended: Vec<(InstanceId, Ended)>,
    ) -> Result<Vec<(Cid, u32)>, import::ImportError> {
        let stored = if run.is_none() { self.run_of(grant).await? } else { None };
        let run = run.or(stored.as_ref());
        ended.sort_by(|a, b| a.0.cmp(&b.0));
        let instances: Vec<InstanceId> = ended.iter().map(|(instance, _)| instance.clone()).collect();
        let mut touched = interventions
            .of_ended(&instances)
            .await
            .map_err(|source| import::ImportError::Read { path: interventions.path().to_owned(), source })?;
        let mut shards = Vec::new();
        let mut chunk = Chunk::default();
        for (instance, how) in &ended {
            let receipt = self.receipt(grant, run, instance, how).await?;
            let receipt = Receipt { interventions: touched.remove(instance).unwrap_or_default(), ..receipt };
            if let Some(full) = chunk.add(iptl_trust::sign(&self.key, receipt)) {
                shards.push(self.put(full).await?);
            }
        }
        if !chunk.receipts.is_empty() {
            shards.push(self.put(chunk.receipts).await?);
        }
        self.store.flush().await?;
        Ok(shards)
    }

    async fn put(&self, receipts: Vec<Signed<Receipt>>) -> Result<(Cid, u32), import::ImportError> {
        let count = u32::try_from(receipts.len()).expect("a chunk is small");
        let block = model::to_block(ReceiptShard { receipts });
        let shard = *block.cid();
        self.store.put(vec![block]).await?;
        Ok((shard, count))
    }

    /// Reads the run of a cell from before a crash, which was fetched when the cell was prepared; none where it was not
    /// yet.
    async fn run_of(&self, grant: &Grant) -> Result<Option<Run>, import::ImportError> {
        let block = read_block(&*self.store, &grant.run).await?;
        Ok(block.and_then(|block| model::from_bytes::<Run>(block.data()).ok()))
    }

    async fn receipt(
        &self,
        grant: &Grant,
        run: Option<&Run>,
        instance: &InstanceId,
        how: &Ended,
    ) -> Result<Receipt, import::ImportError> {
        let group = run.and_then(|run| run.groups.get(&instance.group));
        let workload = group.map_or(grant.run, |group| group.workload);
        let runner = group.and_then(|group| self.runners.get(group.kind)).map(|runner| runner.version());
        let runner = runner.unwrap_or_else(|| "none".to_owned());
        Ok(Receipt {
            execution: grant.cell.execution,
            instance: instance.clone(),
            attempt: grant.attempt,
            epoch: grant.cell.epoch.clone(),
            workload,
            lablet: self.lablet.clone(),
            runner,
            started_ms: how.started_ms,
            ended_ms: how.ended_ms,
            exit: how.exit.clone(),
            usage: how.usage,
            logs: self.import(how.left.logs.as_deref()).await?,
            events: self.import(how.left.events.as_deref()).await?,
            metrics: self.import(how.left.metrics.as_deref()).await?,
            artifacts: self.import(how.left.artifacts.as_deref()).await?,
            samples: self.import(how.left.samples.as_deref()).await?,
            limits_met: how.limits_met.clone(),
            interventions: Vec::new(),
            network: how.network.as_deref().cloned(),
            adopted: how.adopted.as_deref().cloned(),
        })
    }

    async fn import(&self, path: Option<&Path>) -> Result<Option<Cid>, import::ImportError> {
        match path {
            Some(path) => {
                let imported = import::import_path(&*self.store, path, &import::ImportOptions::default()).await?;
                Ok(Some(imported.cid))
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::MAX_BLOCK_SIZE;
    use iptl_dag::model::{BetweenRegions, CellNetworkUse, Epoch, ExecutionId, Exit, LinkUse, NetworkUse, Usage};

    use super::*;

    /// A receipt of an instance that ended well, with as many links between regions as there may be.
    fn receipt(key: &Keypair, index: u32, regions: u16) -> Signed<Receipt> {
        let many = u64::MAX / 2;
        let did = LinkUse { offered: many, delivered: many, asked_ns: many, measured_ns: many, ..LinkUse::default() };
        let pairs = (0..regions).flat_map(|from| (0..regions).map(move |to| (from, to)));
        let between = pairs.map(|(from, to)| BetweenRegions { from, to, did, lost_by_lab: 0 });
        let network = NetworkUse {
            cell: CellNetworkUse { between: BetweenRegions::bounded(between), ..CellNetworkUse::default() },
            ..NetworkUse::default()
        };
        let lablet = key.peer().clone();
        let receipt = Receipt {
            execution: ExecutionId(codec::cid_of(&"execution")),
            instance: InstanceId { group: "g".to_owned(), index },
            attempt: 1,
            epoch: Epoch { counter: 1, peer: lablet.clone() },
            workload: codec::cid_of(&"workload"),
            lablet,
            runner: "fake".to_owned(),
            started_ms: 1,
            ended_ms: 2,
            exit: Exit::Exited { code: 0 },
            usage: Usage::default(),
            logs: None,
            events: None,
            metrics: None,
            artifacts: None,
            samples: None,
            limits_met: Vec::new(),
            interventions: Vec::new(),
            network: Some(network),
            adopted: None,
        };
        iptl_trust::sign(key, receipt)
    }

    /// Returns how many receipts are in each chunk; each of them is a block.
    fn sizes(regions: u16) -> Vec<usize> {
        let key = Keypair::from_seed(&[1; 32]);
        let mut chunk = Chunk::default();
        let mut chunks: Vec<_> = (0..1_100).filter_map(|index| chunk.add(receipt(&key, index, regions))).collect();
        chunks.push(chunk.receipts);
        chunks
            .into_iter()
            .map(|receipts| {
                let size = receipts.len();
                let block = model::to_block(ReceiptShard { receipts });
                assert!(block.data().len() <= MAX_BLOCK_SIZE);
                size
            })
            .collect()
    }

    #[test]
    fn receipts_with_much_in_them_are_fewer_to_a_chunk() {
        assert_eq!(sizes(1), [512, 512, 76]);
        let of_many = sizes(9);
        assert_eq!(of_many.iter().sum::<usize>(), 1_100);
        assert!(of_many.len() > 3 && of_many[0] < 512, "{of_many:?}");
    }
}
