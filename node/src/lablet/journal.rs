//! What a lablet must not forget: the epochs that it promised, and the cells that it holds with their receipts.
//!
//! One record for each held cell, one for each promise, in one file that is replaced whole: a lablet holds few cells,
//! and a promise is written once per grant. Promises of executions that ended over a day ago are left out.

use std::collections::BTreeMap;
use std::time::Duration;

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Assignment, Epoch, ExecutionId, InstanceId, WorkloadKind};
use iptl_dag::{Cid, codec};
use iptl_scheduler::lablet::CellRecord;
use iptl_wire::session::{CellRef, Grant};
use iptl_wire::takeover::{Claim, Finished, MAX_FINISHED};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::home::{Home, HomeError};

/// Part of the home that holds it.
const PART: &str = "lablet.cbor";

/// A promise is kept so long after the last word of its execution; no orchestrator comes back later than that.
const PROMISE_AGE: Duration = Duration::from_secs(24 * 3600);

/// The journal of a lablet.
pub(super) struct Journal {
    home: Home,
    state: State,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    promised: BTreeMap<String, Promise>,
    cells: BTreeMap<String, Held>,
    /// Claim of the term of the lab that was promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promised_term: Option<Signed<Claim>>,
    /// Executions that are over, oldest first; kept where the lab has several orchestrators.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    finished: Vec<Finished>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Promise {
    execution: ExecutionId,
    epoch: Epoch,
    at_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    cell: CellRef,
    assignments: Vec<Assignment>,
    /// Empty in journals from before lablets had more than one kind of runner.
    #[serde(default)]
    slots: BTreeMap<WorkloadKind, u32>,
    memory_bytes: u64,
    shards: Vec<(Cid, u32)>,
    #[serde(default)]
    grant: Option<Grant>,
}

impl Journal {
    pub(super) fn open(home: Home) -> Result<Journal, HomeError> {
        let mut state = home.read::<State>(PART)?.unwrap_or_default();
        let age = u64::try_from(PROMISE_AGE.as_millis()).unwrap_or(u64::MAX);
        let oldest = clock::wall().0.saturating_sub(age);
        state.promised.retain(|_, promise| promise.at_ms >= oldest);
        Ok(Journal { home, state })
    }

    /// Returns what was promised, and the cells that were held with their chunks of receipts.
    #[expect(clippy::type_complexity, reason = "it is the shape of the core's input")]
    pub(super) fn restore(&self) -> (Vec<(ExecutionId, Epoch)>, Vec<(CellRecord, Vec<(Cid, u32)>)>) {
        let promised = self.state.promised.values().map(|p| (p.execution, p.epoch.clone())).collect();
        let cells = self
            .state
            .cells
            .values()
            .map(|held| {
                let record = CellRecord {
                    cell: held.cell.clone(),
                    assignments: held.assignments.clone(),
                    slots: held.slots.clone(),
                    memory_bytes: held.memory_bytes,
                    attempt: held.grant.as_ref().map_or(1, |grant| grant.attempt),
                };
                (record, held.shards.clone())
            })
            .collect();
        (promised, cells)
    }

    /// Returns the term that was promised, and what is over.
    pub(super) fn leader(&self) -> (Option<Signed<Claim>>, Vec<Finished>) {
        (self.state.promised_term.clone(), self.state.finished.clone())
    }

    /// Writes down the promise of a term. Durable on return.
    pub(super) fn promise_term(&mut self, claim: Signed<Claim>) -> Result<(), HomeError> {
        self.state.promised_term = Some(claim);
        self.save()
    }

    /// Writes down how an execution ended. Durable on return.
    pub(super) fn finish(&mut self, end: Finished) -> Result<(), HomeError> {
        self.state.finished.retain(|f| f.execution != end.execution);
        self.state.finished.push(end);
        let most = self.state.finished.len().saturating_sub(MAX_FINISHED);
        self.state.finished.drain(..most);
        self.save()
    }

    /// Returns the grants of the cells that were held, with their chunks of receipts.
    pub(super) fn held(&self) -> Vec<(Grant, Vec<Cid>)> {
        let cells = self.state.cells.values();
        let shards = |held: &Held| held.shards.iter().map(|(shard, _)| *shard).collect();
        cells.filter_map(|held| Some((held.grant.clone()?, shards(held)))).collect()
    }

    /// Writes down a promise with its cell. Durable on return.
    pub(super) fn promise(&mut self, record: &CellRecord, grant: Option<Grant>) -> Result<(), HomeError> {
        let CellRef { execution, epoch } = record.cell.clone();
        let promise = Promise { execution, epoch, at_ms: clock::wall().0 };
        self.state.promised.insert(execution.to_string(), promise);
        let held = Held {
            cell: record.cell.clone(),
            assignments: record.assignments.clone(),
            slots: record.slots.clone(),
            memory_bytes: record.memory_bytes,
            shards: Vec::new(),
            grant,
        };
        self.state.cells.insert(key(&record.cell), held);
        self.save()
    }

    /// Writes down chunks of receipts. Durable on return.
    pub(super) fn sealed(&mut self, cell: &CellRef, shards: &[(Cid, u32)]) -> Result<(), HomeError> {
        if let Some(held) = self.state.cells.get_mut(&key(cell)) {
            held.shards.extend_from_slice(shards);
        }
        self.save()
    }

    /// Returns the grant of a cell that was held when the lablet died, with its instances.
    pub(super) fn dead(&self, cell: &CellRef) -> Option<(Grant, Vec<InstanceId>)> {
        let held = self.state.cells.get(&key(cell))?;
        Some((held.grant.clone()?, held.assignments.iter().flat_map(Assignment::instances).collect()))
    }

    /// Forgets a cell, not its promise. Need not be durable: a cell that comes back is told again that it is over.
    pub(super) fn forget(&mut self, cell: &CellRef) {
        self.state.cells.remove(&key(cell));
    }

    fn save(&self) -> Result<(), HomeError> {
        tokio::task::block_in_place(|| self.home.write(PART, &codec::encode(&self.state)))
    }
}

fn key(cell: &CellRef) -> String {
    format!("{}/{}/{}", cell.execution, cell.epoch.counter, cell.epoch.peer)
}
