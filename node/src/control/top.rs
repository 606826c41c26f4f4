//! What an execution does now, once or each second.

use std::sync::Arc;
use std::time::Duration;

use iptl_wire::control::{Failure, Reply, Request, Top};

use super::{Caller, Talk, leading, remote, stopped};
use crate::node::Node;
use crate::orchestrator::{Ask, OrchestratorHandle};

/// Time between two looks that are told.
const PAUSE: Duration = Duration::from_secs(1);

/// Time between two looks for a first answer of all lablets.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Looks for a first answer of all lablets.
const FIRST_LOOKS: u32 = 20;

pub(super) async fn top(
    node: &Arc<Node>,
    caller: &Caller,
    execution: String,
    once: bool,
    talk: &mut Talk,
) -> Result<(), Failure> {
    let Some(lab) = leading(node).await else {
        return remote::forward(node, caller, Request::Top { execution, once }, talk).await;
    };
    let mut top = look(&lab, execution).await?;
    // Another may become the last one meanwhile.
    let name = top.execution.to_string();
    for _ in 0..FIRST_LOOKS {
        if top.heard == top.lablets {
            break;
        }
        tokio::time::sleep(FIRST_PAUSE).await;
        match look(&lab, name.clone()).await {
            Ok(next) => top = next,
            // It ended while its lablets were asked: what was known is told.
            Err(_) => break,
        }
    }
    talk.say(Reply::Top(Box::new(top))).await?;
    if once {
        return Ok(());
    }
    loop {
        tokio::time::sleep(PAUSE).await;
        match look(&lab, name.clone()).await {
            Ok(top) => talk.say(Reply::Top(Box::new(top))).await?,
            Err(over) if over.code == "execution.over" => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn look(lab: &OrchestratorHandle, name: String) -> Result<Top, Failure> {
    lab.ask(|answer| Ask::Top { name, answer }).await.map_err(stopped)?
}
