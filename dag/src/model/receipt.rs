//! Receipts: a lablet's signed statement about one attempt of one instance.

mod between;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::destination::Destination;
use crate::model::execution::{Epoch, ExecutionId, InstanceId};
use crate::model::signed::{Signable, Signed};
use crate::{Cid, PeerId};

pub use between::BetweenRegions;

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
    /// What the lab network did to its packets; none where its packets are not carried as such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkUse>,
    /// Its lablet was started again while it ran; none where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// That a lablet which was started again took an instance over that had run on meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// Wall times at which it did, in milliseconds since 1970, in their order: the first
    /// [`MAX_ADOPTED`](Adopted::MAX_ADOPTED) of them.
    pub at_ms: Vec<u64>,
    /// Whether it was connected with sync when the lablet ended, and did not connect again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sync_lost: bool,
}

impl Adopted {
    /// Times that are told: a lablet that is started again and again would make receipts without a bound.
    pub const MAX_ADOPTED: usize = 16;
}

/// What the lab network did to the packets of an instance, and how well the lab kept to its model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUse {
    /// Its link up, then those of the gateways before it, its own first.
    pub up: Vec<LinkUse>,
    /// Its link down, then those of the gateways before it, its own first.
    pub down: Vec<LinkUse>,
    /// What its own requests did to what it sent, before its link up; none where it made none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<LinkUse>,
    /// Packets that it sent with a source that is not its own; they went nowhere.
    pub spoofed: u64,
    /// Packets of its that the lab lost and no model did.
    pub lost_by_lab: u64,
    /// How often it was crashed on purpose.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub crashes: u64,
    /// What went out of the lab and came in, by the places that it was let reach; absent means that there were none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub egress: BTreeMap<Destination, EgressUse>,
    /// What is true of its whole cell.
    pub cell: CellNetworkUse,
}

/// What an instance exchanged with one place outside of the lab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressUse {
    /// Connections that were made; of datagrams, ports from which there were any.
    pub connections: u64,
    /// Connections that were asked for and not made.
    pub failed: u64,
    /// Bytes of payload that went out.
    pub sent_bytes: u64,
    /// Bytes of payload that came in.
    pub received_bytes: u64,
}

/// What one direction of a link, or of several together, did, in packets and bytes as they were on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkUse {
    /// Packets that came to it.
    pub offered: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Packets that left it, copies included.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Packets that it lost by chance, or because it was down.
    pub lost: u64,
    /// Packets for which its queue had no room.
    pub overflowed: u64,
    /// Copies that it made.
    pub duplicated: u64,
    /// Packets in which it turned a bit.
    pub corrupted: u64,
    /// Sum over delivered packets of the time that the model asked for, in nanoseconds.
    pub asked_ns: u64,
    /// Sum over delivered packets of the time that it took, in nanoseconds.
    pub measured_ns: u64,
}

/// What the network of a cell did up to the end of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellNetworkUse {
    /// How late packets were handled: entry `i` counts those that were late by 2ⁱ⁻¹ ns or more and less than 2ⁱ ns; cut
    /// after the last that is not zero.
    pub lateness: Vec<u64>,
    /// The greatest lateness in nanoseconds.
    pub max_late_ns: u64,
    /// Packets from other lablets that came by way of a third machine.
    pub relayed: u64,
    /// Packets from other lablets that took longer than the model's delay.
    pub overdue: u64,
    /// The longest by which one of them took longer, in nanoseconds.
    pub max_overdue_ns: u64,
    /// Packets that the lab lost and no model did, where nobody can say whose they were: between regions, and on their
    /// way in from other lablets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost_by_lab: u64,
    /// What the links between regions, and within one, did together; nothing where no packet met one.
    #[serde(default, skip_serializing_if = "LinkUse::is_none")]
    pub across: LinkUse,
    /// What each of them did; at most [`BetweenRegions::MAX`]. Nothing where the network has one region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<BetweenRegions>,
    /// CPU time that the network took, in microseconds; none where it has no thread of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<u64>,
    /// Time that it lived, in microseconds.
    pub wall_us: u64,
    /// Whether it went before other programs of its machine.
    pub realtime: bool,
}

impl LinkUse {
    /// Adds what another link did.
    pub fn add(&mut self, other: &LinkUse) {
        let (sums, more) = (self.numbers(), other.numbers());
        // What a stranger's receipt says may be anything.
        *self = LinkUse::of_numbers(std::array::from_fn(|n| sums[n].saturating_add(more[n])));
    }

