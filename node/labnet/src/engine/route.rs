//! From link to link: realms, gateways, hops and errors.

use std::net::{IpAddr, Ipv4Addr};

use super::line::Flight;
use super::{Engine, Output};
use crate::ip::{Fragment, Header, IcmpError, Offload, fragments, lower_hop_limit};
use crate::nat::Refusal;
use crate::topology::{Entity, NodeId};

impl Engine {
    /// A packet leaves a line: what is at its end?
    pub(super) fn leave(&mut self, at_ns: u64, line: usize, flight: Flight) {
        if let Some(node) = line.checked_sub(self.first_own()).and_then(|at| self.owners.get(at)) {
            return self.offer(at_ns, self.up(Entity::Node(*node)), flight);
        }
        let (nodes, gateways) = (self.topology.nodes.len(), self.topology.gateways.len());
        let entity = if line < 2 * nodes { Entity::Node(line / 2) } else { Entity::Gateway(line / 2 - nodes) };
        if line >= 2 * (nodes + gateways) {
            // It has crossed the public realm, whose table says once more whose it is.
            match self.topology.realms[0].addresses.get(&flight.header.dst) {
                Some(target) => self.descend(at_ns, 0, *target, flight),
                None => {
                    self.stats.unroutable += 1;
                    self.refuse(at_ns, 0, IcmpError::HostUnreachable, flight);
                }
            }
            return;
        }
        match (entity, line.is_multiple_of(2)) {
            (Entity::Node(node), true) => self.enter(at_ns, self.topology.nodes[node].realm, Some(entity), flight),
            (Entity::Gateway(gateway), true) => {
                self.enter(at_ns, self.topology.gateways[gateway].outer, Some(entity), flight);
            }
            (Entity::Node(node), false) => self.arrive(at_ns, node, flight),
            (Entity::Gateway(gateway), false) => self.come_in(at_ns, gateway, flight),
        }
    }

    pub(super) fn arrive(&mut self, at_ns: u64, node: usize, flight: Flight) {
        if !self.is_enabled(node) {
            self.stats.disabled += 1;
            return self.recycle(flight.bytes);
        }
        // What was under way when the network was parted does not arrive.
        if self.parted(flight.origin, self.node_sides[node]) {
            self.stats.partitioned += 1;
            return self.recycle(flight.bytes);
        }
        self.stats.delivered += flight.on_the_wire().0;
        let Flight { bytes, header, offload, .. } = flight;
        self.captures.take(node, self.now_ns, &bytes);
        self.outputs.push_back(Output { node: NodeId(node), bytes, header, offload, due_ns: at_ns });
    }

