//! Where images come from, and what is wrong with some.

use std::collections::BTreeMap;
use std::time::Duration;

use iptl_artifacts::{BlobStore as _, MemStore};
use iptl_artifacts_oci::{
    Digest, ImportError, ImportOptions, Limits, Platform, import_archive, import_layout_dir, import_stream,
};
use serde_json::{Value, json};
use tar::EntryType;
use tokio::io::AsyncWriteExt as _;

use crate::make::{
    MANIFEST, Packing, Tar, blob_name, config, descriptor, docker_save, import, import_files, layout, manifest, noise,
    packed, rebuilt, tar_files, tar_of, try_import, write_files,
};

fn layers() -> [Vec<u8>; 2] {
    [Tar::new().dir("bin").file("bin/thing", noise(1, 70_000)).end(), Tar::new().file("etc/x", "y").end()]
}

#[tokio::test]
async fn layout_is_read_from_a_directory_and_from_a_tar() {
    let files = layout(&layers(), Packing::Gzip);
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &files);
    let store = MemStore::new();
    let of_dir = import_layout_dir(&store, dir.path(), ImportOptions::default()).await.unwrap();
    let of_tar = try_import(&store, &tar_of(&files), ImportOptions::default()).await.unwrap();
    assert_eq!(of_dir.image, of_tar.image);
    assert_eq!(of_dir.config_digest, Digest::of(&config(&layers())));
    assert_eq!(of_dir.architecture, "amd64");
    assert_eq!(of_dir.entries, 3);
    assert_eq!(of_dir.size, layers().iter().map(|layer| layer.len() as u64).sum::<u64>());
}

#[tokio::test]
async fn config_comes_back_as_it_was() {
    let store = MemStore::new();
    let imported = import(&store, &layers(), Packing::Zstd).await;
    let files = tar_files(&rebuilt(&store, &imported.image, None).await);
    let config = config(&layers());
    assert_eq!(files[&blob_name(&config)], config);
}

#[tokio::test]
async fn docker_save_is_read_in_its_old_form() {
    // The third layer is the first again, which docker writes as a link.
    let [a, b] = layers();
    let layers = [a.clone(), b, a];
    let store = MemStore::new();
    let saved = try_import(&store, &docker_save(&layers, &["x:1", "y:2"]), ImportOptions::default()).await.unwrap();
    assert_eq!(saved.names, ["x:1", "y:2"]);
    assert_eq!(saved.image, import(&store, &layers, Packing::Plain).await.image);
}

#[tokio::test]
async fn docker_save_is_read_in_its_new_form() {
    // An OCI layout with a manifest.json beside it, as rebuilding writes too.
    let mut files = layout(&layers(), Packing::Plain);
    let names: Vec<String> = layers().iter().map(|layer| blob_name(layer)).collect();
    let manifest = json!([{"Config": blob_name(&config(&layers())), "RepoTags": ["z:3"], "Layers": names}]);
    files.insert("manifest.json".into(), manifest.to_string().into_bytes());
    let store = MemStore::new();
    let saved = try_import(&store, &tar_of(&files), ImportOptions::default()).await.unwrap();
    assert_eq!(saved.names, ["z:3"]);
    assert_eq!(saved.image, import(&store, &layers(), Packing::Plain).await.image);
}

#[tokio::test]
async fn archive_may_be_compressed_or_a_stream() {
    let archive = docker_save(&layers(), &["x:1"]);
    let store = MemStore::new();
    let plain = try_import(&store, &archive, ImportOptions::default()).await.unwrap();
    for packing in [Packing::Gzip, Packing::Zstd] {
        let imported = try_import(&store, &packed(&archive, packing), ImportOptions::default()).await.unwrap();
        assert_eq!(imported.image, plain.image);
    }
    let streamed = import_stream(&store, archive.as_slice(), ImportOptions::default()).await.unwrap();
    assert_eq!(streamed.image, plain.image);
    let gzip = packed(&archive, Packing::Gzip);
    let streamed = import_stream(&store, gzip.as_slice(), ImportOptions::default()).await.unwrap();
    assert_eq!(streamed.image, plain.image);
}

