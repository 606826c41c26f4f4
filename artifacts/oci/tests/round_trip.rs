//! Layers come back byte for byte, however they were written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use iptl_artifacts::MemStore;
use proptest::prelude::*;
use tar::EntryType;

use crate::make::{Packing, Tar, assert_round_trip, blob_name, import, noise, rebuilt, tar_files};

#[tokio::test]
async fn files_of_all_sizes_come_back() {
    let sizes = [0, 1, 511, 512, 513, 4095, 4096, 4097, 20_000, 1 << 20, (3 << 20) + 17];
    let tar = sizes.iter().fold(Tar::new(), |tar, size| tar.file(&format!("f{size}"), noise(*size as u64, *size)));
    assert_round_trip(&tar.end()).await;
}

#[tokio::test]
async fn every_kind_of_entry_comes_back() {
    let tar = Tar::new().dir("./").dir("a/").file("a/f", "content").symlink("a/s", "../f").link("a/h", "a/f");
    let tar = tar.symlink("abs", "/etc/passwd").raw("old/", EntryType::new(0), "", &[]).file("/root", "absolute");
    assert_round_trip(&tar.end()).await;
}

#[tokio::test]
async fn extended_headers_come_back() {
    let long = "d/".repeat(80) + "name";
    let tar = Tar::new()
        .pax(&[("path", long.as_bytes()), ("mtime", b"1700000000.123456789"), ("SCHILY.xattr.user.k", b"v\n=v")])
        .file("short", "content")
        .pax(&[("size", b"5000"), ("uid", b"3000000"), ("comment", b"nobody reads it")])
        .file("sized", vec![7; 5000]);
    assert_round_trip(&tar.end()).await;
}

#[tokio::test]
async fn long_names_of_gnu_come_back() {
    let mut tar = Tar::new();
    let long = "x".repeat(150);
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o600);
    header.set_cksum();
    tar.0.append_data(&mut header, &long, b"abc".as_slice()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    tar.0.append_link(&mut header, "l", format!("{long}/{long}")).unwrap();
    assert_round_trip(&tar.end()).await;
}

#[tokio::test]
async fn global_header_comes_back() {
    let record = b"20 comment=abcdefgh\n";
    let tar = Tar::new().raw("pax_global_header", EntryType::XGlobalHeader, "", record).file("f", "content");
    assert_round_trip(&tar.end()).await;
}

#[tokio::test]
async fn odd_ends_come_back() {
    let tar = Tar::new().file("a", "content").file("b", "x").end();
    let entries = tar.len() - 1024;
    // No end, half an end, the end that GNU tar fills up, and what somebody left behind it.
    assert_round_trip(&tar[..entries]).await;
    assert_round_trip(&tar[..entries + 512]).await;
    assert_round_trip(&[tar.as_slice(), &[0; 8192]].concat()).await;
    assert_round_trip(&[tar.as_slice(), &[0; 100]].concat()).await;
    assert_round_trip(&[tar.as_slice(), b"junk", &[0; 700], &noise(1, 100_000)].concat()).await;
    // The last content without its padding.
    assert_round_trip(&tar[..entries - 511]).await;
}

#[tokio::test]
async fn padding_that_is_not_zeros_comes_back() {
    let mut tar = Tar::new().file("small", "x").file("large", vec![1; 5000]).file("last", "y").end();
    tar[512 + 1..1024].fill(0xee);
    let large_end = 1024 + 512 + 5000;
    tar[large_end..large_end + 20].fill(0xdd);
    assert_round_trip(&tar).await;
}

#[tokio::test]
async fn empty_layers_come_back() {
    assert_round_trip(&[0; 1024]).await;
    assert_round_trip(&Tar::new().dir("./").end()).await;
    let layers = [vec![0; 1024], Tar::new().file("f", "x").end(), vec![0; 1024]];
    let store = MemStore::new();
    let imported = import(&store, &layers, Packing::Gzip).await;
    let files = tar_files(&rebuilt(&store, &imported.image, None).await);
    assert!(layers.iter().all(|layer| files.get(&blob_name(layer)) == Some(layer)));
}

