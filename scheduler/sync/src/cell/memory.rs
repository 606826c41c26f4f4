//! What a cell must not forget where its instances may outlive their lablet.
//!
//! Whoever drives the cell writes the records down in their order, before anything that the cell says or answers leaves;
//! another life of the lablet makes the same cell of them. What instances waited for is not among it: they ask again.

use std::collections::VecDeque;

use bytes::Bytes;
use iptl_dag::model::InstanceId;
use iptl_wire::session::SignalNumbers;
use serde::{Deserialize, Serialize};

use super::{CellSync, Own};
use crate::ITEM_OVERHEAD;

/// Number of the calls of an earlier life: no instance has such a call, so their answers meet nobody.
const GONE: u64 = u64::MAX;

/// One thing that happened to a cell and that it must know after its lablet was started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The session of this number is up.
    Session(u64),
    /// An instance signalled.
    Signal {
        /// Instance.
        instance: InstanceId,
        /// State.
        state: String,
    },
    /// An instance published.
    Publication {
        /// Instance.
        instance: InstanceId,
        /// Topic.
        topic: String,
        /// Payload.
        payload: Bytes,
    },
    /// Signals of the cell got their numbers.
    Numbers(SignalNumbers),
    /// A publication of the cell got its position.
    Position {
        /// Number of the publication in the cell, from one.
        seq: u64,
        /// Position in its topic, from one; zero where it was refused.
        position: u64,
    },
}

impl CellSync {
    /// Makes the sync of a cell with these instances of what an earlier life of its lablet remembered, nothing where
    /// there was none; from now on [`poll_record`](CellSync::poll_record) has what is to be remembered.
    pub fn remembering(
        instances: impl IntoIterator<Item = InstanceId>,
        records: impl IntoIterator<Item = Record>,
    ) -> CellSync {
        let mut cell = CellSync::new(instances);
        for record in records {
            cell.recall(record);
        }
        cell.records = Some(VecDeque::new());
        cell
    }

    /// Returns the next thing to write down, to be asked before [`poll_up`](CellSync::poll_up) and
    /// [`poll_reply`](CellSync::poll_reply).
    pub fn poll_record(&mut self) -> Option<Record> {
        self.records.as_mut()?.pop_front()
    }

    pub(super) fn note(&mut self, record: impl FnOnce() -> Record) {
        if let Some(records) = &mut self.records {
            records.push_back(record());
        }
    }

    fn recall(&mut self, record: Record) {
        match record {
            Record::Session(number) => self.link.session = self.link.session.max(number),
            Record::Signal { instance, state } => {
                let Some(at) = self.by_id.get(&instance).copied() else { return };
                // It was within the limits when it was taken.
                let _known = self.name_state(at, &state);
                self.count((at, GONE), &state);
            }
            Record::Publication { instance, topic, payload } => {
                let Some(at) = self.by_id.get(&instance).copied() else { return };
                let _known = self.name_topic(at, &topic);
                self.published_size += payload.len() + ITEM_OVERHEAD;
                self.published.push(Own { topic, payload, position: 0, caller: (at, GONE), refused: false });
            }
            Record::Numbers(numbers) => self.on_numbers(numbers),
            Record::Position { seq, position } => self.on_position(seq, position),
        }
    }
}
