//! What facts are about is what stands in their blocks.

use iptl_dag::model::fact::{CellFact, End, FactLink};
use iptl_dag::model::{Epoch, Fact, FactKind, Node, Recorded, Signed};
use iptl_dag::{Cid, Ipld, PeerId, codec, walk};

#[test]
fn a_fact_links_what_its_block_links_beside_the_log() {
    let mut linking = 0;
    for (name, fact) in facts() {
        let Fact { execution, prev, kind, .. } = &fact.body;
        let mut expected = all_links(&fact);
        for of_log in [Some(execution.0), *prev].into_iter().flatten() {
            let at = expected.iter().position(|cid| *cid == of_log).expect("the log's own links stand in the block");
            expected.remove(at);
        }
        expected.sort();
        let mut found: Vec<Cid> = kind.links().map(cid).collect();
        found.sort();
        assert_eq!(found, expected, "{name}");
        linking += u32::from(!found.is_empty());
    }
    assert!(linking >= 5, "{linking} facts link anything");
}

#[test]
fn a_fact_that_names_a_lablet_tells_of_its_cell() {
    let mut named = 0;
    for (name, fact) in facts() {
        let kind = &fact.body.kind;
        let lablet = lablet_of(kind);
        assert_eq!(kind.of_cell().map(|(lablet, _)| lablet.clone()), lablet, "{name}");
        named += u32::from(lablet.is_some());
    }
    assert!(named >= 8, "{named} facts name a lablet");
}

#[test]
fn a_cell_is_held_by_a_grant_that_was_found_again_as_by_a_new_one() {
    let held: Vec<String> = facts()
        .into_iter()
        .filter(|(_, fact)| matches!(fact.body.kind.of_cell(), Some((_, CellFact::Held { .. }))))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(held, ["fact-granted", "fact-recovered"]);
}

#[test]
fn an_execution_ends_sealed_or_failed() {
    let ends: Vec<(String, bool)> = facts()
        .into_iter()
        .filter_map(|(name, fact)| fact.body.kind.end().map(|end| (name, matches!(end, End::Sealed(_)))))
        .collect();
    let expected = [
        ("fact-sealed", true),
        ("fact-failed", false),
        ("fact-sealed-in-a-term", true),
        ("fact-failed-in-a-term", false),
    ];
    assert_eq!(ends, expected.map(|(name, sealed)| (name.to_owned(), sealed)));
}

#[test]
fn a_snapshot_links_what_its_facts_link_and_is_of_no_cell() {
    let kinds: Vec<FactKind> = facts().into_iter().map(|(_, fact)| fact.body.kind).collect();
    let expected: Vec<FactLink> = kinds.iter().flat_map(FactKind::links).collect();
    assert!(expected.iter().any(|link| matches!(link, FactLink::Result(_))));
    let recorded =
        |kind| Recorded { epoch: Epoch { counter: 1, peer: PeerId::from_ed25519(&[1; 32]) }, at_ms: 1, kind };
    let flat = kinds.into_iter().filter(|kind| !matches!(kind, FactKind::Snapshot { .. }));
    let snapshot = FactKind::Snapshot { part: 0, last: true, facts: flat.map(recorded).collect() };
    assert_eq!(snapshot.links().collect::<Vec<_>>(), expected);
    assert_eq!((snapshot.of_cell(), snapshot.end()), (None, None));
}

/// Returns one fact of every kind.
fn facts() -> Vec<(String, Signed<Fact>)> {
    crate::examples::nodes()
        .into_iter()
        .filter_map(|(name, node)| match node {
            Node::Fact(fact) => Some((name, fact)),
            _ => None,
        })
        .collect()
}

fn all_links(fact: &Signed<Fact>) -> Vec<Cid> {
    let block = Node::from(fact.clone()).to_block();
    walk::links(block.cid(), block.data()).expect("a fact is DAG-CBOR")
}

fn cid(link: FactLink) -> Cid {
    match link {
        FactLink::Execution(cid)
        | FactLink::Run(cid)
        | FactLink::Placement(cid)
        | FactLink::Receipts(cid)
        | FactLink::Result(cid) => cid,
    }
}

/// Reads from what a kind is encoded as which lablet it names.
fn lablet_of(kind: &FactKind) -> Option<PeerId> {
    let Ipld::Map(kind) = codec::decode::<Ipld>(&codec::encode(kind)).expect("what was encoded is decoded") else {
        panic!("a kind is a map of one entry");
    };
    let Some(Ipld::Map(fields)) = kind.into_values().next() else { panic!("a kind has fields") };
    match fields.get("lablet") {
        Some(lablet @ Ipld::Bytes(_)) => {
            Some(codec::decode(&codec::encode(lablet)).expect("a lablet is named by its peer ID"))
        }
        Some(Ipld::Null) | None => None,
        Some(other) => panic!("{other:?} names no lablet"),
    }
}
