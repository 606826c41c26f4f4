//! What is told of a result that another orchestrator sealed: read out of it.

use iptl_artifacts::{BlobStore, read_block};
use iptl_dag::model::{self, Attestation, Outcome, OutcomeShard, ResultNode, Signed, Termination};
use iptl_dag::{Cid, DecodeError};
use iptl_wire::control::Event;

use super::seal::MAX_FAILURES;

/// Reads the last event of an execution out of its result, all of whose blocks are here.
pub(super) async fn told(store: &dyn BlobStore, result: Cid) -> anyhow::Result<Event> {
    let root: ResultNode = node(store, &result).await?;
    let outcome: Outcome = node(store, &root.outcome).await?;
    let attestation: Attestation = node::<Signed<Attestation>>(store, &root.attestation).await?.body;
    let mut failures = Vec::new();
    'all: for (name, group) in &outcome.groups {
        for shard in &group.instances {
            let shard: OutcomeShard = node(store, shard).await?;
            for instance in shard.instances {
                if failures.len() == MAX_FAILURES {
                    break 'all;
                }
                let id = format!("{name}/{}", instance.index);
                match instance.termination {
                    Termination::Ok {} => {}
                    Termination::Failed { cause } => failures.push((id, cause)),
                    Termination::Lost {} => {
                        let why = attestation.missing.get(&id).map_or("it left no receipt", String::as_str);
                        failures.push((id, format!("lost: {why}")));
                    }
                }
            }
        }
    }
    Ok(Event::Finished {
        run: root.run,
        execution: root.execution.0,
        result,
        verdict: root.verdict,
        counts: root.counts,
        thresholds: outcome.thresholds.iter().map(|t| (t.threshold.to_string(), t.measured, t.holds)).collect(),
        inconclusive: attestation.inconclusive,
        failures,
        // The orchestrator that sealed it told them; they can be read out of the result.
        notes: Vec::new(),
        after_ms: attestation.ended_ms.saturating_sub(attestation.submitted_ms),
    })
}

async fn node<T>(store: &dyn BlobStore, cid: &Cid) -> anyhow::Result<T>
where
    T: TryFrom<model::Node, Error = DecodeError>,
{
    let block = read_block(store, cid).await?.ok_or_else(|| anyhow::anyhow!("{cid} is not in the store"))?;
    Ok(model::from_bytes(block.data())?)
}
