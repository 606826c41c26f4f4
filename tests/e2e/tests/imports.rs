//! Imports that are killed at any moment: what was acknowledged is there, and what was not leaves nothing behind.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use iptl_dag::{Block, Codec, Ipld, car, codec};
use iptl_e2e::{Home, LIMIT};

/// Bytes that one import brings: several batches of them.
const SIZE: usize = 24 << 20;

#[test]
fn twenty_imports_killed_at_any_moment_lose_nothing_and_leave_nothing() {
    kill_imports(20);
}

#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn two_hundred_imports_killed_at_any_moment_lose_nothing_and_leave_nothing() {
    kill_imports(200);
}

/// An import that said that it is done.
struct Done {
    cid: String,
    number: u64,
    /// Blocks that nothing else leads to.
    blocks: u64,
}

fn kill_imports(kills: u64) {
    let home = Home::new();
    let store = home.path().join("store");
    let mut done: Vec<Done> = Vec::new();
    let (mut killed, mut number) = (0, 0);
    while killed < kills {
        number += 1;
        assert!(number <= kills * 3, "{killed} of {number} imports were killed before they ended");
        // From before the first byte to behind the last: the index and the pins are written then.
        let after = SIZE / 100 * usize::try_from(number * 37 % 120).unwrap();
        let (was_killed, cid) = import(&home, &store, number, size_of(&store) + after as u64);
        killed += u64::from(was_killed);
        if let Some(cid) = cid {
            let stat = home.run(&["dag", "stat", &cid, "--json"]).exits(0).json();
            done.push(Done { cid, number, blocks: stat["blocks"].as_u64().unwrap() });
        }
        // It was acknowledged before others died in the same store.
        if let Some(last) = done.last() {
            is_whole(&home, last);
        }
    }
    assert!(done.len() >= 2, "{} of {number} imports ended", done.len());
    done.iter().for_each(|done| is_whole(&home, done));
    // One that was killed between its pin and its word is whole all the same, and nothing that the user was told of.
    for line in home.run(&["ls", "pins", "--json"]).exits(0).stdout.lines() {
        let pin: serde_json::Value = serde_json::from_str(line).unwrap();
        let cid = pin["cid"].as_str().unwrap();
        if !done.iter().any(|done| done.cid == cid) {
            home.run(&["dag", "stat", cid, "--timeout", "1s"]).exits(0);
            home.run(&["unpin", cid]).exits(0);
        }
    }
    let checked = home.run(&["store", "check", "--json"]).exits(0).json();
    assert_eq!(checked["damaged"], 0, "{checked}");
    let collected = home.run(&["gc", "--json"]).exits(0).json();
    let expected: u64 = done.iter().map(|done| done.blocks).sum();
    assert_eq!((collected["kept"].as_u64(), collected["missing"].as_u64()), (Some(expected), Some(0)), "{collected}");
    // Packs are half in use at least.
    let kept = done.len() as u64 * SIZE as u64;
    assert!(collected["on_disk_bytes"].as_u64().unwrap() <= kept * 2 + (16 << 20), "{collected}");
    done.iter().for_each(|done| is_whole(&home, done));
}

/// Imports something that no other import has, and kills it once the store has so many bytes; says whether it was killed
/// before it ended by itself, and the CID where it was told.
fn import(home: &Home, store: &Path, number: u64, at: u64) -> (bool, Option<String>) {
    let path = source(home, number);
    let path = path.display().to_string();
    let args = if is_car(number) { vec!["import", &path, "-q"] } else { vec!["publish", "data", &path, "-q"] };
    let mut child = home.iptl(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if size_of(store) >= at {
            child.kill().unwrap();
            break None;
        }
        assert!(begun.elapsed() < LIMIT, "an import does not end");
        std::thread::sleep(Duration::from_millis(1));
    };
    let output = child.wait_with_output().unwrap();
    std::fs::remove_file(path).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    if let Some(status) = ended {
        assert!(status.success(), "import {number} ended with {status}");
    }
    (ended.is_none(), said.strip_suffix('\n').map(str::to_owned))
}

fn is_car(number: u64) -> bool {
    number.is_multiple_of(2)
}

/// Returns bytes that are those of this import alone.
fn bytes(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(SIZE / 8).flatten().collect()
}

/// Writes what is imported: a file, or a CAR of raw blocks under one root.
fn source(home: &Home, number: u64) -> PathBuf {
    let path = home.path().join(format!("source-{number}"));
    let bytes = bytes(number);
    if !is_car(number) {
        std::fs::write(&path, bytes).unwrap();
        return path;
    }
    let leaves: Vec<Block> = bytes.chunks(128 << 10).map(|part| Block::new(Codec::Raw, part.to_vec())).collect();
    let root = codec::to_block(&Ipld::List(leaves.iter().map(|leaf| Ipld::Link(*leaf.cid())).collect()));
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    out.write_all(&car::header(&[*root.cid()])).unwrap();
    for block in std::iter::once(&root).chain(&leaves) {
        out.write_all(&car::frame_head(block)).unwrap();
        out.write_all(block.data()).unwrap();
    }
    out.flush().unwrap();
    path
}

#[track_caller]
fn is_whole(home: &Home, done: &Done) {
    let out = home.path().join("out");
    let path = out.display().to_string();
    let args = ["get", &done.cid, "-o", &path, "--timeout", "1s"];
    let got = if is_car(done.number) { [&args[..], &["--car"]].concat() } else { args.to_vec() };
    home.run(&got).exits(0);
    let got = std::fs::read(&out).unwrap();
    let bytes = bytes(done.number);
    if is_car(done.number) {
        // Its blocks stand in it in the order of the root's links.
        assert!(got.len() > bytes.len() && got.ends_with(&bytes[SIZE - (128 << 10)..]), "import {}", done.number);
    } else {
        assert!(got == bytes, "import {} is not what it was", done.number);
    }
    std::fs::remove_file(out).unwrap();
}

fn size_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    // One may go between the list and the look.
    entries.map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum()
}
