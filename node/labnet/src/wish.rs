//! What instances ask of their own network, on top of what the run says.
//!
//! A [`Wish`] shapes what an instance sends: it comes before the instance's link up, as a traffic shaper of a machine
//! stands before its cable. So it says nothing of what others send, but that a network that is not
//! [enabled](Wish::enabled) takes nothing in either. [`Engine::shape`](crate::Engine::shape) puts one in force; what it
//! does to packets is a link's doing, with a link's statistics.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::link::{Jitter, LinkConfig};

/// Subnets for which one instance may have rules: the hosts of a large run, one by one.
pub const MAX_RULES: usize = 4096;

/// Of these, subnets with a link of their own: each has queues and counters.
pub const MAX_SHAPED: usize = 64;

/// Bytes that may wait where a wish names a bandwidth: the thousand packets of Linux' shapers.
pub const WISH_QUEUE_BYTES: u64 = 1_500_000;

/// A day, in nanoseconds: longer than any link's time.
const MAX_TIME_NS: u64 = 24 * 3_600 * 1_000_000_000;

/// The whole, in a million.
const MILLION: u32 = 1_000_000;

/// What becomes of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// They are sent.
    #[default]
    Accept,
    /// They are not, and the sender is told by an ICMP error.
    Reject,
    /// They are not, and nobody is told.
    Drop,
}

/// What a wish says of packets: all of them, or those into a subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Whether they are sent.
    #[serde(skip_serializing_if = "is_default")]
    pub filter: Filter,
    /// Time that they wait, in nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub latency_ns: u64,
    /// How far they are off it, evenly, in nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub jitter_ns: u64,
    /// Bits per second, IP headers included; zero is no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub bandwidth_bps: u64,
    /// Chance that one is lost, in a million.
    #[serde(skip_serializing_if = "is_default")]
    pub loss_ppm: u32,
    /// Chance that one bit of one is turned, in a million.
    #[serde(skip_serializing_if = "is_default")]
    pub corrupt_ppm: u32,
    /// Chance that one does not wait, in a million.
    #[serde(skip_serializing_if = "is_default")]
    pub reorder_ppm: u32,
    /// Chance that one is sent twice, in a million.
    #[serde(skip_serializing_if = "is_default")]
    pub duplicate_ppm: u32,
}

/// What an instance asks of its own network. The default is the network as the run says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wish {
    /// Whether it has one at all: otherwise nothing goes out and nothing comes in.
    pub enabled: bool,
    /// What is true where no rule says otherwise.
    pub shape: Shape,
    /// By subnet; the smallest that has a destination counts for it. A rule that shapes nothing leaves the link as it is
    /// without the rule, and decides whether packets are sent at all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<Subnet, Shape>,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish { enabled: true, shape: Shape::default(), rules: BTreeMap::new() }
    }
}

/// Addresses of IPv4 that begin alike: `10.0.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    prefix: u8,
    first: u32,
}

/// Why a wish cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// A time is longer than any link's.
    #[error("a {what} of {ns} ns is longer than a day")]
    TooLong {
        /// `latency`, `jitter`.
        what: &'static str,
        /// The time.
        ns: u64,
    },
    /// A chance is more than certain.
    #[error("a chance of {what} of more than 100 %")]
    NoChance {
        /// `loss`, `corruption` …
        what: &'static str,
    },
    /// Too many rules, those that are in force already included.
    #[error("{count} {what}; an instance may have {limit}")]
    TooMany {
        /// How many.
        count: usize,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// Nothing that could be shaped lies between instances.
    #[error(
        "components of a run with a clean network send no packets that could be shaped: give the run a network, if only one region without delay"
    )]
    Clean,
    /// The network has no such instance.
    #[error("the lab network has no such instance")]
    Unknown,
}

