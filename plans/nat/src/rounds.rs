//! Who is in a pair with whom, and when: each two once, and nobody in two pairs at a time.

use iptl_sdk::Rng;

/// Returns the rounds, each with pairs of a dialer and a listener, by position. All instances of a run get the same.
pub fn all(peers: usize, seed: u64) -> Vec<Vec<(usize, usize)>> {
    let mut rng = Rng::new(seed);
    let mut order: Vec<usize> = (0..peers).collect();
    rng.shuffle(&mut order);
    // The first stays, the others move on by one; with an odd number somebody has nobody.
    let mut seats: Vec<Option<usize>> = order.into_iter().map(Some).collect();
    if seats.len() % 2 == 1 {
        seats.push(None);
    }
    let count = seats.len();
    let mut rounds = Vec::new();
    for _ in 1..count.max(1) {
        let opposite = |at: usize| seats[at].zip(seats[count - 1 - at]);
        let pairs = (0..count / 2).filter_map(opposite);
        rounds.push(pairs.map(|(a, b)| if rng.below(2) == 0 { (a, b) } else { (b, a) }).collect());
        seats[1..].rotate_right(1);
    }
    rounds
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_two_meet_once_and_nobody_is_in_two_pairs_of_a_round() {
        for peers in [0, 1, 2, 5, 9, 18] {
            let mut met = BTreeSet::new();
            for round in all(peers, 7) {
                let mut busy = BTreeSet::new();
                for (a, b) in round {
                    assert!(busy.insert(a) && busy.insert(b));
                    assert!(met.insert((a.min(b), a.max(b))));
                }
            }
            assert_eq!(met.len(), peers * peers.saturating_sub(1) / 2);
        }
    }
}
