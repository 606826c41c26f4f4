//! `iptl run`: makes a run of a plan, has it executed and tells what happens.

mod network;

use std::collections::BTreeMap;
use std::path::Path;

use iptl_dag::model::{self, InstanceId, Node, Plan, Run, Workload};
use iptl_dag::{Block, Cid};
use iptl_plans::{Diagnostic, Manifest, RunOptions};
use iptl_wire::control::{MAX_PRIORITY, Reply, Request};
use serde_json::{Value, json};

pub(super) use network::network_in;

use super::{check, publish};
use crate::client::{Client, unexpected};
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::fetch::{self, Sources};
use crate::remote::RemoteStore;
use crate::series::{self, Choices};
use crate::{narrative, node, plan, ui};

/// Runs a plan and ends with the result's CID; the exit is that of the verdict.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl run ./plans/ping -g peers=30 -p rounds=5\n  iptl run bafyrei… --seed 7 --detach\n  iptl run ./my-plan --local\n  iptl run ./plans/ping --matrix rounds=5,10 --matrix peers=10,30 --repeat 3"
)]
pub struct Args {
    /// Folder with a plan.toml, or the CID or name of a plan or run
    plan: String,
    /// Case of the plan; needed where there are several and none is called `default`
    #[arg(long, value_name = "CASE")]
    case: Option<String>,
    /// Size of a group; may be repeated
    #[arg(short, long = "group", value_name = "GROUP=N", value_parser = group)]
    group: Vec<(String, u32)>,
    /// Value of a parameter; may be repeated
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    param: Vec<(String, String)>,
    /// Seed of everything random that the lab controls
    #[arg(long, default_value_t = iptl_plans::DEFAULT_SEED)]
    seed: u64,
    /// Executes the run so often, as one series
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Values of a parameter, or sizes of a group, each of which is run; may be repeated: every value meets every other
    #[arg(long, value_name = "NAME=A,B,C", value_parser = series::axis)]
    matrix: Vec<(String, Vec<String>)>,
    /// Its place before other runs that wait: the higher goes first
    #[arg(long, value_name = "N", default_value_t = 0, allow_hyphen_values = true,
          value_parser = clap::value_parser!(i32).range(-i64::from(MAX_PRIORITY)..=i64::from(MAX_PRIORITY)))]
    priority: i32,
    /// Network in place of the case's: `clean`, one of the plan's, one that everybody has, the CID of one, or a file with
    /// `[network]` as a plan.toml has it
    #[arg(long, value_name = "NETWORK|FILE.toml")]
    network: Option<String>,
    /// Faults in place of the case's: a file with `[[faults]]` as a plan.toml has them, the CID of a schedule, or `none`
    #[arg(long, value_name = "FILE.toml|CID|none")]
    faults: Option<String>,
    /// Capture the link of an instance into its artifacts, as `lab-link.pcap`; may be repeated
    #[arg(long, value_name = "GROUP/N", value_parser = instance)]
    pcap: Vec<InstanceId>,
    /// Start also where the way between two lablets is longer than a delay of the network; the result is distorted then
    #[arg(long)]
    slow_ways: bool,
    /// Submit, print the execution, and leave
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Run on this computer alone: no lab, no network
    #[arg(long, conflicts_with = "detach")]
    local: bool,
    /// Show where instances would be placed; nothing runs
    #[arg(long)]
    dry_run: bool,
    /// Take the workloads as they are
    #[arg(long)]
    no_build: bool,
    #[command(flatten)]
    sources: Sources,
}

