//! A cell while it runs: between its runner, the session and the other cells of its execution.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, ExecutionId, InstanceId};
use iptl_labnet::{Away, Batch, Directory, DirectoryError, NodeId, Packet, v4_of};
use iptl_runner::usage::GroupUsage;
use iptl_runner::{CellControl, CellEvent, CellInput, CellUsage, Ended, SyncCall, SyncReply};
use iptl_sync::{CellSync, Record, Reply, SyncOp};
use iptl_wire::session::{self, CellRef, MAX_BUSIEST, OutputLine, SyncDown, ToOrchestrator};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::Command;
use super::faults::Faults;
use super::memory::Memory;
use crate::carrier::Carrier;

/// Events that are taken from the runner before sync speaks, so that a crowd at a barrier costs one message.
const MAX_EVENTS_AT_ONCE: usize = 4096;

/// Answers of sync that wait for a runner; further ones stay in the topics that they come from.
const REPLY_QUEUE: usize = 256;

/// Time between two answers to who asks what instances use.
const MIN_GAUGE_PAUSE: Duration = Duration::from_millis(900);

/// Lines that are kept for whoever starts to follow.
const RECENT_LINES: usize = 2000;

/// The way to the orchestrator; none while there is no session.
pub(super) type Uplink = watch::Receiver<Option<mpsc::Sender<ToOrchestrator>>>;

/// What a cell is told by its lablet.
pub(super) enum CellNote {
    /// Sync from the orchestrator.
    Sync(SyncDown),
    /// Sends output from now on, the last lines first, or stops.
    Follow(bool),
    /// Says what its instances use.
    Gauge,
    /// The lab stops it; said before its instances are ended.
    Stopping,
    /// Instances of other cells moved.
    Directory(Box<session::Directory>),
}

/// Where the instances of an execution are.
pub(crate) struct Routes {
    directory: Directory,
    places: RwLock<Places>,
}

struct Places {
    placement: BTreeMap<(String, u32), (u32, PeerId)>,
    roster: BTreeMap<String, Vec<String>>,
}

impl Routes {
    pub(crate) fn new(
        groups: &BTreeMap<String, u32>,
        placement: &[Assignment],
        roster: BTreeMap<String, Vec<String>>,
    ) -> Result<Routes, DirectoryError> {
        let places = Places { placement: index(placement), roster };
        Ok(Routes { directory: Directory::new(groups)?, places: RwLock::new(places) })
    }

    /// Takes in that instances are elsewhere now.
    fn moved(&self, to: session::Directory) {
        let places = Places { placement: index(&to.placement), roster: to.roster };
        *self.places.write().unwrap_or_else(PoisonError::into_inner) = places;
    }

    /// Tells whether a lablet may send a packet: it comes from an instance that is placed there.
    pub(crate) fn may_send(&self, lablet: &PeerId, packet: &Bytes) -> bool {
        if let Some(origin) = Away::origin_of(packet) {
            return self.may_speak(lablet, origin);
        }
        let Ok(packet) = Packet::decode(packet) else { return false };
        let Some(src) = v4_of(packet.src().ip()) else { return false };
        self.read().lablet(&self.directory, src).is_some_and(|owner| owner == lablet)
    }

    /// Tells whether a lablet may send what a node of the lab network sent: nodes have the numbers of instances. What a
    /// router says, which is no node, anybody may who takes part.
    fn may_speak(&self, lablet: &PeerId, origin: Option<NodeId>) -> bool {
        let places = self.read();
        let Some(origin) = origin else {
            drop(places);
            return self.is_on(lablet);
        };
        let addr = self.directory.at(origin.index() as u64).and_then(|id| self.directory.addr(&id));
        addr.and_then(|addr| places.lablet(&self.directory, addr)).is_some_and(|owner| owner == lablet)
    }

    /// Tells whether there are instances on a lablet.
    pub(crate) fn is_on(&self, lablet: &PeerId) -> bool {
        self.read().placement.values().any(|(_, owner)| owner == lablet)
    }

