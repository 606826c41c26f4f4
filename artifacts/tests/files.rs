//! Files into blocks and back.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use iptl_artifacts::export::{
    ExportError, ResolveError, export_path, read_file, resolve_path, stream_file, write_file,
};
use iptl_artifacts::import::{ImportError, ImportOptions, SOURCE_IGNORES, add_bytes, import_path};
use iptl_artifacts::{BlobStore, MemStore, Pin, PinKind, PinMode, Pins, StoreError, car, contract, gc};
use iptl_dag::path::Target;
use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::{Block, Cid, Codec, codec};

/// Returns bytes without repetition.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    (0..).flat_map(|i| contract::sample(seed * 1000 + i, 1 << 20).data().to_vec()).take(size).collect()
}

/// Makes a small tree with every shape: empty, small, chunked, nested.
fn make_tree(dir: &Path) {
    fs::create_dir_all(dir.join("src/deep/er")).unwrap();
    fs::create_dir(dir.join("void")).unwrap();
    fs::write(dir.join("plan.toml"), "name = \"ping\"\n").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("src/big.bin"), noise(1, 3_000_000)).unwrap();
    fs::write(dir.join("src/deep/er/\u{fc}n\u{ef}.txt"), "text").unwrap();
}

/// Lists a tree: paths below it, with the content of files.
fn read_tree(dir: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let child = entry.unwrap().path();
            let below = child.strip_prefix(dir).unwrap().to_path_buf();
            if child.is_dir() {
                found.push((below, None));
                pending.push(child);
            } else {
                found.push((below, Some(fs::read(child).unwrap())));
            }
        }
    }
    found.sort();
    found
}

/// Makes a directory node with any names, as a stranger can.
fn directory(names: &[(&str, Cid)]) -> Block {
    let links =
        names.iter().map(|(name, cid)| PbLink { cid: *cid, name: Some((*name).to_owned()), tsize: Some(1) }).collect();
    let message = PbUnixFs::new(PbKind::Directory);
    Block::new(Codec::DagPb, PbNode { links, data: Some(message.encode()) }.encode())
}

#[tokio::test]
async fn tree_comes_back_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    make_tree(&from);
    let store = MemStore::new();
    let imported = import_path(&store, &from, &ImportOptions::default()).await.unwrap();
    assert_eq!((imported.files, imported.bytes), (4, 3_000_000 + 14 + 4));
    assert_eq!(imported.new_blocks, store.len() as u64);
    let exported = export_path(&store, &imported.cid, &to).await.unwrap();
    assert_eq!((exported.files, exported.bytes), (imported.files, imported.bytes));
    assert_eq!(read_tree(&from), read_tree(&to));
    let target = resolve_path(&store, &imported.cid, "src/deep/er/\u{fc}n\u{ef}.txt").await.unwrap();
    let Target::Block { cid } = target else { panic!("a file is a block") };
    assert_eq!(read_file(&store, &cid, 100).await.unwrap(), "text");
}

#[tokio::test]
async fn every_call_can_run_on_a_task_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    make_tree(&temp.path().join("from"));
    let work = async move {
        let store: std::sync::Arc<dyn BlobStore> = std::sync::Arc::new(MemStore::new());
        let imported = import_path(&*store, &temp.path().join("from"), &ImportOptions::default()).await.unwrap();
        export_path(&*store, &imported.cid, &temp.path().join("to")).await.unwrap();
        resolve_path(&*store, &imported.cid, "src").await.unwrap();
        car::export_car(&*store, &imported.cid, &mut tokio::io::sink()).await.unwrap();
        let pins = Pins::open(temp.path().join("pins")).unwrap();
        assert_eq!(gc(&*store, &pins).await.unwrap().kept, 0);
    };
    tokio::spawn(work).await.unwrap();
}

