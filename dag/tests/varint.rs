//! Numbers and CIDs have one form.

use iptl_dag::unixfs::pb::{PbError, PbNode};
use iptl_dag::varint::{Malformed, decode, decode_cid, encode, encoded_len, whole_cid};
use iptl_dag::{Block, Cid, Codec, Multihash};

#[test]
fn numbers_are_read_as_they_are_written() {
    for value in [0, 1, 127, 128, 16_383, 16_384, 1 << 35, (1 << 63) - 1, 1 << 63, u64::MAX] {
        let mut bytes = Vec::new();
        encode(value, &mut bytes);
        assert_eq!(bytes.len(), encoded_len(value), "{value}");
        bytes.push(7);
        assert_eq!(decode(&bytes), Ok((value, &[7][..])));
        assert_eq!(decode(&bytes[..bytes.len() - 2]), Err(Malformed), "{value} cut short");
    }
}

/// The tenth byte of these has bits for which a number has no room; `unsigned-varint` reads over them.
#[test]
fn a_number_of_more_than_64_bits_is_refused() {
    let rows: [&[u8]; 4] = [
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x10],
        &[0x85, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02],
        &[0xa4, 0xcd, 0x8f, 0xfd, 0xad, 0x92, 0xaa, 0xb1, 0xb3, 0x49],
        &[0x85, 0x00],
    ];
    for bytes in rows {
        assert_eq!(decode(bytes), Err(Malformed), "{bytes:x?}");
    }
}

#[test]
fn a_cid_in_a_second_form_is_none() {
    let cid = Cid::new_v1(0x55, Multihash::wrap((1 << 63) - 1, &[]).expect("an empty digest fits"));
    let first = cid.to_bytes();
    assert_eq!(whole_cid(&first), Ok(cid));
    // The same hash function in ten bytes, of which the last says nothing.
    let second = [&first[..2], &[0xff; 9], &[0x10, 0]].concat();
    assert_eq!(decode_cid(&second), Err(Malformed));
    // The same number of bytes, and a bit too many in the last one.
    let long = Cid::new_v1(0x55, Multihash::wrap(u64::MAX, &[]).expect("an empty digest fits")).to_bytes();
    assert!(whole_cid(&long).is_ok());
    assert_eq!(whole_cid(&[&long[..11], &[0x1b, 0]].concat()), Err(Malformed));
    let link = [&[0x0a, second.len() as u8][..], &second].concat();
    let node = [&[0x12, link.len() as u8][..], &link].concat();
    assert_eq!(PbNode::decode(&node), Err(PbError::Link));
}

#[test]
fn what_follows_a_cid_is_not_part_of_it() {
    let cid = *Block::new(Codec::Raw, "leaf").cid();
    let bytes = [&cid.to_bytes()[..], b"more"].concat();
    assert_eq!(decode_cid(&bytes), Ok((cid, &b"more"[..])));
    assert_eq!(whole_cid(&bytes), Err(Malformed));
}
