use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use iptl_dag::model::InstanceId;
use iptl_labnet::{Directory, DirectoryError};

pub(crate) fn directory(groups: &[(&str, u32)]) -> Directory {
    Directory::new(&groups.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()).unwrap()
}

pub(crate) fn id(group: &str, index: u32) -> InstanceId {
    InstanceId { group: group.into(), index }
}

#[test]
fn addresses_follow_group_names_and_skip_broadcast_lookalikes() {
    let directory = directory(&[("b", 300), ("a", 253)]);
    for (instance, addr) in [
        (id("a", 0), [10, 0, 0, 1]),
        (id("a", 252), [10, 0, 0, 253]),
        (id("b", 0), [10, 0, 0, 254]),
        (id("b", 1), [10, 0, 1, 1]),
        (id("b", 299), [10, 0, 2, 45]),
    ] {
        assert_eq!(directory.addr(&instance), Some(Ipv4Addr::from(addr)));
        assert_eq!(directory.instance(Ipv4Addr::from(addr)), Some(instance));
    }
    for nobody in [[10, 0, 0, 0], [10, 0, 0, 255], [10, 0, 2, 46], [11, 0, 0, 1], [127, 0, 0, 1]] {
        assert_eq!(directory.instance(Ipv4Addr::from(nobody)), None);
    }
    assert_eq!(directory.addr(&id("a", 253)), None);
    assert_eq!(directory.addr(&id("c", 0)), None);
}

#[test]
fn a_hundred_thousand_instances_have_one_address_each() {
    let directory = directory(&[("empty", 0), ("few", 7), ("many", 100_000), ("none", 0)]);
    let mut last = None;
    for index in 0..100_000 {
        let instance = id("many", index);
        let addr = directory.addr(&instance).unwrap();
        assert!(last < Some(addr));
        assert_eq!(directory.instance(addr), Some(instance));
        last = Some(addr);
    }
}

#[test]
fn names_resolve_in_one_spelling_each() {
    let directory = directory(&[("a", 2), ("a-1", 3)]);
    for (name, instance) in [
        ("a-1", Some(id("a", 1))),
        ("a-1-2", Some(id("a-1", 2))),
        ("1.a.lab", Some(id("a", 1))),
        ("2.a-1.lab", Some(id("a-1", 2))),
        ("2.a-1.lab.", Some(id("a-1", 2))),
        ("10.0.0.2", Some(id("a", 1))),
        ("a-2", None),
        ("a-01", None),
        ("a-+1", None),
        ("a", None),
        ("a.lab", None),
        ("10.0.0.6", None),
        ("127.0.0.1", None),
        ("example.org", None),
        ("", None),
    ] {
        assert_eq!(directory.resolve(name), instance.and_then(|i| directory.addr(&i)), "{name}");
    }
}

#[test]
fn more_instances_than_addresses_are_refused() {
    let groups = BTreeMap::from([("a".to_owned(), 16_000_000), ("b".to_owned(), 1_000_000)]);
    assert_eq!(Directory::new(&groups), Err(DirectoryError::TooMany { instances: 17_000_000, limit: 254 * 65_536 }));
}
