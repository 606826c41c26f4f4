//! What a group of containers asks for beside what every instance has.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::Cid;
use crate::model::destination::Destination;

/// Settings of a container. The owner of a lablet may allow less; an instance that wants more is not started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Program with its first arguments, before those of the group; empty means the image's own entrypoint.
    pub entrypoint: Vec<String>,
    /// Directory that the program starts in; none means the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User, as `name`, `uid` or `uid:gid`; none means the image's, and 65534:65534 where that is root or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// UnixFS files and directories by the absolute path at which they appear, read-only.
    pub files: BTreeMap<String, Cid>,
    /// Directories in memory by absolute path, with their sizes in bytes; they count as memory.
    pub tmpfs: BTreeMap<String, u64>,
    /// Whether the root file system can be written to.
    pub writable: bool,
    /// Thousandths of a processor that it may use at most; zero means no bound of the plan's.
    pub cpu_milli: u32,
    /// Processes and threads that it may have.
    pub pids: u32,
    /// Files that a process of it may have open.
    pub open_files: u32,
    /// Bytes that it may write below its root file system where that is writable.
    pub disk_bytes: u64,
    /// Signal that asks it to stop; none means the image's, and `SIGTERM` where that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Milliseconds between that signal and its end by force.
    pub stop_grace_ms: u64,
    /// Command that says whether it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Whether the developer who submitted the run may execute commands in it; its receipt says when somebody did.
    pub exec: bool,
    /// Places outside of the lab that it must reach; only a lablet whose owner grants each of them takes it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub egress: BTreeSet<Destination>,
}

/// A command that says by its status whether a container is well: zero where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Program with its arguments.
    pub command: Vec<String>,
    /// Milliseconds between two looks.
    pub interval_ms: u64,
    /// Milliseconds after which a look counts as failed.
    pub timeout_ms: u64,
    /// Milliseconds after the start in which a failed look does not count.
    pub start_ms: u64,
    /// Failed looks in a row after which the instance is ended as unwell.
    pub retries: u32,
}

impl Container {
    /// Returns the settings of a container whose plan says nothing.
    pub fn usual() -> Container {
        Container { pids: 256, open_files: 4096, disk_bytes: 256 << 20, stop_grace_ms: 5_000, ..Container::default() }
    }
}
