//! Trees of strangers: nothing that they name, link or claim leaves the destination.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink as make_link};
use std::path::{Path, PathBuf};

use iptl_artifacts::MemStore;
use iptl_artifacts::export::{ExportError, Exported, export_path};
use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::unixfs::{Metadata, Modified, Profile, symlink};
use iptl_dag::{Block, Cid, Codec};

/// A store, and a destination in a folder that holds nothing else but a file to be stolen.
struct World {
    store: MemStore,
    temp: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("secret"), "secret").unwrap();
        World { store: MemStore::new(), temp }
    }

    fn dest(&self) -> PathBuf {
        self.temp.path().join("dest")
    }

    fn leaf(&self, text: &str) -> Cid {
        self.put(Block::new(Codec::Raw, text.as_bytes().to_vec()))
    }

    fn link(&self, target: &str) -> Cid {
        let mut blocks = Vec::new();
        symlink(Profile::Iptl, target, Metadata::default(), &mut blocks);
        self.put(blocks.remove(0))
    }

    /// Makes a directory of any names, as a stranger can.
    fn directory(&self, entries: &[(&str, Cid)]) -> Cid {
        self.directory_with(entries, Metadata::default())
    }

    fn directory_with(&self, entries: &[(&str, Cid)], metadata: Metadata) -> Cid {
        let link = |(name, cid): &(&str, Cid)| PbLink { cid: *cid, name: Some((*name).to_owned()), tsize: Some(1) };
        let message = PbUnixFs { metadata, ..PbUnixFs::new(PbKind::Directory) };
        let node = PbNode { links: entries.iter().map(link).collect(), data: Some(message.encode()) };
        self.put(Block::new(Codec::DagPb, node.encode()))
    }

    fn put(&self, block: Block) -> Cid {
        let cid = *block.cid();
        self.store.put_now([block]);
        cid
    }

    async fn export(&self, root: Cid) -> Result<Exported, ExportError> {
        let exported = export_path(&self.store, &root, &self.dest()).await;
        let outside: Vec<PathBuf> =
            fs::read_dir(self.temp.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let expected = [self.dest(), self.temp.path().join("secret")];
        assert!(outside.iter().all(|path| expected.contains(path)), "{outside:?}");
        assert_eq!(fs::read(self.temp.path().join("secret")).unwrap(), b"secret");
        for path in links_below(&self.dest()) {
            let real = fs::canonicalize(&path).unwrap_or_else(|_| self.dest());
            let dest = fs::canonicalize(self.dest()).unwrap();
            assert!(real.starts_with(&dest), "{} leads to {}", path.display(), real.display());
        }
        exported
    }
}

fn links_below(path: &Path) -> Vec<PathBuf> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Vec::new() };
    if metadata.is_symlink() {
        return vec![path.to_path_buf()];
    }
    if !metadata.is_dir() {
        return Vec::new();
    }
    fs::read_dir(path).unwrap().flat_map(|entry| links_below(&entry.unwrap().path())).collect()
}

#[tokio::test]
async fn links_that_stay_inside_are_written() {
    let world = World::new();
    let leaf = world.leaf("x");
    let rows = [
        ("same", "file"),
        ("dotted", "./file"),
        ("down", "inner/file"),
        ("dangling", "nothing/here"),
        ("self", "."),
        ("slashes", "inner//file"),
    ];
    let mut entries: Vec<(&str, Cid)> = rows.iter().map(|(name, target)| (*name, world.link(target))).collect();
    let ups = [("up", "../file"), ("up-and-down", "../inner/file"), ("top", "..")];
    let mut inner: Vec<(&str, Cid)> = ups.iter().map(|(name, target)| (*name, world.link(target))).collect();
    inner.push(("file", leaf));
    let inner = world.directory(&inner);
    entries.extend([("file", leaf), ("inner", inner)]);
    let exported = world.export(world.directory(&entries)).await.unwrap();
    assert_eq!((exported.files, exported.directories, exported.links), (2, 2, 9));
    for (name, target) in rows {
        assert_eq!(fs::read_link(world.dest().join(name)).unwrap(), Path::new(target));
    }
    assert_eq!(fs::read(world.dest().join("inner/up")).unwrap(), b"x");
}

#[tokio::test]
async fn links_that_lead_out_are_refused() {
    let long = "x/".repeat(2048);
    let rows = [
        "/etc/passwd",
        "/",
        "//x",
        "..",
        "../secret",
        "./../secret",
        "inner/../../secret",
        "inner/..",
        "inner/./..",
        "",
        "a\0b",
        long.as_str(),
    ];
    for target in rows {
        let world = World::new();
        let inner = world.directory(&[("file", world.leaf("x"))]);
        let root = world.directory(&[("inner", inner), ("link", world.link(target))]);
        let error = world.export(root).await.unwrap_err();
        assert!(matches!(error, ExportError::Symlink { .. }), "{target:?}: {error}");
    }
    for target in ["../../secret", ".././../secret", "../inner/../../secret", "../../dest/file"] {
        let world = World::new();
        let inner = world.directory(&[("link", world.link(target))]);
        let error = world.export(world.directory(&[("inner", inner)])).await.unwrap_err();
        assert!(matches!(error, ExportError::Symlink { .. }), "{target:?}: {error}");
    }
}

