//! What two images share is one.

use iptl_artifacts::MemStore;
use iptl_artifacts_oci::ImportOptions;
use iptl_dag::MAX_BLOCK_SIZE;

use crate::make::{Packing, Tar, blocks, docker_save, import, layout, noise, tar_of, try_import};

fn program_tree(files: &[Vec<u8>], mtime_of_first: &str) -> Vec<u8> {
    let mut tar = Tar::new();
    for (i, content) in files.iter().enumerate() {
        if i == 0 {
            tar = tar.pax(&[("mtime", mtime_of_first.as_bytes())]);
        }
        tar = tar.file(&format!("usr/lib/pkg{}/file{i}", i % 7), content);
    }
    tar.end()
}

#[tokio::test]
async fn compression_and_source_leave_no_trace_in_the_cid() {
    let layers = [Tar::new().file("a", noise(1, 100_000)).end(), Tar::new().file("b", "small").end()];
    let store = MemStore::new();
    let plain = import(&store, &layers, Packing::Plain).await;
    assert!(plain.new_blocks > 0);
    for packing in [Packing::Gzip, Packing::Zstd] {
        let again = import(&store, &layers, packing).await;
        assert_eq!(again.image, plain.image, "{packing:?}");
        assert_eq!(again.new_blocks, 0, "{packing:?}");
        assert_eq!(again.new_bytes, 0, "{packing:?}");
    }
    let saved = try_import(&store, &docker_save(&layers, &["x:1"]), ImportOptions::default()).await.unwrap();
    assert_eq!(saved.image, plain.image);
    let hashed = ImportOptions { only_hash: true, ..ImportOptions::default() };
    let empty = MemStore::new();
    let only = try_import(&empty, &tar_of(&layout(&layers, Packing::Gzip)), hashed).await.unwrap();
    assert_eq!(only.image, plain.image);
    assert!(empty.is_empty());
}

#[tokio::test]
async fn one_change_within_a_file_moves_little_of_a_layer() {
    let mut files: Vec<Vec<u8>> = (0..100).map(|i| noise(i, 200_000)).collect();
    files[50] = noise(1000, 1 << 20);
    let store = MemStore::new();
    let first = import(&store, &[program_tree(&files, "1")], Packing::Plain).await;
    // A few bytes more in the middle, as of a program that was built again with one function changed.
    let middle = files[50].len() / 2;
    files[50].splice(middle..middle, noise(7, 100));
    let second = import(&store, &[program_tree(&files, "1")], Packing::Plain).await;
    assert_ne!(first.image, second.image);
    let share = second.new_bytes as f64 / second.size as f64;
    assert!(share <= 0.03, "{} of {} bytes are new", second.new_bytes, second.size);
}

#[tokio::test]
async fn file_that_is_replaced_moves_itself_and_little_else() {
    let mut files: Vec<Vec<u8>> = (0..200).map(|i| noise(i, 200_000)).collect();
    let store = MemStore::new();
    import(&store, &[program_tree(&files, "1")], Packing::Plain).await;
    files[50] = noise(1000, 1 << 20);
    let second = import(&store, &[program_tree(&files, "1")], Packing::Plain).await;
    let beside = second.new_bytes - (1 << 20);
    assert!(beside < 100_000, "{beside} bytes beside the file are new");
}

#[tokio::test]
async fn file_that_comes_in_between_changes_few_pages() {
    let files: Vec<Vec<u8>> = (0..5000).map(|i| noise(i, 5000)).collect();
    let store = MemStore::new();
    let first = import(&store, &[program_tree(&files, "1")], Packing::Plain).await;
    let mut tar = Tar::new().file("before/all", noise(99_999, 5000));
    for (i, content) in files.iter().enumerate() {
        if i == 0 {
            tar = tar.pax(&[("mtime", b"1")]);
        }
        tar = tar.file(&format!("usr/lib/pkg{}/file{i}", i % 7), content);
    }
    let second = import(&store, &[tar.end()], Packing::Plain).await;
    // The file, the page that begins with it, the layer, the config and the image.
    assert!(second.new_blocks <= 6, "{} blocks are new", second.new_blocks);
    assert!(second.new_bytes < 100_000, "{} bytes are new", second.new_bytes);
    assert_ne!(first.image, second.image);
}

#[tokio::test]
async fn same_files_at_other_times_are_the_same_content() {
    let tree = |mtime: u64| {
        let mut tar = tar::Builder::new(Vec::new());
        for i in 0..2000_u64 {
            let mut header = tar::Header::new_gnu();
            let content = noise(i, 50 + (i as usize * 37) % 9000);
            header.set_size(content.len() as u64);
            header.set_mtime(mtime + i);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("node_modules/p{}/f{i}", i % 40), content.as_slice()).unwrap();
        }
        tar.into_inner().unwrap()
    };
    let store = MemStore::new();
    import(&store, &[tree(1_000_000_000)], Packing::Plain).await;
    let second = import(&store, &[tree(1_700_000_000)], Packing::Plain).await;
    let share = second.new_bytes as f64 / second.size as f64;
    assert!(share < 0.03, "{} of {} bytes are new", second.new_bytes, second.size);
}

#[tokio::test]
async fn tiny_files_cost_few_blocks() {
    let mut tar = Tar::new();
    for i in 0..3000 {
        tar = tar.file(&format!("d{}/f{i}", i % 10), noise(i, 300));
    }
    let store = MemStore::new();
    let imported = import(&store, &[tar.end()], Packing::Plain).await;
    assert!(imported.blocks < 60, "{} blocks", imported.blocks);
    let stored: usize = blocks(&store, &imported.image).await.values().sum();
    assert!(stored < 3000 * (300 + 70), "{stored} bytes for 3000 files of 300");
}

#[tokio::test]
async fn walk_over_links_finds_every_block_and_none_is_large() {
    let mut tar = Tar::new().pax(&[("SCHILY.xattr.user.large", &noise(1, 900_000))]).file("attributes", "x");
    for i in 0..300 {
        tar = tar.file(&format!("f{i}"), noise(i, i as usize * 400));
    }
    let layers = [tar.end(), Tar::new().file("other", noise(5, 2 << 20)).end()];
    let store = MemStore::new();
    let imported = import(&store, &layers, Packing::Plain).await;
    let walked = blocks(&store, &imported.image).await;
    assert_eq!(walked.len(), store.len());
    let largest = walked.values().max().unwrap();
    assert!(*largest <= MAX_BLOCK_SIZE, "a block of {largest} bytes");
}
