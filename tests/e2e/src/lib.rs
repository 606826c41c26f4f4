//! Real processes: labs of the program `iptl` as it was built, each under a temporary directory.
//!
//! [`Lab`] is a lab of separate processes, [`Home`] a directory for one node, [`run`] a command line with its output.
//! Whatever a test does, its processes end with it. [`beside`] runs commands beside the test, [`manual`] executes manuals,
//! [`marks`] counts what instances themselves say, [`witness`] has other people's software.

pub mod beside;
pub mod manual;
pub mod marks;
pub mod witness;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest time that one command may take; a hanging command fails its test with what it said so far.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Returns the program under test, beside the tests in the build folder.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let program = test.ancestors().nth(2).expect("tests stand in target/PROFILE/deps").join("iptl");
    assert!(program.exists(), "{} is not built: run `cargo build --workspace` first", program.display());
    program
}

/// Returns the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two levels below the root").to_path_buf()
}

/// A directory for one node, removed at the end.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Default for Home {
    fn default() -> Home {
        Home::new()
    }
}

impl Home {
    /// Makes an empty one.
    pub fn new() -> Home {
        Home { dir: tempfile::Builder::new().prefix("iptl-").tempdir().expect("a temporary directory") }
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a command line on this home.
    pub fn iptl(&self, args: &[&str]) -> Command {
        iptl(self.path(), args)
    }

    /// Runs a command line on this home.
    pub fn run(&self, args: &[&str]) -> Output {
        run(&mut self.iptl(args))
    }

    /// Returns how many bytes the packs of its store have, as a look at the disk tells.
    pub fn packed(&self) -> u64 {
        let files = std::fs::read_dir(self.path().join("store")).into_iter().flatten().flatten();
        let packs = files.filter(|file| file.path().extension().is_some_and(|end| end == "pack"));
        // One may go between the list and the look.
        packs.map(|file| file.metadata().map_or(0, |metadata| metadata.len())).sum()
    }
}

/// Returns a command line on a home, with nothing of the caller's own settings.
pub fn iptl(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("--home").arg(home).args(args).stdin(Stdio::null());
    for name in ["IPTL_HOME", "IPTL_LOG", "NO_COLOR", "CLICOLOR_FORCE", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command
}

/// What a command line said and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Exit code; 128 and the signal where one ended it.
    pub code: i32,
    /// The answer.
    pub stdout: String,
    /// The story.
    pub stderr: String,
}

impl Output {
    /// Fails the test unless the exit is `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Output {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails the test unless it ended with this exit, named this error code, and said what to do.
    #[track_caller]
    pub fn fails(self, exit: i32, code: &str) -> Output {
        let output = self.exits(exit);
        assert!(
            output.stderr.lines().any(|line| line.trim() == code || line.trim().starts_with(&format!("{code} "))),
            "no error code `{code}` in:\n{}",
            output.stderr
        );
        assert!(output.stderr.contains("help:"), "no help in:\n{}", output.stderr);
        output
    }

    /// Returns the answer as one JSON object.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in {}{}", self.stdout, self.stderr))
    }

    /// Returns the last line of the answer as a JSON object.
    #[track_caller]
    pub fn last_json(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {}{}", self.stdout, self.stderr))
    }

    /// Returns all lines of the answer as JSON.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let line =
            |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {}{}", self.stdout, self.stderr));
        self.stdout.lines().map(line).collect()
    }

    /// Returns the answer where it is one word.
    #[track_caller]
    pub fn word(&self) -> String {
        let text = self.stdout.trim();
        assert!(!text.is_empty() && !text.contains(char::is_whitespace), "{:?} is not one word", self.stdout);
        text.to_owned()
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let out = collect(child.stdout.take().expect("it is piped"));
    let err = collect(child.stderr.take().expect("it is piped"));
    let ended = wait(&mut child, LIMIT);
    if ended.is_none() {
        // It has not ended, so there is something to kill.
        child.kill().expect("the child is ours");
        child.wait().expect("the child is ours");
    }
    let (stdout, stderr) = (out.join().expect("reading does not panic"), err.join().expect("reading does not panic"));
    let Some(code) = ended else { panic!("{command:?} took over {LIMIT:?}\nstdout:\n{stdout}\nstderr:\n{stderr}") };
    Output { code, stdout, stderr }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error still tells something.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for a process; returns its exit code, or none where it still runs after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks again until there is an answer; fails the test after a minute.
#[track_caller]
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    until_within(Duration::from_secs(60), what, ask)
}

/// Asks again until there is an answer; fails the test after so long.
#[track_caller]
pub fn until_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not come about in {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns bytes without repetition, the same at every call, so that no two blocks of them are equal.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// Says that the test which calls it is not run here, where nobody keeps it for a test that failed. Fails it where `CI` is
/// set: there all tests are run, and one that was not has shown nothing.
#[track_caller]
pub fn not_run(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "this test cannot be run, and CI is set: {why}");
    left_out(why);
}