    /// Returns all numbers, in the order of the fields.
    fn numbers(&self) -> [u64; 10] {
        let LinkUse {
            offered,
            offered_bytes,
            delivered,
            delivered_bytes,
            lost,
            overflowed,
            duplicated,
            corrupted,
            asked_ns,
            measured_ns,
        } = *self;
        [
            offered,
            offered_bytes,
            delivered,
            delivered_bytes,
            lost,
            overflowed,
            duplicated,
            corrupted,
            asked_ns,
            measured_ns,
        ]
    }

    fn of_numbers(numbers: [u64; 10]) -> LinkUse {
        let [
            offered,
            offered_bytes,
            delivered,
            delivered_bytes,
            lost,
            overflowed,
            duplicated,
            corrupted,
            asked_ns,
            measured_ns,
        ] = numbers;
        LinkUse {
            offered,
            offered_bytes,
            delivered,
            delivered_bytes,
            lost,
            overflowed,
            duplicated,
            corrupted,
            asked_ns,
            measured_ns,
        }
    }

    fn is_none(&self) -> bool {
        *self == LinkUse::default()
    }
}

impl CellNetworkUse {
    /// Returns an upper bound of a quantile of the lateness in nanoseconds, at most twice what it is; zero where nothing
    /// was timed. `permille` is from 0 to 1000.
    pub fn late_ns(&self, permille: u32) -> u64 {
        let total: u128 = self.lateness.iter().map(|count| u128::from(*count)).sum();
        let rank = (total * u128::from(permille.min(1000))).div_ceil(1000);
        let mut seen = 0;
        for (i, count) in self.lateness.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank && *count > 0 {
                let bound = u32::try_from(i).ok().and_then(|i| 1u64.checked_shl(i)).map_or(u64::MAX, |n| n - 1);
                return bound.min(self.max_late_ns);
            }
        }
        self.max_late_ns
    }
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

impl Exit {
    /// Says how the software failed; none where it ended well, or where the lab ended it. What an outcome says of it.
    pub fn failure(&self) -> Option<String> {
        Some(match self {
            Exit::Exited { code: 0 } | Exit::Reported { failure: None, .. } => return None,
            Exit::Stopped { .. } | Exit::WorkerDied { .. } => return None,
            Exit::Exited { code } => format!("exit {code}"),
            Exit::Reported { failure: Some(reason), .. } => reason.clone(),
            Exit::Trapped { trap } => format!("trap {trap}"),
            Exit::Signalled { signal } => format!("signal {signal}"),
            Exit::Unwell { reason: _ } => "unwell".to_owned(),
            Exit::StackOverflow {} => "stack overflow".to_owned(),
            Exit::OutOfMemory {} => "out of memory".to_owned(),
            Exit::OutOfCpu {} => "out of cpu time".to_owned(),
            Exit::OutOfTime {} => "out of time".to_owned(),
            Exit::TooMuchOutput { what } => format!("too much {what}"),
            Exit::NotStarted { reason: _ } => "not started".to_owned(),
        })
    }

    /// Says how the lab ended it; none where the software ended, by itself or by going beyond what it may.
    pub fn by_lab(&self) -> Option<ByLab<'_>> {
        match self {
            Exit::Stopped { reason } => Some(ByLab::Stopped(reason)),
            Exit::WorkerDied { reason } => Some(ByLab::WorkerDied(reason)),
            Exit::NotStarted { reason } => Some(ByLab::NotStarted(reason)),
            Exit::Exited { .. }
            | Exit::Reported { .. }
            | Exit::Trapped { .. }
            | Exit::Signalled { .. }
            | Exit::Unwell { .. }
            | Exit::StackOverflow {}
            | Exit::OutOfMemory {}
            | Exit::OutOfCpu {}
            | Exit::OutOfTime {}
            | Exit::TooMuchOutput { .. } => None,
        }
    }
}

/// How the lab ended an attempt, or kept it from beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByLab<'a> {
    /// It was stopped from outside, for this reason.
    Stopped(&'a str),
    /// The worker that ran its cell died; what is known of that.
    WorkerDied(&'a str),
    /// It could not be started, for this reason.
    NotStarted(&'a str),
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !*flag
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

/// Most receipts in one chunk.
pub const MAX_RECEIPTS_PER_SHARD: usize = 512;

/// Bytes of receipts from which on a chunk takes no further one: half a block, so that the last one has as much.
pub const RECEIPT_SHARD_BYTES: usize = 1 << 20;
