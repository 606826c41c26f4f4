//! The form of messages, and what becomes of bytes that have another.

use bytes::Bytes;
use iptl_bitswap::{
    Ask, Entry, FrameError, Frames, MAX_ITEMS, MAX_MESSAGE_SIZE, Message, MessageError, Payload, Prefix, Presence,
    frame,
};
use iptl_dag::{Block, Cid, Codec, MAX_BLOCK_SIZE, Multihash, block};
use proptest::prelude::*;

use crate::support;

fn sha256(data: &[u8]) -> Multihash {
    block::digest(0x12, data).unwrap()
}

fn message() -> Message {
    let raw = Cid::new_v1(0x55, sha256(b"a"));
    let old = Cid::new_v0(sha256(b"b")).unwrap();
    Message {
        full: true,
        entries: vec![
            Entry { cid: raw, priority: 5, ask: Ask::Block, send_dont_have: true },
            Entry { cid: old, priority: -1, ask: Ask::Have, send_dont_have: false },
            Entry { cid: raw, priority: 0, ask: Ask::Cancel, send_dont_have: false },
        ],
        payload: vec![Payload::new(&raw, Bytes::from_static(b"a")), Payload::new(&old, Bytes::from_static(b"b"))],
        presences: vec![Presence { cid: raw, is_here: true }, Presence { cid: old, is_here: false }],
        pending_bytes: 7,
        skipped: 0,
    }
}

#[test]
fn what_is_encoded_is_decoded() {
    let message = message();
    let encoded = Bytes::from(message.encode());
    assert!(encoded.len() <= message.size());
    assert_eq!(Message::decode(&encoded).unwrap(), message);
}

/// Byte for byte what the schema of Bitswap 1.2 says, put together by hand.
#[test]
fn the_encoding_is_that_of_the_schema() {
    let cid = Cid::new_v1(0x55, sha256(b"a"));
    let name = cid.to_bytes();
    let mut entry = vec![0x0a, 36];
    entry.extend(&name);
    entry.extend([0x10, 5, 0x20, 1, 0x28, 1]);
    let mut wanted = vec![0x0a, entry.len() as u8 + 2, 0x0a, entry.len() as u8];
    wanted.extend(&entry);
    let want = Message {
        entries: vec![Entry { cid, priority: 5, ask: Ask::Have, send_dont_have: true }],
        ..Message::default()
    };
    assert_eq!(want.encode(), wanted);

    let sent = [&[0x1a, 9, 0x0a, 4, 0x01, 0x55, 0x12, 0x20, 0x12, 1, b'a'][..]].concat();
    let block = Message { payload: vec![Payload::new(&cid, Bytes::from_static(b"a"))], ..Message::default() };
    assert_eq!(block.encode(), sent);

    let mut told = vec![0x22, 40, 0x0a, 36];
    told.extend(&name);
    told.extend([0x10, 1]);
    let lacking = Message { presences: vec![Presence { cid, is_here: false }], ..Message::default() };
    assert_eq!(lacking.encode(), told);
}

#[test]
fn a_block_goes_by_the_hash_of_its_bytes_and_not_by_what_is_said_of_it() {
    let cid = Cid::new_v1(0x55, sha256(b"right"));
    let lie = Message { payload: vec![Payload::new(&cid, Bytes::from_static(b"wrong"))], ..Message::default() };
    let incoming = lie.check();
    assert_eq!(incoming.blocks[0].cid().hash(), &sha256(b"wrong"));
    assert!(incoming.blocks[0].named(cid).is_none());
}

#[test]
fn every_hash_that_can_be_computed_is_taken() {
    // Cut off at 20 bytes and extended to 64 as well.
    let sizes = [(0x12, 32), (0x13, 64), (0x14, 64), (0x16, 32), (0x1e, 32), (0xb214, 20), (0xb220, 32)];
    for (code, size) in sizes.into_iter().chain([(0x12, 20), (0x1e, 20), (0x1e, 64)]) {
        let hash = block::digest_to(code, size, b"data").unwrap();
        let cid = Cid::new_v1(0x71, hash);
        let message = Message { payload: vec![Payload::new(&cid, Bytes::from_static(b"data"))], ..Message::default() };
        let incoming = Message::decode(&message.encode().into()).unwrap().check();
        assert_eq!(incoming.blocks[0].named(cid).unwrap().cid(), &cid, "{code:#x}");
    }
}

