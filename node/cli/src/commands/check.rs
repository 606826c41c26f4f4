//! `iptl check`: validates a plan offline.

use std::path::PathBuf;

use serde_json::json;

use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::{plan, ui};

/// Validates a plan: every mistake with its place and what to do; needs no lab and no network.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl check\n  iptl check ./plans/ping --json")]
pub struct Args {
    /// Folder with a plan.toml, or the file
    #[arg(default_value = ".")]
    path: PathBuf,
}

pub fn run(ctx: &Context, args: Args) -> Result {
    let source = plan::load(&args.path)?;
    let manifest = &source.manifest;
    if ctx.json {
        let cases: serde_json::Map<_, _> = manifest
            .cases
            .iter()
            .map(|(name, case)| {
                (
                    name.clone(),
                    json!({
                        "groups": case.groups.keys().collect::<Vec<_>>(),
                        "params": case.params.keys().collect::<Vec<_>>(),
                        "thresholds": case.thresholds.len(),
                        "network": manifest.networks.get(name).map_or_else(
                            || iptl_plans::CLEAN_NETWORK.to_owned(),
                            iptl_plans::network_summary,
                        ),
                    }),
                )
            })
            .collect();
        ctx.answer_json(
            "check-plan",
            json!({
                "name": manifest.name, "version": manifest.version,
                "workloads": manifest.workloads.keys().collect::<Vec<_>>(), "cases": cases,
            }),
        );
        return Ok(Exit::Ok);
    }
    ctx.answer(format!("{} {} is a valid plan: {}", manifest.name, manifest.version, summary(&source)));
    for (case, network) in &manifest.networks {
        ctx.say(format!("  case {case}: network of {}", iptl_plans::network_summary(network)));
        for fault in manifest.faults.get(case).into_iter().flatten().flat_map(|schedule| &schedule.faults) {
            ctx.say(format!("    {}", iptl_plans::fault_summary(fault)));
        }
    }
    ctx.next(format!("iptl run {}", args.path.display()));
    Ok(Exit::Ok)
}

/// Counts what a plan has: `1 case, 2 groups, 3 parameters, 2 thresholds`.
pub fn summary(source: &plan::Source) -> String {
    let cases = source.manifest.cases.values();
    let sum = |count: fn(&iptl_dag::model::Case) -> usize| cases.clone().map(count).sum::<usize>() as u64;
    [
        ui::count(source.manifest.workloads.len() as u64, "workload"),
        ui::count(source.manifest.cases.len() as u64, "case"),
        ui::count(sum(|c| c.groups.len()), "group"),
        ui::count(sum(|c| c.params.len()), "parameter"),
        ui::count(sum(|c| c.thresholds.len()), "threshold"),
    ]
    .join(", ")
}
