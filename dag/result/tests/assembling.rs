//! Outcomes, verdicts and files.

use std::collections::BTreeMap;

use iptl_dag::model::{
    self, Comparison, Counts, Epoch, Exit, GroupLoss, GroupOutcome, MaxLost, Outcome, OutcomeShard, Receipt,
    ResultVerdict, Statistic, Subject, Termination, Threshold, Verdict,
};
use iptl_dag::path::{Resolve, Step, Target};
use iptl_dag::unixfs::{DirectoryBuilder, FileReader, UnixFs};
use iptl_dag::{Block, Cid};
use iptl_result::{AssembleError, Assembled, assemble};
use proptest::prelude::*;

use crate::world::{World, id, no_room, peer};

#[test]
fn every_exit_has_its_termination() {
    let failed = |cause: &str| Termination::Failed { cause: cause.into() };
    let reason = || "in words of the lablet".to_owned();
    let rows = [
        (Exit::Exited { code: 0 }, Termination::Ok {}),
        (Exit::Exited { code: 3 }, failed("exit 3")),
        (Exit::Reported { code: 2, failure: None }, Termination::Ok {}),
        (Exit::Reported { code: 0, failure: Some("no peers".into()) }, failed("no peers")),
        (Exit::Trapped { trap: "unreachable".into() }, failed("trap unreachable")),
        (Exit::Signalled { signal: "SIGSEGV".into() }, failed("signal SIGSEGV")),
        (Exit::Unwell { reason: reason() }, failed("unwell")),
        (Exit::StackOverflow {}, failed("stack overflow")),
        (Exit::OutOfMemory {}, failed("out of memory")),
        (Exit::OutOfCpu {}, failed("out of cpu time")),
        (Exit::OutOfTime {}, failed("out of time")),
        (Exit::TooMuchOutput { what: "output".into() }, failed("too much output")),
        (Exit::NotStarted { reason: reason() }, failed("not started")),
        (Exit::Stopped { reason: reason() }, Termination::Lost {}),
        (Exit::WorkerDied { reason: reason() }, Termination::Lost {}),
    ];
    for (exit, expected) in rows {
        let mut world = World::new(&[("a", 1)], Vec::new());
        world.end("a", 0, exit.clone());
        assert_eq!(terminations(&world.assemble(), "a"), [expected], "{exit:?}");
    }
}

#[test]
fn run_whose_instances_all_end_well_passes() {
    let mut world = World::new(&[("a", 2), ("b", 1)], Vec::new());
    for (group, index) in [("a", 0), ("a", 1), ("b", 0)] {
        world.end(group, index, Exit::Exited { code: 0 });
    }
    let assembled = world.assemble();
    assert_eq!(assembled.result_verdict, ResultVerdict::Pass);
    assert_eq!(assembled.counts, Counts { ok: 3, failed: 0, lost: 0 });
    assert!(assembled.missing.is_empty());
}

