//! Nodes: canonical form, and what becomes of fields that this version does not know.

use std::collections::BTreeMap;

use iptl_dag::codec::{self, DecodeError, decode_canonical};
use iptl_dag::model::{self, Assignment, InstanceId, Node, Plan, ResultNode, Run, Value, WorkloadKind};
use iptl_dag::walk::links;
use iptl_dag::{Cid, Codec, Ipld};
use proptest::prelude::*;

use crate::examples;

#[test]
fn every_node_is_read_back_as_it_was_written() {
    for (name, node) in examples::nodes() {
        let block = node.to_block();
        assert_eq!(Node::from_bytes(block.data()).expect(&name), node, "{name}");
    }
}

#[test]
fn control_records_refuse_unknown_fields_wherever_they_stand() {
    let mut refused = 0;
    for (name, node) in examples::nodes().into_iter().filter(|(_, node)| node.is_control()) {
        for (at, bytes) in with_extra_field(&node) {
            // Maps whose keys are data take any key.
            let takes_any_key = at.ends_with("/missing");
            assert_eq!(Node::from_bytes(&bytes).is_ok(), takes_any_key, "{name}{at}");
            refused += usize::from(!takes_any_key);
        }
    }
    assert!(refused > 100, "only {refused} places were tried");
}

#[test]
fn data_nodes_pass_over_unknown_fields() {
    let mut passed = 0;
    for (name, node) in examples::nodes().into_iter().filter(|(_, node)| !node.is_control()) {
        for (at, bytes) in with_extra_field(&node) {
            match Node::from_bytes(&bytes) {
                Ok(read) => {
                    assert_eq!(read.tag(), node.tag());
                    passed += 1;
                }
                // A union has one key, and a map from names to nodes holds only such.
                Err(e) => assert!(has_typed_keys(&at), "{name}{at}: {e}"),
            }
        }
    }
    assert!(passed > 50, "only {passed} places were tried");
    let (_, plan) = examples::nodes().remove(0);
    let (_, extended) = with_extra_field(&plan).into_iter().find(|(at, _)| at == "/iptl.plan~1").expect("it is a map");
    assert_eq!(Node::from_bytes(&extended).expect("readable"), plan);
}

#[test]
fn a_result_is_files_beside_its_tag_and_nothing_else() {
    let named = |name: &str| {
        let (_, node) = examples::nodes().into_iter().find(|(at, _)| at == name).expect(name);
        let Ipld::Map(map) = codec::decode(node.to_block().data()).expect("DAG-CBOR") else { panic!("not a map") };
        (node, map)
    };
    let (node, root) = named("result-2");
    assert_eq!(root.keys().collect::<Vec<_>>(), ["files", "iptl.result/2"]);
    let (former, under_one_tag) = named("result");
    assert_eq!(under_one_tag.keys().collect::<Vec<_>>(), ["iptl.result/1"]);
    assert_eq!(ResultNode::try_from(former).expect("it is read"), ResultNode::try_from(node).expect("a result"));

    let (_, run) = named("run");
    let files = || ("files".to_owned(), root["files"].clone());
    let body = || ("iptl.result/2".to_owned(), root["iptl.result/2"].clone());
    let of_version_one = || ("iptl.result/1".to_owned(), under_one_tag["iptl.result/1"].clone());
    let of_run = || ("iptl.run/1".to_owned(), run["iptl.run/1"].clone());
    let text = |key: &str| (key.to_owned(), Ipld::String("of a later version".into()));
    assert!(Node::from_bytes(&codec::encode(&Ipld::Map([files(), body()].into()))).is_ok());
    for entries in [
        vec![],
        vec![files()],
        vec![body()],
        vec![text("files"), body()],
        vec![files(), text("iptl.result/2")],
        vec![files(), body(), text("a")],
        vec![files(), body(), text("zz-unknown")],
        vec![files(), body(), of_version_one()],
        vec![files(), of_version_one()],
        vec![files(), of_run()],
        vec![body(), of_run()],
        vec![of_version_one(), of_run()],
    ] {
        let map: BTreeMap<String, Ipld> = entries.into_iter().collect();
        let keys: Vec<&String> = map.keys().collect();
        let read = Node::from_bytes(&codec::encode(&map));
        assert!(matches!(read, Err(DecodeError::Shape { .. })), "{keys:?}: {read:?}");
    }
}

