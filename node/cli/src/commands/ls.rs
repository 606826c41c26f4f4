//! `iptl ls`: lists.

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
    let (what, word, key) = match args.what {
        What::Runs => (ListKind::Runs, "run", "alias"),
        What::Plans => (ListKind::Plans, "plan", "cid"),
        What::Results => (ListKind::Results, "result", "cid"),
        What::Lablets => (ListKind::Lablets, "lablet", "peer"),
        What::Pins => (ListKind::Pins, "pin", "cid"),
    };
    let client = node::reach(ctx).await?;
    let mut rows = Vec::new();
    for reply in ctx.waiting("asking the node", client.call_all(Request::List { what })).await? {
        match reply {
            Reply::Row(row) => rows.push(row),
            other => return Err(unexpected(&format!("{other:?}"))),
        }
    }
    if ctx.json {
        for row in &rows {
            let mut body = Map::new();
            body.insert("kind".to_owned(), json!(word));
            body.extend(row.iter().map(|(k, v)| (k.clone(), json!(v))));
            ctx.answer_json("row", Value::Object(body));
        }
    } else if ctx.quiet {
        for row in &rows {
            if let Some(value) = row.get(key).or_else(|| row.values().next()) {
                ctx.answer(value);
            }
        }
    } else if rows.is_empty() {
        ctx.say(format!("no {word}s"));
    } else {
        ctx.answer(lay_out(&rows, key).trim_end());
        ctx.say(ui::count(rows.len() as u64, word));
    }
    Ok(Exit::Ok)
}

/// Lays rows out with the naming column first and the others in their order.
fn lay_out(rows: &[std::collections::BTreeMap<String, String>], key: &str) -> String {
    let mut columns: Vec<&str> = rows.iter().flat_map(|r| r.keys().map(String::as_str)).collect();
    columns.sort_by_key(|c| (*c != key, *c));
    columns.dedup();
    let mut cells = vec![columns.iter().map(|c| c.to_uppercase()).collect::<Vec<_>>()];
    for row in rows {
        cells.push(columns.iter().map(|c| row.get(*c).cloned().unwrap_or_default()).collect());
    }
    ui::table(&cells)
}
