//! `iptl import`: takes the blocks of a CAR into the node's store.

use std::path::{Path, PathBuf};

use iptl_artifacts::BlobStore as _;
use iptl_artifacts::car::{self, CarImportError, CarImported};
use iptl_wire::control::Request;
use serde_json::json;
use tokio::io::AsyncRead;

use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::remote::RemoteStore;
use crate::{node, ui};

/// Takes the blocks of a CAR, keeps and announces its roots, and prints their CIDs.
///
/// Every block is checked. A CAR may lack some: what is missing under its roots is said.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl import result.car\n  ipfs dag export bafy… | iptl import -")]
pub struct Args {
    /// CAR of version 1 or 2; `-` is stdin
    path: PathBuf,
    /// Name for lists [default: that of the file]
    #[arg(long)]
    name: Option<String>,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let is_stdin = args.path == Path::new("-");
    let mut stream: Box<dyn AsyncRead + Unpin + Send> = if is_stdin {
        Box::new(tokio::io::stdin())
    } else {
        Box::new(tokio::fs::File::open(&args.path).await.map_err(|e| cannot_read(&args.path, &e))?)
    };
    // What a pipe holds is not known before its end.
    let size = std::fs::metadata(&args.path).ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
    let client = node::reach(ctx).await?;
    let store = RemoteStore::new(client.clone());
    let far = store.counter().teller(size);
    let imported = ctx.watching("importing", far, car::import_car(&store, &mut *stream)).await;
    let imported = imported.map_err(|error| of_import(&args.path, error))?;
    // Without a root, nothing is announced that would do it.
    store.flush().await?;
    let name = args.name.clone().unwrap_or_else(|| {
        let stem = args.path.file_stem().filter(|_| !is_stdin);
        stem.map_or("car".to_owned(), |stem| stem.to_string_lossy().into_owned())
    });
    for root in &imported.roots {
        let request = Request::Publish { root: *root, kind: "data".to_owned(), name: name.clone(), public: None };
        ctx.waiting("announcing", client.call_all(request)).await?;
    }
    ctx.say(format!("  import   {}, {}", ui::count(imported.blocks, "block"), ui::bytes(imported.bytes)));
    answer(ctx, &name, &imported);
    Ok(Exit::Ok)
}

fn answer(ctx: &Context, name: &str, imported: &CarImported) {
    let texts = |cids: &[iptl_dag::Cid]| cids.iter().map(ToString::to_string).collect::<Vec<_>>();
    if ctx.json {
        ctx.answer_json(
            "imported",
            json!({
                "roots": texts(&imported.roots), "name": name, "blocks": imported.blocks, "bytes": imported.bytes,
                "complete": imported.is_complete(), "missing": imported.missing,
                "first_missing": texts(&imported.first_missing), "unread": imported.unread,
            }),
        );
        return;
    }
    if !imported.is_complete() {
        let first = imported.first_missing.first().map_or(String::new(), ToString::to_string);
        let count = ui::count(imported.missing, "block");
        ctx.say(format!("  partial  {count} under the roots missing, the first {first}"));
    }
    if imported.unread > 0 {
        ctx.say(format!("  unread   {}, whose links are not known", ui::count(imported.unread, "block")));
    }
    if imported.roots.is_empty() {
        ctx.say("  no root: nothing keeps the blocks from the next collection");
    }
    for root in &imported.roots {
        ctx.answer(root);
    }
    if let [root, ..] = imported.roots[..] {
        ctx.next(format!("iptl get {root}"));
    }
}

fn of_import(path: &Path, error: CarImportError) -> Error {
    match error {
        CarImportError::Format(error) => Error::usage(
            "import.not-car",
            format!("{}: {error}", path.display()),
            "get it again; nothing keeps what came before",
        ),
        CarImportError::Read(error) => cannot_read(path, &error),
        CarImportError::Store(error) => error.into(),
        CarImportError::Walk(error) => Error::usage("dag.walk", error, "the DAG cannot be walked to its end"),
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::usage("import.unreadable", format!("{}: {error}", path.display()), "name a file that can be read")
}