#[test]
fn node_of_another_kind_is_told_apart() {
    let (_, plan) = examples::nodes().remove(0);
    let error = model::from_bytes::<Run>(plan.to_block().data()).expect_err("a plan");
    assert!(matches!(error, DecodeError::WrongKind { expected: "iptl.run/1", found: "iptl.plan/1" }));
    assert!(model::from_bytes::<Plan>(plan.to_block().data()).is_ok());
}

#[test]
fn encodings_that_are_not_canonical_are_refused() {
    // {"a": 1, "b": 2} and the same with longer heads, keys out of order, twice, or something behind it.
    type Two = BTreeMap<String, u8>;
    assert!(decode_canonical::<Two>(b"\xa2\x61a\x01\x61b\x02").is_ok());
    for bytes in [
        &b"\xa2\x61b\x02\x61a\x01"[..],
        b"\xa2\x61a\x01\x61a\x01",
        b"\xa2\x61a\x18\x01\x61b\x02",
        b"\xa2\x78\x01a\x01\x61b\x02",
        b"\xb8\x02\x61a\x01\x61b\x02",
        b"\xbf\x61a\x01\x61b\x02\xff",
        b"\xa2\x61a\x01\x61b\x02\x00",
    ] {
        assert!(decode_canonical::<Two>(bytes).is_err(), "{bytes:x?}");
    }
}

#[test]
fn data_node_that_two_readers_would_read_differently_is_refused() {
    let (_, run) = examples::nodes().into_iter().find(|(name, _)| name == "run").expect("an example");
    let Ipld::Map(mut union) = codec::decode(run.to_block().data()).expect("DAG-CBOR") else { panic!("not a map") };
    let Some(Ipld::Map(body)) = union.get_mut("iptl.run/1") else { panic!("not a run") };
    // An integer beyond i64 would be read as a float, and written as one.
    body.insert("params".into(), Ipld::Map(BTreeMap::from([("p".into(), Ipld::Integer(i128::from(u64::MAX)))])));
    let error = Node::from_bytes(&codec::encode(&union)).expect_err("ambiguous");
    assert!(matches!(error, DecodeError::NotCanonical { expected: "iptl.run/1" }));
}

#[test]
fn nesting_without_end_is_an_error_and_not_an_overflow() {
    let bombs: [(&str, Vec<u8>); 5] = [
        ("lists", vec![0x81; 2 << 20]),
        ("maps", b"\xa1\x61a".repeat(600_000)),
        ("tags", vec![0xd8; 2 << 20]),
        ("tagged lists", b"\xd8\x2a\x81".repeat(600_000)),
        ("lists of two", b"\x82\xf6".repeat(600_000)),
    ];
    // Threads of a runtime have 2 MiB; half of that has to do, unoptimised.
    let tried = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
        for (name, bytes) in &bombs {
            assert!(codec::decode::<Ipld>(bytes).is_err(), "{name}");
            assert!(Node::from_bytes(bytes).is_err(), "{name}");
            let cid = Cid::new_v1(Codec::DagCbor.number(), *examples::raw("x").hash());
            assert!(links(&cid, bytes).is_err(), "{name}");
            for (tag, field) in [("iptl.plan/1", "unknown"), ("iptl.fact/1", "unknown"), ("iptl.run/1", "params")] {
                let mut inside = vec![0xa1, 0x60 + tag.len() as u8];
                inside.extend(tag.as_bytes());
                inside.extend([0xa1, 0x60 + field.len() as u8]);
                inside.extend(field.as_bytes());
                inside.extend(bytes);
                assert!(Node::from_bytes(&inside).is_err(), "{name} in {tag}");
            }
        }
        for json in ["[".repeat(1 << 20), "{\"a\":".repeat(300_000), "{\"/\":".repeat(300_000)] {
            assert!(codec::from_dag_json(json.as_bytes()).is_err());
            let cid = Cid::new_v1(Codec::DagJson.number(), *examples::raw("x").hash());
            assert!(links(&cid, json.as_bytes()).is_err());
        }
        // As deep as is allowed can be written and dropped again.
        let deepest = (1..200).rev().map(|depth| [vec![0x81; depth], vec![0x80]].concat());
        let value = deepest.into_iter().find_map(|bytes| codec::decode::<Ipld>(&bytes).ok()).expect("some depth");
        assert!(!codec::encode(&value).is_empty());
        assert!(!codec::to_dag_json(&value).is_empty());
    });
    tried.expect("a thread").join().expect("no overflow");
}

