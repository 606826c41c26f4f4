//! What lies between the instances of a run, and what is done to them: chosen by name, CID or file, and told.

use std::collections::BTreeMap;
use std::path::Path;

use iptl_dag::Cid;
use iptl_dag::model::{self, Case, FaultSchedule, Network, NetworkModel, Node, Plan, Run, Workload};
use iptl_plans::{Diagnostic, Manifest};
use serde_json::{Value, json};

use super::{Args, no_run};
use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Result};
use crate::{fetch, plan, ui};

/// Word for no faults.
const NONE: &str = "none";

/// What was chosen in place of the case's.
#[derive(Default)]
pub(super) struct Chosen {
    pub(super) network: Option<Network>,
    /// Of that network, how many neighbours of a group are to be on one lablet.
    pub(super) together: BTreeMap<String, u32>,
    pub(super) faults: Option<Vec<Cid>>,
}

/// Finds the network and the faults that the command names, checks that they fit, and gives their nodes to the store.
pub(super) async fn choose(
    ctx: &Context,
    client: &Client,
    args: &Args,
    manifest: Option<&Manifest>,
    plan: &Plan,
    workloads: &BTreeMap<String, (Cid, Workload)>,
) -> Result<Chosen> {
    if args.network.is_none() && args.faults.is_none() {
        return Ok(Chosen::default());
    }
    let invalid = |mistake: Box<Diagnostic>| no_run(plan, &plan.name, vec![*mistake]);
    let name = iptl_plans::chosen_case(plan, args.case.as_deref()).map_err(invalid)?;
    let case = &plan.cases[name];
    let network = match &args.network {
        Some(chosen) => network(ctx, client, args, manifest, plan, (name, case), chosen).await?,
        None => match &case.network {
            Network::Clean => None,
            Network::Model(cid) => match manifest.and_then(|manifest| manifest.networks.get(name)) {
                Some(known) => Some(known.clone()),
                None => Some(read_network(ctx, client, args, cid).await?),
            },
        },
    };
    let faults = match &args.faults {
        Some(chosen) => faults(ctx, client, args, plan, workloads, case, network.as_ref(), chosen).await?,
        None => match manifest {
            Some(manifest) => manifest.faults.get(name).cloned().unwrap_or_default(),
            None => read_all_faults(ctx, client, args, &case.faults).await?,
        },
    };
    // A clean network to which something is done is one that has links.
    let network = match network {
        None if !faults.is_empty() => Some(iptl_plans::clean_network(case)),
        other => other,
    };
    if let Some(model) = &network {
        let unfit = iptl_plans::unfit_faults(&faults, model, case);
        if !unfit.is_empty() {
            return Err(no_run(plan, &plan.name, unfit));
        }
    }
    let schedules: Vec<_> = faults.into_iter().map(model::to_block).collect();
    let chosen_faults = args.faults.as_ref().map(|_| schedules.iter().map(|block| *block.cid()).collect());
    let together = network.as_ref().map(NetworkModel::together).unwrap_or_default();
    let model = network.map(model::to_block);
    let chosen = Chosen {
        together,
        network: Some(model.as_ref().map_or(Network::Clean, |block| Network::Model(*block.cid()))),
        faults: chosen_faults,
    };
    let blocks: Vec<_> = model.into_iter().chain(schedules).collect();
    if !blocks.is_empty() {
        client.put(&blocks).await?;
    }
    Ok(chosen)
}

/// Says whether something is named by its place on this disk, whether it is there or not: names have no dots and slashes.
fn is_file(name: &str) -> bool {
    name.contains('/') || name.ends_with(".toml")
}

/// Reads a file beside a plan.
pub(in crate::commands) fn read_file(name: &str) -> Result<String> {
    std::fs::read_to_string(Path::new(name)).map_err(|e| {
        let help = "name a file with `[network]` or `[[faults]]`, as a plan.toml has them";
        Error::usage("run.no-file", format!("{name}: {e}"), help)
    })
}

fn mistaken(file: &str, text: &str, found: Vec<Diagnostic>) -> Error {
    let mut error = plan::mistakes(file, text, found);
    error.code = "run.invalid".to_owned();
    error.help = "mend what is marked; `iptl explain CODE` says more".to_owned();
    error
}

/// Returns the network that a file describes, for a case or for the groups that it mentions; none is the clean one.
pub(in crate::commands) fn network_in(file: &str, case: Option<&Case>) -> Result<Option<NetworkModel>> {
    let text = read_file(file)?;
    iptl_plans::network_in(&text, file, case).map_err(|found| mistaken(file, &text, found))
}

