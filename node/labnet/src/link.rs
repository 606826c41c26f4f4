//! The model of one direction of one link.
//!
//! A [`Link`] is asked what becomes of a packet of a size at a time, and answers from its configuration, its seed and
//! what it was offered before; nothing else counts. In order: loss and corruption, the queue and the transmission at
//! the link's rate, delay and jitter, then order: a packet does not overtake an earlier one unless the link reorders.
//!
//! Each packet has a number, from zero, and what chance does to it depends on seed and number alone: the same offers
//! have the same fates, and changing one chance changes no other decision. `jitter.rs` has the distributions.

mod jitter;

use crate::draw::Draw;

pub use jitter::Jitter;

/// What one direction of one link does to packets. The default is a clean link: no delay, no limit, no chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkConfig {
    /// Time from the end of a packet's transmission to its arrival, in nanoseconds.
    pub delay_ns: u64,
    /// Spread of that time, in nanoseconds; what it means depends on `jitter`.
    pub jitter_ns: u64,
    /// Distribution of the spread.
    pub jitter: Jitter,
    /// Bits per second, IP headers included; zero is no limit.
    pub rate_bps: u64,
    /// Bytes that may wait for transmission, the packet under transmission included; only where there is a rate.
    /// A packet that meets an empty queue is always taken.
    pub queue_bytes: u64,
    /// Chance that a packet is lost, in a million.
    pub loss_ppm: u32,
    /// Chance that a packet arrives twice, in a million. The copy takes no share of the rate.
    pub duplicate_ppm: u32,
    /// Chance that a packet skips delay and jitter and so overtakes others, in a million. Other than zero, packets
    /// may also overtake each other by jitter.
    pub reorder_ppm: u32,
    /// Chance that one bit of a packet is turned, in a million.
    pub corrupt_ppm: u32,
    /// Whether nothing passes at all.
    pub down: bool,
}

impl LinkConfig {
    /// Returns whether packets pass at once and unchanged.
    pub fn is_clean(&self) -> bool {
        *self == LinkConfig { jitter: self.jitter, queue_bytes: self.queue_bytes, ..LinkConfig::default() }
    }

    /// Returns whether the link treats each packet on its own, so that a super-packet, which a network card would
    /// split, has to be split before it is offered.
    pub fn is_per_packet(&self) -> bool {
        let chances = [self.loss_ppm, self.duplicate_ppm, self.reorder_ppm, self.corrupt_ppm];
        self.rate_bps > 0 || self.jitter_ns > 0 || chances.iter().any(|ppm| *ppm > 0)
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is lost by chance, or the link is down.
    Lost,
    /// The queue had no room.
    Overflow,
    /// It arrives.
    Arrives {
        /// When, in nanoseconds.
        at_ns: u64,
        /// When a copy arrives too; not before the packet itself.
        copy_at_ns: Option<u64>,
        /// Which bit is turned: to be taken modulo the packet's length in bits.
        turned_bit: Option<u64>,
    },
}

/// One direction of one link.
#[derive(Clone, Debug)]
pub struct Link {
    config: LinkConfig,
    seed: u64,
    /// Number of the next packet.
    next: u64,
    /// When the transmitter is free. In units of 1/`FRACTION` ns, so that rounding does not shift the rate.
    free_at: u128,
    /// Latest arrival so far, in nanoseconds.
    latest_ns: u64,
}

/// Parts of a nanosecond in which transmissions are counted: 0.001 % of a bit time at 10 Gbit/s.
const FRACTION: u128 = 10_000;

/// Purposes of draws for one packet.
mod purpose {
    pub(super) const LOSS: u64 = 0;
    pub(super) const CORRUPT: u64 = 1;
    pub(super) const BIT: u64 = 2;
    pub(super) const REORDER: u64 = 3;
    pub(super) const DUPLICATE: u64 = 4;
    /// This and the next few are the jitter's.
    pub(super) const JITTER: u64 = 8;
    pub(super) const COPY_JITTER: u64 = 16;
}

impl Link {
    /// Makes a link that nothing has passed yet.
    pub fn new(config: LinkConfig, seed: u64) -> Link {
        Link { config, seed, next: 0, free_at: 0, latest_ns: 0 }
    }

    /// Returns what the link does.
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// Changes what the link does to packets from now on. Those under way keep their fate, and later ones stay behind
    /// them; what waits for transmission is transmitted at the old rate.
    pub fn configure(&mut self, config: LinkConfig) {
        self.config = config;
    }

    /// Returns the bytes that wait for transmission at a time, that under transmission included.
    pub fn backlog_bytes(&self, now_ns: u64) -> u64 {
        let wait = self.free_at.saturating_sub(u128::from(now_ns) * FRACTION);
        let bytes = (wait * u128::from(self.config.rate_bps)).div_ceil(8 * 1_000_000_000 * FRACTION);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Decides what becomes of a packet of `len` bytes at a time; times of offers must not go back.
    pub fn offer(&mut self, now_ns: u64, len: usize) -> Fate {
        let config = self.config;
        let draw = Draw::new(self.seed, self.next);
        self.next += 1;
        if config.down || draw.chance(purpose::LOSS, config.loss_ppm) {
            return Fate::Lost;
        }
        let Some(sent_ns) = self.transmit(now_ns, len) else { return Fate::Overflow };

        let reordered = draw.chance(purpose::REORDER, config.reorder_ppm);
        let own_ns = if reordered { sent_ns } else { self.delayed(sent_ns, draw, purpose::JITTER) };
        let at_ns = self.in_order(own_ns);
        let copy_at_ns = draw.chance(purpose::DUPLICATE, config.duplicate_ppm).then(|| {
            let own_ns = self.delayed(sent_ns, draw, purpose::COPY_JITTER);
            self.in_order(own_ns).max(at_ns)
        });
        let turned_bit = draw.chance(purpose::CORRUPT, config.corrupt_ppm).then(|| draw.bits(purpose::BIT));
        Fate::Arrives { at_ns, copy_at_ns, turned_bit }
    }

    /// Returns when the last bit of the packet has left, or none if the queue has no room for it.
    fn transmit(&mut self, now_ns: u64, len: usize) -> Option<u64> {
        let LinkConfig { rate_bps, queue_bytes, .. } = self.config;
        if rate_bps == 0 {
            return Some(now_ns);
        }
        let backlog = self.backlog_bytes(now_ns);
        if backlog > 0 && backlog.saturating_add(len as u64) > queue_bytes {
            return None;
        }
        let start = self.free_at.max(u128::from(now_ns) * FRACTION);
        let bits = len as u128 * 8;
        self.free_at = start + bits * 1_000_000_000 * FRACTION / u128::from(rate_bps);
        Some(u64::try_from(self.free_at.div_ceil(FRACTION)).unwrap_or(u64::MAX))
    }

    fn delayed(&self, sent_ns: u64, draw: Draw, purpose: u64) -> u64 {
        let config = &self.config;
        let shift_ns = config.jitter.sample_ns(draw, purpose, config.jitter_ns);
        // A packet is never there before it was sent.
        sent_ns.saturating_add(config.delay_ns).saturating_add_signed(shift_ns).max(sent_ns)
    }

    /// Holds a packet back until those before it are there, where the link keeps order.
    fn in_order(&mut self, at_ns: u64) -> u64 {
        if self.config.reorder_ppm > 0 {
            return at_ns;
        }
        self.latest_ns = self.latest_ns.max(at_ns);
        self.latest_ns
    }
}
