//! Cells and an orchestrator with links between them that a test can hold up, repeat and break.

use std::collections::{BTreeMap, VecDeque};

use iptl_dag::PeerId;
use iptl_dag::model::InstanceId;
use iptl_sync::{CellSync, Record, Reply, RunSync, SyncOp};
use iptl_wire::frame;
use iptl_wire::session::{MAX_MESSAGE_SIZE, Signallers, SyncDown, SyncUp};

pub(crate) struct World {
    pub(crate) run: RunSync,
    pub(crate) cells: Vec<Cell>,
    /// Messages in all.
    pub(crate) ups: usize,
    pub(crate) downs: usize,
    /// Instance, call, answer: as they came.
    pub(crate) replies: Vec<(InstanceId, u64, Reply)>,
}

pub(crate) struct Cell {
    pub(crate) peer: PeerId,
    pub(crate) instances: u32,
    pub(crate) sync: CellSync,
    /// What was written down for another life of the lablet.
    pub(crate) memory: Vec<Record>,
    pub(crate) connected: bool,
    pub(crate) up: VecDeque<SyncUp>,
    pub(crate) down: VecDeque<SyncDown>,
}

pub(crate) fn peer(n: usize) -> PeerId {
    PeerId::from_ed25519(&[n as u8; 32])
}

/// An instance: its group is its cell.
pub(crate) fn instance(cell: usize, index: u32) -> InstanceId {
    InstanceId { group: format!("g{cell}"), index }
}

pub(crate) fn signal(state: &str) -> SyncOp {
    SyncOp::Signal { state: state.into() }
}

/// What a cell says of some of its instances, which signalled a state so many times each.
pub(crate) fn signalled(state: &str, start: u32, count: u32, times: u64) -> BTreeMap<String, Vec<Signallers>> {
    [(state.to_owned(), vec![Signallers { group: "g".to_owned(), start, count, times }])].into()
}

pub(crate) fn barrier(state: &str, target: u64) -> SyncOp {
    SyncOp::Barrier { state: state.into(), target }
}

pub(crate) fn signal_and_wait(state: &str, target: u64) -> SyncOp {
    SyncOp::SignalAndWait { state: state.into(), target }
}

pub(crate) fn publish(topic: &str, payload: impl Into<Vec<u8>>) -> SyncOp {
    SyncOp::Publish { topic: topic.into(), payload: payload.into().into() }
}

pub(crate) fn subscribe(topic: &str) -> SyncOp {
    SyncOp::Subscribe { topic: topic.into() }
}

impl World {
    /// Makes connected cells with so many instances each.
    pub(crate) fn new(sizes: &[u32]) -> World {
        let cells: Vec<Cell> = sizes
            .iter()
            .enumerate()
            .map(|(n, size)| Cell {
                peer: peer(n),
                instances: *size,
                sync: CellSync::remembering((0..*size).map(|index| instance(n, index)), []),
                memory: Vec::new(),
                connected: false,
                up: VecDeque::new(),
                down: VecDeque::new(),
            })
            .collect();
        let run = RunSync::new(cells.iter().map(|cell| (cell.peer.clone(), u64::from(cell.instances))));
        let mut world = World { run, cells, ups: 0, downs: 0, replies: Vec::new() };
        for cell in 0..sizes.len() {
            world.connect(cell);
        }
        world
    }

    pub(crate) fn call(&mut self, cell: usize, index: u32, call: u64, op: SyncOp) {
        self.cells[cell].sync.call(&instance(cell, index), call, op);
    }

    pub(crate) fn connect(&mut self, cell: usize) {
        self.disconnect(cell);
        self.cells[cell].connected = true;
        self.cells[cell].sync.session_up();
    }

    /// Breaks a session: what is under way is lost.
    pub(crate) fn disconnect(&mut self, cell: usize) {
        let cell = &mut self.cells[cell];
        cell.connected = false;
        cell.up.clear();
        cell.down.clear();
        cell.sync.session_down();
        self.run.session_down(&cell.peer);
    }

