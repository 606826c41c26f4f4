//! Several orchestrators of one lab: who leads, and how another one comes to lead.
//!
//! The *term* of a lab is an [`Epoch`]: a counter that a takeover raises, and the orchestrator that leads. A lablet
//! writes the highest term down that it heard of before it says anything to who leads in it, and serves nobody of an
//! older one. A lab that never had a second orchestrator has no term, and its messages name none.

use iptl_dag::Cid;
use iptl_dag::PeerId;
use iptl_dag::model::signed::{Signable, Signed};
use iptl_dag::model::{Epoch, ExecutionId};
use serde::{Deserialize, Serialize};

use crate::lab::Certificate;

/// Protocol ID of the stream on which an orchestrator follows the logs of the one that leads.
pub const FOLLOW_PROTOCOL: &str = "/iptl/follow/1";

/// Largest message of a follow stream in bytes: a fact's block with its wrapping.
pub const MAX_FOLLOW_SIZE: usize = (2 << 20) + (64 << 10);

/// Largest encoded claim with its signature, in bytes: it travels by gossip, as offers do.
pub const MAX_CLAIM_SIZE: usize = 1024;

/// Executions over which a lablet remembers that they are: what an orchestrator ended and its successor did not hear.
pub const MAX_FINISHED: usize = 1024;

/// Most lablets that a beat names.
pub const MAX_NAMED: usize = 10_000;

/// The counter of a term that is not accepted: nobody reaches it by taking over, and none could follow.
pub const LAST_COUNTER: u64 = u64::MAX;

/// An orchestrator leads a lab from this term on. Signed by `term.peer`, which has the lab's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The lab.
    pub lab: PeerId,
    /// The term.
    pub term: Epoch,
    /// What makes `term.peer` an orchestrator of the lab: whoever shows the claim proves it to those who never met it.
    pub certificate: Signed<Certificate>,
}

impl Signable for Claim {
    const DOMAIN: &'static str = "iptl/claim/1";
}

/// An execution that is over, as a lablet was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finished {
    /// Execution.
    pub execution: ExecutionId,
    /// Its result, where one was sealed.
    pub result: Option<Cid>,
}

/// What a follower says on a follow stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToLeader {
    /// First message: the highest term that it knows, and how far it has each log.
    Follow {
        /// Highest term; none where there never was one.
        term: Option<Epoch>,
        /// Last fact of each execution that is not over, by its position.
        heads: Vec<(ExecutionId, u64, Cid)>,
    },
    /// It has everything up to the beat of this number on its disk.
    Has {
        /// Number of the beat.
        beat: u64,
    },
}

/// What who leads says on a follow stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToFollower {
    /// A fact, as its block; the facts of an execution come in their order.
    Fact {
        /// The block.
        #[serde(with = "serde_bytes")]
        block: Vec<u8>,
    },
    /// It leads, and everything that it acted on came before this.
    Beat {
        /// Number, rising.
        beat: u64,
        /// Its term.
        term: Option<Epoch>,
        /// Lablets that it granted something to, or may; at most [`MAX_NAMED`].
        lablets: Vec<PeerId>,
    },
    /// The one who is named is to lead: everything was said, and nothing is done any more in the old term.
    HandOver {
        /// Term that ends; none where there never was one.
        from: Option<Epoch>,
        /// Who leads next.
        to: PeerId,
    },
    /// Somebody else leads.
    Elsewhere {
        /// In this term.
        term: Epoch,
    },
}
