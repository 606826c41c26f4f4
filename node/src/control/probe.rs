//! Probes of networks: the orchestrator asks its lablets one after the other, so that those of one machine do not
//! measure each other.

use std::sync::Arc;

use iptl_dag::PeerId;
use iptl_dag::model::NetworkModel;
use iptl_wire::control::{Failure, FailureKind, MAX_FRAME_SIZE, Reply, Request};
use iptl_wire::probe::{MAX_OTHERS, PROTOCOL, ProbeOrder};

use super::{Caller, Talk, failure, leading, remote, stopped};
use crate::framed;
use crate::node::Node;
use crate::orchestrator::{Ask, LabletRow};

pub(super) async fn probe(
    node: &Arc<Node>,
    caller: &Caller,
    network: Box<NetworkModel>,
    talk: &mut Talk,
) -> Result<(), Failure> {
    caller.developer()?;
    let Some(lab) = leading(node).await else {
        return remote::forward(node, caller, Request::Probe { network }, talk).await;
    };
    let mut lablets = lab.ask(|answer| Ask::Lablets { answer }).await.map_err(stopped)?;
    lablets.retain(|lablet| lablet.ready);
    if lablets.is_empty() {
        let message = "no lablet of this lab is here".to_owned();
        return Err(failure(FailureKind::LabUnable, "lab.no-lablets", message, "start one with `iptl up`"));
    }
    for lablet in &lablets {
        let others = lablets.iter().filter(|other| other.peer != lablet.peer).take(MAX_OTHERS);
        let others = others.map(|o| (o.peer.clone(), name(o), o.inventory.addrs.clone())).collect();
        let order = ProbeOrder { network: (*network).clone(), others };
        let answer = match ask(node, &lablet.peer, &order).await {
            Ok(Reply::Probed(answer)) => answer,
            Ok(other) => Err((name(lablet), format!("it answered something else: {other:?}"))),
            Err(failed) => Err((name(lablet), failed.message)),
        };
        talk.say(Reply::Probed(answer)).await?;
    }
    Ok(())
}

fn name(lablet: &LabletRow) -> String {
    match lablet.inventory.name.is_empty() {
        true => lablet.peer.short(),
        false => lablet.inventory.name.clone(),
    }
}

/// Has one lablet probe; it has a session here, and so a connection, and is never dialled.
async fn ask(node: &Node, lablet: &PeerId, order: &ProbeOrder) -> Result<Reply, Failure> {
    let away = |reason: String| failure(FailureKind::LabUnable, "probe.unreachable", reason, "");
    let mut stream = node.links.open_connected(lablet, PROTOCOL).await.map_err(|e| away(e.to_string()))?;
    framed::write(&mut stream, order).await.map_err(|e| away(e.to_string()))?;
    let reply = framed::expect::<Reply>(&mut stream, MAX_FRAME_SIZE);
    let reply = tokio::time::timeout(crate::probe::LONGEST, reply);
    match reply.await.map_err(|_| away("it did not answer".to_owned()))?.map_err(|e| away(e.to_string()))? {
        Reply::Error(failed) => Err(failed),
        reply => Ok(reply),
    }
}
