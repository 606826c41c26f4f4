//! Structured data: DAG-CBOR, DAG-JSON, dag-pb.

use iptl_dag::codec::{decode_as, encode_as};
use iptl_dag::model::Node;
use iptl_dag::unixfs::pb::PbNode;
use iptl_dag::walk::links;
use iptl_dag::{Block, Cid, Codec, Ipld, decode, encode};

use crate::memory::{bounded, typed};

/// A value takes up to this many times the bytes it was read from: a byte can be an empty list, which is an enum.
const VALUE: usize = 256;

/// As a value, which has one form; and as a node of the lab.
pub(crate) fn dag_cbor(data: &[u8]) -> bool {
    if let Ok(node) = typed(data, || Node::from_bytes(data)) {
        let block = node.to_block();
        // What is unknown of a data node is not written again: the rest is.
        assert_eq!(Node::from_bytes(block.data()).expect("it was just written"), node);
        assert!(!node.is_control() || block.data() == data, "a control record has one form");
    }
    let Ok(value) = bounded(VALUE, data, || decode_as(Codec::DagCbor, data)) else { return false };
    assert_eq!(encode_as(Codec::DagCbor, &value).expect("it was just read"), data, "what is read is canonical");
    assert_eq!(encode(&decode::<Ipld>(data).expect("it was just read")), data);
    same_links(Codec::DagCbor, data, &value);
    true
}

/// As a value that can be written, read again and written as the same bytes.
pub(crate) fn dag_json(data: &[u8]) -> bool {
    let Ok(value) = bounded(VALUE, data, || decode_as(Codec::DagJson, data)) else { return false };
    let written = encode_as(Codec::DagJson, &value).expect("it was just read");
    let again = decode_as(Codec::DagJson, &written).expect("it was just written");
    assert_eq!(again, value);
    assert_eq!(encode_as(Codec::DagJson, &again).expect("it was just read"), written);
    same_links(Codec::DagJson, data, &value);
    true
}

/// As a node that can be written, read again and written as the same bytes.
pub(crate) fn dag_pb(data: &[u8]) -> bool {
    let Ok(node) = bounded(VALUE, data, || PbNode::decode(data)) else { return false };
    let written = node.encode();
    assert_eq!(PbNode::decode(&written).as_ref(), Ok(&node), "what is written is read as the same");
    assert!(written.len() <= data.len(), "the form that is written is the short one");
    let value = decode_as(Codec::DagPb, data).expect("it was just read");
    // Others have written links in another order, and those are read; nobody is helped to write them.
    let is_sorted = node.links.is_sorted_by_key(|link| link.name.as_deref().unwrap_or_default().as_bytes());
    match encode_as(Codec::DagPb, &value) {
        Ok(again) => assert_eq!(again, written, "the logical form says all"),
        Err(error) => assert!(!is_sorted, "{error}"),
    }
    let linked = links(&cid(Codec::DagPb, data), data).expect("it was just read");
    assert!(linked.iter().eq(node.links.iter().map(|link| &link.cid)));
    true
}

fn cid(codec: Codec, data: &[u8]) -> Cid {
    *Block::new(codec, data.to_vec()).cid()
}

/// Links are listed without the value, by another path through the decoder: both must find the same.
fn same_links(codec: Codec, data: &[u8], value: &Ipld) {
    let mut expected: Vec<Cid> = Vec::new();
    value.references(&mut expected);
    let mut found = links(&cid(codec, data), data).expect("it was just read");
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "a link that is not listed is not followed, fetched or kept");
}
