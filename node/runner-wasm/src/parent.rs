//! The lablet's side: starts workers, hands them cells, and says how a cell ended whose worker died.
//!
//! `worker.rs` owns a process, `cell.rs` what goes on between the lablet and one worker while a cell lives. One worker
//! is kept warm: a cell takes it, and another is started in its place.

mod cell;
mod process;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use iptl_dag::model::WorkloadKind;
use iptl_runner::files::check_artifact_path;
use iptl_runner::{Capacity, CellSpec, PrepareError, PreparedCell, Runner};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ENGINE;
use crate::capacity::{Machine, OwnerBounds};
use process::{Spawner, Worker};

/// How the Wasm runner works.
#[derive(Clone, Debug)]
pub struct WasmConfig {
    /// Program and arguments that end up in [`worker_main`](crate::worker_main), before anything else is opened.
    pub worker_command: (PathBuf, Vec<String>),
    /// Private directory where compiled code is kept; made where it does not exist.
    pub cache_dir: PathBuf,
    /// Most instances at once, where the owner bounds them.
    pub max_instances: Option<u32>,
    /// Most memory of all instances in bytes, where the owner bounds it.
    pub max_memory_bytes: Option<u64>,
}

/// Runs WASI 0.2 components in worker processes.
#[derive(Clone)]
pub struct WasmRunner {
    inner: Arc<Inner>,
}

struct Inner {
    config: WasmConfig,
    capacity: Capacity,
    spawner: Spawner,
    state: Mutex<State>,
    /// Cancelled by `shutdown`.
    over: CancellationToken,
    /// Tasks of cells and of respawning; `shutdown` waits for them.
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    warm: Option<Worker>,
    /// Instances of cells that are prepared or run.
    instances: u32,
}

impl WasmRunner {
    /// Makes a runner; starts no process yet.
    pub fn new(config: WasmConfig) -> WasmRunner {
        let owner = OwnerBounds { instances: config.max_instances, memory_bytes: config.max_memory_bytes };
        let capacity = Machine::read().capacity(owner);
        let inner = Inner {
            config,
            capacity,
            spawner: Spawner::new(),
            state: Mutex::new(State::default()),
            over: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        WasmRunner { inner: Arc::new(inner) }
    }

    /// Returns the warm worker's process, where there is one.
    pub fn warm_pid(&self) -> Option<u32> {
        self.inner.state().warm.as_ref().and_then(Worker::pid)
    }

    /// Hands a cell to the warm worker, or to a new one where there is none or it has died.
    async fn hand_over(&self, cell: &CellSpec) -> Result<cell::Held, PrepareError> {
        let warm = self.inner.state().warm.take();
        let runner = self.clone();
        self.inner.tasks.spawn(async move { runner.warm().await });
        if let Some(mut worker) = warm
            && worker.is_alive()
        {
            // It may be dying and not be waited for yet; that says nothing about the cell.
            match cell::hand_over(&self.inner, worker, cell).await {
                Err(PrepareError::WorkerDied { reason }) => {
                    tracing::info!(reason, "the warm worker died before it took a cell");
                }
                answer => return answer,
            }
        }
        cell::hand_over(&self.inner, self.spawn().await?, cell).await
    }

    async fn spawn(&self) -> Result<Worker, PrepareError> {
        let (program, args) = &self.inner.config.worker_command;
        let source = match self.inner.spawner.spawn(program, args).await {
            Ok(worker) => return Ok(worker),
            Err(source) => source,
        };
        Err(PrepareError::Io { what: format!("cannot start the worker {}", program.display()), source })
    }

    /// Reserves room for a cell.
    fn reserve(&self, cell: &CellSpec) -> Result<Reservation, PrepareError> {
        // Groups name directories, and a run may come from anywhere.
        if let Some(bad) = cell.instances.iter().find(|i| !is_plain_name(&i.id.group)) {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no plain name");
            return Err(PrepareError::Io { what: format!("the group {:?}", bad.id.group), source });
        }
        let capacity = &self.inner.capacity;
        let needed = u32::try_from(cell.instances.len()).unwrap_or(u32::MAX);
        if let Some(largest) = cell.instances.iter().map(|i| i.limits.memory_bytes).max()
            && largest > capacity.memory_bytes
        {
            return Err(PrepareError::NoCapacity {
                what: "bytes of memory".to_owned(),
                needed: largest,
                available: capacity.memory_bytes,
                bound: "memory for one instance".to_owned(),
            });
        }
        let mut state = self.inner.state();
        let free = capacity.instances.saturating_sub(state.instances);
        if needed > free {
            return Err(PrepareError::NoCapacity {
                what: "instances".to_owned(),
                needed: u64::from(needed),
                available: u64::from(free),
                bound: capacity.bound.clone(),
            });
        }
        state.instances += needed;
        Ok(Reservation { inner: Arc::clone(&self.inner), instances: needed })
    }
}

/// Returns whether a name can be that of a directory and of nothing above it.
fn is_plain_name(name: &str) -> bool {
    !name.contains('/') && check_artifact_path(name).is_ok()
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room that a cell takes; given back when dropped.
struct Reservation {
    inner: Arc<Inner>,
    instances: u32,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.instances = state.instances.saturating_sub(self.instances);
    }
}

#[async_trait]
impl Runner for WasmRunner {
    fn kind(&self) -> WorkloadKind {
        WorkloadKind::Wasm
    }

    fn version(&self) -> String {
        format!("wasm {ENGINE}")
    }

    fn capacity(&self) -> Capacity {
        self.inner.capacity.clone()
    }

    async fn prepare(&self, cell: CellSpec) -> Result<PreparedCell, PrepareError> {
        let reservation = self.reserve(&cell)?;
        let held = self.hand_over(&cell).await?;
        Ok(cell::follow(&self.inner, held, cell, reservation))
    }

    async fn warm(&self) {
        if self.inner.over.is_cancelled() || self.inner.state().warm.is_some() {
            return;
        }
        match self.spawn().await {
            Ok(worker) => {
                let mut state = self.inner.state();
                if state.warm.is_none() && !self.inner.over.is_cancelled() {
                    state.warm = Some(worker);
                }
            }
            Err(e) => tracing::warn!(error = %e, "no warm worker"),
        }
    }

    async fn shutdown(&self) {
        self.inner.over.cancel();
        let warm = self.inner.state().warm.take();
        if let Some(worker) = warm {
            worker.kill().await;
        }
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}
