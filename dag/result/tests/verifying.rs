//! Results verified from their CID, and results that are not what they say.

use std::collections::BTreeMap;

use iptl_dag::model::{
    self, CellNetworkUse, Epoch, Exit, FormerResult, GroupLoss, NetworkUse, Node, Receipt, ResultNode, ResultVerdict,
    Signed, Usage,
};
use iptl_dag::{Block, Cid, Codec};
use iptl_result::{
    AssembleError, AttestationRecord, SealError, SourceError, Spread, VerifyError, attestation, give_up_unreadable,
    seal, verify,
};
use proptest::prelude::*;

use crate::world::{World, check_signature, id, no_room, peer, sign};

#[test]
fn sealed_result_is_what_it_says() {
    let mut world = measured();
    let root = world.seal(|_| {});
    let found = world.verify(&root);
    assert_eq!(found.problems, [""; 0]);
    assert!(found.is_good() && found.outcome_equal && found.files_equal);
    assert_eq!((found.receipts, found.signatures_good, found.signatures_bad), (3, 3 + 1 + 3, 0));
    assert_eq!((found.facts, found.placements, found.missing_instances), (3, 1, 0));
    assert_eq!(found.lablets[&peer(1)].receipts, 3);
    assert_eq!(found.lablets[&peer(1)].counts.failed, 1);
    assert_eq!(found.result.verdict, ResultVerdict::Fail);
}

#[test]
fn what_instances_used_is_told_by_group() {
    let mut world = World::new(&[("a", 4), ("b", 1)], Vec::new());
    for index in 0..4 {
        world.end("a", index, Exit::Exited { code: 0 });
    }
    world.end("b", 0, Exit::NotStarted { reason: "no room".into() });
    for signed in &mut world.receipts {
        let n = u64::from(signed.body.instance.index);
        let usage = Usage { cpu_us: 10 * n, memory_bytes: 400 - n, sent_bytes: 1, ..Usage::default() };
        let started_ms = if signed.body.instance.group == "a" { 1 } else { 0 };
        *signed = sign(signed.signer.clone(), Receipt { usage, started_ms, ..signed.body.clone() });
    }
    let root = world.seal(|_| {});
    let found = world.verify(&root);
    assert_eq!(found.problems, [""; 0]);
    let a = &found.used["a"];
    assert_eq!((a.instances, a.cpu_us), (4, Spread { p50: 10, max: 30, sum: 60 }));
    assert_eq!((a.memory_bytes.p50, a.memory_bytes.max), (398, 400));
    assert_eq!((a.sent_bytes.sum, a.received_bytes.max), (4, 0));
    assert!(!found.used.contains_key("b"), "who never started used nothing");
}

#[test]
fn inconclusive_result_is_what_it_says() {
    let mut world = World::new(&[("a", 9)], Vec::new());
    world.end("a", 4, Exit::Exited { code: 0 });
    world.cancelled = true;
    let mut keys = Vec::new();
    let root = world.seal(|a| keys = a.missing.keys().cloned().collect());
    assert_eq!(keys, ["a/0-3", "a/5-8"]);
    let found = world.verify(&root);
    assert_eq!(found.problems, [""; 0]);
    assert_eq!(found.missing_instances, 8);
    assert_eq!(found.result.verdict, ResultVerdict::Inconclusive);
}

#[test]
fn result_of_what_was_never_started_is_what_it_says() {
    let never = || World { cannot_start: Some(no_room()), ..World::new(&[("a", 9)], Vec::new()) };
    let mut world = never();
    let root = world.seal(|_| {});
    let found = world.verify(&root);
    assert_eq!(found.problems, [""; 0]);
    assert_eq!((found.missing_instances, found.result.verdict), (9, ResultVerdict::Inconclusive));
    expect(never(), |a| a.inconclusive.clear(), &["does not state that nothing was started"]);
    expect(never(), |a| a.started_ms = 1, &["nothing was started, and something was"]);
}

#[test]
fn forged_receipt_counts_for_nothing() {
    let mut world = measured();
    world.receipts[0].body.exit = Exit::Exited { code: 1 };
    expect(world, |_| {}, &["the signature of a/0's receipt", "a/0 has no receipt that counts"]);
}

#[test]
fn receipt_signed_by_someone_else_counts_for_nothing() {
    let mut world = measured();
    world.receipts[0] = sign(peer(2), world.receipts[0].body.clone());
    expect(world, |_| {}, &["the receipt of a/0 is not signed by its lablet"]);
}

