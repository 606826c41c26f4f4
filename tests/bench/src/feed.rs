//! Lablets that all want the same large artifacts at once: what their origin sends for it.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::blocks::write_noise;
use crate::lab::{Guest, Lab, Node, iptl};
use crate::report::Row;

/// Lablets, each of which gets an instance of both programs.
const LABLETS: u32 = 8;

/// Bytes that each of the two programs carries: one alone may have 256 MiB.
const BALLAST: u64 = 250_000_000;

/// Copies that the origin may send.
const GOAL: f64 = 1.5;

/// Runs a plan of two heavy programs on lablets that have neither.
pub fn measure(guest: &Guest) -> Result<Vec<Row>> {
    let lab = Lab::start(LABLETS, guest)?;
    let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    let size = write_plan(dir.path(), &guest.component)?;
    let plan = dir.path().display().to_string();
    let published = lab.iptl(&["-q", "publish", "plan", "--no-build", &plan])?;
    let before = sent(&lab.orchestrator)?;
    let begun = Instant::now();
    let told = lab.iptl(&["-q", "run", &published, "--json"])?;
    let took = begun.elapsed().as_secs_f64();
    let last: Value = serde_json::from_str(told.lines().last().unwrap_or_default())?;
    ensure!(last["verdict"] == "pass" && last["ok"] == u64::from(LABLETS) * 2, "{last}");
    let copies = (sent(&lab.orchestrator)? - before) as f64 / size as f64;
    let others = lab.lablets.iter().map(sent).sum::<Result<u64>>()? as f64 / size as f64;
    Ok(vec![Row {
        measure: format!(
            "two components of 250 MB, together {:.0} MB, to {LABLETS} lablets at once",
            size as f64 / 1e6
        ),
        figure: format!(
            "the origin sent {copies:.2} copies, the lablets each other {others:.2}; sealed after {took:.1} s"
        ),
        reference: format!("one copy; without each other {LABLETS} of them"),
        ratio: format!("{copies:.2} ×"),
        goal: format!("≤ {GOAL} ×"),
        reached: Some(copies <= GOAL),
        bound: "nodes above leaves, which each lablet takes from the origin, and what proves each block".into(),
    }])
}

fn sent(node: &Node) -> Result<u64> {
    let status: Value = serde_json::from_str(&iptl(&node.home, &["status", "--json"])?)?;
    status["blocks"]["sent_bytes"].as_u64().context("a node does not say what it sent")
}

/// Writes the plan and returns the bytes of both programs.
fn write_plan(dir: &Path, component: &Path) -> Result<u64> {
    let program = fs::read(component)?;
    let noise = dir.join("noise");
    write_noise(&noise, BALLAST * 2)?;
    let mut noise = fs::File::open(noise)?;
    let mut size = 0;
    let mut plan = "[plan]\nname = \"heavy\"\nversion = \"0.1.0\"\n".to_owned();
    for name in ["first", "second"] {
        let mut out = std::io::BufWriter::new(fs::File::create(dir.join(name))?);
        out.write_all(&program)?;
        // A custom section: a name and bytes that no engine looks at.
        let mut head = vec![0];
        leb128(&mut head, BALLAST + 8);
        head.extend(b"\x07ballast");
        out.write_all(&head)?;
        std::io::copy(&mut (&mut noise).take(BALLAST), &mut out)?;
        out.flush()?;
        size += program.len() as u64 + head.len() as u64 + BALLAST;
        plan += &format!("\n[workloads.{name}]\nrunner = \"wasm\"\npath = \"{name}\"\n");
    }
    plan += "\n[cases.trivial]\ntimeout = \"5m\"\n";
    for name in ["first", "second"] {
        plan += &format!(
            "\n[cases.trivial.groups.{name}]\nworkload = \"{name}\"\ncount = {{ default = {LABLETS}, min = 1, max = \
             {LABLETS} }}\naffinity = \"spread\"\nresources = {{ memory = \"16MiB\", cpu = \"10s\", wall = \"1m\" }}\n"
        );
    }
    fs::write(dir.join("plan.toml"), plan)?;
    fs::remove_file(dir.join("noise"))?;
    Ok(size)
}

fn leb128(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
