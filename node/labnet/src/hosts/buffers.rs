//! How much the two directions of a connection hold.
//!
//! A connection gets what the fastest link of the network can have on its way, for as long as there are few of them. All
//! of a cell share an amount, of which each new one takes at most a small part of what is left: so a hundred instances
//! with dozens of connections each, as nodes of a DHT have, come to little more than that amount, and those that were
//! first are not slower for it.

use crate::switch::WINDOW_SIZE;
use crate::topology::Topology;

/// Least and most that one direction of a connection holds, in bytes. The least is what Linux lets a connection send at
/// first and some more; over 150 ms it carries 1.7 Mbit/s.
const LEAST: usize = 32 << 10;
const MOST: usize = 1 << 20;

/// What the connections of a cell hold together before each new one gets the least, in bytes.
const SHARED: usize = 512 << 20;

/// Part of what is left that a direction of a new connection takes at most.
const PART: usize = 512;

/// Returns how much one direction of a connection should hold: what the fastest way that a class allows sends in the
/// longest round trip between regions, within bounds. Where no rate is limited that is the most, unless nothing takes time.
pub(super) fn wanted(topology: &Topology) -> usize {
    let accesses = topology.nodes.iter().map(|node| &node.access).chain(topology.gateways.iter().map(|g| &g.access));
    let fastest = accesses.flat_map(|access| [access.up.rate_bps, access.down.rate_bps]).max().unwrap_or(0);
    let longest_ns = topology.delays_ns.iter().flatten().copied().max().unwrap_or(0);
    if fastest == 0 {
        return if longest_ns == 0 { WINDOW_SIZE } else { MOST };
    }
    let bytes = u128::from(fastest) * u128::from(longest_ns) * 2 / 8_000_000_000;
    usize::try_from(bytes).unwrap_or(MOST).clamp(2 * LEAST, MOST)
}

/// Returns how much one direction of a new connection holds, where it should hold `wanted` and all others of the cell
/// hold `held` in both directions.
pub(super) fn size(wanted: usize, held: usize) -> usize {
    wanted.min((SHARED.saturating_sub(held) / PART).max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens connections and returns how much each holds in one direction.
    fn open(count: usize, wanted: usize) -> Vec<usize> {
        let mut held = 0;
        let sizes = (0..count).map(|_| {
            let size = size(wanted, held);
            held += 2 * size;
            size
        });
        sizes.collect()
    }

    #[test]
    fn without_a_limited_rate_the_delays_say_how_much_is_under_way() {
        let topology = |delay_ns| Topology::new(vec![vec![0, delay_ns], vec![delay_ns, 0]]).unwrap();
        assert_eq!(wanted(&topology(0)), WINDOW_SIZE);
        assert_eq!(wanted(&topology(20_000_000)), MOST);
    }

    #[test]
    fn few_connections_hold_what_they_should() {
        assert!(open(512, WINDOW_SIZE).iter().all(|size| *size == WINDOW_SIZE));
    }

    #[test]
    fn many_connections_hold_a_bounded_amount_and_none_less_than_the_least() {
        for wanted in [64 << 10, WINDOW_SIZE, MOST] {
            let sizes = open(20_000, wanted);
            let total: usize = sizes.iter().map(|size| 2 * size).sum();
            assert!(sizes.iter().all(|size| (LEAST..=wanted).contains(size)));
            assert!(total <= SHARED + sizes.len() * 2 * LEAST, "{total} bytes");
        }
    }
}
