//! Messages: how they are written, and what their counts come to.

use std::collections::BTreeMap;

use iptl_dag::model::WorkloadKind::{self, Docker, Wasm};
use iptl_dag::model::{Assignment, Epoch, ExecutionId};
use iptl_dag::{PeerId, codec};
use iptl_wire::frame;
use iptl_wire::session::{CellRef, Grant, Inventory, Slots};

fn inventory(slots: &[(WorkloadKind, u32, u32)]) -> Inventory {
    let slots = slots.iter().map(|(kind, total, free)| (*kind, Slots { total: *total, free: *free }));
    Inventory { slots: slots.collect(), ..Inventory::default() }
}

#[test]
fn a_frame_is_whole_once_all_its_bytes_are_there() {
    let bytes = frame::encode(&"hello");
    for end in 0..bytes.len() {
        assert!(!frame::is_whole(&bytes[..end]), "{end}");
    }
    assert!(frame::is_whole(&bytes) && frame::is_whole(&[&bytes[..], &[1, 2]].concat()));
    assert!(!frame::is_whole(&[0xff; 9]), "a length that is not there yet");
}

#[test]
fn slots_are_written_under_the_names_of_their_kinds() {
    let both = inventory(&[(Wasm, 16, 12), (Docker, 4, 0)]);
    let bytes = codec::encode(&both);
    assert_eq!(codec::decode_canonical::<Inventory>(&bytes).expect("it was just written"), both);
    for kind in [Wasm, Docker] {
        assert!(bytes.windows(kind.name().len()).any(|at| at == kind.name().as_bytes()), "{}", kind.name());
    }
}

#[test]
fn a_kind_without_slots_has_no_runner() {
    let rows = [(inventory(&[]), false), (inventory(&[(Docker, 0, 0)]), false), (inventory(&[(Docker, 1, 0)]), true)];
    for (has, runs) in rows {
        assert_eq!(has.runs(Docker), runs, "{has:?}");
        assert!(!has.runs(Wasm));
        assert_eq!((has.total(Wasm), has.free(Wasm)), (0, 0));
    }
}

#[test]
fn what_is_taken_of_one_kind_is_not_missing_of_another() {
    let mut has = inventory(&[(Wasm, 16, 12), (Docker, 4, 3)]);
    has.take(&BTreeMap::from([(Docker, 2)]));
    assert_eq!((has.free(Wasm), has.free(Docker)), (12, 1));
    has.take(&BTreeMap::from([(Wasm, 5), (Docker, u32::MAX)]));
    assert_eq!(has.sum(), Slots { total: 20, free: 7 });
    // What it has no runner for cannot be taken.
    let mut none = inventory(&[]);
    none.take(&BTreeMap::from([(Wasm, 1)]));
    assert_eq!(none, inventory(&[]));
}

#[test]
fn sums_of_slots_do_not_overflow() {
    assert_eq!([Slots::of(u32::MAX), Slots::of(2)].iter().sum::<Slots>(), Slots::of(u32::MAX));
}

#[test]
fn a_grant_from_before_there_were_kinds_is_read_and_names_no_slots() {
    let peer = PeerId::from_ed25519(&[1; 32]);
    let named = ExecutionId(codec::cid_of(&"execution"));
    let grant = Grant {
        cell: CellRef { execution: named, epoch: Epoch { counter: 1, peer: peer.clone() } },
        lablet: peer.clone(),
        run: codec::cid_of(&"run"),
        assignments: vec![Assignment { group: "a".into(), start: 0, count: 1, lablet: peer }],
        slots: BTreeMap::new(),
        attempt: 1,
        memory_bytes: 1,
        placement: Vec::new(),
        roster: BTreeMap::new(),
    };
    let bytes = codec::encode(&grant);
    assert!(!bytes.windows(5).any(|at| at == b"slots"));
    assert_eq!(codec::decode_canonical::<Grant>(&bytes).expect("it was just written"), grant);
}

mod takeover;
