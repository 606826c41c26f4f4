//! The container engine that tests and the demo run containers with.
//!
//! One that is there is used as it is. Where there is none, Debian's is installed and started, if this user may: by
//! systemd where that runs, else by hand, with its data where no checkout is. It stays, as one of the system would.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::shell::Shell;

/// Where engines listen if nobody says otherwise.
const SOCKET: &str = "/var/run/docker.sock";

/// Where one that is started here keeps images and containers.
const DATA: &str = "/var/lib/iptl-engine";

/// Where it keeps what it needs while it runs, its log among it.
const RUN: &str = "/run/iptl-engine";

/// Time that an engine has to answer once it was started; the first start makes its data directory.
const START: Duration = Duration::from_secs(60);

/// What the engine's socket says.
enum Answer {
    Listens,
    Forbidden,
    Nothing,
}

/// Makes sure that there is an engine. Fails with the one command that helps where this user may not.
pub fn ensure(shell: &Shell) -> Result<()> {
    let socket = socket()?;
    match ask(&socket) {
        Answer::Listens => return Ok(()),
        Answer::Forbidden => bail!(
            "a container engine listens on {} and this user may not use it; run:  sudo usermod -aG docker $USER  \
             and log in again",
            socket.display()
        ),
        Answer::Nothing => {}
    }
    if socket != Path::new(SOCKET) {
        bail!("DOCKER_HOST names {}, where no engine listens; start it, or run:  unset DOCKER_HOST", socket.display());
    }
    if shell.ask(shell.command("dockerd").arg("--version")).is_none() {
        setup::say("docker.io", "instances that are containers, and their tests");
        setup::packages(shell, &["docker.io"])?;
    }
    // Installing it starts it where systemd runs.
    if matches!(ask(&socket), Answer::Listens) {
        return Ok(());
    }
    start(shell)?;
    let began = Instant::now();
    loop {
        match ask(&socket) {
            Answer::Listens => return Ok(()),
            Answer::Forbidden => bail!(
                "the container engine was started and this user may not use it; run:  sudo usermod -aG docker $USER  \
                 and log in again"
            ),
            Answer::Nothing if began.elapsed() > START => {
                let log = fs::read_to_string(log_path()).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                bail!("the container engine does not answer after {} s:\n{}", START.as_secs(), last.join("\n"));
            }
            Answer::Nothing => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Returns the engine's socket.
fn socket() -> Result<PathBuf> {
    match std::env::var("DOCKER_HOST") {
        Err(_) => Ok(PathBuf::from(SOCKET)),
        Ok(host) => match host.strip_prefix("unix://") {
            Some(path) => Ok(PathBuf::from(path)),
            None => bail!(
                "DOCKER_HOST names {host}, and the tests share files with their containers; run:  unset DOCKER_HOST"
            ),
        },
    }
}

fn ask(socket: &Path) -> Answer {
    match UnixStream::connect(socket) {
        Ok(_) => Answer::Listens,
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Answer::Forbidden,
        Err(_) => Answer::Nothing,
    }
}

fn log_path() -> PathBuf {
    Path::new(RUN).join("dockerd.log")
}

fn start(shell: &Shell) -> Result<()> {
    let Some(prefix) = setup::administrator(shell) else {
        bail!("no container engine runs, and starting one needs an administrator; run:  sudo systemctl start docker");
    };
    if Path::new("/run/systemd/system").is_dir() {
        eprintln!("set-up: starting the container engine by systemd");
        return shell
            .run(&mut command(shell, prefix, &["systemctl", "start", "docker"]))
            .context("run it by hand:  sudo systemctl start docker");
    }
    eprintln!("set-up: starting a container engine, since none runs: its data is in {DATA}, its log in {RUN}");
    eprintln!("        it stays until it is told to go:  sudo kill $(cat {RUN}/dockerd.pid)");
    shell.run(&mut command(shell, prefix, &["mkdir", "-p", RUN]))?;
    forget_dead(shell, prefix)?;
    let (exec, pid) = (format!("{RUN}/exec"), format!("{RUN}/dockerd.pid"));
    let mut line = vec!["setsid", "dockerd", "--data-root", DATA, "--exec-root", &exec, "--pidfile", &pid];
    line.extend(["--host", "unix:///var/run/docker.sock"]);
    // Containers of the lab have no network of the machine's, so the engine need not touch its rules.
    line.extend(["--bridge", "none", "--iptables=false", "--ip6tables=false"]);
    // Its log is its own, so that it outlives this terminal; where only an administrator may write there, it has none.
    let log = File::create(log_path()).map_or_else(|_| Stdio::null(), Stdio::from);
    let mut dockerd = command(shell, prefix, &line);
    dockerd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    // It is not waited for: it goes on when this is over.
    dockerd.spawn().with_context(|| format!("run it by hand:  sudo {}", line.join(" ")))?;
    Ok(())
}

/// Removes the notes of an engine that was ended by force: another process may have its number by now, and an engine
/// that finds such a note does not start.
fn forget_dead(shell: &Shell, prefix: &[&str]) -> Result<()> {
    for (note, program) in [("dockerd.pid", "dockerd"), ("exec/containerd/containerd.pid", "containerd")] {
        let path = Path::new(RUN).join(note);
        let Ok(number) = fs::read_to_string(&path) else { continue };
        // The line of a process that is dead and not yet taken note of is empty.
        let line = fs::read(format!("/proc/{}/cmdline", number.trim())).unwrap_or_default();
        let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
        if Path::new(&*String::from_utf8_lossy(first)).file_name().is_none_or(|name| name != program) {
            shell.run(&mut command(shell, prefix, &["rm", "-f", &path.display().to_string()]))?;
        }
    }
    Ok(())
}

fn command(shell: &Shell, prefix: &[&str], line: &[&str]) -> Command {
    let all = [prefix, line].concat();
    let (program, args) = all.split_first().expect("a line names a program");
    let mut command = shell.command(program);
    command.args(args);
    command
}