#[tokio::test]
async fn layers_of_a_stream_are_taken_apart_before_it_ends() {
    let layers = [
        Tar::new().file("a", noise(1, 5 << 20)).end(),
        Tar::new().file("b", noise(2, 6 << 20)).file("c", "c").end(),
        Tar::new().file("a", noise(1, 5 << 20)).end(),
    ];
    let mut new_form = layout(&layers, Packing::Gzip);
    // So that the end of the archive is what says which image it is.
    new_form.insert("z".into(), vec![0; 10_000]);
    for archive in [docker_save(&layers, &["x:1"]), tar_of(&new_form)] {
        let store = MemStore::new();
        let expected = try_import(&store, &archive, ImportOptions::default()).await.unwrap();
        let store = MemStore::new();
        let (from, mut to) = tokio::io::duplex(64 << 10);
        let write = async {
            let (head, tail) = archive.split_at(archive.len() - 4000);
            to.write_all(head).await.unwrap();
            while store.list().await.unwrap().len() < 100 {
                tokio::task::yield_now().await;
            }
            to.write_all(tail).await.unwrap();
            drop(to);
        };
        let reading = import_stream(&store, from, ImportOptions::default());
        let both = async { tokio::join!(reading, write) };
        let (imported, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it ends");
        assert_eq!(imported.unwrap().image, expected.image);
    }
}

#[tokio::test]
async fn stream_that_breaks_off_is_an_error_at_once() {
    let archive = docker_save(&[Tar::new().file("a", noise(1, 5 << 20)).end()], &["x:1"]);
    let cut = archive[..3 << 20].to_vec();
    let broken = broken_after(cut);
    let store = MemStore::new();
    let importing = import_stream(&store, broken, ImportOptions::default());
    let ended = tokio::time::timeout(Duration::from_secs(60), importing);
    let error = ended.await.expect("it ends").unwrap_err();
    assert!(matches!(&error, ImportError::Read { .. }), "{error:?}");
}

/// Layers of a stream are taken apart before anybody knows what they are for, and are not read a second time.
#[tokio::test]
async fn what_is_wrong_with_a_layer_is_said_of_a_stream_as_of_a_file() {
    let large = |seed| Tar::new().file("large", noise(seed, 5 << 20));
    let (good, other) = (large(1).end(), large(2).file("x", "x").end());
    let mut damaged = docker_save(std::slice::from_ref(&good), &["x:1"]);
    damaged[3 << 20] ^= 1;
    let bytes = |bytes| Limits { bytes, ..Limits::default() };
    let entries = |entries| Limits { entries, ..Limits::default() };
    let rows = [
        (docker_save(&[good.clone(), other.clone(), good.clone()], &["x:1"]), Limits::default(), ""),
        (docker_save(&[large(1).raw("sda", EntryType::Block, "", &[]).end()], &["x:1"]), Limits::default(), "device"),
        (docker_save(&[[b"BZh9".to_vec(), noise(1, 5 << 20)].concat()], &["x:1"]), Limits::default(), "bzip2"),
        (docker_save(&[noise(1, 5 << 20)], &["x:1"]), Limits::default(), "layer 1 cannot be taken"),
        (damaged, Limits::default(), "should unpack to"),
        (docker_save(&[good.clone(), other.clone()], &["x:1"]), bytes(7 << 20), "more than 7340032 bytes"),
        (docker_save(&[good.clone(), other.clone()], &["x:1"]), entries(2), "more than 2"),
        // The third is the first again, whose size counts again.
        (docker_save(&[good.clone(), other, good.clone()], &["x:1"]), bytes(12 << 20), "more than 12582912 bytes"),
        (docker_save(&[good], &["x:1"])[..3 << 20].to_vec(), Limits::default(), "3145728"),
    ];
    for (archive, limits, part) in rows {
        let options = ImportOptions { limits, ..ImportOptions::default() };
        let store = MemStore::new();
        let of_file = try_import(&store, &archive, options.clone()).await.map(|made| made.image).map_err(|e| said(&e));
        let of_stream = import_stream(&store, archive.as_slice(), options).await;
        assert_eq!(of_stream.map(|made| made.image).map_err(|e| said(&e)), of_file);
        let error = of_file.err().unwrap_or_default();
        assert!(error.contains(part) && error.is_empty() == part.is_empty(), "{part:?} in {error:?}");
    }
}

/// What an error and its cause say, but for the path of the archive.
fn said(error: &ImportError) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    match error {
        ImportError::Archive { .. } => cause,
        error => format!("{error}: {cause}"),
    }
}

