//! The second way to read facts reads what the first one reads, and nothing that that one refuses.

use iptl_dag::model::fact::{read_frequent, read_frequent_body, snapshot_part};
use iptl_dag::model::{self, Epoch, ExecutionId, Fact, FactKind, Recorded, Signed};
use iptl_dag::{Codec, PeerId, codec};

#[test]
fn frequent_facts_are_read_as_by_the_decoder_of_all_nodes() {
    for (name, fact) in frequent() {
        let bytes = bytes_of(&fact);
        assert_eq!(read_frequent(&bytes).as_ref(), Some(&fact), "{name}");
        assert_eq!(read_frequent_body(&bytes), Some((fact.body, fact.signer)), "{name}");
    }
}

#[test]
fn other_nodes_are_left_to_that_decoder() {
    for kind in [FactKind::Placed { placement: cid(1) }, FactKind::Started {}] {
        assert_eq!(read_frequent(&bytes_of(&fact(kind))), None);
    }
    for bytes in crate::examples::nodes().into_iter().map(|(_, node)| node.to_block().data().to_vec()) {
        if let Some(fact) = read_frequent(&bytes) {
            assert_eq!(model::from_bytes::<Signed<Fact>>(&bytes).ok(), Some(fact));
        }
    }
}

#[test]
fn whatever_byte_is_changed_or_cut_off_no_more_is_read_than_by_that_decoder() {
    let mut read = 0;
    for (name, fact) in frequent() {
        let whole = bytes_of(&fact);
        for at in 0..whole.len() {
            assert_eq!(read_frequent(&whole[..at]), None, "{name} cut at {at}");
            for change in [1, 2, 4, 8, 16, 32, 64, 128, 0x1f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                let Some(found) = read_frequent(&bytes) else { continue };
                read += 1;
                let expected = model::from_bytes::<Signed<Fact>>(&bytes).expect("the decoder reads it too");
                assert_eq!(found, expected, "{name}, byte {at} changed by {change}");
            }
        }
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(read_frequent(&longer), None, "{name}");
    }
    assert!(read > 1_000, "{read} changed facts are facts");
}

#[test]
fn a_number_or_a_part_that_is_not_in_its_shortest_form_is_refused() {
    for count in [0, 23, 24, 255, 256, 65_535, 65_536, u32::MAX] {
        let fact = fact(FactKind::Received { lablet: peer(1), shard: cid(1), count });
        assert_eq!(read_frequent(&bytes_of(&fact)), Some(fact));
    }
    let bytes = bytes_of(&fact(FactKind::Received { lablet: peer(1), shard: cid(1), count: 7 }));
    let at = position(&bytes, b"\x65count\x07") + 6;
    let longer = [&bytes[..at], &[0x18, 7], &bytes[at + 1..]].concat();
    assert_eq!(read_frequent(&longer), None);

    let recorded = Recorded { epoch: epoch(1), at_ms: 5, kind: FactKind::Started {} };
    let bytes = bytes_of(&fact(FactKind::Snapshot { part: 0, last: true, facts: vec![recorded] }));
    let at = position(&bytes, b"\x65at_ms\x05") + 6;
    let longer = [&bytes[..at], &[0x18, 5], &bytes[at + 1..]].concat();
    assert_eq!(read_frequent(&longer), None);
}

#[test]
fn the_part_of_a_snapshot_is_known_by_its_beginning() {
    for (part, last) in [(0, true), (0, false), (7, false), (300, true)] {
        let bytes = bytes_of(&fact(FactKind::Snapshot { part, last, facts: Vec::new() }));
        assert_eq!(snapshot_part(&bytes), Some((part, last)));
    }
    assert_eq!(snapshot_part(&bytes_of(&fact(FactKind::Started {}))), None);
}

fn position(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).expect("it is there")
}

fn frequent() -> Vec<(&'static str, Signed<Fact>)> {
    let received = |n: u8| FactKind::Received { lablet: peer(n), shard: cid(n), count: u32::from(n) * 1000 };
    let recorded = |kind| Recorded { epoch: epoch(3), at_ms: 1_790_000_000_000, kind };
    let mixed = [FactKind::Started {}, received(1), FactKind::Cancelled { by: peer(3) }, received(2), received(0)];
    let snapshot = FactKind::Snapshot { part: 1, last: false, facts: mixed.map(recorded).into() };
    let first = Signed { body: Fact { prev: None, ..fact(received(8)).body }, ..fact(FactKind::Started {}) };
    vec![("received", fact(received(9))), ("snapshot", fact(snapshot)), ("first", first)]
}

fn fact(kind: FactKind) -> Signed<Fact> {
    let body =
        Fact { execution: ExecutionId(cid(200)), seq: 70_000, prev: Some(cid(201)), epoch: epoch(4), at_ms: 77, kind };
    Signed { body, signer: peer(4), signature: (0..64).collect() }
}

fn epoch(counter: u64) -> Epoch {
    Epoch { counter, peer: peer(4) }
}

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn cid(n: u8) -> iptl_dag::Cid {
    codec::cid_of(&n)
}

fn bytes_of(fact: &Signed<Fact>) -> Vec<u8> {
    let block = model::to_block(fact.clone());
    assert_eq!(Codec::of(block.cid()), Some(Codec::DagCbor));
    block.data().to_vec()
}
