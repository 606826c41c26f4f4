//! From a file to code that can be instantiated ten thousand times.
//!
//! Two engines with the same code generation: one that compiles and inspects, made while the worker is warm, and one
//! with a pool sized for the cell. Code of the first runs on the second.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;

use iptl_dag::Cid;
use iptl_runner::Artifact;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, ResourcesRequired};
use wasmtime_wasi::p2::bindings::CommandPre;

use super::cache::{self, Cache};
use super::exit::MAX_FRAMES;
use super::guest::Guest;
use super::limits::MAX_TABLE_ELEMENTS;
use super::{lab, net};
use crate::capacity;
use crate::ipc::Refusal;

/// Stack of a guest in bytes. Beyond it a guest ends as a stack overflow; the stacks of Rust's and C's own data live
/// in its memory (1 MiB by default), so that this one holds return addresses and registers only.
const MAX_WASM_STACK: usize = 1 << 20;

/// Stack of a guest and the host functions that it calls, in bytes.
const ASYNC_STACK_SIZE: usize = 2 << 20;

/// Address space of one memory: all of a 32-bit guest's, so that code needs no bounds checks and is the same for every
/// limit of memory.
const MEMORY_RESERVATION: u64 = 4 << 30;

/// Guard behind it: constant offsets of loads and stores below this need no check.
const MEMORY_GUARD: u64 = 32 << 20;

/// Core instances of one component: a program, its adapters, and room for composed components.
const MAX_CORE_INSTANCES: u32 = 32;

/// Compiles components and looks into them.
pub(crate) struct Compiler {
    engine: Engine,
}

/// The code of a cell.
pub(crate) struct Code {
    /// The engine that it runs on.
    pub(crate) engine: Engine,
    /// Commands by content.
    pub(crate) commands: BTreeMap<Cid, CommandPre<Guest>>,
}

impl Compiler {
    pub(crate) fn new() -> wasmtime::Result<Compiler> {
        Ok(Compiler { engine: Engine::new(&config())? })
    }

    /// Makes the code of a cell: `artifacts` with the number of instances of each, `memory_bytes` the largest limit.
    pub(crate) fn load(
        &self,
        cache: &Cache,
        artifacts: &BTreeMap<Artifact, u32>,
        memory_bytes: u64,
    ) -> Result<Code, Refusal> {
        let mut needs = PoolNeeds::default();
        for (artifact, count) in artifacts {
            let component = self.component(cache, artifact)?;
            let bad = |reason: String| Refusal::BadArtifact { workload: artifact.cid, reason };
            let required = component
                .resources_required()
                .ok_or_else(|| bad("it imports core modules, which nobody gives".to_owned()))?;
            needs.add(&required, *count);
        }
        needs.check()?;
        let engine = cell_engine(&needs, memory_bytes)?;
        let linker =
            linker(&engine).map_err(|e| Refusal::Io { what: "host functions".to_owned(), reason: format!("{e:#}") })?;
        let mut commands = BTreeMap::new();
        for artifact in artifacts.keys() {
            let path = cache.path(&engine, &artifact.cid);
            let component = cache::load(&engine, &path)
                .map_err(|e| Refusal::Io { what: "compiled code".to_owned(), reason: format!("{e:#}") })?;
            commands.insert(artifact.cid, command(&linker, &component, &artifact.cid)?);
        }
        Ok(Code { engine, commands })
    }

    /// Returns a component out of the cache, compiling it where it is not there or cannot be used.
    fn component(&self, cache: &Cache, artifact: &Artifact) -> Result<Component, Refusal> {
        let path = cache.path(&self.engine, &artifact.cid);
        if path.exists() {
            match cache::load(&self.engine, &path) {
                Ok(component) => return Ok(component),
                Err(e) => tracing::warn!(error = %e, "compiled code in the cache cannot be used"),
            }
        }
        let io = |what: &str, e: &io::Error| Refusal::Io { what: what.to_owned(), reason: e.to_string() };
        let bytes = std::fs::read(&artifact.path).map_err(|e| io("the file of the workload", &e))?;
        check_preamble(&bytes).map_err(|reason| Refusal::BadArtifact { workload: artifact.cid, reason })?;
        let code = self
            .engine
            .precompile_component(&bytes)
            .map_err(|e| Refusal::BadArtifact { workload: artifact.cid, reason: one_line(&e) })?;
        cache.put(&path, &code).map_err(|e| io("the cache of compiled code", &e))?;
        cache::load(&self.engine, &path)
            .map_err(|e| Refusal::Io { what: "compiled code".to_owned(), reason: format!("{e:#}") })
    }
}

/// Tells what a component is not, in words that say what to do.
fn check_preamble(bytes: &[u8]) -> Result<(), String> {
    match bytes {
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            Err("it is a core wasm module; a component is needed, which a build for wasm32-wasip2 makes".to_owned())
        }
        [b'\0', b'a', b's', b'm', ..] => Ok(()),
        _ => Err("it is no wasm file".to_owned()),
    }
}

