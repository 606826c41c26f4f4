//! `iptl dag`: the DAG itself, node by node.

use std::collections::BTreeMap;

use iptl_dag::model::Node;
use iptl_dag::path::Target;
use iptl_dag::unixfs::UnixFs;
use iptl_dag::walk::{Limits, Walk};
use iptl_dag::{Block, Cid, Codec, codec, walk};
use serde_json::json;

use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::fetch::{self, Sources};
use crate::remote::{self, RemoteStore};
use crate::{node, ui};

/// Blocks read at a time.
const BATCH: usize = 64;

/// Commands about blocks.
#[derive(clap::Subcommand)]
pub enum Command {
    /// One node, or a value inside one, as DAG-JSON
    Get(GetArgs),
    /// Blocks, bytes and codecs below a CID
    Stat(StatArgs),
    /// What links what
    Tree(TreeArgs),
}

/// Prints a node as DAG-JSON.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl dag get last\n  iptl dag get last/run/params")]
pub struct GetArgs {
    /// CID or name, with a path below it where wanted
    target: String,
    #[command(flatten)]
    sources: Sources,
}

/// Counts what a CID reaches.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl dag stat last\n  iptl dag stat bafybei… --json")]
pub struct StatArgs {
    /// CID or name, with a path below it where wanted
    target: String,
    #[command(flatten)]
    sources: Sources,
}

/// Prints what a CID links, and what that links.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl dag tree last --depth 2\n  iptl dag tree last/files")]
pub struct TreeArgs {
    /// CID or name, with a path below it where wanted
    target: String,
    /// How deep to go
    #[arg(long, default_value_t = 3)]
    depth: u32,
    #[command(flatten)]
    sources: Sources,
}

pub async fn run(ctx: &Context, command: Command) -> Result {
    match command {
        Command::Get(args) => get(ctx, args).await,
        Command::Stat(args) => stat(ctx, args).await,
        Command::Tree(args) => tree(ctx, args).await,
    }
}

async fn get(ctx: &Context, args: GetArgs) -> Result {
    let client = node::reach(ctx).await?;
    let place = fetch::locate(ctx, &client, &args.target, &args.sources).await?;
    let value = match place.target {
        Target::Value { value, .. } => value,
        Target::Block { cid } => {
            let block = fetch::block(ctx, &client, &cid, &args.sources).await?;
            codec::to_ipld(&block).map_err(|e| unreadable(&cid, e))?
        }
    };
    ctx.answer(String::from_utf8_lossy(&codec::to_dag_json(&value)));
    Ok(Exit::Ok)
}

async fn stat(ctx: &Context, args: StatArgs) -> Result {
    let client = node::reach(ctx).await?;
    let place = fetch::locate(ctx, &client, &args.target, &args.sources).await?;
    let cid = place.block_cid()?;
    let report = fetch::fetch(ctx, &client, cid, &args.sources, false).await?;
    let store = RemoteStore::new(client);
    let mut walk = Walk::new([cid], Limits::default()).map_err(|e| Error::usage("dag.walk", e, ""))?;
    let (mut blocks, mut bytes, mut largest) = (0u64, 0u64, 0usize);
    let mut codecs: BTreeMap<&str, u64> = BTreeMap::new();
    loop {
        let wants = walk.wants(BATCH);
        if wants.is_empty() {
            break;
        }
        for cid in wants {
            let block = iptl_artifacts::read_block(&store, &cid).await?.ok_or_else(|| remote::missing(cid))?;
            walk.accept(&block).map_err(|e| Error::usage("dag.walk", e, ""))?;
            blocks += 1;
            bytes += block.data().len() as u64;
            largest = largest.max(block.data().len());
            *codecs.entry(codec_word(&cid)).or_default() += 1;
        }
    }
    if ctx.json {
        ctx.answer_json(
            "dag-stat",
            json!({
                "cid": cid.to_string(), "blocks": blocks, "bytes": bytes, "largest_block_bytes": largest,
                "codecs": codecs, "bytes_fetched": report.bytes_fetched,
            }),
        );
    } else {
        let codecs: Vec<String> = codecs.iter().map(|(name, n)| format!("{n} {name}")).collect();
        ctx.answer(format!(
            "{}, {} ({}), largest {}",
            ui::count(blocks, "block"),
            ui::bytes(bytes),
            codecs.join(", "),
            ui::bytes(largest as u64)
        ));
    }
    Ok(Exit::Ok)
}