#[test]
fn verdicts_follow_failures_losses_and_thresholds() {
    let ok = || Exit::Exited { code: 0 };
    let bad = || Exit::Exited { code: 1 };
    let stopped = || Exit::Stopped { reason: "lease".into() };
    let rate = |group: Option<&str>, value| Threshold {
        group: group.map(Into::into),
        ..threshold(Subject::SuccessRate {}, value)
    };
    use ResultVerdict::{Fail, Inconclusive, Pass};
    type Row = (&'static str, Vec<Exit>, Vec<Threshold>, u32, ResultVerdict);
    let rows: Vec<Row> = vec![
        ("one failure", vec![ok(), bad()], vec![], 0, Fail),
        ("failures within a success rate", vec![ok(), bad()], vec![rate(None, 0.5)], 0, Pass),
        ("failures within the group's success rate", vec![ok(), bad()], vec![rate(Some("a"), 0.5)], 0, Pass),
        ("success rate missed", vec![ok(), bad()], vec![rate(None, 0.9)], 0, Fail),
        ("success rate of a group that is not there", vec![ok(), ok()], vec![rate(Some("z"), 0.0)], 0, Fail),
        ("all failed and nobody minds", vec![bad(), bad()], vec![rate(None, 0.0)], 0, Pass),
        ("one lost", vec![ok(), stopped()], vec![], 0, Inconclusive),
        ("one lost of two, half may be", vec![ok(), stopped()], vec![], 500_000, Pass),
        ("one lost of two, less may be", vec![ok(), stopped()], vec![], 499_999, Inconclusive),
        ("lost ones do not count into the success rate", vec![ok(), stopped()], vec![rate(None, 1.0)], 500_000, Pass),
        ("all lost, and all may be", vec![stopped(), stopped()], vec![], 1_000_000, Fail),
        ("all lost with a success rate", vec![stopped(), stopped()], vec![rate(None, 0.0)], 1_000_000, Fail),
        ("no receipts at all", vec![], vec![], 0, Inconclusive),
        ("no receipts and no bound", vec![], vec![], 1_000_000, Fail),
    ];
    for (name, exits, thresholds, max_lost_ppm, verdict) in rows {
        let mut world = World::new(&[("a", 2)], thresholds);
        world.run.loss.max_lost_ppm = max_lost_ppm;
        for (index, exit) in exits.into_iter().enumerate() {
            world.end("a", index as u32, exit);
        }
        let assembled = world.assemble();
        assert_eq!(assembled.result_verdict, verdict, "{name}: {:?}", assembled.inconclusive);
        assert_eq!(verdict == Inconclusive, !assembled.inconclusive.is_empty(), "{name}");
    }
}

/// Ends instances of groups `a` and `b`, two each: `o` ended well, `f` failed, `l` was lost.
fn ended(a: Option<GroupLoss>, b: Option<GroupLoss>, max_lost: Option<u32>, how: [&str; 2]) -> World {
    let mut world = World::new(&[("a", 2), ("b", 2)], Vec::new());
    world.run.loss.max_lost = max_lost;
    for ((name, loss), how) in [("a", a), ("b", b)].into_iter().zip(how) {
        world.run.groups.get_mut(name).expect("it is there").loss = loss;
        for (index, how) in (0..).zip(how.chars()) {
            match how {
                'o' => world.end(name, index, Exit::Exited { code: 0 }),
                'f' => world.end(name, index, Exit::Exited { code: 1 }),
                _ => {}
            }
        }
    }
    world
}

#[test]
fn losses_of_groups_are_accepted_as_the_plan_says_and_the_outcome_tells() {
    let most = |max_lost| Some(GroupLoss { max_lost: Some(max_lost), ..GroupLoss::default() });
    let one = || most(MaxLost::Count(1));
    use ResultVerdict::{Inconclusive, Pass};
    type Row = (&'static str, [Option<GroupLoss>; 2], Option<u32>, [&'static str; 2], ResultVerdict, usize);
    let rows: [Row; 8] = [
        ("nothing lost", [one(), None], None, ["oo", "oo"], Pass, 0),
        ("as many as may be", [one(), None], None, ["ol", "oo"], Pass, 1),
        ("one more", [one(), None], None, ["ll", "oo"], Inconclusive, 1),
        ("half of it", [most(MaxLost::Share(500_000)), None], None, ["ol", "oo"], Pass, 1),
        ("less than that", [most(MaxLost::Share(499_999)), None], None, ["ol", "oo"], Inconclusive, 1),
        ("of the group without a bound", [one(), None], None, ["oo", "ol"], Inconclusive, 0),
        ("which the run has", [one(), None], Some(1), ["ol", "ol"], Pass, 1),
        ("and that is no bound of the other", [one(), None], Some(4), ["ll", "oo"], Inconclusive, 1),
    ];
    for (name, [a, b], max_lost, how, verdict, told) in rows {
        let assembled = ended(a, b, max_lost, how).assemble();
        assert_eq!(assembled.result_verdict, verdict, "{name}: {:?}", assembled.inconclusive);
        let outcome: Outcome = outcome_of(&assembled);
        assert_eq!(outcome.losses.len(), told, "{name}");
        assert!(outcome.losses.values().all(|loss| loss.accepted == (verdict == Pass)), "{name}");
    }
}

