//! Bitswap: messages, the frames they stand in, and the server that a hostile peer talks to.

use std::time::Duration;

use bytes::Bytes;
use iptl_bitswap::{Frames, Message, Server, ServerEffect, ServerInput, frame};
use iptl_dag::PeerId;

use crate::memory::bounded;

/// Reads a stream of frames; each message can be written and read again, and a server bears all of it.
pub(crate) fn bitswap(data: &[u8]) -> bool {
    let mut frames = Frames::default();
    frames.buffer().extend_from_slice(data);
    let peer = PeerId::from_ed25519(&[1; 32]);
    let mut server = Server::new(std::sync::Arc::new(|_: &_, _: &_| true));
    let mut taken = false;
    let mut now = Duration::ZERO;
    while let Ok(Some(bytes)) = frames.pop() {
        let Some(message) = read(&bytes) else { break };
        taken = true;
        let incoming = message.check();
        now += Duration::from_millis(100);
        let (full, entries, skipped) = (incoming.full, incoming.entries, incoming.skipped);
        server.handle(now, ServerInput::Wants { peer: peer.clone(), full, entries, skipped });
        answer(&mut server, now);
    }
    server.handle(now, ServerInput::Gone { peer });
    assert_eq!((server.wants(), server.waiting_bytes()), (0, 0), "nothing is left of a peer that is gone");
    taken
}

/// Messages are up to two orders larger than their bytes: an entry of one byte has a CID with room for every digest.
const MESSAGE: usize = 256;

fn read(bytes: &Bytes) -> Option<Message> {
    let message = bounded(MESSAGE, bytes, || Message::decode(bytes)).ok()?;
    let written = Bytes::from(message.encode());
    assert!(written.len() <= message.size(), "a size that is stated too small overfills messages");
    let again = Message::decode(&written).expect("it was just written");
    // What could not be read is not written.
    assert_eq!(again, Message { skipped: 0, ..message.clone() });
    let mut frames = Frames::default();
    frames.buffer().extend_from_slice(&frame(&message));
    assert_eq!(frames.pop(), Ok(Some(written)));
    assert!(!frames.is_within_message());
    Some(message)
}

/// Answers what the server asks for: every second block is there, with four bytes.
fn answer(server: &mut Server, now: Duration) {
    while let Some(effect) = server.poll_effect() {
        match effect {
            ServerEffect::Look { turn, haves, blocks, .. } => {
                let haves = haves.iter().map(|hash| hash.digest()[0] % 2 == 0).collect();
                let blocks = blocks.iter().map(|hash| (hash.digest()[0] % 2 == 0).then(|| Bytes::from_static(b"data")));
                server.handle(now, ServerInput::Looked { turn, haves, blocks: blocks.collect() });
            }
            ServerEffect::Send { peer, message } => {
                assert!(!message.is_empty(), "nothing is said for nothing");
                server.handle(now, ServerInput::Sent { peer });
            }
            ServerEffect::Excess { .. } | ServerEffect::Drop { .. } => {}
        }
    }
}
