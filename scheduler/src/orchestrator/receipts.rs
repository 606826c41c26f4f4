//! Receipts that lablets hand in, and instances that are lost.

use iptl_dag::model::{ExecutionId, Exit, FactKind, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_wire::Timestamp;
use iptl_wire::control::Event;
use iptl_wire::session::{ReceiptsReady, ToLablet};

use super::api::ReceiptSummary;
use super::state::{Pull, Shard, Stage};
use super::{Effect, Orchestrator, ms};

/// Chunks that a cell may announce beyond one for each instance.
const SPARE_SHARDS: usize = 16;

impl Orchestrator {
    pub(super) fn receipts_ready(&mut self, from: &PeerId, ready: ReceiptsReady) {
        let id = ready.cell.execution;
        if ready.cell.epoch.peer != self.config.peer {
            return;
        }
        let Some(exec) = self.executions.get_mut(&id) else {
            let result = self.over.get(&id).copied().flatten();
            self.send(from, ToLablet::Finished(id, result));
            return;
        };
        // A cell that counts as lost may still hand in what it finished.
        let Some(cell) = exec.cells.get_mut(from).filter(|c| c.epoch == ready.cell.epoch.counter) else { return };
        let bound = cell.slots() as usize + SPARE_SHARDS;
        match cell.shards.get(&ready.shard).map(|s| s.state) {
            Some(Pull::Kept) => self.send(from, ToLablet::Kept(ready.cell, ready.shard)),
            Some(Pull::Pulling | Pull::Recalled | Pull::Retry(_) | Pull::Bad) => {}
            None if exec.started_ms == 0 || cell.shards.len() >= bound => {}
            None => {
                cell.shards.insert(ready.shard, Shard { count: ready.count, state: Pull::Pulling });
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
        let me = self.config.peer.clone();
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let several_attempts = exec.run.run.loss.max_attempts > 1;
        if matches!(exec.stage, Stage::Assembling { .. }) {
            return;
        }
        let Some(cell) = exec.cells.get_mut(lablet) else { return };
        let Some(entry) = cell.shards.get_mut(&shard) else { return };
        let recalled = match entry.state {
            Pull::Kept | Pull::Bad => return,
            Pull::Recalled => true,
            Pull::Pulling | Pull::Retry(_) => false,
        };
        entry.state = Pull::Kept;
        // What is there counts, not what was announced.
        entry.count = u32::try_from(receipts.len()).unwrap_or(u32::MAX);
        let epoch = cell.epoch;
        let valid: Vec<(InstanceId, bool)> = receipts
            .iter()
            .filter(|r| r.epoch.peer == me && r.epoch.counter == epoch && r.attempt == cell.attempt)
            .filter(|r| cell.holds(&r.instance))
            .map(|r| (r.instance.clone(), by_itself(&r.exit)))
            .collect();
        let attempt = cell.attempt;
        for (instance, by_itself) in valid {
            if exec.received.contains_key(&instance) {
                continue;
            }
            // What ended by itself counts, even where another attempt was granted meanwhile. What the lab stopped
            // gives way to that attempt, and counts where that one is lost too.
            let replaced =
                several_attempts && exec.cells.values().any(|c| !c.over && c.attempt > attempt && c.holds(&instance));
            if replaced && !by_itself {
                exec.evidence.insert(instance, (lablet.clone(), attempt));
            } else {
                exec.lost.remove(&instance);
                exec.replace.remove(&instance);
                exec.received.insert(instance, (lablet.clone(), attempt));
            }
        }
        let mut done = Vec::new();
        for (holder, cell) in &mut exec.cells {
            let candidate = holder == lablet || several_attempts;
            if candidate && !cell.over && cell.instances().all(|i| exec.received.contains_key(&i)) {
                cell.over = true;
                self.replan = true;
                if holder != lablet {
                    done.push((holder.clone(), cell.epoch));
                }
            }
        }
        for (holder, counter) in done {
            let named = self.cell_ref(id, counter);
            self.send(&holder, ToLablet::Stop(named, "an earlier attempt had finished".into()));
        }
        if !recalled {
            let count = receipts.len() as u32;
            self.persist(id, FactKind::Received { lablet: lablet.clone(), shard, count });
        }
        let named = self.cell_ref(id, epoch);
        self.send(lablet, ToLablet::Kept(named, shard));
        self.end_recall(now, id);
        self.settle(now, id);
    }

    /// Counts what waited for the log's receipts, once all of them are read.
    fn end_recall(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id).filter(|e| !e.recalling()) else { return };
        for (lablet, reason) in std::mem::take(&mut exec.lose_later) {
            self.lose_cell(now, id, &lablet, reason);
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
        let Some(entry) = exec.cells.get_mut(lablet).and_then(|c| c.shards.get_mut(&shard)) else { return };
        match entry.state {
            Pull::Kept | Pull::Bad | Pull::Retry(_) => return,
            // What was durable is read again as what it is, not as new.
            Pull::Recalled if retry => {
                self.effects.push_back(Effect::Pull { execution: id, lablet: lablet.clone(), shard });
                return;
            }
            Pull::Pulling | Pull::Recalled => {}
        }
        entry.state = if retry { Pull::Retry(retry_at) } else { Pull::Bad };
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
        for (lablet, cell) in &mut exec.cells {
            for (shard, entry) in &mut cell.shards {
                if matches!(entry.state, Pull::Retry(at) if at <= now) {
                    entry.state = Pull::Pulling;
                    self.effects.push_back(Effect::Pull { execution: id, lablet: lablet.clone(), shard: *shard });
                }
            }
        }
    }

    /// Takes a cell as gone: before the start it is given back, after it its unfinished instances are lost.
    pub(super) fn lose_cell(&mut self, now: Timestamp, id: ExecutionId, lablet: &PeerId, reason: String) {
        let replace_until = now.after(ms(self.config.replace_timeout_ms));
        let Some(exec) = self.executions.get_mut(&id) else { return };
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
        let Some(cell) = exec.cells.get_mut(lablet).filter(|c| !c.over) else { return };
        cell.over = true;
        let next = cell.attempt + 1;
        let instances: Vec<InstanceId> = cell.instances().filter(|i| !exec.received.contains_key(i)).collect();
        let again = matches!(exec.stage, Stage::Running { .. }) && next <= exec.run.run.loss.max_attempts;
        let mut lost = Vec::new();
        for instance in instances {
            if !again && let Some(earlier) = exec.evidence.remove(&instance) {
                exec.received.insert(instance, earlier);
                continue;
            }
            exec.lost.insert(instance.clone(), reason.clone());
            if again {
                if exec.replace.is_empty() {
                    exec.replace_until = replace_until;
                }
                exec.replace.insert(instance.clone(), next);
            }
            lost.push(instance);
        }
        self.replan = true;
        if !lost.is_empty() {
            let lablet = Some(lablet.clone());
            self.persist(id, FactKind::Lost { lablet, instances: lost, reason });
        }
        self.settle(now, id);
    }

    /// Gives up on another attempt where no lablet came for it.
    pub(super) fn expire_replacement(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id).filter(|e| !e.recalling()) else { return };
        if !exec.replace.is_empty() {
            self.replan = true;
        }
        if !exec.replace.is_empty() && exec.replace_until <= now {
            exec.give_up_replacement();
            self.settle(now, id);
        }
    }

    /// Tells how far it is, and orders the result where nothing is missing any more.
    pub(super) fn settle(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id) else { return };
        if !matches!(exec.stage, Stage::Running { .. } | Stage::Stopping { .. }) {
            return;
        }
        let complete = exec.complete();
        if exec.progress != exec.received.len() + exec.lost.len() {
            self.notify_progress(id);
        }
        if complete {
            self.order_assembly(now, id);
        }
    }
}

/// Whether the software ended, rather than the lab under it.
fn by_itself(exit: &Exit) -> bool {
    match exit {
        Exit::Exited { .. }
        | Exit::Reported { .. }
        | Exit::Trapped { .. }
        | Exit::Signalled { .. }
        | Exit::Unwell { .. }
        | Exit::StackOverflow {}
        | Exit::OutOfMemory {}
        | Exit::OutOfCpu {}
        | Exit::OutOfTime {}
        | Exit::TooMuchOutput { .. } => true,
        Exit::Stopped { .. } | Exit::WorkerDied { .. } | Exit::NotStarted { .. } => false,
    }
}
