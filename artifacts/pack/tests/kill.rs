//! `kill -9` of a process that imports, removes and compacts.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use iptl_artifacts::contract::{sample, sha2_256};
use iptl_artifacts::{BlobStore, Pins, gc};
use iptl_artifacts_pack::{Options, PackStore};
use iptl_dag::{Block, Multihash};

/// Tells the child process of a test which store to work on.
const CHILD_DIR: &str = "IPTL_TEST_STORE";

/// Tells it with which round to begin.
const CHILD_FROM: &str = "IPTL_TEST_ROUND";

/// Rounds that stay; older ones are removed.
const KEPT: u64 = 20;

/// Small enough that packs change, the index is committed and packs are emptied all the time.
const OPTIONS: Options =
    Options { pack_size: 2 << 20, max_lag_bytes: 3 << 20, max_lag_blocks: 50, write_behind: 500_000 };

/// Blocks of one round: small, large, of another hash function, and with a digest that is cut off.
fn round(number: u64) -> Vec<Block> {
    vec![
        sample(number * 10, 300),
        sample(number * 10 + 1, 30_000),
        sample(number * 10 + 2, 200_000),
        sha2_256(sample(number * 10 + 3, 5_000).data().clone()),
        Block::hashed_to(0x12, 20, sample(number * 10 + 4, 5_000).data().clone()).unwrap(),
    ]
}

fn hashes(number: u64) -> Vec<Multihash> {
    round(number).iter().map(|block| *block.cid().hash()).collect()
}

#[test]
fn what_was_acknowledged_survives_twenty_kills() {
    survive(20);
}

#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn what_was_acknowledged_survives_two_hundred_kills() {
    survive(200);
}

fn survive(kills: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for kill in 1..=kills {
        let kill_after = last + 1 + (kill * 7) % 12;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child_works_until_it_is_killed", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .env(CHILD_FROM, (last + 1).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut flushed = last;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(number) = line.unwrap().strip_prefix("flushed ") {
                flushed = number.parse().unwrap();
                if flushed == kill_after {
                    child.kill().unwrap();
                }
            }
        }
        assert!(!child.wait().unwrap().success() && flushed >= kill_after, "the child was killed at work");
        check(dir.path(), flushed);
        last = flushed;
    }
    sweep(dir.path());
}

/// Asserts that what was acknowledged is there, and nothing else.
#[tokio::main(flavor = "current_thread")]
async fn check(dir: &Path, flushed: u64) {
    let store = PackStore::open_with(dir, OPTIONS).await.unwrap();
    for number in (flushed.saturating_sub(KEPT) + 2).max(1)..=flushed {
        for block in round(number) {
            let data = store.get(block.cid().hash()).await.unwrap();
            assert_eq!(data.as_ref(), Some(block.data()), "round {number} of {flushed}");
        }
    }
    // What was removed before the last acknowledgement stays away; what was not flushed is whole or absent.
    for number in 1..=flushed.saturating_sub(KEPT) {
        assert!(store.has(&hashes(number)).await.unwrap().iter().all(|has| !has), "round {number} of {flushed}");
    }
    let listed = store.list().await.unwrap();
    assert!(listed.len() <= round(0).len() * (KEPT as usize + 2));
    for hash in &listed {
        store.get(hash).await.unwrap().expect("what is listed is whole");
    }
}

/// Collects everything: what was not acknowledged leaves no rubbish.
#[tokio::main(flavor = "current_thread")]
async fn sweep(dir: &Path) {
    let store = PackStore::open_with(dir, OPTIONS).await.unwrap();
    let pins = Pins::open(dir.join("pins.cbor")).unwrap();
    gc(&store, &pins).await.unwrap();
    assert!(store.list().await.unwrap().is_empty());
    let usage = store.usage().await.unwrap();
    assert!(usage.on_disk <= 64, "{usage:?}");
}

#[tokio::test]
#[ignore = "run by another test, as a process of its own that is killed"]
async fn child_works_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let from = std::env::var(CHILD_FROM).unwrap().parse().unwrap();
    let store = PackStore::open_with(dir, OPTIONS).await.unwrap();
    println!();
    for number in from.. {
        for block in round(number) {
            store.put(vec![block]).await.unwrap();
        }
        if let Some(old) = number.checked_sub(KEPT) {
            store.remove(&hashes(old)).await.unwrap();
        }
        if number % 5 == 0 {
            store.compact().await.unwrap();
        }
        store.flush().await.unwrap();
        println!("flushed {number}");
    }
}
