//! The giving half alone: a driver in a few lines looks blocks up and writes messages, as fast as the test lets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use iptl_bitswap::{
    Ask, Entry, Fault, MAX_MESSAGE_SIZE, MAX_WANTS_PER_PEER, Message, Server, ServerEffect, ServerInput,
};
use iptl_dag::{Block, Cid, Multihash, PeerId};

use crate::support::{block, block_of, cids, entry, peer, seconds};

/// A server over a store in memory.
struct Node {
    server: Server,
    store: BTreeMap<Multihash, Bytes>,
    hidden: Arc<Mutex<BTreeSet<(PeerId, Multihash)>>>,
    now: Duration,
    sent: Vec<(PeerId, Message)>,
    dropped: Vec<(PeerId, Fault)>,
    /// Who was said to want too much, and how much that is.
    excess: Vec<(PeerId, u64)>,
    /// Blocks that were read from the store.
    read: usize,
}

impl Node {
    fn with(blocks: &[Block]) -> Node {
        let hidden: Arc<Mutex<BTreeSet<(PeerId, Multihash)>>> = Arc::default();
        let of_server = hidden.clone();
        let visible = Arc::new(move |peer: &PeerId, hash: &Multihash| {
            !of_server.lock().unwrap().contains(&(peer.clone(), *hash))
        });
        let store = blocks.iter().map(|block| (*block.cid().hash(), block.data().clone())).collect();
        let server = Server::new(visible);
        Node {
            server,
            store,
            hidden,
            now: seconds(1),
            sent: Vec::new(),
            dropped: Vec::new(),
            excess: Vec::new(),
            read: 0,
        }
    }

    fn handle(&mut self, input: ServerInput) {
        self.server.handle(self.now, input);
    }

    fn want(&mut self, who: u8, entries: Vec<Entry>) {
        self.handle(ServerInput::Wants { peer: peer(who), full: false, entries, skipped: 0 });
    }

    /// Carries out what is to be done, without writing messages: the peers take nothing in.
    fn look(&mut self) {
        while let Some(effect) = self.server.poll_effect() {
            match effect {
                ServerEffect::Look { turn, haves, blocks, budget, .. } => {
                    let mut found = Vec::new();
                    let mut bytes = 0;
                    for hash in &blocks {
                        if bytes >= budget {
                            break;
                        }
                        let data = self.store.get(hash).cloned();
                        bytes += data.as_ref().map_or(0, Bytes::len);
                        self.read += usize::from(data.is_some());
                        found.push(data);
                    }
                    let haves = haves.iter().map(|hash| self.store.contains_key(hash)).collect();
                    self.handle(ServerInput::Looked { turn, haves, blocks: found });
                }
                ServerEffect::Send { peer, message } => {
                    assert!(message.encode().len() <= MAX_MESSAGE_SIZE);
                    self.sent.push((peer, message));
                }
                ServerEffect::Excess { peer, count } => self.excess.push((peer, count)),
                ServerEffect::Drop { peer, fault } => self.dropped.push((peer, fault)),
            }
        }
    }

    /// Carries out what is to be done until nothing is; every message is taken in at once.
    fn run(&mut self) {
        let mut taken = 0;
        loop {
            self.look();
            let Some((peer, _)) = self.sent.get(taken).cloned() else { return };
            taken += 1;
            self.handle(ServerInput::Sent { peer });
        }
    }

    /// Returns what a peer was given: blocks, then presences.
    fn given(&self, who: u8) -> (Vec<Multihash>, Vec<(Cid, bool)>) {
        let mut blocks = Vec::new();
        let mut presences = Vec::new();
        for (_, message) in self.sent.iter().filter(|(to, _)| *to == peer(who)) {
            blocks.extend(message.clone().check().blocks.iter().map(|block| *block.cid().hash()));
            presences.extend(message.presences.iter().map(|presence| (presence.cid, presence.is_here)));
        }
        (blocks, presences)
    }
}

