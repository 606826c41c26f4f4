//! [`Sockets`] over a model of links.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use iptl_dag::model::{CellNetworkUse, InstanceId, LinkUse, NetworkUse};

use super::parts::Parts;
use super::stack::Stack;
use super::udp::Udp;
use super::{Host, Hosts, Kind};
use crate::capture::Captured;
use crate::directory::v6_of;
use crate::draw::mix;
use crate::engine::{LinkStats, between_regions};
use crate::faults::{Faults, Happened};
use crate::ports::PortTable;
use crate::sockets::Sockets;
use crate::switch::{Datagram, Half, InstanceStats, NetError, Read, SocketId};
use crate::topology::Addrs;
use crate::wish::{Wish, WishError};

impl Sockets for Hosts {
    fn advance(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        self.begun_ns.get_or_insert(now_ns);
        while let (Some(faults), Some(start_ns)) = (&mut self.faults, self.start_ns)
            && let Some(happened) = faults.advance(start_ns, self.now_ns, &mut self.engine)
        {
            happened.moved.iter().for_each(|moved| self.move_host(moved));
            self.happened.push_back(happened);
        }
        self.engine.handle_timeout(self.now_ns);
        while let Some((at_ns, me)) = self.timers.first().copied() {
            if at_ns > self.now_ns {
                break;
            }
            self.timers.remove(&(at_ns, me));
            if let Some(host) = self.hosts.get_mut(&me) {
                host.timer = None;
            }
            self.dirty.insert(me);
        }
        self.settle();
    }

    fn poll_timeout(&self) -> Option<u64> {
        let timer = self.timers.first().map(|(at_ns, _)| *at_ns);
        let faults = self.faults.as_ref().and_then(Faults::poll_timeout).zip(self.start_ns);
        let fault = faults.map(|(due_ns, start_ns)| start_ns.saturating_add(due_ns));
        [self.engine.poll_timeout(), timer, fault].into_iter().flatten().min()
    }

    fn start(&mut self) {
        self.start_ns.get_or_insert(self.now_ns);
    }

    fn poll_fault(&mut self) -> Option<Happened> {
        self.happened.pop_front()
    }

    fn capture(&mut self, id: &InstanceId, limit: u64, ahead_ns: u64) -> bool {
        let node = self.nodes.get(id).copied();
        node.inspect(|node| self.engine.capture(*node, limit, ahead_ns)).is_some()
    }

    fn poll_captured(&mut self) -> Option<(InstanceId, Captured)> {
        let captured = self.engine.poll_captured()?;
        // Nodes have the numbers of instances.
        Some((self.directory.at(captured.node.index() as u64)?, captured))
    }

    fn shape(&mut self, me: Ipv4Addr, wish: &Wish) -> Result<(), WishError> {
        let node = self.hosts.get(&me).map(|host| host.node).ok_or(WishError::Unknown)?;
        self.engine.shape(node, wish)
    }

    fn network_use(&self, me: Ipv4Addr) -> Option<NetworkUse> {
        let host = self.hosts.get(&me)?;
        let (up, down) = self.engine.links_of(host.node);
        let own = self.engine.own_use(host.node);
        let lost_by_lab = up.iter().chain(&down).chain(&own).map(|link| link.dropped_by_lab).sum();
        let links = |links: Vec<LinkStats>| links.into_iter().map(LinkUse::from).collect();
        let (across, lateness, stats) = (self.engine.across(), self.engine.lateness(), self.engine.stats());
        Some(NetworkUse {
            up: links(up),
            down: links(down),
            own: own.map(LinkUse::from),
            spoofed: self.engine.spoofed_by(host.node).unwrap_or_default(),
            lost_by_lab,
            crashes: host.crashes,
            egress: BTreeMap::new(),
            cell: CellNetworkUse {
                lateness: lateness.counts().to_vec(),
                max_late_ns: lateness.max_ns(),
                relayed: stats.relayed,
                overdue: if self.described { stats.overdue } else { 0 },
                max_overdue_ns: if self.described { stats.max_overdue_ns } else { 0 },
                lost_by_lab: across.dropped_by_lab + self.leaving.crowded_out,
                across: across.into(),
                between: between_regions(&self.engine.regions()),
                // Whoever calls does its work.
                cpu_us: None,
                wall_us: (self.now_ns - self.begun_ns.unwrap_or(self.now_ns)) / 1_000,
                realtime: false,
            },
        })
    }

    fn add_instance(&mut self, id: &InstanceId) -> Option<Ipv4Addr> {
        let me = self.directory.addr(id)?;
        let node = *self.nodes.get(id)?;
        let (addrs, mtu) = (self.engine.addrs(node)?, self.engine.mtu(node)?);
        let seed = mix(self.seed, u64::from(u32::from(me)));
        let stack = Stack::new(addrs, mtu, seed, self.now_ns);
        // What an earlier life had not said yet stays unsaid.
        if let Some(at_ns) = self.hosts.get_mut(&me).and_then(|before| before.timer.take()) {
            self.timers.remove(&(at_ns, me));
        }
        let before = self.hosts.get(&me);
        let stats = before.map(|host| host.stats).unwrap_or_default();
        let crashes = before.map_or(0, |host| host.crashes + 1);
        self.by_node.insert(node, me);
        self.engine.set_away(node, false);
        self.hosts.insert(
            me,
            Host {
                node,
                addrs,
                mtu,
                alive: true,
                stack,
                ports: PortTable::default(),
                sockets: BTreeSet::new(),
                listeners: BTreeSet::new(),
                closing: Vec::new(),
                parts: Parts::default(),
                next_id: 0,
                timer: None,
                stats,
                crashes,
            },
        );
        Some(me)
    }

