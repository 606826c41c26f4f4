//! Manifests of plans.

use std::collections::BTreeMap;

use iptl_dag::model::{self, Node, Plan};
use iptl_dag::{Block, Cid, Codec};
use iptl_plans::parse;

/// A manifest is a plan that can be stored, or its mistakes can be shown.
pub(crate) fn manifest(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let manifest = match parse(text, "plan.toml") {
        Ok(manifest) => manifest,
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "it is refused without a reason");
            for mistake in mistakes {
                for span in mistake.related.iter().map(|related| &related.span).chain([&mistake.span]) {
                    assert!(text.get(span.clone()).is_some(), "{span:?} is no place in the text");
                }
                assert!(mistake.render("plan.toml", text).contains(mistake.code));
            }
            return false;
        }
    };
    let some = |seed: &str| -> Cid { *Block::new(Codec::Raw, seed.to_owned()).cid() };
    let workloads: BTreeMap<String, Cid> = manifest.workloads.keys().map(|name| (name.clone(), some(name))).collect();
    let files: BTreeMap<String, Cid> = manifest.paths().into_iter().map(|path| (path.to_owned(), some(path))).collect();
    let plan = manifest.to_plan(&workloads, &files, None).expect("everything has a CID");
    let block = Node::from(plan.clone()).to_block();
    assert_eq!(model::from_bytes::<Plan>(block.data()).expect("it was just written"), plan);
    true
}