async fn network(
    ctx: &Context,
    client: &Client,
    args: &Args,
    manifest: Option<&Manifest>,
    plan: &Plan,
    (case_name, case): (&str, &Case),
    chosen: &str,
) -> Result<Option<NetworkModel>> {
    if let Ok(cid) = chosen.parse::<Cid>() {
        return read_network(ctx, client, args, &cid).await.map(Some);
    }
    if is_file(chosen) {
        return network_in(chosen, Some(case));
    }
    let named = match manifest {
        Some(manifest) => manifest.network(chosen, case_name, false),
        None => iptl_plans::network_preset(chosen, case.groups.keys().map(String::as_str), false),
    };
    named.map_err(|mistake| no_run(plan, &plan.name, vec![*mistake]))
}

#[expect(clippy::too_many_arguments, reason = "a file is read against all of it, and there is one user")]
async fn faults(
    ctx: &Context,
    client: &Client,
    args: &Args,
    plan: &Plan,
    workloads: &BTreeMap<String, (Cid, Workload)>,
    case: &Case,
    network: Option<&NetworkModel>,
    chosen: &str,
) -> Result<Vec<FaultSchedule>> {
    if chosen == NONE {
        return Ok(Vec::new());
    }
    if let Ok(cid) = chosen.parse::<Cid>() {
        return read_all_faults(ctx, client, args, &[cid]).await;
    }
    if !is_file(chosen) {
        return Err(Error::usage(
            "run.not-faults",
            format!("`{chosen}` is no file, no CID and not `{NONE}`: faults of {} have no names", plan.name),
            "write them into a file, as `[[faults]]` of a plan.toml: `--faults ./FILE.toml`",
        ));
    }
    let text = read_file(chosen)?;
    let read = iptl_plans::faults_in(&text, chosen, case, workloads, network);
    read.map(|schedule| vec![schedule]).map_err(|found| mistaken(chosen, &text, found))
}

async fn read_network(ctx: &Context, client: &Client, args: &Args, cid: &Cid) -> Result<NetworkModel> {
    let block = fetch::block(ctx, client, cid, &args.sources).await?;
    match Node::from_bytes(block.data()) {
        Ok(Node::Network(network)) => Ok(network),
        _ => {
            let message = format!("{} is no network", ui::short(cid));
            Err(Error::usage("run.not-a-network", message, "see it with `iptl show`"))
        }
    }
}

async fn read_all_faults(ctx: &Context, client: &Client, args: &Args, cids: &[Cid]) -> Result<Vec<FaultSchedule>> {
    let mut schedules = Vec::new();
    for cid in cids {
        let block = fetch::block(ctx, client, cid, &args.sources).await?;
        match Node::from_bytes(block.data()) {
            Ok(Node::Faults(schedule)) => schedules.push(schedule),
            _ => {
                let message = format!("{} is no schedule of faults", ui::short(cid));
                return Err(Error::usage("run.not-faults", message, "see it with `iptl show`"));
            }
        }
    }
    Ok(schedules)
}

/// Says what lies between the instances of a run, where that is not nothing, and returns it as data.
pub(super) async fn tell(ctx: &Context, client: &Client, args: &Args, run: &Run) -> Result<Value> {
    tell_egress(ctx, run);
    let Network::Model(cid) = &run.network else { return Ok(json!({"network": null, "faults": []})) };
    let network = read_network(ctx, client, args, cid).await?;
    let summary = iptl_plans::network_summary(&network);
    ctx.say(format!("network   {}  {summary}", ui::short(cid)));
    let mut told = Vec::new();
    for (cid, schedule) in run.faults.iter().zip(read_all_faults(ctx, client, args, &run.faults).await?) {
        let lines: Vec<String> = schedule.faults.iter().map(iptl_plans::fault_summary).collect();
        lines.iter().for_each(|line| ctx.say(format!("fault     {line}")));
        told.push(json!({"cid": cid.to_string(), "says": lines}));
    }
    Ok(json!({"network": {"cid": cid.to_string(), "says": summary}, "faults": told}))
}

/// Says what instances must reach outside of the lab, where that is anything.
fn tell_egress(ctx: &Context, run: &Run) {
    for (name, group) in &run.groups {
        let places = group.container.iter().flat_map(|container| &container.egress);
        let places: Vec<String> = places.map(ToString::to_string).collect();
        if !places.is_empty() {
            ctx.say(format!("leaves    {name}: {}    where a lablet's owner grants it", places.join(", ")));
        }
    }
}
