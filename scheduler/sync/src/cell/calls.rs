//! Calls of instances.

use bytes::Bytes;
use iptl_wire::session::BarrierAsk;

use super::{Call, Caller, CellSync, Own, Record};
use crate::{
    ITEM_OVERHEAD, MAX_CALLS_PER_INSTANCE, MAX_KEPT_SIZE, MAX_NAME_SIZE, MAX_NAMES_PER_CELL, MAX_NAMES_PER_INSTANCE,
    MAX_PAYLOAD_SIZE, MAX_UNRECORDED_SIZE, Reply, SyncError, SyncOp,
};

impl CellSync {
    pub(super) fn take(&mut self, caller: Caller, op: SyncOp) -> Result<(), SyncError> {
        let (at, call) = caller;
        let kind = match op {
            SyncOp::Cancel => {
                if let Some(kind) = self.change(at, |instance| instance.remove(call)) {
                    self.forget(caller, kind);
                }
                return Ok(());
            }
            SyncOp::Signal { state } => {
                self.check_call(caller)?;
                self.name_state(at, &state)?;
                self.signal(caller, state);
                Call::Signal
            }
            SyncOp::Barrier { state, target } => {
                self.check_call(caller)?;
                self.name_state(at, &state)?;
                if !self.wait(caller, &state, target) {
                    self.replies.push_back((caller, Reply::Opened { seq: 0 }));
                    return Ok(());
                }
                Call::Barrier { state, target }
            }
            SyncOp::SignalAndWait { state, target } => {
                self.check_call(caller)?;
                self.name_state(at, &state)?;
                let open = !self.wait(caller, &state, target);
                let kind = Call::SignalAndWait { state: state.clone(), target, seq: 0, open };
                self.change(at, |instance| instance.insert(call, kind));
                self.signal(caller, state);
                return Ok(());
            }
            SyncOp::Publish { topic, payload } => {
                self.check_call(caller)?;
                self.name_topic(at, &topic)?;
                let size = payload.len();
                self.publish(caller, topic, payload)?;
                Call::Publish { size }
            }
            SyncOp::Subscribe { topic } => {
                self.check_call(caller)?;
                self.name_topic(at, &topic)?;
                let entry = self.topics.entry(topic.clone()).or_default();
                if !entry.is_wanted() {
                    self.dirty.topics.insert(topic.clone());
                }
                let queued = !entry.log.is_empty();
                entry.subscribers.insert(caller, (0, queued));
                if queued {
                    self.feed.push_back(caller);
                }
                Call::Subscribe { topic }
            }
        };
        self.change(at, |instance| instance.insert(call, kind));
        Ok(())
    }

    fn check_call(&self, (at, call): Caller) -> Result<(), SyncError> {
        let calls = &self.instances[at as usize].calls;
        if calls.contains_key(&call) {
            Err(SyncError::CallTaken { call })
        } else if calls.len() >= MAX_CALLS_PER_INSTANCE {
            Err(SyncError::TooManyCalls)
        } else {
            Ok(())
        }
    }

    pub(super) fn name_state(&mut self, at: u32, name: &str) -> Result<(), SyncError> {
        let known = self.states.contains_key(name);
        self.check_name(at, name, known)
    }

    pub(super) fn name_topic(&mut self, at: u32, name: &str) -> Result<(), SyncError> {
        let known = self.topics.contains_key(name);
        self.check_name(at, name, known)?;
        self.topics.entry(name.to_owned()).or_default();
        Ok(())
    }

    fn check_name(&mut self, at: u32, name: &str, known: bool) -> Result<(), SyncError> {
        let size = name.len();
        if size == 0 || size > MAX_NAME_SIZE {
            return Err(SyncError::BadName { size });
        }
        if known {
            return Ok(());
        }
        let instance = &mut self.instances[at as usize];
        for (count, limit) in [(instance.names, MAX_NAMES_PER_INSTANCE), (self.names, MAX_NAMES_PER_CELL)] {
            if count >= limit {
                return Err(SyncError::TooManyNames { limit });
            }
        }
        instance.names += 1;
        self.names += 1;
        Ok(())
    }

    fn signal(&mut self, caller: Caller, name: String) {
        self.count(caller, &name);
        if self.records.is_some() {
            let instance = self.instances[caller.0 as usize].id.clone();
            self.note(|| Record::Signal { instance, state: name.clone() });
        }
        self.open(&name);
        self.dirty.states.insert(name);
    }

    /// Counts a signal; its number will be answered to the caller.
    pub(super) fn count(&mut self, caller: Caller, name: &str) {
        let first = self.instances[caller.0 as usize].first;
        let state = self.states.entry(name.to_owned()).or_default();
        state.given += 1;
        state.unanswered.push_back(caller);
        state.signalled.insert(caller.0);
        *state.times.entry(first).or_default() += 1;
        state.unsaid.insert(first);
    }

    /// Puts a caller where it waits for `target` signals; false where the state has had them.
    fn wait(&mut self, caller: Caller, name: &str, target: u64) -> bool {
        let state = self.states.entry(name.to_owned()).or_default();
        if target <= state.total.max(state.given) {
            return false;
        }
        let waiting = state.waiting.entry(target).or_default();
        if waiting.is_empty() {
            self.dirty.asks.insert(BarrierAsk { state: name.to_owned(), target });
        }
        waiting.insert(caller);
        true
    }

    fn publish(&mut self, caller: Caller, topic: String, payload: Bytes) -> Result<(), SyncError> {
        let size = payload.len();
        if size > MAX_PAYLOAD_SIZE {
            return Err(SyncError::PayloadTooLong { size });
        }
        let instance = &mut self.instances[caller.0 as usize];
        if instance.unrecorded + size > MAX_UNRECORDED_SIZE {
            return Err(SyncError::TooFast);
        }
        if self.published_size + size + ITEM_OVERHEAD > MAX_KEPT_SIZE {
            return Err(SyncError::TopicsFull);
        }
        instance.unrecorded += size;
        if self.records.is_some() {
            let instance = instance.id.clone();
            self.note(|| Record::Publication { instance, topic: topic.clone(), payload: payload.clone() });
        }
        self.published_size += size + ITEM_OVERHEAD;
        self.published.push(Own { topic, payload, position: 0, caller, refused: false });
        Ok(())
    }

    /// Takes a call that has gone out of the tables in which it waits.
    pub(super) fn forget(&mut self, caller: Caller, kind: Call) {
        match kind {
            // Their answers meet nobody; what they contributed stays.
            Call::Signal => {}
            Call::Publish { size } => {
                let instance = &mut self.instances[caller.0 as usize];
                instance.unrecorded = instance.unrecorded.saturating_sub(size);
            }
            Call::Barrier { state, target } | Call::SignalAndWait { state, target, .. } => {
                let Some(state) = self.states.get_mut(&state) else { return };
                if let Some(waiting) = state.waiting.get_mut(&target) {
                    waiting.remove(&caller);
                    if waiting.is_empty() {
                        state.waiting.remove(&target);
                    }
                }
            }
            Call::Subscribe { topic } => {
                if let Some(topic) = self.topics.get_mut(&topic) {
                    topic.subscribers.remove(&caller);
                }
            }
        }
    }
}
