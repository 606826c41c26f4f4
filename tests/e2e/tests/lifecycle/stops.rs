//! Nodes that do not die but stand still, and disks that take nothing any more.

use std::path::{Path, PathBuf};
use std::process::Command;

use iptl_e2e::beside::signal;
use iptl_e2e::{Foreground, Home, Lab, Node, is_alive, not_run, until};

use super::{Plan, passed_once, reaches, receipts, submit, watch};

/// Waits until a lablet runs nothing: what it still holds has ended, and waits for somebody to hear of it.
#[track_caller]
fn runs_nothing(lablet: &Node) {
    until("a lablet that runs nothing", || {
        let status = lablet.run(&["status", "--json"]).json();
        status["running"].as_array()?.iter().all(|cell| cell["ended"] == cell["instances"]).then_some(())
    });
}

#[test]
fn a_lablet_that_stands_still_for_longer_than_its_lease_loses_its_instances_and_ends_them() {
    let lab = Lab::start(2);
    let plan = Plan::new(2);
    let folder = plan.write(&lab);
    let execution = submit(&lab, &folder, "12s");
    reaches(&lab, &execution, "running");
    signal(lab.lablets[0].pid, "STOP");
    let last = watch(&lab, &execution).exits(12).last_json();
    assert_eq!((last["ok"].as_u64(), last["lost"].as_u64()), (Some(1), Some(1)), "{last}");
    assert_eq!(receipts(&lab, &last["result"]).len(), 1, "{last}");
    signal(lab.lablets[0].pid, "CONT");
    runs_nothing(&lab.lablets[0]);
    // It has its place again.
    let next = submit(&lab, &folder, "100ms");
    passed_once(&lab, watch(&lab, &next), plan.instances());
}

#[test]
fn lablets_end_their_instances_when_the_orchestrator_stands_still_for_longer_than_a_lease() {
    let lab = Lab::start(2);
    let plan = Plan::new(2);
    let folder = plan.write(&lab);
    let execution = submit(&lab, &folder, "60s");
    reaches(&lab, &execution, "running");
    signal(lab.orchestrator.pid, "STOP");
    lab.lablets.iter().for_each(runs_nothing);
    signal(lab.orchestrator.pid, "CONT");
    let last = watch(&lab, &execution).last_json();
    let count = |key: &str| last[key].as_u64().unwrap();
    assert_eq!((count("ok"), count("failed") + count("lost")), (0, 2), "{last}");
    // Whoever speaks first after that: the lablets of what they ended, or the orchestrator of leases that ran out.
    for failure in last["failures"].as_array().unwrap() {
        let cause = failure["cause"].as_str().unwrap();
        assert!(cause.contains("lease") || cause.contains("not heard"), "{failure}");
    }
    let receipts = receipts(&lab, &last["result"]);
    assert!(receipts.values().all(|receipt| receipt.attempt == 1), "{receipts:?}");
    let next = submit(&lab, &folder, "100ms");
    passed_once(&lab, watch(&lab, &next), plan.instances());
}

/// A small file system in memory; it goes with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one; none where this user may not.
    fn mount(at: &Path, mebibytes: u32) -> Option<SmallDisk> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={mebibytes}m,mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "iptl-test"]).arg(at).output().unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
            not_run(&format!("no file system can be mounted here: {why}"));
            return None;
        }
        Some(SmallDisk(at.to_owned()))
    }

    /// Leaves no byte free: a file named `filler` has them.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        let error = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A node that a failed test left may hold it: it is taken away for all others, and goes with that node.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Directories that nobody may change for a while; they can be removed when the value goes.
struct Unwritable(Vec<PathBuf>);

