//! What a walk has seen of a DAG.

use std::hash::{BuildHasher, Hash, RandomState};

/// The CIDs, or parts of what they name, that were seen, of which 16 bytes are kept in memory and not all 96.
///
/// These bytes are two SipHashes of it under keys that nobody else knows. Two CIDs out of 10^9 have the same with a chance
/// of 10^-21, and whoever makes a DAG cannot try any. A million of them take some 20 MB, also while room is made for more.
#[derive(Debug, Default)]
pub struct Seen {
    keys: [RandomState; 2],
    prints: Prints<[u64; 2]>,
}

impl Seen {
    /// Says whether it is the first time.
    pub fn insert(&mut self, what: &impl Hash) -> bool {
        self.prints.insert(self.print(what))
    }

    /// Says whether it was seen before.
    pub fn contains(&self, what: &impl Hash) -> bool {
        self.prints.contains(self.print(what))
    }

    /// Returns how many they are.
    pub fn len(&self) -> usize {
        self.prints.len()
    }

    /// Says whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.prints.len() == 0
    }

    fn print(&self, what: &impl Hash) -> [u64; 2] {
        self.keys.each_ref().map(|key| key.hash_one(what))
    }
}

/// What stands for something in a set: as good as random, whoever chose that.
pub(crate) trait Print: Copy + Eq + Default {
    /// Returns the part that says where it stands.
    fn word(&self) -> u64;

    /// Returns what is kept in the place of the one that stands for an empty place.
    fn of_none() -> Self;
}

impl Print for u64 {
    fn word(&self) -> u64 {
        *self
    }

    fn of_none() -> u64 {
        1
    }
}

impl Print for [u64; 2] {
    fn word(&self) -> u64 {
        self[0]
    }

    fn of_none() -> [u64; 2] {
        [0, 1]
    }
}

/// Parts of a set, each of which grows by itself, so that of the whole little is there twice at a time.
const PARTS: usize = 1 << PART_BITS;
const PART_BITS: u32 = 6;

/// First places of a part.
const FIRST: usize = 8;

/// A set of prints in little more memory than they take: at least three quarters of its places are taken, once it is large.
#[derive(Debug)]
pub(crate) struct Prints<P> {
    parts: Vec<Part<P>>,
    len: usize,
}

impl<P> Default for Prints<P> {
    fn default() -> Prints<P> {
        Prints { parts: Vec::new(), len: 0 }
    }
}

impl<P: Print> Prints<P> {
    /// Says whether it was not there before.
    pub(crate) fn insert(&mut self, print: P) -> bool {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, Part::default);
        }
        let print = if print == P::default() { P::of_none() } else { print };
        let is_new = self.parts[part_of(&print)].insert(print);
        self.len += usize::from(is_new);
        is_new
    }

    pub(crate) fn contains(&self, print: P) -> bool {
        let print = if print == P::default() { P::of_none() } else { print };
        self.parts.get(part_of(&print)).is_some_and(|part| part.contains(&print))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

fn part_of<P: Print>(print: &P) -> usize {
    (print.word() >> (u64::BITS - PART_BITS)) as usize
}

/// Places, of which those that are empty hold the default. A print stands in the first that was empty from its own on.
#[derive(Debug)]
struct Part<P> {
    places: Vec<P>,
    taken: usize,
}

impl<P> Default for Part<P> {
    fn default() -> Part<P> {
        Part { places: Vec::new(), taken: 0 }
    }
}

impl<P: Print> Part<P> {
    fn insert(&mut self, print: P) -> bool {
        if self.taken * 6 >= self.places.len() * 5 {
            // By an eighth: doubled, half of the places would be empty for as long.
            let size = (self.places.len() + self.places.len() / 8).max(self.places.len() + FIRST);
            let before = std::mem::replace(&mut self.places, vec![P::default(); size]);
            for print in before.into_iter().filter(|print| *print != P::default()) {
                let at = self.find(&print);
                self.places[at] = print;
            }
        }
        let at = self.find(&print);
        let is_new = self.places[at] != print;
        self.places[at] = print;
        self.taken += usize::from(is_new);
        is_new
    }

    fn contains(&self, print: &P) -> bool {
        !self.places.is_empty() && self.places[self.find(print)] == *print
    }

    /// Returns where a print stands, or would. There is an empty place.
    fn find(&self, print: &P) -> usize {
        let size = self.places.len();
        let own = (u128::from(print.word() << PART_BITS) * size as u128) >> u64::BITS;
        let mut at = own as usize;
        while self.places[at] != *print && self.places[at] != P::default() {
            at = (at + 1) % size;
        }
        at
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

    /// Whatever they are: alike in all that says where they stand, at the end of a part, or what an empty place holds.
    #[test]
    fn prints_are_told_apart_wherever_they_stand() {
        let mut prints = Prints::default();
        let all: Vec<[u64; 2]> = [0, 1, u64::MAX, u64::MAX >> PART_BITS, 1 << 63]
            .into_iter()
            .flat_map(|word| (2..200).map(move |other| [word, other]))
            .chain([[0, 0]])
            .collect();
        assert!(all.iter().all(|print| !prints.contains(*print) && prints.insert(*print) && prints.contains(*print)));
        assert!(!all.iter().any(|print| prints.insert(*print)));
        assert_eq!(prints.len(), all.len());
    }

    #[test]
    fn set_takes_little_more_than_its_prints() {
        let mut prints = Prints::default();
        let key = RandomState::new();
        for count in 1..=300_000_u64 {
            prints.insert([key.hash_one(count), count]);
            if count >= 100_000 && count.is_multiple_of(10_000) {
                let places: usize = prints.parts.iter().map(|part| part.places.capacity()).sum();
                assert!((places as u64) < count * 27 / 20, "{places} places for {count}");
            }
        }
        assert_eq!(prints.len(), 300_000);
    }
}