fn hashes(blocks: &[Block]) -> Vec<Multihash> {
    blocks.iter().map(|block| *block.cid().hash()).collect()
}

fn blocks(count: u64) -> Vec<Block> {
    (0..count).map(block).collect()
}

#[test]
fn wants_are_answered_with_blocks_and_presences() {
    let all = blocks(3);
    let mut node = Node::with(&all[..2]);
    let [a, b, c] = [0, 1, 2].map(|i| *all[i].cid());
    node.want(1, vec![entry(&a, Ask::Block), entry(&b, Ask::Have), entry(&c, Ask::Have)]);
    node.run();
    assert_eq!(node.given(1), (vec![*a.hash()], vec![(b, true), (c, false)]));
    assert_eq!(node.server.wants(), 1);
}

#[test]
fn the_answer_has_the_prefix_of_the_cid_that_was_asked_for() {
    let all = blocks(1);
    let mut node = Node::with(&all);
    let other = Cid::new_v1(0x71, *all[0].cid().hash());
    node.want(1, vec![entry(&other, Ask::Block)]);
    node.run();
    assert_eq!(node.sent[0].1.payload[0].prefix.codec, 0x71);
}

#[test]
fn an_absent_block_is_sent_when_it_arrives() {
    let late = block(9);
    let mut node = Node::with(&[]);
    node.want(1, vec![Entry { send_dont_have: false, ..entry(late.cid(), Ask::Block) }]);
    node.want(2, vec![entry(late.cid(), Ask::Have)]);
    node.run();
    assert_eq!(node.given(1), (vec![], vec![]));
    node.store.insert(*late.cid().hash(), late.data().clone());
    node.handle(ServerInput::Arrived { hashes: hashes(std::slice::from_ref(&late)) });
    node.run();
    assert_eq!(node.given(1).0, hashes(std::slice::from_ref(&late)));
    assert_eq!(node.given(2).1, [(*late.cid(), false), (*late.cid(), true)]);
    assert_eq!(node.server.wants(), 0);
}

#[test]
fn a_cancelled_want_is_not_answered() {
    let all = blocks(2);
    let mut node = Node::with(&all);
    let [a, b] = [0, 1].map(|i| *all[i].cid());
    node.want(1, vec![entry(&a, Ask::Block), entry(&b, Ask::Block), entry(&a, Ask::Cancel)]);
    node.run();
    assert_eq!(node.given(1).0, [*b.hash()]);
    assert_eq!(node.server.wants(), 0);
}

#[test]
fn a_want_that_is_cancelled_while_it_is_looked_up_is_not_answered() {
    let all = blocks(1);
    let mut node = Node::with(&all);
    node.want(1, vec![entry(all[0].cid(), Ask::Block)]);
    let Some(ServerEffect::Look { turn, .. }) = node.server.poll_effect() else { panic!("it is looked up") };
    node.want(1, vec![entry(all[0].cid(), Ask::Cancel)]);
    node.handle(ServerInput::Looked { turn, haves: vec![], blocks: vec![Some(all[0].data().clone())] });
    node.run();
    assert_eq!(node.given(1), (vec![], vec![]));
}

#[test]
fn a_full_list_takes_the_place_of_the_last_one() {
    let absent = cids(&blocks(3));
    let mut node = Node::with(&[]);
    node.want(1, absent[..2].iter().map(|cid| entry(cid, Ask::Block)).collect());
    node.run();
    let entries = vec![entry(&absent[2], Ask::Block)];
    node.handle(ServerInput::Wants { peer: peer(1), full: true, entries, skipped: 0 });
    node.run();
    assert_eq!(node.server.wants(), 1);
}