#[tokio::test]
async fn same_tree_has_the_same_cid_whatever_its_times() {
    let temp = tempfile::tempdir().unwrap();
    let (a, b) = (temp.path().join("a"), temp.path().join("b"));
    make_tree(&a);
    make_tree(&b);
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::options().write(true).open(b.join("plan.toml")).unwrap().set_modified(old).unwrap();
    let store = MemStore::new();
    let first = import_path(&store, &a, &ImportOptions::default()).await.unwrap();
    let second = import_path(&store, &b, &ImportOptions::default()).await.unwrap();
    assert_eq!(first.cid, second.cid);
    assert_eq!(second.new_blocks, 0, "nothing is stored twice");
    let hashed = ImportOptions { only_hash: true, ..ImportOptions::default() };
    let empty = MemStore::new();
    let third = import_path(&empty, &a, &hashed).await.unwrap();
    assert_eq!((third.cid, third.bytes, third.blocks), (first.cid, first.bytes, first.blocks));
    assert!(empty.is_empty(), "hashing alone stores nothing");
}

#[tokio::test]
async fn ignored_entries_leave_no_trace() {
    let temp = tempfile::tempdir().unwrap();
    let (plain, dirty) = (temp.path().join("plain"), temp.path().join("dirty"));
    make_tree(&plain);
    make_tree(&dirty);
    fs::create_dir_all(dirty.join(".git/objects")).unwrap();
    fs::create_dir_all(dirty.join("src/target")).unwrap();
    symlink("/nowhere", dirty.join("src/target/link")).unwrap();
    fs::write(dirty.join("src/a.log"), "noise").unwrap();
    let store = MemStore::new();
    let mut ignore: Vec<String> = SOURCE_IGNORES.map(String::from).to_vec();
    ignore.push("src/*.log".into());
    let expected = import_path(&store, &plain, &ImportOptions::default()).await.unwrap();
    let options = ImportOptions { ignore, ..ImportOptions::default() };
    assert_eq!(import_path(&store, &dirty, &options).await.unwrap().cid, expected.cid);
    fs::remove_dir_all(dirty.join("src/target")).unwrap();
    fs::write(dirty.join("src/target"), "a file").unwrap();
    let other = import_path(&store, &dirty, &options).await.unwrap();
    assert_ne!(other.cid, expected.cid, "target/ matches directories alone");
}

#[tokio::test]
async fn links_and_special_files_are_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let store = MemStore::new();
    symlink("/etc/hostname", temp.path().join("link")).unwrap();
    let error = import_path(&store, temp.path(), &ImportOptions::default()).await.unwrap_err();
    assert!(matches!(&error, ImportError::Symlink { path } if path.ends_with("link")), "{error}");
    fs::remove_file(temp.path().join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("socket")).unwrap();
    let error = import_path(&store, temp.path(), &ImportOptions::default()).await.unwrap_err();
    assert!(matches!(&error, ImportError::Special { path } if path.ends_with("socket")), "{error}");
    let error = import_path(&store, &temp.path().join("absent"), &ImportOptions::default()).await.unwrap_err();
    assert!(matches!(&error, ImportError::Read { .. }), "{error}");
}

#[tokio::test]
async fn bytes_and_file_of_the_same_content_have_one_cid() {
    let temp = tempfile::tempdir().unwrap();
    let store = MemStore::new();
    for size in [0, 1, 100_000, 5_000_000] {
        let content = noise(9, size);
        let path = temp.path().join("file");
        fs::write(&path, &content).unwrap();
        let file = import_path(&store, &path, &ImportOptions::default()).await.unwrap();
        let bytes = add_bytes(&store, content.clone().into()).await.unwrap();
        assert_eq!((file.cid, file.bytes), (bytes.cid, size as u64));
        assert_eq!(read_file(&store, &file.cid, size as u64).await.unwrap(), content);
        let mut out = Vec::new();
        assert_eq!(stream_file(&store, &file.cid, &mut out, u64::MAX).await.unwrap(), size as u64);
        assert_eq!(out, content);
    }
}

#[tokio::test]
async fn hostile_names_stay_inside() {
    let store = MemStore::new();
    let leaf = Block::new(Codec::Raw, "gotcha");
    for name in ["..", ".", "", "a/b", "/etc/x", "../x", "a\0b"] {
        let temp = tempfile::tempdir().unwrap();
        let inner = directory(&[(name, *leaf.cid())]);
        let outer = directory(&[("dir", *inner.cid())]);
        store.put_now([leaf.clone(), inner.clone(), outer.clone()]);
        let dest = temp.path().join("dest");
        let error = export_path(&store, outer.cid(), &dest).await.unwrap_err();
        assert!(matches!(error, ExportError::Name { .. }), "{name:?}: {error}");
        let left: Vec<PathBuf> = read_tree(temp.path()).into_iter().map(|(path, _)| path).collect();
        assert!(left.iter().all(|path| path.starts_with("dest")), "{name:?} wrote {left:?}");
    }
}

