//! Ordinary tests that hold the architecture; this library reads the workspace for them.
//!
//! `tests/edges.rs` has the table of which crate may use which, and who may name a heavy crate; `tests/purity.rs` what
//! the pure half must not reach; `tests/files.rs` what every file keeps to, `tests/mutations.rs` that bugs of
//! `cargo xtask mutate` fit the source. A test that fails says where to decide
//! whether the rule or the change is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A crate of the workspace.
#[derive(Clone, Debug)]
pub struct Member {
    /// Package name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Root source files of its targets, those of build scripts aside.
    pub roots: Vec<PathBuf>,
    /// Packages that it names, by kind: `normal`, `dev` or `build`.
    pub uses: BTreeSet<(String, String)>,
}

/// The crates of the workspace, and every package that they stand on here.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Members by name.
    pub members: BTreeMap<String, Member>,
    /// Versions by package name.
    pub packages: BTreeMap<String, BTreeSet<String>>,
}

/// Returns the root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the crate stands two folders deep").to_owned()
}

/// Reads the workspace as cargo resolves it for this machine.
pub fn workspace() -> Workspace {
    let host = run(Command::new("rustc").arg("-vV"));
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    let metadata = run(cargo().args(["metadata", "--format-version", "1", "--filter-platform", host]));
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo writes JSON");
    let inside: BTreeSet<&str> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let mut workspace = Workspace { members: BTreeMap::new(), packages: BTreeMap::new() };
    for package in list(&metadata["packages"]) {
        let name = text(&package["name"]).to_owned();
        workspace.packages.entry(name.clone()).or_default().insert(text(&package["version"]).to_owned());
        if inside.contains(text(&package["id"])) {
            workspace.members.insert(name.clone(), member(name, package));
        }
    }
    workspace
}

fn member(name: String, package: &Value) -> Member {
    let manifest = PathBuf::from(text(&package["manifest_path"]));
    let uses = list(&package["dependencies"])
        .iter()
        .map(|dependency| {
            (dependency["kind"].as_str().unwrap_or("normal").to_owned(), text(&dependency["name"]).to_owned())
        })
        .collect();
    let roots = list(&package["targets"])
        .iter()
        .filter(|target| list(&target["kind"]).iter().all(|kind| text(kind) != "custom-build"))
        .map(|target| PathBuf::from(text(&target["src_path"])))
        .collect();
    Member { name, dir: manifest.parent().expect("a manifest is in a folder").to_owned(), roots, uses }
}

/// Returns the names of all packages that a crate is built of on this machine, with its own features alone.
pub fn built_of(package: &str) -> BTreeSet<String> {
    let tree =
        run(cargo().args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--package", package]));
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Returns the files of the repository that are not ignored, relative to its root.
pub fn files() -> Vec<PathBuf> {
    let listed = run(Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]));
    listed.lines().map(PathBuf::from).filter(|path| root().join(path).is_file()).collect()
}

/// Returns a file of the repository as text; none where it is not text.
pub fn read(path: &Path) -> Option<String> {
    String::from_utf8(std::fs::read(root().join(path)).expect("the file is listed")).ok()
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["--offline", "--locked"]);
    command
}

fn run(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().expect("the program can be started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the program writes text")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().expect("cargo's metadata has text here")
}
