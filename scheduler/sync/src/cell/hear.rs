//! What the orchestrator says.

use bytes::Bytes;
use iptl_wire::session::{BarrierAsk, SignalNumbers, TopicMessage, Unreachable};

use super::{Caller, CellSync, MAX_WHY_SIZE, Record};
use crate::{ITEM_OVERHEAD, Reply, SyncError};

impl CellSync {
    /// Fails the barriers of a state that cannot be reached any more.
    pub(super) fn fail(&mut self, name: &str, why: &Unreachable) {
        let Some(state) = self.states.get_mut(name) else { return };
        let reachable = why.reachable.max(state.total).max(state.given);
        let failed = state.waiting.split_off(&reachable.saturating_add(1));
        let missing = &why.missing[..why.missing.floor_char_boundary(MAX_WHY_SIZE)];
        for (target, waiting) in failed {
            self.dirty.asks.remove(&BarrierAsk { state: name.to_owned(), target });
            for caller in waiting {
                let state = name.to_owned();
                let error = SyncError::Unreachable { state, target, reachable, missing: missing.to_owned() };
                self.answer(caller, Reply::Failed(error));
            }
        }
    }

    pub(super) fn on_message(&mut self, message: TopicMessage) {
        self.link.untold += (message.payload.len() + ITEM_OVERHEAD) as u64;
        let Some(topic) = self.topics.get_mut(&message.topic) else { return };
        if message.position <= topic.received || message.after > topic.received {
            return;
        }
        topic.received = message.position;
        topic.log.push((message.position, message.payload));
        for (caller, (_, queued)) in &mut topic.subscribers {
            if !*queued {
                *queued = true;
                self.feed.push_back(*caller);
            }
        }
    }

    pub(super) fn on_position(&mut self, seq: u64, position: u64) {
        let index = usize::try_from(seq).ok().and_then(|seq| seq.checked_sub(1));
        let Some(own) = index.and_then(|index| self.published.get_mut(index)) else { return };
        if own.position > 0 || own.refused {
            return;
        }
        own.position = position;
        own.refused = position == 0;
        let caller = own.caller;
        if let Some(records) = &mut self.records {
            records.push_back(Record::Position { seq, position });
        }
        let reply = if own.refused {
            self.published_size -= own.payload.len();
            own.payload = Bytes::new();
            Reply::Failed(SyncError::TopicsFull)
        } else {
            Reply::Published { position }
        };
        self.answer(caller, reply);
    }

    pub(super) fn on_numbers(&mut self, told: SignalNumbers) {
        let Some(state) = self.states.get_mut(&told.state) else { return };
        let end = told.from.saturating_add(told.count).saturating_sub(1).min(state.given);
        if told.from == 0 || told.from > state.numbered + 1 || end <= state.numbered {
            return;
        }
        let skip = state.numbered + 1 - told.from;
        let count = end - state.numbered;
        let number = told.number.saturating_add(skip);
        let from = state.numbered + 1;
        if let Some(records) = &mut self.records {
            records.push_back(Record::Numbers(SignalNumbers { state: told.state.clone(), from, count, number }));
        }
        match state.numbers.last_mut() {
            Some(last) if last.number + last.count == number => last.count += count,
            _ => state.numbers.push(SignalNumbers { state: told.state, from, count, number }),
        }
        state.numbered = end;
        let callers: Vec<Caller> = state.unanswered.drain(..usize::try_from(count).unwrap_or(usize::MAX)).collect();
        for (caller, seq) in callers.into_iter().zip(number..) {
            self.number(caller, seq);
        }
    }
}
