//! Running programs from the root of the repository, and saying so.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Code for the lab beside the plans.
const GUESTS_OF_TESTS: [&str; 4] = [
    "node/runner-wasm/tests/guests",
    "node/runner-docker/init",
    "node/runner-docker/tests/programs",
    "tests/bench/guests",
];

/// The repository, and how programs are run in it.
pub struct Shell {
    /// Root of the repository.
    pub root: PathBuf,
    /// Where builds go.
    pub target: PathBuf,
}

impl Shell {
    /// Finds the repository.
    pub fn new() -> Result<Shell> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.ancestors().nth(2).context("xtask stands two levels below the root")?.to_path_buf();
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let target = if target.is_absolute() { target } else { root.join(target) };
        Ok(Shell { root, target })
    }

    /// Announces a step.
    pub fn step(&self, name: &str, what: &str) {
        eprintln!("\n── {name}: {what}");
    }

    /// Returns a command that runs at the root.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// Returns cargo, at the root.
    pub fn cargo(&self) -> Command {
        let mut cargo = self.command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // What cargo told this program of itself: build scripts that look at it would run again, and half of all crates
        // be compiled anew, each time that somebody builds now with `cargo xtask` and now without.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| text.starts_with(start)) {
                cargo.env_remove(&name);
            }
        }
        cargo
    }

    /// Runs a command to its end; fails where it does.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let shown = show(command);
        let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
        if !status.success() {
            bail!("`{shown}` failed ({status})");
        }
        Ok(())
    }

    /// Returns what a command prints, trimmed; none where it fails or is not there.
    pub fn ask(&self, command: &mut Command) -> Option<String> {
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a command whose output is passed on line by line and also read; returns whether it succeeded.
    pub fn watch(&self, command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
        let shown = show(command);
        let (reader, writer) = std::io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().with_context(|| format!("cannot run `{shown}`"))?;
        // The pipe ends when the last writer is gone, and the command holds two.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        for text in BufReader::new(reader).split(b'\n') {
            let text = String::from_utf8_lossy(&text?).into_owned();
            eprintln!("{text}");
            line(&text);
        }
        Ok(child.wait()?.success())
    }

    /// Lists the folders whose Rust code is a workspace of its own, built for the lab; witnesses too.
    pub fn guests(&self) -> Result<Vec<PathBuf>> {
        let mut guests = GUESTS_OF_TESTS.map(|path| self.root.join(path)).to_vec();
        for folder in ["plans", "tests/interop"] {
            for entry in std::fs::read_dir(self.root.join(folder))? {
                let path = entry?.path();
                // A plan in several languages has its Rust in a folder of its own.
                let found =
                    [path.clone(), path.join("rust")].into_iter().filter(|path| path.join("Cargo.toml").exists());
                guests.extend(found);
            }
        }
        guests.sort();
        Ok(guests)
    }
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(program).chain(command.get_args()).map(|s| s.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
