//! What the orchestrator keeps of lablets and executions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iptl_dag::model::{
    Assignment, CannotStart, Epoch, Execution, ExecutionId, FaultDone, InstanceId, LabletRecord, Run, WorkloadKind,
};
use iptl_dag::{Cid, PeerId};
use iptl_wire::Timestamp;
use iptl_wire::session::{CellStatus, ClockSample, Inventory, KnownRun};

use super::api::ReceiptSummary;
use super::pulls::Pulls;
use super::steps::{Name, Steps};
use super::waits::Waits;

/// How long a bid counts: two repetitions of an offer and some.
const BID_LIFE: Duration = Duration::from_secs(5);

/// Boot of a lablet that was not heard since the orchestrator started.
pub(super) const UNKNOWN_BOOT: [u8; 16] = [0; 16];

/// Instances of each kind that lablets bid for, with the time of the bid.
pub(super) type Bids = BTreeMap<PeerId, (BTreeMap<WorkloadKind, u32>, Timestamp)>;

/// A lablet that has a lease, or is expected back after a restart.
#[derive(Debug)]
pub(super) struct LabletState {
    /// The current session; none while it is away.
    pub session: Option<u64>,
    pub boot: [u8; 16],
    pub version: String,
    pub inventory: Inventory,
    /// Cells that its last word listed.
    pub cells: Vec<CellStatus>,
    /// Number of the last heartbeat of this session; older ones are late.
    pub seq: u64,
    pub heard_at: Timestamp,
    pub lease_until: Timestamp,
    pub heartbeat_ms: u32,
    pub clock: Option<ClockSample>,
    /// When the session ended, where it did.
    pub away_since: Option<Timestamp>,
}

impl LabletState {
    /// Whether its last word listed the cell of an execution that was granted in a term.
    pub(super) fn lists(&self, execution: &ExecutionId, epoch: &Epoch) -> bool {
        self.cells.iter().any(|status| status.cell.execution == *execution && status.cell.epoch == *epoch)
    }
}

/// An execution that is not over.
#[derive(Debug)]
pub(super) struct Exec {
    pub node: Execution,
    pub run: KnownRun,
    /// Its place among those that were not over when it came, as its first fact says; see [`Exec::place`].
    pub order: u64,
    /// Who asked.
    pub by: PeerId,
    pub submitted_at: Timestamp,
    /// How long before that it was submitted, where this clock does not reach back so far.
    pub waited_before: Duration,
    /// How long ago it was submitted and started when its log was read, as far as that was known without the wall clock.
    pub age: (Option<Duration>, Option<Duration>),
    /// Until when lablets may come back after its log was read: its time is not over before.
    pub grace_until: Timestamp,
    pub submitted_ms: u64,
    pub started_ms: u64,
    pub ended_ms: u64,
    pub stage: Stage,
    /// Counter of the term; that of the last round of grants once there was one.
    pub epoch: u64,
    /// Rounds of grants before the start; after a replay at least one where there was one.
    pub rounds: u32,
    /// Counter of the last of them.
    pub round: u64,
    /// Placements, oldest first.
    pub placements: Vec<Cid>,
    /// The last placement.
    pub assignments: Vec<Assignment>,
    /// Last bid of each lablet, with its time.
    pub bids: Bids,
    /// Whether those that bid and lost were told.
    pub losers_told: bool,
    /// Lablets that get nothing for a while, with the reason.
    pub banned: BTreeMap<PeerId, (Timestamp, String)>,
    /// The cell that each lablet holds or held.
    pub cells: BTreeMap<PeerId, Cell>,
    /// Cells that lablets held after the start before the one that they hold, oldest first: their receipts count.
    pub past: Vec<(PeerId, Cell)>,
    /// Lablets whose cell was given back before the start.
    pub former: BTreeSet<PeerId>,
    /// Receipts that count: lablet and attempt.
    pub received: BTreeMap<InstanceId, (PeerId, u32)>,
    /// Receipts of attempts that the lab stopped and replaced: they count where the replacement is lost.
    pub evidence: BTreeMap<InstanceId, (PeerId, u32)>,
    /// Instances that are lost, with the reason.
    pub lost: BTreeMap<InstanceId, String>,
    /// Lost instances that wait for another attempt, with its number.
    pub replace: BTreeMap<InstanceId, u32>,
    pub replace_until: Timestamp,
    /// When attempts of a number may be granted, where that is still to come: losses in a row wait longer each time.
    pub replace_at: BTreeMap<u32, Timestamp>,
    /// First failure of each group, as far as it counts.
    pub failed: BTreeMap<String, (InstanceId, String)>,
    /// Why the plan has it ended before it is over.
    pub ended_early: Option<String>,
    /// Why it cannot be started.
    pub cannot_start: Option<CannotStart>,
    /// Its place before others; the higher goes first.
    pub priority: i32,
    /// Lablets whose cells are lost unless the receipts that the log names say otherwise, with the reason.
    pub lose_later: BTreeMap<PeerId, String>,
    /// Since when no lablets are there that could hold it, even if nothing else ran.
    pub unfit_since: Option<Timestamp>,
    /// What it waits for, where placement said so.
    pub reason: String,
    pub cancelled: Option<PeerId>,
    pub timed_out: bool,
    /// Lablets that were granted instances.
    pub records: BTreeMap<PeerId, LabletRecord>,
    pub distortions: Vec<(String, String)>,
    /// Faults that those who watch were told of.
    pub faults_told: usize,
    /// Facts that are taken in again once all receipts that the log names were read.
    pub steps: Steps,
    /// Receipts that were read since the replay, by lablet and chunk.
    pub recalled: BTreeMap<(PeerId, Cid), Vec<ReceiptSummary>>,
    /// Who wrote the last fact.
    pub leader: PeerId,
    /// Whether it came from another orchestrator.
    pub taken_over: bool,
    /// Whether a lablet said after a takeover that it was started, though the log does not.
    pub seen_started: bool,
    /// Whether lablets were not heard after a takeover that may hold what nobody knows of: nothing is granted anew.
    pub doubtful: bool,
    pub notice_at: Timestamp,
    pub noticed: Option<Waits<'static>>,
    /// Ended instances at the last progress event.
    pub progress: usize,
    /// Chunks of all cells that are not here, counted.
    pub pulls: Pulls,
}

