//! Receipts that lablets hand in, and instances that are lost.

use iptl_dag::model::{ExecutionId, FactKind};
use iptl_dag::{Cid, PeerId};
use iptl_wire::Timestamp;
use iptl_wire::control::Event;
use iptl_wire::session::{ReceiptsReady, ToLablet};

use super::api::ReceiptSummary;
use super::fold::stopped;
use super::state::{Pull, Stage};
use super::{Effect, Orchestrator, cell_ref, ms};

/// Chunks that a cell may announce beyond one for each instance.
const SPARE_SHARDS: usize = 16;

impl Orchestrator {
    pub(super) fn receipts_ready(&mut self, from: &PeerId, ready: ReceiptsReady) {
        let id = ready.cell.execution;
        let Some(exec) = self.executions.get_mut(&id) else {
            // What another orchestrator granted and this one never heard of keeps its receipts.
            if let Some(end) = self.end_of(id, &ready.cell) {
                self.send(from, ToLablet::Finished(end));
            }
            return;
        };
        let kept_before = exec.past.iter().any(|(holder, cell)| {
            let shard = cell.shards.get(&ready.shard);
            holder == from && cell.epoch == ready.cell.epoch && shard.is_some_and(|s| s.state == Pull::Kept)
        });
        if kept_before {
            self.send(from, ToLablet::Kept(ready.cell, ready.shard));
            return;
        }
        // A cell that counts as lost may still hand in what it finished.
        let Some(cell) = exec.cells.get_mut(from).filter(|c| c.epoch == ready.cell.epoch) else { return };
        let bound = cell.slots() as usize + SPARE_SHARDS;
        match cell.shards.get(&ready.shard).map(|s| s.state) {
            Some(Pull::Kept) => self.send(from, ToLablet::Kept(ready.cell, ready.shard)),
            Some(Pull::Pulling | Pull::Recalled | Pull::Retry(_) | Pull::Bad) => {}
            None if exec.started_ms == 0 || cell.shards.len() >= bound => {}
            None => {
                exec.announce(from, ready.shard, ready.count, Pull::Pulling);
                self.effects.push_back(Effect::Pull { execution: id, lablet: from.clone(), shard: ready.shard });
            }
        }
    }

