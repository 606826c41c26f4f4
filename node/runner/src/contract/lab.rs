//! A lab of one cell: answers sync calls, collects what is said.

use std::collections::BTreeMap;
use std::time::Duration;

use iptl_dag::model::{Exit, FaultDone, InstanceId};
use tokio::sync::mpsc;

use super::instance;
use crate::cell::{CellControl, CellEvent, CellInput, CellSpec, Ended, OutputStream, PreparedCell};
use crate::runner::Runner;
use crate::sync::{SyncCall, SyncReply};

/// Time in which every cell of the suite is over; ample, so that only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(120);

/// One prepared cell and everything that it has said so far.
pub struct Lab {
    /// The cell.
    pub control: Box<dyn CellControl>,
    events: mpsc::Receiver<CellEvent>,
    states: BTreeMap<String, u64>,
    barriers: BTreeMap<String, Waiting>,
    topics: BTreeMap<String, Topic>,
    /// What it has said.
    pub outcome: Outcome,
}

/// Barriers of one state.
#[derive(Default)]
struct Waiting {
    /// Instance, call, target, number of its own signal.
    calls: Vec<(InstanceId, u64, u64, u64)>,
}

#[derive(Default)]
struct Topic {
    messages: Vec<Vec<u8>>,
    subscribers: Vec<(InstanceId, u64)>,
}

/// What a cell has said.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Ends by instance.
    pub ended: BTreeMap<InstanceId, Ended>,
    /// Lines in the order in which they were told.
    pub output: Vec<(InstanceId, OutputStream, String)>,
    /// Packets for other cells.
    pub packets: Vec<Vec<u8>>,
    /// What was done to it on purpose.
    pub faults: Vec<FaultDone>,
    over: bool,
}

impl Outcome {
    /// Returns how an instance of the suite's group ended.
    pub fn exit(&self, index: u32) -> &Exit {
        &self.ended[&instance(index)].exit
    }

    /// Returns the lines that it wrote to a stream.
    pub fn lines(&self, index: u32, stream: OutputStream) -> Vec<String> {
        let id = instance(index);
        self.output.iter().filter(|(i, s, _)| *i == id && *s == stream).map(|(_, _, line)| line.clone()).collect()
    }
}

impl Lab {
    /// Prepares a cell, which must be possible.
    pub async fn prepare(runner: &dyn Runner, cell: CellSpec) -> Lab {
        let prepared = tokio::time::timeout(PATIENCE, runner.prepare(cell)).await.expect("prepare hangs");
        Lab::of(prepared.expect("the cell can be prepared"))
    }

    /// Takes a prepared cell.
    pub fn of(PreparedCell { control, events }: PreparedCell) -> Lab {
        Lab {
            control,
            events,
            states: BTreeMap::new(),
            barriers: BTreeMap::new(),
            topics: BTreeMap::new(),
            outcome: Outcome::default(),
        }
    }

    /// Follows the cell until it is over.
    pub async fn finish(mut self) -> Outcome {
        let all = async { while self.step().await {} };
        tokio::time::timeout(PATIENCE, all).await.expect("the cell hangs");
        self.outcome
    }

    /// Follows the cell until something is the case.
    pub async fn until(&mut self, mut holds: impl FnMut(&Outcome) -> bool) {
        let seen = async {
            while !holds(&self.outcome) {
                assert!(self.step().await, "the cell is over: {:?}", self.outcome);
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the cell hangs");
    }

    /// Drops the control and follows the cell until it is over.
    pub async fn abandon(self) -> Outcome {
        let Lab { control, mut events, mut outcome, .. } = self;
        drop(control);
        let all = async {
            while let Some(event) = events.recv().await {
                if let CellEvent::Ended { id, ended } = event {
                    outcome.ended.insert(id, ended);
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the cell hangs");
        outcome
    }

    /// Takes one event; false after the last one. Safe to drop half-way but for answers that were being handed over.
    pub async fn step(&mut self) -> bool {
        let Some(event) = self.events.recv().await else {
            assert!(self.outcome.over, "the events ended before the cell was over");
            return false;
        };
        assert!(!self.outcome.over, "an event after the cell was over: {event:?}");
        match event {
            CellEvent::Output { id, stream, line, .. } => self.outcome.output.push((id, stream, line)),
            CellEvent::Sync { id, call } => self.answer(id, call).await,
            CellEvent::Packets(batch) => self.outcome.packets.extend(batch.packets().map(Vec::from)),
            CellEvent::Ended { id, ended } => {
                let before = self.outcome.ended.insert(id, ended);
                assert!(before.is_none(), "an instance ended twice: {before:?}");
            }
            CellEvent::Usage(_) => {}
            CellEvent::Fault(done) => self.outcome.faults.push(done),
            CellEvent::CellOver => self.outcome.over = true,
        }
        true
    }

    /// Returns whether a state has so many signals.
    pub fn all_signalled(&self, state: &str, count: u64) -> bool {
        self.states.get(state).is_some_and(|signals| *signals >= count)
    }

    async fn answer(&mut self, id: InstanceId, call: SyncCall) {
        match call {
            SyncCall::Signal { call, state } => {
                let count = self.states.entry(state.clone()).or_default();
                *count += 1;
                let seq = *count;
                self.reply(SyncReply::Signalled { id, call, seq }).await;
                self.open_barriers(&state).await;
            }
            SyncCall::Barrier { call, state, target } => {
                self.barriers.entry(state.clone()).or_default().calls.push((id, call, target, 0));
                self.open_barriers(&state).await;
            }
            SyncCall::SignalAndWait { call, state, target } => {
                let count = self.states.entry(state.clone()).or_default();
                *count += 1;
                let seq = *count;
                self.barriers.entry(state.clone()).or_default().calls.push((id, call, target, seq));
                self.open_barriers(&state).await;
            }
            SyncCall::Publish { call, topic, payload } => {
                let topic = self.topics.entry(topic).or_default();
                topic.messages.push(payload.clone());
                let position = topic.messages.len() as u64;
                let subscribers = topic.subscribers.clone();
                self.reply(SyncReply::Published { id, call, position }).await;
                for (id, call) in subscribers {
                    self.reply(SyncReply::Message { id, call, position, payload: payload.clone() }).await;
                }
            }
            SyncCall::Subscribe { call, topic } => {
                let topic = self.topics.entry(topic).or_default();
                topic.subscribers.push((id.clone(), call));
                let messages = topic.messages.clone();
                for (position, payload) in (1..).zip(messages) {
                    self.reply(SyncReply::Message { id: id.clone(), call, position, payload }).await;
                }
            }
            SyncCall::Cancel { call } => {
                for waiting in self.barriers.values_mut() {
                    waiting.calls.retain(|(i, c, ..)| (i, c) != (&id, &call));
                }
                for topic in self.topics.values_mut() {
                    topic.subscribers.retain(|(i, c)| (i, c) != (&id, &call));
                }
            }
        }
    }

    async fn open_barriers(&mut self, state: &str) {
        let count = self.states.get(state).copied().unwrap_or(0);
        let Some(waiting) = self.barriers.get_mut(state) else { return };
        // The suite's barriers of one state have one target: where the first does not open, none does.
        if waiting.calls.first().is_none_or(|(_, _, target, _)| *target > count) {
            return;
        }
        for (id, call, _, seq) in waiting.calls.extract_if(.., |(_, _, target, _)| *target <= count).collect::<Vec<_>>()
        {
            self.reply(SyncReply::Opened { id, call, seq }).await;
        }
    }

    async fn reply(&self, reply: SyncReply) {
        self.control.input(vec![CellInput::Sync(reply)]).await;
    }
}
