//! Published vectors: data of other projects, read from where they lie and never copied here.
//!
//! They are looked for in `IPTL_VECTORS`, or in `../shared/vectors` beside the checkout. A clone without them passes and
//! says so; with `CI` set it fails.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Returns a folder or file of the vectors, or `None` where they are missing.
pub(crate) fn vectors(part: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let root = std::env::var_os("IPTL_VECTORS").map_or_else(beside, PathBuf::from);
    let path = root.join(part);
    if path.exists() {
        return Some(path);
    }
    let missing = format!("NOT TESTED, vectors are missing: there is no {}; set IPTL_VECTORS", path.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    // Not by the macro, whose output nobody sees where the test passes.
    writeln!(std::io::stderr(), "{missing}").expect("there is a standard error");
    None
}

/// Reads a file of JSON.
pub(crate) fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&read(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads a file as text.
pub(crate) fn text(path: &Path) -> String {
    String::from_utf8(read(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Lists a folder, sorted, without what is hidden.
pub(crate) fn list(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    paths
}

/// Decodes hexadecimal text.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text:?} is half a byte short");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
}
