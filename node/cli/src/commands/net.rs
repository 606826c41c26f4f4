//! `iptl net`: networks, before they are trusted.

use std::path::Path;
use std::time::Duration;

use iptl_dag::Cid;
use iptl_dag::model::{self, Network, NetworkModel, Node, Run};
use iptl_wire::control::{Reply, Request};
use iptl_wire::probe::{LinkProbe, ProbeReport, WayProbe};
use serde_json::{Value, json};

use crate::client::{Client, unexpected};
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::fetch::{self, Sources};
use crate::{node, plan, ui};

/// Network that is probed where none is named.
const DEFAULT: &str = "world-2019";

/// Rows of links that are shown; all stand in the answer with `--json`.
const MAX_LINKS: usize = 12;

/// Lateness of the hundredth packet, and what a way may be longer than its delay, from which on a result is distorted.
const BOUND_NS: u64 = 1_000_000;

/// By how much in a hundred a rate may be off before that is told.
const RATE_BOUND: u64 = 2;

/// What can be asked of networks.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Measure what lablets make of a network: delays, losses and rates, how late they are, how far apart
    Probe(Args),
}

/// Measures a network on the lablets of the lab, one after the other, some two seconds each, and says what would be
/// distorted there.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl net probe --local\n  iptl net probe ./plans/split\n  iptl net probe bafyrei… --json"
)]
pub struct Args {
    /// Name of a network that everybody has, folder with a plan.toml, file with `[network]`, or CID of a network or run
    #[arg(default_value = DEFAULT, value_name = "NETWORK|RUN")]
    network: String,
    /// Case of the plan, where it is a folder; else the first that has a network
    #[arg(long, value_name = "CASE")]
    case: Option<String>,
    /// Probe this computer alone: no lab
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    sources: Sources,
}

pub async fn run(ctx: &Context, command: Command) -> Result {
    let Command::Probe(args) = command;
    let client = if args.local { node::local(ctx).await? } else { node::reach(ctx).await? };
    let network = network(ctx, &client, &args).await?;
    ctx.say(format!("network   {}", iptl_plans::network_summary(&network)));
    let request = Request::Probe { network: Box::new(network.clone()) };
    let mut replies = client.call(request).await?.into_channel();
    let (mut trouble, mut probed, mut failed) = (Vec::new(), 0u32, Vec::new());
    while let Some(reply) = ctx.waiting("probing", next(&mut replies)).await? {
        match reply {
            Reply::Probed(Ok(report)) => {
                let found = distorted(&network, &report);
                if ctx.json {
                    ctx.answer_json("probe", to_json(&report, &found));
                } else {
                    lines(&report).into_iter().for_each(|line| ctx.answer(line));
                }
                trouble.extend(found);
                probed += 1;
            }
            Reply::Probed(Err((lablet, reason))) => failed.push(format!("lablet {lablet}: {reason}")),
            other => return Err(unexpected(&format!("{other:?}"))),
        }
    }
    if !ctx.json {
        for line in &trouble {
            ctx.answer(format!("distorted {line}"));
        }
        if trouble.is_empty() && probed > 0 {
            ctx.answer("nothing of this network would be distorted now");
        }
    }
    match failed.first() {
        None => Ok(Exit::Ok),
        Some(first) => {
            let more = if failed.len() > 1 { format!(", and {} more", failed.len() - 1) } else { String::new() };
            let help = "see `iptl ls lablets`, and try again";
            Err(Error::new(Exit::LabUnable, "probe.failed", format!("{first}{more}"), help))
        }
    }
}

/// Waits for what comes next; none at the end.
async fn next(replies: &mut tokio::sync::mpsc::Receiver<Result<Reply>>) -> Result<Option<Reply>> {
    replies.recv().await.transpose()
}

