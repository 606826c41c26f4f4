//! `iptl status`: what is going on at the node and in its lab.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::WorkloadKind;
use iptl_wire::control::{Health, Reach, Reply, Request, Sign, Status};
use iptl_wire::lab::Role;
use iptl_wire::session::Slots;
use serde_json::{Map, Value, json};

use crate::client::{Client, unexpected};
use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::{node, ui};

/// Says what is going on; exits 5 where the lab is offline.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl status\n  iptl status --json | jq .lablets_ready")]
pub struct Args {}

pub async fn run(ctx: &Context, _: Args) -> Result {
    let client = node::daemon(ctx).await?;
    let status = ask(&client).await?;
    if ctx.json {
        ctx.answer_json("status", to_json(&status));
    } else {
        for line in lines(&status) {
            ctx.answer(line);
        }
        for (peer, name) in &status.asking {
            ctx.next(format!("iptl lab approve {peer}    ({name} asks to join)"));
        }
    }
    Ok(if status.lab.is_some() && !status.online { Exit::LabUnable } else { Exit::Ok })
}

/// Asks a node for its status.
pub async fn ask(client: &Client) -> Result<Status> {
    match client.call_one(Request::Status {}).await? {
        Reply::Status(status) => Ok(status),
        other => Err(unexpected(&format!("{other:?}"))),
    }
}

/// Returns the word for a role.
pub fn role_word(role: Option<Role>) -> &'static str {
    match role {
        Some(Role::Orchestrator) => "orchestrator",
        Some(Role::Lablet) => "lablet",
        Some(Role::Developer) => "developer",
        None => "none",
    }
}

/// Writes a status for people.
pub fn lines(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    match &status.lab {
        Some(lab) => {
            let state = if status.online { "online" } else { "offline" };
            lines.push(format!("lab     {:<14} {state}    {}", status.lab_name, lab.short()));
            if !status.online && !status.offline_reason.is_empty() {
                lines.push(format!("        {}", status.offline_reason));
            }
        }
        None => {
            lines.push("lab     none           make one with `iptl lab init`, or join one with `iptl join`".to_owned())
        }
    }
    match status.role {
        Some(Role::Orchestrator) => lines.push(format!(
            "lablets {:<14} {} ready    {}",
            status.lablets,
            status.lablets_ready,
            slots_line(&status.slots, " slots")
        )),
        Some(Role::Lablet) => lines.push(format!("slots   {}", slots_line(&status.slots, ""))),
        Some(Role::Developer) | None => {}
    }
    lines.extend(status.health.iter().map(|health| format!("health  {}", health_line(health))));
    if let Some(leads) = status.leads.as_ref().filter(|leads| leads.term > 0 || !leads.followers.is_empty()) {
        let who = if leads.leader == status.peer { "this node".to_owned() } else { leads.leader.short() };
        lines.push(format!("leads   {who:<14} term {}", leads.term));
        for follower in &leads.followers {
            let how = match (follower.in_contact, follower.missing) {
                (false, _) => "out of contact".to_owned(),
                (true, 0) => "has everything".to_owned(),
                (true, missing) => format!("lacks {}", ui::count(u64::from(missing), "thing")),
            };
            lines.push(format!("follows {:<14} {how}", follower.peer.short()));
        }
    }
    let runs: Vec<String> = status
        .running
        .iter()
        .map(|r| format!("{} {} ({} of {} ended)", r.alias, r.phase, r.ended, r.instances))
        .collect();
    lines.push(format!("runs    {:<14} {}", status.running.len(), runs.join("  ·  ")).trim_end().to_owned());
    lines.push(format!(
        "node    {:<14} {}    {}    up {}",
        status.peer.short(),
        role_word(status.role),
        ui::count(u64::from(status.peers), "peer"),
        ui::duration(status.uptime_ms)
    ));
    lines.extend(status.reach.as_ref().and_then(reach_line).map(|reach| format!("reach   {reach}")));
    if let Some(moved) = status.moved.filter(|moved| moved.sent + moved.received > 0) {
        lines.push(format!("blocks  {} sent, {} received", ui::bytes(moved.sent), ui::bytes(moved.received)));
    }
    if let Some(addr) = status.addrs.first() {
        lines.push(format!("address {addr}"));
    }
    lines
}

/// Writes how a node is reached that cannot be dialled; whoever can be has nothing to say of it.
pub fn reach_line(reach: &Reach) -> Option<String> {
    if reach.directly != Some(false) {
        return None;
    }
    let through: Vec<String> = reach.through.iter().map(PeerId::short).collect();
    Some(match through.is_empty() {
        true => "nobody can dial this node, and no relay has a place for it yet".to_owned(),
        false => format!("nobody can dial this node; relayed through {}", through.join(" and ")),
    })
}

