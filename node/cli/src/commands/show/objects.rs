//! Summaries of the lab's nodes other than results.

use iptl_dag::model::{FormerResult, Network, Node, ParamKind, Plan, Run};
use iptl_dag::{Block, Cid, codec};
use serde_json::{Value, json};

use crate::context::Context;
use crate::{narrative, ui};

/// Shows a node: as its own data with `--json`, else as lines for people.
pub fn show(ctx: &Context, cid: &Cid, node: &Node, block: &Block) {
    if ctx.json {
        let value = codec::to_ipld(block)
            .ok()
            .and_then(|v| serde_json::from_slice::<Value>(&codec::to_dag_json(&v)).ok())
            .and_then(|v| v.get(node.tag()).cloned());
        let kind = node.tag().trim_start_matches("iptl.").split('/').next().unwrap_or_default();
        ctx.answer_json("show", json!({"cid": cid.to_string(), "kind": kind, "value": value}));
        return;
    }
    for line in lines(cid, node) {
        ctx.answer(line);
    }
    match node {
        Node::Plan(_) => ctx.next(format!("iptl run {cid}")),
        Node::Run(_) => ctx.next(format!("iptl run {cid}    (the same experiment again)")),
        _ => {}
    }
}

fn lines(cid: &Cid, node: &Node) -> Vec<String> {
    match node {
        Node::Plan(plan) => plan_lines(cid, plan),
        Node::Run(run) => run_lines(cid, run),
        Node::Workload(w) => vec![
            format!("workload  {cid}"),
            format!("name      {}", w.name),
            format!("content   {}  {}", w.content, ui::bytes(w.size)),
        ],
        Node::Execution(e) => vec![
            format!("execution {cid}  {}", e.id().alias()),
            format!("run       {}", e.run),
            format!("by        {}", e.orchestrator),
        ],
        Node::Placement(p) => {
            let mut lines = vec![format!("placement {cid}  of {}", p.execution.alias())];
            lines.extend(p.assignments.iter().map(|a| {
                let last = a.start + a.count.saturating_sub(1);
                format!("  {}  {}/{}..={last}", a.lablet.short(), a.group, a.start)
            }));
            lines.extend(p.refused.iter().map(|r| format!("  left out {}: {}", r.lablet.short(), r.reason)));
            lines
        }
        Node::Fact(fact) => vec![
            format!("fact      {cid}  {} of {}", fact.body.seq, fact.body.execution.alias()),
            format!("what      {:?}", fact.body.kind),
            format!("signed by {}", fact.signer),
        ],
        Node::Receipts(shard) => {
            let mut rows = vec![["INSTANCE", "LABLET", "CPU", "MEMORY", "EXIT"].map(str::to_owned).to_vec()];
            rows.extend(shard.receipts.iter().map(|signed| {
                let receipt = &signed.body;
                vec![
                    receipt.instance.to_string(),
                    receipt.lablet.short(),
                    ui::duration(receipt.usage.cpu_us / 1000),
                    ui::bytes(receipt.usage.memory_bytes),
                    format!("{:?}", receipt.exit),
                ]
            }));
            let mut lines = vec![format!("receipts  {cid}")];
            lines.extend(ui::table(&rows).lines().map(str::to_owned));
            lines
        }
        Node::Outcome(outcome) => {
            let mut lines =
                vec![format!("outcome   {cid}  {:?}", outcome.verdict), format!("run       {}", outcome.run)];
            for (name, group) in &outcome.groups {
                let c = group.counts;
                lines.push(format!("  {name}: {} ok · {} lost · {} failed", c.ok, c.lost, c.failed));
            }
            lines.extend(super::losses(outcome).into_iter().map(|line| format!("  {line}")));
            lines.extend(outcome.thresholds.iter().map(|t| {
                let glyph = if t.holds { "✓" } else { "✗" };
                let measured = t.measured.map_or("nothing measured".to_owned(), narrative::number);
                format!("  {glyph} {}   ({measured})", t.threshold)
            }));
            lines
        }
        Node::OutcomeShard(shard) => {
            let mut lines = vec![format!("outcomes  {cid}")];
            lines.extend(shard.instances.iter().map(|i| format!("  {:>6}  {:?}", i.index, i.termination)));
            lines
        }
        Node::Attestation(signed) => vec![
            format!("attestation {cid}"),
            format!("lab       {}", signed.body.lab),
            format!("signed by {}", signed.signer),
            format!("lablets   {}", signed.body.lablets.len()),
        ],
        Node::Result(result) | Node::FormerResult(FormerResult(result)) => {
            vec![format!("result    {cid}  {}", narrative::verdict_word(result.verdict))]
        }
        Node::Image(image) => {
            let mut lines = vec![
                format!("image     {cid}  {} {}", image.os, image.architecture),
                format!("size      {} in {} files", ui::bytes(image.size), image.entries),
            ];
            lines.extend(image.layers.iter().map(|layer| format!("  layer   {layer}")));
            lines
        }
        Node::Layer(layer) => {
            vec![format!("layer     {cid}"), format!("size      {} in {} files", ui::bytes(layer.size), layer.entries)]
        }
        Node::LayerPage(page) => {
            vec![format!("part of a layer {cid}"), format!("links     {} files", page.files.len())]
        }
        Node::Network(network) => {
            let mut lines = vec![format!("network   {cid}"), format!("regions   {}", network.regions.join(", "))];
            lines.extend(network.access.keys().map(|class| format!("  access  {class}")));
            lines.extend(network.groups.keys().map(|group| format!("  group   {group}")));
            lines
        }
        Node::Series(series) => {
            let mut lines = vec![format!("series    {cid}")];
            lines.extend(crate::series::table(series).lines().map(str::to_owned));
            lines.push(crate::series::summary(series));
            lines
        }
        Node::Faults(schedule) => {
            let mut lines = vec![format!("faults    {cid}")];
            lines.extend(schedule.faults.iter().map(|fault| format!("  {}", iptl_plans::fault_summary(fault))));
            lines
        }
    }
}