#[test]
fn a_group_that_fails_fast_fails_the_run_whatever_was_stopped_then() {
    let fast = || Some(GroupLoss { fail_fast: true, ..GroupLoss::default() });
    use ResultVerdict::{Fail, Inconclusive, Pass};
    let rows = [
        ("all well", fast(), ["oo", "oo"], Pass, None),
        ("one failed and all others were stopped", fast(), ["fl", "ll"], Fail, Some("a")),
        ("a failure of another group", fast(), ["ol", "fl"], Inconclusive, None),
        ("lost is not failed", fast(), ["ol", "oo"], Inconclusive, None),
        ("nobody fails fast", None, ["fl", "ll"], Inconclusive, None),
    ];
    for (name, a, how, verdict, group) in rows {
        let mut world = ended(a, None, None, how);
        let assembled = world.assemble();
        assert_eq!(assembled.result_verdict, verdict, "{name}: {:?}", assembled.inconclusive);
        assert_eq!(outcome_of(&assembled).fail_fast.as_deref(), group, "{name}");
        // Not even a rate of success that holds takes it back.
        world.run.thresholds = vec![threshold(Subject::SuccessRate {}, 0.0)];
        assert_eq!(world.assemble().result_verdict == Fail, verdict == Fail, "{name}");
    }
}

fn outcome_of(assembled: &Assembled) -> Outcome {
    let block = assembled.blocks.iter().find(|block| *block.cid() == assembled.outcome).expect("it is made");
    model::from_bytes(block.data()).expect("it is an outcome")
}

#[test]
fn run_without_instances_never_passes() {
    for groups in [&[][..], &[("a", 0)]] {
        assert_eq!(World::new(groups, Vec::new()).assemble().result_verdict, ResultVerdict::Fail);
    }
}

#[test]
fn a_run_that_was_never_started_does_not_pass_however_many_may_be_lost() {
    let mut world = World::new(&[("a", 2)], Vec::new());
    world.run.loss.max_lost = Some(2);
    assert_eq!(world.assemble().inconclusive, [""; 0], "what was lost is accepted");
    world.cannot_start = Some(no_room());
    let assembled = world.assemble();
    assert_eq!(assembled.result_verdict, ResultVerdict::Inconclusive);
    assert_eq!(assembled.inconclusive, ["nothing was started: no lablets to run this"]);
}

#[test]
fn cancelled_and_overdue_runs_are_inconclusive() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    world.end("a", 0, Exit::Exited { code: 0 });
    let outcome = world.assemble().outcome;
    world.cancelled = true;
    world.timed_out = true;
    let assembled = world.assemble();
    assert_eq!(assembled.result_verdict, ResultVerdict::Inconclusive);
    assert_eq!(assembled.inconclusive, ["the run was cancelled", "the run was not over after 60000 ms"]);
    assert_eq!(assembled.outcome, outcome, "the outcome has nothing of the lab in it");
}

#[test]
fn thresholds_measure_raw_values() {
    // 1 to 100 over two groups.
    let rows = [
        (Statistic::Count, 100.0),
        (Statistic::Sum, 5050.0),
        (Statistic::Mean, 50.5),
        (Statistic::Min, 1.0),
        (Statistic::Max, 100.0),
        (Statistic::P50, 50.0),
        (Statistic::P90, 90.0),
        (Statistic::P95, 95.0),
        (Statistic::P99, 99.0),
    ];
    for (statistic, expected) in rows {
        let metric = |name: &str| Subject::Metric { name: name.into(), statistic };
        let exact = Threshold { comparison: Comparison::Equal, ..threshold(metric("v"), expected) };
        let of_one = Threshold { group: Some("b".into()), ..exact.clone() };
        let nothing = threshold(metric("w"), f64::MIN);
        let mut world = World::new(&[("a", 1), ("b", 1)], vec![exact, of_one, nothing]);
        let lines = |range: std::ops::RangeInclusive<u32>| -> String {
            range.rev().map(|v| format!("{{\"t\":{v},\"name\":\"v\",\"value\":{v},\"unit\":\"ms\"}}\n")).collect()
        };
        world.measure("a", 0, &lines(1..=50));
        world.measure("b", 0, &lines(51..=100));
        let assembled = world.assemble();
        let measured: Vec<Option<f64>> = assembled.thresholds.iter().map(|t| t.measured).collect();
        assert_eq!(measured[0], Some(expected), "{statistic:?}");
        assert!(assembled.thresholds[0].holds);
        assert!(
            measured[1].is_some() && (measured[1] != measured[0] || statistic == Statistic::Max || expected >= 99.0)
        );
        assert_eq!((measured[2], assembled.thresholds[2].holds), (None, false), "nothing measured never holds");
        assert_eq!(assembled.verdict, Verdict::Fail);
    }
}

