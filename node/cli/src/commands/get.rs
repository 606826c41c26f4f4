//! `iptl get`: fetches, verifies and writes out.

use std::ops::Range;
use std::path::{Path, PathBuf};

use iptl_artifacts::car::{self, CarError};
use iptl_artifacts::export::{self, ExportError};
use iptl_dag::model::{FormerResult, Node};
use iptl_dag::path::Target;
use iptl_dag::{Cid, Codec, codec};
use iptl_wire::control::FetchReport;
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::fetch::{self, Sources};
use crate::remote::{self, RemoteStore};
use crate::{node, ui};

/// Fetches content from whoever has it, verifies every block, and writes it out; goes on where it was stopped.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  iptl get last/files -o out/\n  iptl get bafybei…/big.log --offset 1000000 --length 4096\n  iptl get bafyrei… --car -o result.car\n  iptl get bafybei… --peer /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3KooW…"
)]
pub struct Args {
    /// CID or name, with a path below it where wanted
    target: String,
    /// Where to write; `-` is stdout. A folder that exists is written into
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Write a CAR with every block
    #[arg(long)]
    car: bool,
    /// Only bring it into the node's store
    #[arg(long, conflicts_with_all = ["output", "car"])]
    store_only: bool,
    /// Only the bytes of a file from this one on; blocks that hold none of them are not fetched. Written to stdout
    /// where no output is named
    #[arg(long, value_name = "BYTES", conflicts_with = "car")]
    offset: Option<u64>,
    /// Only so many bytes of a file
    #[arg(long, value_name = "BYTES", conflicts_with = "car")]
    length: Option<u64>,
    #[command(flatten)]
    sources: Sources,
}

impl Args {
    /// Returns the bytes of a file that are wanted, where not all are.
    fn range(&self) -> Option<Range<u64>> {
        if self.offset.is_none() && self.length.is_none() {
            return None;
        }
        let start = self.offset.unwrap_or(0);
        Some(start..self.length.map_or(u64::MAX, |length| start.saturating_add(length)))
    }
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let client = node::reach(ctx).await?;
    let place = fetch::locate(ctx, &client, &args.target, &args.sources).await?;
    if let Target::Value { value, .. } = &place.target {
        let text = String::from_utf8_lossy(&codec::to_dag_json(value)).into_owned();
        if args.range().is_some() {
            return Err(place.block_cid().expect_err("a value has none"));
        }
        write_text(&args, &place.name(), &text)?;
        return Ok(Exit::Ok);
    }
    let cid = place.block_cid()?;
    let range = args.range();
    let report = match &range {
        Some(range) => fetch::fetch_range(ctx, &client, cid, range.clone(), &args.sources).await?,
        None => fetch::fetch(ctx, &client, cid, &args.sources, false).await?,
    };
    let store = RemoteStore::new(client);
    let written = if args.store_only {
        Ok(None)
    } else if let Some(range) = range {
        write_range(&store, cid, range, &args).await.map(Some)
    } else if args.car {
        write_car(&store, cid, &args, &place.name()).await.map(Some)
    } else {
        write(&store, cid, &args, &place.name()).await.map(Some)
    };
    let written = written.map_err(|error| naming_givers(error, &report))?;
    let shown = written.as_ref().map(|path| path.display().to_string());
    if ctx.json {
        let mut body = serde_json::Map::new();
        body.insert("cid".to_owned(), json!(cid.to_string()));
        body.insert("output".to_owned(), json!(shown));
        body.extend(fetch::report_json(&report));
        ctx.answer_json("fetched", Value::Object(body));
        return Ok(Exit::Ok);
    }
    ctx.say(format!(
        "verified {}, {}, 0 bad blocks{}",
        ui::count(report.blocks, "block"),
        ui::bytes(report.bytes),
        fetch::shares(&report)
    ));
    match shown {
        Some(path) if path != "-" => ctx.answer(if ctx.quiet { cid.to_string() } else { path }),
        Some(_) => {}
        None => ctx.answer(cid),
    }
    Ok(Exit::Ok)
}

/// Says of what is refused for what it holds who gave it.
fn naming_givers(mut error: Error, report: &FetchReport) -> Error {
    if ["get.refused", "get.not-files", "get.unsafe-name"].contains(&error.code.as_str()) {
        error.message.push_str(&fetch::shares(report).replace("   ", " "));
    }
    error
}

/// Returns where to write something of this name.
fn destination(args: &Args, name: &str, suffix: &str) -> PathBuf {
    match &args.output {
        None => PathBuf::from(format!("{name}{suffix}")),
        Some(path) if path == Path::new("-") => path.clone(),
        Some(path) => path.clone(),
    }
}