/// Writes what works, and when it was seen.
fn health_line(health: &Health) -> String {
    let sign = |name: &str, sign: &Option<Sign>| match sign {
        None => format!("{name}: not seen yet"),
        Some(sign) if sign.ok => format!("{name}: ok {} ago", ui::duration(sign.age_ms)),
        Some(sign) => format!("{name}: {} ({} ago)", sign.trouble, ui::duration(sign.age_ms)),
    };
    [("place", &health.place), ("run", &health.run), ("seal", &health.seal)]
        .map(|(name, s)| sign(name, s))
        .join("  ·  ")
}

/// Writes what is free of what there is; by kind where there is more than Wasm.
fn slots_line(slots: &BTreeMap<WorkloadKind, Slots>, what: &str) -> String {
    let of = |slots: &Slots| format!("{} of {}", slots.free, slots.total);
    let all = format!("{}{what} free", of(&slots.values().sum()));
    if slots.keys().all(|kind| *kind == WorkloadKind::Wasm) {
        return all;
    }
    let kinds: Vec<String> = slots.iter().map(|(kind, slots)| format!("{} {}", kind.name(), of(slots))).collect();
    format!("{all} ({})", kinds.join(", "))
}

/// Returns a status as the body of a JSON object.
pub fn to_json(status: &Status) -> Value {
    let running: Vec<Value> = status
        .running
        .iter()
        .map(|r| json!({"alias": r.alias, "phase": r.phase, "instances": r.instances, "ended": r.ended}))
        .collect();
    let asking: Vec<Value> =
        status.asking.iter().map(|(peer, name)| json!({"peer": peer.to_string(), "name": name})).collect();
    let sign = |sign: &Option<Sign>| match sign {
        None => Value::Null,
        Some(sign) => json!({"ok": sign.ok, "age_ms": sign.age_ms, "trouble": sign.trouble}),
    };
    let health = status
        .health
        .as_ref()
        .map(|health| json!({"place": sign(&health.place), "run": sign(&health.run), "seal": sign(&health.seal)}));
    let sum: Slots = status.slots.values().sum();
    let leads = status.leads.as_ref().map(|leads| {
        let followers: Vec<Value> = leads
            .followers
            .iter()
            .map(|f| {
                json!({
                    "peer": f.peer.to_string(), "in_contact": f.in_contact, "behind": f.behind, "missing": f.missing,
                })
            })
            .collect();
        json!({"leader": leads.leader.to_string(), "term": leads.term, "followers": followers})
    });
    let by_kind: Map<String, Value> = status
        .slots
        .iter()
        .map(|(kind, slots)| (kind.name().to_owned(), json!({"total": slots.total, "free": slots.free})))
        .collect();
    let moved = status.moved.map(|moved| json!({"sent_bytes": moved.sent, "received_bytes": moved.received}));
    let reach = status.reach.as_ref().map(|reach| {
        let through: Vec<String> = reach.through.iter().map(ToString::to_string).collect();
        json!({"directly": reach.directly, "through": through, "relays": reach.relays})
    });
    json!({
        "peer": status.peer.to_string(), "addrs": status.addrs, "version": status.version,
        "uptime_ms": status.uptime_ms, "role": status.role.map(|r| role_word(Some(r))),
        "lab": status.lab.as_ref().map(ToString::to_string), "lab_name": status.lab_name, "online": status.online, "offline_reason": status.offline_reason,
        "peers": status.peers, "lablets": status.lablets, "lablets_ready": status.lablets_ready,
        "free_slots": sum.free, "slots": sum.total, "slots_by_kind": by_kind, "running": running, "asking": asking, "leads": leads, "health": health, "blocks": moved, "reach": reach,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_dialled_is_told_so_with_the_relays() {
        let relay: PeerId = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN".parse().unwrap();
        let line = |directly, through| reach_line(&Reach { directly, through, relays: false });
        assert_eq!(line(None, Vec::new()), None);
        assert_eq!(line(Some(true), Vec::new()), None);
        let told = line(Some(false), vec![relay.clone()]).unwrap();
        assert_eq!(told, format!("nobody can dial this node; relayed through {}", relay.short()));
        assert!(line(Some(false), Vec::new()).unwrap().contains("no relay has a place"));
    }

    #[test]
    fn slots_are_told_by_kind_where_there_is_more_than_wasm() {
        let wasm = (WorkloadKind::Wasm, Slots { total: 16, free: 12 });
        let docker = (WorkloadKind::Docker, Slots { total: 4, free: 2 });
        assert_eq!(slots_line(&BTreeMap::from([wasm]), " slots"), "12 of 16 slots free");
        let both = slots_line(&BTreeMap::from([wasm, docker]), "");
        assert_eq!(both, "14 of 20 free (wasm 12 of 16, docker 2 of 4)");
        assert_eq!(slots_line(&BTreeMap::new(), ""), "0 of 0 free");
    }
}
