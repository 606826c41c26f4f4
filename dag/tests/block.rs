//! Blocks, peer IDs, and what their errors say.

use iptl_dag::block::{MAX_IDENTITY_SIZE, blake3_digest, check, identity_data};
use iptl_dag::codec::{self, DecodeError};
use iptl_dag::path::PathError;
use iptl_dag::unixfs::{DirectoryError, UnixFs, UnixFsError, check_name};
use iptl_dag::walk::{WalkError, links};
use iptl_dag::{Block, Cid, Codec, HashError, Ipld, MAX_BLOCK_SIZE, Multihash, PeerId, model::Node};

#[test]
fn block_is_what_its_cid_names_under_every_hash_that_is_known() {
    // "foo\n" as Kubo names it, and as SHA2-256 names "hello world".
    let rows = [
        ("bafkr4icj3sdq34o6p7lapfgoxtset5om3lsxll72uz5cjnrkzmb6aoo3si", &b"foo\n"[..]),
        ("bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e", b"hello world"),
        ("bafkqaaa", b""),
    ];
    for (text, bytes) in rows {
        let cid: Cid = text.parse().expect("a CID");
        assert_eq!(Block::verify(cid, bytes).expect(text).data(), bytes);
        let error = Block::verify(cid, &b"something else"[..]).expect_err("another hash");
        assert_eq!(error, HashError::Mismatch { cid });
    }
    let own = Block::new(Codec::Raw, &b"foo\n"[..]);
    assert_eq!(own.cid().to_string(), rows[0].0);
    assert_eq!(blake3_digest(own.cid()).map(|d| d.to_vec()), Some(own.cid().hash().digest().to_vec()));
    assert_eq!(blake3_digest(&rows[1].0.parse().expect("a CID")), None);
}

#[test]
fn blocks_that_cannot_be_verified_are_refused() {
    let unknown = Cid::new_v1(0x55, Multihash::wrap(0x22, &[0; 16]).expect("short"));
    assert_eq!(check(&unknown, b"x"), Err(HashError::UnknownHash { cid: unknown, code: 0x22 }));
    let large = vec![0; MAX_BLOCK_SIZE + 1];
    assert_eq!(check(&unknown, &large), Err(HashError::TooLarge { size: large.len() }));
    // Half a digest is no proof.
    let whole = *Block::new(Codec::Raw, "x").cid();
    let half = Cid::new_v1(0x55, Multihash::wrap(0x1e, &whole.hash().digest()[..16]).expect("short"));
    assert_eq!(check(&half, b"x"), Err(HashError::Mismatch { cid: half }));
}

#[test]
fn cid_that_carries_its_content_is_bounded() {
    let carrying = |size: usize| Cid::new_v1(0x55, Multihash::wrap(0, &vec![7; size]).expect("up to 64 bytes"));
    let cid = carrying(64);
    assert_eq!(identity_data(&cid), Some(&[7; 64][..]));
    assert_eq!(check(&cid, &[7; 64]), Ok(()));
    assert_eq!(check(&cid, &[8; 64]), Err(HashError::Mismatch { cid }));
    const { assert!(MAX_IDENTITY_SIZE >= 64) };
}

#[test]
fn peer_ids_have_a_text_form_and_carry_their_key() {
    let peer = PeerId::from_ed25519(&[7; 32]);
    let text = peer.to_string();
    assert!(text.starts_with("12D3Koo"), "{text}");
    assert_eq!(text.parse(), Ok(peer.clone()));
    assert_eq!(peer.ed25519(), Some([7; 32]));
    assert_eq!(peer.short(), format!("12D3…{}", &text[text.len() - 4..]));
    assert_eq!(codec::decode::<PeerId>(&codec::encode(&peer)).expect("valid"), peer);
    for text in ["", "0OIl", "é", &"1".repeat(200)] {
        assert!(text.parse::<PeerId>().is_err(), "{text:?}");
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let raw = Block::new(Codec::Raw, "x");
    let cid = *raw.cid();
    let git = Cid::new_v1(0x78, *cid.hash());
    let pb = Cid::new_v1(0x70, *cid.hash());
    let rows: [(String, &str); 13] = [
        (HashError::Mismatch { cid }.to_string(), "bytes offered as CID do not hash to it"),
        (
            HashError::UnknownHash { cid, code: 0x22 }.to_string(),
            "CID uses hash function 0x22, which cannot be verified",
        ),
        (HashError::TooLarge { size: 3_000_000 }.to_string(), "block of 3000000 bytes is larger than 2097152"),
        (
            DecodeError::WrongKind { expected: "iptl.run/1", found: "iptl.plan/1" }.to_string(),
            "expected a iptl.run/1 node and found a iptl.plan/1",
        ),
        (
            Node::from_bytes(b"\x01").expect_err("no node").to_string(),
            "not a valid Node: Mismatch { name: \"map\", found: 1 }",
        ),
        (links(&git, b"x").expect_err("git").to_string(), "GIT has codec 0x78, whose links cannot be read"),
        (links(&pb, b"x").expect_err("no node").to_string(), "PB is not a valid dag-pb node"),
        (WalkError::TooDeep { cid, limit: 5 }.to_string(), "the DAG is deeper than 5 links at CID"),
        (
            check_name("a/b").expect_err("slash").to_string(),
            "\"a/b\" cannot be the name of a file: it contains a slash",
        ),
        (
            DirectoryError::TooLarge { entries: 40_000, size: 2_200_000 }.to_string(),
            "a directory of 40000 entries takes 2200000 bytes, more than a block of 2097152",
        ),
        (
            UnixFs::decode(b"x").expect_err("no node").to_string(),
            "not a UnixFS node: truncated or malformed protobuf at byte 1",
        ),
        (UnixFsError::Sizes.to_string(), "the sizes in a file's node do not add up"),
        (PathError::TooLong.to_string(), "a path of more than 256 segments"),
    ];
    for (said, expected) in rows {
        let named = [(cid, "CID"), (git, "GIT"), (pb, "PB")];
        let said = named.iter().fold(said, |said, (cid, name)| said.replace(&cid.to_string(), name));
        assert_eq!(said, expected);
    }
    assert!(codec::decode::<Ipld>(b"\xff").is_err());
}

#[test]
fn peer_ids_of_every_length_are_equal_ordered_and_read_as_their_bytes() {
    let texts: Vec<Vec<u8>> = [vec![1], vec![0; 37], vec![0; 38], vec![0; 39], vec![7; 38], vec![7; 64]].into();
    let peers: Vec<PeerId> = texts.iter().map(|bytes| PeerId::from_bytes(bytes).expect("it is not too long")).collect();
    for (a, left) in texts.iter().zip(&peers) {
        for (b, right) in texts.iter().zip(&peers) {
            assert_eq!((left == right, left.cmp(right)), (a == b, a.cmp(b)));
        }
        assert_eq!(left.as_bytes(), &a[..]);
        assert_eq!(iptl_dag::decode::<PeerId>(&iptl_dag::encode(left)).expect("it was written so"), *left);
        assert_eq!(left.to_string().parse::<PeerId>().as_ref(), Ok(left));
    }
    assert!(PeerId::from_bytes(&[]).is_err() && PeerId::from_bytes(&[0; 65]).is_err());
    assert!(iptl_dag::decode::<PeerId>(&iptl_dag::encode(&serde_bytes::ByteBuf::from(vec![0; 65]))).is_err());
}
