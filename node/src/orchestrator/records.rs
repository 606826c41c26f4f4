//! Records of executions that ended, as they stand in `runs/`: what is told of each, and which of two ends counts.
//!
//! Two orchestrators that cannot hear each other may both end an execution. The end of the later term counts for both once
//! they hear of each other: it is written down before its result is here, and from then on the earlier one is told no
//! more. What was sealed earlier is kept, and named beside what counts.

use std::collections::BTreeMap;

use iptl_dag::model::{Counts, Epoch, ExecutionId, ResultVerdict};
use iptl_dag::{Cid, codec};
use iptl_wire::control::Event;
use iptl_wire::takeover::{Finished, MAX_FINISHED};
use serde::{Deserialize, Serialize};

use crate::home::{Home, HomeError};

/// An execution that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// The execution.
    pub execution: ExecutionId,
    /// The run; none where not even the first fact of its log could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Cid>,
    /// The plan; none where the run was not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Cid>,
    /// Case of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Wall time of submission in milliseconds since 1970.
    pub submitted_ms: u64,
    /// Wall time of its end.
    pub ended_ms: u64,
    /// The last event.
    pub last: Event,
    /// Term of the lab in which it ended so; none where the lab had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Epoch>,
    /// The end of a later term, which counts, and whose result is not here yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub later: Option<Finished>,
}

impl RunRecord {
    /// Returns the result with verdict and counts, where one was sealed.
    pub(crate) fn result(&self) -> Option<(Cid, ResultVerdict, Counts)> {
        match &self.last {
            Event::Finished { result, verdict, counts, .. } => Some((*result, *verdict, *counts)),
            _ => None,
        }
    }

    /// Returns the end that counts, whether or not its result is here.
    pub(super) fn end(&self) -> Finished {
        self.later.clone().unwrap_or_else(|| self.told())
    }

    /// Returns the end that the last event tells.
    fn told(&self) -> Finished {
        let result = self.result().map(|(result, ..)| result);
        Finished { execution: self.execution, result, term: self.term.clone() }
    }
}

/// The records of an orchestrator.
#[derive(Debug)]
pub(super) struct Records {
    home: Home,
    ended: BTreeMap<ExecutionId, RunRecord>,
}

impl Records {
    /// Reads all of them.
    pub(super) fn open(home: Home) -> Result<Records, HomeError> {
        let mut ended = BTreeMap::new();
        let dir = home.path("runs");
        let entries = std::fs::read_dir(&dir).map_err(|source| HomeError::Io { path: dir, source })?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            match home.read::<RunRecord>(&format!("runs/{name}")) {
                Ok(Some(record)) => {
                    ended.insert(record.execution, record);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a record of an execution is left out"),
            }
        }
        Ok(Records { home, ended })
    }

    /// Returns the record of an execution.
    pub(super) fn get(&self, id: &ExecutionId) -> Option<&RunRecord> {
        self.ended.get(id)
    }

    /// Returns all records.
    pub(super) fn all(&self) -> impl Iterator<Item = &RunRecord> {
        self.ended.values()
    }