fn group(text: &str) -> std::result::Result<(String, u32), String> {
    let (name, size) = pair(text)?;
    let size = size.parse().map_err(|_| format!("`{size}` is not a number of instances"))?;
    Ok((name, size))
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` has no `=`; write NAME=VALUE")),
    }
}

/// Says whether a plan is named by its place on this disk, whether it is there or not.
fn is_path(plan: &str) -> bool {
    Path::new(plan).exists() || plan.starts_with('.') || plan.starts_with('/') && !plan.starts_with("/ipfs/")
}

fn instance(text: &str) -> std::result::Result<InstanceId, String> {
    let named = text.rsplit_once('/').filter(|(group, _)| !group.is_empty());
    let named =
        named.and_then(|(group, index)| Some(InstanceId { group: group.to_owned(), index: index.parse().ok()? }));
    named.ok_or_else(|| format!("`{text}` names no instance; write GROUP/N, as in node/0"))
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    // What can be wrong with the plan itself is said before a node is needed.
    let source = if is_path(&args.plan) { Some(plan::load(Path::new(&args.plan))?) } else { None };
    if let (Some(source), false) = (&source, args.no_build) {
        plan::build(ctx, source).await?;
    }
    let client = if args.local { node::local(ctx).await? } else { node::reach(ctx).await? };
    let made = match source {
        Some(source) => from_source(ctx, &client, &source).await?,
        None => from_cid(ctx, &client, &args).await?,
    };
    let combinations = series::combinations(&args.matrix, args.repeat)?;
    let mut runs = Vec::with_capacity(combinations.len());
    let mut of_first = Value::Null;
    for (n, choices) in combinations.into_iter().enumerate() {
        let (run, told) = made.run(ctx, &client, &args, &choices, n == 0).await?;
        if n == 0 {
            of_first = told;
        }
        runs.push((choices, run));
    }
    if args.dry_run {
        // The first stands for all: a series waits where it does not fit beside itself.
        return dry_run(ctx, &client, runs[0].1, of_first).await;
    }
    if args.repeat > 1 || !args.matrix.is_empty() {
        return series::run(ctx, &client, runs, args.repeat, args.priority, args.detach).await;
    }
    let run = runs[0].1;
    let (execution, alias) = ctx.waiting("submitting", client.submit(run, args.priority)).await?;
    if args.detach {
        if ctx.json {
            let body = json!({"execution": execution.to_string(), "alias": alias, "run": run.to_string()});
            ctx.answer_json("submitted", body);
        } else {
            ctx.answer(execution);
            ctx.say(format!("submitted as {alias}"));
            ctx.next(format!("iptl watch {alias} · iptl logs {alias} -f · iptl cancel {alias}"));
        }
        return Ok(Exit::Ok);
    }
    let exit = narrative::attach(ctx, &client, &execution.to_string()).await?;
    if args.local {
        ctx.next(format!(
            "the result is kept in a home of its own:  iptl show last --home {}",
            ctx.local_home().display()
        ));
    }
    Ok(exit)
}

/// What runs are made of.
enum Made {
    /// A run as it is.
    Run(Cid, Value),
    /// A plan, of which choices make runs.
    Plan { manifest: Option<Box<Manifest>>, plan: Box<Plan>, cid: Cid, workloads: BTreeMap<String, (Cid, Workload)> },
}

impl Made {
    /// Returns the run of some choices beside those of the command, and gives it to the node.
    ///
    /// Returns its CID, and where it is to be told what lies between its instances, that as data.
    async fn run(
        &self,
        ctx: &Context,
        client: &Client,
        args: &Args,
        choices: &Choices,
        tell: bool,
    ) -> Result<(Cid, Value)> {
        match self {
            Made::Run(cid, told) => Ok((*cid, told.clone())),
            Made::Plan { manifest, plan, cid, workloads } => {
                make(ctx, client, args, manifest.as_deref(), plan, *cid, workloads, choices, tell).await
            }
        }
    }
}

/// Imports a plan from disk into the node.
async fn from_source(ctx: &Context, client: &Client, source: &plan::Source) -> Result<Made> {
    let store = RemoteStore::new(client.clone());
    let published = publish::published(ctx, source, Some(client)).await?;
    let made = ctx.waiting("importing", plan::import(ctx, &store, source, &published, false)).await?;
    let manifest = &source.manifest;
    ctx.say(format!("plan      {}  {} {}", ui::short(&made.cid), manifest.name, manifest.version));
    tracing::debug!(blocks = made.blocks, bytes = made.bytes, has = check::summary(source), "imported");
    let request =
        Request::Publish { root: made.cid, kind: "plan".to_owned(), name: manifest.name.clone(), public: None };
    ctx.waiting("announcing the plan", client.call_all(request)).await?;
    let manifest = Some(Box::new(manifest.clone()));
    Ok(Made::Plan { manifest, plan: Box::new(made.plan), cid: made.cid, workloads: made.workloads })
}

/// Takes a published plan, or a run as it is.
async fn from_cid(ctx: &Context, client: &Client, args: &Args) -> Result<Made> {
    let place = fetch::locate(ctx, client, &args.plan, &args.sources).await.map_err(|mut error| {
        if error.code == "cid.garbled" || error.exit == Exit::NotFound {
            error.help = format!("`{}` is neither a folder here nor a plan that is known. {}", args.plan, error.help);
        }
        error
    })?;
    let cid = place.block_cid()?;
    let block = fetch::block(ctx, client, &cid, &args.sources).await?;
    match decode(&block)? {
        Node::Run(run) => {
            let chosen = [args.case.is_some(), args.network.is_some(), args.faults.is_some()];
            let chosen = chosen.contains(&true)
                || !args.pcap.is_empty()
                || args.slow_ways
                || !args.group.is_empty()
                || !args.param.is_empty();
            if chosen || !args.matrix.is_empty() {
                return Err(Error::usage(
                    "run.fixed",
                    format!("{} is a run: its choices are made", ui::short(&cid)),
                    format!(
                        "leave -g, -p, --case, --network, --faults, --pcap, --slow-ways and --matrix out, or run its plan {}",
                        run.plan
                    ),
                ));
            }
            fetch::fetch(ctx, client, cid, &args.sources, false).await?;
            let told = network::tell(ctx, client, args, &run).await?;
            Ok(Made::Run(cid, told))
        }
        Node::Plan(plan) => {
            fetch::fetch(ctx, client, cid, &args.sources, false).await?;
            let mut workloads = BTreeMap::new();
            for (name, cid) in &plan.workloads {
                let block = fetch::block(ctx, client, cid, &args.sources).await?;
                let workload: Workload = model::from_bytes(block.data()).map_err(|e| {
                    Error::usage("plan.broken", format!("workload {name} {cid}: {e}"), "publish it again")
                })?;
                workloads.insert(name.clone(), (*cid, workload));
            }
            ctx.say(format!("plan      {}  {} {}", ui::short(&cid), plan.name, plan.version));
            Ok(Made::Plan { manifest: None, plan: Box::new(plan), cid, workloads })
        }
        other => Err(not_a_plan(&cid, other.tag())),
    }
}

fn decode(block: &Block) -> Result<Node> {
    Node::from_bytes(block.data()).map_err(|_| not_a_plan(block.cid(), "something else"))
}

fn not_a_plan(cid: &Cid, what: &str) -> Error {
    Error::usage(
        "run.not-a-plan",
        format!("{} is no plan and no run, but {what}", ui::short(cid)),
        "see it with `iptl show`",
    )
}

/// Makes the run and gives it to the node; `tell` says what lies between its instances.
#[expect(clippy::too_many_arguments, reason = "each is another source of choices, and all have one user")]
async fn make(
    ctx: &Context,
    client: &Client,
    args: &Args,
    manifest: Option<&Manifest>,
    plan: &Plan,
    cid: Cid,
    workloads: &BTreeMap<String, (Cid, Workload)>,
    choices: &Choices,
    tell: bool,
) -> Result<(Cid, Value)> {
    let case = iptl_plans::chosen_case(plan, args.case.as_deref()).ok().and_then(|case| plan.cases.get(case));
    let is_group = |name: &str| case.is_some_and(|c| c.groups.contains_key(name) && !c.params.contains_key(name));
    let mut groups: BTreeMap<String, u32> = args.group.iter().cloned().collect();
    let mut params: BTreeMap<String, String> = args.param.iter().cloned().collect();
    for (name, value) in choices {
        if is_group(name) {
            let size = value.parse().map_err(|_| {
                let message = format!("`{value}` is not a number of instances of group {name}");
                Error::usage("run.matrix", message, format!("write `--matrix {name}=10,30`"))
            })?;
            groups.insert(name.clone(), size);
        } else {
            params.insert(name.clone(), value.clone());
        }
    }
    let chosen = network::choose(ctx, client, args, manifest, plan, workloads).await?;
    let options = RunOptions {
        case: args.case.clone(),
        groups,
        params,
        seed: args.seed,
        network: chosen.network,
        together: chosen.together,
        faults: chosen.faults,
        captures: args.pcap.iter().cloned().collect(),
        slow_ways: args.slow_ways,
    };
    let run: Run =
        iptl_plans::make_run(plan, cid, workloads, &options).map_err(|found| no_run(plan, &cid.to_string(), found))?;
    let told = if tell { network::tell(ctx, client, args, &run).await? } else { Value::Null };
    let block = model::to_block(run);
    client.put(std::slice::from_ref(&block)).await?;
    Ok((*block.cid(), told))
}

fn no_run(plan: &Plan, cid: &str, found: Vec<Diagnostic>) -> Error {
    let mut error = plan::mistakes(&plan.name, "", found);
    error.code = "run.invalid".to_owned();
    error.message = format!("this run of {} cannot be made", plan.name);
    error.help = format!("`iptl show {cid}` lists cases, groups and parameters");
    error
}

async fn dry_run(ctx: &Context, client: &Client, run: Cid, told: Value) -> Result {
    let reply = ctx.waiting("asking the scheduler", client.call_one(Request::DryRun { run })).await?;
    let Reply::Placement { rows, refused, unplaced } = reply else {
        return Err(unexpected(&format!("{reply:?}")));
    };
    if ctx.json {
        let placed: Vec<_> = rows
            .iter()
            .map(|r| {
                json!({
                    "lablet": r.lablet, "peer": r.peer.to_string(), "group": r.group, "start": r.start,
                    "count": r.count,
                })
            })
            .collect();
        let refused: Vec<_> = refused.iter().map(|(l, r)| json!({"lablet": l, "reason": r})).collect();
        ctx.answer_json(
            "placement",
            json!({
                "run": run.to_string(), "rows": placed, "refused": refused, "unplaced": unplaced,
                "network": told["network"], "faults": told["faults"],
            }),
        );
    } else {
        let mut cells = vec![["LABLET", "PEER", "GROUP", "INSTANCES"].map(str::to_owned).to_vec()];
        for row in &rows {
            let last = row.start + row.count.saturating_sub(1);
            let range = format!("{}..={last} ({})", row.start, row.count);
            cells.push(vec![row.lablet.clone(), row.peer.short(), row.group.clone(), range]);
        }
        ctx.answer(ui::table(&cells).trim_end());
        for (lablet, reason) in &refused {
            ctx.say(format!("  left out {lablet}: {reason}"));
        }
    }
    if unplaced > 0 {
        return Err(Error::new(
            Exit::LabUnable,
            "lab.no-room",
            format!("{} would have no place", ui::count(unplaced, "instance")),
            "start more lablets, or ask for fewer instances with -g",
        ));
    }
    Ok(Exit::Ok)
}
