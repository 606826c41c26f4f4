//! The worker's side: one process that runs one cell and goes.
//!
//! The main thread reads what the lablet says and never runs a guest, so that a stop arrives however busy the guests
//! are; [`outbox`] and its thread carry what the guests say. [`cell`] holds the instances, [`guest`] is the life of
//! one of them, [`limits`] and [`exit`] say what ends it, [`samples`] what all of them use. [`engine`] and [`cache`] turn a file into code. Host
//! functions: [`output`] (stdout, stderr), [`lab`] (sync, records, artifacts), [`net`] (sockets, names).

mod cache;
mod cell;
mod engine;
mod exit;
mod guest;
mod lab;
mod limits;
mod net;
mod outbox;
mod output;
mod samples;

use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use iptl_runner::InstanceSpec;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::ipc::{self, CellOrder, FromWorker, Refusal, ToWorker};
use cell::Cell;
use engine::Compiler;
use outbox::Outbox;

pub(crate) use engine::bare_engine;

/// Runs a worker until its cell is over or its lablet is gone: the whole of the command that
/// [`WasmConfig`](crate::WasmConfig) names.
///
/// Must be called before the process opens anything: every descriptor but standard input (the socket to the lablet),
/// output and error is closed.
pub fn worker_main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Standard error is the lablet's; there is nobody else to tell.
            eprintln!("iptl worker: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    harden()?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let outbox = Outbox::start(socket.try_clone()?)?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cpus)
        .thread_name("iptl-guests")
        .enable_time()
        .build()?;
    // Made before the cell comes: it takes a while, and a warm worker has time.
    let compiler = Compiler::new().map_err(|e| io::Error::other(format!("the engine does not start: {e:#}")))?;
    let control =
        Control { runtime, compiler: Arc::new(compiler), outbox, order: None, instances: Vec::new(), cell: None };
    control.read(BufReader::with_capacity(64 << 10, socket))
}

/// Gives up what a worker does not need, and makes it go with its lablet.
fn harden() -> io::Result<()> {
    close_inherited()?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Where memory runs out, the kernel takes a worker before the lablet or anything else of the machine's owner: what
    // the host keeps for guests, as sockets and messages, is not in their own limits.
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", "1000") {
        eprintln!("iptl worker: the kernel's choice when memory runs out: {e}");
    }
    // A core dump of a worker would hold the memory of every guest.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, files.min(4096), files.min(4096))?;
    Ok(())
}

#[expect(unsafe_code, reason = "no safe interface closes descriptors that nobody owns")]
fn close_inherited() -> io::Result<()> {
    // SAFETY: the caller of `worker_main` has opened nothing, so that no object of this process owns a descriptor
    // above standard error.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The main thread: does what the lablet says.
struct Control {
    runtime: tokio::runtime::Runtime,
    compiler: Arc<Compiler>,
    outbox: Arc<Outbox>,
    order: Option<CellOrder>,
    instances: Vec<InstanceSpec>,
    cell: Option<Arc<Cell>>,
}

impl Control {
    fn read(mut self, mut from: BufReader<UnixStream>) -> io::Result<()> {
        while let Some(message) = ipc::read::<ToWorker>(&mut from)? {
            match message {
                ToWorker::Cell(order) => self.order = Some(*order),
                ToWorker::Instances(instances) => self.instances.extend(instances),
                ToWorker::Prepare => self.prepare()?,
                ToWorker::Start => {
                    if let Some(cell) = &self.cell {
                        cell.start();
                    }
                }
                ToWorker::Stop { reason } => {
                    if let Some(cell) = &self.cell {
                        cell.stop(&reason);
                    }
                }
                ToWorker::Input(inputs) => {
                    if let Some(cell) = &self.cell {
                        cell.input(inputs);
                    }
                }
            }
        }
        // The lablet is gone: guests end where they stand, nobody would read what they say.
        std::process::exit(0);
    }

    fn prepare(&mut self) -> io::Result<()> {
        let order = self.order.take().ok_or_else(|| io::Error::other("told to prepare no cell"))?;
        let instances = std::mem::take(&mut self.instances);
        let cell = match Cell::new(order, instances, Arc::clone(&self.outbox)) {
            Ok(cell) => Arc::new(cell),
            Err(refusal) => return self.refuse(refusal),
        };
        self.cell = Some(Arc::clone(&cell));
        let (compiler, outbox) = (Arc::clone(&self.compiler), Arc::clone(&self.outbox));
        let runtime = self.runtime.handle().clone();
        // Compiling takes seconds for large components; this thread stays with the socket.
        std::thread::Builder::new().name("iptl-prepare".to_owned()).spawn(move || {
            let _runtime = runtime.enter();
            let answer = match cell.prepare(&compiler) {
                Ok(()) => return,
                Err(refusal) => FromWorker::Refused(refusal),
            };
            outbox.push(&answer);
        })?;
        Ok(())
    }

    fn refuse(&self, refusal: Refusal) -> io::Result<()> {
        self.outbox.push(&FromWorker::Refused(refusal));
        Ok(())
    }
}
