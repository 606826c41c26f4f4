//! The merged file system, and what must not get out of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use iptl_artifacts::MemStore;
use iptl_artifacts_oci::{Limits, UnpackError, Unpacked, unpack};
use tar::EntryType;

use crate::make::{Packing, Tar, import, noise};

/// A directory with a place to unpack to, beside which nothing may change.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        Place { dir }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) async fn unpack(&self, layers: &[Vec<u8>]) -> Result<Unpacked, UnpackError> {
        let store = MemStore::new();
        let imported = import(&store, layers, Packing::Plain).await;
        unpack(&store, &imported.image, &self.root(), &Limits::default()).await
    }

    pub(crate) fn assert_outside_is_untouched(&self) {
        let names: Vec<String> = tree(&self.dir.path().join("outside")).into_keys().collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::read(self.dir.path().join("outside/secret")).unwrap(), b"untouched");
        let beside: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(beside.iter().all(|name| name == "outside" || name == "root"), "{beside:?}");
    }
}

/// Everything below a directory: files with their content, links with `-> target`, directories with `/`.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let what = if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                open.push(path.clone());
                "/".into()
            } else {
                String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
            };
            found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), what);
        }
    }
    found
}

pub(crate) async fn unpacked(layers: &[Vec<u8>]) -> BTreeMap<String, String> {
    let place = Place::new();
    place.unpack(layers).await.unwrap();
    place.assert_outside_is_untouched();
    tree(&place.root())
}

pub(crate) fn expected(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
    rows.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect()
}

#[tokio::test]
async fn layers_lie_over_each_other() {
    let lower = Tar::new().dir("a").file("a/x", "lower x").file("a/y", "lower y").symlink("l", "a").end();
    let upper = Tar::new().file("a/y", "upper y").file("b/c/new", "parents are implied").end();
    let rows = [
        ("a", "/"),
        ("a/x", "lower x"),
        ("a/y", "upper y"),
        ("b", "/"),
        ("b/c", "/"),
        ("b/c/new", "parents are implied"),
        ("l", "-> a"),
    ];
    assert_eq!(unpacked(&[lower, upper]).await, expected(&rows));
}

#[tokio::test]
async fn whiteout_removes_what_is_below() {
    let lower = Tar::new().dir("a").file("a/x", "x").file("a/y", "y").dir("d").dir("d/e").file("d/e/f", "f").end();
    let upper = Tar::new().file("a/.wh.x", "").file(".wh.d", "").file(".wh.never", "").file("no/.wh.where", "").end();
    assert_eq!(unpacked(&[lower, upper]).await, expected(&[("a", "/"), ("a/y", "y")]));
}

#[tokio::test]
async fn whiteout_leaves_what_is_of_its_own_layer() {
    let lower = Tar::new().file("a/x", "lower").end();
    let upper = Tar::new().file("a/x", "upper").file("a/.wh.x", "").end();
    assert_eq!(unpacked(&[lower, upper]).await, expected(&[("a", "/"), ("a/x", "upper")]));
}

#[tokio::test]
async fn opaque_directory_hides_what_is_below_wherever_the_mark_stands() {
    let lower = Tar::new().file("a/x", "x").file("a/sub/old", "old").file("a/gone/z", "z").file("b", "b").end();
    let first = Tar::new().dir("a").file("a/.wh..wh..opq", "").file("a/new", "new").file("a/sub/own", "own").end();
    let last = Tar::new().dir("a").file("a/new", "new").file("a/sub/own", "own").file("a/.wh..wh..opq", "").end();
    let rows = [("a", "/"), ("a/new", "new"), ("a/sub", "/"), ("a/sub/own", "own"), ("b", "b")];
    assert_eq!(unpacked(&[lower.clone(), first]).await, expected(&rows));
    assert_eq!(unpacked(&[lower, last]).await, expected(&rows));
}

#[tokio::test]
async fn kinds_replace_each_other() {
    let lower = Tar::new().file("a", "file").file("b/x", "x").symlink("c", "b").symlink("d", "nowhere").end();
    let upper = Tar::new().dir("a").file("a/in", "in").file("b", "file").dir("c").file("d", "file").end();
    let rows = [("a", "/"), ("a/in", "in"), ("b", "file"), ("c", "/"), ("d", "file")];
    assert_eq!(unpacked(&[lower, upper]).await, expected(&rows));
}

