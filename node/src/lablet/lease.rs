//! The lease that a lablet has, in a file: one that is started again in time takes its running cells up with what is
//! left of it.

use std::path::PathBuf;

use iptl_dag::PeerId;
use iptl_wire::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::home::Home;

/// The lease as it stands in the file. It survives the lablet and not the machine, so it is not synced.
#[derive(Debug)]
pub(super) struct LeaseFile {
    path: PathBuf,
    boot: String,
    written: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lease {
    orchestrator: PeerId,
    until: Timestamp,
    boot: String,
}

impl LeaseFile {
    pub(super) fn new(home: &Home) -> LeaseFile {
        LeaseFile { path: home.path("lease.cbor"), boot: clock::boot(), written: None }
    }

    /// Returns until when cells of an orchestrator may run; zero where that is not known.
    pub(super) fn read(&self, orchestrator: &PeerId) -> Timestamp {
        let lease = std::fs::read(&self.path).ok().and_then(|bytes| iptl_dag::decode::<Lease>(&bytes).ok());
        match lease {
            Some(lease) if lease.orchestrator == *orchestrator && lease.boot == self.boot => lease.until,
            Some(_) | None => Timestamp(0),
        }
    }

    /// Writes the lease down where it lasts longer than the one before, whoever gave that.
    pub(super) fn write(&mut self, orchestrator: &PeerId, until: Timestamp) {
        if self.written >= Some(until) {
            return;
        }
        self.written = Some(until);
        let lease = Lease { orchestrator: orchestrator.clone(), until, boot: self.boot.clone() };
        let new = self.path.with_extension("new");
        let written = std::fs::write(&new, iptl_dag::encode(&lease)).and_then(|()| std::fs::rename(&new, &self.path));
        if let Err(error) = written {
            tracing::warn!(%error, "a restart will stop running containers: the lease cannot be written down");
        }
    }
}
