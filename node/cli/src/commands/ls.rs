//! `iptl ls`: lists.

use std::collections::BTreeMap;

use iptl_wire::control::{ListKind, Reply, Request};
use serde_json::{Map, Value, json};

use crate::client::unexpected;
use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::{node, ui};

/// Lists things of the lab and the store.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl ls runs\n  iptl ls lablets --json")]
pub struct Args {
    /// What to list
    #[arg(value_enum)]
    what: What,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// Executions
    Runs,
    /// Published plans
    Plans,
    /// Sealed results
    Results,
    /// Lablets of the lab
    Lablets,
    /// Pinned roots
    Pins,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let mut list = List::of(args.what);
    let client = node::reach(ctx).await?;
    let mut rows = Vec::new();
    for reply in ctx.waiting("asking the node", client.call_all(Request::List { what: list.kind })).await? {
        match reply {
            Reply::Row(row) => rows.push(row),
            other => return Err(unexpected(&format!("{other:?}"))),
        }
    }
    if ctx.json {
        for row in &rows {
            let mut body = Map::new();
            body.insert("kind".to_owned(), json!(list.word));
            body.extend(row.iter().map(|(k, v)| (k.clone(), json!(v))));
            ctx.answer_json("row", Value::Object(body));
        }
    } else if ctx.quiet {
        for row in &rows {
            if let Some(value) = row.get(list.columns[0]) {
                ctx.answer(value);
            }
        }
    } else if rows.is_empty() {
        ctx.say(format!("no {}s", list.word));
    } else {
        // Where every runner is of one kind, and that is Wasm, the sums say it all.
        list.columns.retain(|column| *column != "slots_by_kind" || rows.iter().any(has_other_kinds));
        ctx.answer(lay_out(&rows, &list.columns).trim_end());
        ctx.say(ui::count(rows.len() as u64, list.word));
    }
    Ok(Exit::Ok)
}

/// How one kind of list is asked for and shown.
struct List {
    kind: ListKind,
    word: &'static str,
    /// Columns for people, the one that names a row first; `--json` has all that the node gives.
    columns: Vec<&'static str>,
}

impl List {
    fn of(what: What) -> List {
        let (kind, word, columns): (_, _, &[&str]) = match what {
            What::Runs => (
                ListKind::Runs,
                "run",
                &["alias", "state", "verdict", "ok", "failed", "lost", "case", "submitted_ms", "run"],
            ),
            What::Plans => (ListKind::Plans, "plan", &["cid", "name", "pinned_ms"]),
            What::Results => (
                ListKind::Results,
                "result",
                &["result", "alias", "verdict", "ok", "failed", "lost", "case", "ended_ms"],
            ),
            What::Lablets => (
                ListKind::Lablets,
                "lablet",
                &["peer", "name", "state", "free_slots", "slots", "slots_by_kind", "cpus", "labels"],
            ),
            What::Pins => (ListKind::Pins, "pin", &["cid", "kind", "mode", "name", "readers", "pinned_ms"]),
        };
        List { kind, word, columns: columns.to_vec() }
    }
}

/// Whether a lablet has slots of another kind than Wasm.
fn has_other_kinds(row: &BTreeMap<String, String>) -> bool {
    let by_kind = row.get("slots_by_kind").map_or("", String::as_str);
    by_kind.split(',').any(|slots| !slots.is_empty() && !slots.starts_with("wasm="))
}

/// Lays rows out; times become ages.
fn lay_out(rows: &[BTreeMap<String, String>], columns: &[&str]) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, crate::context::millis);
    let head = |column: &str| column.strip_suffix("_ms").unwrap_or(column).replace('_', " ").to_uppercase();
    let mut cells = vec![columns.iter().map(|c| head(c)).collect::<Vec<_>>()];
    for row in rows {
        let cell = |column: &&str| {
            let value = row.get(*column).cloned().unwrap_or_default();
            match value.parse::<u64>() {
                Ok(at) if column.ends_with("_ms") => format!("{} ago", ui::duration(now.saturating_sub(at))),
                _ => value,
            }
        };
        cells.push(columns.iter().map(cell).collect());
    }
    ui::table(&cells)
}