#[test]
fn lengths_that_lie_do_not_reserve_memory() {
    for head in [0x5b_u8, 0x7b, 0x9b, 0xbb] {
        for length in [u64::MAX, u64::MAX / 2, 1 << 40] {
            let bytes = [vec![head], length.to_be_bytes().to_vec(), vec![0; 8]].concat();
            assert!(codec::decode::<Ipld>(&bytes).is_err());
            assert!(Node::from_bytes(&bytes).is_err());
        }
    }
}

#[test]
fn structured_values_have_a_form_in_dag_json() {
    let link: Cid = examples::raw("x");
    let value = Ipld::Map(BTreeMap::from([
        ("bytes".to_owned(), Ipld::Bytes(vec![1, 2])),
        ("float".to_owned(), Ipld::Float(2.0)),
        ("link".to_owned(), Ipld::Link(link)),
        ("list".to_owned(), Ipld::List(vec![Ipld::Null, Ipld::Bool(true), Ipld::Integer(-1)])),
    ]));
    let json = codec::to_dag_json(&value);
    let expected =
        format!(r#"{{"bytes":{{"/":{{"bytes":"AQI"}}}},"float":2.0,"link":{{"/":"{link}"}},"list":[null,true,-1]}}"#);
    assert_eq!(String::from_utf8(json.clone()).expect("text"), expected);
    assert_eq!(codec::from_dag_json(&json).expect("valid"), value);
}

#[test]
fn blocks_of_every_codec_have_a_logical_form() {
    let mut blocks = Vec::new();
    let entry = iptl_dag::unixfs::FileBuilder::of_bytes(b"leaf", &mut blocks);
    let mut directory = iptl_dag::unixfs::DirectoryBuilder::new();
    directory.insert("name", entry.clone()).expect("free");
    directory.finish(&mut blocks).expect("fits");
    assert_eq!(codec::to_ipld(&blocks[0]).expect("raw"), Ipld::Bytes(b"leaf".to_vec()));
    let json = codec::to_dag_json(&codec::to_ipld(&blocks[1]).expect("dag-pb"));
    let expected = format!(
        r#"{{"Data":{{"/":{{"bytes":"CAE"}}}},"Links":[{{"Hash":{{"/":"{}"}},"Name":"name","Tsize":4}}]}}"#,
        entry.cid
    );
    assert_eq!(String::from_utf8(json).expect("text"), expected);
}

proptest! {
    #[test]
    fn values_of_parameters_keep_their_kind(value in value()) {
        let bytes = codec::encode(&value);
        prop_assert_eq!(decode_canonical::<Value>(&bytes).expect("canonical"), value);
    }
}

#[test]
fn whole_floats_stay_floats_and_zero_has_no_sign() {
    for float in [2.0, -2.0, 0.0, 1e300, f64::MIN_POSITIVE, 9_007_199_254_740_993.0] {
        let bytes = codec::encode(&Value::Float(float));
        assert_eq!(bytes[0], 0xfb);
        assert_eq!(codec::decode::<Value>(&bytes).expect("valid"), Value::Float(float));
    }
    assert_eq!(codec::encode(&Value::Float(-0.0)), codec::encode(&Value::Float(0.0)));
    assert!(codec::decode::<Value>(b"\xfb\x80\x00\x00\x00\x00\x00\x00\x00").is_err(), "negative zero");
    assert!(codec::decode::<Value>(b"\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00").is_err(), "not a number");
}

fn value() -> impl Strategy<Value = Value> {
    let finite = any::<f64>().prop_filter("finite", |f| f.is_finite() && (*f != 0.0 || f.is_sign_positive()));
    prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<i32>().prop_map(|i| Value::Float(i.into())),
        finite.prop_map(Value::Float),
        any::<String>().prop_map(Value::Text),
    ]
}

