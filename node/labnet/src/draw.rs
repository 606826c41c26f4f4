//! Randomness as a function: what is drawn depends on a seed, a number and a purpose, and on nothing drawn before.
//!
//! So a packet's fate does not change when another chance on the same link is set to another value, and no state has
//! to be carried along. Mixing is that of SplitMix64, whose output has no known statistical flaw at this use.

/// Chances are shares of a million.
const MILLION: u64 = 1_000_000;

/// Mixes a seed with a number into 64 bits.
pub(crate) fn mix(seed: u64, n: u64) -> u64 {
    finish(seed ^ finish(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x632b_e59b_d9b4_e019)))
}

fn finish(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What can be drawn for one packet or one thing of a topology.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    /// Names what draws are for: the `n`th thing under a seed.
    pub(crate) fn new(seed: u64, n: u64) -> Draw {
        Draw(mix(seed, n))
    }

    /// Returns 64 bits for a purpose; purposes are small numbers that the caller tells apart.
    pub(crate) fn bits(self, purpose: u64) -> u64 {
        mix(self.0, purpose)
    }

    /// Returns a number from 0 to below 1, in steps of 2⁻⁵³.
    pub(crate) fn unit(self, purpose: u64) -> f64 {
        (self.bits(purpose) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a number below `n`, which is not zero; every number has the same chance within `n` in 2⁶⁴.
    pub(crate) fn below(self, purpose: u64, n: u64) -> u64 {
        debug_assert!(n > 0, "there is a number to choose");
        let product = u128::from(self.bits(purpose)) * u128::from(n);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// Returns whether something happens whose chance is `ppm` in a million.
    pub(crate) fn chance(self, purpose: u64, ppm: u32) -> bool {
        ppm > 0 && self.below(purpose, MILLION) < u64::from(ppm)
    }
}
