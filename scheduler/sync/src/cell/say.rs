//! What the orchestrator is told.

use iptl_dag::model::InstanceId;
use iptl_wire::session::{Absent, Publication, Restore, Signallers, SyncUp};

use super::{CellSync, DOWNS_UNTOLD, Instance, State};
use crate::{BATCH_SIZE, FLOW_WINDOW, ITEM_OVERHEAD};

impl CellSync {
    pub(super) fn is_due(&self) -> bool {
        self.link.fresh
            || self.link.restore.is_some()
            || self.link.published < self.published.len()
            || self.link.heard - self.link.heard_told >= DOWNS_UNTOLD
            || self.link.untold >= FLOW_WINDOW / 4
            || !self.dirty.states.is_empty()
            || !self.dirty.asks.is_empty()
            || !self.dirty.topics.is_empty()
            || !self.dirty.inquired.is_empty()
            || self.is_rest_news()
    }

    /// Whether nothing is to be said but signals of states that some of the cell have not signalled yet.
    pub(super) fn is_gathering(&self) -> bool {
        let others = self.link.fresh
            || self.link.restore.is_some()
            || self.link.published < self.published.len()
            || !self.dirty.topics.is_empty()
            || !self.dirty.inquired.is_empty();
        let alive = self.by_id.len();
        let complete = |name: &String| self.states.get(name).is_none_or(|state| state.signalled.len() >= alive);
        !others && !self.dirty.states.is_empty() && !self.dirty.states.iter().any(complete)
    }

    pub(super) fn say_names(&mut self, up: &mut SyncUp) {
        let mut room = BATCH_SIZE;
        while let Some(name) = self.dirty.states.pop_first() {
            let Some(state) = self.states.get_mut(&name) else { continue };
            room = room.saturating_sub(name.len() + ITEM_OVERHEAD);
            up.signals.insert(name.clone(), next_signallers(&self.instances, state, &mut room));
            if !state.unsaid.is_empty() {
                self.dirty.states.insert(name);
                return;
            }
            if let Some(absent) = self.last_missing(&name) {
                room = room.saturating_sub(name.len() + size_of_names(&absent));
                up.absent.insert(name, absent);
            }
            if room == 0 {
                return;
            }
        }
        let mut fits = |size: usize| {
            room = room.saturating_sub(size + ITEM_OVERHEAD);
            room > 0
        };
        while let Some(ask) = self.dirty.asks.pop_first() {
            let size = ask.state.len();
            up.barriers.push(ask);
            if !fits(size) {
                return;
            }
        }
        if self.link.untold >= FLOW_WINDOW / 4 {
            let wanted = self.topics.iter().filter(|(_, topic)| topic.is_wanted());
            self.dirty.topics.extend(wanted.map(|(name, _)| name.clone()));
            self.link.untold = 0;
        }
        while let Some(name) = self.dirty.topics.pop_first() {
            let size = name.len();
            if let Some(topic) = self.topics.get(&name) {
                up.subscribed.insert(name, topic.received);
            }
            if !fits(size) {
                return;
            }
        }
        while let Some(name) = self.dirty.inquired.pop_first() {
            let absent = self.missing(&name);
            let size = size_of_names(&absent);
            up.absent.insert(name, absent);
            if !fits(size) {
                return;
            }
        }
    }

    /// All signals were said for nothing, or may have been.
    pub(super) fn say_signals_again(&mut self) {
        for (name, state) in self.states.iter_mut().filter(|(_, state)| state.given > 0) {
            state.unsaid = state.times.keys().copied().collect();
            self.dirty.states.insert(name.clone());
        }
    }

    pub(super) fn say_publications(&mut self, up: &mut SyncUp) {
        let mut size = 0;
        while let Some(own) = self.published.get(self.link.published) {
            size += own.payload.len() + own.topic.len() + ITEM_OVERHEAD;
            if size > BATCH_SIZE && !up.published.is_empty() {
                break;
            }
            self.link.published += 1;
            up.published.push(Publication {
                seq: self.link.published as u64,
                topic: if own.refused { String::new() } else { own.topic.clone() },
                position: own.position,
                payload: own.payload.clone(),
            });
        }
    }

    pub(super) fn say_restore(&mut self, up: &mut SyncUp) {
        let Some(numbers) = &mut self.link.restore else { return };
        let mut restore = Restore::default();
        let mut size = 0;
        while let Some(next) = numbers.front() {
            size += next.state.len() + ITEM_OVERHEAD;
            if size > BATCH_SIZE {
                break;
            }
            restore.numbers.extend(numbers.pop_front());
        }
        restore.last =
            numbers.is_empty() && self.link.published == self.published.len() && self.dirty.states.is_empty();
        if restore.last {
            self.link.restore = None;
        }
        up.restore = Some(restore);
    }
}

/// Takes out of whom it has to be said that they signalled a state, as far as there is room for it in a message.
fn next_signallers(instances: &[Instance], state: &mut State, room: &mut usize) -> Vec<Signallers> {
    let mut said: Vec<Signallers> = Vec::new();
    while let Some(first) = state.unsaid.first().copied() {
        let InstanceId { group, index } = &instances[first as usize].id;
        let times = state.times.get(&first).copied().unwrap_or(0);
        match said.last_mut() {
            Some(last)
                if last.group == *group
                    && last.times == times
                    && last.start.checked_add(last.count) == Some(*index) =>
            {
                last.count += 1;
            }
            _ if *room == 0 => return said,
            _ => {
                *room = room.saturating_sub(group.len() + ITEM_OVERHEAD);
                said.push(Signallers { group: group.clone(), start: *index, count: 1, times });
            }
        }
        state.unsaid.pop_first();
    }
    said
}

/// What the names of missing instances take of a message, in bytes.
fn size_of_names(absent: &Absent) -> usize {
    absent.instances.iter().map(|id| id.group.len() + ITEM_OVERHEAD).sum()
}
