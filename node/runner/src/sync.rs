//! Calls of instances to the lab, and the answers.
//!
//! A runner only carries them; what they mean is decided by whoever drives it.

use iptl_dag::model::InstanceId;
use serde::{Deserialize, Serialize};

/// A call of one instance. `call` is a number unique in its instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncCall {
    /// Signals a state; answered by [`SyncReply::Signalled`].
    Signal {
        /// Number of the call.
        call: u64,
        /// State.
        state: String,
    },
    /// Waits until a state has had `target` signals; answered by [`SyncReply::Opened`].
    Barrier {
        /// Number of the call.
        call: u64,
        /// State.
        state: String,
        /// Signals to wait for.
        target: u64,
    },
    /// Signals a state and waits until it has had `target` signals; answered by [`SyncReply::Opened`].
    SignalAndWait {
        /// Number of the call.
        call: u64,
        /// State.
        state: String,
        /// Signals to wait for.
        target: u64,
    },
    /// Publishes on a topic; answered by [`SyncReply::Published`].
    Publish {
        /// Number of the call.
        call: u64,
        /// Topic.
        topic: String,
        /// Message.
        #[serde(with = "serde_bytes")]
        payload: Vec<u8>,
    },
    /// Subscribes to a topic from its first message; answered by one [`SyncReply::Message`] for each.
    Subscribe {
        /// Number of the call.
        call: u64,
        /// Topic.
        topic: String,
    },
    /// Gives up an earlier barrier or subscription; not answered.
    Cancel {
        /// Number of the earlier call.
        call: u64,
    },
}

impl SyncCall {
    /// Returns the number of the call.
    pub fn call(&self) -> u64 {
        match self {
            SyncCall::Signal { call, .. }
            | SyncCall::Barrier { call, .. }
            | SyncCall::SignalAndWait { call, .. }
            | SyncCall::Publish { call, .. }
            | SyncCall::Subscribe { call, .. }
            | SyncCall::Cancel { call } => *call,
        }
    }
}

/// An answer to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncReply {
    /// The signal was counted.
    Signalled {
        /// Instance that asked.
        id: InstanceId,
        /// Its call.
        call: u64,
        /// Signals that the state has had, this one included.
        seq: u64,
    },
    /// The barrier opened.
    Opened {
        /// Instance that asked.
        id: InstanceId,
        /// Its call.
        call: u64,
        /// The number of its own signal; zero where the call gave none.
        seq: u64,
    },
    /// The message was published.
    Published {
        /// Instance that asked.
        id: InstanceId,
        /// Its call.
        call: u64,
        /// Position in the topic, from one.
        position: u64,
    },
    /// A message of a subscribed topic.
    Message {
        /// Instance that asked.
        id: InstanceId,
        /// Its call.
        call: u64,
        /// Position in the topic, from one.
        position: u64,
        /// Message.
        #[serde(with = "serde_bytes")]
        payload: Vec<u8>,
    },
    /// The call will not be answered.
    Failed {
        /// Instance that asked.
        id: InstanceId,
        /// Its call.
        call: u64,
        /// Why.
        reason: String,
    },
}

impl SyncReply {
    /// Returns the instance that asked and the number of its call.
    pub fn target(&self) -> (&InstanceId, u64) {
        match self {
            SyncReply::Signalled { id, call, .. }
            | SyncReply::Opened { id, call, .. }
            | SyncReply::Published { id, call, .. }
            | SyncReply::Message { id, call, .. }
            | SyncReply::Failed { id, call, .. } => (id, *call),
        }
    }
}