    pub(super) fn pulled(
        &mut self,
        now: Timestamp,
        id: ExecutionId,
        lablet: &PeerId,
        shard: Cid,
        receipts: Vec<ReceiptSummary>,
    ) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if matches!(exec.stage, Stage::Assembling { .. }) {
            return;
        }
        let recalling = exec.recalling();
        let again = exec.goes_again();
        let Some(cell) = exec.cell_of_shard(lablet, &shard) else { return };
        let named = cell_ref(id, &cell.epoch);
        let Some(entry) = cell.shards.get_mut(&shard) else { return };
        let recalled = match entry.state {
            Pull::Kept | Pull::Bad => return,
            Pull::Recalled => true,
            Pull::Pulling | Pull::Retry(_) => false,
        };
        // What is there counts, not what was announced.
        let count = u32::try_from(receipts.len()).unwrap_or(u32::MAX);
        entry.count = count;
        exec.set_pull(lablet, &shard, Pull::Kept);
        if !recalled {
            let kind = FactKind::Received { lablet: lablet.clone(), shard, count };
            if recalling {
                // It takes its place after what is being read.
                exec.steps.push(kind.clone());
            }
            self.persist_only(id, kind);
        }
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if recalling {
            exec.recalled.insert((lablet.clone(), shard), receipts);
        } else {
            let taken = exec.take_receipts(lablet, &shard, &receipts, again);
            self.replan |= taken.cell_over;
            for (holder, epoch) in taken.needless {
                self.send(&holder, ToLablet::Stop(cell_ref(id, &epoch), "an earlier attempt had finished".into()));
            }
            let reason = receipts.iter().find_map(|receipt| stopped(&receipt.exit));
            self.lose_stopped(now, id, lablet, reason);
        }
        self.send(lablet, ToLablet::Kept(named, shard));
        if recalling {
            self.end_recall(now, id);
        }
        self.settle(now, id);
    }

    /// Counts what waited for the log's receipts, once all of them are read.
    fn end_recall(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id).filter(|e| !e.recalling()) else { return };
        exec.rebuild();
        self.replan = true;
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let holders: Vec<PeerId> = exec.cells.keys().cloned().collect();
        for (lablet, reason) in std::mem::take(&mut exec.lose_later) {
            self.lose_cell(now, id, &lablet, reason);
        }
        for lablet in holders {
            self.lose_stopped(now, id, &lablet, None);
        }
        if self.executions.get(&id).is_some_and(|e| !self.undecided(e)) {
            self.lose_unheld(id);
        }
    }

    /// Takes a cell as lost that its lablet stopped, once it gives nothing more: what may go again waits for no lease.
    fn lose_stopped(&mut self, now: Timestamp, id: ExecutionId, lablet: &PeerId, reason: Option<String>) {
        if self.executions.get(&id).is_some_and(|exec| exec.is_stopped(lablet)) {
            let reason = reason.unwrap_or_else(|| "its lablet stopped it".to_owned());
            let what = format!("gives back what it held: {reason}");
            self.notify(id, Event::Lablet { lablet: self.name_of(lablet), what });
            self.lose_cell(now, id, lablet, reason);
        }
    }

    pub(super) fn pull_failed(
        &mut self,
        now: Timestamp,
        id: ExecutionId,
        lablet: &PeerId,
        shard: Cid,
        reason: String,
        retry: bool,
    ) {
        let retry_at = now.after(ms(self.config.retry_ms));
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let Some(entry) = exec.cell_of_shard(lablet, &shard).and_then(|c| c.shards.get(&shard)) else { return };
        match entry.state {
            Pull::Kept | Pull::Bad | Pull::Retry(_) => return,
            // What was durable is read again as what it is, not as new.
            Pull::Recalled if retry => {
                self.effects.push_back(Effect::Pull { execution: id, lablet: lablet.clone(), shard });
                return;
            }
            Pull::Pulling | Pull::Recalled => {}
        }
        exec.set_pull(lablet, &shard, if retry { Pull::Retry(retry_at) } else { Pull::Bad });
        if !retry {
            let what = format!("handed in receipts that cannot be used: {reason}");
            let lablet = self.name_of(lablet);
            self.notify(id, Event::Lablet { lablet, what });
            self.end_recall(now, id);
            self.settle(now, id);
        }
    }

    pub(super) fn retry_pulls(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        for (lablet, shard) in exec.due_pulls(now) {
            self.effects.push_back(Effect::Pull { execution: id, lablet, shard });
        }
    }

    /// Takes a cell as gone: before the start it is given back, after it its unfinished instances are lost.
    pub(super) fn lose_cell(&mut self, now: Timestamp, id: ExecutionId, lablet: &PeerId, reason: String) {
        let undecided = self.executions.get(&id).is_some_and(|e| self.undecided(e));
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if undecided {
            // Whether it was started is not known yet.
            exec.lose_later.insert(lablet.clone(), reason);
            return;
        }
        match exec.stage {
            Stage::Granted => return self.give_back(now, id, lablet, reason),
            Stage::Running { .. } | Stage::Stopping { .. } => {}
            Stage::Waiting | Stage::Offered { .. } | Stage::Assembling { .. } => return,
        }
        if exec.recalling() {
            // What has finished is not known yet, and must not count as lost.
            exec.lose_later.insert(lablet.clone(), reason);
            return;
        }
        let again = exec.goes_again();
        let Some(lost) = exec.take_loss(lablet, &reason, again) else { return };
        self.wait_for_rerun(now, id, &lost);
        self.replan = true;
        self.persist(id, FactKind::Lost { lablet: Some(lablet.clone()), instances: lost, reason });
        self.settle(now, id);
    }

    /// Tells how far it is, and orders the result where nothing is missing any more.
    pub(super) fn settle(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id).filter(|e| !self.undecided(e)) else { return };
        if !matches!(exec.stage, Stage::Running { .. } | Stage::Stopping { .. }) {
            return;
        }
        let complete = exec.complete();
        if exec.progress != exec.received.len() + exec.lost.len() {
            self.notify_progress(id);
        }
        if complete {
            self.order_assembly(now, id);
        } else {
            self.end_early(now, id);
        }
    }
}
