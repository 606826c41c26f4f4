//! The lab and the node itself: making, joining, letting in, leaving, status, stopping.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_net::Reached;
use iptl_wire::control::{Failure, FailureKind, FollowerRow, Leads, Moved, Reach, Reply, RunningRow, Status};
use iptl_wire::lab::Role;
use iptl_wire::takeover::MAX_ORCHESTRATORS;

use super::{Caller, Talk, broken, failure, leading, stopped};
use crate::admission::{Admission, ApproveError, RevokeError};
use crate::join::{Target, join as ask_to_join};
use crate::node::Node;
use crate::orchestrator::{Ask, RunRow};

/// A node that finishes its work gets so long.
const FINISH_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// A node that drops its work gets so long to hand in receipts.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn status(node: &Node, talk: &mut Talk) -> Result<(), Failure> {
    let membership = node.membership();
    let (addrs, peers) = match node.links.net() {
        Some(net) => (net.addrs().await, u32::try_from(net.peers().await.len()).unwrap_or(u32::MAX)),
        None => (Vec::new(), 0),
    };
    let (leads, reach) = (leads(node).await, reach(node).await);
    let (sent, received) = node.moved();
    let mut status = Status {
        peer: node.links.peer().clone(),
        addrs,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: u64::try_from(node.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        role: membership.as_ref().map(|m| m.role()),
        lab: membership.as_ref().map(|m| m.lab().clone()),
        lab_name: membership.as_ref().map(|m| m.certificate.body.name.clone()).unwrap_or_default(),
        online: false,
        peers,
        lablets: 0,
        lablets_ready: 0,
        slots: BTreeMap::new(),
        running: Vec::new(),
        offline_reason: node.waiting.borrow().clone(),
        asking: node.admission().map(|admission| admission.asking()).unwrap_or_default(),
        leads,
        health: None,
        moved: Some(Moved { sent, received }),
        reach,
    };
    if let Some(lablet) = node.lablet()
        && let Some(own) = lablet.status().await
    {
        status.online = own.online;
        status.slots = own.slots;
        status.running = own
            .cells
            .iter()
            .map(|(execution, running, ended)| RunningRow {
                alias: execution.alias(),
                phase: "running".to_owned(),
                instances: u64::from(running + ended),
                ended: u64::from(*ended),
            })
            .collect();
    }
    // One that leads no more by now has nothing to say of lablets, and all the rest.
    if let Some(lab) = node.orchestrator()
        && let Ok(lablets) = lab.ask(|answer| Ask::Lablets { answer }).await
    {
        let ready = || lablets.iter().filter(|l| l.ready);
        let trouble = lab.health.trouble();
        status.online = trouble.is_none();
        status.offline_reason = trouble.unwrap_or_default();
        status.health = Some(lab.health.tell());
        status.lablets = u32::try_from(lablets.len()).unwrap_or(u32::MAX);
        status.lablets_ready = u32::try_from(ready().count()).unwrap_or(u32::MAX);
        // What a lablet on this node has is among what the lablets have.
        status.slots = BTreeMap::new();
        for (kind, slots) in ready().flat_map(|l| &l.inventory.slots) {
            let sum = status.slots.entry(*kind).or_default();
            *sum = [*sum, *slots].iter().sum();
        }
        let runs = lab.ask(|answer| Ask::Runs { answer }).await.unwrap_or_default();
        status.running = runs
            .into_iter()
            .filter_map(|row| match row {
                RunRow::Active { id, instances, ended, phase, .. } => {
                    Some(RunningRow { alias: id.alias(), phase, instances, ended })
                }
                RunRow::Ended(_) => None,
            })
            .collect();
    } else if let Some(candidate) = node.candidate() {
        status.online = candidate.progress().leader.is_some();
    } else if let (Some((leader, addrs)), None) = (node.members.leader(), node.lablet()) {
        // A developer's node is online where who leads is connected.
        if let Some(net) = node.links.net() {
            status.online = net.connect(&leader, &addrs).await.is_ok();
        }
    }
    talk.say(Reply::Status(status)).await
}

/// Returns how this node is reached, and whether others are reached through it.
async fn reach(node: &Node) -> Option<Reach> {
    let reach = node.links.net()?.reach().await?;
    Some(Reach {
        directly: reach.reached.map(|reached| reached == Reached::Directly),
        through: reach.places.into_iter().map(|place| place.relay).collect(),
        relays: reach.relays,
    })
}

/// Returns who leads the lab as far as this node knows, and who follows.
async fn leads(node: &Node) -> Option<Leads> {
    let (leader, _) = node.members.leader()?;
    let term = node.members.claim().map_or(0, |claim| claim.body.term.counter);
    let followers = match node.candidate() {
        Some(lab) if lab.leads() => lab.ask(|answer| Ask::Followers { answer }).await.unwrap_or_default(),
        Some(candidate) => {
            let progress = candidate.progress();
            let in_contact = progress.leader.is_some();
            let peer = node.links.peer().clone();
            vec![FollowerRow { peer, in_contact, behind: 0, missing: progress.missing }]
        }
        None => Vec::new(),
    };
    Some(Leads { leader, term, followers })
}

/// Has another orchestrator lead the lab.
pub(super) async fn hand_over(
    node: &Node,
    caller: &Caller,
    to: Option<PeerId>,
    talk: &mut Talk,
) -> Result<(), Failure> {
    caller.owner()?;
    let Some(lab) = leading(node).await else {
        let message = "this node does not lead a lab".to_owned();
        let help = "run this on the node that leads: `iptl status` says which one that is";
        return Err(failure(FailureKind::Denied, "handover.not-leading", message, help));
    };
    let term = lab.ask(|answer| Ask::HandOver { to, answer }).await.map_err(stopped)??;
    talk.say(Reply::HandedOver { to: term.peer, term: term.counter }).await
}