/// How far an execution is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not placed.
    Waiting,
    /// Placed; bids confirm.
    Offered {
        /// When lablets that did not bid are passed over.
        bids_until: Timestamp,
        /// When the offer is published again.
        repeat_at: Timestamp,
    },
    /// Grants are out; cells get prepared.
    Granted,
    /// Started.
    Running {
        /// When the run's time is over.
        deadline: Timestamp,
    },
    /// Cells were stopped; receipts come in.
    Stopping {
        /// When what is missing is lost.
        until: Timestamp,
    },
    /// The result is being made.
    Assembling {
        /// Attempts so far.
        tries: u32,
        /// When it is ordered again; none while it is being made.
        retry_at: Option<Timestamp>,
    },
}

/// The instances of an execution on one lablet.
#[derive(Debug)]
pub(super) struct Cell {
    /// Term of its grant, which an orchestrator before this one may have made.
    pub epoch: Epoch,
    pub assignments: Vec<Assignment>,
    pub attempt: u32,
    pub phase: Phase,
    pub granted_at: Timestamp,
    /// Heartbeats in a row that did not list it.
    pub absent: u32,
    /// Nothing more is expected of it.
    pub over: bool,
    /// Its lablet died under it, as far as it was there to see; what was sealed before may still come.
    pub died: bool,
    pub shards: BTreeMap<Cid, Shard>,
    /// Chunks that the log names, with their counts, while it is read: they are put in order all at once.
    pub named: Vec<(Name, u32)>,
    /// Its number among the steps of the log; none where these say nothing of its receipts.
    pub number: Option<u32>,
    /// Faults that were done in it and are in the log; at most [`MAX_FAULTS_TOLD`](iptl_wire::session::MAX_FAULTS_TOLD).
    pub faults: BTreeSet<FaultDone>,
    /// Whether its lablet has said how far the others are.
    pub measured: bool,
}

/// How far a cell is, as the orchestrator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Granted,
    Accepted,
    Prepared,
}

/// A chunk of receipts that was announced.
#[derive(Debug)]
pub(super) struct Shard {
    pub count: u32,
    pub state: Pull,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pull {
    /// On its way.
    Pulling,
    /// Its fact is durable; read again after a restart.
    Recalled,
    /// Fetched again at this time.
    Retry(Timestamp),
    /// Its receipts are in the state, its fact was ordered.
    Kept,
    /// Cannot be had.
    Bad,
}

impl Exec {
    /// Returns its place in the order of submission. Facts that say nothing of it, or were written by two orchestrators,
    /// are told apart by their times.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.order, self.submitted_ms)
    }

