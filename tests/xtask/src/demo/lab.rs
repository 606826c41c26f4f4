//! The lab of a demo: everything it writes is below one folder, and it is stopped whatever happens.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::Shell;

/// The demo's lab; stopped when it goes out of scope, whatever happened.
pub struct Lab {
    /// Where all is.
    pub dir: PathBuf,
    program: PathBuf,
    root: PathBuf,
    stopped: std::cell::Cell<bool>,
}

impl Lab {
    /// Makes the folder, empty.
    pub fn new(shell: &Shell) -> Result<Lab> {
        let lab = Lab {
            dir: shell.target.join("demo"),
            program: shell.target.join("debug/iptl"),
            root: shell.root.clone(),
            stopped: std::cell::Cell::new(false),
        };
        if lab.dir.exists() {
            // One that was interrupted hard may still run.
            lab.stop()?;
            lab.stopped.set(false);
            std::fs::remove_dir_all(&lab.dir)?;
        }
        std::fs::create_dir_all(lab.dir.join("tmp"))?;
        Ok(lab)
    }

    /// Returns a command line on a home in the folder.
    pub fn iptl(&self, home: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.root).arg("--home").arg(self.dir.join(home));
        command.env("TMPDIR", self.dir.join("tmp")).env_remove("IPTL_HOME").stdin(Stdio::null());
        command
    }

    /// Runs a command whose output is shown.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let status = command.status().context("cannot run iptl")?;
        if !status.success() {
            bail!("iptl ended with {status}");
        }
        Ok(())
    }

    /// Runs a command and returns its answer.
    pub fn text(&self, command: &mut Command) -> Result<String> {
        let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output().context("cannot run iptl")?;
        if !output.status.success() {
            bail!("iptl ended with {}", output.status);
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Runs a command and returns its answer, which is one object.
    pub fn json(&self, command: &mut Command) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(command)?)?)
    }

    /// Stops the lab's processes.
    pub fn stop(&self) -> Result<()> {
        self.stopped.set(true);
        self.run(self.iptl("lab").args(["dev", "down"]))?;
        // A process that was told to stop is gone from the table a moment after its socket.
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.stopped.get()
            && let Err(error) = self.stop()
        {
            eprintln!("the demo's lab could not be stopped: {error:#}");
        }
    }
}