/// What a pool must hold.
#[derive(Debug, Default)]
struct PoolNeeds {
    instances: u32,
    memories: u32,
    tables: u32,
    table_elements: u64,
    memories_each: u32,
    tables_each: u32,
}

impl PoolNeeds {
    fn add(&mut self, component: &ResourcesRequired, count: u32) {
        self.instances = self.instances.saturating_add(count);
        self.memories = self.memories.saturating_add(component.num_memories.saturating_mul(count));
        self.tables = self.tables.saturating_add(component.num_tables.saturating_mul(count));
        self.table_elements = self.table_elements.max(component.max_initial_table_size.unwrap_or(0));
        self.memories_each = self.memories_each.max(component.num_memories);
        self.tables_each = self.tables_each.max(component.num_tables);
    }

    /// Refuses what would run the process out of mappings: it would be aborted, not told.
    fn check(&self) -> Result<(), Refusal> {
        let limit = capacity::instances_per_process();
        let needed = u64::from(self.instances.max(self.memories));
        if needed <= limit {
            return Ok(());
        }
        Err(Refusal::NoCapacity { what: "memories".to_owned(), needed, bound: capacity::mappings_bound() })
    }
}

/// What both engines have in common: everything that compiled code depends on.
fn config() -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .wasm_threads(false)
        .shared_memory(false)
        .epoch_interruption(true)
        .wasm_backtrace_max_frames(NonZeroUsize::new(MAX_FRAMES))
        .max_wasm_stack(MAX_WASM_STACK)
        .async_stack_size(ASYNC_STACK_SIZE)
        .memory_init_cow(true)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_guard_size(MEMORY_GUARD)
        .guard_before_linear_memory(false);
    config
}

/// Makes an engine with room for a cell.
fn cell_engine(needs: &PoolNeeds, memory_bytes: u64) -> Result<Engine, Refusal> {
    let elements = usize::try_from(needs.table_elements).unwrap_or(usize::MAX).max(MAX_TABLE_ELEMENTS);
    let memory = usize::try_from(memory_bytes.min(MEMORY_RESERVATION)).unwrap_or(usize::MAX);
    let instances = needs.instances.max(1);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(MAX_CORE_INSTANCES))
        .total_memories(needs.memories.max(1))
        .total_tables(needs.tables.max(1))
        .total_stacks(instances)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(needs.memories_each.max(1))
        .max_tables_per_component(needs.tables_each.max(1))
        .max_memories_per_module(needs.memories_each.max(1))
        .max_tables_per_module(needs.tables_each.max(1))
        .max_memory_size(memory)
        .table_elements(elements)
        .max_unused_warm_slots(0)
        .linear_memory_keep_resident(0);
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config).map_err(|e| Refusal::NoCapacity {
        what: "instances".to_owned(),
        needed: u64::from(instances),
        bound: one_line(&e),
    })
}

/// Makes an engine for `instances` of a plain program, without a cell around it.
pub(crate) fn bare_engine(instances: u32, memory_bytes: u64) -> Result<Engine, Refusal> {
    // A program of one module with its adapters: one memory, two tables.
    let needs = PoolNeeds {
        instances,
        memories: instances,
        tables: instances.saturating_mul(BARE_TABLES),
        table_elements: 0,
        memories_each: 1,
        tables_each: BARE_TABLES,
    };
    cell_engine(&needs, memory_bytes)
}

/// Tables of a program that was linked by rustc: its own, and one of the adapters.
const BARE_TABLES: u32 = 4;

/// Makes a linker with everything that a guest may import: WASI 0.2 without the host's network, and `iptl:lab`.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    net::add_to_linker(&mut linker)?;
    lab::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Links a component as a command.
fn command(linker: &Linker<Guest>, component: &Component, cid: &Cid) -> Result<CommandPre<Guest>, Refusal> {
    let instance: InstancePre<Guest> = linker.instantiate_pre(component).map_err(|e| {
        let reason = one_line(&e);
        match missing_import(linker.engine(), component, &reason) {
            Some(import) => Refusal::MissingImport { workload: *cid, import },
            None => Refusal::BadArtifact { workload: *cid, reason },
        }
    })?;
    CommandPre::new(instance).map_err(|e| Refusal::BadArtifact {
        workload: *cid,
        reason: format!("it is no command, which exports wasi:cli/run: {}", one_line(&e)),
    })
}

/// Returns the import that an error of linking is about.
fn missing_import(engine: &Engine, component: &Component, reason: &str) -> Option<String> {
    component
        .component_type()
        .imports(engine)
        .map(|(name, _)| name.to_owned())
        .find(|name| reason.contains(&format!("`{name}`")))
}

/// Writes an error with its causes in one line.
fn one_line(error: &wasmtime::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect()
}
