//! `iptl publish`: imports something, announces it and prints its CID.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use iptl_artifacts::import::{ImportOptions, import_path};
use iptl_artifacts::{BlobStore, MemStore};
use iptl_dag::Cid;
use iptl_dag::model::{Workload, WorkloadKind};
use iptl_dag::unixfs::Profile;
use iptl_plans::{ImageSource, WorkloadSource};
use iptl_wire::control::Request;
use serde_json::json;

use super::check;
use crate::client::Client;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::fetch::{self, Sources};
use crate::progress::Counter;
use crate::remote::RemoteStore;
use crate::{node, plan, ui, workload};

/// Imports something, announces it and prints its CID, alone, on stdout.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl publish plan ./my-plan\n  iptl publish data ./dataset --only-hash\n  iptl \
                  publish data ./dataset --profile unixfs-v1-2025\n  iptl publish \
                  workload --binary ./target/release/node --with-libs\n  iptl publish workload --image example/node:1.2")]
pub struct Args {
    /// What it is
    #[arg(value_enum)]
    kind: Kind,
    /// Folder or file; of a workload, the component
    #[arg(required_unless_present = "image_source")]
    path: Option<PathBuf>,
    /// Make an image that holds this program alone
    #[arg(long, value_name = "FILE", group = "image_source", conflicts_with = "path")]
    binary: Option<PathBuf>,
    /// Pack the libraries that the program is linked with
    #[arg(long, requires = "binary")]
    with_libs: bool,
    /// Make an image whose root file system is this directory
    #[arg(long, value_name = "DIR", group = "image_source", conflicts_with = "path")]
    rootfs: Option<PathBuf>,
    /// Take an image of this machine's container engine
    #[arg(long, value_name = "NAME:TAG", group = "image_source", conflicts_with = "path")]
    image: Option<String>,
    /// Take an OCI layout, as a directory or a tar, or what `docker save` wrote
    #[arg(long, value_name = "PATH", group = "image_source", conflicts_with = "path")]
    oci: Option<PathBuf>,
    /// Build the Dockerfile of this directory with this machine's container engine
    #[arg(long, value_name = "DIR", group = "image_source", conflicts_with = "path")]
    dockerfile: Option<PathBuf>,
    /// Compute the CID; store and announce nothing
    #[arg(long)]
    only_hash: bool,
    /// Take the workloads of a plan as they are
    #[arg(long)]
    no_build: bool,
    /// Let only members of the lab read it
    #[arg(long, conflicts_with = "public")]
    private: bool,
    /// Let everybody read it, in a private lab too
    #[arg(long)]
    public: bool,
    #[command(flatten)]
    form: Form,
}

/// How data become blocks.
#[derive(clap::Args)]
struct Form {
    /// Rules by which bytes become blocks: iptl, or unixfs-v1-2025 or unixfs-v0-2015 for the CIDs that IPFS tools give.
    /// These keep symbolic links and leave hidden files out
    #[arg(long, value_name = "NAME", default_value_t = Profile::Iptl)]
    profile: Profile,
    /// Keep symbolic links as they are
    #[arg(long)]
    links: bool,
    /// Keep modes and times of files, which changes the CID
    #[arg(long)]
    metadata: bool,
    /// Take hidden files under every profile
    #[arg(long)]
    hidden: bool,
}

impl Form {
    fn is_plain(&self) -> bool {
        self.profile == Profile::Iptl && !self.links && !self.metadata && !self.hidden
    }

    fn options(&self, only_hash: bool) -> ImportOptions {
        let is_foreign = self.profile != Profile::Iptl;
        ImportOptions {
            only_hash,
            ignore: if is_foreign && !self.hidden { vec![".*".to_owned()] } else { Vec::new() },
            profile: self.profile,
            links: self.links || is_foreign,
            metadata: self.metadata,
        }
    }
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Kind {
    /// A folder with a plan.toml
    Plan,
    /// A WebAssembly component or a container image
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
    let subject = Subject::of(&args)?;
    if args.kind != Kind::Data && !args.form.is_plain() {
        let message = format!("a {} has one form, so that its CID is one", args.kind.word());
        return Err(Error::usage("publish.form", message, "iptl publish data PATH --profile NAME"));
    }
    if let Some(path) = subject.path()
        && !path.exists()
    {
        return Err(Error::usage("path.not-found", format!("{} does not exist", path.display()), "name what is there"));
    }
    if args.only_hash {
        let root = import(ctx, &args, &subject, &MemStore::default(), &Counter::default(), None).await?;
        return answer(ctx, &args, &root);
    }
    // The engine takes its time before it writes the first byte: as long as a node takes to start, and longer.
    let (client, export) = tokio::join!(node::reach(ctx), subject.export(ctx));
    let (client, export) = (client?, export?);
    let store = RemoteStore::new(client.clone());
    let root = match export {
        Some(export) => {
            let name = subject.name(args.kind)?;
            let far = store.counter().teller(None);
            let made = ctx.watching("importing", far, workload::exported(&store, &name, export, false)).await?;
            Root { cid: made.cid, name, blocks: made.blocks, bytes: made.bytes }
        }
        None => import(ctx, &args, &subject, &store, &store.counter(), Some(&client)).await?,
    };
    let public = match (args.private, args.public) {
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    };
    let kind = args.kind.word().to_owned();
    let request = Request::Publish { root: root.cid, kind, name: root.name.clone(), public };
    ctx.waiting("announcing", client.call_all(request)).await?;
    ctx.say(format!("  import   {}, {}", ui::count(root.blocks, "block"), ui::bytes(root.bytes)));
    answer(ctx, &args, &root)
}

/// What is published.
enum Subject {
    /// A folder or file.
    Path(PathBuf),
    /// A container image.
    Image(ImageSource),
}

impl Subject {
    fn of(args: &Args) -> Result<Subject> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let image = if let Some(path) = &args.binary {
            ImageSource::Binary { path: text(path), with_libs: args.with_libs }
        } else if let Some(path) = &args.rootfs {
            ImageSource::Rootfs(text(path))
        } else if let Some(name) = &args.image {
            ImageSource::Engine(name.clone())
        } else if let Some(path) = &args.oci {
            ImageSource::Oci(text(path))
        } else if let Some(path) = &args.dockerfile {
            ImageSource::Dockerfile(text(path))
        } else {
            // Required where none of the others is given.
            return Ok(Subject::Path(args.path.clone().unwrap_or_default()));
        };
        if args.kind != Kind::Workload {
            let message = format!("a container image is a workload and no {}", args.kind.word());
            return Err(Error::usage("publish.image", message, "iptl publish workload --image NAME:TAG"));
        }
        Ok(Subject::Image(image))
    }