#[tokio::test]
async fn nothing_that_exists_is_overwritten_or_followed() {
    let temp = tempfile::tempdir().unwrap();
    let store = MemStore::new();
    let leaf = Block::new(Codec::Raw, "new");
    let inner = directory(&[("file", *leaf.cid())]);
    let outer = directory(&[("dir", *inner.cid())]);
    store.put_now([leaf.clone(), inner, outer.clone()]);
    let dest = temp.path().join("dest");
    fs::create_dir_all(dest.join("dir")).unwrap();
    fs::write(dest.join("dir/file"), "old").unwrap();
    let error = export_path(&store, outer.cid(), &dest).await.unwrap_err();
    assert!(matches!(&error, ExportError::Exists { path } if path.ends_with("dest/dir/file")), "{error}");
    assert_eq!(fs::read(dest.join("dir/file")).unwrap(), b"old");
    fs::remove_dir_all(dest.join("dir")).unwrap();
    let elsewhere = temp.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, dest.join("dir")).unwrap();
    let error = export_path(&store, outer.cid(), &dest).await.unwrap_err();
    assert!(matches!(&error, ExportError::Exists { path } if path.ends_with("dest/dir")), "{error}");
    assert!(read_tree(&elsewhere).is_empty(), "a link is not followed");
    let dangling = temp.path().join("dangling");
    symlink(temp.path().join("nowhere"), &dangling).unwrap();
    let error = write_file(&store, leaf.cid(), &dangling).await.unwrap_err();
    assert!(matches!(error, ExportError::Exists { .. }), "{error}");
}

#[tokio::test]
async fn tree_that_explodes_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let store = MemStore::new();
    let mut node = directory(&[]);
    store.put_now([node.clone()]);
    for _ in 0..200 {
        node = directory(&[("a", *node.cid())]);
        store.put_now([node.clone()]);
    }
    let error = export_path(&store, node.cid(), &temp.path().join("deep")).await.unwrap_err();
    assert!(matches!(error, ExportError::TooMany { .. }), "{error}");
}

#[tokio::test]
async fn missing_and_damaged_blocks_are_told_apart() {
    let temp = tempfile::tempdir().unwrap();
    let store = MemStore::new();
    let imported = add_bytes(&store, noise(3, 2_000_000).into()).await.unwrap();
    let leaf = *store.list().await.unwrap().iter().find(|hash| *hash != imported.cid.hash()).unwrap();
    store.remove(&[leaf]).await.unwrap();
    let error = write_file(&store, &imported.cid, &temp.path().join("out")).await.unwrap_err();
    assert!(matches!(&error, ExportError::Missing { cid } if *cid.hash() == leaf), "{error}");
    assert!(read_tree(temp.path()).is_empty(), "half a file is no file");
    let error = read_file(&store, &imported.cid, 1_999_999).await.unwrap_err();
    assert!(matches!(error, ExportError::TooLarge { size: 2_000_000, .. }), "{error}");
    let error = resolve_path(&store, &imported.cid, "below").await.unwrap_err();
    assert!(matches!(error, ResolveError::Path(_)), "{error}");
    let absent = *Block::new(Codec::DagCbor, codec::encode(&1)).cid();
    let error = resolve_path(&store, &absent, "a").await.unwrap_err();
    assert!(matches!(error, ResolveError::Missing { cid } if cid == absent), "{error}");
}