    /// Counts the round of a grant: those of one round have one counter.
    pub(super) fn count_round(&mut self, counter: u64) {
        if self.rounds == 0 || self.round != counter {
            self.rounds = self.rounds.saturating_add(1);
            self.round = counter;
        }
    }

    /// Notes a takeover. Each grant that was given counts for a round from then on: what many lablets hold is hardly placed
    /// anew before the start.
    ///
    /// TODO: without this, seed 19 of the simulator's profile `takeover-crowd` has a successor that was cut off from lablets
    /// start an attempt which its predecessor had replaced already. Ending such an execution for want of lablets is safe; one
    /// with fewer grants than rounds are tried is not ended by this, and no schedule has shown it of one.
    pub(super) fn note_takeover(&mut self) {
        self.taken_over = true;
        self.rounds = self.rounds.saturating_add(u32::try_from(self.cells.len()).unwrap_or(u32::MAX));
    }

    /// Whether cells were told to start.
    pub(super) fn started(&self) -> bool {
        self.started_ms > 0
    }

    pub(super) fn live_cells(&self) -> impl Iterator<Item = (&PeerId, &Cell)> {
        self.cells.iter().filter(|(_, cell)| !cell.over)
    }

    /// Cells of all times, with their lablets.
    pub(super) fn all_cells(&self) -> impl Iterator<Item = (&PeerId, &Cell)> {
        self.past.iter().map(|(lablet, cell)| (lablet, cell)).chain(&self.cells)
    }

    /// Makes a cell the one that its lablet holds. What it held before stays for its receipts, once they could be some.
    pub(super) fn hold(&mut self, lablet: PeerId, cell: Cell) {
        let started = self.started();
        if let Some(before) = self.cells.insert(lablet.clone(), cell)
            && started
        {
            self.past.push((lablet, before));
        }
    }

    /// Makes a cell of which only its lablet knew the one that this holds. Of the one before nothing more is expected:
    /// the lablet was given another since it had handed in all of that.
    pub(super) fn hold_recovered(&mut self, lablet: PeerId, cell: Cell) {
        if let Some(before) = self.cells.get_mut(&lablet) {
            before.over = true;
        }
        self.hold(lablet, cell);
    }

    /// Whether someone, the clock or the plan has asked for its end, or it cannot begin.
    pub(super) fn ending(&self) -> bool {
        self.cancelled.is_some() || self.timed_out || self.ended_early.is_some() || self.cannot_start.is_some()
    }

    /// Says why it ends, to lablets and of what never ran; the same whenever it is asked.
    pub(super) fn end_reason(&self) -> String {
        if let Some(why) = &self.cannot_start {
            why.reason.clone()
        } else if self.cancelled.is_some() {
            "cancelled".to_owned()
        } else if self.timed_out {
            "the run's time is over".to_owned()
        } else if let Some(reason) = &self.ended_early {
            format!("the plan ends the run: {reason}")
        } else {
            "given up after a takeover".to_owned()
        }
    }

    /// Whether what is lost now may begin anew, as far as its group allows it.
    pub(super) fn goes_again(&self) -> bool {
        matches!(self.stage, Stage::Running { .. }) && !self.doubtful
    }

    /// Returns the last attempt of every instance that was granted more than once after the start.
    pub(super) fn attempts(&self) -> BTreeMap<InstanceId, u32> {
        let mut attempts = BTreeMap::new();
        for (_, cell) in self.all_cells().filter(|(_, cell)| cell.attempt > 1) {
            for instance in cell.instances() {
                let last: &mut u32 = attempts.entry(instance).or_default();
                *last = (*last).max(cell.attempt);
            }
        }
        attempts
    }

    /// Assignments that live cells hold.
    pub(super) fn kept(&self) -> Vec<Assignment> {
        self.live_cells().flat_map(|(_, cell)| cell.assignments.iter().cloned()).collect()
    }

    /// Instances that no live cell holds, before the start.
    pub(super) fn open(&self) -> u64 {
        let held: u64 = self.live_cells().map(|(_, c)| u64::from(c.slots())).sum();
        self.run.run.instances().saturating_sub(held)
    }

    /// Forgets bids that say nothing about now; offers are repeated more often than bids lapse.
    pub(super) fn drop_stale_bids(&mut self, now: Timestamp) {
        self.bids.retain(|_, (_, at)| now.since(*at) < BID_LIFE);
    }

    /// Whether every instance has a receipt or is lost for good.
    pub(super) fn complete(&self) -> bool {
        let open = self.recalling() || !self.replace.is_empty();
        !open && (self.received.len() + self.lost.len()) as u64 >= self.run.run.instances()
    }

