//! Commands in running instances: through the control API, the orchestrator and the lablet's own connection.

use std::path::Path;
use std::process::Command;

use iptl_e2e::beside::Beside;
use iptl_e2e::{Home, Lab, Output, docker_is_required, noise, repository, run, until};
use serde_json::Value;

/// Programs of this machine that the image holds.
const PROGRAMS: [&str; 4] = ["sh", "sleep", "cat", "stty"];

const PLAN: &str = r#"
[plan]
name = "touched"
version = "0.1.0"

[workloads.shell]
runner = "docker"
rootfs = "rootfs"

[workloads.component]
runner = "wasm"
path = "mixed.wasm"

[cases.wait]
timeout = "3m"

[cases.wait.groups.open]
workload = "shell"
count = { default = 2, min = 1, max = 2 }
args = ["-c", "while [ ! -e /tmp/done ]; do sleep 0.1; done"]
resources = { wall = "3m" }

[cases.wait.groups.open.container]
entrypoint = ["/bin/sh"]
exec = true
tmpfs = { "/tmp" = "4MiB" }

[cases.wait.groups.closed]
workload = "shell"
count = { default = 0, min = 0, max = 1 }
args = ["-c", "while :; do sleep 0.1; done"]

[cases.wait.groups.closed.container]
entrypoint = ["/bin/sh"]

[cases.wait.groups.component]
workload = "component"
count = { default = 0, min = 0, max = 1 }

[cases.wait.params.rounds]
type = "int"
default = 1
"#;

/// Tells whether containers can be run; where they must be, they can.
pub(crate) fn is_there_an_engine() -> bool {
    let found = Home::new().run(&["doctor", "--json"]).stdout;
    let docker = found.lines().find(|line| line.contains("\"docker\"")).unwrap_or_default().to_owned();
    let usable = docker.contains("\"state\":\"ok\"");
    assert!(usable || !docker_is_required(), "no engine can be used: {docker}");
    if !usable {
        eprintln!("NOT RUN, no engine can be used: {docker}");
    }
    usable
}

/// Writes the plan with an image of a shell and some programs of this machine.
pub(crate) fn write_plan(dir: &Path) -> String {
    write_shell(&dir.join("rootfs"));
    std::fs::copy(repository().join("plans/mixed/target/wasm32-wasip2/release/mixed.wasm"), dir.join("mixed.wasm"))
        .unwrap();
    std::fs::write(dir.join("plan.toml"), PLAN).unwrap();
    dir.display().to_string()
}

/// Writes a root file system with a shell and some programs of this machine.
pub(crate) fn write_shell(rootfs: &Path) {
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    for program in PROGRAMS {
        let path = Path::new("/bin").join(program);
        copy(&path, &rootfs.join("bin").join(program));
        let libraries = run(Command::new("ldd").arg(&path)).exits(0).stdout;
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(Path::new(library), &rootfs.join(library.trim_start_matches('/')));
        }
    }
}

/// A lab in which the plan runs.
struct Touched {
    lab: Lab,
    _plan: tempfile::TempDir,
}

impl Touched {
    #[track_caller]
    fn start(lab: Lab, groups: &[&str]) -> Touched {
        let plan = tempfile::tempdir().unwrap();
        let path = write_plan(plan.path());
        let mut args = vec!["run", &path, "--no-build", "--detach"];
        groups.iter().for_each(|group| args.extend(["-g", group]));
        lab.run(&args).exits(0);
        // That the run was started is one thing, that its lablets have heard of it another.
        let instances: u64 = groups.iter().map(|group| group.split_once('=').unwrap().1.parse::<u64>().unwrap()).sum();
        until("instances that run", || {
            let top: Value = serde_json::from_str(&lab.run(&["top", "last", "--json"]).stdout).ok()?;
            let running = top["groups"].as_object()?.values().filter_map(|group| group["running"].as_u64());
            (running.sum::<u64>() == instances).then_some(())
        });
        Touched { lab, _plan: plan }
    }

    fn command(&self, instance: &str, command: &[&str]) -> Command {
        let target = format!("last/{instance}");
        self.lab.iptl(&[&["exec", &target, "--"], command].concat())
    }

    fn exec(&self, instance: &str, command: &[&str]) -> Output {
        run(&mut self.command(instance, command))
    }

