//! The getting half alone: the test plays the peers.

use std::time::Duration;

use iptl_bitswap::{Ask, Client, ClientEffect, ClientInput, Fault, Incoming, Message, SessionId};
use iptl_dag::{Block, Cid, PeerId};

use crate::support::{block, block_of, cids, peer, seconds, with_blocks, with_presences};

const SESSION: SessionId = SessionId(1);

/// A client, and what it did since it was last asked.
struct Node {
    client: Client,
    now: Duration,
    sent: Vec<(PeerId, Message)>,
    delivered: Vec<(SessionId, Cid, PeerId)>,
    lacking: Vec<Cid>,
    dropped: Vec<(PeerId, Fault)>,
}

impl Node {
    /// A client whose session has peers 1 to `count`.
    fn with_peers(count: u8) -> Node {
        let mut node = Node {
            client: Client::new(),
            now: seconds(100),
            sent: Vec::new(),
            delivered: Vec::new(),
            lacking: Vec::new(),
            dropped: Vec::new(),
        };
        let peers = (1..=count).map(peer).collect();
        node.handle(ClientInput::Peers { session: SESSION, peers });
        for who in 1..=count {
            node.handle(ClientInput::Connected { peer: peer(who), says_have: true });
        }
        node
    }

    /// Takes an input in; messages are written at once.
    fn handle(&mut self, input: ClientInput) {
        self.client.handle(self.now, input);
        while let Some(effect) = self.client.poll_effect() {
            match effect {
                ClientEffect::Send { peer, message } => {
                    self.sent.push((peer.clone(), message));
                    self.client.handle(self.now, ClientInput::Sent { peer });
                }
                ClientEffect::Deliver { session, block, from } => self.delivered.push((session, *block.cid(), from)),
                ClientEffect::Lacking { cid, .. } => self.lacking.push(cid),
                ClientEffect::Drop { peer, fault, .. } => self.dropped.push((peer, fault)),
            }
        }
    }

    fn want(&mut self, cids: &[Cid]) {
        self.handle(ClientInput::Want { session: SESSION, cids: cids.to_vec() });
    }

    fn receive(&mut self, who: u8, incoming: Incoming) {
        self.handle(ClientInput::Received { peer: peer(who), incoming });
    }

    /// Lets time pass, with every timeout on the way.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.client.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.handle(ClientInput::Timeout);
        }
        self.now = end;
    }

    /// Returns what a peer was asked since the last call, oldest first.
    fn asked(&mut self, who: u8) -> Vec<(Ask, Cid)> {
        let (of_peer, others) = std::mem::take(&mut self.sent).into_iter().partition(|(to, _)| *to == peer(who));
        self.sent = others;
        let of_peer: Vec<(PeerId, Message)> = of_peer;
        of_peer.into_iter().flat_map(|(_, message)| message.entries).map(|entry| (entry.ask, entry.cid)).collect()
    }

    fn delivered_cids(&self) -> Vec<Cid> {
        self.delivered.iter().map(|(_, cid, _)| *cid).collect()
    }
}

/// Makes a peer one that has served.
fn serve_once(node: &mut Node, who: u8) {
    let first = block(7_000 + u64::from(who));
    node.want(&[*first.cid()]);
    for other in 1..=9 {
        node.receive(other, with_presences(&[(*first.cid(), other == who)]));
    }
    node.receive(who, with_blocks(&[first]));
    node.sent.clear();
    node.delivered.clear();
    node.lacking.clear();
}

#[test]
fn a_single_peer_is_asked_for_the_bytes_at_once() {
    let wanted = block(1);
    let mut node = Node::with_peers(1);
    node.want(&[*wanted.cid()]);
    assert_eq!(node.asked(1), [(Ask::Block, *wanted.cid())]);
    node.receive(1, with_blocks(std::slice::from_ref(&wanted)));
    assert_eq!(node.delivered, [(SESSION, *wanted.cid(), peer(1))]);
    assert_eq!(node.client.live_wants(), 0);
}

#[test]
fn several_peers_are_asked_first_whether_they_have_it() {
    let wanted = *block(1).cid();
    let mut node = Node::with_peers(3);
    node.want(&[wanted]);
    for who in 1..=3 {
        assert_eq!(node.asked(who), [(Ask::Have, wanted)]);
    }
    node.receive(2, with_presences(&[(wanted, true)]));
    assert_eq!(node.asked(2), [(Ask::Block, wanted)]);
    node.receive(3, with_presences(&[(wanted, true)]));
    assert_eq!(node.asked(3), []);
    node.receive(2, with_blocks(&[block(1)]));
    // The one that has not answered keeps the want, the one that said that it has it does not.
    assert_eq!((node.asked(1), node.asked(2), node.asked(3)), (vec![(Ask::Cancel, wanted)], vec![], vec![]));
}