fn write_text(args: &Args, name: &str, text: &str) -> Result<PathBuf> {
    let to_stdout = args.output.as_ref().is_none_or(|p| p == Path::new("-"));
    if to_stdout {
        use std::io::Write;
        writeln!(std::io::stdout().lock(), "{text}")?;
        return Ok(PathBuf::from("-"));
    }
    let mut path = destination(args, name, ".json");
    if path.is_dir() {
        path.push(format!("{name}.json"));
    }
    std::fs::write(&path, format!("{text}\n")).map_err(|e| cannot_write(&path, e))?;
    Ok(path)
}

async fn write(store: &RemoteStore, cid: Cid, args: &Args, name: &str) -> Result<PathBuf> {
    let block = iptl_artifacts::read_block(store, &cid).await?.ok_or_else(|| remote::missing(cid))?;
    match Codec::of(&cid) {
        Some(Codec::Raw | Codec::DagPb) => write_files(store, cid, args, name).await,
        Some(Codec::DagCbor | Codec::DagJson) | None => match Node::from_bytes(block.data()) {
            // What people want of a result is what it holds for them.
            Ok(Node::Result(result) | Node::FormerResult(FormerResult(result)))
                if args.output.as_deref() != Some(Path::new("-")) =>
            {
                write_files(store, result.files, args, name).await
            }
            Ok(_) | Err(_) => {
                let value = codec::to_ipld(&block)
                    .map_err(|e| Error::usage("block.codec", e, "--car writes blocks of any codec"))?;
                write_text(args, name, &String::from_utf8_lossy(&codec::to_dag_json(&value)))
            }
        },
    }
}

async fn write_range(store: &RemoteStore, cid: Cid, range: Range<u64>, args: &Args) -> Result<PathBuf> {
    match args.output.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            export::write_range(store, &cid, range, path).await?;
            Ok(path.to_path_buf())
        }
        None => {
            export::stream_range(store, &cid, range, &mut tokio::io::stdout()).await?;
            Ok(PathBuf::from("-"))
        }
    }
}

async fn write_files(store: &RemoteStore, cid: Cid, args: &Args, name: &str) -> Result<PathBuf> {
    if args.output.as_deref() == Some(Path::new("-")) {
        export::stream_file(store, &cid, &mut tokio::io::stdout(), u64::MAX).await?;
        return Ok(PathBuf::from("-"));
    }
    let path = destination(args, name, "");
    export::export_path(store, &cid, &path).await?;
    Ok(path)
}

async fn write_car(store: &RemoteStore, cid: Cid, args: &Args, name: &str) -> Result<PathBuf> {
    let path = destination(args, name, ".car");
    if path == Path::new("-") {
        car::export_car(store, &cid, &mut tokio::io::stdout()).await?;
    } else {
        let mut file = tokio::fs::File::create(&path).await.map_err(|e| cannot_write(&path, e))?;
        car::export_car(store, &cid, &mut file).await?;
    }
    Ok(path)
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    let mut error = Error::from(error);
    error.message = format!("{}: {}", path.display(), error.message);
    if error.help.is_empty() {
        error.help = "name another place with -o".to_owned();
    }
    error
}

impl From<ExportError> for Error {
    fn from(error: ExportError) -> Error {
        let text = error.to_string();
        match error {
            ExportError::Missing { cid } => remote::missing(cid),
            ExportError::Store(error) => error.into(),
            ExportError::Write { path, source } => cannot_write(&path, source),
            ExportError::Exists { .. } => {
                Error::usage("get.exists", text, "name another place with -o; nothing was lost")
            }
            ExportError::Name { source, .. } => {
                Error::broken("get.unsafe-name", format!("{text}: {source}"), "--car writes the blocks as they are")
            }
            ExportError::UnixFs { source, .. } => Error::usage(
                "get.not-files",
                format!("{text}: {source}"),
                "see it with `iptl dag get`, or write a --car",
            ),
            ExportError::Symlink { .. } | ExportError::TooLarge { .. } | ExportError::TooMany { .. } => {
                Error::usage("get.refused", text, "--car writes the blocks as they are")
            }
        }
    }
}

impl From<CarError> for Error {
    fn from(error: CarError) -> Error {
        let text = error.to_string();
        match error {
            CarError::Missing { cid } => remote::missing(cid),
            CarError::Store(error) => error.into(),
            CarError::Walk(error) => Error::usage("dag.walk", error, "the DAG cannot be walked to its end"),
            CarError::Write(source) => {
                let mut error = Error::from(source);
                error.message = format!("{text}: {}", error.message);
                error
            }
        }
    }
}
