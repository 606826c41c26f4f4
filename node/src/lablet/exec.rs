//! Commands that people execute in instances of this lablet: the orchestrator asks for them on a stream of its own, over
//! the connection that the lablet has made.

use std::sync::Arc;
use std::time::Duration;

use iptl_dag::model::Intervention;
use iptl_runner::OutputStream;
use iptl_runner::{CellControl, ExecError, ExecInput as Told, ExecOrder as Order, ExecOutput as Said, ExecStream};
use iptl_wire::control::{Failure, FailureKind, Reply};
use iptl_wire::exec::{ExecInput, ExecOrder, ExecOutput, MAX_CHUNK_SIZE, MAX_FRAME_SIZE, PROTOCOL};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Command;
use super::interventions::{Interventions, NotBegun};
use crate::clock;
use crate::framed;
use crate::links::{Links, Stream};
use crate::members::Members;

/// Streams that wait to be accepted.
const ACCEPT_QUEUE: usize = 64;

/// Commands that run at a time on one lablet: each is a person at a terminal, or a script that had better wait.
const MAX_AT_ONCE: usize = 32;

/// Longest wait for the order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for a command to end that nobody is attached to any more.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a command may run.
pub(crate) struct Permit {
    pub(super) control: Arc<dyn CellControl>,
    pub(super) interventions: Interventions,
}

/// Accepts streams of who leads until the node stops.
pub(super) async fn serve(links: Links, members: Members, lablet: mpsc::Sender<Command>, stop: CancellationToken) {
    let mut incoming = links.accept(PROTOCOL, ACCEPT_QUEUE).await;
    let places = Arc::new(Semaphore::new(MAX_AT_ONCE));
    while let Some((peer, stream)) = incoming.recv().await {
        if members.leader().is_none_or(|(leader, _)| peer != leader) {
            tracing::warn!(%peer, "refused a command of somebody who does not lead the lab");
            continue;
        }
        let (lablet, stop, place) = (lablet.clone(), stop.clone(), places.clone().try_acquire_owned());
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let last = match place {
                Ok(_place) => tokio::select! {
                    done = attend(&mut reader, &mut writer, &lablet) => done,
                    () = stop.cancelled() => Err(broken("the lablet stops".to_owned())),
                },
                Err(_) => {
                    // Its order is read first: a stream that ends before would break while who asks still writes.
                    let order = framed::read::<ExecOrder>(&mut reader, MAX_FRAME_SIZE);
                    let _unread = tokio::time::timeout(ORDER_TIMEOUT, order).await;
                    Err(refusal(
                        FailureKind::LabUnable,
                        "exec.too-many",
                        format!("{MAX_AT_ONCE} commands run on this lablet already"),
                        "end one of them, or try again",
                    ))
                }
            };
            let last = last.map_or_else(Reply::Error, |()| Reply::End {});
            let _gone = framed::write(&mut writer, &last).await;
            let _gone = writer.shutdown().await;
        });
    }
}

/// Reads the order, has it permitted, and lets the command run to its end.
async fn attend(
    reader: &mut tokio::io::ReadHalf<Stream>,
    writer: &mut tokio::io::WriteHalf<Stream>,
    lablet: &mpsc::Sender<Command>,
) -> Result<(), Failure> {
    let order: ExecOrder = tokio::time::timeout(ORDER_TIMEOUT, framed::expect(reader, MAX_FRAME_SIZE))
        .await
        .map_err(|_| broken("no order came".to_owned()))?
        .map_err(|e| broken(format!("the order is not understood: {e}")))?;
    let (answer, permit) = oneshot::channel();
    let stopped = || broken("the lablet stops".to_owned());
    lablet.send(Command::Exec { order: order.clone(), answer }).await.map_err(|_| stopped())?;
    let Permit { control, interventions } = permit.await.map_err(|_| stopped())??;
    let at = Intervention { by: order.by, at_ms: clock::wall().0, command: order.command.clone(), exit: None };
    let begun = interventions.begin(order.instance.clone(), at).map_err(|e| match e {
        NotBegun::TooMany => refusal(FailureKind::LabUnable, "exec.too-many", e.to_string(), "begin another run"),
        NotBegun::Io(io) => broken(format!("{}: {io}", NotBegun::Io(std::io::Error::from(io.kind())))),
    })?;
    let terminal = order.terminal.map(|window| (window.columns, window.rows));
    let stream = control.exec(Order { id: order.instance, command: order.command, terminal }).await;
    // Nothing of the cell is held while the command runs: the cell may end.
    drop(control);
    match stream {
        Ok(stream) => {
            let code = run(stream, reader, writer).await;
            if let Some(code) = code {
                begun.ended(Some(code));
            }
            Ok(())
        }
        Err(error) => {
            begun.ended(None);
            Err(not_started(&error))
        }
    }
}

