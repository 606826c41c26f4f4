//! What every file keeps to.

use std::ffi::OsStr;
use std::path::Path;

use iptl_tidy::{files, read, root, workspace};

#[test]
fn every_crate_inherits_the_lints() {
    for member in workspace().members.values() {
        let manifest = member.dir.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).expect("cargo has just read it");
        assert!(text.contains("[lints]\nworkspace = true"), "{} does not inherit the lints", manifest.display());
    }
}

#[test]
fn every_source_file_begins_with_a_map() {
    let mut wrong = Vec::new();
    for member in workspace().members.values() {
        for root_file in &member.roots {
            let text = std::fs::read_to_string(root_file).expect("cargo has just listed it");
            if !text.starts_with("//!") {
                let path = root_file.strip_prefix(root()).unwrap_or(root_file);
                wrong.push(path.display().to_string());
            }
        }
    }
    for path in files().iter().filter(|path| path.extension() == Some(OsStr::new("rs"))) {
        let in_source = path.components().any(|part| part.as_os_str() == "src");
        if in_source && !read(path).is_some_and(|text| text.starts_with("//!")) {
            wrong.push(path.display().to_string());
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "no //! at the top, to say what is there and what is not:\n{}", wrong.join("\n"));
}

#[test]
fn every_shipped_plan_is_whole() {
    let mut plans = 0;
    for entry in std::fs::read_dir(root().join("plans")).expect("plans/ is there") {
        let dir = entry.expect("it can be listed").path();
        let is_code = ["src", "sdk", "stack", "tests", "target"].iter().any(|name| dir.ends_with(name));
        if dir.is_dir() && !is_code && dir.join("Cargo.toml").is_file() {
            for file in ["plan.toml", "Cargo.lock", "README.md"] {
                assert!(dir.join(file).is_file(), "{} has no {file}", dir.display());
            }
            plans += 1;
        }
    }
    assert!(plans > 0, "no plan is shipped");
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut wrong = Vec::new();
    for path in files().iter().filter(|path| path.extension() == Some(OsStr::new("md"))) {
        let text = read(path).unwrap_or_default();
        for link in links(&text) {
            let target = link.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || target.starts_with("mailto:");
            if target.is_empty() || outside {
                continue;
            }
            let base = root().join(path.parent().unwrap_or(Path::new("")));
            if target.starts_with('/') || !base.join(target).exists() {
                wrong.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

/// Returns the targets of a page's links, those in code aside.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut fence = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fence = !fence;
        }
        // Every second part between backticks is code.
        let prose = line.split('`').step_by(2).collect::<Vec<_>>();
        for part in prose.iter().filter(|_| !fence) {
            if let Some((_, target)) = part.split_once("](")
                && let Some((target, _)) = target.split_once(')')
            {
                links.push(target);
            }
        }
    }
    links
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let homes = ["work", "root"].map(|name| format!("/{name}/"));
    let mut wrong = Vec::new();
    for path in files() {
        let Some(text) = read(&path) else { continue };
        for (number, line) in (1..).zip(text.lines()) {
            for home in &homes {
                let named = line.match_indices(home.as_str()).any(|(at, _)| {
                    // After a name it is part of a relative path, alone it is one of a machine.
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}>".contains(c))
                });
                if named {
                    wrong.push(format!("{}:{number}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "paths of one machine:\n{}", wrong.join("\n"));
}

#[test]
fn the_top_level_is_the_agreed_one() {
    let agreed = ["Cargo.toml", "Cargo.lock", "README.md", "rust-toolchain.toml", "LICENSE-APACHE", "LICENSE-MIT"];
    let folders = ["artifacts", "dag", "docs", "node", "plans", "scheduler", "tests"];
    for path in files() {
        let top = path.iter().next().and_then(OsStr::to_str).unwrap_or_default();
        let known = top.starts_with('.') || agreed.contains(&top) || folders.contains(&top);
        assert!(known, "{} stands at the top level, which is fixed", path.display());
    }
}