    fn own_addrs(&self, me: Ipv4Addr) -> Addrs {
        self.hosts.get(&me).map(|host| host.addrs).unwrap_or_default()
    }

    fn resolve(&self, name: &str) -> Option<Addrs> {
        let me = self.directory.resolve(name)?;
        let (node, v4, v6) = (self.nodes.get(&self.directory.instance(me)?)?, Some(me), Some(v6_of(me)));
        let has = self.engine.addrs(*node)?;
        let known = self.moved.get(&me).copied().unwrap_or(Addrs { v4, v6 });
        Some(Addrs { v4: known.v4.filter(|_| has.v4.is_some()), v6: known.v6.filter(|_| has.v6.is_some()) })
    }

    fn remove_instance(&mut self, me: Ipv4Addr) {
        let Some(host) = self.hosts.get(&me) else { return };
        let sockets: Vec<SocketId> = host.sockets.iter().copied().collect();
        for id in sockets {
            self.retire(id, false);
        }
        // Connections that it has closed still send what was written to them, as those of a process that ended do.
        if let Some(host) = self.hosts.get_mut(&me) {
            host.alive = false;
        }
        self.dirty.insert(me);
        self.settle();
    }

    fn cut(&mut self, _: &[Ipv4Addr]) {}

    fn handle_packet(&mut self, bytes: Bytes) -> bool {
        self.come_in(&bytes)
    }

    fn poll_packet(&mut self) -> Option<(Ipv4Addr, Vec<u8>)> {
        self.leave()
    }

    fn poll_ready(&mut self) -> Option<SocketId> {
        self.settle();
        while let Some(id) = self.ready.pop_front() {
            if let Ok(socket) = self.socket_mut(id) {
                socket.announced = false;
                return Some(id);
            }
        }
        None
    }

    fn close(&mut self, id: SocketId) {
        self.retire(id, true);
    }

    fn local_addr(&self, id: SocketId) -> Result<Option<SocketAddr>, NetError> {
        Ok(self.socket(id)?.local)
    }

    fn peer_addr(&self, id: SocketId) -> Result<SocketAddr, NetError> {
        match &self.socket(id)?.kind {
            Kind::Stream(stream) => Ok(stream.peer),
            Kind::Udp(udp) => udp.peer.ok_or(NetError::InvalidState),
            Kind::Idle | Kind::Listening(_) | Kind::Connecting { .. } | Kind::Failed(_) => Err(NetError::InvalidState),
        }
    }

    fn is_readable(&self, id: SocketId) -> bool {
        self.socket(id).map_or(true, |socket| self.readable(socket))
    }

    fn is_writable(&mut self, id: SocketId) -> bool {
        self.socket(id).map_or(true, |socket| self.writable(socket))
    }

    fn stats(&self, me: Ipv4Addr) -> InstanceStats {
        match self.hosts.get(&me) {
            Some(host) => {
                let sockets = u32::try_from(host.sockets.len()).unwrap_or(u32::MAX);
                InstanceStats { sockets, ..host.stats }
            }
            None => InstanceStats::default(),
        }
    }

    fn udp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError> {
        self.open(me, Kind::Udp(Udp::default()))
    }

    fn udp_bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError> {
        self.udp(id)?;
        self.bind(id, addr)
    }

    fn udp_connect(&mut self, id: SocketId, peer: Option<SocketAddr>) -> Result<(), NetError> {
        self.udp(id)?.peer = peer;
        Ok(())
    }

    fn udp_send(&mut self, id: SocketId, dst: Option<SocketAddr>, payload: Bytes) -> Result<(), NetError> {
        self.send_datagram(id, dst, &payload)
    }

    fn udp_recv(&mut self, id: SocketId) -> Result<Option<Datagram>, NetError> {
        Ok(self.udp(id)?.pop())
    }

    fn tcp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError> {
        self.open(me, Kind::Idle)
    }

    fn tcp_bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError> {
        match self.socket(id)?.kind {
            Kind::Idle => self.bind(id, addr),
            Kind::Udp(_) | Kind::Listening(_) | Kind::Connecting { .. } | Kind::Failed(_) | Kind::Stream(_) => {
                Err(NetError::InvalidState)
            }
        }
    }

    fn tcp_listen(&mut self, id: SocketId, backlog: u32) -> Result<(), NetError> {
        self.listen(id, backlog)
    }

    fn tcp_accept(&mut self, id: SocketId) -> Result<Option<(SocketId, SocketAddr)>, NetError> {
        self.accept(id)
    }

    fn tcp_connect(&mut self, id: SocketId, dst: SocketAddr) -> Result<(), NetError> {
        self.connect(id, dst)
    }

    fn tcp_connected(&self, id: SocketId) -> Result<bool, NetError> {
        match &self.socket(id)?.kind {
            Kind::Stream(_) => Ok(true),
            Kind::Connecting { .. } => Ok(false),
            Kind::Failed(error) => Err(error.clone()),
            Kind::Udp(_) | Kind::Idle | Kind::Listening(_) => Err(NetError::InvalidState),
        }
    }

    fn tcp_read(&mut self, id: SocketId, max: usize) -> Result<Read, NetError> {
        self.read(id, max)
    }

    fn tcp_room(&mut self, id: SocketId) -> Result<usize, NetError> {
        self.room(id)
    }

    fn tcp_write(&mut self, id: SocketId, bytes: Bytes) -> Result<usize, NetError> {
        self.write(id, &bytes)
    }

    fn tcp_shutdown(&mut self, id: SocketId, half: Half) -> Result<(), NetError> {
        self.shutdown(id, half)
    }
}
