//! Worker processes: started, killed, asked how they died.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Starts processes from a thread that lives as long as the runner.
///
/// A worker asks the kernel to be killed with its parent, and the kernel means the parent *thread*: started from a
/// thread of a pool, a worker would die when the pool shrinks.
pub(crate) struct Spawner {
    orders: mpsc::Sender<Order>,
}

struct Order {
    program: PathBuf,
    args: Vec<String>,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<Worker>>,
}

/// One worker process with the socket to it. Dropping it kills the process.
pub(crate) struct Worker {
    pub(crate) socket: UnixStream,
    pub(crate) process: Process,
}

/// One process of this runner. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
}

impl Spawner {
    pub(crate) fn new() -> Spawner {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("iptl-workers".to_owned())
            .spawn(move || {
                for order in queue {
                    let _runtime = order.runtime.enter();
                    let _ = order.reply.send(start(&order.program, &order.args));
                }
            })
            .expect("the first thread of a runner can be started");
        Spawner { orders }
    }

    /// Starts a worker. Safe to drop: a worker that nobody takes is killed.
    pub(crate) async fn spawn(&self, program: &Path, args: &[String]) -> io::Result<Worker> {
        let (reply, answer) = oneshot::channel();
        let order = Order { program: program.to_owned(), args: args.to_vec(), runtime: Handle::current(), reply };
        let gone = || io::Error::other("the thread that starts workers is gone");
        self.orders.send(order).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn start(program: &Path, args: &[String]) -> io::Result<Worker> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(program)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok(Worker { socket: UnixStream::from_std(ours)?, process: Process { child } })
}

impl Worker {
    /// Returns the process, while it was not waited for.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Returns whether the process still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.process.child.try_wait(), Ok(None))
    }

    /// Kills the process and waits until it is gone.
    pub(crate) async fn kill(self) {
        let mut process = self.process;
        process.kill().await;
    }
}

impl Process {
    /// Returns the process, while it was not waited for.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills the process and waits until it is gone; returns how it ended.
    pub(crate) async fn kill(&mut self) -> String {
        if let Err(e) = self.child.start_kill() {
            tracing::debug!(error = %e, "a worker could not be killed");
        }
        self.ended().await
    }

    /// Waits until the process is gone; returns how it ended.
    pub(crate) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => describe(status),
            Err(e) => format!("unknown: {e}"),
        }
    }
}

/// Says how a process ended: `signal 9`, `status 1`.
fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("status {code}"),
        (None, None) => "unknown".to_owned(),
    }
}
