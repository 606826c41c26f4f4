//! Random operations on two cells joined by queues that keep the order of each connection and nothing else, held
//! against a model: what is read is a prefix of what was written, all of it where nobody broke the connection off.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use iptl_labnet::{Half, Limits, NetError, Packet, Read, SocketId, Switch, WINDOW_SIZE, v4_of};

use crate::directory::{directory, id};
use crate::rng::Rng;

/// Instances 0 to 2 are in the first cell, 3 to 5 in the second.
const INSTANCES: u32 = 6;
const PORT: u16 = 80;

/// Name of a connection: its client's instance and address, and its server's instance.
type Name = (u32, SocketAddr, u32);

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    written: u64,
    read: u64,
    /// Closed or shut down by its writer: the reader must see everything, then the end.
    ended: bool,
    /// Broken off by its writer or no longer wanted by its reader: a prefix may be all that arrives.
    broken: bool,
}

struct End {
    instance: u32,
    socket: SocketId,
    name: Name,
    client: bool,
    /// Whether it was readable and writable when last looked at.
    could: (bool, bool),
}

struct World {
    rng: Rng,
    cells: [Switch; 2],
    /// Packets under way, by receiving cell and connection.
    links: BTreeMap<(usize, SocketAddr, SocketAddr), VecDeque<Bytes>>,
    listeners: Vec<(u32, SocketId)>,
    ends: Vec<End>,
    /// By name and whether the client writes.
    directions: BTreeMap<(Name, bool), Direction>,
}

fn cell(instance: u32) -> usize {
    usize::from(instance >= INSTANCES / 2)
}

/// The byte at an offset of a direction.
fn byte(name: &Name, client: bool, offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(31) ^ (offset >> 8) ^ u64::from(name.1.port()) ^ u64::from(name.2) << 3;
    (mixed as u8).wrapping_add(u8::from(client))
}