#[test]
fn receipt_of_a_lablet_that_was_not_there_counts_for_nothing() {
    let mut world = measured();
    let body = Receipt { lablet: peer(3), ..world.receipts[0].body.clone() };
    world.receipts[0] = sign(peer(3), body);
    expect(world, |_| {}, &["is by a lablet that took no part", "is by a lablet that it was not placed on"]);
}

#[test]
fn receipt_of_another_workload_counts_for_nothing() {
    let mut world = measured();
    let body = Receipt { workload: world.execution.run, ..world.receipts[0].body.clone() };
    world.receipts[0] = sign(peer(1), body);
    expect(world, |_| {}, &["the receipt of a/0 is of another workload"]);
}

#[test]
fn receipt_of_no_instance_is_reported() {
    let mut world = measured();
    world.end("a", 77, Exit::Exited { code: 0 });
    let root = world.seal(|_| {});
    let found = world.verify(&root);
    assert_eq!(found.unknown_instances, 1);
    assert_eq!(found.problems, ["a receipt for a/77, which the run does not have"]);
}

#[test]
fn receipt_left_out_is_noticed() {
    expect(measured(), |a| a.receipts.truncate(1), &["b/0 has no receipt", "the receipts give outcome"]);
}

#[test]
fn instance_attested_as_missing_is_lost_whatever_receipts_there_are() {
    expect(
        measured(),
        |a| a.missing.extend([("a/0".into(), "lie".into())]),
        &["the receipts give outcome", "the lab lost 1 of 3"],
    );
    expect(measured(), |a| a.missing.extend([("a/9".into(), "lie".into())]), &["\"a/9\" is listed as missing"]);
}

#[test]
fn instance_given_up_since_its_content_is_gone_leaves_a_result_that_is_what_it_says() {
    let mut world = measured();
    let metrics = world.receipts[1].body.metrics.expect("measured");
    world.blocks.remove(&metrics);
    let sealed = world.receipts.clone();
    let mut assembly = world.assembly();
    assert_eq!(give_up_unreadable(&mut assembly, &mut |cid| world.blocks.get(cid).cloned()), 1);
    assert!(assembly.missing[&id("a", 1)].starts_with("its metrics cannot be had: block "));
    world.receipts = assembly.receipts;
    world.attested = Some(sealed);
    let root = world.seal(|_| {});
    let found = world.verify(&root);
    assert_eq!(found.problems, [""; 0]);
    assert_eq!((found.receipts, found.missing_instances), (3, 1));
    assert_eq!(found.result.verdict, ResultVerdict::Inconclusive);
}

#[test]
fn attestation_by_someone_who_did_not_lead_is_noticed() {
    let mut world = measured();
    world.leader = peer(7);
    expect(world, |_| {}, &["who did not lead the execution"]);
}

#[test]
fn receipts_sealed_twice_count_once() {
    let mut world = measured();
    let root = world.seal(|a| a.receipts.extend(a.receipts.clone()));
    let found = world.verify(&root);
    assert!(found.is_good(), "{:?}", found.problems);
    assert_eq!((found.receipts, found.lablets[&peer(1)].receipts), (3, 3));
}

#[test]
fn placement_or_fact_left_out_is_noticed() {
    expect(measured(), |a| a.placements.clear(), &["a lablet that it was not placed on"]);
    expect(measured(), |a| a.log = Some(a.outcome), &["log: "]);
}

#[test]
fn verdict_that_does_not_follow_is_noticed() {
    let world = measured();
    reseal(world, |node| node.verdict = ResultVerdict::Pass, &["the verdict should be Fail and is Pass"]);
    reseal(measured(), |node| node.counts.ok += 1, &["the receipts give other counts"]);
    reseal(measured(), |node| node.files = node.outcome, &["vouches for other files", "give files"]);
}

#[test]
fn result_of_the_former_version_is_verified_as_well() {
    let mut world = measured();
    let root = world.seal(|_| {});
    let node: ResultNode = model::from_bytes(&world.blocks[&root]).expect("a result");
    let former = model::to_block(FormerResult(node.clone()));
    let cid = *former.cid();
    assert_ne!(cid, root);
    world.keep(vec![former]);
    let found = world.verify(&cid);
    assert!(found.is_good(), "{:#?}", found.problems);
    assert_eq!(found.result, node);
}

#[test]
fn attestation_signed_by_another_key_is_noticed() {
    let mut world = measured();
    let root = world.seal(|_| {});
    let mut node: ResultNode = model::from_bytes(&world.blocks[&root]).expect("a result");
    let Node::Attestation(mut signed) = Node::from_bytes(&world.blocks[&node.attestation]).expect("a node") else {
        panic!("not an attestation")
    };
    signed.signer = peer(7);
    let block = model::to_block(signed);
    node.attestation = *block.cid();
    let root = model::to_block(node);
    let cid = *root.cid();
    world.keep(vec![block, root]);
    check(&world, &cid, &["the attestation's signature"]);
}

