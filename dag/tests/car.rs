//! CAR streams.

use iptl_dag::{Block, Codec, car};

#[test]
fn header_is_the_one_of_the_specification() {
    let cid = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e".parse().expect("valid");
    let header = car::header(&[cid]);
    let mut expected = b"\x38\xa2\x65roots\x81\xd8\x2a\x58\x25\x00".to_vec();
    expected.extend(cid.to_bytes());
    expected.extend(b"\x67version\x01");
    expected[0] = u8::try_from(expected.len() - 1).expect("short");
    assert_eq!(header, expected);
    assert_eq!(header[0], 0x3a);
}

#[test]
fn section_is_length_cid_and_bytes() {
    let block = Block::new(Codec::Raw, vec![7; 200]);
    let section = car::frame(&block);
    assert_eq!(section[..2], [0xec, 0x01], "236 as a varint");
    assert_eq!(section[2..38], block.cid().to_bytes());
    assert_eq!(&section[38..], &block.data()[..]);
    assert!(section.starts_with(&car::frame_head(&block)));
}