/// Finds the network that is meant.
async fn network(ctx: &Context, client: &Client, args: &Args) -> Result<NetworkModel> {
    let clean = |what: &str| {
        Error::usage("net.clean", format!("{what} has a clean network: nothing is asked of it"), "name another network")
    };
    if Path::new(&args.network).extension().is_some_and(|end| end == "toml") && !args.network.ends_with(plan::MANIFEST)
    {
        return super::run::network_in(&args.network, None)?.ok_or_else(|| clean("the file"));
    }
    if Path::new(&args.network).exists() {
        let source = plan::load(Path::new(&args.network))?;
        let case = args.case.as_deref();
        return source.manifest.network_of(case).cloned().ok_or_else(|| match case {
            Some(case) => clean(&format!("there is no case `{case}`, or it")),
            None => clean("each case"),
        });
    }
    if let Ok(preset) = iptl_plans::network_preset(&args.network, std::iter::empty::<&str>(), false) {
        return preset.ok_or_else(|| clean("`clean`"));
    }
    let place = fetch::locate(ctx, client, &args.network, &args.sources).await.map_err(|mut error| {
        error.help =
            format!("`{}` is no folder, no network that everybody has, and no CID. {}", args.network, error.help);
        error
    })?;
    let cid = place.block_cid()?;
    match read(ctx, client, &cid, args).await? {
        Node::Network(network) => Ok(network),
        Node::Run(Run { network: Network::Model(cid), .. }) => match read(ctx, client, &cid, args).await? {
            Node::Network(network) => Ok(network),
            other => Err(no_network(&cid, other.tag())),
        },
        Node::Run(_) => Err(clean("the run")),
        other => Err(no_network(&cid, other.tag())),
    }
}

async fn read(ctx: &Context, client: &Client, cid: &Cid, args: &Args) -> Result<Node> {
    let block = fetch::block(ctx, client, cid, &args.sources).await?;
    model::Node::from_bytes(block.data()).map_err(|_| no_network(cid, "something else"))
}

fn no_network(cid: &Cid, what: &str) -> Error {
    let message = format!("{} is no network and no run, but {what}", ui::short(cid));
    Error::usage("net.not-a-network", message, "see it with `iptl show`")
}

/// Says what a result of this network would be distorted by, if it ran as the probe did.
fn distorted(network: &NetworkModel, report: &ProbeReport) -> Vec<String> {
    let mut found = Vec::new();
    let name = &report.lablet;
    let late = report.late_ns[1];
    if late > BOUND_NS {
        found.push(format!("{name}: one packet in a hundred is late by {} or more", time(late)));
    }
    for link in &report.links {
        let Some(measured) = link.measured_rate_bps else { continue };
        if measured.abs_diff(link.asked_rate_bps) * 100 > link.asked_rate_bps * RATE_BOUND {
            let (asked, measured) = (rate(link.asked_rate_bps), rate(measured));
            found.push(format!("{name}: {} carries {measured} where {asked} are asked for", link.link));
        }
    }
    for way in &report.ways {
        if !way.trouble.is_empty() {
            found.push(format!("{name} to {}: {}", way.lablet, way.trouble));
        }
        if way.relayed {
            found.push(format!("{name} to {}: packets go by way of a third machine", way.lablet));
        }
        found.extend(way.best_ns.and_then(|best_ns| too_far(network, name, &way.lablet, best_ns)));
    }
    found
}

/// Says which delays the way between two lablets cannot be hidden in.
fn too_far(network: &NetworkModel, from: &str, to: &str, way_ns: u64) -> Option<String> {
    let places = network.regions.iter().zip(&network.delays_us);
    let pairs = places.flat_map(|(a, row)| network.regions.iter().zip(row).map(move |(b, us)| (*us, a, b)));
    let mut shorter: Vec<_> = pairs.filter(|(us, _, _)| us.saturating_mul(1_000) + BOUND_NS < way_ns).collect();
    shorter.sort();
    let (us, a, b) = shorter.first()?;
    let more = match shorter.len() {
        1 => String::new(),
        n => format!(", and {} more pairs of regions", n - 1),
    };
    let (asked, way) = (time(us * 1_000), time(way_ns));
    Some(format!("{from} to {to}: the way takes {way}, and {a} to {b} asks for {asked}{more}"))
}

