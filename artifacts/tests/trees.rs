//! Trees with links, modes and times, large directories, and other profiles.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use iptl_artifacts::export::{ExportError, export_path, read_range};
use iptl_artifacts::import::{ImportOptions, add_bytes, import_path};
use iptl_artifacts::{BlobStore, MemStore, contract};
use iptl_dag::Codec;
use iptl_dag::unixfs::{FileReader, Profile};

/// What a path is, without its name.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
}

/// Mode, and time of modification in seconds and nanoseconds.
type Stat = (u32, i64, i64);

/// Lists a tree: what each path is, with mode and time of all but links.
fn list(root: &Path) -> BTreeMap<PathBuf, (Kind, Option<Stat>)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let stat =
            (!metadata.is_symlink()).then(|| (metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec()));
        let kind = if metadata.is_symlink() {
            Kind::Link(fs::read_link(&path).unwrap())
        } else if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Kind::Directory
        } else {
            Kind::File(fs::read(&path).unwrap())
        };
        found.insert(path.strip_prefix(root).unwrap().to_path_buf(), (kind, stat));
    }
    found
}

#[tokio::test]
async fn links_modes_and_times_come_back_where_they_were_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir_all(from.join("bin/inner")).unwrap();
    fs::write(from.join("bin/run"), "#!/bin/sh\n").unwrap();
    fs::write(from.join("read-only"), contract::sample(1, 1 << 20).data()).unwrap();
    fs::write(from.join("empty"), "").unwrap();
    symlink("bin/run", from.join("run")).unwrap();
    symlink("../../read-only", from.join("bin/inner/up")).unwrap();
    let times = [("bin/run", 1_000_000_000), ("read-only", 1), ("empty", 2_000_000_000), ("bin/inner", 7), ("bin", 8)];
    for (name, seconds) in times {
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
        fs::File::open(from.join(name)).unwrap().set_modified(time).unwrap();
    }
    for (name, mode) in
        [("bin/run", 0o755), ("read-only", 0o444), ("empty", 0o600), ("bin/inner", 0o555), ("bin", 0o700)]
    {
        fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for profile in Profile::ALL {
        let store = MemStore::new();
        let plain = ImportOptions { profile, links: true, ..ImportOptions::default() };
        let options = ImportOptions { metadata: true, ..plain.clone() };
        let imported = import_path(&store, &from, &options).await.unwrap();
        let exported = export_path(&store, &imported.cid, &to).await.unwrap();
        assert_eq!((exported.files, exported.directories, exported.links), (3, 3, 2));
        assert_eq!(list(&from), list(&to), "{profile}");
        assert_eq!(import_path(&store, &to, &options).await.unwrap().cid, imported.cid);
        let without = import_path(&store, &from, &plain).await.unwrap();
        assert_ne!(without.cid, imported.cid);
        fs::set_permissions(from.join("empty"), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(import_path(&store, &from, &plain).await.unwrap().cid, without.cid, "a mode left a trace");
        assert_ne!(import_path(&store, &from, &options).await.unwrap().cid, imported.cid, "a mode left no trace");
        fs::set_permissions(from.join("empty"), fs::Permissions::from_mode(0o600)).unwrap();
        // Whoever is not root may not remove what stands in a directory that cannot be written.
        fs::set_permissions(to.join("bin/inner"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_dir_all(&to).unwrap();
    }
    fs::set_permissions(from.join("bin/inner"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn tree_has_the_cid_that_other_software_gives_under_the_profile() {
    // From the npm package ipfs-unixfs-importer 17.1.1.
    let rows = [
        (Profile::UnixFsV1, "bafybeibowlhlqbjpgtumw54vmod5r6wrimsuuvbxuumaiygsfk7xlme35q"),
        (Profile::UnixFsV0, "Qmejx5gsf49fhfaxtEuH5GFwxckXHQ54dGyW9ZXnYpKqYs"),
    ];
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir_all(temp.path().join("a/b")).unwrap();
    fs::write(temp.path().join("hello.txt"), "hello world").unwrap();
    fs::write(temp.path().join("a/zeros"), vec![0; 3 << 20]).unwrap();
    fs::write(temp.path().join("a/b/empty"), "").unwrap();
    for (profile, cid) in rows {
        let store = MemStore::new();
        let options = ImportOptions { profile, ..ImportOptions::default() };
        let imported = import_path(&store, temp.path(), &options).await.unwrap();
        assert_eq!(imported.cid.to_string(), cid, "{profile}");
    }
}

#[tokio::test]
async fn directory_of_thousands_is_sharded_and_comes_back() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    for i in 0..5_500 {
        fs::write(from.join(format!("{i:05}.txt")), i.to_string()).unwrap();
    }
    let store = MemStore::new();
    let imported = import_path(&store, &from, &ImportOptions::default()).await.unwrap();
    assert!(imported.blocks > 5_500 + 256, "{} blocks", imported.blocks);
    let exported = export_path(&store, &imported.cid, &to).await.unwrap();
    assert_eq!(exported.files, 5_500);
    for i in (0..5_500).step_by(7) {
        assert_eq!(fs::read(to.join(format!("{i:05}.txt"))).unwrap(), i.to_string().as_bytes());
    }
    let node = store.list().await.unwrap().into_iter().find(|hash| {
        let is_small = store.get_now(hash).is_some_and(|data| data.len() < 5);
        !is_small && hash != imported.cid.hash()
    });
    store.remove(&[node.unwrap()]).await.unwrap();
    let error = export_path(&store, &imported.cid, &temp.path().join("again")).await.unwrap_err();
    assert!(matches!(&error, ExportError::Missing { cid } if Some(*cid.hash()) == node), "{error}");
}

#[tokio::test]
async fn range_is_read_while_blocks_beside_it_are_missing() {
    let store = MemStore::new();
    let content: Vec<u8> = (0..6_u64).flat_map(|i| contract::sample(i, 1 << 20).data().to_vec()).collect();
    let imported = add_bytes(&store, content.clone().into()).await.unwrap();
    let range = 2_000_000..2_300_000;
    let mut needed = Vec::new();
    let mut reader = FileReader::of_range(imported.cid, range.clone());
    while let Some(cid) = reader.next().copied() {
        let data = store.get_now(cid.hash()).unwrap();
        reader.supply(&iptl_dag::Block::verify(cid, data).unwrap()).unwrap();
        needed.push(*cid.hash());
    }
    let others: Vec<_> = store.list().await.unwrap().into_iter().filter(|hash| !needed.contains(hash)).collect();
    assert!(others.len() > 3 * needed.len());
    store.remove(&others).await.unwrap();
    let part = read_range(&store, &imported.cid, range).await.unwrap();
    assert_eq!(part, content[2_000_000..2_300_000]);
    assert!(read_range(&store, &imported.cid, 5_000_000..5_000_001).await.is_err());
    assert!(read_range(&store, &imported.cid, content.len() as u64..u64::MAX).await.unwrap().is_empty());
    assert_eq!(Codec::of(&imported.cid), Some(Codec::DagPb));
}
