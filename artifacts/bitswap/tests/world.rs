//! Many nodes, each with a client, a server and a store, on a network that loses, delays, doubles and breaks; some of them
//! hostile. A reference model, which knows nothing of how the cores decide, says what must come of it:
//!
//! * every block that an honest node had at the start, and that the wanter may read, arrives once the network is well;
//! * nothing else arrives, nothing arrives twice, and under each CID come the bytes that it names;
//! * nobody is sent, nor told of, what it may not read;
//! * no honest node holds more than its bounds.
//!
//! Everything is drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iptl_bitswap::{
    Ask, Client, ClientEffect, ClientInput, Fault, Frames, MAX_WANTS_PER_PEER, Message, Payload, Presence, Server,
    ServerEffect, ServerInput, SessionId, frame,
};
use iptl_dag::{Block, Cid, Multihash, PeerId};

use crate::support::{Rng, block_of, entry, peer};

/// The network is bad until then.
const STORM: Duration = Duration::from_secs(60);

/// What is wanted must have come by then.
const END: Duration = Duration::from_secs(600);

/// What a node is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Honest,
    /// Says that it has everything, and sends other bytes.
    Liar,
    /// Says that it has everything, and sends nothing.
    Boaster,
    /// Sends what it has, very slowly.
    Dripper,
    /// Sends wants without end and blocks that nobody asked for.
    Flooder,
}

#[derive(Debug)]
enum Event {
    Arrive {
        from: usize,
        to: usize,
        bytes: Bytes,
    },
    Written {
        node: usize,
        to: usize,
        is_client: bool,
    },
    Looked {
        node: usize,
        input: ServerInput,
    },
    Wake {
        node: usize,
    },
    /// The connection of two nodes breaks.
    Break {
        a: usize,
        b: usize,
    },
    Want {
        node: usize,
        session: SessionId,
        cids: Vec<Cid>,
    },
    /// A peer that was dropped is named again, as the user of a session would do.
    Rejoin {
        node: usize,
        peer: usize,
    },
    /// A hostile node does something.
    Act {
        node: usize,
    },
}

struct Node {
    kind: Kind,
    client: Client,
    server: Server,
    store: BTreeMap<Multihash, Bytes>,
    sessions: BTreeSet<SessionId>,
    delivered: BTreeSet<(SessionId, Cid)>,
    /// Peers that this node dropped for good reason.
    named: BTreeSet<usize>,
    wake: Option<Duration>,
}

struct World {
    rng: Rng,
    now: Duration,
    serial: u64,
    events: BTreeMap<(Duration, u64), Event>,
    nodes: Vec<Node>,
    /// Who may read what; everything else is open to all.
    hidden: BTreeSet<(PeerId, Multihash)>,
    /// When the last message on a link arrives: a stream keeps its order.
    last: BTreeMap<(usize, usize), Duration>,
    blocks: BTreeMap<Multihash, Block>,
    loss_percent: u64,
    /// Wants in one message of a flooder.
    flood: u64,
    is_wanted: BTreeMap<usize, Vec<(SessionId, Cid)>>,
}

fn number(id: &PeerId) -> usize {
    usize::from(id.ed25519().unwrap()[0]) - 1
}

fn name(node: usize) -> PeerId {
    peer(u8::try_from(node).unwrap() + 1)
}

