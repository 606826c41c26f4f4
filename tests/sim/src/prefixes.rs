//! Logs of a schedule, opened again at each of their facts: a snapshot and what came after it leave the state that all
//! facts leave.

use std::collections::BTreeMap;

use iptl_dag::codec;
use iptl_dag::model::{self, ExecutionId, Fact, FactKind, Signed};
use iptl_scheduler::log::{self, Opening};
use iptl_scheduler::{Effect, Input, Orchestrator, Remembered};
use iptl_wire::Timestamp;

use crate::orchestrator::OrchestratorNode;

/// When all facts were written and are read, in milliseconds since 1970.
const AT_MS: u64 = 1_800_000_000_000;

/// What logs were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Prefixes of logs.
    pub prefixes: u32,
    /// Openings, with a snapshot of the beginning of a prefix and the rest of it.
    pub openings: u32,
    /// Those of them that began at the snapshot.
    pub from_snapshot: u32,
}

/// Opens every log at every prefix, out of bytes, with a snapshot at every place in it; says what differs.
///
/// # Errors
///
/// The first prefix of which the states differ, for people.
pub(crate) fn open_all(node: &OrchestratorNode) -> Result<Opened, String> {
    let mut opened = Opened::default();
    for (id, facts) in &node.log {
        for end in 1..=facts.len() {
            let facts = &facts[..end];
            let expected = state(node, facts.to_vec());
            opened.prefixes += 1;
            // Nothing is written behind the last fact, nor is there a snapshot of it.
            let is_over = |fact: &Fact| fact.kind.end().is_some();
            let last = facts.iter().position(is_over).unwrap_or(end);
            for at in 1..=last {
                for from_snapshot in [false, true] {
                    let bytes = written(facts, at, from_snapshot);
                    let found = state(node, open(&bytes, from_snapshot)?);
                    if found != expected {
                        let how = if from_snapshot { "from" } else { "over" };
                        return Err(format!(
                            "{}: {end} facts, opened {how} a snapshot of {at}, are\n{found:?}\nand not\n{expected:?}",
                            id.alias()
                        ));
                    }
                    opened.openings += 1;
                    opened.from_snapshot += u32::from(from_snapshot);
                }
            }
        }
    }
    Ok(opened)
}

/// Writes facts as records, with a snapshot of the first `at` behind these, or in their place.
fn written(facts: &[Fact], at: usize, from_snapshot: bool) -> Vec<u8> {
    let (before, after) = facts.split_at(at);
    let first = &before[at - 1];
    let parts = log::snapshot(before).into_iter().map(|kind| Fact { kind, ..first.clone() });
    let before = if from_snapshot { &[][..] } else { before };
    let mut bytes = Vec::new();
    // A snapshot at the beginning links the last fact that it stands for.
    let mut head = from_snapshot.then(|| codec::cid_of(&at));
    let begin = if from_snapshot { at as u64 } else { 0 };
    for (seq, fact) in (begin..).zip(before.iter().cloned().chain(parts).chain(after.iter().cloned())) {
        let body = Fact { seq, prev: head, ..fact };
        // Signatures are stubs here.
        let signed = Signed { signer: body.epoch.peer.clone(), body, signature: vec![0; 64] };
        let block = model::to_block(signed);
        log::append_record(&mut bytes, block.data());
        head = Some(*block.cid());
    }
    bytes
}

fn open(bytes: &[u8], from_snapshot: bool) -> Result<Vec<Fact>, String> {
    let mut opening: Option<Opening> = None;
    let mut facts = Vec::new();
    for body in log::outline(bytes) {
        let entry = log::read(bytes, body).ok_or("a record is not what was written")?.map_err(|e| e.to_string())?;
        let new = || Opening::new([entry.signer.clone()], &entry.fact, from_snapshot);
        opening.get_or_insert_with(new).take(entry, &mut facts).map_err(|e| e.to_string())?;
    }
    Ok(facts)
}

/// Returns what a core makes of these facts.
fn state(node: &OrchestratorNode, facts: Vec<Fact>) -> Option<BTreeMap<ExecutionId, Remembered>> {
    let now = Timestamp(1_000_000_000);
    let mut core = Orchestrator::new(node.config.clone());
    core.handle(now, Input::Wall { unix_us: AT_MS * 1000 });
    for mut fact in facts {
        // How long ago it was is no part of what is compared.
        fact.at_ms = AT_MS;
        let submission = matches!(fact.kind, FactKind::Submitted { .. })
            .then(|| node.submissions.get(&fact.execution).cloned().map(Box::new))
            .flatten();
        core.handle(now, Input::Replay { facts: vec![fact], submission });
    }
    core.handle(now, Input::Replayed);
    while let Some(effect) = core.poll_effect() {
        if let Effect::Pull { execution, lablet, shard } = effect {
            let receipts = node.store.get(&shard).cloned().unwrap_or_default();
            core.handle(now, Input::Pulled { execution, lablet, shard, receipts });
        }
    }
    core.remembered()
}
