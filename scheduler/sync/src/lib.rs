//! Topics, signals and barriers of one execution, aggregated per cell.
//!
//! [`CellSync`] stands at the lablet: it takes the calls of its instances, sums them up, and gives each its answer.
//! [`RunSync`] stands at the orchestrator: it numbers signals, opens barriers and puts the messages of each topic in
//! one order. Between them go `SyncUp` and `SyncDown`, a few for a whole cell however many instances it has.
//!
//! * A *signal* raises the count of a state and is answered with its number, over all instances.
//! * A *barrier* opens once its state has had as many signals as its target, at once where it already has.
//! * A *publication* gets a position in its topic, from one; who *subscribes* gets every message of the topic from the
//!   first, in the order of positions.
//!
//! Within a session messages between a cell and the orchestrator keep their order and may be repeated; with a new
//! session what was lost is said again. Nothing of this is logged: a cell keeps what it contributed and contributes it
//! again to an orchestrator that has lost it ([`RunSync::recovering`]). A cell whose instances may outlive their lablet
//! says what is to be written down for its next life ([`CellSync::remembering`]).
//!
//! Who takes part says the log: a [`SyncBook`] reads it.
//!
//! Nothing here reads a clock. Both ends have three verbs: a call or message in, and two queues to ask.

mod book;
mod cell;
mod run;
mod tally;

use bytes::Bytes;

pub use book::SyncBook;
pub use cell::{CellSync, Record};
pub use run::{BarrierState, FailedBarrier, MAX_TOLD_BARRIERS, MissingCell, RunSync, UpError};

/// Longest name of a state or topic, in bytes.
pub const MAX_NAME_SIZE: usize = 256;

/// Largest payload of one message, in bytes.
pub const MAX_PAYLOAD_SIZE: usize = 1 << 20;

/// States and topics that one instance may be the first in its cell to name.
pub const MAX_NAMES_PER_INSTANCE: usize = 1024;

/// States and topics that one cell may name: their totals fit into one message.
pub const MAX_NAMES_PER_CELL: usize = 8192;

/// Calls of one instance that have no answer yet, subscriptions included.
pub const MAX_CALLS_PER_INSTANCE: usize = 4096;

/// Bytes that one instance may have published and not yet seen recorded.
pub const MAX_UNRECORDED_SIZE: usize = 8 << 20;

/// Bytes of messages that one execution keeps: every subscriber may ask for all of them.
pub const MAX_KEPT_SIZE: usize = 256 << 20;

/// Bytes of one kind of content after which a message is full; with one largest payload over it, three kinds of
/// content stay under the largest message of a session.
const BATCH_SIZE: usize = 1 << 20;

/// Bytes of messages on their way to one cell.
const FLOW_WINDOW: u64 = 4 << 20;

/// What a small item takes beside its name or payload.
const ITEM_OVERHEAD: usize = 64;

/// What an instance asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncOp {
    /// Signals a state. Answer: `Signalled`.
    Signal {
        /// State.
        state: String,
    },
    /// Waits until a state has had so many signals. Answer: `Opened`, when it has.
    Barrier {
        /// State.
        state: String,
        /// Signals.
        target: u64,
    },
    /// Signals a state and waits until it has had so many signals. Answer: `Opened`, when it has and the signal is
    /// counted.
    SignalAndWait {
        /// State.
        state: String,
        /// Signals.
        target: u64,
    },
    /// Publishes a message. Answer: `Published`.
    Publish {
        /// Topic.
        topic: String,
        /// Payload.
        payload: Bytes,
    },
    /// Wants the messages of a topic. Answers: one `Message` each.
    Subscribe {
        /// Topic.
        topic: String,
    },
    /// Wants no more answers to the call of this number. No answer.
    Cancel,
}

/// An answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The signal is counted.
    Signalled {
        /// Its number over all instances, from one.
        seq: u64,
    },
    /// The barrier is open.
    Opened {
        /// The caller's own signal, as `Signalled` numbers it; zero where the call gave none.
        seq: u64,
    },
    /// The message is recorded.
    Published {
        /// Its position in the topic, from one.
        position: u64,
    },
    /// A message of the topic.
    Message {
        /// Its position in the topic.
        position: u64,
        /// Payload.
        payload: Bytes,
    },
    /// The call is not carried out; nothing follows.
    Failed(SyncError),
}

/// Why a call is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// The name of the state or topic is empty or too long.
    #[error("a name of {size} bytes is not between 1 and {MAX_NAME_SIZE}")]
    BadName {
        /// Its length in bytes.
        size: usize,
    },
    /// The payload is too long.
    #[error("payload of {size} bytes is longer than {MAX_PAYLOAD_SIZE}")]
    PayloadTooLong {
        /// Its length in bytes.
        size: usize,
    },
    /// Too many states and topics.
    #[error("more states and topics than the {limit} allowed here")]
    TooManyNames {
        /// The limit.
        limit: usize,
    },
    /// Too many calls without an answer.
    #[error("more than {MAX_CALLS_PER_INSTANCE} calls wait for an answer")]
    TooManyCalls,
    /// Published faster than it can be recorded.
    #[error("more than {MAX_UNRECORDED_SIZE} bytes wait to be recorded: wait for the answer to a publication")]
    TooFast,
    /// The execution keeps as many messages as it can.
    #[error("the topics of the run are full ({MAX_KEPT_SIZE} bytes)")]
    TopicsFull,
    /// Nobody is left who could signal: who might have has ended or is lost, or waits at a barrier himself. The plan wants
    /// it to fail then.
    #[error("barrier {state:?} cannot reach {target}, of which {reachable} are possible: {missing}")]
    Unreachable {
        /// State.
        state: String,
        /// Signals that were waited for.
        target: u64,
        /// Signals that there can be.
        reachable: u64,
        /// Who is missing.
        missing: String,
    },
    /// Another call of the instance has this number.
    #[error("another call has the number {call}")]
    CallTaken {
        /// The number.
        call: u64,
    },
}
