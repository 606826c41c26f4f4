//! Container images as blocks: read and rebuilt beside the engine, a second version moved, and one that a lablet has
//! never seen run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use iptl_artifacts::read_block;
use iptl_artifacts_oci as oci;
use iptl_artifacts_pack::PackStore;
use iptl_dag::model::{self, Workload};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::containers::Times;
use crate::engine::{Engine, shell};
use crate::lab::{Guest, Lab, iptl};
use crate::report::{Report, Row, percentile};

/// Bytes of the large image, in MB.
const LARGE_MB: u32 = 200;

/// Bytes of the image that changes, and of its program that does, in MB.
const CHANGING_MB: u32 = 100;
const PROGRAM_MB: u32 = 1;

/// Times the time of the engine's own command that reading and rebuilding may take.
const GOAL: f64 = 1.5;

/// Part of the bytes that a second version may move.
const MOVED_GOAL: f64 = 0.03;

/// Times that each is measured.
const ROUNDS: u32 = 3;

/// Takes all measures; what was measured before one fails is in the report.
pub async fn measure(guest: &Guest, report: &mut Report) -> Result<()> {
    Engine::find().await?;
    for row in large(guest).await? {
        report.add(row);
    }
    let lab = Lab::start(1, guest)?;
    report.add(changed(&lab)?);
    report.add(cold(&lab, guest).await?);
    Ok(())
}

/// Reads a large image from the engine and makes it again.
async fn large(guest: &Guest) -> Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    let image = Image::new(dir.path(), guest)?;
    let (mut ours, mut bare, mut rebuilt, mut loaded) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let home = dir.path().join(format!("home-{round}"));
        let begun = Instant::now();
        let cid = iptl(&home, &["-q", "publish", "workload", "--image", &image.name])?;
        ours.push(begun.elapsed().as_secs_f64());
        let line = format!("mkdir unpacked && docker save {} | tar x -C unpacked", image.name);
        bare.push(timed(|| shell(dir.path(), &line))?);
        fs::remove_dir_all(dir.path().join("unpacked"))?;

        let path = dir.path().join("rebuilt.tar");
        let store = PackStore::open(home.join("store")).await?;
        let workload = read_block(&store, &cid.parse()?).await?.context("the workload is not in the store")?;
        let workload: Workload = model::from_bytes(workload.data())?;
        let begun = Instant::now();
        let mut out = tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::create(&path).await?);
        oci::write_docker_archive(&store, &workload.content, Some(&image.name), &oci::Limits::default(), &mut out)
            .await?;
        out.flush().await?;
        rebuilt.push(begun.elapsed().as_secs_f64());
        drop(store);
        // The engine keeps no layer of it, so that loading is work.
        let id = shell(dir.path(), &format!("docker image inspect -f '{{{{.Id}}}}' {}", image.name))?;
        shell(dir.path(), &format!("docker image rm -f {}", image.name))?;
        loaded.push(timed(|| shell(dir.path(), "docker load -q -i rebuilt.tar"))?);
        let again = shell(dir.path(), &format!("docker image inspect -f '{{{{.Id}}}}' {}", image.name))?;
        anyhow::ensure!(again == id, "the image that came back is {again} and not {id}");
    }
    let row = |measure: &str, ours: &[f64], reference: &str, bare: &[f64], bound: &str| {
        let (ours, bare) = (percentile(ours, 50), percentile(bare, 50));
        Row {
            measure: format!("{measure} an image of {LARGE_MB} MB, median of {ROUNDS}"),
            figure: format!("{ours:.2} s"),
            reference: format!("{reference}: {bare:.2} s"),
            ratio: format!("{:.2} ×", ours / bare),
            goal: format!("≤ {GOAL} ×"),
            reached: Some(ours / bare <= GOAL),
            bound: bound.to_owned(),
        }
    };
    Ok(vec![
        row(
            "publishing from the engine",
            &ours,
            "`docker save | tar x`",
            &bare,
            "the engine's writing of it, then chunking and hashing; the store commits it to the disk",
        ),
        row(
            "rebuilding",
            &rebuilt,
            "`docker load` of what came of it",
            &loaded,
            "reading blocks and hashing them; the image has the ID that it had",
        ),
    ])
}