/// Returns the encodings of a node with one more entry in one of its maps, for every map, with the path of that map.
fn with_extra_field(node: &Node) -> Vec<(String, Vec<u8>)> {
    let value: Ipld = codec::decode(node.to_block().data()).expect("a node is DAG-CBOR");
    let mut paths = Vec::new();
    maps(&value, String::new(), &mut paths);
    let extend = |path: String| {
        let mut value = value.clone();
        insert_at(&mut value, &path);
        (path, codec::encode(&value))
    };
    paths.into_iter().map(extend).collect()
}

fn maps(value: &Ipld, at: String, paths: &mut Vec<String>) {
    match value {
        Ipld::Map(entries) => {
            entries.iter().for_each(|(key, value)| maps(value, format!("{at}/{}", key.replace('/', "~")), paths));
            paths.push(at);
        }
        Ipld::List(items) => items.iter().enumerate().for_each(|(i, value)| maps(value, format!("{at}/{i}"), paths)),
        _ => {}
    }
}

fn insert_at(mut value: &mut Ipld, path: &str) {
    for segment in path.split('/').skip(1) {
        value = match value {
            Ipld::Map(entries) => entries.get_mut(&segment.replace('~', "/")).expect("the path was found in it"),
            Ipld::List(items) => &mut items[segment.parse::<usize>().expect("an index")],
            other => panic!("{other:?} has nothing in it"),
        };
    }
    let Ipld::Map(entries) = value else { panic!("not a map") };
    entries.insert("zz-unknown".into(), Ipld::String("of a later version".into()));
}

/// Maps where a key is a tag or a name: an unknown one is a value of the wrong type, not an unknown field.
fn has_typed_keys(at: &str) -> bool {
    let last = at.rsplit('/').next().unwrap_or_default();
    let typed = [
        "",
        "kind",
        "subject",
        "network",
        "fault",
        "termination",
        "workloads",
        "cases",
        "groups",
        "histograms",
        "regions",
        "access",
        "max_lost",
        "choices",
        "losses",
        "captures",
    ];
    let of_containers = ["files", "tmpfs"];
    typed.contains(&last) || of_containers.contains(&last) || at.ends_with("/params")
}

#[test]
fn an_assignment_names_its_instances_and_nothing_beyond_the_largest_index() {
    let rows: [(u32, u32, &[u32]); 5] = [
        (0, 3, &[0, 1, 2]),
        (7, 2, &[7, 8]),
        (7, 0, &[]),
        (u32::MAX - 2, 2, &[u32::MAX - 2, u32::MAX - 1]),
        (u32::MAX - 1, u32::MAX, &[u32::MAX - 1, u32::MAX]),
    ];
    for (start, count, want) in rows {
        let lablet = iptl_dag::PeerId::from_ed25519(&[1; 32]);
        let assignment = Assignment { group: "a".into(), start, count, lablet };
        let named: Vec<InstanceId> = assignment.instances().collect();
        assert!(named.iter().all(|id| id.group == "a" && assignment.holds(id)), "{start} {count}");
        assert_eq!(named.iter().map(|id| id.index).collect::<Vec<_>>(), want, "{start} {count}");
        assert!(!assignment.holds(&InstanceId { group: "b".into(), index: start }));
        assert!(!assignment.holds(&InstanceId { group: "a".into(), index: start.wrapping_sub(1) }));
    }
}

#[test]
fn a_kind_is_written_by_its_name() {
    for kind in [WorkloadKind::Wasm, WorkloadKind::Docker] {
        assert_eq!(codec::encode(&kind), codec::encode(&kind.name()));
    }
}