#[test]
fn who_wants_the_bytes_gets_them_though_it_asked_for_less_before() {
    let all = blocks(1);
    let mut node = Node::with(&all);
    node.want(1, vec![entry(all[0].cid(), Ask::Have)]);
    let Some(ServerEffect::Look { turn, haves, .. }) = node.server.poll_effect() else { panic!("it is looked up") };
    assert_eq!(haves.len(), 1);
    node.want(1, vec![entry(all[0].cid(), Ask::Block)]);
    node.handle(ServerInput::Looked { turn, haves: vec![true], blocks: vec![] });
    node.run();
    assert_eq!(node.given(1), (hashes(&all), vec![]));
}

#[test]
fn larger_priorities_come_first() {
    let all: Vec<Block> = (0..4).map(|i| block_of(i, 600 << 10)).collect();
    let mut node = Node::with(&all);
    let order = [2, 0, 3, 1];
    let priority = |place: usize| 100 - i32::try_from(place).unwrap();
    node.want(
        1,
        order
            .iter()
            .enumerate()
            .map(|(p, i)| Entry { priority: priority(p), ..entry(all[*i].cid(), Ask::Block) })
            .collect(),
    );
    node.run();
    assert_eq!(node.given(1).0, order.map(|i| *all[i].cid().hash()));
}

#[test]
fn what_a_peer_may_not_read_is_absent_for_it_alone() {
    let all = blocks(2);
    let mut node = Node::with(&all);
    for block in &all {
        node.hidden.lock().unwrap().insert((peer(2), *block.cid().hash()));
    }
    for who in [1, 2] {
        node.want(who, vec![entry(all[0].cid(), Ask::Block), entry(all[1].cid(), Ask::Have)]);
    }
    node.run();
    assert_eq!(node.given(1), (vec![*all[0].cid().hash()], vec![(*all[1].cid(), true)]));
    let mut lacking = node.given(2);
    lacking.1.sort();
    let mut both = vec![(*all[0].cid(), false), (*all[1].cid(), false)];
    both.sort();
    assert_eq!(lacking, (vec![], both));
    assert_eq!(node.read, 1, "a hidden block is not even read");
}

#[test]
fn a_block_that_is_hidden_while_it_is_read_is_not_sent() {
    let all = blocks(1);
    let mut node = Node::with(&all);
    node.want(1, vec![entry(all[0].cid(), Ask::Block)]);
    let Some(ServerEffect::Look { turn, .. }) = node.server.poll_effect() else { panic!("it is looked up") };
    node.hidden.lock().unwrap().insert((peer(1), *all[0].cid().hash()));
    node.handle(ServerInput::Looked { turn, haves: vec![], blocks: vec![Some(all[0].data().clone())] });
    node.run();
    assert_eq!(node.given(1), (vec![], vec![(*all[0].cid(), false)]));
}

#[test]
fn a_block_that_becomes_visible_is_sent_when_it_is_told_of() {
    let all = blocks(1);
    let hash = *all[0].cid().hash();
    let mut node = Node::with(&all);
    node.hidden.lock().unwrap().insert((peer(1), hash));
    node.want(1, vec![entry(all[0].cid(), Ask::Block)]);
    node.run();
    node.hidden.lock().unwrap().clear();
    node.handle(ServerInput::Arrived { hashes: vec![hash] });
    node.run();
    assert_eq!(node.given(1).0, [hash]);
}

#[test]
fn identity_and_short_hashes_are_neither_kept_nor_answered() {
    let mut node = Node::with(&[]);
    let identity = Cid::new_v1(0x55, Multihash::wrap(0, b"here it is, and it is long enough").unwrap());
    let short = Cid::new_v1(0x55, Multihash::wrap(0x12, &[1; 19]).unwrap());
    node.want(1, vec![entry(&identity, Ask::Block), entry(&short, Ask::Have)]);
    node.run();
    assert_eq!((node.server.wants(), node.sent.len()), (0, 0));
}