#[test]
fn a_hash_that_cannot_be_computed_is_counted_and_not_taken() {
    let prefix = Prefix { version: 1, codec: 0x55, hash: 0xdead, digest_size: 32 };
    let short = Prefix { version: 1, codec: 0x55, hash: 0x12, digest_size: 19 };
    let long = Prefix { digest_size: 33, ..short };
    let payload = [prefix, short, long].map(|prefix| Payload { prefix, data: Bytes::from_static(b"x") });
    let incoming = Message { payload: payload.into(), ..Message::default() }.check();
    assert_eq!((incoming.blocks.len(), incoming.unverifiable), (0, 3));
}

#[test]
fn blocks_of_the_first_version_are_read() {
    let incoming = Message::decode(&Bytes::from_static(&[0x12, 1, b'a'])).unwrap().check();
    assert_eq!(incoming.blocks[0].cid().hash(), &sha256(b"a"));
}

#[test]
fn an_oversized_block_is_refused() {
    let cid = Cid::new_v1(0x55, sha256(b""));
    let largest = |size| {
        let payload = vec![Payload::new(&cid, vec![0; size].into())];
        Message::decode(&Message { payload, ..Message::default() }.encode().into())
    };
    assert!(largest(MAX_BLOCK_SIZE).is_ok());
    assert_eq!(largest(MAX_BLOCK_SIZE + 1), Err(MessageError::BlockTooLarge { size: MAX_BLOCK_SIZE + 1 }));
}

#[test]
fn cids_that_cannot_be_read_are_passed_over_and_the_rest_is_taken() {
    let good = *support::block(1).cid();
    let mut message = Message { entries: vec![support::entry(&good, Ask::Block)], ..Message::default() }.encode();
    // An entry with three bytes for a CID, in a second wantlist, and one whose digest is beyond what is verified.
    message.extend([0x0a, 7, 0x0a, 5, 0x0a, 3, 1, 2, 3]);
    let long = [&[1, 0x55, 0x12, 100][..], &[0; 100]].concat();
    message.extend([0x0a, 108, 0x0a, 106, 0x0a, 104]);
    message.extend(long);
    let message = Message::decode(&message.into()).unwrap();
    assert_eq!((message.entries.len(), message.skipped), (1, 2));
}

#[test]
fn what_is_too_much_for_one_message_takes_no_memory() {
    let cid = Cid::new_v1(0x55, Multihash::wrap(0, b"").unwrap());
    let entries = vec![Entry { cid, priority: 0, ask: Ask::Block, send_dont_have: false }; MAX_ITEMS + 9];
    let message = Message::decode(&Message { entries, ..Message::default() }.encode().into()).unwrap();
    assert_eq!((message.entries.len(), message.skipped), (MAX_ITEMS, 9));

    let empty = [0x1a, 0].repeat(MAX_ITEMS + 1);
    assert_eq!(Message::decode(&empty.into()), Err(MessageError::TooMany { what: "blocks" }));
    let presences = vec![Presence { cid, is_here: true }; MAX_ITEMS + 1];
    let message = Message { presences, ..Message::default() }.encode();
    assert_eq!(Message::decode(&message.into()), Err(MessageError::TooMany { what: "presences" }));
}

#[test]
fn a_small_block_does_not_keep_its_whole_message() {
    let blocks = [support::block_of(1, 100), support::block_of(2, 100_000)];
    let payload = blocks.iter().map(|block| Payload::new(block.cid(), block.data().clone())).collect();
    let encoded = Bytes::from(Message { payload, ..Message::default() }.encode());
    let decoded = Message::decode(&encoded).unwrap();
    let within = |data: &Bytes| encoded.as_ptr_range().contains(&data.as_ptr());
    assert!(!within(&decoded.payload[0].data));
    assert!(within(&decoded.payload[1].data));
}