    /// Tells whether a process with this in its command line runs in an instance.
    fn runs(&self, instance: &str, what: &str) -> bool {
        self.exec(instance, &["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout.contains(what)
    }
}

#[test]
fn a_command_gets_input_says_output_and_ends_with_its_status_and_the_receipt_names_it() {
    if !is_there_an_engine() {
        return;
    }
    let touched = Touched::start(Lab::start_with_exec(2), &["open=2"]);
    let said = touched.exec("open/0", &["sh", "-c", "echo to stdout; echo to stderr >&2; exit 7"]).exits(7);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("to stdout\n", "to stderr\n"));
    // More than any queue on the way holds, there and back.
    let sent = noise(3_000_000);
    let path = touched.lab.path().join("sent");
    std::fs::write(&path, &sent).unwrap();
    let mut cat = touched.command("open/1", &["cat"]);
    let back = cat.stdin(std::fs::File::open(&path).unwrap()).output().unwrap();
    assert!(back.status.success() && back.stdout == sent, "{} of {} bytes", back.stdout.len(), sent.len());
    let told = run(&mut touched.lab.iptl(&["exec", "last/open/0", "--json", "--", "sh", "-c", "echo hello"])).exits(0);
    assert!(told.stdout.contains("\"text\":\"hello\\n\""), "{}", told.stdout);
    assert_eq!(told.last_json()["status"], 0);

    touched.exec("open/2", &["sh"]).fails(3, "exec.no-instance");
    touched.exec("shut/0", &["sh"]).fails(3, "exec.no-instance");
    touched.lab.run(&["exec", "last/open", "--", "sh"]).fails(2, "exec.target");
    touched.lab.run(&["exec", "x-nobody/open/0", "--", "sh"]).fails(3, "execution.unknown");
    touched.exec("open/0", &["sh", "-c", &"x".repeat(5_000)]).fails(2, "exec.command");
    for code in ["exec.not-allowed", "exec.no-instance", "exec.not-running", "exec.unsupported", "exec.failed"] {
        touched.lab.run(&["explain", code]).exits(0);
    }

    // One instance is let go, and then there is nothing to execute anything in.
    touched.exec("open/0", &["sh", "-c", "echo > /tmp/done"]).exits(0);
    until("the end of open/0", || {
        let tried = touched.exec("open/0", &["sh", "-c", "exit 0"]);
        (tried.code == 3 && tried.stderr.contains("exec.not-running")).then_some(())
    });
    touched.exec("open/1", &["sh", "-c", "echo > /tmp/done"]).exits(0);
    touched.lab.run(&["watch", "last"]).exits(0);
    touched.exec("open/1", &["sh"]).fails(3, "exec.not-running");

    let shown = touched.lab.run(&["show", "last", "--json"]).exits(0).json();
    assert_eq!((&shown["verdict"], &shown["verified"]), (&Value::from("pass"), &Value::from(true)));
    let first = &shown["interventions"][0];
    assert_eq!((&first["instance"], &first["exit"]), (&Value::from("open/0"), &Value::from(7)), "{shown}");
    assert_eq!(first["by"], touched.lab.orchestrator.peer.as_str());
    assert!(first["at_ms"].as_u64().unwrap() > 0 && first["command"][0] == "sh", "{first}");
    let people = touched.lab.run(&["show", "last"]).exits(0).stdout;
    assert!(people.contains("touched   open/0: ") && people.contains("exit 7"), "{people}");
    assert!(people.contains("distorted open/1: 2 commands were executed in it by people"), "{people}");
}

#[test]
fn who_goes_away_ends_the_command_and_what_it_started() {
    if !is_there_an_engine() {
        return;
    }
    let touched = Touched::start(Lab::start_with_exec(1), &["open=1"]);
    // A command that takes no notice of the end of its input, nor of signals of a terminal.
    let stubborn = "trap '' HUP INT TERM; sleep 12345 & echo here; wait; wait";
    let mut left = Beside::start_with_input(&mut touched.command("open/0", &["sh", "-c", stubborn]));
    left.says("here");
    assert!(touched.runs("open/0", "12345"));
    drop(left);
    until("the end of the command", || (!touched.runs("open/0", "12345")).then_some(()));

    // An interrupt of who is attached by pipes ends it too, and says so.
    let mut left = Beside::start_with_input(&mut touched.command("open/0", &["sh", "-c", stubborn]));
    left.says("here");
    left.signal("INT");
    left.end().exits(130);
    until("the end of the command", || (!touched.runs("open/0", "12345")).then_some(()));

    // As does the death of the orchestrator, through which it goes; the instance itself lives on.
    let mut left = Beside::start_with_input(&mut touched.command("open/0", &["sh", "-c", stubborn]));
    left.says("here");
    touched.lab.orchestrator.kill();
    assert_ne!(left.end().code, 0);
    let _again = iptl_e2e::Foreground::again(&touched.lab.orchestrator.home, &[]);
    until("the end of the command", || {
        let said = touched.exec("open/0", &["sh", "-c", "cat /proc/[0-9]*/cmdline"]);
        (said.code == 0 && !said.stdout.contains("12345")).then_some(())
    });
    touched.exec("open/0", &["sh", "-c", "echo > /tmp/done"]).exits(0);
    touched.lab.run(&["watch", "last"]).exits(0);
}

#[test]
fn commands_are_refused_where_the_plan_does_not_allow_them_and_where_there_are_no_processes() {
    if !is_there_an_engine() {
        return;
    }
    let touched = Touched::start(Lab::start_with_exec(1), &["open=1", "closed=1", "component=1"]);
    touched.exec("open/0", &["sh", "-c", "exit 0"]).exits(0);
    let closed = touched.exec("closed/0", &["sh"]).fails(4, "exec.not-allowed");
    assert!(closed.stderr.contains("the plan"), "{}", closed.stderr);
    let component = touched.exec("component/0", &["sh"]).fails(2, "exec.unsupported");
    assert!(component.stderr.contains("is a component"), "{}", component.stderr);
    // A program that is not there is the engine's to say.
    let missing = touched.exec("open/0", &["/no/such/program"]);
    assert!(matches!(missing.code, 5 | 126 | 127), "{missing:?}");
    touched.lab.run(&["cancel", "last"]).exits(0);
    touched.lab.run(&["watch", "last"]).exits(12);
    // What was refused is no intervention.
    let shown = touched.lab.run(&["show", "last", "--json"]).exits(0).json();
    let done = shown["interventions"].as_array().unwrap();
    assert!(done.iter().all(|done| done["instance"] == "open/0"), "{done:?}");
}

#[test]
fn commands_are_refused_where_the_owner_does_not_allow_them() {
    if !is_there_an_engine() {
        return;
    }
    let touched = Touched::start(Lab::start_with_docker(1), &["open=1"]);
    let refused = touched.exec("open/0", &["sh"]).fails(4, "exec.not-allowed");
    assert!(refused.stderr.contains("the owner of"), "{}", refused.stderr);
    touched.lab.run(&["cancel", "last"]).exits(0);
    touched.lab.run(&["watch", "last"]).exits(12);
    let shown = touched.lab.run(&["show", "last", "--json"]).exits(0).json();
    assert_eq!(shown["interventions"], Value::Array(Vec::new()));
}

#[test]
fn a_terminal_is_a_terminal_there_with_its_size_and_its_keys() {
    if !is_there_an_engine() {
        return;
    }
    let touched = Touched::start(Lab::start_with_exec(1), &["open=1"]);
    let go = touched.lab.path().join("go");
    run(Command::new("mkfifo").arg(&go)).exits(0);
    let iptl = touched.command("open/0", &["sh"]);
    let words: Vec<String> = std::iter::once(iptl.get_program())
        .chain(iptl.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let resize = format!("(read x < '{}'; stty -F /dev/tty rows 44 cols 111) &", go.display());
    let session = format!("stty rows 33 cols 101; {resize} exec {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &session, "/dev/null"]).env("SHELL", "/bin/sh");
    let mut terminal = Beside::start_with_input(&mut script);
    terminal.says("$ ");
    terminal.types("stty size\n");
    terminal.says("33 101");
    std::fs::write(&go, "now\n").unwrap();
    until("another size", || {
        terminal.types("stty size\n");
        terminal.said().0.contains("44 111").then_some(())
    });
    // An interrupt is for the command there.
    terminal.types("sleep 54321\n");
    until("a command there", || touched.runs("open/0", "54321").then_some(()));
    terminal.types("\u{3}");
    until("the end of it", || (!touched.runs("open/0", "54321")).then_some(()));
    terminal.types("echo still $((40 + 2)); exit 9\n");
    terminal.says("still 42");
    terminal.end().exits(9);
    touched.exec("open/0", &["sh", "-c", "echo > /tmp/done"]).exits(0);
    touched.lab.run(&["watch", "last"]).exits(0);
}
