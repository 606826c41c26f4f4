//! The engine alone: what benchmarks hold the runner's figures against.
//!
//! Same settings of the engine, same WASI, and nothing else: no worker, no limits, no lab. One thread.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Result, Store};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::worker::bare_engine;

/// Linear memory that an instance may have, in bytes.
const MEMORY: u64 = 2 << 20;

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
    pub fn new(component: &Path, instances: u32) -> anyhow::Result<Bare> {
        let engine = bare_engine(instances, MEMORY)?;
        let component = Component::from_file(&engine, component)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        linker.define_unknown_imports_as_traps(&component)?;
        let command = CommandPre::new(linker.instantiate_pre(&component)?)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
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
    pub fn run(&self, argument: &str) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let ended: Result<std::result::Result<(), ()>> = self.runtime.block_on(async {
            let mut store = self.store(argument);
            let command = self.command.instantiate_async(&mut store).await?;
            command.wasi_cli_run().call_run(&mut store).await
        });
        ended?.map_err(|()| anyhow::anyhow!("the program failed"))?;
        Ok(started.elapsed())
    }

    /// Makes instances one after the other and runs each with `argument` until it waits for something.
    ///
    /// # Errors
    ///
    /// Fails where an instance ends instead.
    pub fn park(&self, count: u32, argument: &str) -> anyhow::Result<Parked> {
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
                Poll::Ready(()) => anyhow::bail!("instance {index} ended instead of waiting"),
            }
        }
        Ok(Parked { took: started.elapsed(), _runs: runs })
    }
}