/// Bytes and then an error.
fn broken_after(bytes: Vec<u8>) -> impl tokio::io::AsyncRead + Unpin + Send {
    struct Broken;
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
        }
    }
    tokio::io::AsyncReadExt::chain(std::io::Cursor::new(bytes), Broken)
}

#[tokio::test]
async fn layers_of_several_members_and_frames_are_read_whole() {
    let layer = Tar::new().file("f", noise(1, 300_000)).end();
    let (head, tail) = layer.split_at(100_000);
    let store = MemStore::new();
    let expected = import(&store, std::slice::from_ref(&layer), Packing::Plain).await.image;
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..]].concat();
    let zstd = [skipped.clone(), packed(head, Packing::Zstd), skipped, packed(tail, Packing::Zstd)].concat();
    let gzip = [packed(head, Packing::Gzip), packed(tail, Packing::Gzip)].concat();
    for (blob, packing) in [(gzip, Packing::Gzip), (zstd, Packing::Zstd)] {
        let files = with_blobs(std::slice::from_ref(&layer), &[blob], packing);
        let imported = try_import(&store, &tar_of(&files), ImportOptions::default()).await.unwrap();
        assert_eq!(imported.image, expected, "{packing:?}");
    }
}

/// A layout whose layers are these blobs, whatever they unpack to.
fn with_blobs(layers: &[Vec<u8>], blobs: &[Vec<u8>], packing: Packing) -> BTreeMap<String, Vec<u8>> {
    let config = config(layers);
    let manifest = manifest(&config, blobs, packing);
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(&manifest, MANIFEST)]});
    let mut files = BTreeMap::from([("index.json".to_owned(), index.to_string().into_bytes())]);
    for bytes in blobs.iter().chain([&config, &manifest]) {
        files.insert(blob_name(bytes), bytes.clone());
    }
    files
}

#[tokio::test]
async fn image_is_chosen_by_name() {
    let (one, two) = (vec![layers()[0].clone()], vec![layers()[1].clone()]);
    let mut files = layout(&one, Packing::Plain);
    files.extend(layout(&two, Packing::Plain));
    let manifests: Vec<Value> = [(&one, "a:1"), (&two, "b:1")]
        .iter()
        .map(|(layers, name)| {
            let manifest = manifest(&config(layers), layers, Packing::Plain);
            let mut descriptor = descriptor(&manifest, MANIFEST);
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            descriptor
        })
        .collect();
    files.insert("index.json".into(), json!({"manifests": manifests}).to_string().into_bytes());
    let archive = tar_of(&files);
    let store = MemStore::new();
    let named = |name: &str| ImportOptions { name: Some(name.into()), ..ImportOptions::default() };
    let b = try_import(&store, &archive, named("b:1")).await.unwrap();
    assert_eq!(b.image, import(&store, &two, Packing::Plain).await.image);
    let error = try_import(&store, &archive, named("c:1")).await.unwrap_err();
    assert!(matches!(&error, ImportError::NoSuchName { .. }), "{error}");
    assert_eq!(error.to_string(), r#"no image in it is named "c:1"; there are: a:1, b:1"#);
    let error = try_import(&store, &archive, ImportOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImportError::Ambiguous { .. }), "{error}");
}

