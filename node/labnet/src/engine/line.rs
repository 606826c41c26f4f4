//! A link with the packets that are under way on it.

use std::collections::VecDeque;

use super::stats::LinkStats;
use crate::ip::{Header, Offload};
use crate::link::{Link, LinkConfig};

/// A packet on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) bytes: Vec<u8>,
    pub(super) header: Header,
    pub(super) offload: Offload,
    /// The node that sent it; none where a router did.
    pub(super) origin: Option<usize>,
}

impl Flight {
    /// Returns how many packets it is on the wire, and their bytes.
    pub(super) fn on_the_wire(&self) -> (u64, u64) {
        self.offload.on_the_wire(&self.bytes, &self.header)
    }
}

/// A packet on a link.
#[derive(Debug)]
pub(super) struct Held {
    /// When it came to the link.
    pub(super) from_ns: u64,
    /// When it leaves it.
    pub(super) at_ns: u64,
    /// Breaks ties over all links: packets that leave at one time do so in the order in which they came.
    pub(super) order: u64,
    pub(super) flight: Flight,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) link: Link,
    pub(super) stats: LinkStats,
    /// By time; a link that keeps order adds at the end alone.
    held: VecDeque<Held>,
}

impl Line {
    pub(super) fn new(config: LinkConfig, seed: u64) -> Line {
        Line { link: Link::new(config, seed), stats: LinkStats::default(), held: VecDeque::new() }
    }

    /// Returns whether packets pass at once: the link is clean, and nothing is under way that would be overtaken.
    pub(super) fn is_open(&self) -> bool {
        self.held.is_empty() && self.link.config().is_clean()
    }

    /// Adds a packet; returns whether it is the next to leave.
    pub(super) fn push(&mut self, held: Held) -> bool {
        let key = (held.at_ns, held.order);
        if self.held.back().is_none_or(|last| (last.at_ns, last.order) < key) {
            self.held.push_back(held);
            return self.held.len() == 1;
        }
        let at = self.held.partition_point(|other| (other.at_ns, other.order) < key);
        self.held.insert(at, held);
        at == 0
    }

    pub(super) fn next(&self) -> Option<(u64, u64)> {
        self.held.front().map(|held| (held.at_ns, held.order))
    }

    pub(super) fn pop(&mut self) -> Option<Held> {
        self.held.pop_front()
    }
}