#[test]
fn comparisons_are_what_they_say() {
    use Comparison::{AtLeast, AtMost, Equal, Less, More};
    for (comparison, below, same, above) in [
        (Less, true, false, false),
        (AtMost, true, true, false),
        (More, false, false, true),
        (AtLeast, false, true, true),
        (Equal, false, true, false),
    ] {
        for (value, holds) in [(1.0, below), (2.0, same), (3.0, above)] {
            let subject = Subject::Metric { name: "v".into(), statistic: Statistic::Max };
            let mut world = World::new(&[("a", 1)], vec![Threshold { comparison, ..threshold(subject, 2.0) }]);
            world.measure("a", 0, &format!("{{\"t\":0,\"name\":\"v\",\"value\":{value}}}"));
            assert_eq!(world.assemble().thresholds[0].holds, holds, "{value} {comparison:?} 2");
        }
    }
}

#[test]
fn values_that_overflow_are_not_measured() {
    let subject = |statistic| Subject::Metric { name: "v".into(), statistic };
    let mut world = World::new(
        &[("a", 1)],
        vec![threshold(subject(Statistic::Sum), 0.0), threshold(subject(Statistic::Min), -1.0)],
    );
    world.measure("a", 0, "{\"t\":0,\"name\":\"v\",\"value\":1.7e308}\n{\"t\":0,\"name\":\"v\",\"value\":1.7e308}\n");
    let assembled = world.assemble();
    assert_eq!(assembled.thresholds[0].measured, None);
    assert_eq!(assembled.thresholds[1].measured, Some(1.7e308));
}

#[test]
fn attempt_that_ended_by_itself_counts_under_the_highest_epoch() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    let base = world.receipt(id("a", 0), Exit::Exited { code: 0 });
    let epoch = |counter| Epoch { counter, peer: peer(9) };
    let stopped = Exit::Stopped { reason: "lease".into() };
    let rows = [
        (1, 1, Exit::Exited { code: 11 }),
        (2, 1, Exit::Exited { code: 21 }),
        (2, 2, Exit::Exited { code: 22 }),
        (3, 1, stopped),
        (1, 9, Exit::Exited { code: 19 }),
    ];
    for (counter, attempt, exit) in rows {
        world.add(Receipt { attempt, epoch: epoch(counter), exit, ..base.clone() });
    }
    for _ in 0..world.receipts.len() {
        world.receipts.rotate_left(1);
        assert_eq!(terminations(&world.assemble(), "a"), [Termination::Failed { cause: "exit 22".into() }]);
    }
}

#[test]
fn receipts_of_other_executions_and_instances_leave_no_trace() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    world.end("a", 0, Exit::Exited { code: 0 });
    let outcome = world.assemble().outcome;
    world.end("a", 1, Exit::Exited { code: 1 });
    world.end("b", 0, Exit::Exited { code: 1 });
    let mut other = world.receipt(id("a", 0), Exit::Exited { code: 1 });
    other.execution.0 = world.execution.run;
    other.attempt = 7;
    world.add(other);
    assert_eq!(world.assemble().outcome, outcome);
}

#[test]
fn missing_instances_keep_the_reason_that_was_given() {
    let mut world = World::new(&[("a", 3)], Vec::new());
    world.end("a", 1, Exit::Exited { code: 0 });
    let mut assembly = world.assembly();
    assembly.missing = BTreeMap::from([(id("a", 0), "lablet lost".into()), (id("a", 1), "never mind".into())]);
    let assembled = assemble(&assembly, &mut |_| None).expect("nothing to read");
    let missing = [(id("a", 0), "lablet lost".into()), (id("a", 2), "no receipt arrived".into())];
    assert_eq!(assembled.missing, BTreeMap::from(missing));
    assert_eq!(assembled.counts, Counts { ok: 1, failed: 0, lost: 2 });
}

#[test]
fn events_and_metrics_of_lost_instances_are_in_the_files_and_not_in_the_outcome() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    let metrics = world.file("{\"t\":0,\"name\":\"v\",\"value\":1}\n");
    let stopped = Exit::Stopped { reason: "lease".into() };
    world.add(Receipt { metrics: Some(metrics), ..world.receipt(id("a", 0), stopped) });
    let assembled = world.assemble();
    let (group, instances) = group(&assembled, "a");
    assert!(group.histograms.is_empty());
    assert_eq!(instances.instances[0].metrics, None);
    world.keep(assembled.blocks);
    assert_eq!(resolve(&world, assembled.files, "metrics/a/0.jsonl"), metrics);
}

