//! Sessions of lablets: the first message is checked, then both ways are pumped.

use std::time::Duration;

use iptl_dag::PeerId;
use iptl_wire::lab::Role;
use iptl_wire::session::{Hello, MAX_MESSAGE_SIZE, PROTOCOL, ToLablet, ToOrchestrator};
use iptl_wire::takeover::Orchestrators;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, watch};

use super::Command;
use crate::clock;
use crate::framed;
use crate::gate::{Gate, Place};
use crate::links::{Links, Stream};
use crate::members::Members;

/// Streams that wait to be accepted: a lab of a thousand lablets that all come back at once.
const ACCEPT_QUEUE: usize = 1024;

/// Longest wait for hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams of one peer that have not said hello: one that is new, and those of a connection that just broke.
const MAX_GREETING_PER_PEER: usize = 4;

/// Messages that wait to be written to one lablet; one that takes them slower than this is cut off and comes back.
const OUT_QUEUE: usize = 4096;

/// The way to a lablet.
pub(super) type Outbox = mpsc::Sender<ToLablet>;

/// Accepts sessions until the node ends.
pub(super) async fn accept(links: Links, members: Members, driver: watch::Receiver<Option<mpsc::Sender<Command>>>) {
    let mut incoming = links.accept(PROTOCOL, ACCEPT_QUEUE).await;
    let gate = Gate::new(MAX_GREETING_PER_PEER);
    let mut number = 0;
    while let Some((peer, stream)) = incoming.recv().await {
        let Some(place) = gate.enter(&peer) else {
            tracing::debug!(%peer, "too many sessions of one peer that say no hello");
            continue;
        };
        number += 1;
        tokio::spawn(serve(peer, stream, place, number, members.clone(), driver.clone()));
    }
}

async fn serve(
    peer: PeerId,
    stream: Stream,
    place: Place,
    session: u64,
    members: Members,
    driver: watch::Receiver<Option<mpsc::Sender<Command>>>,
) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, hello(&mut reader, &peer, &members)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(reason)) => {
            tracing::warn!(%peer, reason, "refused a session");
            let _gone = framed::write(&mut writer, &ToLablet::Turned(reason)).await;
            let _gone = writer.shutdown().await;
            return;
        }
        Err(_) => {
            tracing::warn!(%peer, "a session said no hello");
            return;
        }
    };
    drop(place);
    let Some(driver) = driver.borrow().clone() else {
        let leader = members.leader().map_or_else(|| "nobody".to_owned(), |(peer, _)| peer.to_string());
        let reason = format!("another orchestrator leads the lab: {leader}");
        let _gone = framed::write(&mut writer, &ToLablet::Turned(reason)).await;
        let _gone = writer.shutdown().await;
        return;
    };
    let (outbox, queue) = mpsc::channel(OUT_QUEUE);
    let writing = tokio::spawn(framed::write_queue(writer, queue, stamp));
    if driver.send(Command::Hello { from: peer.clone(), session, hello: Box::new(hello), outbox }).await.is_err() {
        return;
    }
    let reading = async {
        loop {
            match framed::read::<ToOrchestrator>(&mut reader, MAX_MESSAGE_SIZE).await {
                Ok(Some(message)) => {
                    if driver.send(Command::Message { from: peer.clone(), session, message }).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%peer, %error, "a session broke");
                    break;
                }
            }
        }
    };
    tokio::select! {
        () = reading => {}
        // It comes back, and is turned away with the reason.
        () = members.revoked(&peer) => tracing::warn!(%peer, "cut the session of a member that was revoked"),
    }
    let _ended = driver.send(Command::Gone { from: peer, session }).await;
    writing.abort();
}

/// Reads hello and checks the membership in it.
async fn hello(
    reader: &mut BufReader<tokio::io::ReadHalf<Stream>>,
    peer: &PeerId,
    members: &Members,
) -> Result<Hello, String> {
    match framed::expect(reader, MAX_MESSAGE_SIZE).await.map_err(|e| e.to_string())? {
        ToOrchestrator::Hello(hello) => {
            let role = members.admit(peer, &hello.token)?;
            if let Some(claim) = &hello.promised {
                // Its token is one of this lab, which was checked a moment ago.
                let lab = &hello.token.body.lab;
                iptl_trust::check_claim(claim, lab, clock::wall()).map_err(|e| format!("what was promised: {e}"))?;
                members.learn_orchestrators(Orchestrators { claim: Some(claim.clone()), seats: Vec::new() });
            }
            match role {
                Role::Lablet | Role::Orchestrator => Ok(hello),
                Role::Developer => Err("a developer's membership lends no machine".to_owned()),
            }
        }
        _ => Err("the first message is not hello".to_owned()),
    }
}

/// Writes the wall time of sending into a lease.
fn stamp(message: &mut ToLablet) {
    if let ToLablet::Lease(renewal) = message {
        renewal.wall_us = clock::wall_us();
    }
}
