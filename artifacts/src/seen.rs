//! What a walk has seen of a DAG.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};

/// The CIDs, or parts of what they name, that were seen, of which 16 bytes are kept in memory and not all 96.
///
/// These bytes are two SipHashes of it under keys that nobody else knows. Two CIDs out of 10^9 have the same with a chance
/// of 10^-21, and whoever makes a DAG cannot try any.
#[derive(Debug, Default)]
pub struct Seen {
    keys: [RandomState; 2],
    prints: HashSet<[u64; 2]>,
}

impl Seen {
    /// Says whether it is the first time.
    pub fn insert(&mut self, what: &impl Hash) -> bool {
        self.prints.insert(self.print(what))
    }

    /// Says whether it was seen before.
    pub fn contains(&self, what: &impl Hash) -> bool {
        self.prints.contains(&self.print(what))
    }

    /// Returns how many they are.
    pub fn len(&self) -> usize {
        self.prints.len()
    }

    /// Says whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.prints.is_empty()
    }

    fn print(&self, what: &impl Hash) -> [u64; 2] {
        self.keys.each_ref().map(|key| key.hash_one(what))
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::{Block, Cid, Codec};

    use super::*;

    #[test]
    fn each_cid_is_seen_for_the_first_time_once() {
        let cids: Vec<Cid> = (0..1000_u32).map(|n| *Block::new(Codec::Raw, n.to_be_bytes().to_vec()).cid()).collect();
        let mut seen = Seen::default();
        assert!(cids.iter().all(|cid| !seen.contains(cid) && seen.insert(cid) && seen.contains(cid)));
        assert!(!cids.iter().any(|cid| seen.insert(cid)));
        assert_eq!(seen.len(), cids.len());
    }
}
