//! Commands that run beside a test, whose words are read while they speak.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::{LIMIT, Output, until, wait};

/// A command line that runs beside the test; it ends with the value.
pub struct Beside {
    child: Child,
    input: Option<ChildStdin>,
    said: [Arc<Mutex<Vec<u8>>>; 2],
    readers: Vec<JoinHandle<()>>,
}

impl Beside {
    /// Starts a command.
    pub fn start(command: &mut Command) -> Beside {
        Beside::spawn(command.stdin(Stdio::null()))
    }

    /// Starts a command that reads what is typed.
    pub fn start_with_input(command: &mut Command) -> Beside {
        Beside::spawn(command.stdin(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> Beside {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let said: [Arc<Mutex<Vec<u8>>>; 2] = Default::default();
        let readers = vec![
            read(child.stdout.take().expect("it is piped"), said[0].clone()),
            read(child.stderr.take().expect("it is piped"), said[1].clone()),
        ];
        let input = child.stdin.take();
        Beside { child, input, said, readers }
    }

    /// Returns what it said so far: the answer and the story.
    pub fn said(&self) -> (String, String) {
        let text = |i: usize| {
            let bytes = self.said[i].lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        (text(0), text(1))
    }

    /// Waits until it has said something, on either side; fails the test after a minute or where it ends before.
    #[track_caller]
    pub fn says(&mut self, what: &str) {
        until(&format!("{what:?}"), || {
            let over = wait(&mut self.child, std::time::Duration::ZERO);
            let (stdout, stderr) = self.said();
            if stdout.contains(what) || stderr.contains(what) {
                return Some(());
            }
            assert!(over.is_none(), "it ended with {over:?} and never said {what:?}\n{stdout}\n{stderr}");
            None
        });
    }

    /// Types something.
    #[track_caller]
    pub fn types(&mut self, text: &str) {
        let input = self.input.as_mut().expect("it was started with input");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("it reads");
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Output {
        self.input = None;
        let ended = wait(&mut self.child, LIMIT);
        let Some(code) = ended else {
            let (stdout, stderr) = self.said();
            panic!("it took over {LIMIT:?}\nstdout:\n{stdout}\nstderr:\n{stderr}");
        };
        for reader in std::mem::take(&mut self.readers) {
            reader.join().expect("reading does not panic");
        }
        let (stdout, stderr) = self.said();
        Output { code, stdout, stderr }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Where it has ended by itself there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that the test, or a node that the test started, has started.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().expect("kill is everywhere");
    assert!(status.success(), "cannot send {name} to {pid}");
}

/// Returns the processes that a process has started.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn read(mut from: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut part = [0; 8192];
        while let Ok(count @ 1..) = from.read(&mut part) {
            into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..count]);
        }
    })
}
