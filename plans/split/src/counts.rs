//! Counts of all instances, of which the larger of two is right: a counter that only grows.
//!
//! A datagram has the sender's number, and then pairs of an instance's number and its count, all big-endian.

/// Bytes of the sender's number, and of a pair.
const HEAD: usize = 4;
const PAIR: usize = 12;

/// How far every instance is known to have counted.
pub struct Counts {
    counts: Vec<u64>,
}

impl Counts {
    pub fn new(instances: usize) -> Counts {
        Counts { counts: vec![0; instances] }
    }

    /// Counts one further.
    pub fn count(&mut self, instance: usize) {
        self.counts[instance] += 1;
    }

    pub fn of(&self, instance: usize) -> u64 {
        self.counts[instance]
    }

    pub fn sum(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns all that is known, in datagrams of at most `size` bytes.
    pub fn parts(&self, me: usize, size: usize) -> Vec<Vec<u8>> {
        let known: Vec<(usize, u64)> = self.counts.iter().copied().enumerate().collect();
        known
            .chunks((size - HEAD) / PAIR)
            .map(|pairs| {
                let mut part = Vec::with_capacity(size);
                part.extend_from_slice(&(me as u32).to_be_bytes());
                for (instance, count) in pairs {
                    part.extend_from_slice(&(*instance as u32).to_be_bytes());
                    part.extend_from_slice(&count.to_be_bytes());
                }
                part
            })
            .collect()
    }

    /// Takes what another instance knows and returns who that is; none where the bytes are no such datagram.
    pub fn take(&mut self, part: &[u8]) -> Option<usize> {
        let (head, pairs) = part.split_first_chunk::<HEAD>()?;
        if pairs.len() % PAIR != 0 {
            return None;
        }
        for pair in pairs.chunks_exact(PAIR) {
            let (instance, count) = pair.split_first_chunk::<4>()?;
            let known = self.counts.get_mut(u32::from_be_bytes(*instance) as usize)?;
            *known = u64::from_be_bytes(count.try_into().ok()?).max(*known);
        }
        Some(u32::from_be_bytes(*head) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_that_counted_apart_know_the_same_after_one_exchange() {
        let (mut east, mut west) = (Counts::new(250), Counts::new(250));
        for instance in 0..125 {
            for _ in 0..instance {
                east.count(instance);
                west.count(instance + 125);
            }
        }
        for part in east.parts(3, 1200) {
            assert!(part.len() <= 1200);
            assert_eq!(west.take(&part), Some(3));
        }
        for part in west.parts(200, 1200) {
            assert_eq!(east.take(&part), Some(200));
        }
        assert_eq!((east.sum(), west.sum()), (2 * 7750, 2 * 7750));
        assert_eq!(east.of(249), 124);
    }

    #[test]
    fn bytes_that_are_no_counts_change_nothing_but_what_stands_before() {
        let mut counts = Counts::new(2);
        for bytes in [&[][..], &[0; 3], &[0; 5], &[0xff; 16]] {
            assert_eq!(counts.take(bytes), None);
        }
        assert_eq!(counts.sum(), 0);
    }
}
