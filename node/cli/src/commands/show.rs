//! `iptl show`: a summary of anything that has a CID; a result is verified on the way.

mod against;
mod links;
mod objects;
mod result;
mod used;

use iptl_dag::model::{FormerResult, Node, Outcome};
use iptl_dag::path::Target;
use iptl_dag::{Block, Codec, codec};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::fetch::{self, Sources};
use crate::node;

/// Shows what is behind a CID; of a result, everything is fetched and verified first.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl show last\n  iptl show last --links\n  iptl show last --against bafyrei…\n  iptl show bafyrei… --peer /ip4/10.0.0.7/tcp/4001/p2p/12D3KooW…"
)]
pub struct Args {
    /// CID or name, with a path below it where wanted
    #[arg(default_value = "last")]
    target: String,
    /// Another result: what both measured, side by side
    #[arg(long, value_name = "RESULT")]
    against: Option<String>,
    /// Of a result, what every link really did: packets, losses, delays asked for and measured, lateness
    #[arg(long, conflicts_with = "against")]
    links: bool,
    #[command(flatten)]
    sources: Sources,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::reach(ctx).await?;
    if let Some(other) = &args.against {
        return against::show(ctx, &client, [&args.target, other], &args.sources).await;
    }
    let place = fetch::locate(ctx, &client, &args.target, &args.sources).await?;
    let cid = match &place.target {
        Target::Block { cid } => *cid,
        Target::Value { value, .. } => {
            ctx.answer(String::from_utf8_lossy(&codec::to_dag_json(value)));
            return Ok(Exit::Ok);
        }
    };
    let block = fetch::block(ctx, &client, &cid, &args.sources).await?;
    if Codec::of(&cid) == Some(Codec::DagCbor)
        && let Ok(node) = Node::from_bytes(block.data())
    {
        if ctx.quiet {
            ctx.answer(cid);
        }
        return match node {
            Node::Result(node) | Node::FormerResult(FormerResult(node)) => {
                result::show(ctx, client, cid, &node, &args.sources, args.links).await
            }
            other => {
                objects::show(ctx, &cid, &other, &block);
                Ok(Exit::Ok)
            }
        };
    }
    plain(ctx, &block);
    Ok(Exit::Ok)
}

/// Says what the plan makes of losses and failures, by group.
fn losses(outcome: &Outcome) -> Vec<String> {
    let mut lines: Vec<String> = outcome
        .losses
        .iter()
        .map(|(group, loss)| {
            let word = if loss.accepted { "accepted" } else { "too many" };
            format!("{group}: {} lost, {} may be: {word}", loss.lost, loss.max_lost)
        })
        .collect();
    lines.extend(outcome.fail_fast.iter().map(|group| format!("{group} failed, and fails fast")));
    lines
}

/// Shows what is no node of the lab: files, folders, other data.
fn plain(ctx: &Context, block: &Block) {
    use iptl_dag::unixfs::UnixFs;
    let cid = block.cid();
    let is_files = matches!(Codec::of(cid), Some(Codec::DagPb | Codec::Raw));
    match UnixFs::of_block(block) {
        Ok(UnixFs::Directory(entries)) if is_files => {
            if ctx.json {
                let rows: Vec<_> = entries
                    .iter()
                    .map(|e| json!({"name": e.name, "cid": e.cid.to_string(), "total_size": e.total_size}))
                    .collect();
                ctx.answer_json("show", json!({"cid": cid.to_string(), "kind": "directory", "entries": rows}));
                return;
            }
            let mut rows = vec![["NAME", "SIZE", "CID"].map(str::to_owned).to_vec()];
            rows.extend(
                entries.iter().map(|e| vec![e.name.clone(), crate::ui::bytes(e.total_size), e.cid.to_string()]),
            );
            ctx.answer(crate::ui::table(&rows).trim_end());
        }
        Ok(UnixFs::File(file)) if is_files => {
            if ctx.json {
                ctx.answer_json("show", json!({"cid": cid.to_string(), "kind": "file", "size": file.size}));
            } else {
                ctx.answer(format!("file  {cid}  {}", crate::ui::bytes(file.size)));
                ctx.next(format!("iptl get {cid} -o -"));
            }
        }
        Ok(_) | Err(_) => {
            let value = codec::to_ipld(block).map(|v| String::from_utf8_lossy(&codec::to_dag_json(&v)).into_owned());
            match (ctx.json, value) {
                (true, value) => {
                    let value = value.ok().and_then(|v| serde_json::from_str::<serde_json::Value>(&v).ok());
                    ctx.answer_json(
                        "show",
                        json!({"cid": cid.to_string(), "kind": "data", "size": block.data().len(), "value": value}),
                    );
                }
                (false, Ok(value)) => ctx.answer(value),
                (false, Err(_)) => ctx.answer(format!("block {cid}  {}", crate::ui::bytes(block.data().len() as u64))),
            }
        }
    }
}