fn plan_lines(cid: &Cid, plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("plan      {cid}"), format!("name      {} {}", plan.name, plan.version)];
    if !plan.description.is_empty() {
        lines.push(format!("about     {}", plan.description));
    }
    for (name, workload) in &plan.workloads {
        lines.push(format!("workload  {name}  {workload}"));
    }
    for (name, case) in &plan.cases {
        lines.push(format!("case      {name}  {}", case.description));
        for (group, spec) in &case.groups {
            let c = spec.count;
            lines.push(format!("  group   {group}  {} ({}..={})  runs {}", c.default, c.min, c.max, spec.workload));
        }
        for (param, spec) in &case.params {
            lines.push(format!("  param   {param} = {}  {}  {}", spec.default, bounds(&spec.kind), spec.description));
        }
        lines.extend(case.thresholds.iter().map(|t| format!("  passes  {}", t)));
    }
    lines
}

fn run_lines(cid: &Cid, run: &Run) -> Vec<String> {
    let mut lines = vec![
        format!("run       {cid}"),
        format!("plan      {}  case {}", run.plan, run.case),
        format!("seed      {}", run.seed),
    ];
    for (name, group) in &run.groups {
        lines.push(format!("  group   {name}  {}  workload {}", group.count, ui::short(&group.workload)));
    }
    lines.extend(run.params.iter().map(|(name, value)| format!("  param   {name} = {value}")));
    lines.push(match &run.network {
        Network::Clean => "network   clean".to_owned(),
        Network::Model(cid) => format!("network   {cid}"),
    });
    lines.extend(run.faults.iter().map(|cid| format!("  faults  {cid}")));
    lines.extend(run.thresholds.iter().map(|t| format!("  passes  {}", t)));
    lines
}

fn bounds(kind: &ParamKind) -> String {
    match kind {
        ParamKind::Bool {} => "true or false".to_owned(),
        ParamKind::Int { min, max } => format!("{min}..={max}"),
        ParamKind::Float { min, max } => format!("{min}..={max}"),
        ParamKind::Text { choices } if choices.is_empty() => "text".to_owned(),
        ParamKind::Text { choices } => choices.join(" | "),
        ParamKind::Duration { min_ms, max_ms } => format!("{}..={}", ui::duration(*min_ms), ui::duration(*max_ms)),
        ParamKind::Size { min_bytes, max_bytes } => format!("{}..={}", ui::bytes(*min_bytes), ui::bytes(*max_bytes)),
    }
}
