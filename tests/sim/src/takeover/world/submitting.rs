//! What people want: runs that are submitted, and ends that they ask for.

use std::collections::BTreeMap;

use iptl_dag::codec;
use iptl_dag::model::{Execution, FactKind, Run};
use iptl_scheduler::{Input, Submission};
use iptl_wire::session::KnownRun;

use super::World;
use super::event::Event;
use crate::network::Draws;
use crate::world::lab::{group, peer, policies, run};
use crate::world::{MILLI, SECOND};

impl World {
    /// Returns the run that is submitted as the n-th of the schedule.
    fn run_of(&self, n: usize) -> Run {
        let number = self.schedule.submissions[n].number;
        let profile = &self.schedule.profile;
        let mut draws = Draws::new(self.schedule.seed, 100 + u64::from(number));
        let groups = (0..draws.between(1, 2))
            .map(|g| (format!("g{g}"), group(draws.between(1, u64::from(profile.group_size)) as u32)))
            .collect::<BTreeMap<_, _>>();
        let timeout_ms = draws.between(5_000, 30_000);
        let mut run = run(groups, u64::from(number), profile.max_attempts, timeout_ms);
        if profile.policies {
            policies(&mut run, &mut Draws::new(self.schedule.seed, 50_000 + u64::from(number)));
        }
        run
    }

    /// Somebody submits a run to who leads, and again where nobody knows it a while later.
    pub(super) fn submit(&mut self, n: usize) {
        let known = self.wanted.get(&n).is_some_and(|id| self.orchs.iter().any(|o| o.logs.contains_key(id)));
        if known {
            return;
        }
        self.after(3 * SECOND, Event::Submit { n });
        let Some(o) = (0..self.orchs.len()).find(|o| self.orchs[*o].leads(self.now)) else { return };
        let run = self.run_of(n);
        let cid = codec::cid_of(&run);
        let execution = Execution { run: cid, orchestrator: self.orchs[o].peer.clone(), nonce: self.work.bytes() };
        let submission = Submission { execution, run: KnownRun { cid, run } };
        let id = submission.execution.id();
        if self.wanted.insert(n, id).is_none()
            && let Some(after_ms) = self.schedule.submissions[n].cancel_after_ms
        {
            self.after(after_ms * MILLI, Event::Cancel { n });
        }
        self.submissions.insert(id, submission.clone());
        let priority = if self.schedule.profile.policies { self.work.between(0, 2) as i32 - 1 } else { 0 };
        let Submission { execution, run } = submission;
        self.tell_core(o, Input::Submit { execution, run, by: peer(250), priority });
    }

    /// Somebody wants an execution to end, and says so until who leads has written it down.
    pub(super) fn cancel(&mut self, n: usize) {
        let Some(id) = self.wanted.get(&n).copied() else { return };
        let heard = |kind: &FactKind| kind.end().is_some() || matches!(kind, FactKind::Cancelled { .. });
        if self.orchs.iter().any(|o| o.has_fact(&id, heard)) || !self.faulty() {
            return;
        }
        self.after(3 * SECOND, Event::Cancel { n });
        if let Some(o) = (0..self.orchs.len()).find(|o| self.orchs[*o].leads(self.now)) {
            self.tell_core(o, Input::Cancel { execution: id, by: peer(253) });
        }
    }
}
