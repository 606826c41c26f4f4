//! The logical form of dag-pb: what a node is as a value, and which values are nodes.
//!
//! A node is a map of `Links`, always there, and `Data`; a link is a map of `Hash`, `Name` and `Tsize`, the first of them
//! always there. Nothing else has a form in dag-pb.

use std::collections::BTreeMap;

use crate::Ipld;
use crate::unixfs::pb::{PbLink, PbNode};

/// Returns a node as a value.
pub(super) fn to_value(node: PbNode) -> Ipld {
    let link = |link: PbLink| {
        let mut map = BTreeMap::from([("Hash".to_owned(), Ipld::Link(link.cid))]);
        map.extend(link.name.map(|name| ("Name".to_owned(), Ipld::String(name))));
        map.extend(link.tsize.map(|size| ("Tsize".to_owned(), Ipld::Integer(size.into()))));
        Ipld::Map(map)
    };
    let mut map = BTreeMap::from([("Links".to_owned(), Ipld::List(node.links.into_iter().map(link).collect()))]);
    map.extend(node.data.map(|data| ("Data".to_owned(), Ipld::Bytes(data))));
    Ipld::Map(map)
}

/// Returns the node that a value is, or what is wrong with it.
///
/// Links that stand unsorted are refused and not sorted: the value would come back as another.
pub(super) fn of_value(value: &Ipld) -> Result<PbNode, &'static str> {
    let Ipld::Map(map) = value else { return Err("a node is a map") };
    let mut node = PbNode::default();
    let mut has_links = false;
    for (key, value) in map {
        match (key.as_str(), value) {
            ("Links", Ipld::List(links)) => {
                node.links = links.iter().map(link_of_value).collect::<Result<_, _>>()?;
                has_links = true;
            }
            ("Links", _) => return Err("Links is a list"),
            ("Data", Ipld::Bytes(data)) => node.data = Some(data.clone()),
            ("Data", _) => return Err("Data is bytes"),
            _ => return Err("a node has no fields but Links and Data"),
        }
    }
    if !has_links {
        return Err("a node has Links");
    }
    let name = |link: &PbLink| link.name.clone().unwrap_or_default().into_bytes();
    if node.links.is_sorted_by_key(name) { Ok(node) } else { Err("Links are sorted by Name") }
}

fn link_of_value(value: &Ipld) -> Result<PbLink, &'static str> {
    let Ipld::Map(map) = value else { return Err("a link is a map") };
    let (mut cid, mut name, mut tsize) = (None, None, None);
    for (key, value) in map {
        match (key.as_str(), value) {
            ("Hash", Ipld::Link(hash)) => cid = Some(*hash),
            ("Hash", _) => return Err("Hash is a link"),
            ("Name", Ipld::String(text)) => name = Some(text.clone()),
            ("Name", _) => return Err("Name is a text"),
            ("Tsize", Ipld::Integer(size)) => {
                tsize = Some(u64::try_from(*size).map_err(|_| "Tsize is a whole number of 64 bits")?);
            }
            ("Tsize", _) => return Err("Tsize is a number"),
            _ => return Err("a link has no fields but Hash, Name and Tsize"),
        }
    }
    Ok(PbLink { cid: cid.ok_or("a link has a Hash")?, name, tsize })
}
