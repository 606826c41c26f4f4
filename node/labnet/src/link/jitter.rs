//! Distributions of jitter.

use crate::draw::Draw;

/// Numbers summed for one of the normal distribution.
const SUMMED: u64 = 6;

/// How the time that packets take spreads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jitter {
    /// Evenly from `delay - jitter` to `delay + jitter`.
    #[default]
    Uniform,
    /// Around `delay` in a bell with `jitter` as its standard deviation: the sum of six even numbers, so that nothing
    /// is farther off than 4.24 standard deviations.
    Normal,
    /// Never below `delay`, and `jitter` more in the mean, with a long tail: `jitter` times an exponential number.
    Exponential,
}

impl Jitter {
    /// Draws a shift in nanoseconds. Uses at most [`SUMMED`] purposes from the one given.
    pub(super) fn sample_ns(self, draw: Draw, purpose: u64, jitter_ns: u64) -> i64 {
        if jitter_ns == 0 {
            return 0;
        }
        let unit = match self {
            Jitter::Uniform => 2.0 * draw.unit(purpose) - 1.0,
            Jitter::Normal => {
                let sum: f64 = (0..SUMMED).map(|i| draw.unit(purpose + i)).sum();
                // The sum of n even numbers has mean n/2 and variance n/12.
                (sum - SUMMED as f64 / 2.0) / (SUMMED as f64 / 12.0).sqrt()
            }
            Jitter::Exponential => -(1.0 - draw.unit(purpose)).ln(),
        };
        // A float that does not fit is cut off at the type's bounds, so a huge spread cannot wrap.
        (unit * jitter_ns as f64) as i64
    }
}
