//! What links between regions did, each by itself.

use std::cmp::Reverse;
use std::num::TryFromIntError;

use serde::{Deserialize, Serialize};

use super::LinkUse;

/// What the link from one region to another, or that within one, did.
///
/// It stands as a list of numbers, since each receipt of a cell has one for each pair of regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Numbers", into = "Numbers")]
pub struct BetweenRegions {
    /// Sending region, by its place in the network.
    pub from: u16,
    /// Receiving region; the same one where it is the link within it.
    pub to: u16,
    /// What it did.
    pub did: LinkUse,
    /// Packets that came to it, and for which the lab had no memory.
    pub lost_by_lab: u64,
}

/// As it stands in a receipt: regions, then what the link did in the order in which [`LinkUse`] says it, then what the lab
/// lost.
type Numbers = [u64; 13];

impl BetweenRegions {
    /// Most that a receipt has: all of a network with eleven regions, which none of those that ship has more of. Receipts are
    /// many, and each has its own.
    pub const MAX: usize = 128;

    /// Returns those of them that receipts have, in the order of their regions: where there are too many, those that were
    /// offered the most packets.
    pub fn bounded(all: impl IntoIterator<Item = BetweenRegions>) -> Vec<BetweenRegions> {
        let mut kept: Vec<BetweenRegions> = all.into_iter().filter(|link| link.did.offered > 0).collect();
        kept.sort_by_key(|link| (Reverse(link.did.offered), link.from, link.to));
        kept.truncate(BetweenRegions::MAX);
        kept.sort_by_key(|link| (link.from, link.to));
        kept
    }
}

impl From<BetweenRegions> for Numbers {
    fn from(link: BetweenRegions) -> Numbers {
        let mut numbers = [0; 13];
        numbers[0] = link.from.into();
        numbers[1] = link.to.into();
        numbers[2..12].copy_from_slice(&link.did.numbers());
        numbers[12] = link.lost_by_lab;
        numbers
    }
}

impl TryFrom<Numbers> for BetweenRegions {
    type Error = TryFromIntError;

    fn try_from(numbers: Numbers) -> Result<BetweenRegions, TryFromIntError> {
        let [from, to, did @ .., lost_by_lab] = numbers;
        Ok(BetweenRegions { from: from.try_into()?, to: to.try_into()?, did: LinkUse::of_numbers(did), lost_by_lab })
    }
}