/// Fetches an image, and the same with another program in it.
fn changed(lab: &Lab) -> Result<Row> {
    let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    let rootfs = dir.path().join("rootfs");
    fill(&rootfs, CHANGING_MB - PROGRAM_MB, 1)?;
    let home = dir.path().join("home");
    let mut moved = Vec::new();
    for version in 0..2 {
        fs::write(rootfs.join("program"), noise(PROGRAM_MB, 1_000 + version))?;
        let cid = lab.iptl(&["-q", "publish", "workload", "--rootfs", &rootfs.to_string_lossy()])?;
        let address = &lab.orchestrator.addr;
        let answer =
            iptl(&home, &["get", &cid, "--car", "--json", "--peer", address, "-o", "/dev/null", "--timeout", "60s"])?;
        let answer: Value = serde_json::from_str(answer.lines().last().unwrap_or_default())?;
        moved.push(answer["bytes_fetched"].as_u64().context("no count of bytes")? as f64);
    }
    let [whole, second] = moved[..] else { anyhow::bail!("two versions") };
    Ok(Row {
        measure: format!("second version of a {CHANGING_MB} MB image, {PROGRAM_MB} MB program all new: bytes moved"),
        figure: format!("{:.2} MB", second / 1e6),
        reference: format!("the first version: {:.2} MB", whole / 1e6),
        ratio: format!("{:.2} %", second / whole * 100.0),
        goal: format!("≤ {:.0} %", MOVED_GOAL * 100.0),
        reached: Some(second / whole <= MOVED_GOAL),
        bound: "the program itself, and the pages that name all files of its layer".to_owned(),
    })
}

/// Runs an image that the lablet has never seen.
async fn cold(lab: &Lab, guest: &Guest) -> Result<Row> {
    let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    fill(&dir.path().join("rootfs"), CHANGING_MB, 2)?;
    fs::copy(&guest.program, dir.path().join("rootfs/program"))?;
    fs::write(
        dir.path().join("plan.toml"),
        r#"
[plan]
name = "cold"
version = "0.1.0"
description = "An image that nobody has."

[workloads.image]
runner = "docker"
rootfs = "rootfs"

[cases.once]
description = "One container that ends at once."
timeout = "5m"

[cases.once.groups.node]
workload = "image"
args = ["bare-end"]
count = 1
resources = { memory = "32MiB", cpu = "60s", wall = "5m" }

[cases.once.groups.node.container]
entrypoint = ["/program"]
"#,
    )?;
    let plan = lab.iptl(&["-q", "publish", "plan", &dir.path().to_string_lossy()])?;
    let mut times = Vec::new();
    for _ in 0..2 {
        let answer = lab.iptl(&["run", "--detach", "--json", &plan])?;
        let answer: Value = serde_json::from_str(answer.lines().last().unwrap_or_default())?;
        let execution = answer["execution"].as_str().context("no execution")?.parse()?;
        let ended = lab.watch(execution, |_| {}).await?;
        anyhow::ensure!(ended.counts.ok == 1, "{:?}: the container did not end well", ended.counts);
        times.push(Times::of(&lab.facts(execution)?).context("a log without its facts")?);
    }
    let [first, second] = &times[..] else { anyhow::bail!("two runs") };
    Ok(Row {
        measure: format!("from a CID to a running instance, {CHANGING_MB} MB image, lablet that has nothing"),
        figure: format!("{:.2} s; sealed after {:.2} s", first.started, first.sealed),
        reference: format!("the same when the lablet has it: {:.2} s", second.started),
        ratio: format!("{:.1} ×", first.started / second.started),
        goal: "report".to_owned(),
        reached: None,
        bound: format!(
            "{:.2} s more to fetch, rebuild and load it: the engine's loading",
            first.started - second.started
        ),
    })
}

/// An image of the engine; it goes with the value.
struct Image {
    name: String,
    dir: PathBuf,
}

impl Image {
    /// Makes one of noise and the guest's program.
    fn new(dir: &Path, guest: &Guest) -> Result<Image> {
        let rootfs = dir.join("rootfs");
        fill(&rootfs, LARGE_MB, 3)?;
        fs::copy(&guest.program, rootfs.join("program"))?;
        let image = Image { name: format!("iptl-bench-{}:latest", std::process::id()), dir: dir.to_owned() };
        shell(dir, &format!("tar c -C rootfs . | docker import -c 'ENTRYPOINT [\"/program\"]' - {}", image.name))?;
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = shell(&self.dir, &format!("docker image rm -f {}", self.name)) {
            eprintln!("an image is left at the engine: {error:#}");
        }
    }
}

fn timed(action: impl FnOnce() -> Result<String>) -> Result<f64> {
    let begun = Instant::now();
    action()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Fills a directory with files of a megabyte that have nothing in common.
fn fill(dir: &Path, megabytes: u32, seed: u64) -> Result<()> {
    fs::create_dir_all(dir.join("data"))?;
    for number in 0..megabytes {
        fs::write(dir.join(format!("data/{number}")), noise(1, seed << 32 | u64::from(number)))?;
    }
    Ok(())
}

/// Makes bytes that cannot be compressed, the same for the same seed: xorshift64* after Vigna, 2014.
fn noise(megabytes: u32, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = megabytes as usize * 1_000_000 / 8;
    let mut bytes = Vec::with_capacity(words * 8);
    for _ in 0..words {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes
}
