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

/// Most orchestrators of a lab: each is told of the others, and who leads waits for each that is in contact.
pub const MAX_ORCHESTRATORS: usize = 16;

/// Most addresses of an orchestrator that are passed on.
pub const MAX_ADDRS: usize = 16;

/// Longest address that is passed on, in bytes.
pub const MAX_ADDR_SIZE: usize = 256;

/// An orchestrator of the lab, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seat {
    /// What makes it an orchestrator of the lab.
    pub certificate: Signed<Certificate>,
    /// Its addresses; at most [`MAX_ADDRS`], each of at most [`MAX_ADDR_SIZE`] bytes.
    pub addrs: Vec<String>,
}

/// The orchestrators of a lab, as far as who says it knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orchestrators {
    /// Claim of the highest term; none where the lab never had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Signed<Claim>>,
    /// All of them; at most [`MAX_ORCHESTRATORS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seats: Vec<Seat>,
}

impl Orchestrators {
    /// Whether nothing is known, so that nothing need be said.
    pub fn is_empty(&self) -> bool {
        self.claim.is_none() && self.seats.is_empty()
    }
}

/// The end of an execution. Two orchestrators that cannot hear each other may both end one: the end of the later term
/// counts, for everybody who hears of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finished {
    /// Execution.
    pub execution: ExecutionId,
    /// Its result, where one was sealed.
    pub result: Option<Cid>,
    /// Term of the lab in which it ended, whoever tells it; none where the lab had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Epoch>,
}

impl Finished {
    /// Whether this end counts where `known` was known before: it is of a later term.
    pub fn outdoes(&self, known: &Finished) -> bool {
        self.execution == known.execution
            && self.term > known.term
            && self.term.as_ref().is_none_or(|term| term.counter != LAST_COUNTER)
    }
}

/// What a follower says on a follow stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToLeader {
    /// First message: who it is, whom it knows, and how far it has each log.
    Follow {
        /// Itself: its certificate and where it is.
        seat: Seat,
        /// All that it knows, with the claim of the highest term.
        known: Orchestrators,
        /// Last fact of each execution that is not over, by its position.
        heads: Vec<(ExecutionId, u64, Cid)>,
        /// Ends that it knows of, the newest; at most [`MAX_FINISHED`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        over: Vec<Finished>,
    },
    /// First message of who only wants to know who leads: it is told, and the stream ends.
    Ask {
        /// Itself.
        seat: Seat,
        /// All that it knows.
        known: Orchestrators,
    },
    /// It has everything up to the beat of this number on its disk.
    Has {
        /// Number of the beat.
        beat: u64,
        /// Things named by facts that it does not have yet: runs with their programs, receipts, results.
        missing: u32,
    },
}

/// What who leads says on a follow stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToFollower {
    /// First message of who leads, and repeated when it changes: the orchestrators, with the claim to lead.
    Orchestrators(Orchestrators),
    /// A small block that the next facts name: execution, run or placement.
    Block {
        /// Its CID.
        cid: Cid,
        /// Its bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// A fact, as its block; the facts of an execution come in their order.
    Fact {
        /// The block.
        #[serde(with = "serde_bytes")]
        block: Vec<u8>,
    },
    /// An execution ended otherwise than the follower has it, in a later term.
    Ended(Finished),
    /// It leads, and everything that it acted on came before this.
    Beat {
        /// Number, rising.
        beat: u64,
        /// Its term.
        term: Option<Epoch>,
        /// Lablets that it granted something to, or may; at most [`MAX_NAMED`]. None where they are as before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lablets: Option<Vec<PeerId>>,
    },
    /// The one who is named is to lead: everything was said, and nothing is done any more in the old term.
    HandOver {
        /// Term that ends; none where there never was one.
        from: Option<Epoch>,
        /// Who leads next.
        to: PeerId,
    },
    /// Who answers does not lead.
    Elsewhere(Orchestrators),
}
