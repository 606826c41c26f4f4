//! What links and the engine really did.

use iptl_dag::model::{BetweenRegions, LinkUse};
use serde::{Deserialize, Serialize};

use super::{Engine, LinkId};

/// What one direction of one link did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Packets that came to it.
    pub offered: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Packets that left it at the other end, copies included.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Packets lost by chance, or because the link was down.
    pub lost: u64,
    /// Packets for which its queue had no room.
    pub overflowed: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Packets in which a bit was turned.
    pub corrupted: u64,
    /// Packets for which the lab had no memory: none of the model's doing.
    pub dropped_by_lab: u64,
    /// Sum over delivered packets of the time that the model asked for, in nanoseconds.
    pub asked_ns: u64,
    /// Sum over delivered packets of the time that it really took, in nanoseconds.
    pub measured_ns: u64,
}

impl LinkStats {
    /// Adds what another link did.
    pub(super) fn add(&mut self, other: &LinkStats) {
        self.offered += other.offered;
        self.offered_bytes += other.offered_bytes;
        self.delivered += other.delivered;
        self.delivered_bytes += other.delivered_bytes;
        self.lost += other.lost;
        self.overflowed += other.overflowed;
        self.duplicated += other.duplicated;
        self.corrupted += other.corrupted;
        self.dropped_by_lab += other.dropped_by_lab;
        self.asked_ns += other.asked_ns;
        self.measured_ns += other.measured_ns;
    }
}

/// As a receipt has it, where packets that the lab dropped stand apart.
impl From<LinkStats> for LinkUse {
    fn from(stats: LinkStats) -> LinkUse {
        let LinkStats {
            offered,
            offered_bytes,
            delivered,
            delivered_bytes,
            lost,
            overflowed,
            duplicated,
            corrupted,
            dropped_by_lab: _,
            asked_ns,
            measured_ns,
        } = stats;
        LinkUse {
            offered,
            offered_bytes,
            delivered,
            delivered_bytes,
            lost,
            overflowed,
            duplicated,
            corrupted,
            asked_ns,
            measured_ns,
        }
    }
}

/// What links between regions did, and within one, each by itself: those that were used, by sending and receiving region.
pub type Between = Vec<(u16, u16, LinkStats)>;

/// Returns them as receipts have them, at most [`BetweenRegions::MAX`].
pub fn between_regions(links: &Between) -> Vec<BetweenRegions> {
    BetweenRegions::bounded(links.iter().map(|(from, to, stats)| BetweenRegions {
        from: *from,
        to: *to,
        did: LinkUse::from(*stats),
        lost_by_lab: stats.dropped_by_lab,
    }))
}

impl Engine {
    /// Returns what all links between regions, and within one, did together.
    pub fn across(&self) -> LinkStats {
        self.each_between().fold(LinkStats::default(), |mut sum, (_, _, stats)| {
            sum.add(&stats);
            sum
        })
    }

    /// Returns what each of them did that was used; nothing where there is one region, and so one link.
    pub fn regions(&self) -> Between {
        if self.topology.regions() == 1 {
            return Vec::new();
        }
        self.each_between().filter(|(_, _, stats)| stats.offered > 0).collect()
    }

    fn each_between(&self) -> impl Iterator<Item = (u16, u16, LinkStats)> {
        let regions = u16::try_from(self.topology.regions()).unwrap_or(u16::MAX);
        let pairs = (0..regions).flat_map(move |from| (0..regions).map(move |to| (from, to)));
        pairs.filter_map(|(from, to)| Some((from, to, self.link_stats(LinkId::Region { from, to })?)))
    }
}

/// Packets that ended elsewhere than in a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStats {
    /// Packets that came from nodes.
    pub received: u64,
    /// Packets handed to nodes.
    pub delivered: u64,
    /// Bytes that are no packet, a head that was corrupted on the way, or a query of names that asks nothing.
    pub malformed: u64,
    /// Packets with another source than their sender's address.
    pub spoofed: u64,
    /// Packets to an address that nobody has.
    pub unroutable: u64,
    /// Packets that a gateway kept out.
    pub filtered: u64,
    /// Packets for which a gateway had no ports, mappings or sessions left.
    pub exhausted: u64,
    /// Packets that a gateway could not translate.
    pub untranslatable: u64,
    /// Packets that ran out of hops.
    pub hop_limit: u64,
    /// Packets too large for a link that could not be cut.
    pub too_big: u64,
    /// Packets to many where there is no LAN.
    pub multicast: u64,
    /// Packets between the sides of a partition.
    pub partitioned: u64,
    /// Packets that came to a node that has asked for no network.
    pub disabled: u64,
    /// Queries that the server of names answered.
    pub names: u64,
    /// Packets that were turned round at a door out of the lab.
    pub turned: u64,
    /// ICMP errors sent.
    pub icmp_errors: u64,
    /// Packets handed to other engines of the network.
    pub sent_away: u64,
    /// Packets that came from other engines.
    pub came_from_away: u64,
    /// Of these, packets that came by way of a third machine.
    pub relayed: u64,
    /// Packets from other engines that took longer, by over a millisecond, than the delay between their regions: the
    /// network cannot be had over this way.
    pub overdue: u64,
    /// The longest by which one of them took longer, in nanoseconds.
    pub max_overdue_ns: u64,
}

/// Buckets of a [`Lateness`]: the last begins at over two minutes.
const BUCKETS: usize = 38;

/// How late packets were handled: bucket `i` counts those that were late by 2ⁱ⁻¹ ns or more and less than 2ⁱ ns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lateness {
    buckets: Vec<u64>,
    max_ns: u64,
}

impl Default for Lateness {
    fn default() -> Lateness {
        Lateness { buckets: vec![0; BUCKETS], max_ns: 0 }
    }
}

impl Lateness {
    pub(super) fn note(&mut self, late_ns: u64) {
        let bucket = (u64::BITS - late_ns.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.max_ns = self.max_ns.max(late_ns);
    }

    /// Returns the counts.
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// Returns the counts up to the last that is not zero.
    pub fn counts(&self) -> &[u64] {
        let last = self.buckets.iter().rposition(|count| *count > 0);
        &self.buckets[..last.map_or(0, |last| last + 1)]
    }

    /// Returns the greatest lateness, in nanoseconds.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// Returns an upper bound of a quantile, in nanoseconds, at most twice what it is; zero where there is nothing.
    /// `permille` is from 0 to 1000.
    pub fn quantile_ns(&self, permille: u32) -> u64 {
        let total: u64 = self.buckets.iter().sum();
        let rank = (u128::from(total) * u128::from(permille.min(1000))).div_ceil(1000);
        let mut seen = 0u128;
        for (i, count) in self.buckets.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank && *count > 0 {
                return ((1u64 << i) - 1).min(self.max_ns);
            }
        }
        self.max_ns
    }
}
