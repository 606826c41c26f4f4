//! Who may read which block, whatever the protocol: members all of them, strangers what a public root leads to.

use std::sync::Arc;

use iptl_artifacts::PublicIndex;
use iptl_dag::{Multihash, PeerId};

use crate::clock;
use crate::hush::Hush;
use crate::members::Members;

/// Decides for every protocol that serves blocks. Cheap to clone.
#[derive(Clone)]
pub struct Readers {
    members: Members,
    public: Arc<PublicIndex>,
    refused: Arc<Hush>,
}

impl Readers {
    /// Lets `members` read everything and others what is in `public`.
    pub fn new(members: Members, public: Arc<PublicIndex>) -> Readers {
        Readers { members, public, refused: Arc::default() }
    }

    /// Says whether a peer may read a block; where not, the log says so, but not too often.
    pub fn may_read(&self, peer: &PeerId, hash: &Multihash) -> bool {
        let may = self.public.contains(hash) || self.members.is_member(peer);
        if !may {
            self.tell(peer, hash);
        }
        may
    }

    fn tell(&self, peer: &PeerId, hash: &Multihash) {
        let Some(others) = self.refused.due(clock::now()) else { return };
        let reason = match self.members.is_revoked(peer) {
            true => "its membership was revoked",
            false => "it is no member of the lab",
        };
        let block = iptl_dag::Cid::new_v1(iptl_dag::Codec::Raw.number(), *hash);
        tracing::info!(%peer, %block, others, reason, "refused a block that no public root leads to");
    }
}