impl World {
    fn new(seed: u64, kinds: &[Kind], blocks: u64, loss_percent: u64) -> World {
        let mut rng = Rng(seed);
        let all: Vec<Block> = (0..blocks)
            .map(|i| {
                let size = if rng.chance(3) { 300_000 } else { 20 + usize::try_from(rng.below(4_000)).unwrap() };
                block_of(seed.wrapping_mul(1_000_003).wrapping_add(i), size)
            })
            .collect();
        let mut hidden = BTreeSet::new();
        let mut stores = vec![BTreeMap::new(); kinds.len()];
        for block in &all {
            let hash = *block.cid().hash();
            for store in &mut stores {
                if rng.chance(30) {
                    store.insert(hash, block.data().clone());
                }
            }
            for node in 0..kinds.len() {
                if rng.chance(10) {
                    hidden.insert((name(node), hash));
                }
            }
        }
        let rule = Arc::new(hidden.clone());
        let nodes = kinds
            .iter()
            .zip(stores)
            .map(|(kind, store)| {
                let rule = rule.clone();
                let visible = move |peer: &PeerId, hash: &Multihash| !rule.contains(&(peer.clone(), *hash));
                Node {
                    kind: *kind,
                    client: Client::new(),
                    server: Server::new(Arc::new(visible)),
                    store,
                    sessions: BTreeSet::new(),
                    delivered: BTreeSet::new(),
                    named: BTreeSet::new(),
                    wake: None,
                }
            })
            .collect();
        World {
            rng,
            now: Duration::ZERO,
            serial: 0,
            events: BTreeMap::new(),
            nodes,
            hidden,
            last: BTreeMap::new(),
            blocks: all.into_iter().map(|block| (*block.cid().hash(), block)).collect(),
            loss_percent,
            flood: 100,
            is_wanted: BTreeMap::new(),
        }
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.serial += 1;
        self.events.insert((time.max(self.now), self.serial), event);
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Draws what everybody wants and what goes wrong, and runs to the end.
    fn run(&mut self) {
        let count = self.nodes.len();
        let all: Vec<Cid> = self.blocks.values().map(|block| *block.cid()).collect();
        for node in 0..count {
            if self.nodes[node].kind != Kind::Honest {
                self.at(Duration::ZERO, Event::Act { node });
                continue;
            }
            for number in 0..1 + self.rng.below(3) {
                let session = SessionId(number);
                let mut left: BTreeSet<Cid> = all.iter().copied().collect();
                left.retain(|cid| !self.nodes[node].store.contains_key(cid.hash()));
                for _ in 0..1 + self.rng.below(3) {
                    let share = 10 + self.rng.below(60);
                    let cids: Vec<Cid> = left.iter().filter(|_| self.rng.chance(share)).copied().collect();
                    left.retain(|cid| !cids.contains(cid));
                    let time = self.rng.millis(0, 30_000);
                    self.is_wanted.entry(node).or_default().extend(cids.iter().map(|cid| (session, *cid)));
                    self.at(time, Event::Want { node, session, cids });
                }
            }
        }
        for _ in 0..self.rng.below(12) {
            let (a, b) = (self.rng.below(count as u64) as usize, self.rng.below(count as u64) as usize);
            let time = self.rng.millis(0, 60_000);
            self.at(time, Event::Break { a, b });
        }
        while let Some(((time, _), event)) = self.events.pop_first() {
            if time > END {
                break;
            }
            self.now = time;
            self.step(event);
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Arrive { from, to, bytes } => self.arrive(from, to, &bytes),
            Event::Written { node, to, is_client: true } => self.client(node, ClientInput::Sent { peer: name(to) }),
            Event::Written { node, to, is_client: false } => self.server(node, ServerInput::Sent { peer: name(to) }),
            Event::Looked { node, input } => self.server(node, input),
            Event::Wake { node } => {
                self.nodes[node].wake = None;
                self.client(node, ClientInput::Timeout);
                self.server(node, ServerInput::Timeout);
            }
            Event::Break { a, b } => {
                for (here, there) in [(a, b), (b, a)] {
                    self.client(here, ClientInput::Gone { peer: name(there) });
                    self.server(here, ServerInput::Gone { peer: name(there) });
                }
            }
            Event::Want { node, session, cids } => {
                let peers = (0..self.nodes.len()).filter(|other| *other != node).map(name).collect();
                self.nodes[node].sessions.insert(session);
                self.client(node, ClientInput::Peers { session, peers });
                self.client(node, ClientInput::Want { session, cids });
            }
            Event::Rejoin { node, peer } => {
                for session in self.nodes[node].sessions.clone() {
                    self.client(node, ClientInput::Peers { session, peers: vec![name(peer)] });
                }
            }
            Event::Act { node } => self.act(node),
        }
    }

    fn client(&mut self, node: usize, input: ClientInput) {
        self.nodes[node].client.handle(self.now, input);
        self.carry_out(node);
    }

    fn server(&mut self, node: usize, input: ServerInput) {
        self.nodes[node].server.handle(self.now, input);
        self.carry_out(node);
    }

    /// Carries out what the cores of a node want, and checks what they keep.
    fn carry_out(&mut self, node: usize) {
        loop {
            if let Some(effect) = self.nodes[node].client.poll_effect() {
                self.client_effect(node, effect);
            } else if let Some(effect) = self.nodes[node].server.poll_effect() {
                self.server_effect(node, effect);
            } else {
                break;
            }
        }
        let here = &self.nodes[node];
        assert!(here.server.wants() <= self.nodes.len() * MAX_WANTS_PER_PEER);
        assert!(here.server.waiting_bytes() <= self.nodes.len() * (3 << 20));
        assert!(here.client.live_wants() <= 3 * 1_024);
        assert!(here.client.known_peers() <= 2 * self.nodes.len());
        let due = [here.client.poll_timeout(), here.server.poll_timeout()].into_iter().flatten().min();
        if let Some(due) = due.filter(|due| here.wake.is_none_or(|wake| *due < wake)) {
            self.nodes[node].wake = Some(due);
            // A timeout that is due already is taken a little later, as a driver would.
            let time = due.max(self.now + Duration::from_millis(1));
            self.at(time, Event::Wake { node });
        }
    }

    fn client_effect(&mut self, node: usize, effect: ClientEffect) {
        match effect {
            ClientEffect::Send { peer, message } => self.send(node, number(&peer), &message, true),
            ClientEffect::Deliver { session, block, from } => {
                let hash = *block.cid().hash();
                assert_eq!(self.blocks[&hash].data(), block.data(), "bytes under a CID that does not name them");
                assert!(!self.hidden.contains(&(name(node), hash)), "{} gave what {node} may not read", number(&from));
                assert!(self.nodes[node].delivered.insert((session, *block.cid())), "delivered twice");
                self.nodes[node].store.insert(hash, block.data().clone());
                self.nodes[node].server.handle(self.now, ServerInput::Arrived { hashes: vec![hash] });
            }
            ClientEffect::Lacking { .. } => {}
            ClientEffect::Drop { peer, fault, .. } => {
                let who = number(&peer);
                if fault.is_lie() {
                    assert_ne!(self.nodes[who].kind, Kind::Honest, "an honest node is called a liar: {fault}");
                    self.nodes[node].named.insert(who);
                } else {
                    let wait = self.rng.millis(1_000, 5_000);
                    self.after(wait, Event::Rejoin { node, peer: who });
                }
            }
        }
    }

    fn server_effect(&mut self, node: usize, effect: ServerEffect) {
        match effect {
            ServerEffect::Look { turn, peer, haves, blocks, budget } => {
                let store = &self.nodes[node].store;
                let mut found = Vec::new();
                let mut bytes = 0;
                for hash in &blocks {
                    assert!(!self.hidden.contains(&(peer.clone(), *hash)), "a hidden block is read");
                    if bytes < budget {
                        let data = store.get(hash).cloned();
                        bytes += data.as_ref().map_or(0, Bytes::len);
                        found.push(data);
                    }
                }
                let haves = haves.iter().map(|hash| store.contains_key(hash)).collect();
                let wait = self.rng.millis(0, 20);
                self.after(wait, Event::Looked { node, input: ServerInput::Looked { turn, haves, blocks: found } });
            }
            ServerEffect::Send { peer, message } => {
                for presence in message.presences.iter().filter(|presence| presence.is_here) {
                    assert!(!self.hidden.contains(&(peer.clone(), *presence.cid.hash())), "told of what is hidden");
                }
                self.send(node, number(&peer), &message, false);
            }
            ServerEffect::Excess { peer, .. } => {
                let who = number(&peer);
                assert_eq!(self.nodes[who].kind, Kind::Flooder, "{who} is said to want too much");
            }
            ServerEffect::Drop { peer, fault } => {
                let who = number(&peer);
                let is_flood = matches!(fault, Fault::Flood { .. });
                assert!(!is_flood || self.nodes[who].kind == Kind::Flooder, "{who} is taken for a flooder");
                self.nodes[node].named.insert(who);
            }
        }
    }

    /// Puts a message on a link: it is written, and arrives after those before it, or not at all.
    fn send(&mut self, from: usize, to: usize, message: &Message, is_client: bool) {
        let is_storm = self.now < STORM;
        let write = self.rng.millis(0, 5);
        self.after(write, Event::Written { node: from, to, is_client });
        if is_storm && self.rng.chance(self.loss_percent) {
            return;
        }
        let delay = if is_storm && self.rng.chance(5) { self.rng.millis(0, 8_000) } else { self.rng.millis(1, 100) };
        let last = self.last.get(&(from, to)).copied().unwrap_or_default();
        let time = (self.now + write + delay).max(last);
        self.last.insert((from, to), time);
        let bytes = frame(message);
        if is_storm && self.rng.chance(2) {
            self.at(time, Event::Arrive { from, to, bytes: bytes.clone() });
        }
        self.at(time, Event::Arrive { from, to, bytes });
    }

    fn arrive(&mut self, from: usize, to: usize, bytes: &Bytes) {
        let mut frames = Frames::default();
        frames.buffer().extend_from_slice(bytes);
        let message = Message::decode(&frames.pop().unwrap().unwrap()).unwrap();
        if self.nodes[to].kind != Kind::Honest {
            return self.answer_hostile(to, from, &message);
        }
        let mut incoming = message.check();
        for block in &incoming.blocks {
            let is_hidden = self.hidden.contains(&(name(to), *block.cid().hash()));
            assert!(!is_hidden || self.nodes[from].kind != Kind::Honest, "{from} sent what {to} may not read");
        }
        let entries = std::mem::take(&mut incoming.entries);
        let (full, skipped) = (incoming.full, incoming.skipped);
        if full || !entries.is_empty() || skipped > 0 {
            self.server(to, ServerInput::Wants { peer: name(from), full, entries, skipped });
        }
        if !(incoming.blocks.is_empty() && incoming.presences.is_empty() && incoming.unverifiable == 0) {
            self.client(to, ClientInput::Received { peer: name(from), incoming });
        }
    }

    fn answer_hostile(&mut self, node: usize, to: usize, message: &Message) {
        let mut answer = Message::default();
        for wanted in &message.entries {
            let hash = wanted.cid.hash();
            match (self.nodes[node].kind, wanted.ask) {
                (Kind::Honest | Kind::Flooder, _) | (_, Ask::Cancel) | (Kind::Boaster, Ask::Block) => {}
                (Kind::Liar | Kind::Boaster, Ask::Have) => {
                    answer.presences.push(Presence { cid: wanted.cid, is_here: true });
                }
                (Kind::Liar, Ask::Block) => {
                    let data = self.rng.next().to_le_bytes().to_vec().into();
                    answer.payload.push(Payload::new(&wanted.cid, data));
                }
                (Kind::Dripper, ask) => {
                    let is_hidden = self.hidden.contains(&(name(to), *hash));
                    let Some(data) = self.nodes[node].store.get(hash).filter(|_| !is_hidden).cloned() else { continue };
                    if ask == Ask::Have {
                        answer.presences.push(Presence { cid: wanted.cid, is_here: true });
                        continue;
                    }
                    let payload = vec![Payload::new(&wanted.cid, data)];
                    let drop = Message { payload, ..Message::default() };
                    let last = self.last.get(&(node, to)).copied().unwrap_or_default();
                    let time = last.max(self.now) + Duration::from_secs(4);
                    self.last.insert((node, to), time);
                    self.at(time, Event::Arrive { from: node, to, bytes: frame(&drop) });
                }
            }
        }
        if !answer.is_empty() {
            self.send(node, to, &answer, true);
        }
    }

    /// A flooder floods.
    fn act(&mut self, node: usize) {
        if self.nodes[node].kind != Kind::Flooder {
            return;
        }
        for to in (0..self.nodes.len()).filter(|to| *to != node) {
            let noise = self.rng.next();
            let entries =
                (0..self.flood).map(|i| entry(block_of(noise.wrapping_add(i), 24).cid(), Ask::Block)).collect();
            let payload = vec![Payload::new(block_of(noise, 30).cid(), block_of(noise, 30).data().clone())];
            self.send(node, to, &Message { entries, payload, ..Message::default() }, true);
        }
        if self.now < STORM {
            self.after(Duration::from_millis(800), Event::Act { node });
        }
    }

    /// Asks the model.
    fn check(&self) {
        let honest = || self.nodes.iter().enumerate().filter(|(_, node)| node.kind == Kind::Honest);
        for (number, node) in honest() {
            for (session, cid) in self.is_wanted.get(&number).into_iter().flatten() {
                let hash = *cid.hash();
                let may_read = !self.hidden.contains(&(name(number), hash));
                let somebody = honest().any(|(_, other)| other.store.contains_key(&hash));
                let came = node.delivered.contains(&(*session, *cid));
                assert!(came || !(may_read && somebody), "{number} did not get {cid}");
            }
            for (session, cid) in &node.delivered {
                assert!(self.is_wanted[&number].contains(&(*session, *cid)), "delivered and not wanted");
            }
        }
    }
}

fn check(seed: u64, kinds: &[Kind], blocks: u64, loss_percent: u64) {
    run(World::new(seed, kinds, blocks, loss_percent));
}

fn run(mut world: World) -> World {
    world.run();
    world.check();
    world
}

#[test]
fn honest_nodes_get_all_that_they_may_read_on_a_bad_network() {
    for seed in 0..24 {
        let nodes = 2 + usize::try_from(seed % 5).unwrap();
        check(seed, &vec![Kind::Honest; nodes], 60, [0, 2, 10, 30][seed as usize % 4]);
    }
}

#[test]
fn many_blocks_come_through_windows_and_queues() {
    check(100, &[Kind::Honest; 3], 2_000, 1);
}

#[test]
fn hostile_nodes_cost_honest_ones_nothing_but_time() {
    let hostile = [Kind::Liar, Kind::Boaster, Kind::Dripper, Kind::Flooder];
    for seed in 200..220 {
        let mut kinds = vec![Kind::Honest; 3];
        let mut rng = Rng(seed);
        kinds.extend((0..1 + rng.below(4)).map(|_| hostile[usize::try_from(rng.below(4)).unwrap()]));
        check(seed, &kinds, 60, [0, 5, 20][seed as usize % 3]);
    }
}

#[test]
fn liars_and_flooders_are_named() {
    for seed in 300..302 {
        let kinds = [Kind::Honest, Kind::Honest, Kind::Liar, Kind::Flooder];
        let world = run(World { flood: 2_000, ..World::new(seed, &kinds, 80, 0) });
        for node in &world.nodes[..2] {
            assert!(node.named.contains(&3), "seed {seed}: the flooder is not named");
        }
        assert!(world.nodes[..2].iter().any(|node| node.named.contains(&2)), "seed {seed}: the liar is not named");
    }
}