    /// Returns the ends that count of the executions that were submitted last.
    pub(super) fn newest(&self) -> Vec<Finished> {
        let mut records: Vec<_> = self.all().collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.submitted_ms));
        records.into_iter().take(MAX_FINISHED).map(RunRecord::end).collect()
    }

    /// Returns the ends that count and whose results are not here yet.
    pub(super) fn awaited(&self) -> Vec<Finished> {
        self.all().filter_map(|record| record.later.clone()).collect()
    }

    /// Whether an end would count instead of the one that is recorded.
    pub(super) fn is_outdone_by(&self, end: &Finished) -> bool {
        self.get(&end.execution).is_some_and(|record| end.outdoes(&record.end()))
    }

    /// Writes down how an execution ended; returns whether that counts. Of what is recorded that is outdone, the result is
    /// named in the notes.
    pub(super) fn put(&mut self, mut record: RunRecord) -> bool {
        if let Some(known) = self.ended.get(&record.execution) {
            let (told, new) = (known.told(), record.told());
            if !new.outdoes(&told) {
                return false;
            }
            if let (Event::Finished { notes, .. }, Some(earlier)) = (&mut record.last, told.result) {
                notes.push(format!("another result was sealed in an earlier term, and does not count: {earlier}"));
            }
            record.later = known.later.clone().filter(|later| later.outdoes(&new));
        }
        self.write(record);
        true
    }

    /// Writes down that the end of a later term counts, whose result is not here yet; returns whether it does.
    pub(super) fn await_end(&mut self, end: &Finished) -> bool {
        let outdone = self.is_outdone_by(end);
        if let Some(record) = self.ended.get(&end.execution).filter(|_| outdone) {
            let record = RunRecord { later: Some(end.clone()), ..record.clone() };
            self.write(record);
        }
        outdone
    }

    /// What was said to be the end of a later term is none.
    pub(super) fn dismiss(&mut self, end: &Finished) {
        if let Some(record) = self.ended.get(&end.execution).filter(|record| record.later.as_ref() == Some(end)) {
            let record = RunRecord { later: None, ..record.clone() };
            self.write(record);
        }
    }

    fn write(&mut self, record: RunRecord) {
        let id = record.execution;
        if let Err(error) = self.home.write(&format!("runs/{id}"), &codec::encode(&record)) {
            tracing::error!(%error, "cannot record the end of an execution");
        }
        self.ended.insert(id, record);
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::PeerId;

    use super::*;

    fn execution() -> ExecutionId {
        ExecutionId(codec::cid_of(&"execution"))
    }

    fn term(counter: u64) -> Option<Epoch> {
        Some(Epoch { counter, peer: PeerId::from_ed25519(&[7; 32]) })
    }

    fn end(result: &str, term: Option<Epoch>) -> Finished {
        Finished { execution: execution(), result: Some(codec::cid_of(&result)), term }
    }

    fn record(end: &Finished) -> RunRecord {
        let run = codec::cid_of(&"run");
        let last = Event::Finished {
            run,
            execution: end.execution.0,
            result: end.result.unwrap(),
            verdict: ResultVerdict::Pass,
            counts: Counts { ok: 1, failed: 0, lost: 0 },
            thresholds: Vec::new(),
            inconclusive: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
            after_ms: 1,
            failure: None,
        };
        RunRecord {
            execution: end.execution,
            run: Some(run),
            plan: Some(run),
            case: Some("case".into()),
            submitted_ms: 1,
            ended_ms: 2,
            last,
            term: end.term.clone(),
            later: None,
        }
    }

    fn records(dir: &std::path::Path) -> Records {
        let home = Home::open(dir).unwrap();
        std::fs::create_dir_all(home.path("runs")).unwrap();
        Records::open(home).unwrap()
    }

    #[test]
    fn the_end_of_the_later_term_counts_whichever_is_recorded_first() {
        let (early, late) = (end("early", None), end("late", term(1)));
        for order in [[&early, &late], [&late, &early]] {
            let dir = tempfile::tempdir().unwrap();
            let mut records = records(dir.path());
            for end in order {
                records.put(record(end));
            }
            drop(records);
            let again = self::records(dir.path());
            assert_eq!(again.get(&execution()).unwrap().end(), late);
        }
    }

    #[test]
    fn a_result_that_does_not_count_any_more_is_named_beside_the_one_that_does() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = records(dir.path());
        records.put(record(&end("early", None)));
        records.put(record(&end("late", term(1))));
        let Event::Finished { notes, .. } = &records.get(&execution()).unwrap().last else { panic!("it is sealed") };
        assert!(notes.concat().contains(&codec::cid_of(&"early").to_string()), "{notes:?}");
    }

    #[test]
    fn an_end_that_is_awaited_outlives_the_orchestrator_and_is_dismissed_only_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = records(dir.path());
        let (early, late, later) = (end("early", None), end("late", term(1)), end("later", term(2)));
        records.put(record(&early));
        assert!(records.await_end(&later) && !records.await_end(&late));
        drop(records);
        let mut records = self::records(dir.path());
        assert_eq!((records.newest(), records.awaited()), (vec![later.clone()], vec![later.clone()]));
        records.dismiss(&late);
        assert_eq!(records.awaited(), std::slice::from_ref(&later));
        // What is here of the one between is told, and is not the end that counts.
        assert!(records.put(record(&late)));
        assert_eq!(records.get(&execution()).unwrap().end(), later);
        records.dismiss(&later);
        assert_eq!(records.get(&execution()).unwrap().end(), late);
    }
}
