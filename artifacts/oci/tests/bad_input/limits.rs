//! Images that are too much.

use std::collections::BTreeMap;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_oci::{
    ImportError, ImportOptions, LimitError, Limits, ReadError, RebuildError, check_declared, read_image, unpack,
    walk_limits, write_docker_archive,
};
use iptl_dag::model::{Image, Layer, LayerPage, to_block};
use iptl_dag::unixfs::FileBuilder;
use iptl_dag::walk::{Walk, WalkError};
use iptl_dag::{Block, Cid, Codec};

use crate::make::{
    MANIFEST, Packing, Tar, blob_name, config, descriptor, docker_save, import, layout, manifest, noise, packed,
    tar_of, try_import,
};

/// An archive with one layer, which is this blob whatever it unpacks to.
fn with_blob(blob: Vec<u8>) -> Vec<u8> {
    let config = config(&[Vec::new()]);
    let manifest = manifest(&config, std::slice::from_ref(&blob), Packing::Gzip);
    let index = serde_json::json!({"manifests": [descriptor(&manifest, MANIFEST)]}).to_string().into_bytes();
    let mut files = BTreeMap::from([("index.json".to_owned(), index)]);
    files.extend([blob, config, manifest].into_iter().map(|bytes| (blob_name(&bytes), bytes)));
    tar_of(&files)
}

fn limited(bytes: u64, entries: u64) -> ImportOptions {
    ImportOptions { limits: Limits { bytes, entries }, ..ImportOptions::default() }
}

#[tokio::test]
async fn image_over_the_size_is_refused() {
    let layers = [Tar::new().file("a", vec![1; 60_000]).end(), Tar::new().file("b", vec![2; 60_000]).end()];
    let size: u64 = layers.iter().map(|layer| layer.len() as u64).sum();
    let archive = tar_of(&layout(&layers, Packing::Gzip));
    let store = MemStore::new();
    assert!(try_import(&store, &archive, limited(size, 10)).await.is_ok());
    let error = try_import(&store, &archive, limited(size - 1, 10)).await.unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { limit } if limit == size - 1), "{error}");
}

#[tokio::test]
async fn image_of_too_many_files_is_refused() {
    let layers = [Tar::new().file("a", "").file("b", "").end(), Tar::new().file("c", "").end()];
    let archive = tar_of(&layout(&layers, Packing::Plain));
    let store = MemStore::new();
    assert!(try_import(&store, &archive, limited(1 << 20, 3)).await.is_ok());
    let error = try_import(&store, &archive, limited(1 << 20, 2)).await.unwrap_err();
    assert_eq!(error.to_string(), "too many files: the image has more than 2");
}

#[tokio::test]
async fn million_files_are_refused_at_the_next_one() {
    // One header, a million times and once more: a gzip member of a thousand, a thousand times.
    let thousand = Tar::new().file("f", "").end()[..512].repeat(1000);
    let blob = packed(&thousand, Packing::Gzip).repeat(1001);
    let error = try_import(&MemStore::new(), &with_blob(blob), ImportOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImportError::TooManyEntries { limit: 1_000_000 }), "{error}");
}

#[tokio::test]
async fn gzip_bomb_is_refused_before_it_unpacks() {
    // A gigabyte of zeros in a megabyte, as one file.
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(1 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&[0; 1 << 20]).unwrap();
    let zeros = encoder.finish().unwrap().repeat(1024);
    let bomb = [packed(header.as_bytes(), Packing::Gzip), zeros].concat();
    assert!(bomb.len() < 2 << 20, "{}", bomb.len());
    let store = MemStore::new();
    let error = try_import(&store, &with_blob(bomb), ImportOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImportError::Bomb { layer: 1 }), "{error}");
    let stored = store.list().await.unwrap().len();
    assert!(stored < 600, "{stored} blocks were stored by then");
}

#[tokio::test]
async fn compressed_archive_is_unpacked_to_its_limit_alone() {
    let archive = packed(&docker_save(&[Tar::new().file("f", vec![0; 8 << 20]).end()], &["x:1"]), Packing::Gzip);
    let error = try_import(&MemStore::new(), &archive, limited(1 << 20, 10)).await.unwrap_err();
    assert!(matches!(error, ImportError::ArchiveTooLarge { .. }), "{error}");
}

/// A store with an image of one layer, whose nodes a test changes.
async fn image() -> (MemStore, Image, Layer) {
    let store = MemStore::new();
    let layer = Tar::new().file("f", noise(1, 100_000)).file("g", "small").end();
    let imported = import(&store, &[layer], Packing::Plain).await;
    let image = read_image(&store, &imported.image).await.unwrap();
    let block = iptl_artifacts::read_block(&store, &image.layers[0]).await.unwrap().unwrap();
    let layer = iptl_dag::model::from_bytes(block.data()).unwrap();
    (store, image, layer)
}

fn put(store: &MemStore, block: Block) -> Cid {
    let cid = *block.cid();
    store.put_now([block]);
    cid
}