#[test]
fn small_blocks_share_messages_and_large_ones_travel_alone() {
    let small: Vec<Block> = (0..300).map(|i| block_of(i, 4 << 10)).collect();
    let mut node = Node::with(&small);
    node.want(1, small.iter().map(|block| entry(block.cid(), Ask::Block)).collect());
    node.run();
    assert_eq!(node.given(1).0.len(), 300);
    assert!(node.sent.len() <= 4, "{} messages", node.sent.len());

    let large: Vec<Block> = (0..6).map(|i| block_of(i, 2 << 20)).collect();
    let mut node = Node::with(&large);
    node.want(1, large.iter().map(|block| entry(block.cid(), Ask::Block)).collect());
    node.run();
    assert_eq!(node.sent.len(), 6);
    assert!(node.sent.iter().all(|(_, message)| message.payload.len() == 1));
}

#[test]
fn a_peer_that_takes_nothing_in_has_little_read_for_it_and_keeps_nobody_waiting() {
    let all: Vec<Block> = (0..200).map(|i| block_of(i, 100 << 10)).collect();
    let mut node = Node::with(&all);
    let entries: Vec<Entry> = all.iter().map(|block| entry(block.cid(), Ask::Block)).collect();
    node.want(1, entries.clone());
    node.look();
    assert!(node.read <= 24, "{} blocks were read for a peer that takes in none", node.read);
    assert_eq!(node.sent.len(), 1);

    node.want(2, entries);
    node.look();
    while node.given(2).0.len() < all.len() {
        node.handle(ServerInput::Sent { peer: peer(2) });
        node.look();
    }
    assert!(node.server.waiting_bytes() <= 3 << 20);

    node.now += seconds(60);
    assert!(node.server.poll_timeout().unwrap() <= node.now);
    node.handle(ServerInput::Timeout);
    node.look();
    assert!(node.dropped.contains(&(peer(1), Fault::Stalled { seconds: 60 })));
    node.handle(ServerInput::Sent { peer: peer(2) });
    assert_eq!((node.server.wants(), node.server.waiting_bytes()), (0, 0));
}

/// Of many peers that want as much, none is served much more than another.
#[test]
fn peers_are_served_in_turns() {
    let all: Vec<Block> = (0..100).map(|i| block_of(i, 64 << 10)).collect();
    let mut node = Node::with(&all);
    for who in 1..=8 {
        node.want(who, all.iter().map(|block| entry(block.cid(), Ask::Block)).collect());
    }
    let mut taken = 0;
    while taken < 40 {
        node.look();
        let (to, _) = node.sent[taken].clone();
        taken += 1;
        node.handle(ServerInput::Sent { peer: to });
    }
    let given: Vec<usize> = (1..=8).map(|who| node.given(who).0.len()).collect();
    let (least, most) = (given.iter().min().unwrap(), given.iter().max().unwrap());
    assert!(most - least <= 24 && *least > 0, "{given:?}");
}

#[test]
fn wants_without_end_are_bounded_and_refused_and_their_sender_is_dropped() {
    let mine = blocks(5);
    let mut node = Node::with(&mine);
    let mut next = 1_000;
    while node.dropped.is_empty() {
        let wanted: Vec<Entry> = (next..next + 8_000).map(|i| entry(block(i).cid(), Ask::Block)).collect();
        next += 8_000;
        node.want(1, wanted);
        assert!(node.server.wants() <= MAX_WANTS_PER_PEER);
        node.look();
        // Others are served meanwhile.
        node.want(2, mine.iter().map(|block| entry(block.cid(), Ask::Block)).collect());
        let before = node.given(2).0.len();
        node.look();
        node.handle(ServerInput::Sent { peer: peer(2) });
        node.look();
        assert!(node.given(2).0.len() > before);
        assert!(next < 1_000_000, "a flood is not noticed");
    }
    assert!(matches!(&node.dropped[0], (who, Fault::Flood { .. }) if *who == peer(1)));
}

