//! What the links of a result really did: those of each instance, those between regions, and how late packets were.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{BetweenRegions, CellNetworkUse, LinkUse};
use iptl_result::Networked;
use serde_json::{Value, json};

use crate::ui;

/// Rows that are shown; all stand in the answer with `--json`.
const MAX_ROWS: usize = 200;

/// Links up to which they are shown unasked.
const FEW: usize = 8;

/// Links between two regions by these, over all cells: each cell counts what came to its own instances.
type Between = BTreeMap<(u16, u16), BetweenRegions>;

const HEAD: [&str; 9] = ["LINK", "OFFERED", "DELIVERED", "LOST", "QUEUE", "COPIES", "TURNED", "ASKED", "MEASURED"];

/// The network of one cell: the instances of an execution that one runner of a lablet had.
pub(super) struct Cell<'a> {
    lablet: &'a PeerId,
    runner: &'a str,
    used: &'a CellNetworkUse,
}

/// Returns the networks of cells, as the receipts say that were made last.
pub(super) fn cells(networked: &[Networked]) -> Vec<Cell<'_>> {
    let mut last: BTreeMap<(&PeerId, &str), &CellNetworkUse> = BTreeMap::new();
    for of in networked {
        let used = last.entry((&of.lablet, &of.runner)).or_insert(&of.used.cell);
        if used.wall_us < of.used.cell.wall_us {
            *used = &of.used.cell;
        }
    }
    last.into_iter().map(|((lablet, runner), used)| Cell { lablet, runner, used }).collect()
}

/// Returns what each link between regions did, over all cells; where receipts have no room for all, those with most packets.
fn between(cells: &[Cell<'_>]) -> Between {
    let mut sums = Between::new();
    for link in cells.iter().flat_map(|cell| &cell.used.between) {
        let (from, to) = (link.from, link.to);
        let sum = sums.entry((from, to)).or_insert(BetweenRegions { from, to, ..BetweenRegions::default() });
        sum.did.add(&link.did);
        sum.lost_by_lab = sum.lost_by_lab.saturating_add(link.lost_by_lab);
    }
    sums
}

/// Names a region by its place in the network.
fn region(regions: &[String], place: u16) -> String {
    regions.get(usize::from(place)).map_or_else(|| format!("region {place}"), |name| ui::harmless(name))
}

/// Returns every link of an instance with its name, its own first.
fn links(of: &Networked) -> impl Iterator<Item = (String, &LinkUse)> {
    let way = |way: &'static str, links| {
        let name = move |depth| if depth == 0 { way.to_owned() } else { format!("gateway {depth} {way}") };
        (0..).map(name).zip(links)
    };
    let asked = of.used.own.iter().map(|own| ("asked for".to_owned(), own));
    way("up", &of.used.up).chain(way("down", &of.used.down)).chain(asked)
}

/// Returns the lines for people: tables of links, and how late packets were; none where nothing is known of links, or where
/// there are many and nobody asked for them.
pub(super) fn lines(
    networked: &[Networked],
    regions: &[String],
    asked: bool,
    name_of: &dyn Fn(&PeerId) -> String,
) -> Vec<String> {
    let count: usize = networked.iter().map(|of| links(of).count()).sum();
    if count == 0 {
        return if asked { vec!["links     nothing: no packets were carried as such".to_owned()] } else { Vec::new() };
    }
    if !asked && count > FEW {
        return vec![format!("links     {count}: `--links` shows what each did")];
    }
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    let all = networked.iter().flat_map(|of| {
        let attempt = if of.attempt > 1 { format!(" attempt {}", of.attempt) } else { String::new() };
        links(of).map(move |(name, link)| (format!("{}{attempt} {name}", of.instance), link))
    });
    rows.extend(all.take(MAX_ROWS).map(|(name, link)| row(name, link)));
    let cells = cells(networked);
    let between = between(&cells);
    let way = |link: &BetweenRegions| format!("{} → {}", region(regions, link.from), region(regions, link.to));
    rows.extend(between.values().take(MAX_ROWS).map(|link| row(way(link), &link.did)));
    let across = cells.iter().filter(|cell| cell.used.across != LinkUse::default());
    rows.extend(across.map(|cell| row(format!("{} between regions", cell_name(cell, name_of)), &cell.used.across)));
    let mut lines: Vec<String> = ui::table(&rows).trim_end().lines().map(str::to_owned).collect();
    let more = count.saturating_sub(MAX_ROWS) + between.len().saturating_sub(MAX_ROWS);
    if more > 0 {
        lines.push(format!("and {more} more: `--json` has all"));
    }
    let by_lab: Vec<String> = networked
        .iter()
        .filter(|of| of.used.lost_by_lab + of.used.spoofed > 0)
        .map(|of| {
            format!(
                "{}: the lab lost {} packets, {} had a wrong source",
                of.instance, of.used.lost_by_lab, of.used.spoofed
            )
        })
        .take(MAX_ROWS)
        .collect();
    lines.extend(by_lab);
    let at_regions = between.values().filter(|link| link.lost_by_lab > 0).take(MAX_ROWS);
    lines.extend(at_regions.map(|link| format!("{}: the lab lost {} packets", way(link), link.lost_by_lab)));
    lines.extend(cells.iter().map(|cell| late_line(cell, name_of)));
    lines
}

