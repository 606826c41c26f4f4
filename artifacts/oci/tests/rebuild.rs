//! What is written for engines.

use std::sync::Arc;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_oci::{
    Digest, ImportOptions, Limits, RebuildError, RootfsOptions, image_from_rootfs, import_archive, import_layout_dir,
    import_stream, read_config, read_image, unpack, write_docker_archive,
};
use serde_json::Value;

use crate::make::{
    Packing, Tar, blob_name, config, docker_save, import, noise, rebuilt, tar_files, try_import, write_files,
};

fn layers() -> [Vec<u8>; 3] {
    let shared = Tar::new().file("shared", noise(1, 300_000)).end();
    [shared.clone(), Tar::new().file("own", noise(2, 3000)).end(), shared]
}

#[tokio::test]
async fn archive_is_an_oci_layout_and_a_docker_save_at_once() {
    let store = MemStore::new();
    let imported = import(&store, &layers(), Packing::Gzip).await;
    let archive = rebuilt(&store, &imported.image, Some("iptl/thing:v1")).await;
    let mut files = tar_files(&archive);
    let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert_eq!(docker[0]["RepoTags"], serde_json::json!(["iptl/thing:v1"]));
    assert_eq!(docker[0]["Config"], blob_name(&config(&layers())));
    let names: Vec<String> = layers().iter().map(|layer| blob_name(layer)).collect();
    assert_eq!(docker[0]["Layers"], serde_json::json!(names));
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let annotations = &index["manifests"][0]["annotations"];
    assert_eq!(annotations["io.containerd.image.name"], "docker.io/iptl/thing:v1");
    assert_eq!(annotations["org.opencontainers.image.ref.name"], "v1");
    // Both forms lead to the same image again.
    let saved = try_import(&store, &archive, ImportOptions::default()).await.unwrap();
    assert_eq!(saved.image, imported.image);
    assert_eq!(saved.names, ["iptl/thing:v1"]);
    files.remove("manifest.json");
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &files);
    let of_layout = import_layout_dir(&store, dir.path(), ImportOptions::default()).await.unwrap();
    assert_eq!(of_layout.image, imported.image);
}

#[tokio::test]
async fn same_image_is_the_same_archive() {
    let (one, two) = (MemStore::new(), MemStore::new());
    let first = import(&one, &layers(), Packing::Gzip).await.image;
    let second = import(&two, &layers(), Packing::Zstd).await.image;
    assert_eq!(first, second);
    assert!(rebuilt(&one, &first, Some("a")).await == rebuilt(&two, &second, Some("a")).await);
}

#[tokio::test]
async fn ids_are_those_of_the_image_that_was_imported() {
    let store = MemStore::new();
    let imported = import(&store, &layers(), Packing::Gzip).await;
    let mut sink = tokio::io::sink();
    let written = write_docker_archive(&store, &imported.image, None, &Limits::default(), &mut sink).await.unwrap();
    assert_eq!(written.config_digest, Digest::of(&config(&layers())));
    assert_eq!(written.config_digest, imported.config_digest);
    let image = read_image(&store, &imported.image).await.unwrap();
    assert_eq!(read_config(&store, &image).await.unwrap(), config(&layers()));
}

#[tokio::test]
async fn names_that_no_engine_takes_are_refused() {
    let store = MemStore::new();
    let imported = import(&store, &layers(), Packing::Plain).await;
    for name in ["", "UPPER", "a b", "a:", "../a", "a\n"] {
        let mut sink = tokio::io::sink();
        let written = write_docker_archive(&store, &imported.image, Some(name), &Limits::default(), &mut sink).await;
        assert!(matches!(written, Err(RebuildError::Name { .. })), "{name:?}");
    }
}

#[tokio::test]
async fn writer_that_fails_ends_it() {
    let store = MemStore::new();
    let imported = import(&store, &layers(), Packing::Plain).await;
    let (mut ours, theirs) = tokio::io::duplex(1000);
    drop(theirs);
    let written = write_docker_archive(&store, &imported.image, None, &Limits::default(), &mut ours).await;
    assert!(matches!(written, Err(RebuildError::Write(_))), "{written:?}");
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let store = MemStore::new();
    let imported = import(&store, &layers(), Packing::Plain).await;
    let image = read_image(&store, &imported.image).await.unwrap();
    for cid in [image.layers[0], image.config] {
        let mut sink = tokio::io::sink();
        let written = write_docker_archive(&store, &cid, None, &Limits::default(), &mut sink).await;
        assert!(matches!(written, Err(RebuildError::Read(_))), "{written:?}");
    }
}

#[tokio::test]
async fn work_can_be_spawned() {
    // Each future moves between threads, with a store that many share.
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::new());
    let archive = docker_save(&layers(), &["x:1"]);
    let dir = tempfile::tempdir().unwrap();
    let (path, dest) = (dir.path().join("saved.tar"), dir.path().join("root"));
    std::fs::write(&path, &archive).unwrap();
    let work = tokio::spawn(async move {
        let imported = import_archive(&*store, &path, ImportOptions::default()).await.unwrap();
        let streamed = import_stream(&*store, archive.as_slice(), ImportOptions::default()).await.unwrap();
        assert_eq!(imported.image, streamed.image);
        let mut sink = tokio::io::sink();
        write_docker_archive(&*store, &imported.image, None, &Limits::default(), &mut sink).await.unwrap();
        unpack(&*store, &imported.image, &dest, &Limits::default()).await.unwrap();
        let made = image_from_rootfs(&*store, &dest, RootfsOptions::default()).await.unwrap();
        assert_ne!(made.image, imported.image);
    });
    work.await.unwrap();
}
