//! `iptl pin`: keeps a CID.

use iptl_wire::control::Request;
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::{Exit, Result};
use crate::fetch::{self, Sources};
use crate::{node, ui};

/// Keeps a CID with everything that it leads to, until `iptl unpin`: neither `iptl gc` nor a quota drops it. What is not
/// here is fetched first.
///
/// Others may read it from this node, as whatever is published in its lab: see READERS in `iptl ls pins`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl pin bafy… --name corpus\n  iptl pin last            # the result of the last run\n  iptl pin bafy… --direct --peer /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3KooW…\n  iptl ls pins"
)]
pub struct Args {
    /// CID, or the alias of a run for its result; with a path below it where wanted
    what: String,
    /// Keep this block alone, without what it links; it is not announced, and for members alone
    #[arg(long)]
    direct: bool,
    /// Name for lists [default: the one that it has]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    sources: Sources,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::reach(ctx).await?;
    let root = fetch::locate(ctx, &client, &args.what, &args.sources).await?.block_cid()?;
    // What comes stays for some minutes, so that nothing of it goes before it is pinned.
    let report = fetch::fetch(ctx, &client, root, &args.sources, args.direct).await?;
    let request = Request::Pin { root, direct: args.direct, name: args.name };
    ctx.waiting("pinning", client.call_all(request)).await?;
    if ctx.json {
        let mut body = serde_json::Map::new();
        body.insert("cid".to_owned(), json!(root.to_string()));
        body.insert("direct".to_owned(), json!(args.direct));
        body.extend(fetch::report_json(&report));
        ctx.answer_json("pinned", Value::Object(body));
        return Ok(Exit::Ok);
    }
    ctx.say(format!(
        "kept: {}, {}{}",
        ui::count(report.blocks, "block"),
        ui::bytes(report.bytes),
        fetch::shares(&report)
    ));
    ctx.answer(root);
    Ok(Exit::Ok)
}