#[tokio::test]
async fn image_is_chosen_by_platform_and_attestations_are_passed_over() {
    let (amd, arm) = (vec![layers()[0].clone()], vec![layers()[1].clone()]);
    let mut files = layout(&amd, Packing::Plain);
    files.extend(layout(&arm, Packing::Plain));
    let of = |layers: &[Vec<u8>], os: &str, architecture: &str| {
        let manifest = manifest(&config(layers), layers, Packing::Plain);
        let mut descriptor = descriptor(&manifest, MANIFEST);
        descriptor["platform"] = json!({"os": os, "architecture": architecture});
        descriptor
    };
    let manifests = [of(&amd, "linux", "amd64"), of(&arm, "linux", "arm64"), of(&amd, "unknown", "unknown")];
    let inner = json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes();
    let list = descriptor(&inner, "application/vnd.oci.image.index.v1+json");
    files.insert(blob_name(&inner), inner);
    files.insert("index.json".into(), json!({"manifests": [list]}).to_string().into_bytes());
    let archive = tar_of(&files);
    let store = MemStore::new();
    for (layers, architecture) in [(&amd, "amd64"), (&arm, "arm64")] {
        let options = ImportOptions { platform: Some(Platform::linux(architecture)), ..ImportOptions::default() };
        let imported = try_import(&store, &archive, options).await.unwrap();
        assert_eq!(imported.image, import(&store, layers, Packing::Plain).await.image);
    }
    let options = ImportOptions { platform: Some(Platform::linux("riscv64")), ..ImportOptions::default() };
    let error = try_import(&store, &archive, options).await.unwrap_err();
    assert!(matches!(error, ImportError::NoPlatform { .. }), "{error}");
}

#[tokio::test]
async fn wrong_digests_are_refused() {
    let layer = layers()[0].clone();
    let good = layout(std::slice::from_ref(&layer), Packing::Gzip);
    let config = config(std::slice::from_ref(&layer));
    let blob = packed(&layer, Packing::Gzip);
    let manifest = manifest(&config, std::slice::from_ref(&blob), Packing::Gzip);
    for (what, bytes) in [("config", &config), ("manifest", &manifest)] {
        let mut files = good.clone();
        let mut changed = bytes.clone();
        // A space more or less is still JSON.
        *changed.last_mut().unwrap() ^= b' ' ^ b'\t';
        files.insert(blob_name(bytes), changed);
        let error = import_files(&files).await.unwrap_err();
        assert!(matches!(error, ImportError::Digest { .. }), "{what}: {error}");
    }
    let mut files = good.clone();
    // Another time in the header of gzip: the same layer, another blob.
    let mut changed = blob.clone();
    changed[4] ^= 1;
    files.insert(blob_name(&blob), changed);
    let error = import_files(&files).await.unwrap_err();
    assert!(matches!(error, ImportError::Digest { .. }), "{error}");
    let mut files = good;
    files.insert(blob_name(&blob), [blob.as_slice(), b"x"].concat());
    let error = import_files(&files).await.unwrap_err();
    assert!(matches!(error, ImportError::Size { .. }), "{error}");
}

#[tokio::test]
async fn wrong_diff_id_is_refused() {
    let other = Tar::new().file("other", "x").end();
    let error = import_files(&with_blobs(&[other], &[layers()[0].clone()], Packing::Plain)).await.unwrap_err();
    assert!(matches!(error, ImportError::DiffId { layer: 1, .. }), "{error}");
    let error = import_files(&with_blobs(&layers(), &[layers()[0].clone()], Packing::Plain)).await.unwrap_err();
    assert!(matches!(error, ImportError::LayerCount { layers: 1, diff_ids: 2 }), "{error}");
}

#[tokio::test]
async fn config_of_docker_save_must_hash_to_its_name() {
    let archive = docker_save(&layers()[..1], &["x:1"]);
    let mut files = tar_files(&archive);
    let name = files.keys().find(|name| name.ends_with(".json") && *name != "manifest.json").unwrap().clone();
    files.get_mut(&name).unwrap().push(b' ');
    let error = try_import(&MemStore::new(), &tar_of(&files), ImportOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImportError::Digest { .. }), "{error}");
}