fn cell_name(cell: &Cell<'_>, name_of: &dyn Fn(&PeerId) -> String) -> String {
    format!("{} ({})", name_of(cell.lablet), ui::harmless(cell.runner))
}

/// Returns a row of the table: packets, and what one took in the mean.
fn row(name: String, link: &LinkUse) -> Vec<String> {
    let mean = |sum_ns: u64| match link.delivered {
        0 => "-".to_owned(),
        delivered => format!("{:.3} ms", sum_ns as f64 / delivered as f64 / 1e6),
    };
    let counts = [link.offered, link.delivered, link.lost, link.overflowed, link.duplicated, link.corrupted];
    let counts = counts.map(|count| count.to_string());
    [&[name], &counts[..], &[mean(link.asked_ns), mean(link.measured_ns)]].concat()
}

/// Says how late the packets of a cell were, and how they came from others.
fn late_line(cell: &Cell<'_>, name_of: &dyn Fn(&PeerId) -> String) -> String {
    let used = cell.used;
    let us = |ns: u64| format!("{:.1} µs", ns as f64 / 1e3);
    let [half, most, nearly_all] = [500, 990, 999].map(|permille| us(used.late_ns(permille)));
    let mut line = format!(
        "late      {}: half by {half} at most, 99% by {most}, 99.9% by {nearly_all}, all by {}",
        cell_name(cell, name_of),
        us(used.max_late_ns)
    );
    for (count, what) in [
        (used.relayed, "came over a relay"),
        (used.overdue, "came later than their delay"),
        (used.lost_by_lab, "were lost by the lab"),
    ] {
        if count > 0 {
            line.push_str(&format!("; {count} {what}"));
        }
    }
    line
}

/// Returns all of it as data.
pub(super) fn to_json(networked: &[Networked], regions: &[String]) -> Value {
    let instances: Vec<Value> = networked
        .iter()
        .map(|of| {
            let links: Vec<Value> = links(of).map(|(name, link)| json!({"link": name, "did": link})).collect();
            json!({
                "instance": of.instance.to_string(), "attempt": of.attempt, "lablet": of.lablet.to_string(),
                "links": links, "spoofed": of.used.spoofed, "lost_by_lab": of.used.lost_by_lab,
                "crashes": of.used.crashes,
            })
        })
        .collect();
    let cells = cells(networked);
    let to_json = |link: &BetweenRegions| {
        json!({
            "from": region(regions, link.from), "to": region(regions, link.to), "did": link.did,
            "lost_by_lab": link.lost_by_lab,
        })
    };
    let between: Vec<Value> = between(&cells).values().map(to_json).collect();
    let cells: Vec<Value> = cells
        .iter()
        .map(|cell| {
            let used = cell.used;
            let [p50, p99, p999] = [500, 990, 999].map(|permille| used.late_ns(permille));
            json!({
                "lablet": cell.lablet.to_string(), "runner": cell.runner, "across": used.across,
                "between": used.between.iter().map(to_json).collect::<Vec<_>>(),
                "lateness": used.lateness, "late_ns": {"p50": p50, "p99": p99, "p999": p999, "max": used.max_late_ns},
                "relayed": used.relayed, "overdue": used.overdue, "max_overdue_ns": used.max_overdue_ns,
                "lost_by_lab": used.lost_by_lab, "cpu_us": used.cpu_us, "wall_us": used.wall_us,
                "realtime": used.realtime,
            })
        })
        .collect();
    json!({"instances": instances, "between": between, "cells": cells})
}