fn lines(report: &ProbeReport) -> Vec<String> {
    let [median, hundredth, most] = report.late_ns.map(time);
    let mut lines = vec![format!(
        "lablet    {}   {}   late by {median} (median), {hundredth} (one in a hundred), {most} (most)",
        report.lablet,
        report.peer.short()
    )];
    let mut rows =
        vec![["  LINK", "DELAY", "MEASURED", "LOSS", "MEASURED", "RATE", "MEASURED"].map(str::to_owned).to_vec()];
    // Those that are furthest off say most; limited ones always.
    let mut links: Vec<&LinkProbe> = report.links.iter().collect();
    links.sort_by_key(|link| {
        (
            link.asked_rate_bps == 0,
            link.asked_loss_ppm == 0,
            std::cmp::Reverse(link.measured_ns.abs_diff(link.asked_ns)),
        )
    });
    for link in links.iter().take(MAX_LINKS) {
        let limited = link.asked_rate_bps > 0;
        rows.push(vec![
            format!("  {}", link.link),
            time(link.asked_ns),
            time(link.measured_ns),
            share(link.asked_loss_ppm),
            share(link.measured_loss_ppm),
            if limited { rate(link.asked_rate_bps) } else { "-".to_owned() },
            link.measured_rate_bps.map_or_else(|| "-".to_owned(), rate),
        ]);
    }
    lines.extend(ui::table(&rows).trim_end().lines().map(str::to_owned));
    if links.len() > MAX_LINKS {
        lines.push(format!("  and {} more that are no further off", links.len() - MAX_LINKS));
    }
    lines.extend(report.ways.iter().map(|way| {
        let WayProbe { lablet, best_ns, median_ns, relayed, trouble, .. } = way;
        let how = if *relayed { "relayed" } else { "direct" };
        match (best_ns, median_ns) {
            (Some(best), Some(median)) => {
                format!(
                    "way       {} → {lablet}   {} one way, {} (median), {how}",
                    report.lablet,
                    time(*best),
                    time(*median)
                )
            }
            _ => format!("way       {} → {lablet}   none: {trouble}", report.lablet),
        }
    }));
    lines
}

fn to_json(report: &ProbeReport, found: &[String]) -> Value {
    let links: Vec<Value> = report
        .links
        .iter()
        .map(|link| {
            json!({
                "link": link.link, "packets": link.packets, "asked_ns": link.asked_ns,
                "measured_ns": link.measured_ns, "asked_loss_ppm": link.asked_loss_ppm,
                "measured_loss_ppm": link.measured_loss_ppm, "asked_rate_bps": link.asked_rate_bps,
                "measured_rate_bps": link.measured_rate_bps,
            })
        })
        .collect();
    let ways: Vec<Value> = report
        .ways
        .iter()
        .map(|way| {
            json!({
                "lablet": way.lablet, "to": way.to.to_string(), "best_ns": way.best_ns, "median_ns": way.median_ns,
                "relayed": way.relayed, "trouble": way.trouble,
            })
        })
        .collect();
    let [median, hundredth, most] = report.late_ns;
    json!({
        "lablet": report.lablet, "peer": report.peer.to_string(), "links": links, "ways": ways,
        "late_ns": {"p50": median, "p99": hundredth, "max": most}, "distorted": found,
    })
}

/// Writes a time with the unit that suits it.
fn time(ns: u64) -> String {
    let time = Duration::from_nanos(ns);
    match ns {
        0 => "0".to_owned(),
        1..1_000_000 => format!("{:.0} µs", time.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.2} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

fn rate(bps: u64) -> String {
    match bps {
        ..1_000_000 => format!("{:.1} kbit/s", bps as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} Mbit/s", bps as f64 / 1e6),
        _ => format!("{:.2} Gbit/s", bps as f64 / 1e9),
    }
}

fn share(ppm: u32) -> String {
    if ppm == 0 { "0".to_owned() } else { format!("{:.2} %", f64::from(ppm) / 1e4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkModel {
        NetworkModel {
            ip: model::IpModel::default(),
            regions: vec!["east".to_owned(), "west".to_owned()],
            delays_us: vec![vec![0, 5_000], vec![5_000, 40_000]],
            access: std::collections::BTreeMap::new(),
            groups: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_way_is_too_far_where_a_delay_is_shorter() {
        let far = |ms: u64| too_far(&network(), "a", "b", ms * 1_000_000);
        assert_eq!(far(1), None, "a millisecond is what a result bears");
        assert_eq!(far(2).unwrap(), "a to b: the way takes 2.00 ms, and east to east asks for 0");
        assert_eq!(
            far(7).unwrap(),
            "a to b: the way takes 7.00 ms, and east to east asks for 0, and 2 more pairs of regions"
        );
    }
}
