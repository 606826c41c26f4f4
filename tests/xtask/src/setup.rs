//! What building and testing need beside Rust and a C compiler. Each thing is looked for first, and installed with its
//! reason where it is missing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::engine;
use crate::shell::Shell;

/// Toolchain of the repository; `rust-toolchain.toml` says the same.
const TOOLCHAIN: &str = "1.95.0";

/// Target of plan code.
pub const WASM: &str = "wasm32-wasip2";

/// Target of programs that run in any container: static, without a libc of the machine.
pub const STATIC: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-musl" } else { "x86_64-unknown-linux-musl" };

/// Oldest Go, by major and minor number, that builds the witness on boxo.
const GO: (u32, u32) = (1, 26);

/// The Go that is installed where there is none, or an older one.
const GO_TOOLCHAIN: &str = "1.26.8";

/// Version of cargo-deny whose rules `.cargo/deny.toml` is written for.
const DENY: &str = "0.20.2";

/// Installs everything.
pub fn all(shell: &Shell) -> Result<()> {
    for_build(shell)?;
    for_checks(shell)?;
    for_witnesses(shell)?;
    engine::ensure(shell)?;
    eprintln!("set-up: all is there");
    Ok(())
}

/// Installs what building needs.
pub fn for_build(shell: &Shell) -> Result<()> {
    compiler(shell)?;
    target(shell, WASM, "plans are compiled to WASI 0.2 components")?;
    target(shell, STATIC, "the first process of containers is a static program")
}

/// Programs of other people that tests put into containers as distributions have them, each with its package.
const TOOLS: [(&str, &str); 5] = [
    ("ping", "iputils-ping"),
    ("iperf3", "iperf3"),
    ("curl", "curl"),
    ("stun", "stun-client"),
    ("stund", "stun-server"),
];

/// Installs what the programs under `tests/interop` need, which stand for those of other people, and those that are used
/// as distributions have them.
pub fn for_witnesses(shell: &Shell) -> Result<()> {
    if shell.ask(shell.command("npm").arg("--version")).is_none()
        || shell.ask(shell.command("node").arg("--version")).is_none()
    {
        say("nodejs, npm", "a program on the JavaScript SDK of Testground is a witness");
        packages(shell, &["nodejs", "npm"])?;
    }
    let missing = TOOLS.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package);
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() {
        say(&missing.join(", "), "the lab network is measured by programs that know nothing of it");
        packages(shell, &missing)?;
    }
    go(shell).map(|_| ())
}

/// Returns a Go that builds the witness on boxo, installed under the build folder where the machine has none.
///
/// Distributions have older ones. Those can fetch a newer one all the same: the proxy of Go's modules serves toolchains
/// as modules, which are checked against the public list of checksums like any other.
pub fn go(shell: &Shell) -> Result<PathBuf> {
    let modules = shell.target.join("tools/go");
    let platform = if cfg!(target_arch = "aarch64") { "linux-arm64" } else { "linux-amd64" };
    let name = format!("golang.org/toolchain@v0.0.1-go{GO_TOOLCHAIN}.{platform}");
    let own = modules.join("pkg/mod").join(&name);
    for program in [Path::new("go").to_path_buf(), own.join("bin/go")] {
        let version = shell.ask(shell.command(&program).arg("version").env("GOTOOLCHAIN", "local"));
        if version.as_deref().and_then(go_version).is_some_and(|version| version >= GO) {
            return Ok(program);
        }
    }
    say(&format!("Go {GO_TOOLCHAIN}"), "a peer on boxo is a witness; into the build folder");
    if shell.ask(shell.command("go").arg("version")).is_none() {
        packages(shell, &["golang-go"])?;
    }
    std::fs::create_dir_all(&modules)?;
    let mut fetch = shell.command("go");
    fetch.args(["mod", "download", &name]).current_dir(&modules);
    shell.run(fetch.env("GOPATH", &modules).env("GOFLAGS", "-modcacherw").env("GOTOOLCHAIN", "local"))?;
    // Modules have no executable files.
    for folder in ["bin", "pkg/tool"] {
        shell.run(shell.command("chmod").args(["-R", "a+rx"]).arg(own.join(folder)))?;
    }
    Ok(own.join("bin/go"))
}

/// Reads major and minor number of what `go version` says.
fn go_version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_whitespace().find_map(|word| word.strip_prefix("go1."))?.split('.');
    Some((1, numbers.next()?.parse().ok()?))
}

/// Installs the standard library of a target.
fn target(shell: &Shell, name: &str, why: &str) -> Result<()> {
    let libraries = sysroot(shell)?.join("lib/rustlib").join(name).join("lib");
    if !libraries.is_dir() {
        say(name, why);
        rustup(shell, &["target", "add", name, "--toolchain", TOOLCHAIN])?;
        if !libraries.is_dir() {
            bail!("target {name} is still missing: run `rustup target add {name} --toolchain {TOOLCHAIN}` by hand");
        }
    }
    Ok(())
}

