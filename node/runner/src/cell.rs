//! Cells: what a runner is given, and what comes out while it runs.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use async_trait::async_trait;
use iptl_dag::Cid;
use iptl_dag::model::{
    Adopted, Container, Destination, Exit, FaultDone, FaultSchedule, InstanceId, NetworkModel, NetworkUse, Resources,
    Usage, WorkloadKind,
};
use iptl_labnet::Batch;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::files::LeftFiles;
use crate::sync::{SyncCall, SyncReply};
use crate::usage::CellUsage;

/// All instances of one execution on one lablet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellSpec {
    /// Alias of the execution, for people and names of processes.
    pub name: String,
    /// Seed of the run.
    pub seed: u64,
    /// The run, as text.
    pub run_id: String,
    /// The plan of the run, as text.
    pub plan: String,
    /// Case of the plan.
    pub case: String,
    /// Parameters of the run, as text.
    pub params: BTreeMap<String, String>,
    /// Size of every group of the run, on all lablets together.
    pub groups: BTreeMap<String, u32>,
    /// What lies between the instances of the run; none is a clean network.
    pub network: Option<NetworkModel>,
    /// Whether components and containers take part in the run: then all send IP packets, also where the network is clean.
    pub mixed: bool,
    /// What is done to the run on purpose; nothing where the network is clean.
    pub faults: Vec<FaultSchedule>,
    /// Instances of this cell.
    pub instances: Vec<InstanceSpec>,
    /// Private directory for output files; it exists, and is empty but where a cell is adopted.
    pub scratch: PathBuf,
    /// Whose cell it is, for labels on whatever may outlive its lablet.
    pub origin: Origin,
}

/// Whose cell it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The lab, as text.
    pub lab: String,
    /// The execution, as text.
    pub execution: String,
    /// Term of the grant.
    pub epoch: u64,
}

/// One instance of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Group and index.
    pub id: InstanceId,
    /// How it is executed; a runner is given its own kind alone.
    pub kind: WorkloadKind,
    /// What it executes.
    pub artifact: Artifact,
    /// Arguments after the program name.
    pub args: Vec<String>,
    /// Environment beside what the lab sets.
    pub env: BTreeMap<String, String>,
    /// What it may use.
    pub limits: Resources,
    /// Attempt, from one.
    pub attempt: u32,
    /// How long after the start of the cell it starts, in milliseconds.
    pub start_after_ms: u64,
    /// Settings of its container, where it is one.
    pub container: Option<ContainerSpec>,
    /// Whether what its link carries is captured into its artifacts.
    pub capture: bool,
}

/// Settings of a container with its files at hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// What the plan asks for.
    pub settings: Container,
    /// Verified files and directories by the absolute path at which they appear, read-only.
    pub files: BTreeMap<String, PathBuf>,
    /// Places outside of the lab that the owner of the machine grants it, with their addresses of now.
    pub egress: BTreeMap<Destination, Vec<SocketAddr>>,
}

/// A verified file to execute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Artifact {
    /// Content that the file was verified against.
    pub cid: Cid,
    /// The file.
    pub path: PathBuf,
}

/// A cell whose instances stand before the first instruction of their programs.
pub struct PreparedCell {
    /// Starts, feeds and stops it.
    pub control: Box<dyn CellControl>,
    /// What it does; ends after [`CellEvent::CellOver`]. A reader that lags makes the instances wait.
    pub events: mpsc::Receiver<CellEvent>,
}

/// Controls one cell. Dropping it stops the cell.
#[async_trait]
pub trait CellControl: Send + Sync {
    /// Releases all instances together, each to start when its [`InstanceSpec::start_after_ms`] is over. Safe to drop
    /// half-way; a second call does nothing.
    async fn start(&self);

    /// Ends every instance that still runs, started or not, as [`Exit::Stopped`] with this reason.
    ///
    /// Returns once the cell was told; [`CellEvent::CellOver`] follows within a bounded time, whatever the workload
    /// does.
    async fn stop(&self, reason: String);

    /// Hands over answers and packets, in their order; waits while the cell has more of them than it can take. Dropped
    /// half-way, some are handed over and some are not. Inputs for instances that have ended are ignored.
    async fn input(&self, inputs: Vec<CellInput>);

    /// Returns the process that runs the cell, where there is one.
    fn worker_pid(&self) -> Option<u32>;

