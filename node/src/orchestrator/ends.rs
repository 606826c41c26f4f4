//! Ends that another orchestrator gave to executions: they are looked for, looked at, and told.
//!
//! An execution that goes on here ends with what a lablet was told: it has let go of what it held. One that is over here
//! gets another end only where that is of a later term. Another orchestrator is believed that it is: its end is written
//! down at once, and waited for. A lablet is believed nothing: the end counts once its result is here, of this execution,
//! signed by an orchestrator of the lab, and of the term that the lablet named.

use std::time::Duration;

use iptl_artifacts::PinKind;
use iptl_scheduler::Input;
use iptl_wire::control::Event;
use iptl_wire::takeover::{Finished, ToFollower};

use super::driver::Driver;
use super::wants::failed;
use super::{Command, sealed};
use crate::clock;
use crate::fetch::Wanted;
use crate::keeper::Holder;

/// A result that another orchestrator sealed is looked for so long at a time.
const RESULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two searches for it.
const RESULT_PAUSE: Duration = Duration::from_secs(5);

/// Searches for what only a lablet says to be a result; it says so again with its next hello.
const MAX_TRIES: u32 = 2;

/// Most ends at a time that only lablets say, and that are looked for.
const MAX_DOUBTED: usize = 64;

/// Why something is not told as the end of an execution.
#[derive(Debug)]
pub(crate) enum NoEnd {
    /// It is something else.
    Untrue(String),
    /// Nobody has it.
    Nowhere,
}

impl Driver {
    /// A lablet was told an end: that of an execution which went on here, or one that may count instead of the end here.
    pub(super) fn adopt(&mut self, end: Finished) {
        if self.registry.active.contains_key(&end.execution) {
            self.look_for(end, None);
        } else if self.looked_for.len() < MAX_DOUBTED && self.registry.records.is_outdone_by(&end) {
            self.look_for(end, Some(MAX_TRIES));
        }
    }

    /// Another orchestrator knows the end of a later term of an execution that is over here.
    pub(super) fn await_end(&mut self, end: Finished) {
        if self.registry.await_end(&end) {
            tracing::warn!(execution = %end.execution.alias(), "it was sealed in a later term: that result counts");
            self.input(Input::Over(end.clone()));
            self.look_for(end, None);
        }
    }

    /// Looks for the result of an end until it is here, or so many times.
    pub(super) fn look_for(&mut self, end: Finished, tries: Option<u32>) {
        if !self.looked_for.insert((end.execution, end.result)) {
            return;
        }
        let (parts, commands) = (self.parts.clone(), self.commands.clone());
        let stop = self.post.stop.clone();
        let (execution, sought) = (end.execution, end.clone());
        let looking = async move {
            let Some(result) = sought.result else {
                return Ok(failed(execution, "the orchestrator before ended it without a result".to_owned()));
            };
            parts.keeper.hold(execution, Holder::Orchestrator, result);
            for n in 1.. {
                let wanted = Wanted {
                    root: result,
                    from: Vec::new(),
                    fellows: Vec::new(),
                    timeout: RESULT_TIMEOUT,
                    shallow: false,
                };
                let is_here = parts.fetcher.fetch(&wanted, |_| {}).await.is_ok();
                match sealed::found(&parts, &sought, result).await {
                    Ok(Ok(last)) if is_here => {
                        if let Err(error) = parts.keeper.keep(result, PinKind::Result, &execution.alias(), None).await {
                            tracing::error!(%error, "a result is not kept");
                        }
                        return Ok(last);
                    }
                    Ok(Err(untrue)) => return Err(NoEnd::Untrue(untrue)),
                    Ok(Ok(_)) | Err(_) => {}
                }
                tracing::warn!(execution = %execution.alias(), %result, "its result is nowhere to be found yet");
                if tries == Some(n) {
                    break;
                }
                tokio::time::sleep(RESULT_PAUSE).await;
            }
            Err(NoEnd::Nowhere)
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                last = looking => {
                    let _stopping = commands.send(Command::Adopted { end, last: last.map(Box::new) }).await;
                }
            }
        });
    }

    /// What is told of an end is here, or it is not what it was said to be.
    pub(super) fn adopted(&mut self, end: &Finished, last: Result<Event, NoEnd>) {
        let execution = end.execution;
        self.looked_for.remove(&(execution, end.result));
        let was_active = self.registry.active.contains_key(&execution);
        let last = match last {
            Ok(last) => last,
            Err(NoEnd::Nowhere) => {
                self.let_go(&execution);
                if self.registry.records.awaited().contains(end) {
                    // An orchestrator has said so meanwhile.
                    self.look_for(end.clone(), None);
                }
                return;
            }
            Err(NoEnd::Untrue(reason)) => {
                tracing::warn!(execution = %execution.alias(), reason, "what was said to be its end is none");
                if !was_active {
                    self.registry.dismiss(end);
                    self.let_go(&execution);
                    return;
                }
                failed(execution, format!("what a lablet was told to be its end is none: {reason}"))
            }
        };
        if self.registry.adopt(end, last, clock::wall().0) {
            self.input(Input::Over(end.clone()));
            if !was_active {
                self.followers.say_all(&ToFollower::Ended(end.clone()));
            }
        }
        self.forget(&execution);
    }
}
