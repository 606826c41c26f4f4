//! Dividing instances by weights.

use crate::draw::{Draw, mix};

/// Returns the seed of a choice: of a run, a group and what is chosen.
pub(super) fn seed_of(seed: u64, group: &str, what: u64) -> u64 {
    group.bytes().fold(mix(seed, what), |seed, byte| mix(seed, u64::from(byte)))
}

/// Deals choices to `size` takers: choice `i` as often as its weight asks, the largest remainders rounded up, in an
/// order that the seed shuffles. Returns none where no weight is more than zero.
pub(super) fn deal(seed: u64, size: u32, weights: &[u32]) -> Option<Vec<usize>> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    if total == 0 {
        return None;
    }
    let exact = |weight: &u32| u64::from(*weight) * u64::from(size);
    let mut counts: Vec<u64> = weights.iter().map(|weight| exact(weight) / total).collect();
    let missing = u64::from(size) - counts.iter().sum::<u64>();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|choice| std::cmp::Reverse(exact(&weights[*choice]) % total));
    for choice in by_remainder.into_iter().zip(0..missing).map(|(choice, _)| choice) {
        counts[choice] += 1;
    }
    let counted = counts.iter().enumerate();
    let mut dealt: Vec<usize> = counted.flat_map(|(choice, count)| (0..*count).map(move |_| choice)).collect();
    for i in (1..dealt.len()).rev() {
        let other = Draw::new(seed, i as u64).below(0, i as u64 + 1);
        dealt.swap(i, usize::try_from(other).unwrap_or(i));
    }
    Some(dealt)
}
