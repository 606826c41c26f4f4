//! CARs out of a store and into one.

use std::collections::BTreeSet;
use std::fs;

use iptl_artifacts::car::{CarImportError, CarImported, export_car, import_car};
use iptl_artifacts::import::{ImportOptions, add_bytes, import_path};
use iptl_artifacts::{BlobStore, MemStore, StoreError, Usage, contract};
use iptl_dag::car::{self, CarItem, CarReader};
use iptl_dag::unixfs::Profile;
use iptl_dag::walk::links;
use iptl_dag::{Block, Cid, Codec, HashError, Ipld, Multihash, codec};
use tokio::io::{AsyncReadExt as _, ReadBuf};

#[tokio::test]
async fn car_goes_from_store_to_store_and_is_complete() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("inner")).unwrap();
    fs::write(temp.path().join("inner/large"), contract::sample(1, 1 << 20).data()).unwrap();
    fs::write(temp.path().join("again"), contract::sample(1, 1 << 20).data()).unwrap();
    fs::write(temp.path().join("small"), "small").unwrap();
    for profile in Profile::ALL {
        let from = MemStore::new();
        let options = ImportOptions { profile, ..ImportOptions::default() };
        let root = import_path(&from, temp.path(), &options).await.unwrap().cid;
        let stream = export(&from, &root).await;
        let to = MemStore::new();
        let imported = import_car(&to, &mut stream.as_slice()).await.unwrap();
        assert_eq!((imported.roots.as_slice(), imported.blocks), (&[root][..], from.len() as u64));
        assert_eq!((imported.new_blocks, imported.missing, imported.unread), (from.len() as u64, 0, 0));
        assert!(imported.is_complete());
        assert_eq!(to.list().await.unwrap(), from.list().await.unwrap());
        let again = import_car(&to, &mut stream.as_slice()).await.unwrap();
        assert_eq!(again, CarImported { new_blocks: 0, ..imported });
        assert_eq!(export(&to, &root).await, stream, "the same DAG is the same stream");
    }
}

#[tokio::test]
async fn blocks_stand_before_what_they_link_and_each_branch_before_the_next() {
    let store = MemStore::new();
    let put = |value: Ipld| {
        let block = codec::to_block(&value);
        store.put_now([block.clone()]);
        *block.cid()
    };
    let list = |cids: &[Cid]| Ipld::List(cids.iter().map(|cid| Ipld::Link(*cid)).collect());
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|text| put(Ipld::String(text.into())));
    // Content in a link is walked, and what it links comes where it stands.
    let inline = Cid::new_v1(0x71, Multihash::wrap(0, &codec::encode(&list(&[c]))).unwrap());
    let left = put(list(&[a, b]));
    let right = put(list(&[b, inline, a, d]));
    let root = put(list(&[left, right, left, d]));
    let order = cids(&export(&store, &root).await);
    assert_eq!(order, [root, left, a, b, right, c, d]);
}

#[tokio::test]
async fn partial_car_is_imported_and_what_it_lacks_is_named() {
    let from = MemStore::new();
    let root = add_bytes(&from, contract::sample(2, 1 << 20).data().clone()).await.unwrap().cid;
    let leaves = links(&root, &from.get_now(root.hash()).unwrap()).unwrap();
    let lost: BTreeSet<Cid> = leaves.iter().step_by(2).copied().collect();
    let (_, blocks) = read(&export(&from, &root).await);
    let mut stream = car::header(&[root]);
    for block in blocks.iter().filter(|block| !lost.contains(block.cid())) {
        stream.extend(car::frame(block));
    }
    let to = MemStore::new();
    let imported = import_car(&to, &mut stream.as_slice()).await.unwrap();
    assert!(!imported.is_complete());
    assert_eq!(imported.missing, lost.len() as u64);
    assert!(imported.first_missing.iter().all(|cid| lost.contains(cid)));
    assert_eq!(imported.first_missing.len(), lost.len().min(16));
    assert_eq!(imported.new_blocks, (blocks.len() - lost.len()) as u64);
    // The rest may come from elsewhere.
    to.put_now(blocks);
    assert!(import_car(&to, &mut stream.as_slice()).await.unwrap().is_complete());
}

/// A node in another process is asked for nothing that it may have: what came is there, and of the rest it is read.
#[tokio::test]
async fn store_that_says_of_nothing_that_it_is_there_has_what_came_and_what_can_be_read() {
    let [before, came, lost] = [1, 2, 3].map(|seed| contract::sample(seed, 100));
    let root = codec::to_block(&Ipld::List([&before, &came, &lost].map(|leaf| Ipld::Link(*leaf.cid())).to_vec()));
    let mut stream = car::header(&[*root.cid()]);
    for block in [&root, &came] {
        stream.extend(car::frame(block));
    }
    let store = Silent(MemStore::new());
    store.0.put_now([before]);
    let imported = import_car(&store, &mut stream.as_slice()).await.unwrap();
    assert_eq!((imported.missing, imported.first_missing), (1, vec![*lost.cid()]));
}