#[test]
fn a_peer_that_has_served_is_asked_for_the_bytes_at_once() {
    let mut node = Node::with_peers(3);
    serve_once(&mut node, 2);
    let wanted = *block(1).cid();
    node.want(&[wanted]);
    assert_eq!((node.asked(1), node.asked(2), node.asked(3)), (vec![], vec![(Ask::Block, wanted)], vec![]));
    node.receive(2, with_presences(&[(wanted, false)]));
    assert_eq!((node.asked(1), node.asked(3)), (vec![(Ask::Have, wanted)], vec![(Ask::Have, wanted)]));
}

#[test]
fn a_peer_before_bitswap_1_2_is_asked_for_the_bytes() {
    let mut node = Node::with_peers(2);
    for who in [1, 2] {
        node.handle(ClientInput::Connected { peer: peer(who), says_have: false });
    }
    let wanted = *block(1).cid();
    node.want(&[wanted]);
    let asked = [node.asked(1), node.asked(2)].concat();
    assert_eq!(asked, [(Ask::Block, wanted)]);
}

#[test]
fn what_nobody_has_is_told_and_asked_for_again() {
    let wanted = *block(1).cid();
    let mut node = Node::with_peers(2);
    node.want(&[wanted]);
    node.receive(1, with_presences(&[(wanted, false)]));
    assert_eq!(node.lacking, []);
    node.receive(2, with_presences(&[(wanted, false)]));
    assert_eq!(node.lacking, [wanted]);
    node.sent.clear();
    node.wait(seconds(11));
    assert_eq!((node.asked(1), node.asked(2)), (vec![(Ask::Have, wanted)], vec![(Ask::Have, wanted)]));
    // A peer may also say so by itself once it has it.
    node.receive(1, with_presences(&[(wanted, true)]));
    assert_eq!(node.asked(1), [(Ask::Block, wanted)]);
}

#[test]
fn a_session_without_peers_hears_at_once_that_it_has_nobody_to_ask() {
    let wanted = *block(1).cid();
    let mut node = Node::with_peers(0);
    node.want(&[wanted]);
    assert_eq!(node.lacking, [wanted]);
    node.handle(ClientInput::Peers { session: SESSION, peers: vec![peer(4)] });
    assert_eq!(node.asked(4), [(Ask::Block, wanted)]);
}

#[test]
fn a_block_is_delivered_under_every_name_that_it_is_wanted_by() {
    let wanted = block(1);
    let other = Cid::new_v1(0x71, *wanted.cid().hash());
    let mut node = Node::with_peers(1);
    node.want(&[*wanted.cid(), other]);
    let second = SessionId(2);
    node.handle(ClientInput::Peers { session: second, peers: vec![peer(1)] });
    node.handle(ClientInput::Want { session: second, cids: vec![other] });
    assert_eq!(node.asked(1).len(), 1, "one want on the wire");
    node.receive(1, with_blocks(std::slice::from_ref(&wanted)));
    let expected = [(SESSION, *wanted.cid()), (SESSION, other), (second, other)].map(|(s, cid)| (s, cid, peer(1)));
    assert_eq!(node.delivered, expected);
}

#[test]
fn wrong_bytes_are_taken_for_nothing_and_their_sender_is_dropped_and_named() {
    let wanted = block(1);
    let mut node = Node::with_peers(2);
    node.want(&[*wanted.cid()]);
    node.receive(1, with_presences(&[(*wanted.cid(), true)]));
    node.receive(1, with_blocks(&[block(50), block(51), block(52), block(53)]));
    assert_eq!(node.delivered, []);
    assert_eq!(node.dropped, [(peer(1), Fault::Unwanted { count: 4 })]);
    node.receive(2, with_presences(&[(*wanted.cid(), true)]));
    node.receive(2, with_blocks(std::slice::from_ref(&wanted)));
    assert_eq!(node.delivered_cids(), [*wanted.cid()]);

    // A liar is not asked by the next session either, and its users are told why.
    node.dropped.clear();
    node.handle(ClientInput::Peers { session: SessionId(2), peers: vec![peer(1)] });
    assert_eq!(node.dropped, [(peer(1), Fault::Unwanted { count: 4 })]);
    node.handle(ClientInput::Want { session: SessionId(2), cids: vec![*block(2).cid()] });
    assert_eq!(node.asked(1), [(Ask::Have, *wanted.cid()), (Ask::Block, *wanted.cid())], "only what was before");
}

