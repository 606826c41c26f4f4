//! CIDs that must never change: images of years ago are found by them.

use iptl_artifacts::MemStore;
use iptl_artifacts_oci::{RootfsOptions, image_from_rootfs, read_image};

use crate::make::{Packing, Tar, import, noise};

#[tokio::test]
async fn layers_have_the_cids_of_the_table() {
    let every_kind = Tar::new()
        .dir("./")
        .dir("d/")
        .file("d/empty", "")
        .file("d/small", noise(1, 4096))
        .file("d/own", noise(2, 4097))
        .symlink("d/link", "../x")
        .link("d/hard", "d/own")
        .pax(&[("path", "long/".repeat(60).as_bytes()), ("mtime", b"1.5"), ("SCHILY.xattr.user.k", b"v")])
        .file("short", noise(3, 200_000))
        .file("d/.wh.gone", "")
        .end();
    let many = (0..3000).fold(Tar::new(), |tar, i| tar.file(&format!("p{}/f{i}", i % 50), noise(i, i as usize % 700)));
    let odd_end = [Tar::new().file("f", "x").end().as_slice(), &[0; 77], b"left behind"].concat();
    let rows = [
        ("every kind", every_kind, "bafyr4ibz54cwsdenp7iob3ib2rxjgwgnp7rwph6xlhckmppkvtuaz62tha"),
        ("many files", many.end(), "bafyr4igihxaikaslyvhvjc3hnmlfzfrndvjt4eu6p7dcgqjr5lduxcfqj4"),
        ("odd end", odd_end, "bafyr4iczdzfagmwzudpjfytiaqc3j7de5uw3rj5dnrzhymczlujwvahaia"),
        ("empty", vec![0; 1024], "bafyr4idsbafmmlvnfkshn4av224hakv3ors4gvepmdapdxajl3zyc6ncf4"),
    ];
    let store = MemStore::new();
    let mut found = String::new();
    let mut expected = String::new();
    for (name, layer, cid) in rows {
        let imported = import(&store, &[layer], Packing::Plain).await;
        let image = read_image(&store, &imported.image).await.unwrap();
        found += &format!("{name}: {}\n", image.layers[0]);
        expected += &format!("{name}: {cid}\n");
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn tree_has_its_cid() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/file"), noise(1, 10_000)).unwrap();
    std::os::unix::fs::symlink("file", dir.path().join("d/link")).unwrap();
    for (path, mode) in [("d", 0o755), ("d/file", 0o644)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(dir.path().join(path), mode).unwrap();
    }
    let architecture = Some(iptl_artifacts_oci::Architecture::Amd64);
    let options = RootfsOptions { architecture, ..RootfsOptions::default() };
    let imported = image_from_rootfs(&MemStore::new(), dir.path(), options).await.unwrap();
    assert_eq!(imported.image.to_string(), "bafyr4ig4wiqdrzdl7uwyuv36tfrwzl6so5wn27h5dgpojt3q7kgrzhooxe");
}