#[tokio::test]
async fn hard_links_are_one_file() {
    let place = Place::new();
    let lower = Tar::new().file("a", "content").end();
    let upper = Tar::new().link("dir/b", "a").link("c", "/a").link("a", "a").symlink("s", "a").link("t", "s").end();
    place.unpack(&[lower, upper]).await.unwrap();
    let inode = |name: &str| fs::symlink_metadata(place.root().join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("dir/b"));
    assert_eq!(inode("a"), inode("c"));
    assert_eq!(inode("s"), inode("t"));
    assert_eq!(fs::metadata(place.root().join("a")).unwrap().nlink(), 3);
}

#[tokio::test]
async fn modes_times_owners_and_attributes_are_kept() {
    let place = Place::new();
    let tar = Tar::new()
        .pax(&[("mtime", b"1234567890.25"), ("uid", b"1234"), ("gid", b"4321"), ("SCHILY.xattr.user.k", b"v")])
        .raw("dir/", EntryType::Directory, "", &[])
        .pax(&[
            ("mtime", b"-5.5"),
            ("uid", b"1234"),
            ("SCHILY.xattr.user.k", b"\0\x01"),
            ("SCHILY.xattr.trusted.x", b""),
        ])
        .file("dir/file", noise(1, 10_000));
    let mut layer = tar.end();
    // Set user, group and others, and no writing: the directory has to take its content nevertheless.
    set_mode(&mut layer, "dir/\0", 0o2555);
    set_mode(&mut layer, "dir/file\0", 0o4755);
    let unpacked = place.unpack(&[layer]).await.unwrap();
    let dir = fs::metadata(place.root().join("dir")).unwrap();
    let file = fs::metadata(place.root().join("dir/file")).unwrap();
    assert_eq!(dir.permissions().mode() & 0o7777, 0o2555);
    assert_eq!(file.permissions().mode() & 0o7777, 0o4755);
    assert_eq!((dir.mtime(), dir.mtime_nsec()), (1_234_567_890, 250_000_000));
    assert_eq!((file.mtime(), file.mtime_nsec()), (-6, 500_000_000));
    if unpacked.owners {
        assert_eq!((dir.uid(), dir.gid(), file.uid()), (1234, 4321, 1234));
    }
    assert_eq!(unpacked.bytes, 10_000);
    let mut value = [0; 8];
    match rustix::fs::getxattr(place.root().join("dir/file"), "user.k", &mut value[..]) {
        Ok(length) => {
            assert_eq!(value[..length], [0, 1]);
            assert_eq!(unpacked.left_out_xattrs, 1);
        }
        // This file system has none: then all are left out.
        Err(_) => assert_eq!(unpacked.left_out_xattrs, 3),
    }
}

/// Changes the mode in the header of an entry, found by the name with which the block begins.
fn set_mode(layer: &mut [u8], name: &str, mode: u32) {
    let block = layer.chunks_mut(512).find(|block| block.starts_with(name.as_bytes()) && block[257] == b'u').unwrap();
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[tokio::test]
async fn deep_trees_are_made_and_removed() {
    let path = "d/".repeat(250);
    let lower = Tar::new().pax(&[("path", format!("{path}f").as_bytes())]).file("f", "deep").end();
    let upper = Tar::new().file(".wh.d", "").file("flat", "x").end();
    assert_eq!(unpacked(&[lower, upper]).await, expected(&[("flat", "x")]));
}

#[tokio::test]
async fn tree_is_what_gnu_tar_unpacks() {
    let source = tempfile::tempdir().unwrap();
    for i in 0..200 {
        let path = source.path().join(format!("d{}/f{i}", i % 9));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(i, i as usize * 300)).unwrap();
    }
    let output = std::process::Command::new("tar").arg("-cC").arg(source.path()).arg(".").output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: there is no tar program here");
        return;
    };
    assert_eq!(unpacked(&[output.stdout]).await, tree(source.path()));
}
