//! What the lab does to instances on purpose: told in their events, and done by their init.
//!
//! A crash kills the workload's processes and nothing else: its container, with address, files and listener of the sync
//! service, stays, and the program is started in it again. A pause stops the processes; their kernel still answers for
//! them, as it does for any process that does not run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use iptl_dag::model::{FaultDone, FaultKind, InstanceId};
use iptl_labnet::{Act, Happened};
use iptl_runner::CellEvent;
use iptl_runner::files::{CellFiles, FAULT_EVENT};
use tokio::sync::mpsc;
use tokio::time::Instant as Deadline;

use crate::cell::Cell;
use crate::protocol::ToInit;

/// Faults of a network that have happened.
pub(crate) type Told = mpsc::UnboundedReceiver<Happened>;

/// What is to be done to one instance, and when that was due, in microseconds since the start.
pub(crate) type Acts = mpsc::UnboundedReceiver<(Act, u64)>;

/// The instances of a cell to which something can be done.
pub(crate) type Targets = BTreeMap<InstanceId, mpsc::UnboundedSender<(Act, u64)>>;

/// Writes faults into the events of those whom they concern, and has done what is to be done. Those that were due before
/// `since` after the start happened to an earlier life of the lablet, or to nobody, and are passed over.
pub(crate) async fn follow(
    cell: Arc<Cell>,
    events: mpsc::WeakSender<CellEvent>,
    mut told: Told,
    targets: Targets,
    since: Duration,
) {
    while let Some(Happened { due_ns, what, hit, act, moved }) = told.recv().await {
        if let (false, Some(network)) = (moved.is_empty(), cell.network.upgrade()) {
            network.note_moved(&moved);
            if let Err(error) = cell.dir.change_names(&network.hosts()) {
                tracing::error!(%error, "names of a cell lead to addresses that nobody has any more");
            }
        }
        if Duration::from_nanos(due_ns) < since {
            continue;
        }
        let (due_us, done_us) = (due_ns / 1_000, cell.at_us());
        let mut line = Vec::new();
        CellFiles::fault_line(&mut line, done_us, what, due_us);
        let mut instances = 0;
        for id in hit {
            let Some(target) = targets.get(&id).filter(|target| !target.is_closed()) else { continue };
            if let Err(error) = cell.files.append_events(&id, &line) {
                tracing::warn!(%id, %error, "a fault is not among the events");
            }
            instances += 1;
            if let Some(act) = act {
                let _ended = target.send((act, due_us));
            }
        }
        if instances > 0
            && let Some(events) = events.upgrade()
        {
            let _ = events.send(CellEvent::Fault(FaultDone { due_us, kind: what, done_us, instances })).await;
        }
    }
}

/// Counts the crashes among events.
pub(crate) fn count_crashes(events: &str) -> u64 {
    #[derive(serde::Deserialize)]
    struct Data {
        fault: String,
    }
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        name: String,
        #[serde(borrow)]
        data: &'a serde_json::value::RawValue,
    }
    let told = events.lines().filter(|line| line.contains(FAULT_EVENT));
    let told = told.filter_map(|line| serde_json::from_str::<Line<'_>>(line).ok());
    let faults = told.filter(|line| line.name == FAULT_EVENT);
    let faults = faults.filter_map(|line| serde_json::from_str::<Data>(line.data.get()).ok());
    faults.filter(|data| data.fault == "crash").count() as u64
}

/// What is being done to an instance.
#[derive(Default)]
pub(crate) struct Doing {
    /// When it starts again, after a crash, and when that is due, in microseconds since the start.
    pub(crate) restart_at: Option<(Deadline, u64)>,
    /// When it goes on, after a pause, and when that is due.
    pub(crate) resume_at: Option<(Deadline, u64)>,
    /// How often it was crashed.
    pub(crate) crashes: u64,
}

impl Doing {
    /// Begins; returns what init is to do. Who has crashed is not crashed again before it runs.
    pub(crate) fn begin(&mut self, act: Act, due_us: u64) -> Option<ToInit> {
        let due_us = |more_ns: u64| due_us.saturating_add(more_ns / 1_000);
        match act {
            Act::Crash { restart_ns, files_lost: _ } if self.restart_at.is_none() => {
                self.restart_at = Some((Deadline::now() + Duration::from_nanos(restart_ns), due_us(restart_ns)));
                self.resume_at = None;
                self.crashes += 1;
                Some(ToInit::Crash)
            }
            Act::Pause { for_ns } if self.restart_at.is_none() => {
                let until = (Deadline::now() + Duration::from_nanos(for_ns), due_us(for_ns));
                self.resume_at = Some(self.resume_at.map_or(until, |earlier| earlier.max(until)));
                Some(ToInit::Pause)
            }
            // A network with such a fault is refused where it would concern a container.
            Act::Crash { .. } | Act::Pause { .. } | Act::Clock { .. } => None,
        }
    }

    /// Waits until something is over, and returns what; without end where nothing is. Safe to drop.
    pub(crate) async fn next(&self) -> FaultKind {
        let until = |at: Option<(Deadline, u64)>| {
            tokio::time::sleep_until(at.map_or_else(|| Deadline::now() + Duration::from_secs(86_400), |(at, _)| at))
        };
        tokio::select! {
            () = until(self.restart_at), if self.restart_at.is_some() => FaultKind::Restart,
            () = until(self.resume_at), if self.resume_at.is_some() => FaultKind::Resume,
            else => std::future::pending().await,
        }
    }
}