impl World {
    fn new(seed: u64) -> World {
        let directory = Arc::new(directory(&[("g", INSTANCES)]));
        let mut cells = [0, 1].map(|_| Switch::new(directory.clone(), Limits::default()));
        let mut listeners = Vec::new();
        for instance in 0..INSTANCES {
            let switch = &mut cells[cell(instance)];
            let me = switch.add_instance(&id("g", instance)).unwrap();
            let listener = switch.tcp_socket(me).unwrap();
            switch.tcp_bind(listener, SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))).unwrap();
            switch.tcp_listen(listener, 3).unwrap();
            listeners.push((instance, listener));
        }
        World {
            rng: Rng(seed),
            cells,
            links: BTreeMap::new(),
            listeners,
            ends: Vec::new(),
            directions: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..6 => self.connect(),
            6..12 => {
                let (instance, listener) = self.listeners[self.rng.below(self.listeners.len())];
                self.accept(instance, listener);
            }
            12..35 => self.with_end(World::write),
            35..65 => self.with_end(|world, at| {
                let max = 1 + world.rng.below(100_000);
                world.read(at, max);
            }),
            65..67 => self.with_end(|world, at| world.shutdown(at)),
            67..68 => self.with_end(|world, at| world.close(at, true)),
            68..69 if self.rng.below(3) == 0 => self.with_end(|world, at| world.close(at, false)),
            _ => self.deliver_one(),
        }
        self.collect();
    }

    fn with_end(&mut self, act: impl FnOnce(&mut World, usize)) {
        if !self.ends.is_empty() {
            let at = self.rng.below(self.ends.len());
            act(self, at);
        }
    }

    fn connect(&mut self) {
        let from = self.rng.below(INSTANCES as usize) as u32;
        let to = self.rng.below(INSTANCES as usize) as u32;
        let switch = &mut self.cells[cell(from)];
        let me = switch.directory().addr(&id("g", from)).unwrap();
        let there = switch.directory().addr(&id("g", to)).unwrap();
        let dst = if from == to { Ipv4Addr::LOCALHOST } else { there };
        let socket = switch.tcp_socket(me).unwrap();
        switch.tcp_connect(socket, SocketAddr::from((dst, PORT))).unwrap();
        let name = (from, switch.local_addr(socket).unwrap().unwrap(), to);
        self.directions.insert((name, true), Direction::default());
        self.directions.insert((name, false), Direction::default());
        self.ends.push(End { instance: from, socket, name, client: true, could: (true, true) });
    }

    fn accept(&mut self, instance: u32, listener: SocketId) {
        let switch = &mut self.cells[cell(instance)];
        if let Some((socket, peer)) = switch.tcp_accept(listener).unwrap() {
            let client = match switch.directory().instance(v4_of(peer.ip()).unwrap()) {
                Some(client) => client.index,
                None => instance,
            };
            self.ends.push(End {
                instance,
                socket,
                name: (client, peer, instance),
                client: false,
                could: (true, true),
            });
        }
    }

    fn write(&mut self, at: usize) {
        let end = &self.ends[at];
        let direction = self.directions.get_mut(&(end.name, end.client)).unwrap();
        let size = match self.rng.below(16) {
            0..6 => self.rng.below(20),
            6..15 => self.rng.below(3000),
            _ => self.rng.below(300_000),
        } as u64;
        let bytes: Vec<u8> =
            (direction.written..direction.written + size).map(|n| byte(&end.name, end.client, n)).collect();
        match self.cells[cell(end.instance)].tcp_write(end.socket, bytes.into()) {
            Ok(accepted) => {
                direction.written += accepted as u64;
                let under_way = direction.written - direction.read;
                assert!(direction.broken || under_way <= WINDOW_SIZE as u64, "window exceeded: {under_way}");
            }
            Err(NetError::Shutdown) => assert!(direction.ended),
            Err(NetError::ConnectionReset) => assert!(direction.broken, "{:?} reset for no reason", end.name),
            // Still connecting.
            Err(NetError::InvalidState) => assert!(end.client),
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads once and returns whether there may be more.
    fn read(&mut self, at: usize, max: usize) -> bool {
        let end = &self.ends[at];
        let direction = self.directions.get_mut(&(end.name, !end.client)).unwrap();
        match self.cells[cell(end.instance)].tcp_read(end.socket, max) {
            Ok(Read::Data(bytes)) => {
                assert!(!bytes.is_empty() && bytes.len() <= max);
                for (n, got) in bytes.iter().enumerate() {
                    assert_eq!(*got, byte(&end.name, !end.client, direction.read + n as u64), "order is broken");
                }
                direction.read += bytes.len() as u64;
                assert!(direction.read <= direction.written);
                true
            }
            Ok(Read::Pending) => false,
            Ok(Read::End) => {
                assert!(direction.ended, "an end that nobody made");
                assert!(direction.broken || direction.read == direction.written, "the end came before the last byte");
                false
            }
            Err(NetError::ConnectionReset) => {
                assert!(direction.broken, "{:?} reset for no reason", end.name);
                false
            }
            Err(NetError::InvalidState) => {
                assert!(end.client);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn shutdown(&mut self, at: usize) {
        let end = &self.ends[at];
        if self.cells[cell(end.instance)].tcp_shutdown(end.socket, Half::Write).is_ok() {
            self.directions.get_mut(&(end.name, end.client)).unwrap().ended = true;
            // That writing fails from now on is no news to who has ended it.
            self.ends[at].could.1 = true;
        }
    }

    fn close(&mut self, at: usize, gently: bool) {
        let end = self.ends.swap_remove(at);
        let switch = &mut self.cells[cell(end.instance)];
        let open = matches!(switch.tcp_connected(end.socket), Ok(true));
        if gently {
            switch.close(end.socket);
        } else {
            switch.abort(end.socket);
        }
        let ours = self.directions.get_mut(&(end.name, end.client)).unwrap();
        ours.ended |= gently;
        ours.broken |= !gently || !open;
        self.directions.get_mut(&(end.name, !end.client)).unwrap().broken = true;
    }

    /// Takes what the switches send and checks that nobody is named ready who is gone.
    fn collect(&mut self) {
        for from in 0..2 {
            while let Some((dst, packet)) = self.cells[from].poll_packet() {
                assert_eq!(dst, packet.dst().ip());
                let key = (1 - from, packet.src(), packet.dst());
                self.links.entry(key).or_default().push_back(packet.encode().into());
            }
            let mut announced = BTreeSet::new();
            while let Some(ready) = self.cells[from].poll_ready() {
                self.cells[from].local_addr(ready).unwrap();
                announced.insert(ready);
            }
            // Who waits for something is told when it has become possible.
            for end in self.ends.iter_mut().filter(|end| cell(end.instance) == from) {
                let switch = &mut self.cells[from];
                let can = (switch.is_readable(end.socket), switch.is_writable(end.socket));
                let news = (can.0 && !end.could.0) || (can.1 && !end.could.1);
                assert!(!news || announced.contains(&end.socket), "{:?} sleeps for ever", end.name);
                end.could = can;
            }
        }
    }

    fn deliver_one(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let at = self.rng.below(self.links.len());
        let key = *self.links.keys().nth(at).unwrap();
        let queue = self.links.get_mut(&key).unwrap();
        let bytes = queue.pop_front().unwrap();
        if queue.is_empty() {
            self.links.remove(&key);
        }
        self.cells[key.0].handle_packet(Packet::decode(&bytes).unwrap());
    }

    /// Delivers, accepts and reads everything.
    fn settle(&mut self) {
        loop {
            let mut moved = !self.links.is_empty();
            while !self.links.is_empty() {
                self.deliver_one();
                self.collect();
            }
            for (instance, listener) in self.listeners.clone() {
                let before = self.ends.len();
                self.accept(instance, listener);
                moved |= self.ends.len() > before;
            }
            for at in 0..self.ends.len() {
                moved |= self.read(at, usize::MAX);
            }
            self.collect();
            if !moved && self.links.is_empty() {
                return;
            }
        }
    }

    fn check_all_read(&self) {
        for end in &self.ends {
            let direction = &self.directions[&(end.name, !end.client)];
            assert!(direction.broken || direction.read == direction.written, "{:?} lost bytes", end.name);
        }
    }

    fn check_empty_after_close(&mut self) {
        for at in (0..self.ends.len()).rev() {
            self.close(at, true);
        }
        for (instance, listener) in std::mem::take(&mut self.listeners) {
            self.cells[cell(instance)].close(listener);
        }
        self.collect();
        self.settle();
        for switch in &mut self.cells {
            assert_eq!(switch.sockets(), 0, "sockets are left");
            assert_eq!(switch.dropped().violations, 0);
            assert_eq!(switch.dropped().misrouted + switch.dropped().spoofed, 0);
        }
    }
}

#[test]
fn streams_arrive_complete_and_in_order_on_every_schedule() {
    let mut read = 0;
    for seed in 0..16 {
        let mut world = World::new(seed);
        for _ in 0..1_500 {
            world.step();
        }
        world.settle();
        world.check_all_read();
        read += world.directions.values().map(|direction| direction.read).sum::<u64>();
        world.check_empty_after_close();
    }
    assert!(read > 4 << 20, "the schedules moved too little to say anything: {read} bytes");
}

#[test]
fn a_cell_that_is_lost_leaves_nothing_behind() {
    for seed in 0..20 {
        let mut world = World::new(1_000 + seed);
        for _ in 0..500 {
            world.step();
        }
        for instance in 0..INSTANCES / 2 {
            let addr = world.cells[0].directory().addr(&id("g", instance)).unwrap();
            world.cells[0].remove_instance(addr);
            world.cells[1].lost_peer([addr]);
        }
        assert_eq!(world.cells[0].sockets(), 0);
        for end in world.ends.iter().filter(|end| cell(end.instance) == 1) {
            let other = if end.client { end.name.2 } else { end.name.0 };
            if cell(other) == 0 {
                assert_ne!(world.cells[1].tcp_connected(end.socket), Ok(false), "it waits for nobody");
                assert!(world.cells[1].is_readable(end.socket));
            }
            world.cells[1].close(end.socket);
        }
        for (instance, listener) in &world.listeners {
            world.cells[cell(*instance)].close(*listener);
        }
        assert_eq!(world.cells[1].sockets(), 0);
    }
}