#[test]
fn a_stream_is_cut_into_messages_wherever_it_arrives_in_parts() {
    let messages = [message(), Message::default(), message()];
    let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message).to_vec()).collect();
    for part in [1, 2, 3, 100, stream.len()] {
        let mut frames = Frames::default();
        let mut read = Vec::new();
        for bytes in stream.chunks(part) {
            frames.buffer().extend_from_slice(bytes);
            while let Some(bytes) = frames.pop().unwrap() {
                read.push(Message::decode(&bytes).unwrap());
            }
        }
        assert_eq!(read, messages);
        assert!(!frames.is_within_message());
    }
}

#[test]
fn a_length_beyond_the_largest_message_is_refused_before_anything_is_read() {
    let check = |bytes: &[u8], refused| {
        let mut frames = Frames::default();
        frames.buffer().extend_from_slice(bytes);
        assert_eq!(frames.pop(), refused);
    };
    check(&[0x80, 0x80, 0x80, 0x02], Ok(None));
    let size = MAX_MESSAGE_SIZE as u64 + 1;
    check(&[0x81, 0x80, 0x80, 0x02], Err(FrameError::TooLarge { size }));
    check(&[0xff; 9], Err(FrameError::BadLength));
    check(&[0x80, 0x00], Err(FrameError::BadLength));
    check(&[0x80], Ok(None));
}

fn any_cid() -> impl Strategy<Value = Cid> {
    (any::<u64>(), prop::sample::select(vec![0x55_u64, 0x70, 0x71, 0x0129]), prop::sample::select(vec![0x12_u64, 0x1e]))
        .prop_map(|(seed, codec, code)| Cid::new_v1(codec, block::digest(code, &seed.to_le_bytes()).unwrap()))
}

fn any_message() -> impl Strategy<Value = Message> {
    let ask = prop::sample::select(vec![Ask::Block, Ask::Have, Ask::Cancel]);
    let entry = (any_cid(), any::<i32>(), ask, any::<bool>()).prop_map(|(cid, priority, ask, send_dont_have)| Entry {
        cid,
        priority,
        ask,
        send_dont_have,
    });
    let payload =
        (any_cid(), prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(cid, data)| Payload::new(&cid, data.into()));
    let presence = (any_cid(), any::<bool>()).prop_map(|(cid, is_here)| Presence { cid, is_here });
    let lists = (
        prop::collection::vec(entry, 0..8),
        prop::collection::vec(payload, 0..8),
        prop::collection::vec(presence, 0..8),
    );
    (any::<bool>(), lists, any::<u32>()).prop_map(|(full, (entries, payload, presences), pending_bytes)| Message {
        full,
        entries,
        payload,
        presences,
        pending_bytes,
        skipped: 0,
    })
}

proptest! {
    #[test]
    fn any_message_survives_the_wire(message in any_message()) {
        let encoded = Bytes::from(message.encode());
        prop_assert!(encoded.len() <= message.size());
        prop_assert_eq!(Message::decode(&encoded).unwrap(), message);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        if let Ok(message) = Message::decode(&bytes) {
            message.check();
        }
        let mut frames = Frames::default();
        frames.buffer().extend_from_slice(&bytes);
        while let Ok(Some(_)) = frames.pop() {}
    }

    /// A message with some bytes changed comes closer to what a decoder trips over.
    #[test]
    fn no_damaged_message_panics(message in any_message(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = message.encode();
        for (at, byte) in damage {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        if let Ok(message) = Message::decode(&bytes.into()) {
            message.check();
        }
    }
}

#[test]
fn a_block_is_named_by_any_cid_of_its_hash() {
    let block = Block::hashed(0x12, &b"a"[..]).unwrap();
    assert_eq!(block.named(Cid::new_v0(sha256(b"a")).unwrap()).unwrap().data(), "a");
    assert!(block.named(*Block::new(Codec::Raw, &b"a"[..]).cid()).is_none());
    assert!(Block::hashed(0x12, vec![0; MAX_BLOCK_SIZE + 1]).is_none());
}