#[test]
fn a_block_of_somebody_who_was_not_asked_for_it_is_not_taken() {
    let wanted = block(1);
    let mut node = Node::with_peers(2);
    serve_once(&mut node, 1);
    node.want(&[*wanted.cid()]);
    node.receive(2, with_blocks(std::slice::from_ref(&wanted)));
    node.receive(9, with_blocks(std::slice::from_ref(&wanted)));
    assert_eq!(node.delivered, []);
    assert_eq!(node.dropped, [(peer(9), Fault::Unwanted { count: 1 })]);
    node.receive(1, with_blocks(std::slice::from_ref(&wanted)));
    assert_eq!(node.delivered_cids(), [*wanted.cid()]);
}

#[test]
fn the_same_block_over_and_over_is_taken_for_unwanted() {
    let wanted = block(1);
    let mut node = Node::with_peers(1);
    node.want(&[*wanted.cid()]);
    for _ in 0..2 {
        node.receive(1, with_blocks(std::slice::from_ref(&wanted)));
    }
    assert!(node.dropped.is_empty(), "once too often may be a crossing");
    for _ in 0..4 {
        node.receive(1, with_blocks(std::slice::from_ref(&wanted)));
    }
    assert_eq!(node.delivered.len(), 1);
    assert_eq!(node.dropped, [(peer(1), Fault::Unwanted { count: 4 })]);
}

#[test]
fn a_peer_that_breaks_its_word_again_and_again_is_dropped() {
    let all: Vec<Block> = (0..40).map(block).collect();
    let mut node = Node::with_peers(2);
    node.want(&cids(&all));
    for cid in cids(&all) {
        node.receive(1, with_presences(&[(cid, true)]));
        node.receive(1, with_presences(&[(cid, false)]));
    }
    assert_eq!(node.dropped, [(peer(1), Fault::Fickle { count: 33 })]);
}

#[test]
fn a_silent_peer_loses_its_wants_to_others_and_is_dropped_in_the_end() {
    let wanted = *block(1).cid();
    let mut node = Node::with_peers(2);
    node.want(&[wanted]);
    node.receive(1, with_presences(&[(wanted, true)]));
    node.receive(2, with_presences(&[(wanted, true)]));
    node.sent.clear();
    node.wait(seconds(6));
    assert_eq!(node.asked(2), [(Ask::Block, wanted)], "a late block is asked of another");
    node.wait(seconds(300));
    assert!(node.dropped.contains(&(peer(1), Fault::Silent { times: 3 })), "{:?}", node.dropped);
}

/// The slow one sends a block now and then, so it is never silent.
#[test]
fn a_slow_peer_is_dropped_when_others_are_faster() {
    let all: Vec<Block> = (0..64).map(block).collect();
    let mut node = Node::with_peers(2);
    serve_once(&mut node, 1);
    node.want(&cids(&all));
    let of_slow: Vec<Cid> = node.asked(1).into_iter().map(|(_, cid)| cid).collect();
    let data =
        |cids: &[Cid]| -> Vec<Block> { all.iter().filter(|block| cids.contains(block.cid())).cloned().collect() };
    for round in 0..6 {
        node.wait(seconds(4));
        node.receive(1, with_blocks(&data(&of_slow[round..=round])));
        let of_fast = node.asked(2);
        let have: Vec<(Cid, bool)> =
            of_fast.iter().filter(|(ask, _)| *ask == Ask::Have).map(|(_, c)| (*c, true)).collect();
        node.receive(2, with_presences(&have));
        let asked: Vec<Cid> =
            [of_fast, node.asked(2)].concat().into_iter().filter(|(a, _)| *a == Ask::Block).map(|(_, c)| c).collect();
        node.receive(2, with_blocks(&data(&asked)));
    }
    assert!(matches!(node.dropped.first(), Some((who, Fault::Slow { .. })) if *who == peer(1)), "{:?}", node.dropped);
    for _ in 0..4 {
        let asked: Vec<Cid> = node.asked(2).into_iter().filter(|(a, _)| *a == Ask::Block).map(|(_, c)| c).collect();
        node.receive(2, with_blocks(&data(&asked)));
    }
    assert_eq!(node.delivered.len(), 64);
}

#[test]
fn a_peer_that_is_slow_and_the_only_one_is_kept() {
    let all: Vec<Block> = (0..32).map(block).collect();
    let mut node = Node::with_peers(1);
    node.want(&cids(&all));
    for block in &all {
        node.wait(seconds(15));
        node.receive(1, with_blocks(std::slice::from_ref(block)));
    }
    assert_eq!((node.delivered.len(), node.dropped.len()), (32, 0));
}

#[test]
fn what_was_asked_of_a_peer_that_is_gone_is_asked_of_others() {
    let wanted = *block(1).cid();
    let mut node = Node::with_peers(2);
    node.want(&[wanted]);
    node.receive(1, with_presences(&[(wanted, true)]));
    node.receive(2, with_presences(&[(wanted, true)]));
    node.sent.clear();
    node.handle(ClientInput::Gone { peer: peer(1) });
    assert_eq!(node.asked(2), [(Ask::Block, wanted)]);
}