    /// Writes down what a cell says that it must not forget.
    fn write_down(&mut self, cell: usize) {
        let cell = &mut self.cells[cell];
        cell.memory.extend(std::iter::from_fn(|| cell.sync.poll_record()));
    }

    /// Loses the lablet of a cell with all that it did not write down; its instances live on.
    pub(crate) fn restart_lablet(&mut self, n: usize) {
        self.disconnect(n);
        let cell = &mut self.cells[n];
        let instances = (0..cell.instances).map(|index| instance(n, index));
        cell.sync = CellSync::remembering(instances, cell.memory.iter().cloned());
    }

    /// Loses the orchestrator with all that it knew.
    pub(crate) fn restart(&mut self) {
        for cell in 0..self.cells.len() {
            self.disconnect(cell);
        }
        self.run = RunSync::recovering(self.cells.iter().map(|c| (c.peer.clone(), u64::from(c.instances))));
    }

    /// The same where the cell of one lablet is lost.
    pub(crate) fn restart_without(&mut self, lost: usize) {
        self.restart();
        let left = self.cells.iter().enumerate().filter(|(n, _)| *n != lost);
        self.run = RunSync::recovering(left.map(|(_, c)| (c.peer.clone(), u64::from(c.instances))));
    }

    /// Gives a lablet a new cell in the place of the one that it had.
    pub(crate) fn restart_cell(&mut self, n: usize) {
        self.disconnect(n);
        let cell = &mut self.cells[n];
        cell.memory.clear();
        cell.sync = CellSync::remembering((0..cell.instances).map(|index| instance(n, index)), []);
    }

    /// Puts what a cell says on its link.
    pub(crate) fn say_up(&mut self, cell: usize) {
        self.write_down(cell);
        let cell = &mut self.cells[cell];
        while let Some(up) = cell.sync.poll_up() {
            assert!(frame::encode(&up).len() <= MAX_MESSAGE_SIZE);
            self.ups += 1;
            cell.up.push_back(up);
        }
    }

    /// Puts what the orchestrator says on the links.
    pub(crate) fn say_down(&mut self) {
        while let Some((peer, down)) = self.run.poll_down() {
            assert!(frame::encode(&down).len() <= MAX_MESSAGE_SIZE);
            self.downs += 1;
            let cell = self.cells.iter_mut().find(|cell| cell.peer == peer).unwrap();
            if cell.connected {
                cell.down.push_back(down);
            }
        }
    }

    pub(crate) fn hear_up(&mut self, cell: usize, again: bool) {
        let cell = &mut self.cells[cell];
        if let Some(up) = cell.up.pop_front() {
            self.run.handle(&cell.peer, up.clone()).unwrap();
            if again {
                self.run.handle(&cell.peer, up).unwrap();
            }
        }
    }

    pub(crate) fn hear_down(&mut self, cell: usize, again: bool) {
        let cell = &mut self.cells[cell];
        if let Some(down) = cell.down.pop_front() {
            cell.sync.handle(down.clone());
            if again {
                cell.sync.handle(down);
            }
        }
    }

    pub(crate) fn take_replies(&mut self, cell: usize) {
        self.write_down(cell);
        while let Some(reply) = self.cells[cell].sync.poll_reply() {
            self.replies.push(reply);
        }
    }

    /// Carries messages until nobody has anything to say.
    pub(crate) fn settle(&mut self) {
        loop {
            let before = (self.ups, self.downs);
            for cell in 0..self.cells.len() {
                self.say_up(cell);
                while !self.cells[cell].up.is_empty() {
                    self.hear_up(cell, false);
                }
            }
            self.say_down();
            for cell in 0..self.cells.len() {
                while !self.cells[cell].down.is_empty() {
                    self.hear_down(cell, false);
                }
                self.take_replies(cell);
            }
            if before == (self.ups, self.downs) {
                return;
            }
        }
    }

    /// Returns the answers to one call.
    pub(crate) fn answers(&self, cell: usize, index: u32, call: u64) -> Vec<Reply> {
        let id = instance(cell, index);
        self.replies.iter().filter(|(i, c, _)| *i == id && *c == call).map(|(_, _, reply)| reply.clone()).collect()
    }
}