    /// Returns the lablets with instances but for one, each with its addresses.
    pub(super) fn others(&self, but: &PeerId) -> Vec<(PeerId, Vec<String>)> {
        let places = self.read();
        let owners: BTreeSet<&PeerId> = places.placement.values().map(|(_, owner)| owner).collect();
        let others = owners.into_iter().filter(|owner| *owner != but);
        others.map(|owner| (owner.clone(), places.addrs(owner).to_vec())).collect()
    }

    /// Returns the lab addresses of the instances on a lablet.
    pub(crate) fn addrs_on(&self, lablet: &PeerId) -> Vec<Ipv4Addr> {
        let places = self.read();
        let ranges = places.placement.iter().filter(|(_, (_, owner))| owner == lablet);
        ranges
            .flat_map(|((group, start), (count, _))| InstanceId::range(group, *start, *count))
            .filter_map(|id| self.directory.addr(&id))
            .collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Places> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn lablet(&self, directory: &Directory, addr: Ipv4Addr) -> Option<&PeerId> {
        let id = directory.instance(addr)?;
        let ((group, start), (count, lablet)) = self.placement.range(..=(id.group.clone(), id.index)).next_back()?;
        (*group == id.group && id.index - start < *count).then_some(lablet)
    }

    fn addrs(&self, lablet: &PeerId) -> &[String] {
        self.roster.get(&lablet.to_string()).map_or(&[], Vec::as_slice)
    }
}

fn index(placement: &[Assignment]) -> BTreeMap<(String, u32), (u32, PeerId)> {
    placement
        .iter()
        .map(|Assignment { group, start, count, lablet }| ((group.clone(), *start), (*count, lablet.clone())))
        .collect()
}

/// Runs a cell until its runner says that it is over, and answers for what it contributed to sync until its lablet
/// forgets it: an orchestrator that comes back has lost that, and instances of other cells may wait for it.
pub(super) struct CellTask {
    pub(super) cell: CellRef,
    /// Let go of with the runner's cell.
    pub(super) control: Option<Arc<dyn CellControl>>,
    pub(super) events: mpsc::Receiver<CellEvent>,
    pub(super) notes: mpsc::Receiver<CellNote>,
    pub(super) uplink: Uplink,
    pub(super) lablet: mpsc::Sender<Command>,
    pub(super) carrier: Carrier,
    pub(super) routes: Arc<Routes>,
    pub(super) instances: Vec<InstanceId>,
    pub(super) attempt: u32,
    /// Where its sync remembers what it must, with what is there from an earlier life of the lablet; none where no
    /// instance can outlive the lablet.
    pub(super) memory: Option<(Memory, Vec<Record>)>,
    /// Instances that have ended without this cell's runner telling of it: they died with an earlier life.
    pub(super) gone: BTreeSet<InstanceId>,
}

impl CellTask {
    pub(super) async fn run(mut self) {
        let execution = self.cell.execution;
        let instances = std::mem::take(&mut self.instances);
        let (mut memory, mut sync) = match self.memory.take() {
            Some((memory, records)) => (Some(memory), CellSync::remembering(instances, records)),
            None => (None, CellSync::new(instances)),
        };
        sync = sync.of_attempt(self.attempt);
        for id in &self.gone {
            sync.end_instance(id);
        }
        if self.uplink.borrow_and_update().is_some() {
            sync.session_up();
        }
        let mut following = false;
        // Replies go out beside the loop: a runner that is slow to take them must not keep its events from being read.
        let (replies, queue) = mpsc::channel(REPLY_QUEUE);
        let mut held = None;
        let writer = self.control.take().map(|control| tokio::spawn(write_replies(control, queue)).abort_handle());
        let mut batch = Vec::with_capacity(MAX_EVENTS_AT_ONCE);
        let mut notes = Vec::new();
        let (mut over, mut told) = (false, false);
        // What each runner of the cell said last of its groups.
        let mut used: BTreeMap<Vec<String>, CellUsage> = BTreeMap::new();
        let mut used_told: Option<Instant> = None;
        let mut recent = VecDeque::with_capacity(RECENT_LINES);
        let mut faults = Faults::default();
        loop {
            let (mut lines, mut gauged) = (Vec::new(), false);
            tokio::select! {
                taken = self.events.recv_many(&mut batch, MAX_EVENTS_AT_ONCE), if !over => over = taken == 0,
                Ok(place) = replies.reserve(), if held.is_some() => {
                    if let Some(reply) = held.take() {
                        place.send(reply);
                    }
                }
                taken = self.notes.recv_many(&mut notes, MAX_EVENTS_AT_ONCE) => if taken == 0 { break },
                Ok(()) = self.uplink.changed() => match self.uplink.borrow_and_update().is_some() {
                    true => {
                        sync.session_up();
                        faults.say_again();
                    }
                    false => sync.session_down(),
                },
                () = faults.due() => faults.close(),
            }
            if !batch.is_empty() {
                // Whoever reads the runner goes first: what comes together is summed up together.
                tokio::task::yield_now().await;
                while batch.len() < MAX_EVENTS_AT_ONCE
                    && let Ok(event) = self.events.try_recv()
                {
                    batch.push(event);
                }
            }
            // That the cell is stopped is known before the first end that comes of it.
            while let Ok(note) = self.notes.try_recv() {
                notes.push(note);
            }
            for note in notes.drain(..) {
                match note {
                    CellNote::Sync(down) => sync.handle(down),
                    CellNote::Follow(on) => {
                        following = on;
                        if on {
                            lines.extend(recent.iter().cloned());
                        }
                    }
                    CellNote::Gauge => gauged = true,
                    CellNote::Stopping => sync.stop(),
                    CellNote::Directory(directory) => self.routes.moved(*directory),
                }
            }
            let mut ended = Vec::new();
            for event in batch.drain(..) {
                match event {
                    CellEvent::Output { id, stream, at_us, line } => {
                        let line = OutputLine { instance: id, stream: stream.name().to_owned(), at_us, line };
                        if following {
                            lines.push(line.clone());
                        }
                        if recent.len() == RECENT_LINES {
                            recent.pop_front();
                        }
                        recent.push_back(line);
                    }
                    CellEvent::Sync { id, call } => sync_call(&mut sync, &id, call),
                    CellEvent::Packets(batch) => self.carry(execution, batch),
                    CellEvent::Fault(done) => faults.add(done),
                    CellEvent::Usage(usage) => {
                        used.insert(usage.groups.keys().cloned().collect(), usage);
                    }
                    CellEvent::Ended { id, ended: how } => {
                        // What was done to it is told before its receipt.
                        faults.close();
                        sync.end_instance(&id);
                        ended.push((id, how));
                    }
                    CellEvent::CellOver => over = true,
                }
            }
            // Before anything that follows from it leaves.
            remember(&mut sync, &mut memory, &execution);
            while held.is_none()
                && let Some((id, call, answer)) = sync.poll_reply()
            {
                if let Err(TrySendError::Full(reply)) = replies.try_send(reply(id, call, answer)) {
                    held = Some(reply);
                }
            }
            let uplink = self.uplink.borrow().clone();
            if let Some(uplink) = uplink {
                while let Some(up) = sync.poll_up() {
                    let _down = uplink.send(ToOrchestrator::Sync(execution, up)).await;
                }
                if gauged && used_told.is_none_or(|told| told.elapsed() >= MIN_GAUGE_PAUSE) {
                    used_told = Some(Instant::now());
                    let _down = uplink.send(ToOrchestrator::Usage(execution, sum(used.values()))).await;
                }
                if let Some(news) = faults.news() {
                    let _down = uplink.send(ToOrchestrator::Faults(self.cell.clone(), news)).await;
                }
                if !lines.is_empty() {
                    let _down = uplink.send(ToOrchestrator::Output(execution, lines)).await;
                }
            }
            if !ended.is_empty() {
                self.report(ended).await;
            }
            if over && !told {
                told = true;
                writer.iter().for_each(AbortHandle::abort);
                self.carrier.detach(&execution);
                let _gone = self.lablet.send(Command::CellOver { cell: self.cell.clone() }).await;
            }
        }
        writer.iter().for_each(AbortHandle::abort);
    }

