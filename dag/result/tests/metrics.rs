//! Metrics files and histograms.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use iptl_dag::model::{self, Exit, Outcome, Receipt};
use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::{Block, Codec};
use iptl_result::{MAX_METRICS_PER_GROUP, MAX_TRACKABLE, give_up_unreadable, parse_line};
use proptest::prelude::*;

use crate::world::{World, id};

#[test]
fn lines_are_read_or_refused() {
    for line in [
        r#"{"t":5,"name":"ping.rtt","value":1.25,"unit":"ms"}"#,
        r#"{"name":"ping.rtt","value":-1}"#,
        r#"{"value":0,"name":"a b","extra":[1,{"x":2}]}"#,
        r#"{"name":"\u0061","value":1e300}"#,
    ] {
        assert!(parse_line(line.as_bytes()).is_some(), "{line}");
    }
    for line in [
        "",
        "no",
        "[]",
        r#"{"name":"a"}"#,
        r#"{"value":1}"#,
        r#"{"name":"","value":1}"#,
        r#"{"name":"a/b","value":1}"#,
        r#"{"name":"..","value":1}"#,
        r#"{"name":"a\u0007","value":1}"#,
        r#"{"name":"a","value":1e999}"#,
        r#"{"name":"a","value":"1"}"#,
        r#"{"name":"a","value":null}"#,
        r#"{"name":"a","value":1} x"#,
        "{\"name\":\"\u{0}\",\"value\":1}",
    ] {
        assert_eq!(parse_line(line.as_bytes()), None, "{line}");
    }
    let long = format!(r#"{{"name":"{}","value":1}}"#, "n".repeat(200));
    assert_eq!(parse_line(long.as_bytes()), None);
    assert_eq!(parse_line(b"{\"name\":\"\xff\",\"value\":1}"), None);
}

#[test]
fn malformed_lines_are_counted_and_blank_ones_are_not() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    let long = "x".repeat(100_000);
    world.measure("a", 0, &format!("{{\"name\":\"v\",\"value\":1}}\n\n  \nno\n{long}\n{{\"name\":\"v\",\"value\":2}}"));
    let summary = &world.assemble().summary.groups["a"];
    assert_eq!(summary.malformed_lines, 2);
    assert_eq!(summary.metrics["v"].count, 2);
}

#[test]
fn lines_that_cross_leaves_of_a_file_are_whole() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    let lines: String = (0..40_000).map(|i| format!("{{\"t\":{i},\"name\":\"v\",\"value\":{i}}}\n")).collect();
    world.measure("a", 0, &lines);
    let summary = &world.assemble().summary.groups["a"];
    assert_eq!((summary.malformed_lines, summary.metrics["v"].count), (0, 40_000));
    assert_eq!(summary.metrics["v"].max, 39_999.0);
}

#[test]
fn flood_of_metric_names_is_bounded() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    let lines: String = (0..1000).map(|i| format!("{{\"name\":\"m{i}\",\"value\":1}}\n")).collect();
    world.measure("a", 0, &lines);
    let summary = &world.assemble().summary.groups["a"];
    assert_eq!(summary.metrics.len(), MAX_METRICS_PER_GROUP);
    assert_eq!(summary.malformed_lines, 1000 - MAX_METRICS_PER_GROUP as u64);
}

#[test]
fn histogram_holds_thousandths_and_leaves_negative_values_out() {
    let histogram = histogram_of("1.25 0 -3 0.0004 0.0005");
    assert_eq!(histogram.len(), 4);
    assert_eq!(histogram.max(), 1250);
    assert_eq!(histogram.count_at(0), 2);
    assert_eq!(histogram.count_at(1), 1);
}

#[test]
fn histogram_of_huge_values_stops_at_the_bound() {
    let histogram = histogram_of("1e300 1");
    assert!(histogram.max() >= MAX_TRACKABLE);
    assert!(histogram.high() <= MAX_TRACKABLE * 2);
}

#[test]
fn metric_of_negative_values_alone_has_an_empty_histogram() {
    assert_eq!(histogram_of("-1 -2").len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn order_of_values_leaves_no_trace_in_the_histogram(values in prop::collection::vec(0.0_f64..1e12, 1..40)) {
        let text = |values: &mut dyn Iterator<Item = &f64>| {
            values.map(f64::to_string).collect::<Vec<_>>().join(" ")
        };
        prop_assert_eq!(
            histogram_bytes(&text(&mut values.iter())),
            histogram_bytes(&text(&mut values.iter().rev()))
        );
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        parse_line(&bytes);
    }

    #[test]
    fn arbitrary_files_never_panic(text in "(\\{|\\}|\"name\"|\"value\"|:|,|1e308|-0|\n|\"|\\PC){0,60}") {
        let mut world = World::new(&[("a", 1)], Vec::new());
        world.measure("a", 0, &text);
        world.assemble();
    }
}

fn histogram_bytes(values: &str) -> Vec<u8> {
    let mut world = World::new(&[("a", 1)], Vec::new());
    let lines: String = values.split(' ').map(|v| format!("{{\"name\":\"v\",\"value\":{v}}}\n")).collect();
    world.measure("a", 0, &lines);
    let assembled = world.assemble();
    let block = |cid| assembled.blocks.iter().find(|b| *b.cid() == cid).expect("assembled").data().to_vec();
    let outcome: Outcome = model::from_bytes(&block(assembled.outcome)).expect("an outcome");
    block(outcome.groups["a"].histograms["v"])
}

fn histogram_of(values: &str) -> Histogram<u64> {
    Deserializer::new().deserialize(&mut histogram_bytes(values).as_slice()).expect("HDR V2")
}

#[test]
fn metrics_that_stand_for_more_than_anybody_can_read_are_given_up() {
    let mut world = World::new(&[("a", 1)], Vec::new());
    let leaf = Block::new(Codec::Raw, "x");
    let (mut cid, mut size) = (*leaf.cid(), 1);
    world.keep(vec![leaf]);
    // Each level stands for twice the one below it: 40 blocks for a terabyte.
    for _ in 0..40 {
        let part = PbLink { cid, name: None, tsize: None };
        let message = PbUnixFs { block_sizes: vec![size, size], ..PbUnixFs::new(PbKind::File) };
        let node = PbNode { links: vec![part.clone(), part], data: Some(message.encode()) };
        let block = Block::new(Codec::DagPb, node.encode());
        (cid, size) = (*block.cid(), size * 2);
        world.keep(vec![block]);
    }
    let receipt = world.receipt(id("a", 0), Exit::Exited { code: 0 });
    world.add(Receipt { metrics: Some(cid), ..receipt });
    let mut assembly = world.assembly();
    let given_up = give_up_unreadable(&mut assembly, &mut |cid| world.blocks.get(cid).cloned());
    assert_eq!(given_up, 1);
    assert!(assembly.missing[&id("a", 0)].contains("more than"), "{:?}", assembly.missing);
}
