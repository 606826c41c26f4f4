//! Points that schedules must reach: a simulator that never loses a grant shows nothing about lost grants.

macro_rules! points {
    ($($name:ident => $text:literal),* $(,)?) => {
        /// Something that happened, and that some schedule among many must make happen.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $(#[doc = $text] $name,)*
        }

        impl Point {
            /// All points.
            pub const ALL: &'static [Point] = &[$(Point::$name),*];

            /// Returns the point for people.
            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$name => $text,)*
                }
            }
        }
    };
}

pub(crate) use points;

points! {
    OfferLost => "offer lost",
    BidLost => "bid lost",
    GrantLost => "grant lost",
    GrantDoubled => "grant doubled",
    AcceptLost => "grant lost after accept: the accept never came",
    PreparedLost => "prepared lost",
    StartLost => "start lost",
    StartDoubled => "start doubled",
    StopLost => "stop lost",
    ReceiptsLost => "announcement of receipts lost",
    KeptLost => "kept lost",
    FinishedLost => "finished lost",
    HeartbeatLost => "heartbeat lost",
    LeaseLost => "lease renewal lost",
    OldSession => "message of an older session dropped",
    LateGrant => "grant of a replaced term arrives",
    CutUp => "what a lablet says is cut off",
    CutDown => "what a lablet is told is cut off",
    CutBoth => "lablet cut off",
    OrchestratorDiesOffered => "orchestrator dies with an open offer",
    OrchestratorDiesPreparing => "orchestrator dies during prepare",
    OrchestratorDiesRunning => "orchestrator dies during a run",
    OrchestratorDiesStopping => "orchestrator dies while cells stop",
    OrchestratorDiesSealing => "orchestrator dies while it seals",
    FactsTorn => "orchestrator dies and its last facts are lost",
    FactsLanded => "orchestrator dies and its last facts reached the disk",
    ReplayedRunning => "orchestrator replays a run that was started",
    ReplayedReceipts => "orchestrator replays receipts",
    ReplayedLater => "orchestrator replays a run that was started before its wall clock was set",
    LaidAside => "log of an execution that is over laid aside before a restart",
    ToldOfAside => "lablet asks about an execution whose log is laid aside",
    LabletDiesPreparing => "lablet dies while it prepares",
    LabletDiesPrepared => "lablet dies prepared",
    LabletDiesRunning => "lablet dies with running instances",
    LabletDiesUnsealed => "lablet dies with ends that were not sealed",
    LabletDiesSealed => "lablet dies with receipts that nobody keeps",
    PromiseTorn => "lablet dies and its promise is lost",
    PromiseLanded => "lablet dies and its promise reached the disk",
    LeaseEndsRunning => "lease runs out under running instances",
    LabletStopsAlone => "lablet stops by its own timer",
    BackInGrace => "lablet is back within the grace period",
    Turned => "second life of a lablet turned away",
    GaveBack => "grant given back",
    LostCell => "instances lost with their lablet",
    Replaced => "lost instances granted anew",
    Again => "lost instances granted to a lablet that had a part already",
    HaltedAgain => "what a lablet stopped granted anew",
    BarrierOpened => "a barrier opened",
    BarrierReleased => "a barrier opened without those who are lost for good",
    BarrierFailed => "a barrier failed, since somebody is gone for good",
    MetAgain => "an instance that began anew was waited for",
    SyncRecovers => "orchestrator reads again who takes part in sync",
    FailedFast => "ended early by a failure",
    LostFast => "ended early by losses",
    NotStarted => "not started in the time that the plan gives",
    KeptAlone => "a run waits for machines that another has for itself",
    WantsAlone => "a run waits for machines on which nothing else runs",
    LateReceipt => "receipts of an attempt that counted as lost",
    NothingToReplaceOn => "no lablet for another attempt",
    CancelledEarly => "cancelled before the start",
    CancelledRunning => "cancelled during the run",
    TimedOut => "the run's time is over",
    SealFailed => "receipts could not be written",
    PullFailed => "receipts could not be pulled",
    AssembleFailed => "the result could not be written",
    FactsRefused => "a full disk stops the orchestrator",
    PromiseRefused => "a full disk stops a lablet",
    SlowWrite => "a write takes longer than a second",
    FrozenLablet => "lablet stands still for longer than its lease",
    FrozenOrchestrator => "orchestrator stands still for longer than a lease",
    ClockJumped => "wall clock jumps by an hour or more",
    NeverPrepared => "a lablet takes a grant and never gets prepared",
    DrainedPreparing => "owner takes a machine back during prepare",
    DrainedRunning => "owner takes a machine back during a run",
    Queued => "a run waits behind another",
    Overtook => "a run starts before one that waits for other slots",
    SealedWhole => "sealed with every receipt",
    SealedPart => "sealed with instances missing",
    NoCapacity => "failed for want of lablets",
}

/// How often each point was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached([u64; Point::ALL.len()]);

impl Default for Reached {
    fn default() -> Reached {
        Reached([0; Point::ALL.len()])
    }
}

impl Reached {
    /// Counts a point.
    pub fn at(&mut self, point: Point) {
        self.0[point as usize] += 1;
    }

    /// Adds the counts of another schedule.
    pub fn add(&mut self, other: &Reached) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }

    /// Returns how often a point was reached.
    pub fn count(&self, point: Point) -> u64 {
        self.0[point as usize]
    }

    /// Returns the points that were never reached.
    pub fn missed(&self) -> Vec<Point> {
        Point::ALL.iter().copied().filter(|point| self.count(*point) == 0).collect()
    }
}
