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
        let (mut receipts, mut bytes) = (Vec::new(), 0);
        for (instance, how) in &ended {
            let receipt = self.receipt(grant, run, instance, how).await?;
            let receipt = Receipt { interventions: touched.remove(instance).unwrap_or_default(), ..receipt };
            let signed = iptl_trust::sign(&self.key, receipt);
            bytes += codec::encode(&signed).len();
            receipts.push(signed);
            if receipts.len() == MAX_RECEIPTS_PER_SHARD || bytes >= RECEIPT_SHARD_BYTES {
                shards.push(self.put(std::mem::take(&mut receipts)).await?);
                bytes = 0;
            }
        }
        if !receipts.is_empty() {
            shards.push(self.put(receipts).await?);
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
