//! What nodes have asked of their own network: lines before their links up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Engine;
use super::line::{Flight, Line};
use super::stats::LinkStats;
use crate::draw::mix;
use crate::ip::IcmpError;
use crate::topology::{Entity, NodeId};
use crate::wish::{Filter, Subnet, Wish, WishError};

/// Sets the seeds of these lines apart from those of others.
const SEED: u64 = 0x0077_6e00;

/// The own network of a node.
#[derive(Debug)]
pub(super) struct Own {
    enabled: bool,
    filter: Filter,
    /// Where packets go for which no rule says otherwise.
    line: usize,
    rules: BTreeMap<Subnet, Rule>,
    /// Lengths of the prefixes of rules, the longest first.
    prefixes: Vec<u8>,
    /// All lines that it ever had, in their order, with the subnet for which they are.
    lines: Vec<(usize, Option<Subnet>)>,
    /// What was not sent at all.
    withheld: LinkStats,
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    filter: Filter,
    /// None where it shapes nothing.
    line: Option<usize>,
}

impl Own {
    /// Returns what becomes of packets to an address, and on which line those go that are sent.
    fn way(&self, dst: IpAddr) -> (Filter, usize) {
        let IpAddr::V4(dst) = dst else { return (self.filter, self.line) };
        let rules = self.prefixes.iter().filter_map(|prefix| self.rules.get(&Subnet::new(dst, *prefix)?));
        match rules.into_iter().next() {
            Some(rule) => (rule.filter, rule.line.unwrap_or(self.line)),
            None => (self.filter, self.line),
        }
    }
}

impl Engine {
    /// Puts in force what a node asks of its own network, in the place of what it asked before; for packets from now on,
    /// those under way keep their fate. The caller has it [checked](Wish::then).
    ///
    /// # Errors
    ///
    /// Fails where there is no such node.
    pub fn shape(&mut self, node: NodeId, wish: &Wish) -> Result<(), WishError> {
        let before = self.own.get_mut(node.0).ok_or(WishError::Unknown)?.take();
        let (mut lines, withheld) = before.map(|own| (own.lines, own.withheld)).unwrap_or_default();
        let shaped = wish.rules.iter().filter(|(_, shape)| !shape.is_plain()).map(|(subnet, _)| Some(*subnet));
        let wanted: Vec<Option<Subnet>> = std::iter::once(None).chain(shaped).collect();
        let mut of_subnet = BTreeMap::new();
        for subnet in &wanted {
            let shape = subnet.map_or(&wish.shape, |subnet| &wish.rules[&subnet]);
            // The same subnet keeps its line, whose packets later ones are not to overtake.
            let same = lines.iter().position(|(_, of)| of == subnet);
            let free = || {
                let is_free =
                    |(line, of): &(usize, Option<Subnet>)| !wanted.contains(of) && self.lines[*line].is_empty();
                lines.iter().position(is_free)
            };
            let at = same.or_else(free).unwrap_or_else(|| {
                self.owners.push(node.0);
                let seed = mix(mix(self.config.seed ^ SEED, node.0 as u64), lines.len() as u64);
                self.lines.push(Line::new(shape.link(), seed));
                lines.push((self.lines.len() - 1, *subnet));
                lines.len() - 1
            });
            let (line, of) = &mut lines[at];
            *of = *subnet;
            self.lines[*line].link.configure(shape.link());
            of_subnet.insert(*subnet, *line);
        }
        let rule = |(subnet, shape): (&Subnet, &crate::wish::Shape)| {
            (*subnet, Rule { filter: shape.filter, line: of_subnet.get(&Some(*subnet)).copied() })
        };
        let rules: BTreeMap<Subnet, Rule> = wish.rules.iter().map(rule).collect();
        let mut prefixes: Vec<u8> = rules.keys().map(|subnet| subnet.prefix()).collect();
        prefixes.sort_unstable_by(|a, b| b.cmp(a));
        prefixes.dedup();
        let (enabled, filter, line) = (wish.enabled, wish.shape.filter, of_subnet[&None]);
        self.own[node.0] = Some(Box::new(Own { enabled, filter, line, rules, prefixes, lines, withheld }));
        Ok(())
    }

    /// Returns what a node's own network did to what it sent, all rules together: none where it never asked for
    /// anything. What a filter or a network that is not enabled kept back is lost.
    pub fn own_use(&self, node: NodeId) -> Option<LinkStats> {
        let own = self.own.get(node.0)?.as_ref()?;
        let mut sum = own.withheld;
        for (line, _) in &own.lines {
            sum.add(&self.lines[*line].stats);
        }
        Some(sum)
    }

    /// A packet leaves a node.
    pub(super) fn set_out(&mut self, at_ns: u64, node: usize, flight: Flight) {
        let Some(own) = &mut self.own[node] else {
            return self.offer(at_ns, self.up(Entity::Node(node)), flight);
        };
        let (filter, line) = own.way(flight.header.dst);
        if own.enabled && filter == Filter::Accept {
            return self.offer(at_ns, line, flight);
        }
        let (packets, bytes) = flight.on_the_wire();
        own.withheld.offered += packets;
        own.withheld.offered_bytes += bytes;
        own.withheld.lost += packets;
        if own.enabled && filter == Filter::Reject {
            // Said by the node's own system, so that no link is in between.
            if let Some(told) = self.error_about(IcmpError::Prohibited, flight) {
                self.arrive(at_ns, node, told);
            }
            return;
        }
        self.recycle(flight.bytes);
    }

    /// Returns whether a node takes in what arrives.
    pub(super) fn is_enabled(&self, node: usize) -> bool {
        self.own[node].as_ref().is_none_or(|own| own.enabled)
    }
}

/// A link that something is known of may have nothing under way.
impl Line {
    fn is_empty(&self) -> bool {
        self.next().is_none()
    }
}
