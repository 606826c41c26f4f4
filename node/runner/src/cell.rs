//! Cells: what a runner is given, and what comes out while it runs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use async_trait::async_trait;
use iptl_dag::Cid;
use iptl_dag::model::{Exit, InstanceId, Resources, Usage};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::sync::{SyncCall, SyncReply};

/// All instances of one execution on one lablet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellSpec {
    /// Alias of the execution, for people and names of processes.
    pub name: String,
    /// Seed of the run.
    pub seed: u64,
    /// The run, as text.
    pub run_id: String,
    /// Case of the plan.
    pub case: String,
    /// Parameters of the run, as text.
    pub params: BTreeMap<String, String>,
    /// Size of every group of the run, on all lablets together.
    pub groups: BTreeMap<String, u32>,
    /// Instances of this cell.
    pub instances: Vec<InstanceSpec>,
    /// Private directory for output files; it exists and is empty.
    pub scratch: PathBuf,
}

/// One instance of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Group and index.
    pub id: InstanceId,
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
    /// Releases all instances together. Safe to drop half-way; a second call does nothing.
    async fn start(&self);

    /// Ends every instance that still runs, started or not, as [`Exit::Stopped`] with this reason.
    ///
    /// Returns once the cell was told; [`CellEvent::CellOver`] follows within a bounded time, whatever the workload
    /// does.
    async fn stop(&self, reason: String);

    /// Hands over an answer or a packet; waits while the cell has more of them than it can take. Dropped half-way, the
    /// input is either handed over or not. Inputs for instances that have ended are ignored.
    async fn input(&self, input: CellInput);

    /// Returns the process that runs the cell, where there is one.
    fn worker_pid(&self) -> Option<u32>;
}

/// What a cell is told while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CellInput {
    /// An answer to a sync call.
    Sync(SyncReply),
    /// An encoded `iptl_labnet::Packet` from another cell.
    Packet(#[serde(with = "serde_bytes")] Vec<u8>),
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
    /// An encoded `iptl_labnet::Packet` for an instance of another cell.
    Packet {
        /// Lab address of that instance.
        dst: Ipv4Addr,
        /// The packet.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
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
    /// Lines that it wrote, as JSON lines `{"t":us,"stream":"out","line":…}`; none where it wrote nothing.
    pub logs: Option<PathBuf>,
    /// Events, as JSON lines `{"t":us,"name":…,"data":…}`.
    pub events: Option<PathBuf>,
    /// Metrics, as JSON lines `{"t":us,"name":"ping.rtt","value":1.25,"unit":"ms"}`.
    pub metrics: Option<PathBuf>,
    /// Directory of its artifacts.
    pub artifacts: Option<PathBuf>,
}
