//! Which attempt of an instance counts, and how it ended as far as the software is concerned.

use std::collections::BTreeMap;

use iptl_dag::codec;
use iptl_dag::model::{ByLab, ExecutionId, Exit, InstanceId, Receipt, Run, Signed, Termination};

/// Longest cause of a failure that an outcome holds, in bytes; runners give short stable names, and a full shard of
/// causes this long is still a quarter of a block.
const MAX_CAUSE_BYTES: usize = 200;

/// How an instance ended, as far as the software is concerned.
///
/// Reasons that a lablet words by itself stay in the receipt: the outcome holds only what another lablet would say too.
pub(crate) fn termination(exit: &Exit) -> Termination {
    if let Some(cause) = exit.failure() {
        return Termination::Failed { cause: cause[..cause.floor_char_boundary(MAX_CAUSE_BYTES)].to_owned() };
    }
    match exit.by_lab() {
        Some(ByLab::Stopped(_) | ByLab::WorkerDied(_)) => Termination::Lost {},
        Some(ByLab::NotStarted(_)) | None => Termination::Ok {},
    }
}

/// Picks the receipt that counts for every instance of the run; receipts of anything else are left out.
pub(crate) fn choose<'a>(
    run: &Run,
    execution: &ExecutionId,
    receipts: &'a [Signed<Receipt>],
) -> BTreeMap<&'a InstanceId, &'a Receipt> {
    let mut chosen: BTreeMap<&InstanceId, &Receipt> = BTreeMap::new();
    for receipt in receipts.iter().map(|signed| &signed.body) {
        if receipt.execution != *execution || !is_instance(run, &receipt.instance) {
            continue;
        }
        chosen
            .entry(&receipt.instance)
            .and_modify(|best| {
                if counts_before(receipt, best) {
                    *best = receipt;
                }
            })
            .or_insert(receipt);
    }
    chosen
}

/// Returns whether the run has this instance.
pub(crate) fn is_instance(run: &Run, id: &InstanceId) -> bool {
    run.groups.get(&id.group).is_some_and(|group| id.index < group.count)
}

/// An order without ties but between equal receipts, so that the order of arrival leaves no trace.
fn counts_before(a: &Receipt, b: &Receipt) -> bool {
    let key =
        |r: &Receipt| (termination(&r.exit) != Termination::Lost {}, r.epoch.clone(), r.attempt, r.lablet.clone());
    match key(a).cmp(&key(b)) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => codec::encode(a) > codec::encode(b),
    }
}
