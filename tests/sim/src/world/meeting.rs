//! Runs whose instances meet at a barrier: what they say reaches the orchestrator by way of their lablets, as drivers
//! carry it.
//!
//! Sync goes over the stream of a session, which keeps its order: where one message of it is lost, so are all after it.

use iptl_dag::PeerId;
use iptl_dag::model::{ExecutionId, Exit, FactKind, InstanceId};
use iptl_sync::{Reply, SyncBook, SyncOp};
use iptl_wire::session::{CellRef, SyncDown, SyncUp, ToLablet, ToOrchestrator};

use super::{MICRO, MILLI, SECOND, World};
use crate::event::Event;
use crate::reach::Point;

/// State at which all instances of a run meet.
const STATE: &str = "all";

/// Looks after a start of the orchestrator in which cells contribute again: as its driver has it.
const RECOVERY_LOOKS: u32 = 15;

impl World {
    /// Whether the instances of a run meet: those of every third run do.
    pub(super) fn meets(&self, id: &ExecutionId) -> bool {
        self.model.run(id).is_some_and(|run| (self.schedule.seed / 20 + run.seed).is_multiple_of(3))
    }

    /// An instance signals, and waits for all others.
    pub(super) fn comes(&mut self, lablet: usize, life: u64, cell: &CellRef, instance: InstanceId) {
        let node = &mut self.lablets[lablet];
        if node.life != life {
            return;
        }
        let Some(fake) = node.cells.get_mut(cell).filter(|fake| fake.running.contains(&instance)) else { return };
        let Some(run) = self.model.run(&cell.execution) else { return };
        let (state, target) = (STATE.to_owned(), run.instances());
        fake.sync.call(&instance, 1, SyncOp::SignalAndWait { state, target });
        self.model.signals(&cell.execution, &instance);
        self.pump_cells(lablet);
    }

    /// Sends what the cells of a lablet have to say, and gives their instances the answers.
    pub(super) fn pump_cells(&mut self, lablet: usize) {
        let node = &mut self.lablets[lablet];
        let life = node.life;
        let (mut ups, mut replies) = (Vec::new(), Vec::new());
        for (named, fake) in &mut node.cells {
            ups.extend(std::iter::from_fn(|| fake.sync.poll_up()).map(|up| (named.execution, up)));
            replies.extend(std::iter::from_fn(|| fake.sync.poll_reply()).map(|reply| (named.clone(), reply)));
        }
        for (execution, up) in ups {
            self.send_up(lablet, execution, up);
        }
        for (cell, (instance, _, reply)) in replies {
            let takes = self.sync.between(MILLI, 300 * MILLI);
            let code = match reply {
                Reply::Opened { .. } => {
                    self.model.opens(&cell.execution, &instance);
                    i32::from(self.sync.chance(self.schedule.profile.fail_ppm))
                }
                Reply::Failed(error) => {
                    self.model.fails(&cell.execution, &instance, &error.to_string());
                    1
                }
                Reply::Signalled { .. } | Reply::Published { .. } | Reply::Message { .. } => continue,
            };
            self.ends(lablet, life, &cell, instance, Exit::Exited { code }, takes);
        }
    }

    /// All cells of a lablet hear that its session is up or down.
    pub(super) fn tell_cells(&mut self, lablet: usize, up: bool) {
        for fake in self.lablets[lablet].cells.values_mut() {
            if up {
                fake.sync.session_up();
            } else {
                fake.sync.session_down();
            }
        }
        if up {
            self.pump_cells(lablet);
        }
    }

    pub(super) fn hears_down(&mut self, lablet: usize, execution: ExecutionId, down: SyncDown) {
        let cells = &mut self.lablets[lablet].cells;
        // A lablet holds one cell of an execution.
        if let Some((_, fake)) = cells.iter_mut().rev().find(|(named, _)| named.execution == execution) {
            fake.sync.handle(down);
        }
        self.pump_cells(lablet);
    }

    pub(super) fn hears_up(&mut self, from: &PeerId, execution: ExecutionId, up: SyncUp) {
        if let Some(book) = self.orchestrator.books.get_mut(&execution).filter(|book| book.takes_part(from))
            && let Some(sync) = book.sync_mut()
            && let Err(error) = sync.handle(from, up)
        {
            self.model.violated("sync-refused", format!("{} {}: {error}", execution.alias(), from.short()));
        }
        self.pump_book(&execution);
    }

    /// Sends what an execution's sync has to say to its cells.
    pub(super) fn pump_book(&mut self, execution: &ExecutionId) {
        let Some(sync) = self.orchestrator.books.get_mut(execution).and_then(SyncBook::sync_mut) else { return };
        let downs: Vec<_> = std::iter::from_fn(|| sync.poll_down()).collect();
        for (lablet, down) in downs {
            self.send_down(&lablet, *execution, down);
        }
    }

    /// A lablet's session is over, as far as the orchestrator knows.
    pub(super) fn session_is_over(&mut self, lablet: &PeerId) {
        for sync in self.orchestrator.books.values_mut().filter_map(SyncBook::sync_mut) {
            sync.session_down(lablet);
        }
    }

