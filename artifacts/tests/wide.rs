//! DAGs of many small blocks: what each block costs of memory while the whole is written, read, or made public.

use iptl_artifacts::car::{export_car, import_car};
use iptl_artifacts::{BlobStore, MemStore, Multihash, PublicIndex, StoreError, Usage};

use iptl_dag::{Block, Codec, Ipld, car, codec};

use crate::memory::most_held;

/// Leaves: a little more than what a set of the standard library has to grow for.
const LEAVES: u32 = 240_000;

/// Leaves under one node.
const WIDTH: u32 = 1000;

/// Bytes that a walk may hold whatever the width: the links of some nodes, pieces of files.
const BASE: usize = 3 << 20;

/// Makes the blocks of a DAG of three levels, its root first.
fn wide() -> Vec<Block> {
    let parent = |children: &[Block]| {
        codec::to_block(&Ipld::List(children.iter().map(|child| Ipld::Link(*child.cid())).collect()))
    };
    let leaves: Vec<Block> = (0..LEAVES).map(|number| Block::new(Codec::Raw, number.to_le_bytes().to_vec())).collect();
    let nodes: Vec<Block> = leaves.chunks(WIDTH as usize).map(parent).collect();
    [vec![parent(&nodes)], nodes, leaves].concat()
}

fn stored<'a>(blocks: impl Iterator<Item = &'a Block>) -> MemStore {
    let store = MemStore::new();
    store.put_now(blocks.cloned());
    store
}

#[track_caller]
fn check(what: &str, held: usize, bytes_per_block: usize) {
    println!("{what}: {held} bytes, {} for a block", held / LEAVES as usize);
    let most = BASE + bytes_per_block * LEAVES as usize;
    assert!(held < most, "{what} held {held} bytes at most, of {most} that it may");
}

#[tokio::test]
async fn wide_dag_is_written_to_a_car_with_twenty_four_bytes_for_a_block() {
    let blocks = wide();
    let store = stored(blocks.iter());
    let (written, held) = most_held(export_car(&store, blocks[0].cid(), &mut tokio::io::sink())).await;
    assert_eq!(written.unwrap().blocks, blocks.len() as u64);
    check("writing a CAR", held, 24);
}

#[tokio::test]
async fn wide_dag_is_read_from_a_car_with_twenty_four_bytes_for_a_block() {
    let blocks = wide();
    let mut stream = car::header(&[*blocks[0].cid()]);
    blocks.iter().for_each(|block| stream.extend(car::frame(block)));
    let nodes = blocks.iter().filter(|block| Codec::of(block.cid()) != Some(Codec::Raw));
    let store = Full(stored(nodes));
    let (read, held) = most_held(import_car(&store, &mut stream.as_slice())).await;
    let read = read.unwrap();
    assert_eq!((read.blocks, read.missing), (blocks.len() as u64, 0));
    check("reading a CAR", held, 24);
}

/// Sixteen of them stay: it is asked for each block that is served.
#[tokio::test]
async fn wide_dag_is_made_public_with_forty_bytes_for_a_block() {
    let blocks = wide();
    let store = stored(blocks.iter());
    let dir = tempfile::tempdir().unwrap();
    let (index, _) = PublicIndex::open(dir.path().join("public"), &[]).unwrap();
    let (added, held) = most_held(index.add(&store, blocks[0].cid())).await;
    assert_eq!(added.unwrap().blocks, blocks.len() as u64);
    check("making it public", held, 40);
    drop(index);
    let reading = async { PublicIndex::open(dir.path().join("public"), &[*blocks[0].cid()]).unwrap() };
    let ((index, lacking), held) = most_held(reading).await;
    assert_eq!(lacking, []);
    assert!(blocks.iter().step_by(1000).all(|block| index.contains(block.cid().hash())));
    check("reading what is public", held, 40);
}

/// A store that has everything already, so that what it holds is not counted with what the walk does.
struct Full(MemStore);

#[async_trait::async_trait]
impl BlobStore for Full {
    async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        Ok(vec![true; hashes.len()])
    }

    async fn get(&self, hash: &Multihash) -> Result<Option<bytes::Bytes>, StoreError> {
        self.0.get(hash).await
    }

    async fn put(&self, _: Vec<Block>) -> Result<(), StoreError> {
        Ok(())
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
