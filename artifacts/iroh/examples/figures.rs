use iptl_artifacts::{BlobStore, MemStore, contract::sample};
use iptl_artifacts_iroh::*;
use iptl_dag::{Block, Codec};
use std::sync::Arc;
use std::time::Instant;
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
struct T(Instant, f64);
impl T {
    fn new() -> T {
        T(Instant::now(), cpu())
    }
    fn mb(&self, name: &str, bytes: u64, n: u64) {
        let (w, c) = (self.0.elapsed().as_secs_f64(), cpu() - self.1);
        let m = bytes as f64 / 1e6;
        println!(
            "{name:<48} wall {w:6.2}s {:7.0} MB/s {:8.0}/s | cpu {c:6.2}s {:7.0} MB/cpu-s {:8.0}/cpu-s",
            m / w,
            n as f64 / w,
            m / c.max(0.01),
            n as f64 / c.max(0.01)
        );
    }
}
fn make(n: usize, size: usize, seed: u64) -> Vec<Block> {
    let base = sample(seed, 2 << 20).data().to_vec();
    (0..n)
        .map(|i| {
            let off = (i * 37) % (2 << 20).min((2 << 20) - size + 1).max(1);
            let mut d = base[off..off + size].to_vec();
            d[..8].copy_from_slice(&(i as u64 ^ seed << 32).to_le_bytes());
            Block::new(Codec::Raw, d)
        })
        .collect()
}
fn pss() -> u64 {
    std::fs::read_to_string("/proc/self/smaps_rollup")
        .unwrap()
        .lines()
        .find(|l| l.starts_with("Pss:"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let root = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    std::fs::remove_dir_all(&root).ok();
    println!("pss before {} kB", pss());
    let t = Instant::now();
    let a = FsBlobStore::open(root.join("a")).await.unwrap();
    println!("open (new) {:?}, pss {} kB", t.elapsed(), pss());
    // flush times
    for (name, size, n) in
        [("1 x 300 B", 300, 1), ("6 x 300 B", 300, 6), ("3 x 30 KB", 30_000, 3), ("20 x 300 B + 3 x 64 KB", 65536, 3)]
    {
        let mut all = vec![];
        let mut puts = vec![];
        for round in 0..50u64 {
            let mut b: Vec<Block> = (0..n).map(|i| sample(round * 1000 + i + size as u64 * 1_000_000, size)).collect();
            if name.contains('+') {
                b.extend((0..20).map(|i| sample(round * 1000 + i + 77_000_000, 300)));
            }
            let t = Instant::now();
            a.put(b).await.unwrap();
            puts.push(t.elapsed());
            let t = Instant::now();
            a.flush().await.unwrap();
            all.push(t.elapsed());
        }
        all.sort();
        puts.sort();
        println!("put {name}: p50 {:?} p98 {:?}; flush p50 {:?} p98 {:?}", puts[25], puts[48], all[25], all[48]);
    }
    let t = Instant::now();
    for _ in 0..100 {
        a.flush().await.unwrap();
    }
    println!("flush of nothing {:?}", t.elapsed() / 100);
    {
        let f = std::fs::File::create(root.join("x")).unwrap();
        use std::io::Write;
        let mut v = vec![];
        for i in 0..50 {
            (&f).write_all(&[i; 4096]).unwrap();
            let t = Instant::now();
            f.sync_data().unwrap();
            v.push(t.elapsed());
        }
        v.sort();
        println!("plain fdatasync p50 {:?} p98 {:?}", v[25], v[48]);
    }
    if std::env::args().nth(2).as_deref() == Some("flush") {
        println!("pss {} kB", pss());
        return;
    }
    for (n, size) in [(20_000usize, 4096usize), (8192, 65536), (16_384, 65536), (512, 1 << 20)] {
        let s = FsBlobStore::open(root.join(format!("p{n}-{size}"))).await.unwrap();
        let b = make(n, size, 1);
        let bytes = (n * size) as u64;
        let hashes: Vec<_> = b.iter().map(|b| *b.cid().hash()).collect();
        let t = T::new();
        for c in b.chunks(64) {
            s.put(c.to_vec()).await.unwrap();
        }
        s.flush().await.unwrap();
        t.mb(&format!("put {n} x {size} + flush"), bytes, n as u64);
        let t = T::new();
        for c in b.chunks(64) {
            s.put(c.to_vec()).await.unwrap();
        }
        t.mb("put again", bytes, n as u64);
        let t = T::new();
        for c in hashes.chunks(16) {
            assert!(s.get_batch(c).await.unwrap().iter().all(|b| b.is_some()));
        }
        t.mb("get_batch(16)", bytes, n as u64);
        let t = T::new();
        for h in &hashes {
            s.get(h).await.unwrap().unwrap();
        }
        t.mb("get one by one", bytes, n as u64);
        drop(b);
        let digests: Vec<[u8; 32]> = hashes.iter().map(|h| h.digest().try_into().unwrap()).collect();
        let p = provider(&s);
        for (what, sink) in [
            ("drain", None),
            ("MemStore", Some(Arc::new(MemStore::new()) as Arc<dyn BlobStore>)),
            (
                "FsStore",
                Some(
                    Arc::new(FsBlobStore::open(root.join(format!("s{n}-{size}"))).await.unwrap()) as Arc<dyn BlobStore>
                ),
            ),
        ] {
            let t = T::new();
            for c in digests.chunks(256) {
                let (near, far) = tokio::io::duplex(256 << 10);
                let p = p.clone();
                let serve = tokio::spawn(async move { p.serve(far).await.unwrap() });
                let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
                let sinker = sink.clone().map(|sink| {
                    let c = c.to_vec();
                    tokio::spawn(async move {
                        let mut batch = vec![];
                        while rx.recv_many(&mut batch, 32).await > 0 {
                            let blocks = batch
                                .drain(..)
                                .map(|(i, d): (usize, bytes::Bytes)| {
                                    Block::verify(
                                        iptl_dag::Cid::new_v1(
                                            0x55,
                                            iptl_artifacts::Multihash::wrap(0x1e, &c[i]).unwrap(),
                                        ),
                                        d,
                                    )
                                    .unwrap()
                                })
                                .collect();
                            sink.put(blocks).await.unwrap();
                        }
                    })
                });
                let drain = sink.is_none();
                let o = get_many(near, c, &mut |i, d| {
                    if !drain {
                        tx.send((i, d)).ok();
                    }
                })
                .await
                .unwrap();
                assert_eq!(o.received, c.len());
                drop(tx);
                serve.await.unwrap();
                if let Some(s) = sinker {
                    s.await.unwrap();
                }
            }
            if let Some(s) = &sink {
                s.flush().await.unwrap();
            }
            t.mb(&format!("  get_many FsStore -> {what}"), bytes, n as u64);
        }
    }
    println!("pss at end {} kB", pss());
    let t = Instant::now();
    drop(a);
    println!("drop {:?}", t.elapsed());
}
