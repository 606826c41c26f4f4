//! What a command uses of memory while a large CAR is written, and while one is read.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use iptl_dag::Cid;

use crate::lab::program;
use crate::memory::{PAUSE, RESERVE, SMALL, SMALL_SIZE, fill, fill_small};
use crate::process::peak_kib;
use crate::reference::mb_per;
use crate::report::Row;

/// Most memory of the command, in MB.
const GOAL_MB: f64 = 150.0;

/// Writes and reads CARs: of a file of `bytes`, and of many small blocks.
pub async fn measure(bytes: u64) -> Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    let stat = nix::sys::statvfs::statvfs(dir.path())?;
    let room = stat.blocks_available() * stat.fragment_size();
    ensure!(
        room >= 2 * bytes + RESERVE,
        "{room} bytes are free, and a CAR of {bytes} takes twice as much and some more"
    );
    let mut rows = Vec::new();
    let large = dir.path().join("large");
    let root = fill(&large.join("store"), bytes).await?;
    rows.extend(out_and_in(dir.path(), &large, &root, &format!("{} MiB", bytes >> 20), bytes)?);
    let small = dir.path().join("small");
    let root = fill_small(&small.join("store")).await?;
    let what = format!("{SMALL} blocks of {SMALL_SIZE} bytes");
    rows.extend(out_and_in(dir.path(), &small, &root, &what, SMALL * SMALL_SIZE as u64)?);
    Ok(rows)
}

/// Writes everything under a root to a CAR, and reads that into a new store.
fn out_and_in(dir: &Path, home: &Path, root: &Cid, what: &str, bytes: u64) -> Result<[Row; 2]> {
    let (car, copy) = (dir.join("all.car"), dir.join("copy"));
    let path = car.display().to_string();
    let written = watch(home, &["-q", "get", &root.to_string(), "--car", "-o", &path], what, "go into a CAR", bytes)?;
    std::fs::remove_dir_all(home)?;
    let read = watch(&copy, &["-q", "import", &path], what, "come out of a CAR", bytes)?;
    std::fs::remove_dir_all(copy)?;
    std::fs::remove_file(car)?;
    Ok([written, read])
}

fn watch(home: &Path, args: &[&str], what: &str, doing: &str, bytes: u64) -> Result<Row> {
    let begun = Instant::now();
    let mut command = program(home, args)?.stdout(Stdio::null()).spawn()?;
    let mut peak = 0;
    let status = loop {
        if let Some(status) = command.try_wait()? {
            break status;
        }
        // It may end between the look whether it has and this one.
        peak = peak.max(peak_kib(command.id()).unwrap_or(0));
        std::thread::sleep(PAUSE);
    };
    let took: Duration = begun.elapsed();
    ensure!(status.success(), "iptl {}: {status}", args.join(" "));
    let peak = (peak << 10) as f64 / 1e6;
    Ok(Row {
        measure: format!("memory while {what} {doing}"),
        figure: format!("{peak:.0} MB at most; {:.0} MB/s", mb_per(bytes, took)),
        reference: "–".into(),
        ratio: "–".into(),
        goal: format!("< {GOAL_MB} MB"),
        reached: Some(peak < GOAL_MB),
        bound:
            "resident pages, the node's own included; 16 bytes kept of each block, here and there; the store's index"
                .into(),
    })
}