/// Says that the test which calls it needs something that nobody has to have, and is not run, also where `CI` is set.
pub fn left_out(why: &str) {
    use std::io::Write as _;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _closed = writeln!(std::io::stderr(), "NOT RUN: {test}: {why}");
}

/// Tells whether a test that needs a container engine has failed where there is none.
pub fn docker_is_required() -> bool {
    std::env::var_os("CI").is_some() || std::env::var_os("IPTL_DOCKER").is_some_and(|value| value == "required")
}

/// One node of a lab, as `dev up --json` tells it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Peer ID.
    pub peer: String,
    /// Addresses, each with the peer ID.
    pub addrs: Vec<String>,
    /// Its home.
    pub home: PathBuf,
    /// Its process.
    pub pid: u32,
}

impl Node {
    fn of(value: &Value) -> Node {
        let text = |key: &str| value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}")).to_owned();
        let addrs = value["addrs"].as_array().into_iter().flatten();
        Node {
            peer: text("peer"),
            addrs: addrs.filter_map(|a| a.as_str().map(str::to_owned)).collect(),
            home: PathBuf::from(text("home")),
            pid: u32::try_from(value["pid"].as_u64().expect("a process ID")).expect("process IDs are small"),
        }
    }

    /// Runs a command line on this node.
    pub fn run(&self, args: &[&str]) -> Output {
        run(&mut iptl(&self.home, args))
    }

    /// Ends the process at once, as a power cut does.
    pub fn kill(&self) {
        kill(self.pid);
    }
}

/// A lab of separate processes; they end with it.
pub struct Lab {
    home: Home,
    /// The orchestrator.
    pub orchestrator: Node,
    /// The lablets.
    pub lablets: Vec<Node>,
}

impl Lab {
    /// Starts an orchestrator and lablets, which run no containers: what a test says of them holds on any machine.
    #[track_caller]
    pub fn start(lablets: u32) -> Lab {
        Lab::start_with(lablets, &["--no-docker"])
    }

    /// Starts an orchestrator and lablets that run containers too.
    #[track_caller]
    pub fn start_with_docker(lablets: u32) -> Lab {
        Lab::start_with(lablets, &[])
    }

    /// Starts an orchestrator and lablets that run containers, in which their owner allows commands.
    #[track_caller]
    pub fn start_with_exec(lablets: u32) -> Lab {
        let home = Home::new();
        for number in 1..=lablets {
            let lablet = home.path().join(format!("lablet-{number}"));
            std::fs::create_dir_all(&lablet).expect("the home is writable");
            let listen = "listen = [\"/ip4/127.0.0.1/udp/0/quic-v1\", \"/ip4/127.0.0.1/tcp/0\"]";
            std::fs::write(lablet.join("node.toml"), format!("{listen}\n\n[docker]\nexec = true\n"))
                .expect("the home is writable");
        }
        Lab::start_on(home, lablets, &[])
    }

    #[track_caller]
    fn start_with(lablets: u32, args: &[&str]) -> Lab {
        Lab::start_on(Home::new(), lablets, args)
    }

    /// Starts an orchestrator and lablets, which run no containers, under a directory that was made ready.
    #[track_caller]
    pub fn start_in(home: Home, lablets: u32) -> Lab {
        Lab::start_on(home, lablets, &["--no-docker"])
    }

    /// Starts an orchestrator and lablets that run containers too, under a directory that was made ready.
    #[track_caller]
    pub fn start_in_with_docker(home: Home, lablets: u32) -> Lab {
        Lab::start_on(home, lablets, &[])
    }

    #[track_caller]
    fn start_on(home: Home, lablets: u32, args: &[&str]) -> Lab {
        let count = lablets.to_string();
        let output = home.run(&[&["dev", "up", "-n", &count, "--json"], args].concat());
        if output.code != 0 {
            stop(home.path());
        }
        let up = output.exits(0).json();
        assert_eq!(up["schema"], "iptl.dev/1");
        let orchestrator = Node::of(&up["orchestrator"]);
        let lablets = up["lablets"].as_array().expect("a list of lablets").iter().map(Node::of).collect();
        Lab { home, orchestrator, lablets }
    }

    /// Runs a command line on the lab.
    pub fn run(&self, args: &[&str]) -> Output {
        self.home.run(args)
    }

    /// Returns a command line on the lab.
    pub fn iptl(&self, args: &[&str]) -> Command {
        self.home.iptl(args)
    }

    /// Returns the directory of the lab.
    pub fn path(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in std::iter::once(&self.orchestrator).chain(&self.lablets) {
                let log = std::fs::read_to_string(node.home.join("node.log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(15)..].join("\n");
                eprintln!("── end of the log of {}:\n{last}", node.home.display());
            }
        }
        stop(self.home.path());
    }
}

/// Ends every node under a directory, by the process IDs that they wrote there.
pub fn stop(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Ok(text) = std::fs::read_to_string(entry.path().join("run.pid"))
            && let Ok(pid) = text.trim().parse()
        {
            kill(pid);
        }
    }
}