#[tokio::test]
async fn truncated_archives_are_refused() {
    let archive = docker_save(&layers(), &["x:1"]);
    let gzip = packed(&archive, Packing::Gzip);
    for (name, bytes) in [
        ("half", &archive[..archive.len() / 2]),
        ("odd", &archive[..archive.len() / 2 + 77]),
        ("half of gzip", &gzip[..gzip.len() / 2]),
    ] {
        let error = try_import(&MemStore::new(), bytes, ImportOptions::default()).await.unwrap_err();
        assert!(matches!(error, ImportError::Archive { .. } | ImportError::Read { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn truncated_layers_are_refused() {
    let layer = layers()[0].clone();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let whole = packed(&layer, packing);
        let blob = whole[..whole.len() / 2].to_vec();
        let files = with_blobs(std::slice::from_ref(&layer), &[blob], packing);
        let error = import_files(&files).await.unwrap_err();
        assert!(matches!(error, ImportError::Layer { .. } | ImportError::Unpack { .. }), "{packing:?}: {error}");
    }
}

#[tokio::test]
async fn other_files_are_told_from_images() {
    let store = MemStore::new();
    let error = try_import(&store, b"#!/bin/sh\necho no image\n", ImportOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImportError::Archive { .. }), "{error}");
    let error = try_import(&store, &layers()[0], ImportOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImportError::NotAnImage), "{error}");
    let error = try_import(&store, &[], ImportOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImportError::NotAnImage), "{error}");
    let error = try_import(&store, b"\xfd7zXZ\0 and so on", ImportOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImportError::Compression { method: "xz", .. }), "{error}");
    let missing =
        import_archive(&store, std::path::Path::new("/nonexistent/image.tar"), ImportOptions::default()).await;
    assert!(matches!(missing, Err(ImportError::Read { .. })));
    let missing = import_layout_dir(&store, std::path::Path::new("/nonexistent"), ImportOptions::default()).await;
    assert!(matches!(missing, Err(ImportError::Read { .. })));
    assert!(store.is_empty());
}

#[tokio::test]
async fn layer_in_an_unread_compression_is_named() {
    let layer = layers()[0].clone();
    let files = with_blobs(&[layer], &[b"BZh91AY and so on".to_vec()], Packing::Plain);
    let error = import_files(&files).await.unwrap_err();
    assert_eq!(error.to_string(), "layer 1 is compressed with bzip2; gzip, zstd and plain can be read");
}

#[tokio::test]
async fn missing_blob_is_named() {
    let mut files = layout(&layers(), Packing::Plain);
    let name = blob_name(&layers()[1]);
    files.remove(&name);
    let error = import_files(&files).await.unwrap_err();
    assert!(matches!(&error, ImportError::Missing { name: missing } if *missing == name), "{error}");
}

#[tokio::test]
async fn artifacts_that_are_no_containers_are_refused() {
    let config = b"{}".to_vec();
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor(&config, "application/vnd.example.chart+json"),
        "layers": [],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({"manifests": [descriptor(&manifest, MANIFEST)]}).to_string().into_bytes();
    let files = BTreeMap::from([
        (blob_name(&config), config),
        (blob_name(&manifest), manifest),
        ("index.json".to_owned(), index),
    ]);
    let error = import_files(&files).await.unwrap_err();
    assert!(matches!(error, ImportError::NotAContainer { .. }), "{error}");
}

#[tokio::test]
async fn names_that_lead_out_of_a_layout_are_not_there() {
    for name in ["../outside", "/etc/hostname", "a/../../outside"] {
        let manifest = json!([{"Config": name, "Layers": []}]).to_string().into_bytes();
        let error = import_files(&BTreeMap::from([("manifest.json".to_owned(), manifest)])).await.unwrap_err();
        assert!(matches!(error, ImportError::Missing { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn digests_of_other_functions_are_refused() {
    let index = json!({"manifests": [{"mediaType": MANIFEST, "digest": "sha512:00", "size": 1}]});
    let files = BTreeMap::from([("index.json".to_owned(), index.to_string().into_bytes())]);
    let error = import_files(&files).await.unwrap_err();
    assert!(matches!(error, ImportError::DigestForm(_)), "{error}");
}

#[tokio::test]
async fn garbled_json_is_named() {
    let files = BTreeMap::from([("index.json".to_owned(), b"{\"manifests\": [".to_vec())]);
    let error = import_files(&files).await.unwrap_err();
    assert!(matches!(&error, ImportError::Json { name, .. } if name == "index.json"), "{error}");
    let files = BTreeMap::from([("manifest.json".to_owned(), vec![b' '; 5 << 20])]);
    let error = import_files(&files).await.unwrap_err();
    assert!(matches!(error, ImportError::JsonTooLarge { .. }), "{error}");
}
