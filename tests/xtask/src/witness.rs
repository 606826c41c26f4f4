//! The witnesses: programs on software of other people, and the SDK's own tests.
//!
//! Each stands in a folder under `tests/interop` with its own lock file, and is built into `target/interop`:
//! `rust/<target>/release/witness-rust` (static), `native/release/witness-native`, `ping/release/ping` (the plan that
//! ships, compiled for the machine), `js/node_modules`, `ipfs/node_modules`, `go/witness`. The
//! tests of `iptl-testground` run them; those of `iptl-net` and `iptl-e2e` the last two. Plans in Go and JavaScript are
//! built beside them, each where its manifest says.

use std::path::Path;

use anyhow::{Context, Result};

use crate::setup::{self, STATIC};
use crate::shell::Shell;

/// Where programs of plans are written in Go.
const PLANS_IN_GO: [&str; 1] = ["plans/ipfs-exchange/go"];

/// Where programs of plans are written in JavaScript.
const PLANS_ON_NODE: [&str; 1] = ["plans/ipfs-exchange/helia"];

/// Builds all of them.
pub fn build(shell: &Shell) -> Result<()> {
    let sources = shell.root.join("tests/interop");
    let built = shell.target.join("interop");
    let cargo = |folder: &str, args: &[&str], into: &str| {
        eprintln!("   {folder} {}", args.join(" "));
        let mut cargo = shell.cargo();
        cargo.args(args).args(["--quiet", "--locked"]).current_dir(sources.join(folder));
        cargo.env("CARGO_TARGET_DIR", built.join(into)).env_remove("RUSTFLAGS");
        shell.run(&mut cargo)
    };
    cargo("rust", &["build", "--release", "--target", STATIC], "rust")?;
    cargo("native", &["build", "--release"], "native")?;
    // The same source is a program of either kind.
    cargo("native", &["build", "--release", "--target", "wasm32-wasip2"], "native")?;
    cargo("../../plans/ping", &["build", "--release"], "ping")?;
    sdk(shell)?;

    eprintln!("   go");
    let mut go = shell.command(setup::go(shell)?);
    go.args(["build", "-trimpath", "-buildvcs=false", "-o"]).arg(built.join("go/witness")).arg(".");
    shell.run(go.current_dir(sources.join("go")).env("GOFLAGS", "-mod=readonly").env("GOTOOLCHAIN", "local"))?;

    plans_in_go(shell)?;
    plans_on_node(shell)?;

    packages(shell, "js")?;
    packages(shell, "ipfs")
}

/// Installs an npm package with what its lock file names. What is there already stays.
fn packages(shell: &Shell, name: &str) -> Result<()> {
    eprintln!("   {name}");
    let (from, to) = (shell.root.join("tests/interop").join(name), shell.target.join("interop").join(name));
    std::fs::create_dir_all(&to)?;
    let read = |folder: &Path, file: &str| std::fs::read(folder.join(file)).ok();
    let is_there = ["package.json", "package-lock.json", ".npmrc"].iter().all(|f| read(&from, f) == read(&to, f))
        && to.join("node_modules/.package-lock.json").exists();
    for file in ["package.json", "package-lock.json", ".npmrc", "main.js"] {
        std::fs::copy(from.join(file), to.join(file)).with_context(|| format!("{name}/{file}"))?;
    }
    if is_there {
        return Ok(());
    }
    let args = ["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"];
    shell.run(shell.command("npm").args(args).current_dir(&to))
}

/// Builds the plans that are written in Go, as their manifests say; they share most of what they compile with the witness.
fn plans_in_go(shell: &Shell) -> Result<()> {
    for folder in PLANS_IN_GO {
        eprintln!("   {folder}");
        let mut go = shell.command(setup::go(shell)?);
        go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "target/node", "."]);
        go.current_dir(shell.root.join(folder)).env("CGO_ENABLED", "0");
        shell.run(go.env("GOFLAGS", "-mod=readonly").env("GOTOOLCHAIN", "local"))?;
    }
    Ok(())
}

/// Builds the plans that are written in JavaScript, as their manifests say. What npm installed before stays.
fn plans_on_node(shell: &Shell) -> Result<()> {
    for folder in PLANS_ON_NODE {
        eprintln!("   {folder}");
        shell.run(shell.command("node").arg("build.js").current_dir(shell.root.join(folder)))?;
    }
    Ok(())
}

/// Tests the SDK, and the timers under plans on libp2p, which are workspaces of their own.
fn sdk(shell: &Shell) -> Result<()> {
    for folder in ["plans/sdk", "plans/stack/timer"] {
        eprintln!("   {folder} test");
        let mut cargo = shell.cargo();
        cargo.args(["test", "--quiet", "--locked"]).current_dir(shell.root.join(folder));
        cargo.env("CARGO_TARGET_DIR", shell.target.join("interop/sdk")).env_remove("RUSTFLAGS");
        shell.run(&mut cargo)?;
    }
    Ok(())
}
