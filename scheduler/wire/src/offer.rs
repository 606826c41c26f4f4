//! Offers: small signed records that travel by gossip.

use std::collections::BTreeMap;

use iptl_dag::model::signed::Signable;
use iptl_dag::model::{Epoch, ExecutionId, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use serde::{Deserialize, Serialize};

use crate::time::WallTime;

/// Largest encoded offer with its signature, in bytes.
pub const MAX_OFFER_SIZE: usize = 2048;

/// An execution looks for lablets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Lab whose members may bid.
    pub lab: PeerId,
    /// Execution.
    pub execution: ExecutionId,
    /// Run.
    pub run: Cid,
    /// Term of the orchestrator.
    pub epoch: Epoch,
    /// What is wanted of each kind of runner. A lablet that lacks one may bid for the others.
    pub wanted: BTreeMap<WorkloadKind, Wanted>,
    /// When it lapses.
    pub expires: WallTime,
}

/// Instances of one kind that an offer wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// How many in all.
    pub instances: u32,
    /// Memory of the largest of them in bytes.
    pub memory_bytes: u64,
}

impl Signable for Offer {
    const DOMAIN: &'static str = "iptl/offer/1";
}

/// Returns the gossip topic of a lab's offers.
pub fn topic(lab: &PeerId) -> String {
    format!("/iptl/1/{lab}/offers")
}
