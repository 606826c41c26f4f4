//! Series that cannot be submitted whole: none of them goes on.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use iptl_e2e::beside::Beside;
use iptl_e2e::{Foreground, Home, Lab, iptl, kill, run, until};
use iptl_wire::control::{MAX_FRAME_SIZE, Request};
use iptl_wire::frame;
use serde_json::Value;

use super::{turns, watch};

/// What becomes of a submission on the way to the node.
#[derive(Clone, Copy, Debug)]
enum Third {
    /// The node hears nothing of it.
    Unheard,
    /// The node hears it, and its answer reaches nobody.
    Unanswered,
    /// It is held for as long as the test goes on.
    Held,
    /// The node dies of it, and is this process.
    Deadly(u32),
}

/// Stands between a command line and a node, and passes everything on but the third submission: that one comes when those
/// before it run.
struct Between {
    home: Home,
    submissions: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Between {
    #[track_caller]
    fn start(node: &Path, third: Third) -> Between {
        let (home, submissions, over) = (Home::new(), Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let listener = UnixListener::bind(home.path().join("api.sock")).unwrap();
        let (submitted, stop, home_of_node) = (submissions.clone(), over.clone(), node.to_owned());
        let node = node.join("api.sock");
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            for asker in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let mut asker = asker.unwrap();
                // Who only looks whether a node is here says nothing.
                let Some((bytes, request)) = request(&mut asker) else { continue };
                let count = match request {
                    Request::Submit { .. } => submitted.fetch_add(1, Ordering::SeqCst) + 1,
                    _ => 0,
                };
                if count == 3 {
                    until("two that run", || (running(&home_of_node) == 2).then_some(()));
                }
                if let (Third::Deadly(pid), 3) = (third, count) {
                    kill(pid);
                }
                // Whoever asks a node that is dead is cut off.
                let Ok(mut node) = UnixStream::connect(&node) else { continue };
                match third {
                    Third::Unheard if count == 3 => {}
                    Third::Unanswered if count == 3 => {
                        // From here on the node can say nothing.
                        node.shutdown(Shutdown::Read).unwrap();
                        node.write_all(&bytes).unwrap();
                        // It closes when it is done with the request: until then nobody else is heard.
                        until("the end of a request", || node.write_all(&[0]).is_err().then_some(()));
                    }
                    Third::Held if count == 3 => held.push(asker),
                    _ => {
                        node.write_all(&bytes).unwrap();
                        pass_on(asker.try_clone().unwrap(), node.try_clone().unwrap());
                        pass_on(node, asker);
                    }
                }
            }
        });
        Between { home, submissions, over, thread: Some(thread) }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // It looks at that when somebody comes.
        let _woken = UnixStream::connect(self.home.path().join("api.sock"));
        if let Some(thread) = self.thread.take() {
            let _its_panic_failed_the_command = thread.join();
        }
    }
}

/// Reads the request of a connection, where there is one.
fn request(from: &mut UnixStream) -> Option<(Vec<u8>, Request)> {
    let mut header = [0; frame::HEADER_SIZE];
    from.read_exact(&mut header).ok()?;
    let mut body = vec![0; frame::length(header, MAX_FRAME_SIZE).unwrap()];
    from.read_exact(&mut body).unwrap();
    let request = frame::decode(&body).unwrap();
    Some(([&header[..], &body].concat(), request))
}

/// Passes on what one side says until it ends.
fn pass_on(mut from: UnixStream, mut to: UnixStream) {
    std::thread::spawn(move || {
        let _either_is_gone = std::io::copy(&mut from, &mut to);
        let _gone = to.shutdown(Shutdown::Write);
    });
}

/// Returns the rows of all runs that the lab of a node knows.
#[track_caller]
fn rows(node: &Path) -> Vec<Value> {
    run(&mut iptl(node, &["ls", "runs", "--json"])).exits(0).json_lines()
}

/// Returns how many of them run.
#[track_caller]
fn running(node: &Path) -> usize {
    let runs = |row: &&Value| row["state"].as_str().is_some_and(|state| state.starts_with("running"));
    rows(node).iter().filter(runs).count()
}

