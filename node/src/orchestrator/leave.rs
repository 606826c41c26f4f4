//! Handing over: another orchestrator is to lead, and has everything before it does.

use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::Epoch;
use iptl_scheduler::Input;
use iptl_wire::Timestamp;
use iptl_wire::control::{Failure, FailureKind};
use iptl_wire::takeover::ToFollower;
use tokio::sync::oneshot;

use super::candidacy::Note;
use super::driver::{Driver, OrchestratorError};
use crate::clock;

/// The heir gets so long to fetch what facts name; everything goes on meanwhile.
const FETCH_PATIENCE: Duration = Duration::from_secs(30);

/// Then it must have every fact within so long: nothing is decided meanwhile, and leases of lablets last longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A post that is being left.
pub(super) struct Leaving {
    to: PeerId,
    until: Timestamp,
    /// It has fetched everything: nothing new is decided.
    pub(super) is_frozen: bool,
    answer: oneshot::Sender<Result<Epoch, Failure>>,
    /// What came meanwhile: decided where nobody takes the post.
    pub(super) deferred: Vec<Input>,
}

impl Driver {
    /// Begins to hand over.
    pub(super) fn leave_to(&mut self, to: Option<PeerId>, answer: oneshot::Sender<Result<Epoch, Failure>>) {
        if self.leaving.is_some() {
            let _gone = answer.send(Err(unable("a handover is on its way already".to_owned())));
            return;
        }
        let Some(heir) = self.followers.heir(to.as_ref()) else {
            let reason = match to {
                Some(peer) => format!("{} does not follow", peer.short()),
                None => "no other orchestrator follows".to_owned(),
            };
            let _gone = answer.send(Err(unable(reason)));
            return;
        };
        let until = clock::now().after(FETCH_PATIENCE);
        self.leaving = Some(Leaving { to: heir, until, is_frozen: false, answer, deferred: Vec::new() });
    }

    /// Hands over once the heir has everything; gives it up where that takes too long.
    pub(super) async fn hand_over(&mut self) -> Result<(), OrchestratorError> {
        let Some(leaving) = &mut self.leaving else { return Ok(()) };
        if !leaving.is_frozen && self.followers.lacks_nothing(&leaving.to) {
            (leaving.is_frozen, leaving.until) = (true, clock::now().after(PATIENCE));
            self.followers.beat(None);
            return Ok(());
        }
        let is_ready = leaving.is_frozen && self.followers.has_all(&leaving.to);
        let is_late = leaving.until <= clock::now();
        if !is_ready && !is_late {
            return Ok(());
        }
        let Some(Leaving { to, answer, deferred, .. }) = self.leaving.take() else { return Ok(()) };
        if !is_ready {
            deferred.into_iter().for_each(|input| self.input(input));
            let _gone = answer.send(Err(unable(format!("{} does not have everything in time", to.short()))));
            return Ok(());
        }
        let from = self.post.claim.as_ref().map(|claim| claim.body.term.clone());
        let term = Epoch { counter: from.as_ref().map_or(0, |term| term.counter) + 1, peer: to.clone() };
        self.followers.say(&to, ToFollower::HandOver { from, to: to.clone() });
        tracing::info!(heir = %to, counter = term.counter, "hands over");
        let _gone = answer.send(Ok(term.clone()));
        let _stopping = self.post.notes.send(Note::HandedOn { term }).await;
        // Whatever comes now is the heir's: this task is stopped in a moment.
        self.post.stop.cancelled().await;
        Ok(())
    }
}

fn unable(message: String) -> Failure {
    Failure {
        kind: FailureKind::LabUnable,
        code: "handover.nobody".to_owned(),
        message,
        help: "see who follows and how far: `iptl status`; let one in: `iptl invite --role orchestrator`".to_owned(),
    }
}
