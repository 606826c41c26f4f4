//! Every code has an example that triggers it, the text that is shown for it, and an explanation.
//!
//! The examples stand in `tests/mistakes/CODE.toml`, the texts beside them. `IPTL_BLESS=1` rewrites the texts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use iptl_dag::model::InstanceId;
use iptl_plans::{CODES, Diagnostic, RunOptions, explain, make_run, parse};

use crate::run::{PLAN_CID, workload};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes")
}

/// Parses the example and, where its first line asks for it, makes a run of it.
fn mistakes(source: &str) -> Vec<Diagnostic> {
    let manifest = match parse(source, "plan.toml") {
        Ok(manifest) => manifest,
        Err(mistakes) => return mistakes,
    };
    let Some(line) = source.lines().next().and_then(|line| line.strip_prefix("# run")) else { return Vec::new() };
    let mut options = RunOptions::default();
    let mut workloads = BTreeMap::from([("node".to_owned(), workload())]);
    let cids = BTreeMap::from([("node".to_owned(), workload().0)]);
    let mut words = line.split_whitespace();
    while let Some(flag) = words.next() {
        let mut pair = || words.next().and_then(|pair| pair.split_once('=')).expect("NAME=VALUE");
        match flag {
            "-g" => {
                let (name, size) = pair();
                options.groups.insert(name.to_owned(), size.parse().expect("a size"));
            }
            "-p" => {
                let (name, value) = pair();
                options.params.insert(name.to_owned(), value.to_owned());
            }
            "--case" => options.case = words.next().map(str::to_owned),
            "--pcap" => {
                let (group, index) = words.next().and_then(|id| id.split_once('/')).expect("GROUP/N");
                let id = InstanceId { group: group.to_owned(), index: index.parse().expect("an index") };
                options.captures.insert(id);
            }
            "--without-workload" => workloads.clear(),
            other => panic!("{other}"),
        }
    }
    let plan = manifest.to_plan(&cids, &BTreeMap::new(), None).expect("all workloads have CIDs");
    make_run(&plan, PLAN_CID.parse().expect("a CID"), &workloads, &options).err().unwrap_or_default()
}

fn example(code: &str) -> String {
    let source = std::fs::read_to_string(directory().join(format!("{code}.toml")))
        .unwrap_or_else(|error| panic!("no example for {code}: {error}"));
    match source.lines().next().and_then(|line| line.strip_prefix("# grow to ")) {
        Some(size) => {
            let size: usize = size.parse().expect("a size");
            format!("{source}{}", "#\n".repeat(size / 2))
        }
        None => source,
    }
}

#[test]
fn every_code_is_triggered_and_shown_as_its_snapshot_says() {
    let mut differing = Vec::new();
    for code in CODES {
        let source = example(code);
        let found = mistakes(&source);
        assert!(found.iter().any(|mistake| mistake.code == *code), "{code} is not triggered: {found:#?}");
        for mistake in &found {
            assert!(CODES.contains(&mistake.code));
            assert!(mistake.span.end <= source.len() && mistake.span.start <= mistake.span.end, "{mistake:?}");
            assert!(!mistake.message.ends_with('.'), "{mistake:?}");
        }
        let shown: Vec<String> = found.iter().map(|mistake| mistake.render("plan.toml", &source)).collect();
        let shown = shown.join("\n");
        let snapshot = directory().join(format!("{code}.txt"));
        if std::env::var_os("IPTL_BLESS").is_some() {
            std::fs::write(&snapshot, &shown).expect("snapshots can be written");
        }
        if std::fs::read_to_string(&snapshot).ok().as_deref() != Some(&*shown) {
            differing.push(format!("--- {code}\n{shown}"));
        }
    }
    assert!(differing.is_empty(), "these differ from their snapshots:\n{}", differing.join("\n"));
}

#[test]
fn every_code_is_explained_once_and_nothing_else_is() {
    for code in CODES {
        let text = explain(code).unwrap_or_else(|| panic!("{code} is not explained"));
        assert!(text.len() > 60, "{code} is explained in {} bytes", text.len());
    }
    assert_eq!(explain("e0201"), explain("E0201"));
    assert_eq!(explain("E9999"), None);
    let page = include_str!("../../docs/spec/plan-errors.md");
    let headings: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("## ")).filter_map(|line| line.split(':').next()).collect();
    assert_eq!(headings, CODES);
}

#[test]
fn examples_and_snapshots_belong_to_codes() {
    let known: BTreeSet<String> =
        CODES.iter().flat_map(|code| [format!("{code}.toml"), format!("{code}.txt")]).collect();
    let files: BTreeSet<String> = std::fs::read_dir(directory())
        .expect("the directory is there")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files, known);
}

#[test]
fn all_mistakes_of_all_parts_are_found_in_one_pass() {
    let source = std::fs::read_to_string(directory().join("E0205.toml")).expect("the example is there");
    let source = source.replace("version", "verison").replace("count = 3", "count = 0");
    let codes: Vec<&str> = mistakes(&source).iter().map(|mistake| mistake.code).collect();
    assert_eq!(codes, ["E0202", "E0201", "E0205", "E0205", "E0207", "E0205", "E0205", "E0205"]);
}