#[tokio::test]
async fn archives_of_gnu_tar_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    make_tree(&tree);
    let formats: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=oldgnu"],
        &["--format=pax"],
        &["--format=pax", "--xattrs", "--xattrs-include=*"],
        &["--format=pax", "--numeric-owner", "--mtime=@0", "--sort=name"],
        &["--format=gnu", "--blocking-factor=1", "--owner=99999999", "--group=4000000"],
    ];
    for options in formats {
        let Some(tar) = gnu_tar(&tree, options) else { return };
        assert_round_trip(&tar).await;
    }
    for (name, format) in [("short", "--format=ustar"), ("short", "--format=v7")] {
        let Some(tar) = gnu_tar(&tree.join(name), &[format]) else { return };
        assert_round_trip(&tar).await;
    }
}

fn make_tree(tree: &Path) {
    fs::create_dir_all(tree.join("short/sub")).unwrap();
    fs::write(tree.join("short/sub/file"), noise(1, 30_000)).unwrap();
    fs::write(tree.join("short/empty"), "").unwrap();
    fs::hard_link(tree.join("short/sub/file"), tree.join("short/twin")).unwrap();
    symlink("sub/file", tree.join("short/link")).unwrap();
    let long = tree.join("n".repeat(120)).join("m".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("ä ö\n名"), "a name of many alphabets").unwrap();
    symlink("t".repeat(180), long.join("long target")).unwrap();
    // Where the file system has none, the archive has none.
    let _ = rustix::fs::setxattr(tree.join("short/empty"), "user.note", b"a value\0", rustix::fs::XattrFlags::empty());
    for i in 0..300 {
        fs::write(tree.join(format!("short/sub/{i}")), noise(i, i as usize * 7)).unwrap();
    }
}

fn gnu_tar(tree: &Path, options: &[&str]) -> Option<Vec<u8>> {
    let run = Command::new("tar").args(options).arg("-cC").arg(tree).arg(".").output();
    match run {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(output.stdout)
        }
        Err(error) => {
            eprintln!("SKIPPED: there is no tar program here: {error}");
            None
        }
    }
}

#[derive(Clone, Debug)]
struct Node {
    name: String,
    what: What,
    mtime: u64,
}

#[derive(Clone, Debug)]
enum What {
    File { seed: u64, size: usize },
    Directory,
    Symlink(String),
    Xattr(Vec<u8>),
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let what = prop_oneof![
        4 => (any::<u64>(), prop_oneof![0..600_usize, 3000..9000_usize, 60_000..200_000_usize])
            .prop_map(|(seed, size)| What::File { seed, size }),
        1 => Just(What::Directory),
        1 => "[a-z/.]{1,40}".prop_map(What::Symlink),
        1 => prop::collection::vec(any::<u8>(), 0..2000).prop_map(What::Xattr),
    ];
    let node = ("[a-zA-Z0-9äß ]{1,12}(/[a-z]{1,8}){0,3}", what, 0..2_000_000_000_u64)
        .prop_map(|(name, what, mtime)| Node { name, what, mtime });
    prop::collection::vec(node, 0..60)
}

fn tar_of_nodes(nodes: &[Node]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for node in nodes {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(node.mtime);
        header.set_mode(0o644);
        match &node.what {
            What::File { seed, size } => {
                header.set_size(*size as u64);
                tar.append_data(&mut header, &node.name, noise(*seed, *size).as_slice()).unwrap();
            }
            What::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, format!("{}/", node.name), [].as_slice()).unwrap();
            }
            What::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, &node.name, target).unwrap();
            }
            What::Xattr(value) => {
                tar.append_pax_extensions([("SCHILY.xattr.user.x", value.as_slice())]).unwrap();
                header.set_size(0);
                tar.append_data(&mut header, &node.name, [].as_slice()).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn random_trees_come_back(nodes in nodes()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(assert_round_trip(&tar_of_nodes(&nodes)));
    }
}
