//! Tars and nodes with a few bytes changed: each is refused, or means what it says. None brings anything down.

use std::fs;
use std::sync::LazyLock;

use iptl_artifacts::MemStore;
use iptl_artifacts_oci::{ImportOptions, Limits, read_image, unpack, write_docker_archive};
use iptl_dag::model::{Image, Layer, LayerPage, from_bytes, to_block};
use iptl_dag::{Block, Cid};
use proptest::prelude::*;
use proptest::sample::Index;
use tar::EntryType;

use crate::make::{Packing, Tar, blob_name, import, layout, noise, packed, rebuilt, tar_files, tar_of, try_import};

/// Where, what, and how: a byte that changes, comes in, or goes.
type Change = (Index, u8, u8);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec((any::<Index>(), any::<u8>(), 0..4_u8), 1..5)
}

fn apply(bytes: &mut Vec<u8>, changes: &[Change]) {
    for (at, value, how) in changes {
        if bytes.is_empty() {
            bytes.push(*value);
        }
        let at = at.index(bytes.len());
        match how {
            0 => bytes.insert(at, *value),
            1 => drop(bytes.remove(at)),
            _ => bytes[at] = *value,
        }
    }
}

/// A tar of every kind of entry, in which most bytes mean something.
static TAR: LazyLock<Vec<u8>> = LazyLock::new(|| {
    Tar::new()
        .dir("a")
        .symlink("a/up", "../../outside")
        .file("a/up/x", "through a link")
        .link("a/hard", "a/up/x")
        .pax(&[("path", b"a/long"), ("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"y")])
        .file("short", "z")
        .raw("././@LongLink", EntryType::GNULongName, "", b"a/.wh.hard\0")
        .file("b", "")
        .file("a/.wh..wh..opq", "")
        .end()
});

/// Puts the checksum of every header right, so that changes reach what lies behind it.
fn fix_sums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

async fn check_tar(tar: Vec<u8>) {
    let store = MemStore::new();
    let archive = tar_of(&layout(std::slice::from_ref(&tar), Packing::Plain));
    let Ok(imported) = try_import(&store, &archive, ImportOptions::default()).await else { return };
    let files = tar_files(&rebuilt(&store, &imported.image, None).await);
    assert!(files[&blob_name(&tar)] == tar, "a layer that was taken comes back");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    let unpacked = unpack(&store, &imported.image, &dir.path().join("in/root"), &Limits::default()).await;
    assert!(unpacked.is_err(), "the parent is not there");
    fs::create_dir(dir.path().join("in")).unwrap();
    let _ = unpack(&store, &imported.image, &dir.path().join("in/root"), &Limits::default()).await;
    assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0, "nothing is written outside");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left outside");
}

/// A layer in the store, and everything above it.
struct Stored {
    store: MemStore,
    tar: Vec<u8>,
    image: Image,
    layer: Layer,
    page: LayerPage,
}

impl Stored {
    async fn new() -> Stored {
        let store = MemStore::new();
        let tar = Tar::new().dir("d").file("d/small", "s").file("d/large", noise(1, 50_000)).symlink("l", "d").end();
        let imported = import(&store, std::slice::from_ref(&tar), Packing::Plain).await;
        let image = read_image(&store, &imported.image).await.unwrap();
        let layer: Layer = from_bytes(&store.get_now(image.layers[0].hash()).unwrap()).unwrap();
        let page = from_bytes(&store.get_now(layer.pages[0].hash()).unwrap()).unwrap();
        Stored { store, tar, image, layer, page }
    }

    fn put(&self, block: Block) -> Cid {
        let cid = *block.cid();
        self.store.put_now([block]);
        cid
    }

    async fn check(&self, image: &Cid) {
        let mut archive = std::io::Cursor::new(Vec::new());
        let written = write_docker_archive(&self.store, image, None, &Limits::default(), &mut archive).await;
        if written.is_ok() {
            assert!(tar_files(archive.get_ref()).values().any(|file| *file == self.tar), "another layer was rebuilt");
        }
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn changed_tar_is_refused_or_comes_back(changes in changes(), sums in any::<bool>()) {
        let mut tar = TAR.clone();
        apply(&mut tar, &changes);
        if sums {
            fix_sums(&mut tar);
        }
        block_on(check_tar(tar));
    }

    #[test]
    fn changed_archive_is_refused_or_read(changes in changes(), packing in 0..3_usize) {
        let packing = [Packing::Plain, Packing::Gzip, Packing::Zstd][packing];
        let mut archive = packed(&tar_of(&layout(std::slice::from_ref(&*TAR), packing)), packing);
        apply(&mut archive, &changes);
        block_on(async {
            let _ = try_import(&MemStore::new(), &archive, ImportOptions::default()).await;
        });
    }

    #[test]
    fn changed_page_is_refused_or_gives_the_same_layer(changes in changes()) {
        block_on(async {
            let stored = Stored::new().await;
            let mut page = stored.page.clone();
            apply(&mut page.tar, &changes);
            let layer = Layer { pages: vec![stored.put(to_block(page))], ..stored.layer.clone() };
            let image = Image { layers: vec![stored.put(to_block(layer))], ..stored.image.clone() };
            stored.check(&stored.put(to_block(image))).await;
        });
    }

    #[test]
    fn changed_nodes_are_refused_or_give_the_same_layer(changes in changes(), which in 0..3_usize) {
        block_on(async {
            let stored = Stored::new().await;
            let changed = |block: Block| {
                let mut bytes = block.data().to_vec();
                apply(&mut bytes, &changes);
                stored.put(Block::new(iptl_dag::Codec::DagCbor, bytes))
            };
            let page = to_block(stored.page.clone());
            let page = if which == 0 { changed(page) } else { stored.put(page) };
            let layer = to_block(Layer { pages: vec![page], ..stored.layer.clone() });
            let layer = if which == 1 { changed(layer) } else { stored.put(layer) };
            let image = to_block(Image { layers: vec![layer], ..stored.image.clone() });
            let image = if which == 2 { changed(image) } else { stored.put(image) };
            stored.check(&image).await;
        });
    }
}
