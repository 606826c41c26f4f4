//! What executes workloads: the [`Runner`] trait over cells.
//!
//! A cell is all instances of one execution on one lablet. [`runner`] is the trait with its errors, [`cell`] what goes
//! into a cell and what comes out, [`sync`] the calls of instances to the lab, [`mod@environment`] the variables that an
//! instance starts with. [`files`] are what
//! instances leave behind, [`capture`] what of it their links carried. [`several`] makes one runner of
//! those of several kinds. [`fake`] executes scripts instead of programs, for the tests of whatever drives a runner;
//! [`contract`] is the suite that every implementation passes.
//!
//! A runner never sees the store or the swarm: it gets verified files and leaves files behind. Start reading at
//! [`runner::Runner`].

pub mod capture;
pub mod cell;
pub mod contract;
pub mod environment;
pub mod fake;
pub mod files;
pub mod runner;
pub mod several;
pub mod sync;
pub mod usage;

pub use cell::{
    Artifact, CellControl, CellEvent, CellInput, CellSpec, ContainerSpec, Ended, ExecError, ExecInput, ExecOrder,
    ExecOutput, ExecStream, InstanceSpec, Origin, OutputStream, PreparedCell,
};
pub use environment::environment;
pub use fake::{FakeRunner, Step};
pub use iptl_labnet::Addrs;
pub use runner::{Capacity, PrepareError, Runner};
pub use several::Runners;
pub use sync::{SyncCall, SyncReply};
pub use usage::CellUsage;
