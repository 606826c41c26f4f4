//! The trait that every runner implements.

use async_trait::async_trait;
use std::collections::BTreeSet;

use iptl_dag::Cid;
use iptl_dag::model::WorkloadKind;

use crate::cell::{CellSpec, Origin, PreparedCell};

/// Executes cells of one kind of workload.
///
/// Whatever a workload does, the runner lives on, its cell says how each instance ended, and other instances do not
/// notice. The suite in [`contract`](crate::contract) holds an implementation to this.
#[async_trait]
pub trait Runner: Send + Sync {
    /// Returns the kind of workload that it executes.
    fn kind(&self) -> WorkloadKind;

    /// Returns its name and version as receipts carry it: `wasm wasmtime-48.0.8`.
    fn version(&self) -> String;

    /// Returns what the machine can hold at once, over all cells.
    fn capacity(&self) -> Capacity;

    /// Makes every instance of a cell ready to run, up to the first instruction of its program.
    ///
    /// Dropping the future gives the cell up and leaves nothing running.
    async fn prepare(&self, cell: CellSpec) -> Result<PreparedCell, PrepareError>;

    /// Takes over a cell that an earlier life of the lablet started and that may run on; none where nothing of it is
    /// left. Its instances that ended meanwhile are told as ended; `start` has no effect on it.
    ///
    /// Dropping the future leaves what runs as it is.
    async fn adopt(&self, _cell: CellSpec) -> Result<Option<PreparedCell>, PrepareError> {
        Ok(None)
    }

    /// Ends and removes whatever an earlier life of the lablet left, but for the cells in `keep`.
    async fn reap(&self, _keep: &BTreeSet<Origin>) {}

    /// Keeps a worker ready, so that the next `prepare` does not wait for one. Safe to drop half-way.
    async fn warm(&self);

    /// Lets go of what it keeps of a workload beside the file that it was given; returns whether nothing is kept any
    /// more. What runs goes on, and keeps what it needs.
    async fn forget(&self, _workload: &Cid) -> bool {
        true
    }

    /// Lets go of all cells because the lablet is about to be started again: what can outlive it runs on, to be adopted
    /// by its next life, and everything else ends. Safe to drop half-way and call again.
    async fn leave(&self) {
        self.shutdown().await;
    }

    /// Ends all cells and idle workers; nothing runs when it returns. Safe to drop half-way and call again.
    async fn shutdown(&self);
}

/// What a runner can hold at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Instances.
    pub instances: u32,
    /// Memory of instances in bytes.
    pub memory_bytes: u64,
    /// What bounds the number of instances, for people: `vm.max_map_count is 65530`.
    pub bound: String,
}

/// Why a cell could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The lablet has no runner for instances of this kind.
    #[error("no runner for {kind:?} instances")]
    NoRunner {
        /// The kind.
        kind: WorkloadKind,
    },
    /// The file is not something that this runner executes.
    #[error("workload {workload} cannot be executed: {reason}")]
    BadArtifact {
        /// Content of the workload.
        workload: Cid,
        /// What is wrong with it.
        reason: String,
    },
    /// The workload imports something that the lab does not give.
    #[error("workload {workload} imports {import}, which the lab does not provide")]
    MissingImport {
        /// Content of the workload.
        workload: Cid,
        /// The import: `example:thing/api@1.0.0`.
        import: String,
    },
    /// The network of its run is none that can be.
    #[error("the network of the run cannot be made: {reason}")]
    BadNetwork {
        /// What is wrong with it.
        reason: String,
    },
    /// The cell is larger than what is free.
    #[error("the cell needs {needed} {what} and {available} are free ({bound})")]
    NoCapacity {
        /// What there is too little of: `instances`, `bytes of memory`.
        what: String,
        /// How much the cell needs.
        needed: u64,
        /// How much is free.
        available: u64,
        /// What bounds it.
        bound: String,
    },
    /// The worker died while it prepared the cell.
    #[error("the worker died while it prepared the cell: {reason}")]
    WorkerDied {
        /// What is known: `signal 9`.
        reason: String,
    },
    /// A file or a process could not be used.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it did not work.
        #[source]
        source: std::io::Error,
    },
}
