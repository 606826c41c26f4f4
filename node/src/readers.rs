//! Who may read which block, whatever the protocol: members all of them, strangers what a public root leads to.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iptl_artifacts::PublicIndex;
use iptl_dag::{Multihash, PeerId};
use iptl_wire::Timestamp;

use crate::clock;
use crate::members::Members;

/// Time between two words about blocks that were refused: a stranger can ask for thousands in a second.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// Decides for every protocol that serves blocks. Cheap to clone.
#[derive(Clone)]
pub struct Readers {
    members: Members,
    public: Arc<PublicIndex>,
    refused: Arc<Mutex<Refused>>,
}

#[derive(Default)]
struct Refused {
    last: Option<Timestamp>,
    /// Blocks that were refused and not spoken of.
    silent: u64,
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
        let due = self.refused.lock().unwrap_or_else(PoisonError::into_inner).due(clock::now());
        let Some(others) = due else { return };
        let reason = match self.members.is_revoked(peer) {
            true => "its membership was revoked",
            false => "it is no member of the lab",
        };
        let block = iptl_dag::Cid::new_v1(iptl_dag::Codec::Raw.number(), *hash);
        tracing::info!(%peer, %block, others, reason, "refused a block that no public root leads to");
    }
}

impl Refused {
    /// Returns how many were refused in silence, where it is time to speak; else counts one more.
    fn due(&mut self, now: Timestamp) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < LOG_PAUSE) {
            self.silent += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_that_asks_for_thousands_fills_no_log() {
        let mut refused = Refused::default();
        let start = Timestamp(7);
        assert_eq!(refused.due(start), Some(0));
        for _ in 0..5000 {
            assert_eq!(refused.due(start.after(LOG_PAUSE / 2)), None);
        }
        assert_eq!(refused.due(start.after(LOG_PAUSE)), Some(5000));
        assert_eq!(refused.due(start.after(LOG_PAUSE)), None);
        assert_eq!(refused.due(start.after(LOG_PAUSE * 2)), Some(1));
    }
}
