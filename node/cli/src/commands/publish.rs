//! `iptl publish`: imports something, announces it and prints its CID.

use std::collections::BTreeMap;
use std::path::PathBuf;

use iptl_artifacts::import::{ImportOptions, import_path};
use iptl_artifacts::{BlobStore, MemStore};
use iptl_dag::Cid;
use iptl_dag::model::{Workload, WorkloadKind};
use iptl_plans::WorkloadSource;
use iptl_wire::control::Request;
use serde_json::json;

use super::check;
use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::fetch::{self, Sources};
use crate::remote::RemoteStore;
use crate::{node, plan, ui};

/// Imports something, announces it and prints its CID, alone, on stdout.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl publish plan ./my-plan\n  iptl publish data ./dataset --only-hash")]
pub struct Args {
    /// What it is
    #[arg(value_enum)]
    kind: Kind,
    /// Folder or file
    path: PathBuf,
    /// Compute the CID; store and announce nothing
    #[arg(long)]
    only_hash: bool,
    /// Take the workloads of a plan as they are
    #[arg(long)]
    no_build: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Kind {
    /// A folder with a plan.toml
    Plan,
    /// A WebAssembly component
    Workload,
    /// Any file or folder
    Data,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Plan => "plan",
            Kind::Workload => "workload",
            Kind::Data => "data",
        }
    }
}

/// What was imported.
struct Root {
    cid: Cid,
    name: String,
    blocks: u64,
    bytes: u64,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    if !args.path.exists() {
        return Err(Error::usage("path.not-found", format!("{} does not exist", args.path.display()), ""));
    }
    if args.only_hash {
        let root = import(ctx, &args, &MemStore::default(), None).await?;
        return answer(ctx, &args, &root);
    }
    // A mistake in the plan or its build should not cost the start of a node.
    let client = node::reach(ctx).await?;
    let store = RemoteStore::new(client.clone());
    let root = import(ctx, &args, &store, Some(&client)).await?;
    let request = Request::Publish { root: root.cid, kind: args.kind.word().to_owned(), name: root.name.clone() };
    ctx.waiting("announcing", client.call_all(request)).await?;
    ctx.say(format!("  import   {}, {}", ui::count(root.blocks, "block"), ui::bytes(root.bytes)));
    answer(ctx, &args, &root)
}

async fn import(ctx: &Context, args: &Args, store: &dyn BlobStore, client: Option<&Client>) -> Result<Root> {
    let name = std::path::absolute(&args.path)?
        .file_stem()
        .map_or_else(|| args.kind.word().to_owned(), |n| n.to_string_lossy().into_owned());
    match args.kind {
        Kind::Plan => {
            let source = plan::load(&args.path)?;
            ctx.say(format!("  check    ok   {}", check::summary(&source)));
            if !args.no_build {
                plan::build(ctx, &source).await?;
            }
            let published = published(ctx, &source, client).await?;
            let made = ctx.waiting("importing", plan::import(store, &source, &published, args.only_hash)).await?;
            Ok(Root { cid: made.cid, name: source.manifest.name.clone(), blocks: made.blocks, bytes: made.bytes })
        }
        Kind::Workload => {
            let work = plan::import_workload(store, &name, &args.path, WorkloadKind::Wasm, args.only_hash);
            let (block, workload, imported) = ctx.waiting("importing", work).await?;
            Ok(Root { cid: *block.cid(), name: workload.name, blocks: imported.blocks + 1, bytes: imported.bytes })
        }
        Kind::Data => {
            let options = ImportOptions { only_hash: args.only_hash, ..Default::default() };
            let imported = ctx.waiting("importing", import_path(store, &args.path, &options)).await?;
            Ok(Root { cid: imported.cid, name, blocks: imported.blocks, bytes: imported.bytes })
        }
    }
}

/// Fetches the nodes of workloads that a plan names by CID.
pub async fn published(
    ctx: &Context,
    source: &plan::Source,
    client: Option<&Client>,
) -> Result<BTreeMap<Cid, Workload>> {
    let mut nodes = BTreeMap::new();
    for workload in source.manifest.workloads.values() {
        if let (WorkloadSource::Published(cid), Some(client)) = (&workload.source, client) {
            let block = fetch::block(ctx, client, cid, &Sources::default()).await?;
            let node = iptl_dag::model::from_bytes::<Workload>(block.data()).map_err(|e| {
                Error::usage("workload.kind", format!("{cid}: {e}"), "`cid` names what `iptl publish workload` printed")
            })?;
            nodes.insert(*cid, node);
        }
    }
    Ok(nodes)
}

fn answer(ctx: &Context, args: &Args, root: &Root) -> Result {
    if ctx.json {
        ctx.answer_json(
            "published",
            json!({
                "cid": root.cid.to_string(), "kind": args.kind.word(), "name": root.name, "blocks": root.blocks,
                "bytes": root.bytes, "stored": !args.only_hash,
            }),
        );
        return Ok(Exit::Ok);
    }
    ctx.answer(root.cid);
    if !args.only_hash {
        match args.kind {
            Kind::Plan => ctx.next(format!("iptl run {}", root.cid)),
            Kind::Workload => ctx.next(format!("name it in a plan.toml:  cid = \"{}\"", root.cid)),
            Kind::Data => ctx.next(format!("elsewhere:  iptl get {}", root.cid)),
        }
    }
    Ok(Exit::Ok)
}