    /// Executes a command in a running instance.
    async fn exec(&self, _order: ExecOrder) -> Result<ExecStream, ExecError> {
        Err(ExecError::Unsupported)
    }
}

/// A command to execute in a running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOrder {
    /// Instance.
    pub id: InstanceId,
    /// Program with its arguments.
    pub command: Vec<String>,
    /// Columns and rows of the terminal that it gets; none where it gets pipes.
    pub terminal: Option<(u16, u16)>,
}

/// A command that runs in an instance. Dropping it, or its input, leaves the command unattended, which ends it with all
/// that it started.
#[derive(Debug)]
pub struct ExecStream {
    /// What it is told. A command that gets no more input is told [`ExecInput::End`].
    pub input: mpsc::Sender<ExecInput>,
    /// What it says; the last is [`ExecOutput::Ended`].
    pub output: mpsc::Receiver<ExecOutput>,
}

/// What a command in an instance is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes of its standard input.
    Bytes(Vec<u8>),
    /// Its terminal has this many columns and rows now.
    Resize(u16, u16),
    /// There will be no more bytes.
    End,
}

/// What a command in an instance says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes that it wrote; with a terminal all of them are standard output.
    Bytes(OutputStream, Vec<u8>),
    /// It ended with this status.
    Ended(i32),
}

/// Why a command was not executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// The runner has no processes to execute anything in.
    #[error("instances of this kind have no room for commands: only containers have")]
    Unsupported,
    /// The instance does not run.
    #[error("{0} does not run")]
    NotRunning(InstanceId),
    /// The command could not be started.
    #[error("cannot execute {command}: {reason}")]
    Failed {
        /// Program.
        command: String,
        /// Why.
        reason: String,
    },
}

/// What a cell is told while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CellInput {
    /// An answer to a sync call.
    Sync(SyncReply),
    /// Encoded packets from another cell, of sockets or, behind the head of an `iptl_labnet::Away`, of IP.
    Packets(Batch),
    /// Packets from or to these instances of other cells were lost on their way: connections with them are reset. New
    /// ones may be tried at once.
    Cut(Vec<Ipv4Addr>),
}

/// What a cell says while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CellEvent {
    /// An instance wrote a line.
    Output {
        /// Instance.
        id: InstanceId,
        /// Where it wrote.
        stream: OutputStream,
        /// Microseconds since the start of the cell.
        at_us: u64,
        /// The line without its end.
        line: String,
    },
    /// An instance calls the lab.
    Sync {
        /// Instance.
        id: InstanceId,
        /// What it asks.
        call: SyncCall,
    },
    /// Encoded packets for instances of other cells, or of another part of this one;
    /// [`Directory::destination`](iptl_labnet::Directory::destination) says whose.
    Packets(Batch),
    /// What the instances use now, at most once in a second and where it changed; with the same groups each time.
    Usage(CellUsage),
    /// Something was done on purpose, as a schedule of faults says, or what was done so is over.
    Fault(FaultDone),
    /// An instance ended; exactly one of these for each.
    Ended {
        /// Instance.
        id: InstanceId,
        /// How.
        ended: Ended,
    },
    /// All instances ended and their files are complete; the last event.
    CellOver,
}

/// Where an instance writes lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputStream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl OutputStream {
    /// Returns the name that log files carry: `out` or `err`.
    pub fn name(self) -> &'static str {
        match self {
            OutputStream::Out => "out",
            OutputStream::Err => "err",
        }
    }
}

/// How an instance ended, with the files that it left in [`CellSpec::scratch`]; the lablet imports them into its store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// How it ended.
    pub exit: Exit,
    /// What it used.
    pub usage: Usage,
    /// Wall time of its start in milliseconds since 1970; zero where it never started.
    pub started_ms: u64,
    /// Wall time of its end in milliseconds since 1970.
    pub ended_ms: u64,
    /// Files that it left.
    pub left: LeftFiles,
    /// Limits that it met, whether or not they ended it, sorted: `open files`, `processes`.
    pub limits_met: Vec<String>,
    /// What the lab network did to its packets, where the runner carries packets.
    #[serde(default)]
    pub network: Option<Box<NetworkUse>>,
    /// Its lablet was started again while it ran.
    #[serde(default)]
    pub adopted: Option<Box<Adopted>>,
}