#[test]
fn wants_of_absent_blocks_make_room_for_new_ones() {
    let mine = blocks(5);
    let mut node = Node::with(&mine);
    let absent: Vec<Entry> = (100..100 + MAX_WANTS_PER_PEER as u64).map(|i| entry(block(i).cid(), Ask::Have)).collect();
    node.want(1, absent);
    node.run();
    assert_eq!(node.server.wants(), MAX_WANTS_PER_PEER);
    node.want(1, mine.iter().map(|block| entry(block.cid(), Ask::Block)).collect());
    node.run();
    assert_eq!(node.given(1).0.len(), mine.len());
}

#[test]
fn peer_whose_wants_go_on_making_room_for_each_other_is_named_once_a_minute_and_served() {
    let mine = blocks(5);
    let mut node = Node::with(&mine);
    let mut next = 1_000;
    let absent = |node: &mut Node, next: &mut u64, count: usize| {
        let wanted = (*next..).take(count).map(|i| entry(block(i).cid(), Ask::Block)).collect();
        *next += count as u64;
        node.want(1, wanted);
        node.run();
    };
    // As many as are kept, and then as many again.
    absent(&mut node, &mut next, MAX_WANTS_PER_PEER);
    absent(&mut node, &mut next, MAX_WANTS_PER_PEER);
    assert_eq!(node.excess, [], "an honest peer may want a few more");
    for _ in 0..9 {
        absent(&mut node, &mut next, MAX_WANTS_PER_PEER);
    }
    assert_eq!(node.excess, [(peer(1), 2 * MAX_WANTS_PER_PEER as u64)], "it is named, and once");
    assert!(node.server.wants() <= MAX_WANTS_PER_PEER && node.dropped.is_empty());
    node.now += seconds(61);
    for _ in 0..3 {
        absent(&mut node, &mut next, MAX_WANTS_PER_PEER);
    }
    assert_eq!(node.excess.len(), 2, "and again where it goes on");
    node.want(1, mine.iter().map(|block| entry(block.cid(), Ask::Block)).collect());
    node.run();
    assert_eq!(node.given(1).0.len(), mine.len());
}

#[test]
fn wants_that_are_refused_are_answered_where_the_peer_wants_to_hear_it() {
    let all: Vec<Block> = (0..MAX_WANTS_PER_PEER as u64 + 10).map(block).collect();
    let mut node = Node::with(&all);
    node.want(1, all.iter().map(|block| entry(block.cid(), Ask::Block)).collect());
    node.run();
    let (given, refused) = node.given(1);
    assert_eq!((given.len(), refused.len()), (MAX_WANTS_PER_PEER, 10));
    assert!(refused.iter().all(|(_, is_here)| !is_here));
}

#[test]
fn a_peer_that_is_gone_leaves_nothing_behind() {
    let mine = blocks(3);
    let mut node = Node::with(&mine);
    let wanted: Vec<Entry> = (0..50).map(|i| entry(block(i).cid(), Ask::Block)).collect();
    node.want(1, wanted);
    node.look();
    node.handle(ServerInput::Gone { peer: peer(1) });
    node.handle(ServerInput::Arrived { hashes: (3..50).map(|i| *block(i).cid().hash()).collect() });
    assert!(node.server.poll_effect().is_none());
    assert_eq!((node.server.wants(), node.server.waiting_bytes(), node.server.poll_timeout()), (0, 0, None));
}

#[test]
fn an_answer_to_a_turn_of_a_peer_that_came_back_is_not_mixed_up() {
    let all = blocks(2);
    let mut node = Node::with(&all);
    node.want(1, vec![entry(all[0].cid(), Ask::Block)]);
    let Some(ServerEffect::Look { turn, .. }) = node.server.poll_effect() else { panic!("it is looked up") };
    node.handle(ServerInput::Gone { peer: peer(1) });
    node.want(1, vec![entry(all[1].cid(), Ask::Block)]);
    node.handle(ServerInput::Looked { turn, haves: vec![], blocks: vec![Some(all[0].data().clone())] });
    node.run();
    assert_eq!(node.given(1).0, [*all[1].cid().hash()]);
}