    fn carry(&self, execution: ExecutionId, batch: Batch) {
        let places = self.routes.read();
        let lablet = |packet: &Bytes| {
            let dst = self.routes.directory.destination(packet)?;
            // Who is here and took no packet has ended.
            places.lablet(&self.routes.directory, dst).filter(|lablet| !self.carrier.is_here(lablet))
        };
        for (lablet, batch) in batch.split(lablet) {
            self.carrier.send(lablet, places.addrs(lablet), execution, batch);
        }
    }

    async fn report(&self, ended: Vec<(InstanceId, Ended)>) {
        let _gone = self.lablet.send(Command::Ended { cell: self.cell.clone(), ended }).await;
    }
}

/// Writes down what sync must not forget. Where that fails the cell runs on, and would not be what it was after a
/// restart: nothing more is written, so that it is lost then and not wrong.
fn remember(sync: &mut CellSync, memory: &mut Option<Memory>, execution: &ExecutionId) {
    let records: Vec<Record> = std::iter::from_fn(|| sync.poll_record()).collect();
    if let Some(file) = memory
        && !records.is_empty()
        && let Err(error) = file.add(&records)
    {
        tracing::error!(%error, execution = %execution.alias(), "a cell will not survive a restart of this lablet");
        file.give_up();
        *memory = None;
    }
}

async fn write_replies(control: Arc<dyn CellControl>, mut queue: mpsc::Receiver<SyncReply>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, REPLY_QUEUE).await > 0 {
        control.input(batch.drain(..).map(CellInput::Sync).collect()).await;
    }
}