/// A store whose blocks are only found by reading them.
struct Silent(MemStore);

#[async_trait::async_trait]
impl BlobStore for Silent {
    async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        Ok(vec![false; hashes.len()])
    }

    async fn get(&self, hash: &Multihash) -> Result<Option<bytes::Bytes>, StoreError> {
        self.0.get(hash).await
    }

    async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
        self.0.put(blocks).await
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.0.flush().await
    }

    async fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError> {
        self.0.remove(hashes).await
    }

    async fn list(&self) -> Result<Vec<Multihash>, StoreError> {
        self.0.list().await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.0.usage().await
    }
}

#[tokio::test]
async fn car_without_its_roots_lacks_them() {
    let leaf = Block::new(Codec::Raw, "leaf");
    let absent = *Block::new(Codec::Raw, "absent").cid();
    let stream = [car::header(&[absent]), car::frame(&leaf)].concat();
    let imported = import_car(&MemStore::new(), &mut stream.as_slice()).await.unwrap();
    assert_eq!((imported.blocks, imported.missing, imported.first_missing), (1, 1, vec![absent]));
    let rootless = [car::header(&[]), car::frame(&leaf)].concat();
    assert!(import_car(&MemStore::new(), &mut rootless.as_slice()).await.unwrap().is_complete());
}

#[tokio::test]
async fn blocks_of_other_codecs_are_stored_and_counted_as_unread() {
    let bytes = b"blob 4\0text";
    let git = Cid::new_v1(0x78, *Block::new(Codec::Raw, &bytes[..]).cid().hash());
    let git = Block::verify(git, &bytes[..]).unwrap();
    let broken = Block::new(Codec::DagCbor, &b"\xff"[..]);
    let root = codec::to_block(&Ipld::List([&git, &broken].map(|block| Ipld::Link(*block.cid())).to_vec()));
    let mut stream = car::header(&[*root.cid()]);
    for block in [&root, &git, &broken] {
        stream.extend(car::frame(block));
    }
    let store = MemStore::new();
    let imported = import_car(&store, &mut stream.as_slice()).await.unwrap();
    assert_eq!((imported.new_blocks, imported.missing, imported.unread), (3, 0, 2));
    assert_eq!(store.get_now(git.cid().hash()).unwrap(), &bytes[..]);
}

#[tokio::test]
async fn damaged_car_ends_with_an_error_and_what_is_wrong_is_not_stored() {
    let blocks: Vec<Block> = (0..600).map(|i| contract::sample(i, 100)).collect();
    let mut stream = car::header(&[*blocks[0].cid()]);
    for block in &blocks {
        stream.extend(car::frame(block));
    }
    let whole = stream.len() as u64;
    *stream.last_mut().unwrap() ^= 1;
    let store = MemStore::new();
    let error = import_car(&store, &mut stream.as_slice()).await.unwrap_err();
    let CarImportError::Format(car::CarError::Block { offset, source: HashError::Mismatch { cid } }) = error else {
        panic!("{error}")
    };
    assert_eq!((cid, offset), (*blocks[599].cid(), whole - car::frame(&blocks[599]).len() as u64));
    assert!(store.get_now(cid.hash()).is_none());
    stream.truncate(stream.len() - 1);
    let error = import_car(&store, &mut stream.as_slice()).await.unwrap_err();
    assert!(matches!(error, CarImportError::Format(car::CarError::Truncated { .. })), "{error}");
}

#[tokio::test]
async fn stream_that_fails_is_an_error_and_not_an_end() {
    struct Failing;

    impl tokio::io::AsyncRead for Failing {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other("the disk is gone")))
        }
    }

    let head = car::header(&[]);
    let error = import_car(&MemStore::new(), &mut head.chain(Failing)).await.unwrap_err();
    assert!(matches!(error, CarImportError::Read(_)), "{error}");
}

async fn export(store: &MemStore, root: &Cid) -> Vec<u8> {
    let mut out = Vec::new();
    export_car(store, root, &mut out).await.unwrap();
    out
}

fn read(stream: &[u8]) -> (Vec<Cid>, Vec<Block>) {
    let mut reader = CarReader::new();
    reader.push(stream);
    let (mut roots, mut blocks) = (Vec::new(), Vec::new());
    while let Some(item) = reader.next_item().unwrap() {
        match item {
            CarItem::Roots(found) => roots = found,
            CarItem::Block(block) => blocks.push(block),
        }
    }
    reader.finish().unwrap();
    (roots, blocks)
}

fn cids(stream: &[u8]) -> Vec<Cid> {
    read(stream).1.iter().map(|block| *block.cid()).collect()
}
