//! The engine alone: what benchmarks hold the runner's figures against.
//!
//! Same settings of the engine, same WASI, and nothing else: no worker, no limits, no lab. One thread.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, ResourceTable, ResourceType};
use wasmtime::{Engine, Store};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_io::poll::DynPollable;

use crate::worker::bare_engine;

/// Linear memory that an instance may have, in bytes.
const MEMORY: u64 = 2 << 20;

/// Why the bare engine measured nothing.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// The engine refused, or the program trapped.
    #[error("{0}")]
    Engine(String),
    /// The program said that it failed.
    #[error("the program failed")]
    Failed,
    /// An instance that was to wait for something ended.
    #[error("instance {index} ended instead of waiting")]
    Ended {
        /// Which.
        index: u32,
    },
}

impl From<wasmtime::Error> for BareError {
    fn from(error: wasmtime::Error) -> BareError {
        BareError::Engine(format!("{error:#}"))
    }
}

type Result<T, E = BareError> = std::result::Result<T, E>;

struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// A component that is compiled and linked.
pub struct Bare {
    engine: Engine,
    command: CommandPre<Host>,
    runtime: tokio::runtime::Runtime,
}

/// Instances that wait inside a host call.
pub struct Parked {
    /// Time from the first to the last being parked.
    pub took: Duration,
    _runs: Vec<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Bare {
    /// Compiles a component for a pool of `instances`; imports beyond WASI trap when they are called.
    ///
    /// # Errors
    ///
    /// Fails where the file is no command for WASI 0.2, or the machine cannot hold the pool.
    pub fn new(component: &Path, instances: u32) -> Result<Bare> {
        let engine = bare_engine(instances, MEMORY).map_err(|refusal| BareError::Engine(refusal.to_string()))?;
        let component = Component::from_file(&engine, component)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        stub_lab(&mut linker, &component)?;
        let command = CommandPre::new(linker.instantiate_pre(&component)?)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| BareError::Engine(e.to_string()))?;
        Ok(Bare { engine, command, runtime })
    }

    fn store(&self, argument: &str) -> Store<Host> {
        let wasi = WasiCtx::builder().arg("plan").arg(argument).build();
        let mut store = Store::new(&self.engine, Host { wasi, table: ResourceTable::new() });
        store.set_epoch_deadline(u64::MAX / 2);
        store
    }

    /// Makes one instance and runs it with `argument` until it ends; returns the time of both.
    ///
    /// # Errors
    ///
    /// Fails where the program traps or ends with another status than zero.
    pub fn run(&self, argument: &str) -> Result<Duration> {
        let started = Instant::now();
        let ended: wasmtime::Result<Result<(), ()>> = self.runtime.block_on(async {
            let mut store = self.store(argument);
            let command = self.command.instantiate_async(&mut store).await?;
            command.wasi_cli_run().call_run(&mut store).await
        });
        ended?.map_err(|()| BareError::Failed)?;
        Ok(started.elapsed())
    }

    /// Makes instances one after the other and runs each with `argument` until it waits for something.
    ///
    /// # Errors
    ///
    /// Fails where an instance ends instead.
    pub fn park(&self, count: u32, argument: &str) -> Result<Parked> {
        let _runtime = self.runtime.enter();
        let started = Instant::now();
        let mut runs = Vec::with_capacity(count as usize);
        for index in 0..count {
            let (mut store, command) = (self.store(argument), self.command.clone());
            let mut run: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                // How a parked program would end is nobody's concern: it is dropped where it waits.
                if let Ok(command) = command.instantiate_async(&mut store).await {
                    let _ended = command.wasi_cli_run().call_run(&mut store).await;
                }
            });
            match run.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => runs.push(run),
                Poll::Ready(()) => return Err(BareError::Ended { index }),
            }
        }
        Ok(Parked { took: started.elapsed(), _runs: runs })
    }
}

/// Lets a component that was written for the lab be linked; it ends where it calls the lab.
fn stub_lab(linker: &mut Linker<Host>, component: &Component) -> wasmtime::Result<()> {
    let engine = linker.engine().clone();
    let component_type = component.component_type();
    for (interface, import) in component_type.imports(&engine).filter(|(name, _)| name.starts_with("iptl:")) {
        let ComponentItem::ComponentInstance(import) = import.ty else { continue };
        let mut stub = linker.instance(interface)?;
        for (name, export) in import.exports(&engine) {
            match export.ty {
                ComponentItem::ComponentFunc(_) => {
                    stub.func_new(name, |_, _, _, _| Err(wasmtime::Error::msg("there is no lab")))?;
                }
                // Pollables are WASI's own; what else is there, nobody ever makes.
                ComponentItem::Resource(_) if name == "pollable" => {
                    stub.resource(name, ResourceType::host::<DynPollable>(), |_, _| Ok(()))?;
                }
                ComponentItem::Resource(_) => stub.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))?,
                _ => {}
            }
        }
    }
    Ok(())
}