impl Unwritable {
    fn set(&self, flag: &str) -> Result<(), String> {
        let output = Command::new("chattr").arg(flag).args(&self.0).output().map_err(|e| e.to_string())?;
        output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Unwritable {
    fn drop(&mut self) {
        // Where it was done already this changes nothing.
        let _ = self.set("-i");
    }
}

/// Has an orchestrator write nothing from the middle of a run on, and then write again: what it named is carried to its end,
/// what it had sealed is there, and what it cannot keep it refuses with this code and cause.
fn keeps_its_word(lab: &Lab, why: (&str, &str), takes_nothing: impl FnOnce(), takes_again: impl FnOnce()) {
    let plan = Plan::new(2);
    let folder = plan.write(lab);
    let sealed = submit(lab, &folder, "100ms");
    let before = watch(lab, &sealed).exits(0).last_json()["result"].clone();
    let mut named = vec![submit(lab, &folder, "4s")];
    reaches(lab, &named[0], "running");
    takes_nothing();
    let refused = until("a submission that is refused", || {
        let output = lab.run(&["run", &folder, "--no-build", "-p", "watch=100ms", "--detach"]);
        if output.code == 0 {
            named.push(output.word());
            return None;
        }
        Some(output)
    });
    let (code, cause) = why;
    let refused = refused.fails(1, code);
    assert!(refused.stderr.contains(cause), "{refused:?}");
    takes_again();
    // An orchestrator that cannot keep its word ends, for its supervisor to start it again.
    let orchestrator = &lab.orchestrator;
    let _again = (!is_alive(orchestrator.pid)).then(|| Foreground::again(&orchestrator.home, &["--no-docker"]));
    let again = watch(lab, &sealed);
    assert_eq!(again.last_json()["result"], before);
    passed_once(lab, again, plan.instances());
    for execution in &named {
        let last = watch(lab, execution).last_json();
        let count = |key: &str| last[key].as_u64().unwrap_or_else(|| panic!("{execution} has no {key}: {last}"));
        assert_eq!(count("ok") + count("failed") + count("lost"), 2, "{last}");
        let receipts = receipts(lab, &last["result"]);
        assert!(receipts.len() as u64 >= count("ok"), "{receipts:?}");
        assert!(receipts.values().all(|receipt| receipt.attempt == 1), "{receipts:?}");
    }
    until("a run that passes", || {
        let next = submit(lab, &folder, "100ms");
        let last = watch(lab, &next).last_json();
        (last["ok"].as_u64() == Some(2)).then_some(())
    });
}

/// Runs on a lablet that can write nothing from the middle of a run on, and then can again.
fn tells_the_truth(lab: &Lab, takes_nothing: impl FnOnce(), takes_again: impl FnOnce()) {
    let plan = Plan::new(2);
    let folder = plan.write(lab);
    let execution = submit(lab, &folder, "4s");
    reaches(lab, &execution, "running");
    takes_nothing();
    let last = watch(lab, &execution).last_json();
    let count = |key: &str| last[key].as_u64().unwrap();
    assert_eq!(count("ok") + count("failed") + count("lost"), 2, "{last}");
    assert!(count("ok") >= 1, "the other lablet can write: {last}");
    let receipts = receipts(lab, &last["result"]);
    assert!(receipts.len() as u64 >= count("ok"), "{receipts:?}");
    takes_again();
    // A lablet that cannot keep its word ends, for its supervisor to start it again.
    let lablet = &lab.lablets[0];
    let _again = (!is_alive(lablet.pid)).then(|| Foreground::again(&lablet.home, &["--no-docker"]));
    until("a run that passes", || {
        let next = submit(lab, &folder, "100ms");
        let last = watch(lab, &next).last_json();
        (last["ok"].as_u64() == Some(2)).then_some(())
    });
}

#[test]
fn a_lablet_whose_disk_is_full_tells_the_truth_and_goes_on_when_there_is_room() {
    let home = Home::new();
    let Some(disk) = SmallDisk::mount(&home.path().join("lablet-1"), 64) else { return };
    let lab = Lab::start_in(home, 2);
    let filler = disk.0.join("filler");
    tells_the_truth(&lab, || disk.fill(), || std::fs::remove_file(filler).unwrap());
}

#[test]
fn a_lablet_whose_store_is_read_only_tells_the_truth_and_goes_on_when_it_can_write() {
    let lab = Lab::start(2);
    // The owner of the machine is not held up by modes where this runs as root, but by this.
    let dirs = [lab.lablets[0].home.clone(), lab.lablets[0].home.join("store")];
    let store = Unwritable(dirs.to_vec());
    tells_the_truth(&lab, || store.set("+i").unwrap(), || store.set("-i").unwrap());
}

#[test]
fn an_orchestrator_whose_disk_is_full_refuses_what_it_cannot_keep_and_loses_nothing_that_it_named() {
    let home = Home::new();
    // Larger than what nodes leave free for others.
    let Some(disk) = SmallDisk::mount(&home.path().join("orchestrator"), 160) else { return };
    let lab = Lab::start_in(home, 2);
    let filler = disk.0.join("filler");
    let why = ("store.full", "is full");
    keeps_its_word(&lab, why, || disk.fill(), || std::fs::remove_file(filler).unwrap());
}

#[test]
fn an_orchestrator_whose_store_is_read_only_refuses_what_it_cannot_keep_and_loses_nothing_that_it_named() {
    let lab = Lab::start(2);
    let home = &lab.orchestrator.home;
    let store = Unwritable(vec![home.clone(), home.join("store"), home.join("log"), home.join("runs")]);
    let why = ("node.broken", "not permitted");
    keeps_its_word(&lab, why, || store.set("+i").unwrap(), || store.set("-i").unwrap());
}