    /// Facts of one execution became durable together, those that were decided together; of what they say to be lost,
    /// `again` waits for another attempt.
    pub(super) fn note_facts(&mut self, execution: ExecutionId, facts: &[FactKind], again: &[InstanceId]) {
        for kind in facts {
            match kind {
                FactKind::Submitted { .. } if self.meets(&execution) => {
                    if let Some(run) = self.model.run(&execution) {
                        let book = SyncBook::new(run);
                        self.orchestrator.books.insert(execution, book);
                    }
                }
                FactKind::Sealed { .. } | FactKind::Failed { .. } => {
                    self.orchestrator.books.remove(&execution);
                }
                _ => {}
            }
        }
        if let Some(book) = self.orchestrator.books.get_mut(&execution) {
            book.note(facts, |instance| again.contains(instance));
        }
        self.pump_book(&execution);
    }

    /// Reads again what logs say of sync.
    pub(super) fn read_books(&mut self) {
        let goes_on = |id: &&ExecutionId| self.meets(id) && !self.orchestrator.is_over(id);
        let ids: Vec<ExecutionId> = self.orchestrator.log.keys().filter(goes_on).copied().collect();
        for id in ids {
            let Some(run) = self.model.run(&id) else { continue };
            let mut book = SyncBook::new(run);
            for fact in &self.orchestrator.log[&id] {
                book.read(&fact.kind);
            }
            book.resume();
            if book.sync().is_some_and(iptl_sync::RunSync::is_recovering) {
                self.reached.at(Point::SyncRecovers);
            }
            self.orchestrator.books.insert(id, book);
        }
        self.orchestrator.looks = 0;
        self.after(SECOND, Event::Look { life: self.orchestrator.life });
    }

    /// The orchestrator looks at barriers, as its driver does every second.
    pub(super) fn look_at_barriers(&mut self, life: u64) {
        if self.orchestrator.life != life || self.orchestrator.core.is_none() {
            return;
        }
        self.orchestrator.looks += 1;
        let ids: Vec<ExecutionId> = self.orchestrator.books.keys().copied().collect();
        for id in ids {
            let looks = self.orchestrator.looks;
            if let Some(sync) = self.orchestrator.books.get_mut(&id).and_then(SyncBook::sync_mut) {
                if looks >= RECOVERY_LOOKS && sync.is_recovering() {
                    sync.end_recovery();
                }
                sync.inquire();
            }
            self.pump_book(&id);
        }
        self.after(SECOND, Event::Look { life });
    }

    fn send_up(&mut self, lablet: usize, execution: ExecutionId, up: SyncUp) {
        let Some(session) = self.lablets[lablet].session else { return };
        let lost = self.lablets[lablet].cut_up(self.now);
        let Some(at) = self.on_stream(lablet, session, true, lost) else { return };
        let message = Box::new(ToOrchestrator::Sync(execution, up));
        self.at(at, Event::ToOrchestrator { lablet, session, message });
    }

    fn send_down(&mut self, to: &PeerId, execution: ExecutionId, down: SyncDown) {
        let Some(session) = self.orchestrator.sessions.get(to).copied() else { return };
        let Some(lablet) = self.index(to) else { return };
        let life = self.lablets[lablet].life;
        let lost = self.lablets[lablet].cut_down(self.now);
        let Some(at) = self.on_stream(lablet, session, false, lost) else { return };
        let message = Box::new(ToLablet::Sync(execution, down));
        self.at(at, Event::ToLablet { lablet, session, life, message });
    }

    /// Says when what is put on a stream now arrives: after all that was put on it before, and never where some of that
    /// was lost.
    fn on_stream(&mut self, lablet: usize, session: u64, up: bool, lost: bool) -> Option<u64> {
        let stream = self.streams.entry((lablet, session, up)).or_insert(Some(0));
        if lost {
            *stream = None;
        }
        let last = (*stream)?;
        let delay = self.sync.between(self.schedule.profile.delay_min_us, self.schedule.profile.delay_max_us);
        let at = last.max(self.now + delay * MICRO);
        self.streams.insert((lablet, session, up), Some(at));
        Some(at)
    }

    /// Notes that a message of a stream was lost on its way.
    pub(super) fn stream_broke(&mut self, lablet: usize, session: u64, up: bool) {
        self.streams.insert((lablet, session, up), None);
    }

    /// Whether a stream has lost something.
    pub(super) fn is_stream_broken(&self, lablet: usize, session: u64, up: bool) -> bool {
        self.streams.get(&(lablet, session, up)) == Some(&None)
    }

    /// Notes which of the instances that an effect loses wait for another attempt, as of now.
    pub(super) fn note_again(&mut self, execution: ExecutionId, instances: &[InstanceId]) {
        let Some(core) = &self.orchestrator.core else { return };
        let again = instances.iter().filter(|instance| core.runs_again(&execution, instance)).cloned().collect();
        self.orchestrator.again.push_back(again);
    }
}
