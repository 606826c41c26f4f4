//! Paths below a CID.

use std::collections::BTreeMap;

use iptl_dag::path::{PathError, Resolve, Step, Target};
use iptl_dag::unixfs::{DirectoryBuilder, Entry, FileBuilder};
use iptl_dag::{Block, Cid, Codec, Ipld, codec};

#[test]
fn path_leads_through_values_links_and_directories() {
    let world = World::new();
    let (dir, leaf) = (world.dir, world.leaf);
    let rows: [(&str, Target); 8] = [
        ("", Target::Block { cid: world.root }),
        ("/", Target::Block { cid: world.root }),
        ("files", Target::Block { cid: dir }),
        ("files/a.txt", Target::Block { cid: leaf }),
        ("files//sub/a.txt/", Target::Block { cid: leaf }),
        ("list/1", Target::Block { cid: leaf }),
        ("list/0/n", Target::Value { cid: world.root, value: Ipld::Integer(5) }),
        ("json/deep", Target::Value { cid: world.json, value: Ipld::Bool(true) }),
    ];
    for (path, target) in rows {
        assert_eq!(world.resolve(path).expect(path), target, "{path}");
    }
}

#[test]
fn path_leads_through_the_tag_of_a_node_and_to_what_stands_beside_it() {
    let world = World::new();
    let link = |cid| Ipld::Link(cid);
    let tagged = |beside: Vec<(&str, Ipld)>, tag: &str, under: Vec<(&str, Ipld)>| {
        map([beside, vec![(tag, map(under))]].concat())
    };
    let files = || ("files", link(world.dir));
    let ok = || ("counts", map(vec![("ok", Ipld::Integer(3))]));
    let rows = [
        tagged(vec![files()], "iptl.result/2", vec![ok()]),
        // A later version may say the same below: what software without tags finds counts.
        tagged(vec![files()], "iptl.result/2", vec![ok(), ("files", link(world.leaf))]),
        tagged(vec![], "iptl.result/1", vec![files(), ok()]),
        // What has no slash is no tag.
        map(vec![files(), ok()]),
    ];
    for value in rows {
        let root = codec::to_block(&value);
        let cid = *root.cid();
        let resolve = |path| world.resolve_from(&root, path).expect(path);
        assert_eq!(resolve("files"), Target::Block { cid: world.dir });
        assert_eq!(resolve("files/sub/a.txt"), Target::Block { cid: world.leaf });
        assert_eq!(resolve("counts/ok"), Target::Value { cid, value: Ipld::Integer(3) });
        assert!(world.resolve_from(&root, "nothing").is_err());
    }
    // These are no nodes of the lab, and nothing in them is passed over.
    for value in [
        tagged(vec![files(), ok()], "iptl.result/2", vec![("a", Ipld::Null)]),
        tagged(vec![("other", Ipld::Null)], "iptl.result/2", vec![("a", Ipld::Null)]),
        map(vec![("iptl.result/1", map(vec![("a", Ipld::Null)])), ("iptl.result/2", map(vec![("a", Ipld::Null)]))]),
        map(vec![("files", map(vec![("b", Ipld::Null)]))]),
    ] {
        assert!(world.resolve_from(&codec::to_block(&value), "a").is_err(), "{value:?}");
    }
}

#[test]
fn path_that_leads_nowhere_says_where_it_ended() {
    let world = World::new();
    let rows = [
        ("nothing", "no \"nothing\" in ROOT"),
        ("files/b.txt", "no \"b.txt\" in ROOT/files"),
        ("list/7", "no \"7\" in ROOT/list"),
        ("list/-1", "no \"-1\" in ROOT/list"),
        ("list/0/n/x", "ROOT/list/0/n is a number, so there is no \"x\" in it"),
        ("files/a.txt/x", "ROOT/files/a.txt is a file, so there is no \"x\" in it"),
        ("files/..", "no \"..\" in ROOT/files"),
    ];
    for (path, message) in rows {
        let error = world.resolve(path).expect_err(path).to_string();
        assert_eq!(error.replace(&world.root.to_string(), "ROOT"), message);
    }
    assert!(matches!(world.resolve(&"a/".repeat(300)), Err(PathError::TooLong)));
}

struct World {
    blocks: BTreeMap<Cid, Block>,
    root: Cid,
    dir: Cid,
    leaf: Cid,
    json: Cid,
}

impl World {
    fn new() -> World {
        let mut blocks = Vec::new();
        let leaf = FileBuilder::of_bytes(b"text", &mut blocks);
        let mut sub = DirectoryBuilder::new();
        sub.insert("a.txt", leaf.clone()).expect("free");
        let sub = sub.finish(&mut blocks).expect("fits");
        let mut dir = DirectoryBuilder::new();
        dir.insert("a.txt", leaf.clone()).expect("free");
        dir.insert("sub", sub).expect("free");
        let dir = dir.finish(&mut blocks).expect("fits");
        let json = Block::new(Codec::DagJson, r#"{"deep":true}"#);
        let root = codec::to_block(&map(vec![
            ("files", Ipld::Link(dir.cid)),
            ("json", Ipld::Link(*json.cid())),
            ("list", Ipld::List(vec![map(vec![("n", Ipld::Integer(5))]), Ipld::Link(leaf.cid)])),
        ]));
        let (root_cid, json_cid) = (*root.cid(), Entry::of_block(&json).cid);
        blocks.extend([root, json]);
        let blocks = blocks.into_iter().map(|b| (*b.cid(), b)).collect();
        World { blocks, root: root_cid, dir: dir.cid, leaf: leaf.cid, json: json_cid }
    }

    fn resolve(&self, path: &str) -> Result<Target, PathError> {
        self.resolve_from(&self.blocks[&self.root], path)
    }

    fn resolve_from(&self, root: &Block, path: &str) -> Result<Target, PathError> {
        let mut resolve = Resolve::new(*root.cid(), path)?;
        loop {
            match resolve.step().clone() {
                Step::Need(cid) if cid == *root.cid() => resolve.supply(root)?,
                Step::Need(cid) => resolve.supply(&self.blocks[&cid])?,
                Step::Found(target) => return Ok(target),
            }
        }
    }
}

fn map(entries: Vec<(&str, Ipld)>) -> Ipld {
    Ipld::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}
