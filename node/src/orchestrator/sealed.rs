//! What is told of a result that another orchestrator sealed: read out of it.

use iptl_artifacts::{BlobStore, read_block};
use iptl_dag::model::{self, Attestation, Outcome, OutcomeShard, ResultNode, Signed, Termination};
use iptl_dag::{Block, Cid, DecodeError, PeerId};
use iptl_wire::control::Event;
use iptl_wire::takeover::Finished;

use super::driver::Parts;
use super::seal::MAX_FAILURES;

/// Reads the last event of an execution out of what is said to be its result, some of whose blocks may not be here; says
/// why it is none where it is not.
pub(super) async fn found(parts: &Parts, end: &Finished, result: Cid) -> anyhow::Result<Result<Event, String>> {
    let mut orchestrators = parts.members.writers();
    orchestrators.push(parts.links.peer().clone());
    match untrue(&*parts.store, end, result, &orchestrators).await? {
        Some(reason) => Ok(Err(reason)),
        None => told(&*parts.store, result).await.map(Ok),
    }
}

/// Says why a result is not the end that it is said to be, where it is not.
async fn untrue(
    store: &dyn BlobStore,
    end: &Finished,
    result: Cid,
    orchestrators: &[PeerId],
) -> anyhow::Result<Option<String>> {
    let root = match model::from_bytes::<ResultNode>(block(store, &result).await?.data()) {
        Ok(root) => root,
        Err(error) => return Ok(Some(format!("{result} is no result: {error}"))),
    };
    let attested = match model::from_bytes::<Signed<Attestation>>(block(store, &root.attestation).await?.data()) {
        Ok(attested) => attested,
        Err(error) => return Ok(Some(format!("{} is no attestation: {error}", root.attestation))),
    };
    let Signed { body, signer, .. } = &attested;
    if root.execution != end.execution || body.execution != end.execution {
        return Ok(Some(format!("{result} is the result of another execution")));
    }
    if body.outcome != root.outcome {
        return Ok(Some(format!("the attestation of {result} vouches for another outcome")));
    }
    if !orchestrators.contains(signer) {
        return Ok(Some(format!("{result} is attested by {signer}, which is no orchestrator of this lab")));
    }
    if let Err(error) = iptl_trust::verify(&attested) {
        return Ok(Some(format!("the attestation of {result}: {error}")));
    }
    if body.term != end.term || body.term.as_ref().is_some_and(|term| term.peer != *signer) {
        return Ok(Some(format!("{result} was sealed in another term than is said")));
    }
    Ok(None)
}

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
        failure: attestation.cannot_start.map(|why| Box::new((*why).into())),
    })
}

async fn node<T>(store: &dyn BlobStore, cid: &Cid) -> anyhow::Result<T>
where
    T: TryFrom<model::Node, Error = DecodeError>,
{
    Ok(model::from_bytes(block(store, cid).await?.data())?)
}

async fn block(store: &dyn BlobStore, cid: &Cid) -> anyhow::Result<Block> {
    read_block(store, cid).await?.ok_or_else(|| anyhow::anyhow!("{cid} is not in the store"))
}