#[test]
fn a_peer_that_cannot_be_reached_is_tried_again_and_then_dropped_and_may_be_named_again() {
    let wanted = *block(1).cid();
    let mut node = Node::with_peers(1);
    node.want(&[wanted]);
    for _ in 0..3 {
        assert_eq!(node.asked(1), [(Ask::Block, wanted)]);
        node.handle(ClientInput::Failed { peer: peer(1), reason: "no route".into() });
        node.wait(seconds(5));
    }
    assert_eq!(node.dropped, [(peer(1), Fault::Unreachable { reason: "no route".into() })]);
    assert_eq!((node.asked(1), node.lacking.clone()), (vec![], vec![wanted]));
    node.handle(ClientInput::Peers { session: SESSION, peers: vec![peer(1)] });
    assert_eq!(node.asked(1), [(Ask::Block, wanted)]);
}

#[test]
fn the_first_message_to_a_peer_is_its_whole_list() {
    let wanted = cids(&[block(1), block(2)]);
    let mut node = Node::with_peers(1);
    node.want(&wanted[..1]);
    node.want(&wanted[1..]);
    let full: Vec<bool> = node.sent.iter().map(|(_, message)| message.full).collect();
    assert_eq!(full, [true, false]);
    node.sent.clear();
    node.handle(ClientInput::Gone { peer: peer(1) });
    node.wait(seconds(2));
    assert!(node.sent[0].1.full);
    assert_eq!(node.asked(1).len(), 2);
}

#[test]
fn the_window_keeps_asks_bounded_and_grows_with_blocks_that_come_soon() {
    let all: Vec<Block> = (0..3_000).map(block).collect();
    let mut node = Node::with_peers(1);
    node.want(&cids(&all));
    let mut asked = node.asked(1);
    assert_eq!(asked.len(), 32);
    let mut most = 0;
    while !asked.is_empty() {
        let data: Vec<Block> =
            asked.iter().filter_map(|(_, cid)| all.iter().find(|b| b.cid() == cid)).cloned().collect();
        node.receive(1, with_blocks(&data));
        asked = node.asked(1);
        most = most.max(asked.len());
    }
    assert_eq!((node.delivered.len(), most), (3_000, 512));
    assert!(node.sent.is_empty());
}

#[test]
fn a_closed_session_withdraws_what_it_wanted_and_late_answers_are_no_lies() {
    let wanted = block(1);
    let mut node = Node::with_peers(1);
    node.want(&[*wanted.cid()]);
    node.sent.clear();
    node.handle(ClientInput::Close { session: SESSION });
    assert_eq!(node.asked(1), [(Ask::Cancel, *wanted.cid())]);
    node.receive(1, with_blocks(std::slice::from_ref(&wanted)));
    assert_eq!((node.delivered.len(), node.dropped.len()), (0, 0));
    node.wait(seconds(61));
    assert_eq!((node.client.known_peers(), node.client.poll_timeout()), (0, None));
}

#[test]
fn a_cancelled_want_is_withdrawn() {
    let wanted = cids(&[block(1), block(2)]);
    let mut node = Node::with_peers(1);
    node.want(&wanted);
    node.sent.clear();
    node.handle(ClientInput::Cancel { session: SESSION, cids: vec![wanted[0]] });
    assert_eq!(node.asked(1), [(Ask::Cancel, wanted[0])]);
    assert_eq!(node.client.live_wants(), 1);
}

#[test]
fn what_cannot_go_over_the_wire_is_lacking_at_once() {
    let identity = Cid::new_v1(0x55, iptl_dag::Multihash::wrap(0, b"here").unwrap());
    let mut node = Node::with_peers(1);
    node.want(&[identity]);
    assert_eq!((node.asked(1), node.lacking), (vec![], vec![identity]));
}

#[test]
fn wants_are_spread_over_the_peers_that_have_them() {
    let all: Vec<Block> = (0..60).map(|i| block_of(i, 100)).collect();
    let mut node = Node::with_peers(3);
    node.want(&cids(&all));
    let have: Vec<(Cid, bool)> = all.iter().map(|block| (*block.cid(), true)).collect();
    node.sent.clear();
    for who in 1..=3 {
        node.receive(who, with_presences(&have));
    }
    // The first to answer is asked for what its window holds, the rest goes to the next ones.
    let asked = [1, 2, 3].map(|who| node.asked(who).len());
    assert_eq!(asked.iter().sum::<usize>(), 60);
    assert!(asked[0] == 32 && asked[1] > 0, "{asked:?}");
}
