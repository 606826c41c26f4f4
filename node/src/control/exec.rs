//! Commands in running instances: the orchestrator finds the lablet, and everybody on the way passes on what is said.

use std::sync::Arc;

use iptl_dag::model::InstanceId;
use iptl_wire::control::{Failure, FailureKind, Request};
use iptl_wire::exec::{ExecOrder, MAX_COMMAND_SIZE, PROTOCOL, Window};

use super::{Caller, Talk, failure, leading, remote, stopped};
use crate::framed;
use crate::node::Node;
use crate::orchestrator::Ask;

/// What is asked for.
pub(super) struct Wanted {
    pub(super) execution: String,
    pub(super) instance: InstanceId,
    pub(super) command: Vec<String>,
    pub(super) terminal: Option<Window>,
}

pub(super) async fn exec(node: &Arc<Node>, caller: &Caller, wanted: Wanted, talk: &mut Talk) -> Result<(), Failure> {
    caller.developer()?;
    check(&wanted.command)?;
    let Wanted { execution, instance, command, terminal } = wanted;
    let Some(lab) = leading(node).await else {
        let request = Request::Exec { execution, instance, command, terminal };
        let answer = remote::ask(node, caller, &request).await?;
        return remote::relay(talk, answer).await;
    };
    let by = match caller {
        Caller::Owner => None,
        Caller::Member { peer, .. } => Some(peer.clone()),
    };
    let wanted = instance.clone();
    let (id, lablet) =
        lab.ask(|answer| Ask::Locate { name: execution, instance: wanted, by, answer }).await.map_err(stopped)??;
    let away = |reason: String| {
        let message = format!("the lablet of {instance} is away: {reason}");
        failure(FailureKind::LabUnable, "exec.unreachable", message, "see `iptl ls lablets`, and try again")
    };
    // The lablet has a session here, and so a connection; it is never dialled.
    let mut stream = node.links.open_connected(&lablet, PROTOCOL).await.map_err(|e| away(e.to_string()))?;
    let order = ExecOrder { execution: id, instance: instance.clone(), command, terminal, by: caller.peer(node) };
    framed::write(&mut stream, &order).await.map_err(|e| away(e.to_string()))?;
    remote::relay(talk, remote::Answer::of(stream).await?).await
}

/// Refuses what is no command, or one that no receipt could hold.
fn check(command: &[String]) -> Result<(), Failure> {
    let wrong = |message: String| {
        Err(failure(FailureKind::Usage, "exec.command", message, "for example: `iptl exec last/peers/0 -- sh`"))
    };
    if command.first().is_none_or(String::is_empty) {
        return wrong("there is no command to execute".to_owned());
    }
    let size: usize = command.iter().map(|arg| arg.len() + 1).sum();
    if size > MAX_COMMAND_SIZE {
        return wrong(format!("a command of {size} bytes; it may have {MAX_COMMAND_SIZE}, since receipts hold it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_something_and_fits_into_a_receipt() {
        check(&["sh".to_owned()]).unwrap();
        for bad in [vec![], vec![String::new()], vec!["sh".to_owned(), "x".repeat(MAX_COMMAND_SIZE)]] {
            assert_eq!(check(&bad).unwrap_err().code, "exec.command");
        }
    }
}