#[tokio::test]
async fn car_holds_every_block_once_and_verifies() {
    let temp = tempfile::tempdir().unwrap();
    make_tree(temp.path());
    let store = MemStore::new();
    let imported = import_path(&store, temp.path(), &ImportOptions::default()).await.unwrap();
    let mut out = Vec::new();
    let summary = car::export_car(&store, &imported.cid, &mut out).await.unwrap();
    assert_eq!((summary.bytes, summary.blocks), (out.len() as u64, store.len() as u64));
    let mut rest = out.as_slice();
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let (length, after) = varint(rest);
        frames.push(&after[..length]);
        rest = &after[length..];
    }
    for frame in &frames[1..] {
        let mut reader = *frame;
        let cid = Cid::read_bytes(&mut reader).unwrap();
        Block::verify(cid, reader.to_vec()).unwrap();
        assert!(store.get_now(cid.hash()).is_some());
    }
    assert_eq!(frames.len() - 1, store.len());
    let leaf = *store.list().await.unwrap().iter().find(|hash| *hash != imported.cid.hash()).unwrap();
    store.remove(&[leaf]).await.unwrap();
    let error = car::export_car(&store, &imported.cid, &mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, car::CarError::Missing { .. }), "{error}");
}

fn varint(bytes: &[u8]) -> (usize, &[u8]) {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap();
    let value = bytes[..=end].iter().rev().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7f));
    (value, &bytes[end + 1..])
}

#[tokio::test]
async fn collection_keeps_what_pins_lead_to() {
    let temp = tempfile::tempdir().unwrap();
    make_tree(temp.path());
    let store = MemStore::new();
    let tree = import_path(&store, temp.path(), &ImportOptions::default()).await.unwrap();
    let kept = store.list().await.unwrap();
    let garbage = add_bytes(&store, noise(5, 500_000).into()).await.unwrap();
    let alone = directory(&[("gone", *Block::new(Codec::Raw, "never stored").cid())]);
    store.put_now([alone.clone()]);
    let dir = tempfile::tempdir().unwrap();
    let pins = Pins::open(dir.path().join("pins")).unwrap();
    let pin = |root: Cid, mode| Pin { root, mode, kind: PinKind::Data, name: "x".into(), pinned_ms: 0, public: true };
    pins.add([pin(tree.cid, PinMode::Recursive), pin(*alone.cid(), PinMode::Direct)]).unwrap();
    let collected = gc(&store, &pins).await.unwrap();
    assert_eq!((collected.kept, collected.removed), (kept.len() as u64 + 1, garbage.blocks));
    assert!(collected.missing.is_empty(), "below a direct pin nothing is missed");
    assert!(store.has(&kept).await.unwrap().into_iter().all(|has| has));
    assert_eq!(store.has(&[*garbage.cid.hash()]).await.unwrap(), [false]);
    pins.remove(&tree.cid).unwrap();
    pins.remove(alone.cid()).unwrap();
    gc(&store, &pins).await.unwrap();
    assert!(store.is_empty());
}

#[tokio::test]
async fn damaged_store_stops_a_collection_before_it_drops_anything() {
    struct Lying(MemStore, Cid);

    #[async_trait::async_trait]
    impl BlobStore for Lying {
        async fn has(&self, hashes: &[iptl_artifacts::Multihash]) -> Result<Vec<bool>, StoreError> {
            self.0.has(hashes).await
        }
        async fn get(&self, hash: &iptl_artifacts::Multihash) -> Result<Option<Bytes>, StoreError> {
            if hash == self.1.hash() { Ok(Some(Bytes::from_static(b"rot"))) } else { self.0.get(hash).await }
        }
        async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
            self.0.put(blocks).await
        }
        async fn flush(&self) -> Result<(), StoreError> {
            Ok(())
        }
        async fn remove(&self, _: &[iptl_artifacts::Multihash]) -> Result<(), StoreError> {
            panic!("nothing may be dropped");
        }
        async fn list(&self) -> Result<Vec<iptl_artifacts::Multihash>, StoreError> {
            self.0.list().await
        }
        async fn usage(&self) -> Result<iptl_artifacts::Usage, StoreError> {
            self.0.usage().await
        }
    }

    let temp = tempfile::tempdir().unwrap();
    let inner = MemStore::new();
    let imported = add_bytes(&inner, noise(6, 500_000).into()).await.unwrap();
    let store = Lying(inner, imported.cid);
    let pins = Pins::open(temp.path().join("pins")).unwrap();
    let root = imported.cid;
    pins.add([Pin {
        root,
        mode: PinMode::Recursive,
        kind: PinKind::Data,
        name: "x".into(),
        pinned_ms: 0,
        public: true,
    }])
    .unwrap();
    let error = gc(&store, &pins).await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}
