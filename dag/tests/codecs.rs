//! Codecs against the fixtures of ipld/codec-fixtures, and what a strict one must refuse besides.

use std::collections::BTreeMap;
use std::path::Path;

use iptl_dag::codec::{decode_as, encode_as};
use iptl_dag::{Block, Cid, Codec, Ipld};
use serde_json::Value;

use crate::vectors::{hex, json, list, read, vectors};

/// What is known to differ: fixture, codec read, codec written. The crate for DAG-JSON reads whole numbers below −2^63 as
/// floating point ones.
const KNOWN: [(&str, &str, &str); 2] =
    [("int--11959030306112471732", "dag-json", "dag-cbor"), ("int--11959030306112471732", "dag-json", "dag-json")];

#[test]
fn fixtures_are_read_from_each_codec_and_written_to_each_byte_for_byte() {
    let Some(fixtures) = vectors("codec-fixtures/fixtures") else { return };
    let (mut comparisons, mut differing) = (0, Vec::new());
    for fixture in list(&fixtures) {
        let name = name(&fixture);
        let blocks: Vec<(Codec, Block)> = list(&fixture).iter().map(|path| block(path)).collect();
        for (from, block) in &blocks {
            let value = decode_as(*from, block.data()).unwrap_or_else(|e| panic!("{name} as {}: {e}", from.name()));
            for (to, expected) in &blocks {
                comparisons += 1;
                if encode_as(*to, &value).ok().as_deref() != Some(&expected.data()[..]) {
                    differing.push((name.clone(), from.name(), to.name()));
                }
            }
        }
    }
    let differing: Vec<_> = differing.iter().map(|(name, from, to)| (name.as_str(), *from, *to)).collect();
    assert_eq!(differing, KNOWN);
    assert_eq!(comparisons, 597);
}

/// Reads a block whose file is named by its CID and its codec, and checks both.
fn block(path: &Path) -> (Codec, Block) {
    let name = name(path);
    let (cid, codec) = name.split_once('.').expect("a CID and a codec");
    let block = Block::verify(cid.parse::<Cid>().expect("a CID"), read(path)).expect(&name);
    let known = Codec::of(block.cid()).expect("a codec that is read");
    assert_eq!(known.name(), codec);
    (known, block)
}

fn name(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned()
}

#[test]
fn negative_fixtures_are_not_decoded() {
    let Some(fixtures) = vectors("codec-fixtures/negative-fixtures") else { return };
    let mut rows = 0;
    for codec in [Codec::DagCbor, Codec::DagJson, Codec::DagPb] {
        for file in list(&fixtures.join(codec.name()).join("decode")) {
            for row in json(&file).as_array().expect("a list") {
                let bytes = hex(row["hex"].as_str().expect("a text"));
                assert!(decode_as(codec, &bytes).is_err(), "{} of {}", row["name"], codec.name());
                rows += 1;
            }
        }
    }
    assert_eq!(rows, 11);
}

#[test]
fn negative_fixtures_are_not_encoded() {
    let Some(fixtures) = vectors("codec-fixtures/negative-fixtures/dag-pb/encode") else { return };
    let mut rows = 0;
    for file in list(&fixtures) {
        for row in json(&file).as_array().expect("a list") {
            rows += 1;
            // Half of the values are given where the logical form has fields that are present and null.
            let Ok(value) = decode_as(Codec::DagJson, row["dag-json"].to_string().as_bytes()) else {
                panic!("{} is no value", row["name"])
            };
            assert!(encode_as(Codec::DagPb, &value).is_err(), "{}: {value:?}", row["name"]);
        }
    }
    assert!(rows > 20, "only {rows} rows");
}