#[test]
fn attestation_of_a_term_of_somebody_else_is_noticed() {
    let of = |n: u8| Epoch { counter: 3, peer: peer(n) };
    let mut world = measured();
    let root = world.seal(|a| a.term = Some(of(9)));
    assert!(world.verify(&root).is_good());
    expect(measured(), |a| a.term = Some(of(7)), &["is of a term of"]);
}

#[test]
fn attestation_that_hides_losses_is_noticed() {
    let mut world = World::new(&[("a", 2)], Vec::new());
    world.end("a", 0, Exit::Exited { code: 0 });
    expect(
        world,
        |a| a.inconclusive.clear(),
        &["does not state that the lab lost 1 of 2", "the verdict should be Pass"],
    );
}

#[test]
fn content_that_is_gone_is_noticed() {
    let mut world = measured();
    let root = world.seal(|_| {});
    let metrics = world.receipts[0].body.metrics.expect("measured");
    world.blocks.remove(&metrics);
    check(&world, &root, &["the outcome cannot be assembled again: metrics of a/0: block"]);
}

#[test]
fn result_that_nobody_has_is_an_error() {
    let mut world = measured();
    let root = world.seal(|_| {});
    let error = verify(&root, &mut |_| None, &check_signature).expect_err("nothing there");
    assert!(matches!(error, VerifyError::Node { what: "result", .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever block of a result is exchanged for whatever bytes, verification ends and is not deceived.
    #[test]
    fn exchanged_block_is_noticed(pick in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut world = measured();
        let root = world.seal(|_| {});
        let read: std::cell::RefCell<Vec<Cid>> = Default::default();
        verify(&root, &mut |cid| { read.borrow_mut().push(*cid); world.blocks.get(cid).cloned() }, &check_signature)
            .expect("sealed");
        let read = read.into_inner();
        let cid = read[pick.index(read.len())];
        world.blocks.insert(cid, bytes.into());
        let good = verify(&root, &mut |cid| world.blocks.get(cid).cloned(), &check_signature)
            .is_ok_and(|found| found.is_good());
        prop_assert!(!good);
    }
}

/// Three instances of two groups, one of which failed.
fn measured() -> World {
    let mut world = World::new(&[("a", 2), ("b", 1)], Vec::new());
    world.measure("a", 0, "{\"t\":1,\"name\":\"v\",\"value\":1.5,\"unit\":\"ms\"}\n");
    world.measure("a", 1, "{\"t\":1,\"name\":\"v\",\"value\":2.5,\"unit\":\"ms\"}\n");
    world.add(world.receipt(id("b", 0), Exit::Exited { code: 2 }));
    world
}

fn expect(mut world: World, edit: impl FnOnce(&mut model::Attestation), problems: &[&str]) {
    let root = world.seal(edit);
    check(&world, &root, problems);
}

fn reseal(mut world: World, edit: impl FnOnce(&mut ResultNode), problems: &[&str]) {
    let root = world.seal(|_| {});
    let mut node: ResultNode = model::from_bytes(&world.blocks[&root]).expect("a result");
    edit(&mut node);
    let block = model::to_block(node);
    let cid = *block.cid();
    world.keep(vec![block]);
    check(&world, &cid, problems);
}

fn check(world: &World, root: &Cid, problems: &[&str]) {
    let found = world.verify(root);
    assert!(!found.is_good());
    for problem in problems {
        assert!(found.problems.iter().any(|p| p.contains(problem)), "no {problem:?} in {:#?}", found.problems);
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let cid = world_cid();
    let missing = || SourceError::Missing { cid };
    let rows = [
        (VerifyError::Node { what: "run", source: missing() }.to_string(), "the run cannot be read"),
        (missing().to_string(), "block CID is missing"),
        (
            AssembleError::Content { instance: id("a", 3), what: "logs", source: Box::new(missing()) }.to_string(),
            "logs of a/3",
        ),
        (
            AssembleError::TooManyInstances { instances: 2_000_000 }.to_string(),
            "a run of 2000000 instances, of which 1000000 can be assembled",
        ),
        (
            AssembleError::OutcomeTooLarge { size: 3_000_000 }.to_string(),
            "an outcome of 3000000 bytes, more than a block holds",
        ),
        (
            SealError::AttestationTooLarge { size: 3_000_000 }.to_string(),
            "an attestation of 3000000 bytes, more than a block holds",
        ),
    ];
    for (said, expected) in rows {
        assert_eq!(said.replace(&cid.to_string(), "CID"), expected);
    }
}

#[test]
fn attestation_that_exceeds_a_block_is_an_error_and_not_a_panic() {
    let world = measured();
    let (assembly, assembled) = (world.assembly(), world.assemble());
    let record = AttestationRecord {
        lab: peer(8),
        receipts: vec![world_cid(); 60_000],
        placements: Vec::new(),
        log: None,
        lablets: Vec::new(),
        submitted_ms: 0,
        started_ms: 0,
        ended_ms: 0,
        distortions: Vec::new(),
        attempts: BTreeMap::new(),
        ended_early: None,
        cannot_start: None,
        term: None,
    };
    let body = attestation(&assembly, &assembled, record);
    let signed = Signed { body, signer: peer(9), signature: vec![0; 64] };
    let sealed = seal(&assembly, &assembled, &world.execution, signed);
    assert!(matches!(sealed, Err(SealError::AttestationTooLarge { .. })));
}

#[test]
fn lab_network_that_did_not_keep_to_its_model_is_named_by_lablet() {
    let good = CellNetworkUse { lateness: vec![0, 0, 99], max_late_ns: 3, ..CellNetworkUse::default() };
    let mut late = good.clone();
    // Two of a hundred were late by some 4 ms.
    late.lateness.resize(23, 0);
    late.lateness[2] = 98;
    late.lateness[22] = 2;
    late.max_late_ns = 4_000_000;
    let overdue = CellNetworkUse { overdue: 7, max_overdue_ns: 2_500_000, ..good.clone() };
    let lost = CellNetworkUse { lost_by_lab: 4, ..good.clone() };
    let relayed = CellNetworkUse { relayed: 9, ..good.clone() };
    let rows = [
        (good.clone(), 0, None),
        (good, 3, Some("3 packets of the lab network were lost by the lab and by no model")),
        (lost, 3, Some("7 packets of the lab network were lost by the lab and by no model")),
        (late, 0, Some("1 % of the lab network's packets were about 4.0 ms late or more, 4.0 ms at worst")),
        (overdue, 0, Some("7 packets from other lablets took longer than the network's delay, 2.5 ms at worst")),
        (relayed, 0, Some("9 packets from other lablets came over a relay, whose times are its own")),
    ];
    for (cell, lost_by_lab, said) in rows {
        let mut world = World::new(&[("a", 1)], Vec::new());
        let network = Some(NetworkUse { lost_by_lab, cell, ..NetworkUse::default() });
        world.add(Receipt { network, ..world.receipt(id("a", 0), Exit::Exited { code: 0 }) });
        let mut found = Vec::new();
        world.seal(|body| found.clone_from(&body.distortions));
        let found: Vec<(&str, &str)> = found.iter().map(|d| (d.place.as_str(), d.what.as_str())).collect();
        assert_eq!(found, said.map(|what| ("lablet", what)).into_iter().collect::<Vec<_>>());
    }
}

fn world_cid() -> Cid {
    *Block::new(Codec::Raw, "x").cid()
}

#[test]
fn attempts_are_counted_again_and_none_is_beyond_the_bound() {
    let mut world = World::new(&[("a", 3)], Vec::new());
    let loss = GroupLoss { rerun: 1, ..GroupLoss::default() };
    world.run.groups.get_mut("a").expect("it is there").loss = Some(loss);
    world.execution.run = *model::to_block(world.run.clone()).cid();
    for placement in &mut world.placements {
        placement.execution = world.execution.id();
    }
    for (index, attempt) in [(0, 1), (1, 2), (2, 2)] {
        world.add(Receipt { attempt, ..world.receipt(id("a", index), Exit::Exited { code: 0 }) });
    }
    world.attempts = BTreeMap::from([(id("a", 1), 2), (id("a", 2), 2)]);
    let result = world.seal(|attestation| assert_eq!(attestation.attempts, BTreeMap::from([("a/1-2".to_owned(), 2)])));
    assert_eq!(world.verify(&result).problems, Vec::<String>::new());

    let hidden = world.seal(|attestation| attestation.attempts.clear());
    let problems = world.verify(&hidden).problems;
    assert!(problems[0].contains("further attempts"), "{problems:?}");

    world.add(Receipt { attempt: 3, ..world.receipt(id("a", 0), Exit::Exited { code: 0 }) });
    let beyond = world.seal(|_| {});
    let problems = world.verify(&beyond).problems;
    assert!(problems[0].contains("a/0 is of an attempt too many"), "{problems:?}");
}
