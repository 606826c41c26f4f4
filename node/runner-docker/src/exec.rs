//! Commands that people execute in running containers, with what their user and their limits are there.

use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{ResizeExecOptions, StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures::StreamExt;
use iptl_runner::{ExecError, ExecInput, ExecOrder, ExecOutput, ExecStream, OutputStream};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};

use crate::engine::{Engine, said};
use crate::protocol::{END_VERB, INIT_PATH, MARK};

/// Messages that either side may lag behind.
const QUEUE: usize = 64;

/// Time between two looks whether a command whose output is over has a status.
const STATUS_LOOK: Duration = Duration::from_millis(50);

/// Looks for a status.
const STATUS_LOOKS: u32 = 100;

/// Looks at a command that nobody attends before it is ended by force.
const LEAVE_LOOKS: u32 = 10;

/// Ends a command that does not end by itself, with all that it started: the engine has no word for that, so the first
/// process's program does it inside.
async fn end(docker: &Docker, id: &str, container: &str, mark: &str) {
    for _ in 0..LEAVE_LOOKS {
        if docker.inspect_exec(id).await.is_ok_and(|exec| exec.running != Some(true)) {
            return;
        }
        tokio::time::sleep(STATUS_LOOK).await;
    }
    let config =
        ExecConfig { cmd: Some([INIT_PATH, END_VERB, mark].map(str::to_owned).to_vec()), ..ExecConfig::default() };
    let ending = async {
        let ender = docker.create_exec(container, config).await?.id;
        docker.start_exec(&ender, Some(StartExecOptions { detach: true, ..StartExecOptions::default() })).await
    };
    if let Err(e) = ending.await {
        // Most likely its container is over, and the command with it.
        tracing::info!(error = %said(&e), container, "a command that nobody attends may go on");
    }
}

/// Starts a command in a container.
pub(crate) async fn start(engine: &Engine, container: &str, order: ExecOrder) -> Result<ExecStream, ExecError> {
    let program = order.command.first().cloned().unwrap_or_default();
    let failed = |e: bollard::errors::Error| ExecError::Failed { command: program.clone(), reason: said(&e) };
    let docker = engine.docker().clone();
    let mark = crate::state::hex(
        &crate::state::random()
            .map_err(|e| ExecError::Failed { command: program.clone(), reason: format!("no random number: {e}") })?,
    );
    let config = ExecConfig {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(order.terminal.is_some()),
        cmd: Some(order.command),
        env: Some(vec![format!("{MARK}={mark}")]),
        ..ExecConfig::default()
    };
    let id = docker.create_exec(container, config).await.map_err(failed)?.id;
    let options = StartExecOptions { tty: order.terminal.is_some(), ..StartExecOptions::default() };
    let StartExecResults::Attached { output: mut from, input: mut to } =
        docker.start_exec(&id, Some(options)).await.map_err(failed)?
    else {
        return Err(ExecError::Failed { command: program, reason: "the engine did not attach".to_owned() });
    };
    if let Some((columns, rows)) = order.terminal {
        let _ = docker.resize_exec(&id, ResizeExecOptions { width: columns, height: rows }).await;
    }
    let (input, mut inputs) = mpsc::channel(QUEUE);
    let (output, outputs) = mpsc::channel(QUEUE);
    let (engine, name, container) = (docker.clone(), id.clone(), container.to_owned());
    let terminal = order.terminal.is_some();
    let (over, mut is_over) = oneshot::channel::<()>();
    let writing = tokio::spawn(async move {
        let mut open = true;
        loop {
            let input = tokio::select! {
                input = inputs.recv() => input,
                _ = &mut is_over => return,
            };
            let Some(input) = input else { break };
            match input {
                // One that has closed its input runs on.
                ExecInput::Bytes(bytes) => {
                    open = open && to.write_all(&bytes).await.is_ok() && to.flush().await.is_ok();
                }
                ExecInput::Resize(columns, rows) => {
                    let _ = engine.resize_exec(&name, ResizeExecOptions { width: columns, height: rows }).await;
                }
                ExecInput::End => {
                    let _ = to.shutdown().await;
                }
            }
        }
        // Nobody attends it any more. The engine would let the command go on for ever, so it gets what a person would
        // type to leave: an interrupt, and the end of input. What takes no notice of that is ended.
        if terminal {
            let _ = to.write_all(b"\x03\x04").await;
            let _ = to.flush().await;
        }
        let _ = to.shutdown().await;
        end(&engine, &name, &container, &mark).await;
    });
    tokio::spawn(async move {
        while let Some(Ok(said)) = from.next().await {
            let (stream, message) = match said {
                LogOutput::StdErr { message } => (OutputStream::Err, message),
                LogOutput::StdOut { message } | LogOutput::Console { message } => (OutputStream::Out, message),
                LogOutput::StdIn { .. } => continue,
            };
            if output.send(ExecOutput::Bytes(stream, message.to_vec())).await.is_err() {
                // Nobody listens any more, and so nobody types: the writer has the last word.
                let _ = writing.await;
                return;
            }
        }
        drop(over);
        let mut status = None;
        for _ in 0..STATUS_LOOKS {
            let found = docker.inspect_exec(&id).await.ok();
            status = found.as_ref().and_then(|exec| exec.exit_code);
            // One whose container is over never gets one.
            if status.is_some() || found.is_none_or(|exec| exec.running != Some(true)) {
                break;
            }
            tokio::time::sleep(STATUS_LOOK).await;
        }
        let code = status.and_then(|code| i32::try_from(code).ok()).unwrap_or(137);
        let _ = output.send(ExecOutput::Ended(code)).await;
    });
    Ok(ExecStream { input, output: outputs })
}