    /// A packet is in a realm, sent by `from`; none is a router of the realm itself.
    fn enter(&mut self, at_ns: u64, realm: usize, from: Option<Entity>, flight: Flight) {
        let dst = flight.header.dst;
        if dst.is_multicast() || dst == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return self.spread(at_ns, realm, from, flight);
        }
        let Some(target) = self.topology.realms[realm].addresses.get(&dst).copied() else {
            return match self.topology.realms[realm].gateway {
                // Who came in from outside does not go out again: nobody inside has the address.
                Some(gateway) if from != Some(Entity::Gateway(gateway)) => self.go_out(at_ns, gateway, flight),
                _ => {
                    self.stats.unroutable += 1;
                    self.refuse(at_ns, realm, IcmpError::HostUnreachable, flight)
                }
            };
        };
        if realm != 0 {
            return self.descend(at_ns, realm, target, flight);
        }
        if let (Some(Entity::Gateway(sender)), Entity::Gateway(receiver)) = (from, target)
            && sender == receiver
        {
            return self.descend(at_ns, realm, target, flight);
        }
        let mut flight = flight;
        if !lower_hop_limit(&mut flight.bytes, &mut flight.header) {
            self.stats.hop_limit += 1;
            return self.refuse(at_ns, realm, IcmpError::HopLimit, flight);
        }
        let to = self.region_of(target);
        let from = from.map_or(to, |from| self.region_of(from));
        if let Some(node) = self.elsewhere(target) {
            return self.send_away(at_ns, node, flight);
        }
        self.offer(at_ns, self.between(from, to), flight);
    }

    /// Sends a packet down to who has its destination in a realm.
    fn descend(&mut self, at_ns: u64, realm: usize, target: Entity, flight: Flight) {
        let (side, access) = match target {
            Entity::Node(node) => (self.node_sides[node], &self.topology.nodes[node].access),
            Entity::Gateway(gateway) => (self.gateway_sides[gateway], &self.topology.gateways[gateway].access),
        };
        let mtu = access.mtu;
        if self.parted(flight.origin, side) {
            self.stats.partitioned += 1;
            return self.recycle(flight.bytes);
        }
        self.fit(at_ns, realm, mtu, self.down(target), flight);
    }

    /// Puts a packet on a line that takes packets up to a size, in fragments if it must.
    fn fit(&mut self, at_ns: u64, realm: usize, mtu: u16, line: usize, mut flight: Flight) {
        if flight.offload.largest(&flight.bytes, &flight.header) <= usize::from(mtu) {
            return self.offer(at_ns, line, flight);
        }
        if flight.offload.segment.is_some() && !flight.header.dont_fragment {
            for flight in self.split(flight) {
                self.fit(at_ns, realm, mtu, line, flight);
            }
            return;
        }
        flight.offload.complete(&mut flight.bytes, &mut flight.header);
        let Some(parts) = fragments(&flight.bytes, &flight.header, usize::from(mtu)) else {
            self.stats.too_big += 1;
            return self.refuse(at_ns, realm, IcmpError::TooBig { mtu }, flight);
        };
        for bytes in parts {
            match Header::parse(&bytes) {
                Ok(header) => self.offer(at_ns, line, Flight { bytes, header, ..flight }),
                Err(_) => self.stats.malformed += 1,
            }
        }
        self.recycle(flight.bytes);
    }

    /// A packet leaves the inside of a gateway.
    fn go_out(&mut self, at_ns: u64, gateway: usize, mut flight: Flight) {
        let inner = self.topology.gateways[gateway].inner;
        if !lower_hop_limit(&mut flight.bytes, &mut flight.header) {
            self.stats.hop_limit += 1;
            return self.refuse(at_ns, inner, IcmpError::HopLimit, flight);
        }
        let access = &self.topology.gateways[gateway].access;
        let (mtu, outer) = (access.mtu, self.topology.gateways[gateway].outer);
        let largest = flight.offload.largest(&flight.bytes, &flight.header);
        if largest > usize::from(mtu) && flight.header.dont_fragment {
            // Said before translation, so that the sender knows its packet again.
            self.stats.too_big += 1;
            return self.refuse(at_ns, inner, IcmpError::TooBig { mtu }, flight);
        }
        if let Err(refusal) = self.nats[gateway].outbound(at_ns, &mut flight.bytes, &mut flight.header) {
            return self.turn_away(at_ns, inner, refusal, flight);
        }
        // To one's own gateway and back in: no link is in between.
        let own = self.topology.realms[outer].addresses.get(&flight.header.dst) == Some(&Entity::Gateway(gateway));
        if !own {
            self.fit(at_ns, inner, mtu, self.up(Entity::Gateway(gateway)), flight);
        } else if self.nats[gateway].config().hairpin {
            self.come_in(at_ns, gateway, flight);
        } else {
            self.stats.filtered += 1;
            self.recycle(flight.bytes);
        }
    }

    /// A packet comes to a gateway from outside.
    fn come_in(&mut self, at_ns: u64, gateway: usize, mut flight: Flight) {
        let outer = self.topology.gateways[gateway].outer;
        if !lower_hop_limit(&mut flight.bytes, &mut flight.header) {
            self.stats.hop_limit += 1;
            return self.refuse(at_ns, outer, IcmpError::HopLimit, flight);
        }
        if let Err(refusal) = self.nats[gateway].inbound(at_ns, &mut flight.bytes, &mut flight.header) {
            return self.turn_away(at_ns, outer, refusal, flight);
        }
        self.enter(at_ns, self.topology.gateways[gateway].inner, Some(Entity::Gateway(gateway)), flight);
    }

    /// Counts why a gateway does not let a packet pass. Who is kept out is not told: a closed door is silent. Who
    /// wants out and cannot is.
    fn turn_away(&mut self, at_ns: u64, realm: usize, refusal: Refusal, flight: Flight) {
        match refusal {
            Refusal::Filtered => self.stats.filtered += 1,
            Refusal::Exhausted => self.stats.exhausted += 1,
            Refusal::Untranslatable => self.stats.untranslatable += 1,
        }
        match refusal {
            Refusal::Filtered => self.recycle(flight.bytes),
            Refusal::Exhausted | Refusal::Untranslatable => {
                self.refuse(at_ns, realm, IcmpError::Prohibited, flight);
            }
        }
    }

    /// Copies a packet to every other node of a LAN; elsewhere it ends.
    fn spread(&mut self, at_ns: u64, realm: usize, from: Option<Entity>, flight: Flight) {
        let lan = self.topology.realms[realm].gateway.is_some();
        if !lan || matches!(from, Some(Entity::Gateway(_))) {
            self.stats.multicast += 1;
            return self.recycle(flight.bytes);
        }
        for i in 0..self.topology.realms[realm].nodes.len() {
            let node = self.topology.realms[realm].nodes[i];
            if from == Some(Entity::Node(node)) {
                continue;
            }
            let copy = self.copy(&flight);
            self.descend(at_ns, realm, Entity::Node(node), copy);
        }
        self.recycle(flight.bytes);
    }

    /// Ends a packet, and tells its sender why where one may be told.
    fn refuse(&mut self, at_ns: u64, realm: usize, error: IcmpError, flight: Flight) {
        if let Some(told) = self.error_about(error, flight) {
            self.enter(at_ns, realm, None, told);
        }
    }

    /// Ends a packet, and makes what a router says of it; none where nobody may be told.
    pub(super) fn error_about(&mut self, error: IcmpError, flight: Flight) -> Option<Flight> {
        let from = match flight.header.src {
            IpAddr::V4(_) => IpAddr::V4(self.config.router_v4),
            IpAddr::V6(_) => IpAddr::V6(self.config.router_v6),
        };
        let mut bytes = self.buffer(0);
        let later = flight.header.fragment.is_some_and(|Fragment { offset, .. }| offset > 0);
        // Only nodes are told: an error about what a router said would be one about an error.
        let told = flight.origin.is_some() && !later && error.write(&flight.bytes, from, &mut bytes);
        self.recycle(flight.bytes);
        match Header::parse(&bytes) {
            Ok(header) if told => {
                self.stats.icmp_errors += 1;
                Some(Flight { bytes, header, offload: Offload::default(), origin: None })
            }
            _ => {
                self.recycle(bytes);
                None
            }
        }
    }

    fn parted(&self, origin: Option<usize>, side: Option<u8>) -> bool {
        let from = origin.and_then(|node| self.node_sides[node]);
        matches!((from, side), (Some(from), Some(to)) if from != to)
    }

    pub(super) fn region_of(&self, entity: Entity) -> u16 {
        match entity {
            Entity::Node(node) => self.topology.nodes[node].access.region,
            Entity::Gateway(gateway) => self.topology.gateways[gateway].access.region,
        }
    }
}
