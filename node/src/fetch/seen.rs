//! What a fetch has seen of a DAG.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use iptl_dag::Cid;

/// The CIDs that were seen, of which 16 bytes are kept in memory and not all 96.
///
/// These bytes are two SipHashes of it under keys that nobody else knows. Two CIDs out of 10^9 have the same with a chance
/// of 10^-21, and whoever makes a DAG cannot try any.
#[derive(Default)]
pub(super) struct Seen {
    keys: [RandomState; 2],
    prints: HashSet<[u64; 2]>,
}

impl Seen {
    /// Says whether it is the first time.
    pub(super) fn insert(&mut self, cid: &Cid) -> bool {
        self.prints.insert(self.keys.each_ref().map(|key| key.hash_one(cid)))
    }

    /// Returns how many they are.
    pub(super) fn len(&self) -> usize {
        self.prints.len()
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::{Block, Codec};

    use super::*;

    #[test]
    fn each_cid_is_seen_for_the_first_time_once() {
        let cids: Vec<Cid> = (0..1000_u32).map(|n| *Block::new(Codec::Raw, n.to_be_bytes().to_vec()).cid()).collect();
        let mut seen = Seen::default();
        assert!(cids.iter().all(|cid| seen.insert(cid)));
        assert!(!cids.iter().any(|cid| seen.insert(cid)));
        assert_eq!(seen.len(), cids.len());
    }
}
