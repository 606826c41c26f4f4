//! Receipts: a lablet's signed statement about one attempt of one instance.

use serde::{Deserialize, Serialize};

use crate::model::execution::{Epoch, ExecutionId, InstanceId};
use crate::model::signed::{Signable, Signed};
use crate::{Cid, PeerId};

/// One attempt of one instance, as the lablet that ran it saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Execution.
    pub execution: ExecutionId,
    /// Instance.
    pub instance: InstanceId,
    /// Attempt, from one.
    pub attempt: u32,
    /// Term of the grant under which it ran.
    pub epoch: Epoch,
    /// Workload that ran.
    pub workload: Cid,
    /// Lablet that ran it.
    pub lablet: PeerId,
    /// Runner with its version: `wasm wasmtime-48.0.8`.
    pub runner: String,
    /// Wall time of its start in milliseconds since 1970; zero where it never started.
    pub started_ms: u64,
    /// Wall time of its end in milliseconds since 1970.
    pub ended_ms: u64,
    /// How it ended.
    pub exit: Exit,
    /// What it used.
    pub usage: Usage,
    /// UnixFS file of stdout and stderr as JSON lines, where there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Cid>,
    /// UnixFS file of its events as JSON lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Cid>,
    /// UnixFS file of its metrics as JSON lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Cid>,
    /// UnixFS directory of its artifacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<Cid>,
    /// UnixFS file of what it used second by second, as JSON lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Cid>,
    /// Limits that it met, whether or not they ended it, sorted: `open files`, `processes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits_met: Vec<String>,
    /// Commands that people executed in it, in their order: what it did may be their doing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interventions: Vec<Intervention>,
}

/// A command that somebody executed in a running instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intervention {
    /// Who.
    pub by: PeerId,
    /// Wall time in milliseconds since 1970.
    pub at_ms: u64,
    /// Program with its arguments.
    pub command: Vec<String>,
    /// Status with which it ended, 128 and more where a signal ended it; none where that is not known: its lablet died
    /// meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
}

impl Signable for Receipt {
    const DOMAIN: &'static str = "iptl/receipt/1";
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Exit {
    /// Its program ended with this status; zero is success.
    Exited {
        /// Status.
        code: i32,
    },
    /// Its program ended and had said itself how it went, which counts instead of the status.
    Reported {
        /// Status.
        code: i32,
        /// What it named as its failure; none is success.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<String>,
    },
    /// Its program broke.
    Trapped {
        /// Kind of trap, stable: `unreachable`, `integer division by zero`.
        trap: String,
    },
    /// A signal ended its program, and it was not the lab that sent it.
    Signalled {
        /// Name of the signal: `SIGSEGV`.
        signal: String,
    },
    /// Its health check failed as often as its group allows.
    Unwell {
        /// What the last look said, cut to a line.
        reason: String,
    },
    /// It recursed deeper than its stack.
    StackOverflow {},
    /// It asked for more memory than it may have.
    OutOfMemory {},
    /// It used more CPU time than it may.
    OutOfCpu {},
    /// It ran longer than it may.
    OutOfTime {},
    /// It wrote more output, records or artifacts than it may.
    TooMuchOutput {
        /// What there was too much of: `output`, `records`, `artifacts`, `disk`.
        what: String,
    },
    /// It was stopped from outside: cancelled, lease over, execution ended.
    Stopped {
        /// Why.
        reason: String,
    },
    /// The worker that ran its cell died.
    WorkerDied {
        /// What is known: `signal 9`.
        reason: String,
    },
    /// It could not be started.
    NotStarted {
        /// Why.
        reason: String,
    },
}

/// What an instance used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// Largest memory in bytes.
    pub memory_bytes: u64,
    /// Bytes that it sent over the lab network.
    pub sent_bytes: u64,
    /// Bytes that it received over the lab network.
    pub received_bytes: u64,
    /// Bytes that it read from disk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub read_bytes: u64,
    /// Bytes that it wrote to disk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub written_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A chunk of receipts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptShard {
    /// Receipts, sorted by instance.
    pub receipts: Vec<Signed<Receipt>>,
}

/// Most receipts in one chunk: at some 700 bytes each, well under the size of a block.
pub const MAX_RECEIPTS_PER_SHARD: usize = 512;