/// Why text is no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no subnet of IPv4, as 10.0.0.0/24 is one")]
pub struct NoSubnet {
    text: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Shape {
    /// Returns whether it says no more of packets than whether they are sent.
    pub fn is_plain(&self) -> bool {
        *self == Shape { filter: self.filter, ..Shape::default() }
    }

    pub(crate) fn link(&self) -> LinkConfig {
        LinkConfig {
            delay_ns: self.latency_ns,
            jitter_ns: self.jitter_ns,
            jitter: Jitter::Uniform,
            rate_bps: self.bandwidth_bps,
            queue_bytes: WISH_QUEUE_BYTES,
            loss_ppm: self.loss_ppm,
            duplicate_ppm: self.duplicate_ppm,
            reorder_ppm: self.reorder_ppm,
            corrupt_ppm: self.corrupt_ppm,
            down: false,
        }
    }

    fn check(&self) -> Result<(), WishError> {
        for (what, ns) in [("latency", self.latency_ns), ("jitter", self.jitter_ns)] {
            if ns > MAX_TIME_NS {
                return Err(WishError::TooLong { what, ns });
            }
        }
        let chances = [
            ("loss", self.loss_ppm),
            ("corruption", self.corrupt_ppm),
            ("reordering", self.reorder_ppm),
            ("duplication", self.duplicate_ppm),
        ];
        match chances.iter().find(|(_, ppm)| *ppm > MILLION) {
            Some((what, _)) => Err(WishError::NoChance { what }),
            None => Ok(()),
        }
    }
}

impl Wish {
    /// Returns what is in force once `newer` was asked for: all that it says, and of the rules from before those for
    /// subnets that it does not name. A rule that neither shapes nor filters ends one from before.
    ///
    /// # Errors
    ///
    /// Returns why that cannot be had; then what was before stays in force.
    pub fn then(&self, newer: &Wish) -> Result<Wish, WishError> {
        newer.shape.check()?;
        newer.rules.values().try_for_each(Shape::check)?;
        let mut rules = self.rules.clone();
        rules.extend(&newer.rules);
        // One that says nothing still stands before what a larger subnet says.
        let wider = |subnet: &Subnet, rules: &BTreeMap<Subnet, Shape>| {
            rules.iter().any(|(other, shape)| other.holds(*subnet) && *shape != Shape::default())
        };
        let all = rules.clone();
        rules.retain(|subnet, shape| *shape != Shape::default() || wider(subnet, &all));
        let shaped = rules.values().filter(|shape| !shape.is_plain()).count();
        let counts = [(rules.len(), "rules", MAX_RULES), (shaped, "subnets with a link of their own", MAX_SHAPED)];
        match counts.into_iter().find(|(count, _, limit)| count > limit) {
            Some((count, what, limit)) => Err(WishError::TooMany { count, what, limit }),
            None => Ok(Wish { enabled: newer.enabled, shape: newer.shape, rules }),
        }
    }
}

impl Subnet {
    /// Makes the subnet of all addresses that have the first `prefix` bits of this one; none where there are no so many
    /// bits.
    pub fn new(addr: Ipv4Addr, prefix: u8) -> Option<Subnet> {
        (prefix <= 32).then(|| Subnet { prefix, first: u32::from(addr) & mask(prefix) })
    }

    /// Returns the length of its prefix, in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Returns whether another subnet is a part of it, and not the whole.
    fn holds(self, part: Subnet) -> bool {
        self.prefix < part.prefix && part.first & mask(self.prefix) == self.first
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = NoSubnet;

    fn from_str(text: &str) -> Result<Subnet, NoSubnet> {
        let parts = text.split_once('/').and_then(|(addr, prefix)| {
            // One spelling: no sign and no leading zero.
            let plain = prefix.bytes().all(|byte| byte.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
            Subnet::new(addr.parse().ok()?, prefix.parse().ok().filter(|_| plain)?)
        });
        parts.ok_or_else(|| NoSubnet { text: text.chars().take(64).collect() })
    }
}

impl TryFrom<String> for Subnet {
    type Error = NoSubnet;

    fn try_from(text: String) -> Result<Subnet, NoSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}
