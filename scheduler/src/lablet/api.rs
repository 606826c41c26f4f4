//! What goes into a lablet core and what comes out.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Assignment, Epoch, ExecutionId, InstanceId, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use iptl_wire::offer::Offer;
use iptl_wire::session::{CellRef, Directory, Grant, Inventory, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::takeover::{Claim, Finished};
use iptl_wire::{Timestamp, Verified};

/// Names and times of a lablet.
#[derive(Clone, Debug)]
pub struct LabletConfig {
    /// This lablet.
    pub peer: PeerId,
    /// The lab that it joined; offers of others are ignored.
    pub lab: PeerId,
    /// Shortest time in milliseconds between two seals of a cell that still runs.
    pub seal_interval_ms: u64,
}

impl LabletConfig {
    /// Returns the configuration that a lablet has where nobody says otherwise.
    pub fn new(peer: PeerId, lab: PeerId) -> LabletConfig {
        LabletConfig { peer, lab, seal_interval_ms: 1_000 }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum LabletInput {
    /// An orchestrator answered hello; certificate, claim and offers were checked. Replaces any session before.
    SessionUp {
        /// The orchestrator.
        orchestrator: PeerId,
        /// When the hello was sent: the lease counts from then.
        hello_at: Timestamp,
        /// Term that the hello said was promised.
        promised: Option<Epoch>,
        /// Its answer.
        welcome: Verified<Welcome>,
    },
    /// The session ended. Cells go on under their lease.
    SessionDown {
        /// The orchestrator.
        orchestrator: PeerId,
    },
    /// An offer came by gossip, signed by `offer.epoch.peer`, which is an orchestrator of the lab.
    Offer(Verified<Offer>),
    /// The orchestrator said something on the session. `Welcome`, `Turned`, `Sync` and `Follow` do nothing here.
    Message {
        /// The orchestrator; it signed what is signed.
        from: PeerId,
        /// What it said.
        message: Verified<ToLablet>,
    },
    /// What the machine has. The `free_*` fields say what would be free if no cell was held: the core subtracts those.
    Inventory(Inventory),
    /// Every block is here and every instance ready.
    Prepared {
        /// Cell.
        cell: CellRef,
    },
    /// The cell could not be prepared.
    PrepareFailed {
        /// Cell.
        cell: CellRef,
        /// Why, for people.
        reason: String,
        /// Whether the content is at fault, so that no other lablet could prepare it either.
        unfit: bool,
    },
    /// An instance ended, by itself or after `Stop`; its record is ready to be sealed.
    InstanceEnded {
        /// Cell.
        cell: CellRef,
        /// Instance.
        instance: InstanceId,
    },
    /// Receipts were written as a chunk, flushed, and recorded beside the promise.
    ShardSealed {
        /// Cell.
        cell: CellRef,
        /// Chunk.
        shard: Cid,
        /// Receipts in it.
        count: u32,
        /// Whether this is the last chunk of one `Seal`.
        last: bool,
    },
    /// Receipts could not be written; the core asks again later.
    SealFailed {
        /// Cell.
        cell: CellRef,
        /// Why.
        reason: String,
    },
    /// The owner wants the machine back: no new work.
    Drain {
        /// Running cells are stopped too.
        now: bool,
    },
    /// The owner lends the machine again.
    Undrain,
    /// The wall clock, read together with `now`: at start, then at least every minute and after every jump.
    Wall {
        /// Microseconds since 1970.
        unix_us: u64,
    },
    /// What was durable at start. Before anything but `Wall` and `Inventory`.
    Restore {
        /// Highest epoch promised, by execution; a driver may leave out what is older than a day.
        promised: Vec<(ExecutionId, Epoch)>,
        /// Cells that were held; their instances died with the lablet, unless `Adopted` says otherwise.
        cells: Vec<(CellRecord, Vec<(Cid, u32)>)>,
        /// Claim of the term that was promised, where one was.
        promised_term: Option<Signed<Claim>>,
        /// Tombstones, oldest first.
        finished: Vec<Finished>,
    },
    /// An orchestrator of the lab leads from a term on; its signature and its certificate were checked.
    Claim(Verified<Signed<Claim>>),
    /// Instances of a cell outlived the lablet that started them and are in its hands again. Right after `Restore`,
    /// which has the cell.
    Adopted {
        /// Cell.
        cell: CellRef,
        /// Instances that have receipts in the chunks of `Restore`. All others are said to have ended sooner or later.
        sealed: BTreeSet<InstanceId>,
        /// Until when the lease ran that the earlier life had; the cell is stopped where that is over.
        leased_until: Timestamp,
    },
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// What a lablet writes down before it takes a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellRecord {
    /// The cell; its execution and epoch are the promise.
    pub cell: CellRef,
    /// Its instances.
    pub assignments: Vec<Assignment>,
    /// The slots that they take, by kind.
    pub slots: BTreeMap<WorkloadKind, u32>,
    /// Memory in bytes that they may take.
    pub memory_bytes: u64,
    /// Attempt of its instances.
    pub attempt: u32,
}

/// One thing to do, in order.
#[expect(
    clippy::large_enum_variant,
    reason = "effects are made, carried out and gone; a term is promised once in a takeover"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum LabletEffect {
    /// Sends a message on the session to `to`; without one it is dropped. The driver stamps `wall_us` of a heartbeat.
    Send {
        /// Orchestrator.
        to: PeerId,
        /// Message.
        message: ToOrchestrator,
    },
    /// Makes promise and cell durable; everything after it waits for that. Outlives `Forget`, as a promise.
    Promise(CellRecord),
    /// Fetches what the cell needs and makes its instances; `Prepared` or `PrepareFailed` answers.
    Prepare {
        /// Cell.
        cell: CellRef,
        /// The whole grant.
        grant: Box<Grant>,
    },
    /// Instances of other cells moved.
    Directory {
        /// Cell.
        cell: CellRef,
        /// Where instances are now.
        directory: Directory,
    },
    /// Starts a prepared cell.
    Start {
        /// Cell.
        cell: CellRef,
    },
    /// Stops a running cell: every instance that has not ended ends, with a receipt that says why.
    Stop {
        /// Cell.
        cell: CellRef,
        /// Why.
        reason: String,
    },
    /// Writes receipts of all instances that ended since the last seal; `ShardSealed`s or `SealFailed` answer.
    Seal {
        /// Cell.
        cell: CellRef,
    },
    /// Makes the promise of a term durable; everything after it waits for that.
    PromiseTerm(Signed<Claim>),
    /// Ends every session with another orchestrator than this one, dials that one and says hello to it.
    Turn {
        /// Who leads.
        to: PeerId,
    },
    /// Makes durable how an execution ended, before the cell is forgotten; instead of what was told of it before.
    Tombstone(Finished),
    /// Drops everything of the cell but its promise: instances where it was never started, pins, scratch, its record.
    Forget {
        /// Cell.
        cell: CellRef,
    },
}