/// Asserts that so many executions were submitted beside those that are known, that each was cancelled, two while they ran,
/// and that nothing runs any more; returns all that are known now.
#[track_caller]
fn all_were_cancelled(lab: &Lab, submitted: usize, known: &[String]) -> Vec<String> {
    let rows = rows(&lab.orchestrator.home);
    let all: Vec<String> = rows.iter().map(|row| row["execution"].as_str().unwrap().to_owned()).collect();
    assert_eq!(all.len() - known.len(), submitted, "{rows:?}");
    let mut sealed = 0;
    for execution in all.iter().filter(|execution| !known.contains(execution)) {
        let watched = watch(lab, execution);
        assert!(watched.last_json().to_string().contains("cancelled"), "{}", watched.stdout);
        sealed += usize::from(watched.code == 12);
    }
    assert!(sealed >= 2, "{sealed} of {submitted}");
    let status = lab.run(&["status", "--json"]).exits(0).json();
    assert_eq!(status["running"], serde_json::json!([]), "{status}");
    until("a lablet that holds nothing", || {
        let lablets = lab.run(&["ls", "lablets", "--json"]).exits(0).json_lines();
        lablets.iter().all(|row| row["free_slots"] == row["slots"]).then_some(())
    });
    all
}

/// Returns the command line of a series of four that run until they are stopped.
fn series(plan: &str) -> [&str; 7] {
    ["run", plan, "--no-build", "--repeat", "4", "-p", "watch=100s"]
}

#[test]
fn a_series_of_which_one_submission_fails_is_withdrawn_and_nothing_of_it_goes_on() {
    let lab = Lab::start(1);
    let plan = turns::plan(&lab, "resting", 1, "", "");
    let developer = Home::new();
    let _node = Foreground::start(developer.path(), &[]);
    let ticket = lab.run(&["invite", "--role", "developer", "-q"]).exits(0).word();
    developer.run(&["join", &ticket]).exits(0);

    let mut known = Vec::new();
    for home in [&lab.orchestrator.home, developer.path()] {
        for (third, submitted) in [(Third::Unheard, 2), (Third::Unanswered, 3)] {
            let between = Between::start(home, third);
            let output = between.home.run(&series(&plan)).fails(1, "node.gone");
            assert_eq!(output.stdout, "", "{third:?}");
            assert_eq!(between.submissions.load(Ordering::SeqCst), 3, "{third:?}: the fourth is not submitted");
            let told = output.stderr.matches("cancelled; what it has is being sealed").count();
            assert_eq!(told, 2, "{third:?}: {}", output.stderr);
            known = all_were_cancelled(&lab, submitted, &known);
        }
    }
}

#[test]
fn a_series_that_is_interrupted_while_it_is_submitted_is_withdrawn() {
    let lab = Lab::start(1);
    let plan = turns::plan(&lab, "resting", 1, "", "");
    let between = Between::start(&lab.orchestrator.home, Third::Held);
    let command = Beside::start(&mut between.home.iptl(&[&series(&plan)[..], &["--json"]].concat()));
    until("a third submission, while two run", || {
        let submitted = between.submissions.load(Ordering::SeqCst);
        (submitted == 3 && running(&lab.orchestrator.home) == 2).then_some(())
    });
    command.signal("INT");
    let output = command.end().exits(130);
    let known = all_were_cancelled(&lab, 2, &[]);
    let told = output.json_lines();
    assert_eq!(told.len(), 2, "{}", output.stdout);
    for cancelled in &told {
        let is = (cancelled["schema"].as_str(), cancelled["over"].as_bool());
        assert_eq!(is, (Some("iptl.cancelled/1"), Some(false)), "{cancelled}");
        assert!(known.iter().any(|execution| cancelled["execution"] == execution.as_str()), "{cancelled}");
    }
}

#[test]
fn a_series_whose_node_dies_while_it_is_submitted_is_withdrawn_when_the_node_is_back() {
    let lab = Lab::start(1);
    let plan = turns::plan(&lab, "resting", 1, "", "");
    let between = Between::start(&lab.orchestrator.home, Third::Deadly(lab.orchestrator.pid));
    let mut command = Beside::start(&mut between.home.iptl(&series(&plan)));
    command.says("the node went away");
    let _again = Foreground::again(&lab.orchestrator.home, &[]);
    let output = command.end().fails(1, "node.gone");
    assert_eq!(output.stderr.matches("cancelled; what it has is being sealed").count(), 2, "{}", output.stderr);
    all_were_cancelled(&lab, 2, &[]);
}