#[test]
fn files_have_everything_under_its_name() {
    let mut world = World::new(&[("a", 2), ("b", 1)], Vec::new());
    let (logs, events, metrics) = (
        world.file("log\n"),
        world.file("event\n"),
        world.file("{\"t\":0,\"name\":\"v.x\",\"value\":2.5,\"unit\":\"s\"}\n"),
    );
    let mut blocks = Vec::new();
    let mut directory = DirectoryBuilder::new();
    let note = iptl_dag::unixfs::FileBuilder::of_bytes(b"note", &mut blocks);
    directory.insert("note.txt", note.clone()).expect("free");
    let artifacts = directory.finish(&mut blocks).expect("fits").cid;
    world.keep(blocks);
    world.add(Receipt {
        logs: Some(logs),
        events: Some(events),
        metrics: Some(metrics),
        artifacts: Some(artifacts),
        ..world.receipt(id("a", 1), Exit::Exited { code: 0 })
    });
    let assembled = world.assemble();
    world.keep(assembled.blocks.clone());
    let root = assembled.files;
    assert_eq!(resolve(&world, root, "logs/a/1.jsonl"), logs);
    assert_eq!(resolve(&world, root, "events/a/1.jsonl"), events);
    assert_eq!(resolve(&world, root, "metrics/a/1.jsonl"), metrics);
    assert_eq!(resolve(&world, root, "artifacts/a/1/note.txt"), note.cid);
    let (outcome, _) = group(&assembled, "a");
    assert_eq!(resolve(&world, root, "histograms/a/v.x.hdr"), outcome.histograms["v.x"]);
    let summary = read(&world, resolve(&world, root, "summary.json"));
    let summary: serde_json::Value = serde_json::from_slice(&summary).expect("JSON");
    assert_eq!(summary["schema"], "iptl.summary/1");
    assert_eq!(summary["counts"], serde_json::json!({"ok": 1, "failed": 0, "lost": 2}));
    assert_eq!(summary["groups"]["a"]["metrics"]["v.x"]["mean"], 2.5);
    assert_eq!(summary["groups"]["a"]["metrics"]["v.x"]["unit"], "s");
}

#[test]
fn content_that_is_missing_or_wrong_names_the_instance() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    let logs = world.file("log");
    world.add(Receipt { logs: Some(logs), ..world.receipt(id("a", 0), Exit::Exited { code: 0 }) });
    world.blocks.insert(logs, "lie".into());
    assert!(matches!(world.try_assemble(), Err(AssembleError::Content { what: "logs", .. })));
    world.blocks.remove(&logs);
    let Err(AssembleError::Content { instance, .. }) = world.try_assemble() else { panic!("assembled") };
    assert_eq!(instance, id("a", 0));
}

#[test]
fn run_of_too_many_instances_is_an_error_and_not_a_loop() {
    let world = World::new(&[("a", u32::MAX), ("b", u32::MAX)], Vec::new());
    assert!(matches!(world.try_assemble(), Err(AssembleError::TooManyInstances { .. })));
}

#[test]
fn large_groups_have_sharded_directories() {
    const COUNT: u32 = 40_000;
    let mut world = World::new(&[("a", COUNT)], Vec::new());
    let logs = world.file("log");
    for index in 0..COUNT {
        world.add(Receipt { logs: Some(logs), ..world.receipt(id("a", index), Exit::Exited { code: 0 }) });
    }
    let assembled = world.assemble();
    assert_eq!(assembled.counts.ok, u64::from(COUNT));
    let (group, _) = group(&assembled, "a");
    assert_eq!(group.instances.len(), COUNT.div_ceil(2048) as usize);
    world.keep(assembled.blocks);
    for path in ["logs/a/7.jsonl", "logs/a/39999.jsonl"] {
        assert_eq!(resolve(&world, assembled.files, path), logs);
    }
}

