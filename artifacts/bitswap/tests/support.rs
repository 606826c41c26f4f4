//! What the tests share.

use std::time::Duration;

use iptl_bitswap::{Ask, Entry, Incoming, Message, Payload};
use iptl_dag::{Block, Cid, Codec, PeerId};

/// A small generator (splitmix64), so that a schedule is drawn from one number.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.below(high - low + 1))
    }
}

pub fn peer(number: u8) -> PeerId {
    PeerId::from_ed25519(&[number; 32])
}

pub fn block(number: u64) -> Block {
    Block::new(Codec::Raw, number.to_le_bytes().repeat(8))
}

pub fn block_of(number: u64, size: usize) -> Block {
    let mut rng = Rng(number);
    let bytes: Vec<u8> = (0..size.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes()).take(size).collect();
    Block::new(Codec::Raw, bytes)
}

pub fn cids(blocks: &[Block]) -> Vec<Cid> {
    blocks.iter().map(|block| *block.cid()).collect()
}

pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub fn entry(cid: &Cid, ask: Ask) -> Entry {
    Entry { cid: *cid, priority: 1, ask, send_dont_have: true }
}

/// A message with blocks, as it comes over the wire.
pub fn with_blocks(blocks: &[Block]) -> Incoming {
    let payload = blocks.iter().map(|block| Payload::new(block.cid(), block.data().clone())).collect();
    Message { payload, ..Message::default() }.check()
}

pub fn with_presences(presences: &[(Cid, bool)]) -> Incoming {
    let presences = presences.iter().map(|(cid, is_here)| iptl_bitswap::Presence { cid: *cid, is_here: *is_here });
    Message { presences: presences.collect(), ..Message::default() }.check()
}
