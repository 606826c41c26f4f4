//! `iptl exec`: a command in a running container, with this terminal or with plain pipes.

use std::io::{IsTerminal, Read, Write};

use iptl_dag::model::InstanceId;
use iptl_wire::control::{Reply, Request};
use iptl_wire::exec::{ExecInput, ExecOutput, MAX_CHUNK_SIZE};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::{Sayings, unexpected};
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::node;
use crate::terminal::{self, Raw};

/// Pieces of input that wait to be sent.
const INPUT_QUEUE: usize = 4;

/// Executes a command in a running container and ends with its status. The receipt of the instance says who did it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl exec x-7k3pq/peers/3 -- sh\n  \
                        tar c conf | iptl exec last/peers/0 -- tar x -C /tmp")]
pub struct Args {
    /// Instance: `execution/group/index`
    target: String,
    /// Pipes, also where this is a terminal
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Program with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let (execution, instance) = parse(&args.target)?;
    let attended = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let window = (attended && !args.no_tty && !ctx.json).then(terminal::window);
    let client = node::daemon(ctx).await?;
    let request = Request::Exec { execution, instance, command: args.command, terminal: window };
    let (mut sayings, replies) = client.attach(request).await?;
    let mut replies = replies.into_channel();
    match replies.recv().await {
        Some(Ok(Reply::Exec(ExecOutput::Started {}))) => {}
        Some(Ok(other)) => return Err(unexpected(&format!("{other:?}"))),
        Some(Err(error)) => return Err(error),
        None => return Err(unexpected("nothing")),
    }
    let raw = match window {
        Some(_) => Some(Raw::enter()?),
        None => None,
    };
    let told = tell(&mut sayings, window.is_some());
    let heard = hear(ctx, &mut replies, window.is_some());
    let status = tokio::select! {
        status = heard => status,
        // With a terminal it is a byte like others; without one there is nothing to send it with, and going away ends the
        // command.
        _ = tokio::signal::ctrl_c(), if window.is_none() => Ok(Exit::Interrupted),
        never = told => match never {},
    };
    drop(raw);
    status
}

fn parse(target: &str) -> Result<(String, InstanceId)> {
    let mut parts = target.splitn(3, '/');
    if let (Some(execution), Some(group), Some(Ok(index))) =
        (parts.next(), parts.next(), parts.next().map(str::parse::<u32>))
        && !group.is_empty()
    {
        return Ok((execution.to_owned(), InstanceId { group: group.to_owned(), index }));
    }
    Err(Error::usage(
        "exec.target",
        format!("`{target}` is no instance"),
        "write execution/group/index, as in `iptl exec last/peers/3 -- sh`",
    ))
}

/// Passes on what is typed, or comes by the pipe, and how large the terminal is. Never returns: that the command has
/// ended is heard elsewhere.
async fn tell(sayings: &mut Sayings, terminal: bool) -> std::convert::Infallible {
    let (sender, mut input) = mpsc::channel(INPUT_QUEUE);
    // Not on the runtime: a read of a terminal cannot be given up, and must not hold the end of the program up.
    let _reads_until_the_end = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || read(&sender));
    let mut resized = signal(SignalKind::window_change()).ok().filter(|_| terminal);
    let mut open = true;
    loop {
        let message = tokio::select! {
            piece = input.recv(), if open => match piece {
                Some(data) => ExecInput::Bytes { data },
                None => {
                    open = false;
                    ExecInput::End {}
                }
            },
            Some(()) = async { resized.as_mut()?.recv().await }, if resized.is_some() => {
                ExecInput::Resize(terminal::window())
            }
            else => std::future::pending().await,
        };
        if sayings.say(&message).await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn read(to: &mpsc::Sender<Vec<u8>>) {
    let mut piece = vec![0; MAX_CHUNK_SIZE];
    while let Ok(size @ 1..) = std::io::stdin().lock().read(&mut piece) {
        if to.blocking_send(piece[..size].to_vec()).is_err() {
            return;
        }
    }
}

/// Writes what the command says until it ends, and returns its status.
async fn hear(ctx: &Context, replies: &mut mpsc::Receiver<Result<Reply>>, terminal: bool) -> Result {
    while let Some(reply) = replies.recv().await {
        match reply? {
            Reply::Exec(ExecOutput::Started {}) => {}
            Reply::Exec(ExecOutput::Out { data }) if ctx.json => say(ctx, "out", &data),
            Reply::Exec(ExecOutput::Err { data }) if ctx.json => say(ctx, "err", &data),
            Reply::Exec(ExecOutput::Out { data }) => write(std::io::stdout().lock(), &data)?,
            Reply::Exec(ExecOutput::Err { data }) => write(std::io::stderr().lock(), &data)?,
            Reply::Exec(ExecOutput::Ended { code }) => {
                if ctx.json {
                    ctx.answer_json("exec-ended", json!({"status": code}));
                }
                return Ok(Exit::Remote(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            other => return Err(unexpected(&format!("{other:?}"))),
        }
    }
    let what = if terminal { "the terminal" } else { "the command" };
    Err(Error::new(
        Exit::LabUnable,
        "exec.lost",
        format!("{what} broke off, and no status came"),
        "see whether the instance still runs: `iptl ls runs`, `iptl ls lablets`",
    ))
}

fn say(ctx: &Context, stream: &str, data: &[u8]) {
    ctx.answer_json("exec-output", json!({"stream": stream, "text": String::from_utf8_lossy(data)}));
}

/// Writes bytes as they are: whoever executes something at a terminal wants what it does to terminals.
fn write(mut to: impl Write, data: &[u8]) -> std::io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_written_with_its_execution_and_group() {
        let (execution, instance) = parse("x-7k3pq/peers/3").unwrap();
        assert_eq!((execution.as_str(), instance.to_string().as_str()), ("x-7k3pq", "peers/3"));
        for bad in ["last", "last/peers", "last/peers/x", "last//3", "last/peers/3/4", "last/peers/-1"] {
            assert_eq!(parse(bad).unwrap_err().code, "exec.target", "{bad}");
        }
    }
}
