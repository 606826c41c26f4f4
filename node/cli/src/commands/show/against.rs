//! Two results side by side: what differs between their runs, and what both measured. Both are verified first.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::Cid;
use iptl_dag::model::{self, Network, ResultNode};
use iptl_dag::path::Target;
use iptl_result::{GroupUse, MetricSummary, Spread};
use serde_json::json;

use super::result::{self, Looked};
use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::fetch::{self, Sources};
use crate::{narrative, ui};

/// A statistic by its name.
type Statistic = (&'static str, fn(&MetricSummary) -> f64);

/// Statistics that are compared.
const STATISTICS: [Statistic; 4] =
    [("mean", |m| m.mean.unwrap_or(f64::NAN)), ("p50", |m| m.p50), ("p95", |m| m.p95), ("p99", |m| m.p99)];

/// A number that instances used, with its unit, and what that is in the receipts' own.
struct Used {
    name: &'static str,
    unit: &'static str,
    scale: f64,
    read: fn(&GroupUse) -> Spread,
}

/// What is compared of what instances used.
const USED: [Used; 2] = [
    Used { name: "cpu", unit: "ms", scale: 1e3, read: |used| used.cpu_us },
    Used { name: "memory", unit: "MiB", scale: (1u64 << 20) as f64, read: |used| used.memory_bytes },
];

/// Fetches and verifies both, and shows what they have in common and what not; exits 1 where one does not verify.
pub async fn show(ctx: &Context, client: &Client, targets: [&String; 2], sources: &Sources) -> Result {
    let (cid_a, a) = one(ctx, client, targets[0], sources).await?;
    let (cid_b, b) = one(ctx, client, targets[1], sources).await?;
    let settings: Vec<[String; 3]> = settings(&a, &b);
    let metrics: Vec<Row> = metrics(&a, &b).into_iter().chain(used(&a, &b)).collect();
    if ctx.json {
        let settings: Vec<_> = settings.iter().map(|[what, a, b]| json!({"what": what, "a": a, "b": b})).collect();
        let metrics: Vec<_> = metrics
            .iter()
            .map(|row| {
                json!({
                    "group": row.group, "metric": row.metric, "unit": row.unit, "statistic": row.statistic,
                    "a": row.a, "b": row.b,
                })
            })
            .collect();
        let sides = [&cid_a, &cid_b].map(ToString::to_string);
        ctx.answer_json("against", json!({"a": sides[0], "b": sides[1], "differ": settings, "metrics": metrics}));
        return Ok(Exit::Ok);
    }
    let mut rows = vec![["", "A", "B"].map(str::to_owned).to_vec()];
    rows.push(vec!["result".into(), ui::short(&cid_a), ui::short(&cid_b)]);
    let verdict = |looked: &Looked| narrative::verdict_word(looked.verified.result.verdict).to_owned();
    rows.push(vec!["verdict".into(), verdict(&a), verdict(&b)]);
    let instances = |looked: &Looked| {
        let counts = looked.verified.result.counts;
        format!("{} ok, {} lost, {} failed", counts.ok, counts.lost, counts.failed)
    };
    rows.push(vec!["instances".into(), instances(&a), instances(&b)]);
    rows.extend(settings.into_iter().map(Vec::from));
    ctx.answer(ui::table(&rows).trim_end());
    let mut rows = vec![["GROUP", "METRIC", "STAT", "A", "B", "B / A"].map(str::to_owned).to_vec()];
    let shown = |value: Option<f64>, unit: &str| {
        value.map_or("-".to_owned(), |value| format!("{} {unit}", narrative::number(value)).trim_end().to_owned())
    };
    rows.extend(metrics.iter().map(|row| {
        let ratio = match (row.a, row.b) {
            (Some(a), Some(b)) if a != 0.0 => format!("{:.2}", b / a),
            _ => "-".to_owned(),
        };
        let [a, b] = [row.a, row.b].map(|value| shown(value, &row.unit));
        vec![row.group.clone(), row.metric.clone(), row.statistic.to_owned(), a, b, ratio]
    }));
    ctx.answer(format!("\n{}", ui::table(&rows).trim_end()));
    Ok(Exit::Ok)
}

/// Finds, fetches and verifies a result.
async fn one(ctx: &Context, client: &Client, target: &str, sources: &Sources) -> Result<(Cid, Looked)> {
    let no_result = || {
        let help = "name two results, by the CIDs that `iptl run` printed";
        Error::usage("show.no-result", format!("{target} is no result, and only results are compared"), help)
    };
    let place = fetch::locate(ctx, client, target, sources).await?;
    let Target::Block { cid } = place.target else { return Err(no_result()) };
    let block = fetch::block(ctx, client, &cid, sources).await?;
    let Ok(node) = model::from_bytes::<ResultNode>(block.data()) else { return Err(no_result()) };
    let looked = result::look(ctx, client, cid, &node, sources).await?;
    if !looked.verified.is_good() {
        return Err(result::not_valid(format!("{target}: {}", looked.verified.problems.join("; "))));
    }
    Ok((cid, looked))
}

/// Lists what the two runs do not have in common, by what people call it.
fn settings(a: &Looked, b: &Looked) -> Vec<[String; 3]> {
    let all = |looked: &Looked| -> BTreeMap<String, String> {
        let run = &looked.verified.run;
        let mut all = BTreeMap::from([
            ("plan".to_owned(), format!("{} {}", looked.plan.name, looked.plan.version)),
            ("case".to_owned(), run.case.clone()),
            ("seed".to_owned(), run.seed.to_string()),
            ("network".to_owned(), network(&run.network)),
        ]);
        for (name, group) in &run.groups {
            all.insert(format!("size of {name}"), group.count.to_string());
            all.insert(format!("workload of {name}"), ui::short(&group.workload));
        }
        all.extend(run.params.iter().map(|(name, value)| (format!("param {name}"), value.to_string())));
        all
    };
    let (a, b) = (all(a), all(b));
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let of = |side: &BTreeMap<String, String>, name: &String| side.get(name).cloned().unwrap_or("-".to_owned());
    names.into_iter().map(|name| [name.clone(), of(&a, name), of(&b, name)]).filter(|[_, a, b]| a != b).collect()
}

fn network(network: &Network) -> String {
    match network {
        Network::Clean => "clean".to_owned(),
        Network::Model(cid) => ui::short(cid),
    }
}

/// One statistic of a metric that one of the two has at least.
struct Row {
    group: String,
    metric: String,
    unit: String,
    statistic: &'static str,
    a: Option<f64>,
    b: Option<f64>,
}

fn metrics(a: &Looked, b: &Looked) -> Vec<Row> {
    let all = |looked: &Looked| -> BTreeMap<(String, String), MetricSummary> {
        let groups = looked.verified.summary.iter().flat_map(|summary| &summary.groups);
        groups
            .flat_map(|(name, group)| {
                group.metrics.iter().map(move |(metric, of)| ((name.clone(), metric.clone()), of.clone()))
            })
            .collect()
    };
    let (a, b) = (all(a), all(b));
    let names: BTreeSet<&(String, String)> = a.keys().chain(b.keys()).collect();
    let mut rows = Vec::new();
    for name in names {
        let (of_a, of_b) = (a.get(name), b.get(name));
        let unit = of_a.or(of_b).map(|metric| metric.unit.clone()).unwrap_or_default();
        // Numbers in two units have nothing to do with each other.
        let of_b = of_b.filter(|metric| metric.unit == unit);
        for (statistic, read) in STATISTICS {
            let value = |metric: Option<&MetricSummary>| metric.map(read).filter(|value| value.is_finite());
            let (a, b) = (value(of_a), value(of_b));
            let (group, metric) = name.clone();
            rows.push(Row { group, metric, unit: unit.clone(), statistic, a, b });
        }
    }
    rows
}

/// Returns what the instances of each group used, of one of the two at least.
fn used(a: &Looked, b: &Looked) -> Vec<Row> {
    let (a, b) = (&a.verified.used, &b.verified.used);
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let mut rows = Vec::new();
    for name in names {
        for Used { name: metric, unit, scale, read } in USED {
            let [of_a, of_b] = [a, b].map(|used| used.get(name).map(read));
            let mut row = |statistic, of: fn(Spread) -> u64| {
                let value = |spread: Option<Spread>| spread.map(|spread| of(spread) as f64 / scale);
                let (group, metric, unit) = (name.clone(), metric.to_owned(), unit.to_owned());
                rows.push(Row { group, metric, unit, statistic, a: value(of_a), b: value(of_b) });
            };
            row("p50", |spread| spread.p50);
            row("max", |spread| spread.max);
        }
    }
    rows
}