    /// Returns what must exist on disk.
    fn path(&self) -> Option<&Path> {
        match self {
            Subject::Path(path) => Some(path),
            Subject::Image(
                ImageSource::Binary { path, .. }
                | ImageSource::Rootfs(path)
                | ImageSource::Oci(path)
                | ImageSource::Dockerfile(path),
            ) => Some(Path::new(path)),
            Subject::Image(ImageSource::Engine(_)) => None,
        }
    }

    /// Has the engine begin to write the image that is published, where it is one of the engine's.
    async fn export(&self, ctx: &Context) -> Result<Option<workload::Export>> {
        match self {
            Subject::Image(ImageSource::Engine(name)) => workload::export(ctx, name).await.map(Some),
            Subject::Image(_) | Subject::Path(_) => Ok(None),
        }
    }

    fn name(&self, kind: Kind) -> Result<String> {
        let Some(path) = self.path() else {
            let Subject::Image(ImageSource::Engine(name)) = self else { return Ok(kind.word().to_owned()) };
            let name = name.rsplit('/').next().unwrap_or(name);
            return Ok(name.split([':', '@']).next().unwrap_or(name).to_owned());
        };
        let stem = std::path::absolute(path)?.file_stem().map(|name| name.to_string_lossy().into_owned());
        Ok(stem.unwrap_or_else(|| kind.word().to_owned()))
    }
}

async fn import(
    ctx: &Context,
    args: &Args,
    subject: &Subject,
    store: &dyn BlobStore,
    counter: &Counter,
    client: Option<&Client>,
) -> Result<Root> {
    let name = subject.name(args.kind)?;
    // How much a folder holds is not known before its last file.
    let size = subject.path().and_then(|path| std::fs::metadata(path).ok()).filter(std::fs::Metadata::is_file);
    // What is only hashed is put nowhere.
    let far = counter.teller(size.map(|metadata| metadata.len()).filter(|_| !args.only_hash));
    let path = match subject {
        Subject::Path(path) => path,
        Subject::Image(source) => {
            let work = workload::image(ctx, store, &name, Path::new("."), source, args.only_hash);
            let made = ctx.watching("importing", far, work).await?;
            return Ok(Root { cid: made.cid, name, blocks: made.blocks, bytes: made.bytes });
        }
    };
    match args.kind {
        Kind::Plan => {
            let source = plan::load(path)?;
            ctx.say(format!("  check    ok   {}", check::summary(&source)));
            if !args.no_build {
                plan::build(ctx, &source).await?;
            }
            let published = published(ctx, &source, client).await?;
            let made =
                ctx.watching("importing", far, plan::import(ctx, store, &source, &published, args.only_hash)).await?;
            Ok(Root { cid: made.cid, name: source.manifest.name.clone(), blocks: made.blocks, bytes: made.bytes })
        }
        Kind::Workload => {
            let work = workload::component(store, &name, path, args.only_hash);
            let made = ctx.watching("importing", far, work).await?;
            Ok(Root { cid: made.cid, name, blocks: made.blocks, bytes: made.bytes })
        }
        Kind::Data => {
            let options = args.form.options(args.only_hash);
            let imported = ctx.watching("importing", far, import_path(store, path, &options)).await?;
            Ok(Root { cid: imported.cid, name, blocks: imported.blocks, bytes: imported.bytes })
        }
    }
}

/// Fetches the nodes of workloads that a plan names by CID. One that is a file gets a node of its own around it.
pub async fn published(
    ctx: &Context,
    source: &plan::Source,
    client: Option<&Client>,
) -> Result<BTreeMap<Cid, Workload>> {
    let mut nodes = BTreeMap::new();
    for (name, workload) in &source.manifest.workloads {
        if let (WorkloadSource::Published(cid), Some(client)) = (&workload.source, client) {
            let block = fetch::block(ctx, client, cid, &Sources::default()).await?;
            if let Some(size) = workload::file_size(&block)? {
                // All of it: whoever else has it may be gone when lablets ask.
                fetch::fetch(ctx, client, *cid, &Sources::default(), false).await?;
                let kind = WorkloadKind::Wasm;
                nodes.insert(*cid, Workload { name: name.clone(), kind, content: *cid, size });
                continue;
            }
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