/// Sums up what the runners of a cell say of their groups.
fn sum<'a>(parts: impl Iterator<Item = &'a CellUsage>) -> session::CellUsage {
    let mut all = session::CellUsage::default();
    for part in parts {
        for (name, used) in &part.groups {
            let GroupUsage { running, cpu_milli, cpu_us, memory_bytes, sent_bytes, received_bytes } = *used;
            let used = session::GroupUsage { running, cpu_milli, cpu_us, memory_bytes, sent_bytes, received_bytes };
            all.groups.insert(name.clone(), used);
        }
        all.busiest.extend(part.busiest.iter().map(|row| session::InstanceUsage {
            instance: row.id.clone(),
            cpu_milli: row.cpu_milli,
            memory_bytes: row.memory_bytes,
        }));
    }
    all.busiest.sort_by_key(|row| std::cmp::Reverse((row.cpu_milli, row.memory_bytes)));
    all.busiest.truncate(MAX_BUSIEST);
    all
}

fn sync_call(sync: &mut CellSync, id: &InstanceId, call: SyncCall) {
    match call {
        SyncCall::Signal { call, state } => sync.call(id, call, SyncOp::Signal { state }),
        SyncCall::Barrier { call, state, target } => sync.call(id, call, SyncOp::Barrier { state, target }),
        SyncCall::SignalAndWait { call, state, target } => sync.call(id, call, SyncOp::SignalAndWait { state, target }),
        SyncCall::Publish { call, topic, payload } => {
            sync.call(id, call, SyncOp::Publish { topic, payload: payload.into() });
        }
        SyncCall::Subscribe { call, topic } => sync.call(id, call, SyncOp::Subscribe { topic }),
        SyncCall::Cancel { call } => sync.call(id, call, SyncOp::Cancel),
    }
}

fn reply(id: InstanceId, call: u64, answer: Reply) -> SyncReply {
    match answer {
        Reply::Signalled { seq } => SyncReply::Signalled { id, call, seq },
        Reply::Opened { seq } => SyncReply::Opened { id, call, seq },
        Reply::Published { position } => SyncReply::Published { id, call, position },
        Reply::Message { position, payload } => SyncReply::Message { id, call, position, payload: payload.into() },
        Reply::Failed(error) => SyncReply::Failed { id, call, reason: error.to_string() },
    }
}
