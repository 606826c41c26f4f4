//! The engine's process ends and comes again while containers run. These tests have an engine of their own, which
//! only root may start.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iptl_dag::model::Exit;
use iptl_runner::contract::{Lab, instance};
use iptl_runner_docker::OwnerLimits;

use crate::support::{Bench, not_run, until, wrote};
use crate::take_over::{ask, steps};

/// An engine with everything in one directory.
pub(crate) struct Engine {
    dir: tempfile::TempDir,
    process: Child,
    live_restore: bool,
}

impl Engine {
    /// Starts one; none where this user may not, or there is none to start.
    pub(crate) fn start(live_restore: bool) -> Option<Engine> {
        if !nix::unistd::geteuid().is_root() {
            not_run("only root may start an engine");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("engine").tempdir().unwrap();
        let process = match Engine::spawn(dir.path(), live_restore) {
            Ok(process) => process,
            Err(e) => {
                not_run(&format!("there is no engine to start: {e}"));
                return None;
            }
        };
        let engine = Engine { dir, process, live_restore };
        engine.answers();
        Some(engine)
    }

    fn spawn(dir: &Path, live_restore: bool) -> std::io::Result<Child> {
        let path = |name: &str| dir.join(name).display().to_string();
        let mut dockerd = Command::new("dockerd");
        dockerd.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        dockerd.args(["--host", &format!("unix://{}", path("sock"))]);
        dockerd.args(["--bridge", "none", "--iptables=false", "--ip6tables=false"]);
        if live_restore {
            dockerd.arg("--live-restore");
        }
        dockerd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.join("log"))?).spawn()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    fn answers(&self) {
        let began = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "the engine of the test does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn again(&mut self) {
        // A killed one leaves its number behind, and that of its containerd, which died with it; where nobody asks
        // after the dead, a number looks alive.
        for left in ["pid", "exec/containerd/containerd.pid"] {
            let _ = std::fs::remove_file(self.dir.path().join(left));
        }
        self.process = Engine::spawn(self.dir.path(), self.live_restore).unwrap();
        self.answers();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
        // One that was killed leaves its data mounted on itself, once for each time.
        let data = self.dir.path().join("data");
        while Command::new("umount").arg(&data).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {}
    }
}

#[tokio::test]
async fn cell_lives_on_where_its_containers_do() {
    let Some(mut engine) = Engine::start(true) else { return };
    let Some(bench) = Bench::at(OwnerLimits::default(), Some(engine.socket())).await else { return };
    let mut lab = Lab::prepare(&bench.runner, steps(&bench)).await;
    lab.control.start().await;
    ask(bench.dir.path(), 2);
    until(&mut lab, "two steps", wrote(0, "step 2")).await;
    engine.kill();
    ask(bench.dir.path(), 4);
    until(&mut lab, "steps without an engine", wrote(0, "step 4")).await;
    engine.again();
    ask(bench.dir.path(), 100);
    until(&mut lab, "the end", |outcome| outcome.ended.contains_key(&instance(0))).await;
    lab.control.stop("enough".to_owned()).await;
    let outcome = lab.finish().await;
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    assert_eq!(outcome.lines(0, iptl_runner::OutputStream::Out).len(), 100);
    assert_eq!(outcome.exit(2), &Exit::Stopped { reason: "enough".to_owned() });
    iptl_runner::Runner::shutdown(&bench.runner).await;
}
