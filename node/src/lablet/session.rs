//! The session of a lablet: opened, kept, and opened again when it breaks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_wire::session::{MAX_MESSAGE_SIZE, PROTOCOL, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::takeover::Orchestrators;
use tokio::io::{BufReader, ReadHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Command;
use crate::clock;
use crate::framed;
use crate::links::{Links, Stream};
use crate::members::Members;

/// Messages that wait to be written.
const OUT_QUEUE: usize = 4096;

/// Heartbeats without a word from the orchestrator, which answers each, before its session counts as broken: a machine
/// that lost its power says no goodbye, and the transport notices long after the lease is over.
const SILENT_HEARTBEATS: u32 = 2;

/// Pauses between attempts to reach the orchestrator: quick at first, since most breaks are short, and never so long
/// that a lease runs out while an orchestrator that is back waits to be tried.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Shortest patience with one attempt, and with the answer to hello. An orchestrator that comes back a moment after it was
/// dialled refused TCP already, and QUIC asks it again ever more rarely: a new dial finds it sooner, while the lease still
/// holds.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// Patience with an attempt, as a multiple of the pause before it; the way through a relay takes some seconds.
const PATIENCE_PER_PAUSE: u32 = 5;

/// Shortest time until the orchestrator is dialled once more while an attempt goes on, for the same reason.
const REDIAL_PAUSE: Duration = Duration::from_millis(500);

/// Keeps a session with the orchestrator that leads.
pub(super) struct SessionKeeper {
    pub(super) links: Links,
    pub(super) lab: PeerId,
    /// Who leads, as far as is known; and whom to ask where that one is gone.
    pub(super) members: Members,
    pub(super) lablet: mpsc::Sender<Command>,
    pub(super) stop: CancellationToken,
    /// Why there is no session; empty where there is one.
    pub(super) state: Arc<tokio::sync::watch::Sender<String>>,
}

impl SessionKeeper {
    /// Runs until the node stops.
    pub(super) async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let stop = self.stop.clone();
        let mut learned = self.members.learned();
        // Tries since the last session: the others are asked in turn with who leads.
        let mut tries = 0;
        loop {
            let candidates = self.members.candidates();
            let Some((orchestrator, addrs)) = candidates.get(tries % candidates.len().max(1)).cloned() else {
                tracing::error!("a lablet without a lab");
                return;
            };
            let leader = candidates.into_iter().next().map(|(peer, _)| peer);
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.session(&orchestrator, &addrs, pause) => ended,
                () = another_leads(&self.members, &mut learned, leader.as_ref()) => Ok(()),
            };
            let _gone = self.lablet.send(Command::Down { orchestrator: orchestrator.clone() }).await;
            match ended {
                Ok(()) => (pause, tries) = (FIRST_PAUSE, 0),
                Err(reason) => {
                    tracing::info!(%orchestrator, reason, retry_ms = pause.as_millis(), "no session");
                    self.state.send_replace(reason);
                    pause = (pause * 2).min(LAST_PAUSE);
                    tries += 1;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = another_leads(&self.members, &mut learned, leader.as_ref()) => (pause, tries) = (FIRST_PAUSE, 0),
                () = tokio::time::sleep(jitter(pause)) => {}
            }
        }
    }

    /// One session, from hello to its end; there was this pause before it.
    async fn session(&self, orchestrator: &PeerId, addrs: &[String], pause: Duration) -> Result<(), String> {
        let patience = FIRST_PATIENCE.max(pause * PATIENCE_PER_PAUSE);
        let opening = async {
            tokio::select! {
                opened = self.links.open(orchestrator, addrs, PROTOCOL) => opened,
                never = self.redial(orchestrator, addrs, REDIAL_PAUSE.max(pause)) => match never {},
            }
        };
        let Ok(opened) = tokio::time::timeout(patience, opening).await else {
            self.give_up(orchestrator).await;
            return Err(format!("cannot reach {} within {} s", orchestrator.short(), patience.as_secs()));
        };
        let stream = opened.map_err(|e| e.to_string())?;
        let (answer, hello) = oneshot::channel();
        let _stopped = self.lablet.send(Command::Hello { answer }).await;
        let hello = hello.await.map_err(|_| "the lablet has stopped")?;
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::with_capacity(64 << 10, reader);
        let promised = hello.promised.as_ref().map(|claim| claim.body.term.clone());
        let hello_at = clock::now();
        framed::write(&mut writer, &ToOrchestrator::Hello(*hello)).await.map_err(|e| e.to_string())?;
        let Ok(welcome) = tokio::time::timeout(patience, self.welcome(&mut reader, orchestrator)).await else {
            self.give_up(orchestrator).await;
            return Err("the orchestrator did not answer hello".to_owned());
        };
        let welcome = welcome?;
        self.state.send_replace(String::new());
        let (out, queue) = mpsc::channel(OUT_QUEUE);
        let mut writing = tokio::spawn(framed::write_queue(writer, queue, stamp));
        let heartbeat_ms = welcome.heartbeat_ms;
        let up = Command::Up { orchestrator: orchestrator.clone(), hello_at, promised, welcome, out };
        tokio::select! {
            () = self.pump(&mut reader, orchestrator.clone(), heartbeat_ms, up) => {}
            // The lablet turned to another orchestrator.
            _ = &mut writing => {}
        }
        writing.abort();
        Ok(())
    }

    /// Dials the orchestrator again and again, for whoever waits for a connection to it.
    async fn redial(&self, orchestrator: &PeerId, addrs: &[String], pause: Duration) -> Infallible {
        let Some(net) = self.links.net() else { return std::future::pending().await };
        tokio::time::sleep(pause).await;
        loop {
            // A dial goes on when nobody waits for it any more.
            let dial = tokio::time::timeout(pause, net.connect(orchestrator, addrs));
            let _later = tokio::join!(dial, tokio::time::sleep(pause));
        }
    }

    /// Closes a connection on which nothing comes: it may lead to an earlier life of the orchestrator, which died without a
    /// word, and every further attempt would wait on it.
    async fn give_up(&self, orchestrator: &PeerId) {
        if let Some(net) = self.links.net() {
            net.disconnect(orchestrator).await;
        }
    }

    async fn welcome(
        &self,
        reader: &mut BufReader<ReadHalf<Stream>>,
        orchestrator: &PeerId,
    ) -> Result<Welcome, String> {
        match framed::expect(reader, MAX_MESSAGE_SIZE).await.map_err(|e| e.to_string())? {
            ToLablet::Welcome(welcome) => {
                iptl_trust::check_certificate(&welcome.certificate, &self.lab, orchestrator, clock::wall())
                    .map_err(|e| e.to_string())?;
                if let Some(claim) = &welcome.claim {
                    iptl_trust::check_claim(claim, &self.lab, clock::wall())
                        .map_err(|e| format!("the claim to lead: {e}"))?;
                    self.members.learn_orchestrators(Orchestrators { claim: Some(claim.clone()), seats: Vec::new() });
                }
                Ok(welcome)
            }
            ToLablet::Turned(reason) => Err(reason),
            _ => Err("the orchestrator did not answer hello".to_owned()),
        }
    }

    async fn pump(
        &self,
        reader: &mut BufReader<ReadHalf<Stream>>,
        orchestrator: PeerId,
        mut heartbeat_ms: u32,
        up: Command,
    ) {
        if self.lablet.send(up).await.is_err() {
            return;
        }
        loop {
            let silence = Duration::from_millis(u64::from(heartbeat_ms.max(1))) * SILENT_HEARTBEATS;
            let read = framed::read::<ToLablet>(reader, MAX_MESSAGE_SIZE);
            let Ok(read) = tokio::time::timeout(silence, read).await else {
                tracing::warn!(ms = silence.as_millis(), "the orchestrator is silent; its connection is made anew");
                self.give_up(&orchestrator).await;
                return;
            };
            if let Ok(Some(ToLablet::Lease(renewal))) = &read {
                heartbeat_ms = renewal.heartbeat_ms;
            }
            let command = match read {
                Ok(Some(ToLablet::Orchestrators(known))) => {
                    self.members.learn_orchestrators(known.clone());
                    let message = ToLablet::Orchestrators(known);
                    Command::Message { from: orchestrator.clone(), message }
                }
                Ok(Some(ToLablet::Sync(execution, down))) => Command::Sync { execution, down },
                Ok(Some(message)) => Command::Message { from: orchestrator.clone(), message },
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "the session broke");
                    return;
                }
            };
            if self.lablet.send(command).await.is_err() {
                return;
            }
        }
    }
}

/// Returns once another orchestrator is known to lead. Cancel safe.
async fn another_leads(members: &Members, learned: &mut watch::Receiver<u64>, leader: Option<&PeerId>) {
    while members.leader().as_ref().map(|(peer, _)| peer) == leader {
        if learned.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Writes the wall time of sending into a heartbeat.
fn stamp(message: &mut ToOrchestrator) {
    if let ToOrchestrator::Heartbeat(heartbeat) = message {
        heartbeat.wall_us = clock::wall_us();
    }
}

/// Spreads the attempts of many lablets that lost the same orchestrator.
fn jitter(pause: Duration) -> Duration {
    let mut byte = [0];
    let _zero_will_do = getrandom::fill(&mut byte);
    pause.mul_f64(0.75 + f64::from(byte[0]) / 512.0)
}
