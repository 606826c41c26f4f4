//! The log of an execution: printed, checked, and what is said of one that was changed.

use std::path::{Path, PathBuf};

use iptl_e2e::{Home, Lab, repository};
use serde_json::Value;

/// Finds the file that holds the log of an execution.
fn find_log(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        let found = if path.is_dir() { find_log(&path, name) } else { path.ends_with(name).then_some(path) };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Returns where each record of a log begins: its length stands in four bytes before 32 of hash.
fn begins(log: &[u8]) -> Vec<usize> {
    let mut begins = vec![0];
    while let Some(header) = log.get(begins[begins.len() - 1]..).and_then(|rest| rest.first_chunk::<4>()) {
        begins.push(begins[begins.len() - 1] + 36 + u32::from_be_bytes(*header) as usize);
    }
    begins
}

#[test]
fn a_log_is_printed_and_every_change_of_it_is_named() {
    let lab = Lab::start(2);
    let plan = repository().join("plans/ping").display().to_string();
    let run = ["run", &plan, "--no-build", "-g", "node=4", "-p", "rounds=1", "--json"];
    let first = lab.run(&run).exits(0).last_json();
    let second = lab.run(&run).exits(0).last_json();

    // By name, from the orchestrator.
    let told = lab.run(&["audit", "last"]).exits(0);
    for what in ["submitted", "placed", "granted", "accepted", "started", "received", "sealed"] {
        assert!(told.stdout.contains(what), "{what}: {}", told.stdout);
    }
    let told = lab.run(&["audit", first["execution"].as_str().unwrap(), "--json"]).exits(0);
    let rows: Vec<Value> = told.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, facts) = rows.split_last().unwrap();
    assert_eq!(last["facts"].as_u64(), Some(facts.len() as u64));
    assert_eq!((last["over"].as_bool(), last["torn"].as_bool()), (Some(true), Some(false)));
    assert_eq!(last["head"], facts[facts.len() - 1]["fact"]);
    assert!(facts.iter().enumerate().all(|(seq, fact)| fact["seq"] == seq));
    lab.run(&["audit", "x-nobody"]).exits(3);

    // From a file, on another computer.
    let elsewhere = Home::new();
    let load = |run: &Value| {
        let name = format!("{}.log", run["execution"].as_str().unwrap());
        std::fs::read(find_log(lab.path(), &name).expect("the orchestrator wrote it")).unwrap()
    };
    let (one, two) = (load(&first), load(&second));
    let file = elsewhere.path().join("copy.log");
    let audit = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        elsewhere.run(&["audit", &file.display().to_string(), "--json"])
    };
    let whole = audit(&one).exits(0).last_json();
    assert_eq!(whole["head"], last["head"]);
    let begins = begins(&one);
    let count = begins.len() - 1;
    assert_eq!(count, facts.len());

    // Cut anywhere: what is whole stands.
    for n in 1..count {
        for cut in [begins[n], begins[n] + 1, begins[n] + 36, begins[n + 1] - 1] {
            let cut_off = audit(&one[..cut]).exits(0).last_json();
            assert_eq!(cut_off["facts"].as_u64(), Some(n as u64), "cut at {cut}");
            assert_eq!(cut_off["torn"].as_bool(), Some(cut != begins[n]), "cut at {cut}");
        }
    }
    audit(&one[..begins[1] - 1]).fails(1, "log.empty");
    audit(b"").fails(1, "log.empty");
    // A bit flipped anywhere, be it in a length, a hash or a fact.
    for n in 1..count {
        for at in [begins[n], begins[n] + 2, begins[n] + 20, begins[n] + 36, begins[n + 1] - 1] {
            let mut flipped = one.clone();
            flipped[at] ^= 1;
            audit(&flipped).fails(1, "log.damaged");
        }
    }
    // Whole facts that are of another log, or missing, or there twice.
    let other = [&one[..begins[2]], &two].concat();
    audit(&other).fails(1, "log.other-execution");
    audit(&[&one[..begins[2]], &one[begins[3]..]].concat()).fails(1, "log.facts-missing");
    audit(&[&one[..begins[2]], &one[begins[1]..]].concat()).fails(1, "log.facts-missing");
    elsewhere.run(&["audit", "nowhere.log"]).fails(3, "log.unreadable");
}