#[test]
fn dag_cbor_is_read_in_its_canonical_form_alone() {
    let rows: [(&str, &str); 19] = [
        ("1817", "a number in more bytes than it needs"),
        ("190001", "a number in more bytes than it needs"),
        ("3800", "a negative number in more bytes than it needs"),
        ("5800", "a length in more bytes than it needs"),
        ("f93c00", "a float of 16 bits"),
        ("fa3f800000", "a float of 32 bits"),
        ("fb7ff8000000000000", "no number"),
        ("fb7ff0000000000000", "infinity"),
        ("fb8000000000000000", "negative zero"),
        ("9fff", "a list without a length"),
        ("bfff", "a map without a length"),
        ("5f4100ff", "bytes without a length"),
        ("a2626161016162f5", "longer keys before shorter ones"),
        ("a2616201616102", "keys out of order"),
        ("a10102", "a key that is no text"),
        ("d82a4101", "a link without the byte before it"),
        ("d82a46000155000000", "a link with bytes behind its CID"),
        ("c11a5f5e1000", "a tag other than that of links"),
        ("f7", "undefined"),
    ];
    for (bytes, what) in rows {
        assert!(decode_as(Codec::DagCbor, &hex(bytes)).is_err(), "{what} was read");
    }
    assert!(decode_as(Codec::DagCbor, &hex("0000")).is_err(), "bytes behind a value were read");
    assert!(decode_as(Codec::DagCbor, &hex("6161")).is_ok());
    assert!(decode_as(Codec::DagCbor, &hex("d82a450001550000")).is_ok());
}

#[test]
fn nesting_is_bounded() {
    for depth in [10_000, 1_000_000] {
        let cbor = [vec![0x81; depth], vec![0xf6]].concat();
        assert!(decode_as(Codec::DagCbor, &cbor).is_err());
        let json = [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(decode_as(Codec::DagJson, &json).is_err());
    }
}

#[test]
fn lengths_that_nothing_follows_are_refused_before_there_is_room_for_them() {
    for head in ["9b", "bb", "5b", "7b"] {
        for length in ["00000000ffffffff", "7fffffffffffffff", "ffffffffffffffff"] {
            assert!(decode_as(Codec::DagCbor, &hex(&format!("{head}{length}"))).is_err());
        }
    }
}

#[test]
fn map_that_dag_json_would_read_as_a_link_is_not_written() {
    let inner = |key: &str| Ipld::Map(BTreeMap::from([(key.to_owned(), Ipld::String("bafkqaaa".into()))]));
    let value = |key: &str| Ipld::List(vec![Ipld::Map(BTreeMap::from([("a".to_owned(), inner(key))]))]);
    assert!(encode_as(Codec::DagJson, &value("/")).is_err());
    let written = encode_as(Codec::DagJson, &value("a/")).expect("it has a form");
    assert_eq!(decode_as(Codec::DagJson, &written).expect("valid"), value("a/"));
    let cbor = encode_as(Codec::DagCbor, &value("/")).expect("DAG-CBOR has no such key");
    assert_eq!(decode_as(Codec::DagCbor, &cbor).expect("valid"), value("/"));
}

#[test]
fn values_without_a_form_are_refused_by_name() {
    let rows = [
        (Codec::Raw, Ipld::Null, "this value has no form in raw: it is not bytes"),
        (Codec::DagPb, Ipld::Null, "this value has no form in dag-pb: a node is a map"),
        (
            Codec::DagJson,
            Ipld::Map(BTreeMap::from([("/".to_owned(), Ipld::Null)])),
            "this value has no form in dag-json: a map whose first key is a slash stands for a link or bytes",
        ),
    ];
    for (codec, value, expected) in rows {
        assert_eq!(encode_as(codec, &value).expect_err(expected).to_string(), expected);
    }
    assert!(encode_as(Codec::DagCbor, &Ipld::Float(f64::NAN)).is_err());
    assert!(encode_as(Codec::DagJson, &Ipld::Float(f64::INFINITY)).is_err());
    assert!(encode_as(Codec::DagCbor, &Ipld::Integer(i128::MAX)).is_err());
}

#[test]
fn canonical_dag_json_of_the_fixtures_has_no_spaces() {
    let Some(fixtures) = vectors("codec-fixtures/fixtures/map-with_complex_entries") else { return };
    let (_, block) =
        list(&fixtures).iter().map(|path| self::block(path)).find(|(c, _)| *c == Codec::DagJson).expect("one");
    let plain: Value = serde_json::from_slice(block.data()).expect("JSON");
    let spaced = serde_json::to_vec_pretty(&plain).expect("JSON");
    let value = decode_as(Codec::DagJson, &spaced).expect("spaces are read");
    assert_eq!(encode_as(Codec::DagJson, &value).expect("it has a form"), block.data()[..]);
}