pub(super) async fn init(
    node: &Arc<Node>,
    caller: &Caller,
    name: &str,
    open: bool,
    private: bool,
) -> Result<(), Failure> {
    caller.owner()?;
    in_no_lab(node)?;
    let admission = Admission::create(&node.home, node.members.clone(), name, open, private).map_err(broken)?;
    node.made_lab(admission).await.map_err(broken)
}

pub(super) async fn invite(
    node: &Node,
    caller: &Caller,
    role: Role,
    ttl_ms: u64,
    talk: &mut Talk,
) -> Result<(), Failure> {
    caller.owner()?;
    let admission = door(node)?;
    if role == Role::Orchestrator && node.members.ranking().len() >= MAX_ORCHESTRATORS {
        let message = format!("the lab has {MAX_ORCHESTRATORS} orchestrators, and may not have more");
        let help = "two or three are enough: each can go on where another is gone";
        return Err(failure(FailureKind::Usage, "invite.orchestrators", message, help));
    }
    let addrs = match node.links.net() {
        Some(net) => net.addrs().await,
        None => Vec::new(),
    };
    let ticket = admission.mint(role, Duration::from_millis(ttl_ms), addrs).map_err(broken)?;
    talk.say(Reply::Ticket { ticket: ticket.text().to_string() }).await
}

pub(super) async fn join(
    node: &Arc<Node>,
    caller: &Caller,
    target: &str,
    name: &str,
    role: Role,
    talk: &mut Talk,
) -> Result<(), Failure> {
    caller.owner()?;
    let target = Target::parse(target)?;
    in_no_lab(node)?;
    let (notes, mut told) = tokio::sync::mpsc::unbounded_channel();
    let joining = ask_to_join(&node.links, target, name, role, |note| {
        let _gone = notes.send(note);
    });
    tokio::pin!(joining);
    let (membership, orchestrators) = loop {
        tokio::select! {
            joined = &mut joining => break joined?,
            Some(text) = told.recv() => talk.say(Reply::Note { text }).await?,
        }
    };
    let reply = Reply::Joined {
        lab: membership.lab().clone(),
        name: membership.certificate.body.name.clone(),
        role: membership.role(),
    };
    node.joined(membership, name, orchestrators).await.map_err(broken)?;
    talk.say(reply).await
}

pub(super) async fn approve(node: &Node, caller: &Caller, peer: &PeerId) -> Result<(), Failure> {
    caller.owner()?;
    door(node)?.approve(peer).map_err(|e| match e {
        ApproveError::NotAsking { .. } => {
            let help = "see who asks: `iptl status`; the other side runs `iptl join` first";
            failure(FailureKind::NotFound, "approve.unknown", e.to_string(), help)
        }
        ApproveError::Home(e) => broken(e),
    })
}

pub(super) async fn revoke(node: &Arc<Node>, caller: &Caller, peer: &PeerId) -> Result<(), Failure> {
    caller.owner()?;
    door(node)?.revoke(peer).map_err(|e| match e {
        RevokeError::NotMember { .. } => {
            let help = "see who lends a machine: `iptl ls lablets`";
            failure(FailureKind::NotFound, "revoke.unknown", e.to_string(), help)
        }
        RevokeError::Orchestrator { .. } => failure(
            FailureKind::Usage,
            "revoke.orchestrator",
            e.to_string(),
            "to end the lab: `iptl leave`, `iptl down`",
        ),
        RevokeError::TooMany => {
            let help = "a list is that long; make a new lab for those who stay";
            failure(FailureKind::Broken, "revoke.too-many", e.to_string(), help)
        }
        RevokeError::Home(e) => broken(e),
    })?;
    node.members.spread(&node.links).await;
    Ok(())
}

pub(super) async fn leave(node: &Node, caller: &Caller) -> Result<(), Failure> {
    caller.owner()?;
    if node.membership().is_none() {
        return Err(failure(
            FailureKind::Usage,
            "lab.none",
            "this node is in no lab".to_owned(),
            "there is nothing to leave",
        ));
    }
    if let Some(lablet) = node.lablet() {
        let _late = tokio::time::timeout(STOP_TIMEOUT, lablet.drain(true)).await;
    }
    node.home.clear_membership().map_err(broken)?;
    // Its tasks belong to the lab: the node ends, and the next `iptl up` starts it without one.
    node.stop_soon();
    Ok(())
}

pub(super) async fn shutdown(node: &Node, caller: &Caller, finish: bool) -> Result<(), Failure> {
    caller.owner()?;
    if let Some(lablet) = node.lablet() {
        let limit = if finish { FINISH_TIMEOUT } else { STOP_TIMEOUT };
        let _late = tokio::time::timeout(limit, lablet.drain(!finish)).await;
    }
    node.stop_soon();
    Ok(())
}

fn in_no_lab(node: &Node) -> Result<(), Failure> {
    match node.membership() {
        None => Ok(()),
        Some(membership) => Err(failure(
            FailureKind::Usage,
            "lab.member",
            format!("this node is already a {} of lab {:?}", membership.role(), membership.certificate.body.name),
            "leave it first (`iptl leave`), or use another home (`--home DIR`)",
        )),
    }
}

fn door(node: &Node) -> Result<Arc<Admission>, Failure> {
    node.admission().ok_or_else(|| {
        let help = "run this on the node that made the lab, or make one: `iptl lab init`";
        failure(FailureKind::Denied, "lab.not-owner", "this node did not make a lab".to_owned(), help)
    })
}