    /// When it ends without a result unless it was started.
    pub(super) fn start_by(&self) -> Option<Timestamp> {
        let waits = match self.stage {
            Stage::Waiting | Stage::Offered { .. } | Stage::Granted => true,
            Stage::Running { .. } | Stage::Stopping { .. } | Stage::Assembling { .. } => false,
        };
        let within = self.run.run.placing.within_ms.filter(|_| waits)?;
        let left = Duration::from_millis(within).saturating_sub(self.waited_before);
        Some(self.submitted_at.after(left).max(self.grace_until))
    }

    /// When this execution wants to be looked at.
    pub(super) fn next_timeout(&self) -> Option<Timestamp> {
        let stage = match &self.stage {
            Stage::Waiting | Stage::Granted => None,
            Stage::Offered { bids_until, repeat_at } => Some((*bids_until).min(*repeat_at)),
            Stage::Running { deadline } => Some(*deadline),
            // What is missing is known once the log's receipts are read.
            Stage::Stopping { until } => (!self.recalling()).then_some(*until),
            Stage::Assembling { retry_at, .. } => *retry_at,
        };
        let replacing = !self.replace.is_empty() && !self.recalling();
        let replace = replacing.then(|| self.replace_at.values().copied().min().unwrap_or(self.replace_until));
        let replace = replace.map(|at| at.min(self.replace_until));
        let notice = self.waits().then_some(self.notice_at);
        let others = self.next_pull().into_iter().chain(self.next_lapse());
        stage.into_iter().chain(others).chain(replace).chain(notice).chain(self.start_by()).min()
    }

    /// When the next lablet may get something again that gave a grant back, where that may give this execution a place.
    fn next_lapse(&self) -> Option<Timestamp> {
        let next = self.banned.values().map(|(until, _)| *until).min()?;
        let wants_place = match self.stage {
            Stage::Waiting => true,
            Stage::Granted => self.open() > 0,
            Stage::Running { .. } => !self.replace.is_empty() && !self.recalling(),
            Stage::Offered { .. } | Stage::Stopping { .. } | Stage::Assembling { .. } => false,
        };
        wants_place.then_some(next)
    }

    /// Forgets the lablets that may get something again; returns whether there were any.
    pub(super) fn lapse_bans(&mut self, now: Timestamp) -> bool {
        let before = self.banned.len();
        self.banned.retain(|_, (until, _)| *until > now);
        self.banned.len() < before
    }
}

impl Cell {
    /// Makes the cell of a grant that nobody answered yet.
    pub(super) fn new(now: Timestamp, epoch: Epoch, assignments: Vec<Assignment>, attempt: u32) -> Cell {
        Cell {
            epoch,
            assignments,
            attempt,
            phase: Phase::Granted,
            granted_at: now,
            absent: 0,
            over: false,
            died: false,
            shards: BTreeMap::new(),
            named: Vec::new(),
            number: None,
            faults: BTreeSet::new(),
            measured: false,
        }
    }

    pub(super) fn slots(&self) -> u32 {
        slots_of(&self.assignments)
    }

    pub(super) fn holds(&self, instance: &InstanceId) -> bool {
        self.assignments.iter().any(|a| a.holds(instance))
    }

    pub(super) fn instances(&self) -> impl Iterator<Item = InstanceId> + '_ {
        self.assignments.iter().flat_map(Assignment::instances)
    }
}

pub(super) fn slots_of(assignments: &[Assignment]) -> u32 {
    assignments.iter().map(|a| a.count).sum()
}

/// Instances of assignments by kind.
pub(super) fn kinds_of<'a>(
    run: &Run,
    assignments: impl IntoIterator<Item = &'a Assignment>,
) -> BTreeMap<WorkloadKind, u32> {
    let mut kinds = BTreeMap::new();
    for a in assignments {
        if let Some(group) = run.groups.get(&a.group) {
            let count: &mut u32 = kinds.entry(group.kind).or_default();
            *count = count.saturating_add(a.count);
        }
    }
    kinds
}

/// Memory in bytes that the assignments may take together.
pub(super) fn memory_of(run: &Run, assignments: &[Assignment]) -> u64 {
    assignments
        .iter()
        .map(|a| run.groups.get(&a.group).map_or(0, |g| g.resources.memory_bytes.saturating_mul(u64::from(a.count))))
        .fold(0, u64::saturating_add)
}