/// Ends a process of the program at once, and returns when it is gone; one that has ended meanwhile is gone already.
pub fn kill(pid: u32) {
    let is_node = std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|b| *b == 0).next().is_some_and(|p| p.ends_with(b"iptl")));
    if !is_node {
        return;
    }
    // Where it is gone already there is nothing to do.
    let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline && is_alive(pid) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns whether a process is there and has not ended.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// A node in the foreground, ended with the value.
pub struct Foreground {
    child: Child,
}

impl Foreground {
    /// Starts a node on a home and returns once it answers.
    #[track_caller]
    pub fn start(home: &Path, args: &[&str]) -> Foreground {
        let mut all = vec!["up", "--no-mdns", "--no-docker"];
        all.extend(args);
        if !args.contains(&"--listen") {
            all.extend(["--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]);
        }
        Foreground::spawn(home, &all)
    }

    /// Starts a node as [`again`](Foreground::again) does, in a network namespace of this name.
    #[track_caller]
    pub fn within(network: &str, home: &Path, args: &[&str]) -> Foreground {
        let network = format!("--net=/run/netns/{network}");
        let node = iptl(home, &[&["up"], args].concat());
        Foreground::wait_for(home, behind("nsenter", &[&network, "--"], &node))
    }

    /// Starts a node as [`start`](Foreground::start) does, that sees no `/dev/net`; only root may.
    #[track_caller]
    pub fn without_tun(home: &Path, args: &[&str]) -> Foreground {
        Foreground::wait_for(home, without_tun(iptl(home, &[&["up"], args].concat())))
    }

    #[track_caller]
    fn spawn(home: &Path, args: &[&str]) -> Foreground {
        Foreground::wait_for(home, iptl(home, args))
    }

    #[track_caller]
    fn wait_for(home: &Path, mut command: Command) -> Foreground {
        std::fs::create_dir_all(home).expect("the home is writable");
        let log = std::fs::File::options().create(true).append(true).open(home.join("node.log"));
        let log = log.expect("the home is writable");
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let mut node = Foreground { child: command.spawn().expect("the program starts") };
        until("an answer of the node", || {
            if let Some(code) = wait(&mut node.child, Duration::ZERO) {
                let log = std::fs::read_to_string(home.join("node.log")).unwrap_or_default();
                panic!("the node ended with {code}:\n{log}");
            }
            // One that was killed a moment ago may still hold its socket.
            let pid = std::fs::read_to_string(home.join("run.pid")).unwrap_or_default();
            let is_it = pid.trim() == node.pid().to_string();
            is_it.then(|| std::os::unix::net::UnixStream::connect(home.join("api.sock")).ok()).flatten()
        });
        node
    }

    /// Starts the node of a home again as it was, its ports and all that it is told in `node.toml`, but for `args`.
    #[track_caller]
    pub fn again(home: &Path, args: &[&str]) -> Foreground {
        Foreground::spawn(home, &[&["up"], args].concat())
    }

    /// Returns the process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the process; fails the test after a minute.
    #[track_caller]
    pub fn ended(&mut self) -> i32 {
        until("the end of a node", || wait(&mut self.child, Duration::ZERO))
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // Where it has ended by itself there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has a command see no `/dev/net`, as on a machine whose kernel makes no devices.
pub fn without_tun(command: Command) -> Command {
    let hide = "mount -t tmpfs none /dev/net && exec \"$@\"";
    behind("unshare", &["--mount", "--", "sh", "-c", hide, "sh"], &command)
}

/// Has a command started by another program, with the same environment.
fn behind(program: &str, args: &[&str], wanted: &Command) -> Command {
    let mut command = Command::new(program);
    command.args(args).arg(wanted.get_program()).args(wanted.get_args());
    for (name, value) in wanted.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the child process of the test below is a test that cannot be run.
    const CANNOT_BE_RUN: &str = "IPTL_TEST_CANNOT_BE_RUN";

    #[test]
    fn a_test_that_cannot_be_run_passes_on_a_laptop_and_fails_where_ci_is_set() {
        if std::env::var_os(CANNOT_BE_RUN).is_some() {
            return not_run("nobody has that");
        }
        let tried = |command: &mut Command| {
            let name = "tests::a_test_that_cannot_be_run_passes_on_a_laptop_and_fails_where_ci_is_set";
            run(command.args(["--exact", name]).env(CANNOT_BE_RUN, "1"))
        };
        let exe = std::env::current_exe().expect("a test is a program");
        let laptop = tried(Command::new(&exe).env_remove("CI")).exits(0);
        assert!(laptop.stderr.contains("NOT RUN"), "{laptop:?}");
        let ci = tried(Command::new(&exe).env("CI", "true"));
        assert!(ci.code != 0 && ci.stdout.contains("nobody has that"), "{ci:?}");
    }
}
