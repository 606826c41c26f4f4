//! Where blocks are that the index on disk does not know yet.

use std::collections::BTreeMap;

use iptl_dag::Multihash;

use crate::record::{MAX_HASH, Place};

/// Longest multihash that is kept in place: with a digest of 32 bytes one has 34.
const SHORT: usize = 38;

/// The bytes of a multihash, in less than half of the memory that it takes decoded: there are some 100,000 of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Short { size: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl Name {
    fn of(hash: &Multihash) -> Name {
        let mut bytes = [0; MAX_HASH];
        let size = hash.write(&mut bytes[..]).expect("two numbers and a digest of 64 bytes");
        match (u8::try_from(size), bytes.first_chunk()) {
            (Ok(short), Some(first)) if size <= SHORT => Name::Short { size: short, bytes: *first },
            _ => Name::Long(bytes[..size].into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Name::Short { size, bytes } => &bytes[..usize::from(*size)],
            Name::Long(bytes) => bytes,
        }
    }

    fn hash(&self) -> Multihash {
        Multihash::from_bytes(self.as_bytes()).expect("it was made of one")
    }
}

/// Places of blocks, by multihash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(BTreeMap<Name, Place>);

impl Places {
    pub(crate) fn get(&self, hash: &Multihash) -> Option<Place> {
        self.0.get(&Name::of(hash)).copied()
    }

    /// Returns the place that it had.
    pub(crate) fn insert(&mut self, hash: &Multihash, place: Place) -> Option<Place> {
        self.0.insert(Name::of(hash), place)
    }

    pub(crate) fn remove(&mut self, hash: &Multihash) {
        self.0.remove(&Name::of(hash));
    }

    /// Takes over what it does not have.
    pub(crate) fn complete(&mut self, older: &Places) {
        for (name, place) in &older.0 {
            if !self.0.contains_key(name) {
                self.0.insert(name.clone(), *place);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Multihash, Place)> {
        self.0.iter().map(|(name, place)| (name.hash(), *place))
    }

    /// Returns the bytes of each multihash, in order, with its place.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&[u8], Place)> {
        self.0.iter().map(|(name, place)| (name.as_bytes(), *place))
    }
}

#[cfg(test)]
mod tests {
    use iptl_artifacts::contract::{sample, sha2_256};

    use super::*;

    #[test]
    fn places_are_found_by_multihashes_of_any_length_which_come_back() {
        let short = [*sample(1, 10).cid().hash(), *sha2_256(sample(2, 10).data().clone()).cid().hash()];
        let sizes = [0, 1, 35, 36, 37, 64].map(|size| Multihash::wrap(0x12, &[7; 64][..size]).unwrap());
        let far = Multihash::wrap(u64::MAX, &[7; 64]).unwrap();
        let all: Vec<Multihash> = short.into_iter().chain(sizes).chain([far]).collect();
        let place = |number: usize| Place { pack: number as u32, offset: 0, size: 1 };
        let mut places = Places::default();
        assert!(all.iter().enumerate().all(|(number, hash)| places.insert(hash, place(number)).is_none()));
        assert!(all.iter().enumerate().all(|(number, hash)| places.get(hash) == Some(place(number))));
        assert!(places.iter().all(|(hash, place)| all[place.pack as usize] == hash));
        assert!(places.entries().all(|(bytes, place)| all[place.pack as usize].to_bytes() == bytes));
        assert_eq!((places.len(), places.insert(&all[3], place(40))), (all.len(), Some(place(3))));

        let mut newer = Places::default();
        newer.insert(&all[0], place(50));
        places.remove(&all[1]);
        newer.complete(&places);
        assert_eq!(
            [0, 1, 2, 3].map(|number: usize| newer.get(&all[number])),
            [Some(place(50)), None, Some(place(2)), Some(place(40))]
        );
    }
}
