//! Topics: messages get positions, and go to the cells that subscribed.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_wire::session::{Publication, TopicMessage};

use super::{Cell, Logged, MAX_COUNT, RunSync, Topic, UpError, check_name};
use crate::{BATCH_SIZE, FLOW_WINDOW, ITEM_OVERHEAD, MAX_KEPT_SIZE, MAX_PAYLOAD_SIZE};

/// Bytes of one topic that go into a message before the next topic has its turn.
const TURN_SIZE: u64 = 64 << 10;

impl RunSync {
    pub(super) fn take_publications(
        &mut self,
        lablet: &PeerId,
        published: Vec<Publication>,
        restoring: bool,
    ) -> Result<(), UpError> {
        for publication in published {
            let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
            if !cell.restored && !restoring {
                // It will come again, with all that was before it.
                return Ok(());
            }
            let (seq, expected) = (publication.seq, cell.taken + 1);
            if seq < expected {
                continue;
            }
            if seq > expected {
                return Err(UpError::Gap { seq, expected });
            }
            let refused = publication.topic.is_empty();
            if publication.payload.len() > MAX_PAYLOAD_SIZE || publication.position > MAX_COUNT {
                return Err(UpError::TooMuch { what: "a publication" });
            }
            if !refused {
                check_name(&publication.topic)?;
                self.check_names(&publication.topic)?;
            }
            let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
            cell.taken = seq;
            if refused {
                continue;
            }
            match publication.position {
                0 if self.recovering => self.hold(lablet, publication),
                0 => self.record(Some(lablet), publication),
                _ if self.recovering => self.put_back(publication),
                // Known from before; there is nothing to restore.
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps a publication until recovery ends; refuses it, as [`record`](RunSync::record) does, where all is full.
    fn hold(&mut self, lablet: &PeerId, publication: Publication) {
        let size = publication.payload.len() + ITEM_OVERHEAD;
        let Some(cell) = self.cells.get_mut(lablet) else { return };
        if self.kept + size <= MAX_KEPT_SIZE {
            self.kept += size;
            cell.held.push(publication);
        } else {
            cell.news.positions.push((publication.seq, 0));
            self.mark_due(lablet);
        }
    }

    /// Gives a publication the next position of its topic.
    pub(super) fn record(&mut self, lablet: Option<&PeerId>, publication: Publication) {
        let size = publication.payload.len() + ITEM_OVERHEAD;
        let mut position = 0;
        if self.kept + size <= MAX_KEPT_SIZE {
            self.kept += size;
            let topic = self.topics.entry(publication.topic.clone()).or_default();
            let end = topic.log.last().map_or(0, |logged| logged.end);
            topic.last += 1;
            position = topic.last;
            topic.log.push(Logged { position, payload: publication.payload, end: end + size as u64 });
            let subscribers: Vec<PeerId> = topic.subscribers.iter().cloned().collect();
            for subscriber in subscribers {
                if let Some(cell) = self.cells.get_mut(&subscriber) {
                    cell.behind.insert(publication.topic.clone());
                }
                self.mark_due(&subscriber);
            }
        }
        let Some(lablet) = lablet else { return };
        if let Some(cell) = self.cells.get_mut(lablet) {
            cell.news.positions.push((publication.seq, position));
        }
        self.mark_due(lablet);
    }

    /// Puts a publication where it was before it was lost here. The log is sorted when recovery ends.
    fn put_back(&mut self, publication: Publication) {
        let size = publication.payload.len() + ITEM_OVERHEAD;
        if self.kept + size > MAX_KEPT_SIZE {
            return;
        }
        self.kept += size;
        let topic = self.topics.entry(publication.topic).or_default();
        topic.log.push(Logged { position: publication.position, payload: publication.payload, end: 0 });
    }

    pub(super) fn take_subscription(&mut self, lablet: &PeerId, name: String, received: u64) -> Result<(), UpError> {
        check_name(&name)?;
        self.check_names(&name)?;
        let topic = self.topics.entry(name.clone()).or_default();
        topic.subscribers.insert(lablet.clone());
        let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
        let cursor = cell.topics.entry(name.clone()).or_default();
        cursor.told = cursor.told.max(received.min(MAX_COUNT));
        cursor.seen = cursor.seen.max(cursor.told);
        if self.recovering {
            // The log is not in order yet; the cursor moves when it is.
            return Ok(());
        }
        let before = topic.bytes(cursor.sent) - topic.bytes(cursor.received);
        cursor.received = cursor.received.max(topic.after(received));
        cursor.sent = cursor.sent.max(cursor.received);
        let after = topic.bytes(cursor.sent) - topic.bytes(cursor.received);
        cell.in_flight = (cell.in_flight + after).saturating_sub(before);
        if cursor.sent < topic.log.len() {
            cell.behind.insert(name);
        }
        // It may have been the window that held the topics back.
        self.mark_due(lablet);
        Ok(())
    }
}

impl Topic {
    /// Returns the bytes of the first `count` messages.
    pub(super) fn bytes(&self, count: usize) -> u64 {
        count.checked_sub(1).and_then(|last| self.log.get(last)).map_or(0, |logged| logged.end)
    }

    /// Returns how many messages are at or before a position.
    pub(super) fn after(&self, position: u64) -> usize {
        self.log.partition_point(|logged| logged.position <= position)
    }
}

/// Takes the next messages for a cell: topics in turns, within the size of a message and the window.
pub(super) fn next_messages(cell: &mut Cell, topics: &BTreeMap<String, Topic>) -> Vec<TopicMessage> {
    let mut messages = Vec::new();
    let mut size = 0;
    while !cell.behind.is_empty() {
        for name in cell.behind.iter().cloned().collect::<Vec<String>>() {
            let (Some(topic), Some(cursor)) = (topics.get(&name), cell.topics.get_mut(&name)) else {
                cell.behind.remove(&name);
                continue;
            };
            let mut turn = 0;
            while turn < TURN_SIZE {
                let Some(logged) = topic.log.get(cursor.sent) else {
                    cell.behind.remove(&name);
                    break;
                };
                let next = (logged.payload.len() + ITEM_OVERHEAD + name.len()) as u64;
                let full = size + next > BATCH_SIZE as u64 && !messages.is_empty();
                if full || cell.in_flight >= FLOW_WINDOW {
                    return messages;
                }
                size += next;
                turn += next;
                cell.in_flight += topic.bytes(cursor.sent + 1) - topic.bytes(cursor.sent);
                let before = cursor.sent.checked_sub(1).and_then(|last| topic.log.get(last));
                messages.push(TopicMessage {
                    topic: name.clone(),
                    position: logged.position,
                    after: before.map_or(0, |logged| logged.position),
                    payload: logged.payload.clone(),
                });
                cursor.sent += 1;
            }
        }
    }
    messages
}