async fn rebuild_error(store: &MemStore, image: Image) -> ReadError {
    let cid = put(store, to_block(image));
    let mut sink = tokio::io::sink();
    match write_docker_archive(store, &cid, None, &Limits::default(), &mut sink).await {
        Err(RebuildError::Read(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was rebuilt"),
    }
}

/// The image with another layer, which says the same about itself.
fn with_layer(store: &MemStore, image: &Image, layer: Layer) -> Image {
    let (size, entries) = (layer.size, layer.entries);
    Image { layers: vec![put(store, to_block(layer))], size, entries, ..image.clone() }
}

#[tokio::test]
async fn image_that_claims_a_terabyte_is_refused_before_anything_is_read() {
    let (store, image, _) = image().await;
    let claims = Image { size: 1 << 40, ..image.clone() };
    assert!(matches!(check_declared(&claims, &Limits::default()), Err(LimitError::Size { .. })));
    // Nothing of it is there, and nothing is asked for.
    let empty = MemStore::new();
    let error = rebuild_error(&empty, claims.clone()).await;
    assert!(matches!(error, ReadError::Limit(LimitError::Size { .. })), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let cid = put(&store, to_block(claims));
    let error = unpack(&store, &cid, &dir.path().join("x"), &Limits::default()).await.unwrap_err();
    assert!(error.to_string().contains("1099511627776"), "{error}");
    let error = rebuild_error(&empty, Image { entries: 2_000_000, ..image.clone() }).await;
    assert!(matches!(error, ReadError::Limit(LimitError::Entries { .. })), "{error}");
    let error = rebuild_error(&empty, Image { layers: vec![image.layers[0]; 600], ..image }).await;
    assert!(matches!(error, ReadError::Limit(LimitError::Layers { layers: 600 })), "{error}");
}

#[tokio::test]
async fn layer_that_claims_a_terabyte_contradicts_its_image() {
    let (store, image, layer) = image().await;
    let claims = Layer { size: 1 << 40, ..layer };
    let error = rebuild_error(&store, Image { layers: vec![put(&store, to_block(claims))], ..image }).await;
    assert!(matches!(error, ReadError::Contradiction { .. }), "{error}");
}

#[tokio::test]
async fn layer_that_gives_more_than_it_says_is_stopped() {
    let (store, image, layer) = image().await;
    // A terabyte of zeros in six bytes, a file that is not as long as the page says, and one that would not fit.
    let pages = [
        LayerPage { tar: vec![7, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20], files: Vec::new() },
        LayerPage { tar: vec![3, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20], files: vec![image.config] },
        LayerPage { tar: vec![4, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20], files: Vec::new() },
    ];
    for page in pages {
        let pages = vec![put(&store, to_block(page))];
        let error = rebuild_error(&store, with_layer(&store, &image, Layer { pages, ..layer.clone() })).await;
        assert!(matches!(error, ReadError::LayerSize { longer: true, .. }), "{error}");
    }
}

#[tokio::test]
async fn layer_that_gives_less_than_it_says_is_refused() {
    let (store, image, layer) = image().await;
    let error = rebuild_error(&store, with_layer(&store, &image, Layer { pages: Vec::new(), ..layer })).await;
    assert!(matches!(error, ReadError::LayerSize { longer: false, .. }), "{error}");
}

#[tokio::test]
async fn damaged_pages_are_refused() {
    let (store, image, layer) = image().await;
    let rows: [(&str, Vec<u8>, Vec<Cid>); 8] = [
        ("no such operation", vec![9], Vec::new()),
        ("number without end", vec![7, 0xff], Vec::new()),
        ("number of 65 bits", vec![7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], Vec::new()),
        ("run outside of a block", vec![0, 1, 0x80, 0x04, 1, 0], Vec::new()),
        ("run of more than there is", vec![0, 1, 0, 5, 0], Vec::new()),
        ("bytes of more than there is", vec![8, 5, 0], Vec::new()),
        ("file that is not there", vec![3, 5], Vec::new()),
        ("file that is not used", Vec::new(), vec![image.config]),
    ];
    for (what, tar, files) in rows {
        let pages = vec![put(&store, to_block(LayerPage { tar, files }))];
        let error = rebuild_error(&store, with_layer(&store, &image, Layer { pages, ..layer.clone() })).await;
        assert!(matches!(error, ReadError::Page { layer: 1, .. }), "{what}: {error}");
    }
    let wrong = vec![put(&store, Block::new(Codec::DagCbor, vec![0xa0])), image.config];
    for page in wrong {
        let pages = vec![page];
        let error = rebuild_error(&store, with_layer(&store, &image, Layer { pages, ..layer.clone() })).await;
        assert!(matches!(error, ReadError::Node { .. }), "{error}");
    }
}

#[tokio::test]
async fn layer_with_another_content_is_refused_by_its_diff_id() {
    let (store, image, layer) = image().await;
    let mut blocks = Vec::new();
    let small = Some(FileBuilder::of_bytes(b"SMALL", &mut blocks).cid);
    store.put_now(blocks);
    let error = rebuild_error(&store, with_layer(&store, &image, Layer { small, ..layer })).await;
    assert!(matches!(error, ReadError::DiffId { layer: 1, .. }), "{error}");
}

#[tokio::test]
async fn layer_that_never_passed_an_import_is_checked_like_one() {
    let store = MemStore::new();
    let tar = Tar::new().raw("dev/sda", tar::EntryType::Block, "", &[]).end();
    let config = config(std::slice::from_ref(&tar));
    // One operation that gives the whole tar as it is.
    let mut operations = vec![8, 0x80 | (tar.len() & 0x7f) as u8, (tar.len() >> 7) as u8];
    operations.extend_from_slice(&tar);
    let page = put(&store, to_block(LayerPage { tar: operations, files: Vec::new() }));
    let diff_id = iptl_artifacts_oci::Digest::of(&tar).0;
    let layer = Layer { diff_id, size: tar.len() as u64, entries: 1, small: None, pages: vec![page] };
    let mut blocks = Vec::new();
    let image = Image {
        config: FileBuilder::of_bytes(&config, &mut blocks).cid,
        config_digest: iptl_artifacts_oci::Digest::of(&config).0,
        architecture: "amd64".into(),
        os: "linux".into(),
        layers: vec![put(&store, to_block(layer.clone()))],
        size: layer.size,
        entries: 1,
    };
    store.put_now(blocks);
    let error = rebuild_error(&store, image.clone()).await;
    assert!(matches!(error, ReadError::Tar { layer: 1, .. }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let cid = put(&store, to_block(image));
    assert!(unpack(&store, &cid, &dir.path().join("x"), &Limits::default()).await.is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left");
}

#[tokio::test]
async fn missing_block_is_named() {
    let (store, image, layer) = image().await;
    for (what, cid) in [("page", layer.pages[0]), ("small", layer.small.unwrap()), ("config", image.config)] {
        let data = store.get(cid.hash()).await.unwrap().unwrap();
        store.remove(&[*cid.hash()]).await.unwrap();
        let error = rebuild_error(&store, image.clone()).await;
        assert!(matches!(&error, ReadError::Missing { cid: missing } if *missing == cid), "{what}: {error}");
        store.put(vec![Block::verify(cid, data).unwrap()]).await.unwrap();
    }
}

#[tokio::test]
async fn config_must_agree_with_the_image() {
    let (store, image, _) = image().await;
    let error = rebuild_error(&store, Image { architecture: "arm64".into(), ..image.clone() }).await;
    assert!(matches!(error, ReadError::Contradiction { .. }), "{error}");
    let error = rebuild_error(&store, Image { config_digest: [0; 32], ..image.clone() }).await;
    assert!(matches!(error, ReadError::Contradiction { .. }), "{error}");
    let doubled = Image { layers: vec![image.layers[0]; 2], size: image.size * 2, entries: image.entries * 2, ..image };
    let error = rebuild_error(&store, doubled).await;
    assert!(matches!(error, ReadError::Contradiction { .. }), "{error}");
}

#[tokio::test]
async fn image_that_links_more_than_it_says_ends_the_walk() {
    let (store, image, layer) = image().await;
    let mut blocks = Vec::new();
    let junk = FileBuilder::of_bytes(&noise(9, 32 << 20), &mut blocks).cid;
    store.put_now(blocks);
    let hidden = LayerPage { tar: Vec::new(), files: vec![junk] };
    let pages = vec![layer.pages[0], put(&store, to_block(hidden))];
    let image = with_layer(&store, &image, Layer { pages, ..layer });
    let limits = walk_limits(&image);
    let mut walk = Walk::new([put(&store, to_block(image))], limits).unwrap();
    let ended = loop {
        assert!(!walk.is_done(), "it found everything");
        let cids = walk.wants(1);
        let block = iptl_artifacts::read_block(&store, &cids[0]).await.unwrap().unwrap();
        if let Err(error) = walk.accept(&block) {
            break error;
        }
    };
    assert!(matches!(ended, WalkError::TooManyBytes { .. }), "{ended}");
}

/// A disk with so many bytes left.
struct Disk(usize);

impl tokio::io::AsyncWrite for Disk {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let room = self.0.min(bytes.len());
        self.0 -= room;
        Poll::Ready(if room > 0 { Ok(room) } else { Err(std::io::ErrorKind::StorageFull.into()) })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn disk_that_is_full_while_an_image_is_rebuilt_is_named() {
    let store = MemStore::new();
    let image = import(&store, &[Tar::new().file("f", noise(1, 100_000)).end()], Packing::Gzip).await.image;
    let limits = Limits::default();
    let mut whole = Vec::new();
    write_docker_archive(&store, &image, None, &limits, &mut whole).await.unwrap();
    for room in [0, 1, 512, 50_000, whole.len() - 1] {
        let error = write_docker_archive(&store, &image, None, &limits, &mut Disk(room)).await.unwrap_err();
        let RebuildError::Write(cause) = &error else { panic!("{room}: {error}") };
        assert_eq!(cause.kind(), std::io::ErrorKind::StorageFull, "{room}");
    }
    write_docker_archive(&store, &image, None, &limits, &mut Disk(whole.len())).await.unwrap();
}
