//! Offers: small signed records that travel by gossip.

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
    /// Instances that are wanted in all.
    pub instances: u32,
    /// Runner that a lablet must have; the groups' kinds without repetition.
    pub kinds: Vec<WorkloadKind>,
    /// Memory of the largest instance in bytes.
    pub memory_bytes: u64,
    /// When it lapses.
    pub expires: WallTime,
}

impl Signable for Offer {
    const DOMAIN: &'static str = "iptl/offer/1";
}

/// Returns the gossip topic of a lab's offers.
pub fn topic(lab: &PeerId) -> String {
    format!("/iptl/1/{lab}/offers")
}
