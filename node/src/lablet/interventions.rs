//! What people did in the instances of a cell, in a file of the cell: known before it is done, and after a restart.
//!
//! `interventions.jsonl` in the directory of a cell has a line for each command before it starts, and another when it
//! has ended. Receipts are made from it. A line reaches the kernel before what it says happens.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::{InstanceId, Intervention};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Most commands that are executed in the instances of one cell: with [`MAX_COMMAND_SIZE`] for each, receipts of a
/// whole cell still fit into a block.
///
/// [`MAX_COMMAND_SIZE`]: iptl_wire::exec::MAX_COMMAND_SIZE
const MAX_INTERVENTIONS: u64 = 128;

/// Longest wait for the statuses of commands whose instances have ended; the containers are gone by then.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Begun {
        number: u64,
        instance: InstanceId,
        by: PeerId,
        at_ms: u64,
        command: Vec<String>,
    },
    /// `none`: it never ran.
    Ended {
        number: u64,
        exit: Option<i32>,
    },
}

/// The commands of a cell.
#[derive(Clone, Debug)]
pub(super) struct Interventions {
    path: PathBuf,
    begun: Arc<Mutex<u64>>,
    /// Commands that run, by instance.
    running: Arc<watch::Sender<BTreeMap<InstanceId, u32>>>,
}

/// Why no command may begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotBegun {
    #[error("{MAX_INTERVENTIONS} commands were executed in this part of the run, and its receipts hold no more")]
    TooMany,
    #[error("it cannot be written down")]
    Io(#[from] io::Error),
}

/// A command that was written down. Dropped without a word of its end, it is one whose end is not known.
pub(super) struct Begun {
    interventions: Interventions,
    instance: InstanceId,
    number: u64,
}

impl Interventions {
    /// Those of a cell with this directory.
    pub(super) fn of_cell(scratch: &Path) -> Interventions {
        Interventions {
            path: scratch.join("interventions.jsonl"),
            begun: Arc::default(),
            running: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }

    /// Returns the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a command down that is about to start.
    pub(super) fn begin(&self, instance: InstanceId, what: Intervention) -> Result<Begun, NotBegun> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        // The first of this life goes on after those of an earlier one.
        let number = if *begun > 0 { *begun } else { lines(&self.path)?.len() as u64 };
        if number >= MAX_INTERVENTIONS {
            return Err(NotBegun::TooMany);
        }
        let Intervention { by, at_ms, command, exit: _ } = what;
        self.append(&Line::Begun { number, instance: instance.clone(), by, at_ms, command })?;
        *begun = number + 1;
        self.running.send_modify(|running| *running.entry(instance.clone()).or_default() += 1);
        Ok(Begun { interventions: self.clone(), instance, number })
    }

    /// Returns what was done in instances that have ended, by instance, in order; waits for commands that end with them.
    pub(super) async fn of_ended(
        &self,
        instances: &[InstanceId],
    ) -> io::Result<BTreeMap<InstanceId, Vec<Intervention>>> {
        let mut running = self.running.subscribe();
        let settled = running.wait_for(|running| !instances.iter().any(|id| running.contains_key(id)));
        let _some_go_on = tokio::time::timeout(PATIENCE, settled).await;
        let mut done: BTreeMap<u64, (InstanceId, Intervention)> = BTreeMap::new();
        for line in lines(&self.path)? {
            match line {
                Line::Begun { number, instance, by, at_ms, command } => {
                    done.insert(number, (instance, Intervention { by, at_ms, command, exit: None }));
                }
                Line::Ended { number, exit: None } => {
                    done.remove(&number);
                }
                Line::Ended { number, exit } => {
                    if let Some((_, intervention)) = done.get_mut(&number) {
                        intervention.exit = exit;
                    }
                }
            }
        }
        let mut by_instance: BTreeMap<InstanceId, Vec<Intervention>> = BTreeMap::new();
        for (instance, intervention) in done.into_values() {
            by_instance.entry(instance).or_default().push(intervention);
        }
        Ok(by_instance)
    }

    fn append(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
        text.push(b'\n');
        OpenOptions::new().create(true).append(true).open(&self.path)?.write_all(&text)
    }
}

impl Begun {
    /// Writes down how it ended; `none` where it never ran.
    pub(super) fn ended(self, exit: Option<i32>) {
        if let Err(error) = self.interventions.append(&Line::Ended { number: self.number, exit }) {
            tracing::error!(%error, instance = %self.instance, "the end of a command cannot be written down");
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.interventions.running.send_modify(|running| {
            if let Some(count) = running.get_mut(&self.instance) {
                *count -= 1;
                if *count == 0 {
                    running.remove(&self.instance);
                }
            }
        });
    }
}

/// Reads all lines; one that was torn by a crash is the last and says nothing.
fn lines(path: &Path) -> io::Result<Vec<Line>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u32) -> InstanceId {
        InstanceId { group: "g".into(), index }
    }

    fn what(command: &str) -> Intervention {
        let by = PeerId::from_ed25519(&[1; 32]);
        Intervention { by, at_ms: 5, command: vec![command.to_owned()], exit: None }
    }

    #[tokio::test]
    async fn commands_are_told_in_order_with_their_ends_and_survive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = Interventions::of_cell(dir.path());
        first.begin(id(1), what("a")).unwrap().ended(Some(3));
        first.begin(id(1), what("never ran")).unwrap().ended(None);
        // Its lablet dies under this one.
        drop(first.begin(id(1), what("b")).unwrap());
        let second = Interventions::of_cell(dir.path());
        second.begin(id(0), what("c")).unwrap().ended(Some(0));
        let done = second.of_ended(&[id(0), id(1)]).await.unwrap();
        let told: Vec<_> = done[&id(1)].iter().map(|i| (i.command[0].as_str(), i.exit)).collect();
        assert_eq!(told, [("a", Some(3)), ("b", None)]);
        assert_eq!(done[&id(0)], [Intervention { exit: Some(0), ..what("c") }]);
    }

    #[tokio::test]
    async fn receipts_wait_for_commands_that_end_with_their_instance() {
        let dir = tempfile::tempdir().unwrap();
        let all = Interventions::of_cell(dir.path());
        let begun = all.begin(id(0), what("sh")).unwrap();
        let waiting = tokio::spawn({
            let all = all.clone();
            async move { all.of_ended(&[id(0)]).await.unwrap() }
        });
        tokio::task::yield_now().await;
        begun.ended(Some(137));
        assert_eq!(waiting.await.unwrap()[&id(0)][0].exit, Some(137));
    }

    #[test]
    fn a_cell_takes_no_more_commands_than_its_receipts_hold() {
        let dir = tempfile::tempdir().unwrap();
        let all = Interventions::of_cell(dir.path());
        for _ in 0..MAX_INTERVENTIONS {
            all.begin(id(0), what("true")).unwrap().ended(Some(0));
        }
        assert!(matches!(all.begin(id(0), what("true")), Err(NotBegun::TooMany)));
        assert!(matches!(Interventions::of_cell(dir.path()).begin(id(0), what("true")), Err(NotBegun::TooMany)));
    }
}