async fn tree(ctx: &Context, args: TreeArgs) -> Result {
    let client = node::reach(ctx).await?;
    let place = fetch::locate(ctx, &client, &args.target, &args.sources).await?;
    let root = place.block_cid()?;
    // Depth first, with a stack of its own: the order in which people read a tree.
    let mut stack = vec![(String::new(), root, 0)];
    // How many levels were shown below what has anything below it: a few blocks can name each other into billions.
    let mut below: BTreeMap<Cid, u32> = BTreeMap::new();
    while let Some((name, cid, depth)) = stack.pop() {
        let levels = args.depth.saturating_sub(depth);
        let goes_on = levels > 0 && Codec::of(&cid) != Some(Codec::Raw);
        let was_shown = goes_on && below.get(&cid).is_some_and(|shown| *shown >= levels);
        let block = match Codec::of(&cid) {
            Some(Codec::Raw) | None => None,
            Some(Codec::DagPb | Codec::DagCbor | Codec::DagJson) if was_shown => None,
            Some(Codec::DagPb | Codec::DagCbor | Codec::DagJson) => {
                Some(fetch::block(ctx, &client, &cid, &args.sources).await?)
            }
        };
        let kind = match &block {
            Some(block) => kind_of(block),
            None if was_shown => "as above".to_owned(),
            None => "raw".to_owned(),
        };
        if ctx.json {
            let body = json!({"depth": depth, "name": name, "cid": cid.to_string(), "kind": kind});
            ctx.answer_json("dag-node", body);
        } else {
            let indent = "  ".repeat(depth as usize);
            let name = if name.is_empty() { String::new() } else { format!("{name}  ") };
            ctx.answer(format!("{indent}{name}{cid}  {kind}"));
        }
        if let (true, Some(block)) = (goes_on, block) {
            below.insert(cid, levels);
            let mut children = named_links(&block)?;
            children.reverse();
            stack.extend(children.into_iter().map(|(name, cid)| (name, cid, depth + 1)));
        }
    }
    Ok(Exit::Ok)
}

/// Lists the links of a block with the names under which people reach them.
fn named_links(block: &Block) -> Result<Vec<(String, Cid)>> {
    if Codec::of(block.cid()) == Some(Codec::DagPb) {
        match UnixFs::of_block(block) {
            Ok(UnixFs::Directory(entries)) => return Ok(entries.into_iter().map(|e| (e.name, e.cid)).collect()),
            // What stands further down has no name here.
            Ok(UnixFs::Shard(shard)) => {
                let below = shard.shards().map(|cid| (String::new(), *cid));
                return Ok(shard.entries().map(|e| (e.name.clone(), e.cid)).chain(below).collect());
            }
            Ok(UnixFs::File(_) | UnixFs::Symlink(_)) | Err(_) => {}
        }
    }
    if let Ok(value) = codec::to_ipld(block)
        && Codec::of(block.cid()) != Some(Codec::DagPb)
    {
        let mut links = Vec::new();
        paths(&value, String::new(), &mut links);
        return Ok(links);
    }
    let links = walk::links(block.cid(), block.data()).map_err(|e| unreadable(block.cid(), e))?;
    Ok(links.into_iter().map(|cid| (String::new(), cid)).collect())
}

fn paths(value: &iptl_dag::Ipld, at: String, links: &mut Vec<(String, Cid)>) {
    use iptl_dag::Ipld;
    let below = |name: &str| {
        // The tag of a union is left out, as it may be in paths.
        if at.is_empty() && name.starts_with("iptl.") {
            String::new()
        } else if at.is_empty() {
            name.to_owned()
        } else {
            format!("{at}/{name}")
        }
    };
    match value {
        Ipld::Link(cid) => links.push((at, *cid)),
        Ipld::Map(map) => map.iter().for_each(|(key, value)| paths(value, below(key), links)),
        Ipld::List(list) => list.iter().enumerate().for_each(|(i, value)| paths(value, below(&i.to_string()), links)),
        Ipld::Null | Ipld::Bool(_) | Ipld::Integer(_) | Ipld::Float(_) | Ipld::String(_) | Ipld::Bytes(_) => {}
    }
}

fn kind_of(block: &Block) -> String {
    match Codec::of(block.cid()) {
        Some(Codec::DagPb) => match UnixFs::of_block(block) {
            Ok(UnixFs::Directory(entries)) => ui::count(entries.len() as u64, "entry").replace("entrys", "entries"),
            Ok(UnixFs::Shard(_)) => "node of a directory".to_owned(),
            Ok(UnixFs::File(file)) => format!("file, {}", ui::bytes(file.size)),
            Ok(UnixFs::Symlink(_)) => "symbolic link".to_owned(),
            Err(_) => "dag-pb".to_owned(),
        },
        Some(Codec::DagCbor) => {
            Node::from_bytes(block.data()).map_or("dag-cbor".to_owned(), |node| node.tag().to_owned())
        }
        Some(Codec::DagJson) => "dag-json".to_owned(),
        Some(Codec::Raw) | None => "raw".to_owned(),
    }
}

fn codec_word(cid: &Cid) -> &'static str {
    match Codec::of(cid) {
        Some(Codec::Raw) => "raw",
        Some(Codec::DagPb) => "dag-pb",
        Some(Codec::DagCbor) => "dag-cbor",
        Some(Codec::DagJson) => "dag-json",
        None => "other",
    }
}

fn unreadable(cid: &Cid, error: impl std::fmt::Display) -> Error {
    Error::usage("block.codec", format!("{cid}: {error}"), "`iptl get --car` writes blocks of any codec")
}
