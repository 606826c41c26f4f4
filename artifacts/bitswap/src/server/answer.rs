//! Messages out of what a turn found.

use bytes::Bytes;
use iptl_dag::{MAX_BLOCK_SIZE, Multihash};

use super::ledger::{Ledger, Turn};
use super::{MESSAGE_BYTES, presence};
use crate::{Ask, MAX_ITEMS, Message, Payload};

/// Presences in one message.
const PRESENCES_PER_MESSAGE: usize = MAX_ITEMS / 4;

/// What became of a turn.
pub(super) struct Answer {
    /// Wants that are answered for good.
    pub(super) done: Vec<Multihash>,
    /// Bytes put into the outbox.
    pub(super) bytes: usize,
    /// Blocks that are absent, and whose wants are kept.
    pub(super) absent: Vec<Multihash>,
}

/// Puts the answer to a turn into the peer's outbox.
pub(super) fn answer(
    ledger: &mut Ledger,
    turn: &Turn,
    haves: &[bool],
    blocks: Vec<Option<Bytes>>,
    is_visible: impl Fn(&Multihash) -> bool,
) -> Answer {
    let mut out =
        Out { answer: Answer { done: Vec::new(), bytes: 0, absent: Vec::new() }, message: Message::default(), size: 0 };
    for refusal in ledger.take_refusals() {
        out.add_presence(ledger, refusal);
    }
    for (hash, is_here) in turn.haves.iter().zip(haves) {
        let Some(want) = ledger.looking(hash) else { continue };
        if want.ask == Ask::Block {
            // It wants the bytes by now.
            ledger.put_back(hash);
        } else if *is_here && is_visible(hash) {
            let cid = want.cid;
            out.add_presence(ledger, presence(cid, true));
            out.finish(ledger, hash);
        } else {
            out.miss(ledger, hash);
        }
    }
    for hash in &turn.hidden {
        out.miss(ledger, hash);
    }
    let read = blocks.len().min(turn.blocks.len());
    for (hash, data) in turn.blocks.iter().zip(blocks) {
        let Some(want) = ledger.looking(hash) else { continue };
        match data.filter(|data| data.len() <= MAX_BLOCK_SIZE && is_visible(hash)) {
            Some(data) => {
                let payload = Payload::new(&want.cid, data);
                out.add_block(ledger, payload);
                out.finish(ledger, hash);
            }
            None => out.miss(ledger, hash),
        }
    }
    for hash in turn.haves.iter().skip(haves.len()).chain(&turn.blocks[read..]) {
        ledger.put_back(hash);
    }
    out.close(ledger);
    out.answer
}

struct Out {
    answer: Answer,
    /// The message that is being filled.
    message: Message,
    /// Bytes of its blocks.
    size: usize,
}

impl Out {
    fn add_presence(&mut self, ledger: &mut Ledger, presence: crate::Presence) {
        if self.message.presences.len() >= PRESENCES_PER_MESSAGE {
            self.close(ledger);
        }
        self.message.presences.push(presence);
    }

    /// Adds a block; one that would overfill a message goes into the next one.
    fn add_block(&mut self, ledger: &mut Ledger, payload: Payload) {
        if !self.message.payload.is_empty() && self.size + payload.size() > MESSAGE_BYTES {
            self.close(ledger);
        }
        self.size += payload.size();
        self.message.payload.push(payload);
    }

    /// The want is answered.
    fn finish(&mut self, ledger: &mut Ledger, hash: &Multihash) {
        if ledger.remove(hash) {
            self.answer.done.push(*hash);
        }
    }

    /// The block is lacking: says so to who wants to hear it, and keeps the want.
    fn miss(&mut self, ledger: &mut Ledger, hash: &Multihash) {
        let Some(want) = ledger.looking(hash) else { return };
        if want.send_dont_have {
            let cid = want.cid;
            self.add_presence(ledger, presence(cid, false));
        }
        ledger.keep_absent(hash);
        self.answer.absent.push(*hash);
    }

    fn close(&mut self, ledger: &mut Ledger) {
        let message = std::mem::take(&mut self.message);
        if !message.is_empty() {
            let bytes = message.size();
            self.answer.bytes += bytes;
            ledger.outbox.push_back((message, bytes));
        }
        self.size = 0;
    }
}