#[test]
fn ten_thousand_receipts_with_metrics_are_assembled_in_little_time() {
    let mut world = World::new(&[("a", 5_000), ("b", 5_000)], Vec::new());
    for index in 0..10_000_u32 {
        let lines: String = (0..10)
            .map(|i| format!("{{\"t\":{i},\"name\":\"ping.rtt\",\"value\":{}.25,\"unit\":\"ms\"}}\n", index + i))
            .collect();
        world.measure(if index < 5_000 { "a" } else { "b" }, index % 5_000, &lines);
    }
    let assembled = world.assemble();
    assert_eq!(assembled.summary.groups["a"].metrics["ping.rtt"].count, 50_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn order_of_receipts_leaves_no_trace(
        attempts in prop::collection::vec((0_u32..4, 1_u32..4, 1_u64..3, 0_u8..4, 1_u8..3, 0_i32..9), 0..24),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(&[("a", 4)], vec![
            threshold(Subject::Metric { name: "v".into(), statistic: Statistic::Sum }, 0.0),
            threshold(Subject::SuccessRate {}, 0.5),
        ]);
        for (index, attempt, counter, kind, lablet, code) in attempts {
            let exit = match kind {
                0 => Exit::Stopped { reason: format!("{lablet}") },
                1 => Exit::Trapped { trap: "unreachable".into() },
                _ => Exit::Exited { code },
            };
            let metrics = Some(world.file(&format!("{{\"t\":0,\"name\":\"v\",\"value\":0.{code}1}}\nno line\n")));
            let receipt = world.receipt(id("a", index), exit);
            let epoch = Epoch { counter, peer: peer(9) };
            world.add(Receipt { attempt, epoch, lablet: peer(lablet), metrics, started_ms: seed, ..receipt });
        }
        let expected = world.assemble();
        let mut random = seed | 1;
        for i in (1..world.receipts.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            world.receipts.swap(i, (random >> 33) as usize % (i + 1));
        }
        let shuffled = world.assemble();
        prop_assert_eq!(expected.outcome, shuffled.outcome);
        prop_assert_eq!(expected.files, shuffled.files);
        prop_assert_eq!(expected.blocks, shuffled.blocks);
    }

    #[test]
    fn times_places_and_names_of_the_lab_leave_no_trace_in_the_outcome(
        times in prop::array::uniform4(any::<u64>()),
        lablet in 1_u8..9,
        nonce in any::<[u8; 16]>(),
    ) {
        let world = |nonce, lablet, times: [u64; 4]| {
            let mut world = World::new(&[("a", 1)], Vec::new());
            world.execution.nonce = nonce;
            let mut receipt = world.receipt(id("a", 0), Exit::Trapped { trap: "unreachable".into() });
            receipt.lablet = peer(lablet);
            [receipt.started_ms, receipt.ended_ms, receipt.usage.cpu_us, receipt.usage.sent_bytes] = times;
            world.add(receipt);
            world.assemble().outcome
        };
        prop_assert_eq!(world([0; 16], 1, [0; 4]), world(nonce, lablet, times));
    }
}

pub(crate) fn threshold(subject: Subject, value: f64) -> Threshold {
    Threshold { subject, group: None, comparison: Comparison::AtLeast, value, unit: String::new() }
}

fn group(assembled: &Assembled, name: &str) -> (GroupOutcome, OutcomeShard) {
    let block = |cid: &Cid| -> &Block { assembled.blocks.iter().find(|b| b.cid() == cid).expect("assembled") };
    let outcome: Outcome = model::from_bytes(block(&assembled.outcome).data()).expect("an outcome");
    let group = outcome.groups[name].clone();
    let shard = model::from_bytes(block(&group.instances[0]).data()).expect("a shard");
    (group, shard)
}

fn terminations(assembled: &Assembled, name: &str) -> Vec<Termination> {
    group(assembled, name).1.instances.into_iter().map(|i| i.termination).collect()
}

fn resolve(world: &World, root: Cid, path: &str) -> Cid {
    let mut resolve = Resolve::new(root, path).expect("short");
    loop {
        match resolve.step().clone() {
            Step::Need(cid) => {
                let block = Block::verify(cid, world.blocks[&cid].clone()).expect("stored as it was made");
                resolve.supply(&block).expect(path);
            }
            Step::Found(Target::Block { cid }) => return cid,
            Step::Found(Target::Value { .. }) => panic!("{path} is a value"),
        }
    }
}

fn read(world: &World, file: Cid) -> Vec<u8> {
    let mut reader = FileReader::new(file);
    let mut bytes = Vec::new();
    while let Some(cid) = reader.next().copied() {
        let block = Block::verify(cid, world.blocks[&cid].clone()).expect("stored as it was made");
        assert!(matches!(UnixFs::of_block(&block), Ok(UnixFs::File(_))));
        bytes.extend(reader.supply(&block).expect("a file"));
    }
    bytes
}