#[tokio::test]
async fn link_through_a_link_cannot_lead_out() {
    // By its letters `d/e/up/../..` is `d`; by what is there, it is above the destination.
    let world = World::new();
    let e = world.directory(&[("up", world.link(".."))]);
    let root = world.directory(&[("d", world.directory(&[("e", e)])), ("link", world.link("d/e/up/../../../secret"))]);
    assert!(matches!(world.export(root).await.unwrap_err(), ExportError::Symlink { .. }));
}

#[tokio::test]
async fn tree_that_is_a_link_is_refused() {
    let world = World::new();
    for target in ["secret", "dest", "."] {
        let error = world.export(world.link(target)).await.unwrap_err();
        assert!(matches!(error, ExportError::Symlink { .. }), "{target}: {error}");
        assert!(fs::symlink_metadata(world.dest()).is_err());
    }
}

#[tokio::test]
async fn nothing_is_written_through_a_link_of_the_same_name() {
    // Both orders, and links both to a directory of the tree and to one that was there.
    for order in [[0, 1], [1, 0]] {
        for (target, is_there) in [("other", false), ("other", true)] {
            let world = World::new();
            fs::create_dir(world.dest()).unwrap();
            if is_there {
                fs::create_dir(world.dest().join("other")).unwrap();
                make_link(world.dest().join("other"), world.dest().join("name")).unwrap();
            }
            let inner = world.directory(&[("stolen", world.leaf("x"))]);
            let pair = [("name", world.link(target)), ("name", inner)];
            let root = world.directory(&[pair[order[0]], pair[order[1]]]);
            let error = world.export(root).await.unwrap_err();
            assert!(matches!(&error, ExportError::Exists { path } if path.ends_with("name")), "{error}");
            assert!(!world.dest().join("other/stolen").exists());
        }
    }
}

#[tokio::test]
async fn two_directories_of_one_name_are_not_mixed() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(|name| world.directory(&[(name, world.leaf("x"))]));
    let error = world.export(world.directory(&[("name", a), ("name", b)])).await.unwrap_err();
    assert!(matches!(&error, ExportError::Exists { path } if path.ends_with("name")), "{error}");
    assert_eq!(fs::read_dir(world.dest().join("name")).unwrap().count(), 1);
}

#[tokio::test]
async fn names_that_are_something_special_elsewhere_are_plain_names_here() {
    let world = World::new();
    let names = [
        "CON",
        "nul.txt",
        "a\\b",
        "C:",
        "..\\x",
        ".iptl-x",
        "~",
        "-rf",
        "trailing ",
        "dot.",
        "...",
        "A",
        "a",
        "\u{202e}",
    ];
    let entries = names.map(|name| (name, world.leaf(name)));
    let exported = world.export(world.directory(&entries)).await.unwrap();
    assert_eq!(exported.files, names.len() as u64);
    for name in names {
        assert_eq!(fs::read(world.dest().join(name)).unwrap(), name.as_bytes(), "{name:?}");
    }
}

#[tokio::test]
async fn names_longer_than_a_file_system_takes_end_the_export() {
    let world = World::new();
    let name = "x".repeat(300);
    let error = world.export(world.directory(&[(&name, world.leaf("x"))])).await.unwrap_err();
    assert!(matches!(error, ExportError::Write { .. }), "{error}");
    assert_eq!(fs::read_dir(world.dest()).unwrap().count(), 0);
}

#[tokio::test]
async fn modes_give_permissions_and_nothing_else() {
    let world = World::new();
    let usual = fs::metadata(world.temp.path().join("secret")).unwrap().permissions().mode() & 0o777;
    let with = |mode| Metadata { mode: Some(mode), modified: Some(Modified { seconds: i64::MAX, nanos: 0 }) };
    let file = PbUnixFs {
        data: Some(b"x".to_vec()),
        file_size: Some(1),
        metadata: with(0o7777),
        ..PbUnixFs::new(PbKind::File)
    };
    let file = world.put(Block::new(Codec::DagPb, PbNode { links: Vec::new(), data: Some(file.encode()) }.encode()));
    let inner = world.directory_with(&[("file", file)], with(0o7555));
    world.export(world.directory(&[("inner", inner)])).await.unwrap();
    let mode = |path: &str| fs::metadata(world.dest().join(path)).unwrap().permissions().mode() & 0o7777;
    // The umask shows in what any other file got.
    assert_eq!(mode("inner/file") & 0o666, usual);
    assert_eq!(mode("inner/file") & 0o7000, 0);
    assert_eq!(mode("inner"), 0o555 & mode("inner") & (usual | 0o111));
    assert_eq!(mode("inner") & 0o200, 0, "it was written into, and then its own mode forbade it");
}
