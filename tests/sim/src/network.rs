//! Randomness and the fate of messages.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::Profile;

/// Longest delay of a message that comes very late, in microseconds: longer than a lease.
const LATE_US: u64 = 10_000_000;

/// Draws from the seed.
#[derive(Debug)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// A stream of draws; `stream` keeps faults apart from the rest, so that one can change without the other.
    pub fn new(seed: u64, stream: u64) -> Draws {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Draws(rng)
    }

    /// A number between two bounds, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high.saturating_sub(low) + 1)
    }

    /// Whether something of this probability, in parts per million, happens.
    pub fn chance(&mut self, ppm: u32) -> bool {
        self.0.next_u64() % 1_000_000 < u64::from(ppm)
    }

    /// Sixteen random bytes.
    pub fn bytes(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// Delays in microseconds of each copy of a message that arrives: none where it is lost.
    pub fn fate(&mut self, profile: &Profile, faulty: bool) -> Vec<u64> {
        let delay = |draws: &mut Draws| {
            if faulty && draws.chance(profile.late_ppm) {
                draws.between(profile.delay_max_us, LATE_US)
            } else if faulty {
                draws.between(profile.delay_min_us, profile.delay_max_us.max(profile.delay_min_us))
            } else {
                profile.delay_min_us
            }
        };
        if faulty && self.chance(profile.loss_ppm) {
            return Vec::new();
        }
        let mut copies = vec![delay(self)];
        if faulty && self.chance(profile.double_ppm) {
            copies.push(delay(self));
        }
        copies
    }
}