/// Lets a command run while somebody is attached to it; returns its status, where that is known.
///
/// Output is read from the command no faster than it is taken, and input from the stream no faster than the command
/// takes it.
async fn run(
    stream: ExecStream,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Option<i32> {
    let ExecStream { input, mut output } = stream;
    let _gone = say(writer, ExecOutput::Started {}).await;
    let attached = async {
        let told = listen(reader, input);
        tokio::pin!(told);
        loop {
            let said = tokio::select! {
                () = &mut told => return None,
                said = output.recv() => said?,
            };
            let written = match said {
                Said::Ended(code) => {
                    let _gone = say(writer, ExecOutput::Ended { code }).await;
                    return Some(code);
                }
                Said::Bytes(to, bytes) => write(writer, to, &bytes).await,
            };
            if written.is_err() {
                return None;
            }
        }
    };
    if let Some(code) = attached.await {
        return Some(code);
    }
    // Whoever was attached has gone, and with them the command's input: that ends it.
    let ending = async {
        loop {
            match output.recv().await {
                Some(Said::Ended(code)) => return Some(code),
                Some(Said::Bytes(..)) => {}
                None => return None,
            }
        }
    };
    tokio::time::timeout(END_TIMEOUT, ending).await.ok().flatten()
}

/// Hands over what the asker says; returns when the asker has gone.
async fn listen(reader: &mut (impl AsyncRead + Unpin), input: mpsc::Sender<Told>) {
    let mut open = true;
    loop {
        let told = match framed::read::<ExecInput>(reader, MAX_FRAME_SIZE).await {
            Ok(Some(ExecInput::Bytes { data })) => Told::Bytes(data),
            Ok(Some(ExecInput::Resize(window))) => Told::Resize(window.columns, window.rows),
            Ok(Some(ExecInput::End {})) => Told::End,
            Ok(None) | Err(_) => return,
        };
        // A command that has closed its input is attached to all the same.
        open = open && input.send(told).await.is_ok();
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), to: OutputStream, bytes: &[u8]) -> std::io::Result<()> {
    for part in bytes.chunks(MAX_CHUNK_SIZE) {
        let data = part.to_vec();
        let said = match to {
            OutputStream::Out => ExecOutput::Out { data },
            OutputStream::Err => ExecOutput::Err { data },
        };
        say(writer, said).await?;
    }
    Ok(())
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), said: ExecOutput) -> std::io::Result<()> {
    framed::write(writer, &Reply::Exec(said)).await
}

fn not_started(error: &ExecError) -> Failure {
    let message = error.to_string();
    match error {
        ExecError::Unsupported => unsupported(message),
        ExecError::NotRunning(_) => not_running(message),
        ExecError::Failed { .. } => {
            refusal(FailureKind::LabUnable, "exec.failed", message, "see whether the program is in the image")
        }
    }
}

pub(super) fn unsupported(message: String) -> Failure {
    let help = "only groups of containers can have `exec = true`; for others see `iptl logs`";
    refusal(FailureKind::Usage, "exec.unsupported", message, help)
}

pub(super) fn not_running(message: String) -> Failure {
    refusal(FailureKind::NotFound, "exec.not-running", message, "see what runs: `iptl ls runs`, `iptl logs`")
}

pub(super) fn not_allowed(message: String, help: &str) -> Failure {
    refusal(FailureKind::Denied, "exec.not-allowed", message, help)
}

fn broken(message: String) -> Failure {
    refusal(FailureKind::Broken, "node.broken", message, "see the log of the lablet's node")
}

fn refusal(kind: FailureKind, code: &str, message: String, help: &str) -> Failure {
    Failure { kind, code: code.to_owned(), message, help: help.to_owned() }
}