/// Installs what the checks need beside that.
pub fn for_checks(shell: &Shell) -> Result<()> {
    for (component, program) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if shell.ask(shell.cargo().args([program, "--version"])).is_none() {
            say(component, "`cargo xtask test` checks format and lints");
            rustup(shell, &["component", "add", component, "--toolchain", TOOLCHAIN])?;
        }
    }
    deny(shell)?;
    Ok(())
}

/// Returns cargo-deny, installed under the build folder where the machine has none of this version.
pub fn deny(shell: &Shell) -> Result<PathBuf> {
    let own = shell.target.join("tools/bin/cargo-deny");
    for program in [Path::new("cargo-deny"), &own] {
        let version = shell.ask(shell.command(program).arg("--version"));
        if version.is_some_and(|v| v.ends_with(DENY)) {
            return Ok(program.to_path_buf());
        }
    }
    say(&format!("cargo-deny {DENY}"), "licences, banned crates and sources of dependencies; into the build folder");
    let root = shell.target.join("tools");
    shell.run(
        shell
            .cargo()
            .args(["install", "cargo-deny", "--version", DENY, "--locked", "--quiet", "--root"])
            .arg(&root)
            // It works for a second: a third of the time that its own profile with fat LTO takes to build.
            .envs(
                [("LTO", "off"), ("OPT_LEVEL", "1"), ("CODEGEN_UNITS", "16")]
                    .map(|(k, v)| (format!("CARGO_PROFILE_RELEASE_{k}"), v)),
            )
            // Its own build, not mixed with the workspace's.
            .env("CARGO_TARGET_DIR", root.join("build")),
    )?;
    // Half a gigabyte that nobody needs any more.
    std::fs::remove_dir_all(root.join("build")).context("removing the build of cargo-deny")?;
    Ok(own)
}

/// Makes sure that there is a C compiler: blake3 and ring bring C and assembly, and Rust links with it.
fn compiler(shell: &Shell) -> Result<()> {
    if shell.ask(shell.command("cc").arg("--version")).is_some() {
        return Ok(());
    }
    say("gcc, libc6-dev", "linking, and the C and assembly of blake3 and ring");
    packages(shell, &["gcc", "libc6-dev"])
}

/// Installs what the engine of `cargo xtask fuzz` needs beside that.
pub fn for_fuzzing(shell: &Shell) -> Result<()> {
    compiler(shell)?;
    if shell.ask(shell.command("c++").arg("--version")).is_none() {
        say("g++", "libFuzzer is C++");
        packages(shell, &["g++"])?;
    }
    Ok(())
}

/// Returns what to put before a command that an administrator may run; none where this user is none, and may not
/// become one without being asked.
pub fn administrator(shell: &Shell) -> Option<&'static [&'static str]> {
    if shell.ask(shell.command("id").arg("-u")).as_deref() == Some("0") {
        return Some(&[]);
    }
    shell.ask(shell.command("sudo").args(["-n", "true"])).map(|_| &["sudo", "-n"] as &[_])
}

/// Installs system packages where that needs nobody; else says the one command that does it.
pub fn packages(shell: &Shell, names: &[&str]) -> Result<()> {
    let list = names.join(" ");
    let by_hand = format!("sudo apt-get update && sudo apt-get install -y {list}");
    if shell.ask(shell.command("apt-get").arg("--version")).is_none() {
        bail!("install {list} with the package manager of this system");
    }
    let Some(prefix) = administrator(shell) else { bail!("this needs an administrator; run:  {by_hand}") };
    for args in [vec!["apt-get", "update"], [vec!["apt-get", "install", "-y"], names.to_vec()].concat()] {
        let line = [prefix, &args].concat();
        let (program, args) = line.split_first().context("the line names apt-get")?;
        shell
            .run(shell.command(program).args(args).env("DEBIAN_FRONTEND", "noninteractive"))
            .with_context(|| format!("run it by hand:  {by_hand}"))?;
    }
    Ok(())
}

fn rustup(shell: &Shell, args: &[&str]) -> Result<()> {
    shell
        .run(shell.command("rustup").args(args))
        .with_context(|| format!("install Rust with rustup (https://rustup.rs), then run:  rustup {}", args.join(" ")))
}

fn sysroot(shell: &Shell) -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let root = shell.ask(shell.command(rustc).args(["--print", "sysroot"])).context("rustc does not run")?;
    Ok(PathBuf::from(root))
}

/// Returns whether there is a program, where this user looks for programs or an administrator does.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(|folder| folder.join(program).is_file())
}

/// Announces that something is installed, and why.
pub fn say(what: &str, why: &str) {
    eprintln!("set-up: installing {what}: {why}");
}
