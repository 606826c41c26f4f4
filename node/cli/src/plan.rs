//! From a folder with a plan to blocks: reads the manifest, builds what it names, imports it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use iptl_artifacts::BlobStore;
use iptl_artifacts::import::{ImportError, ImportOptions, SOURCE_IGNORES, import_path};
use iptl_dag::Cid;
use iptl_dag::model::{self, Plan, Workload};
use iptl_plans::{Diagnostic, Manifest, WorkloadSource};

use crate::context::Context;
use crate::exit::{Error, Exit, PlanDiagnostic, Result};
use crate::workload;

/// Name of a plan's manifest.
pub const MANIFEST: &str = "plan.toml";

/// Lines of a failed build that are shown.
const BUILD_TAIL: usize = 30;

/// A plan on disk.
pub struct Source {
    /// Its folder.
    pub dir: PathBuf,
    /// The manifest, checked.
    pub manifest: Manifest,
}

/// A plan as nodes.
pub struct Made {
    /// CID of the plan.
    pub cid: Cid,
    /// The plan.
    pub plan: Plan,
    /// Its workloads with their CIDs.
    pub workloads: BTreeMap<String, (Cid, Workload)>,
    /// Blocks under the plan, as far as they were imported here.
    pub blocks: u64,
    /// Bytes of files under the plan.
    pub bytes: u64,
}

/// Reads the plan at a path: a folder with a `plan.toml`, or the file itself.
pub fn load(path: &Path) -> Result<Source> {
    let file = if path.is_dir() { path.join(MANIFEST) } else { path.to_path_buf() };
    let text = std::fs::read_to_string(&file).map_err(|e| {
        Error::usage(
            "plan.not-found",
            format!("{}: {e}", file.display()),
            "name a folder with a plan.toml, or make one with `iptl new NAME`",
        )
    })?;
    let shown = file.display().to_string();
    let manifest = iptl_plans::parse(&text, &shown).map_err(|found| mistakes(&shown, &text, found))?;
    let dir = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    Ok(Source { dir, manifest })
}

/// Makes the error that shows mistakes in a plan or in the choices of a run.
pub fn mistakes(file: &str, text: &str, found: Vec<Diagnostic>) -> Error {
    let count = crate::ui::count(found.len() as u64, "mistake");
    let mut error =
        Error::usage("plan.invalid", format!("{file} has {count}"), "mend what is marked, then `iptl check` again");
    error.diagnostics = found
        .into_iter()
        .map(|d| PlanDiagnostic {
            code: d.code.to_owned(),
            message: d.message,
            span: d.span,
            label: d.label,
            related: d.related.into_iter().map(|r| (r.span, r.label)).collect(),
            help: d.help,
            source: miette::NamedSource::new(file, text.to_owned()),
        })
        .collect();
    error
}

/// Runs the build commands of a plan, each once.
pub async fn build(ctx: &Context, source: &Source) -> Result<()> {
    let mut done = BTreeSet::new();
    for (name, workload) in &source.manifest.workloads {
        let Some((program, args)) = workload.build.split_first() else { continue };
        if !done.insert(&workload.build) {
            continue;
        }
        let command = workload.build.join(" ");
        let mut process = tokio::process::Command::new(program);
        process.args(args).current_dir(&source.dir).stdin(Stdio::null()).kill_on_drop(true);
        // The manifest says where the content lies; a target directory of the caller would put it elsewhere.
        process.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTFLAGS");
        let what = format!("building workload {name}: {command}");
        let output = ctx.waiting(&what, process.output()).await.map_err(|e| {
            Error::broken(
                "build.failed",
                format!("`{command}` of workload {name} could not be started: {e}"),
                "check that the program is installed (`iptl doctor`), or use --no-build with content that is there",
            )
        })?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(BUILD_TAIL)..] {
                ctx.say(format!("    {line}"));
            }
            return Err(Error::broken(
                "build.failed",
                format!("`{command}` of workload {name} failed ({})", output.status),
                format!(
                    "run it by hand in {}; is a target missing:  rustup target add wasm32-wasip2",
                    source.dir.display()
                ),
            ));
        }
        ctx.say(format!("  build    ok   {name}"));
    }
    Ok(())
}

/// Imports a plan with its source and workloads. `published` gives the nodes of workloads that it names by CID.
pub async fn import(
    ctx: &Context,
    store: &dyn BlobStore,
    source: &Source,
    published: &BTreeMap<Cid, Workload>,
    only_hash: bool,
) -> Result<Made> {
    let mut workloads = BTreeMap::new();
    let (mut blocks, mut bytes) = (0, 0);
    for (name, def) in &source.manifest.workloads {
        let entry = match &def.source {
            WorkloadSource::Path(path) => {
                let made = workload::component(store, name, &source.dir.join(path), only_hash).await?;
                blocks += made.blocks;
                bytes += made.bytes;
                (made.cid, made.workload)
            }
            WorkloadSource::Image(image) => {
                let made = workload::image(ctx, store, name, &source.dir, image, only_hash).await?;
                blocks += made.blocks;
                bytes += made.bytes;
                (made.cid, made.workload)
            }
            WorkloadSource::Published(cid) => {
                let workload = published.get(cid).cloned().ok_or_else(|| {
                    Error::new(
                        Exit::NotFound,
                        "workload.unknown",
                        format!("workload {name} is {cid}, which is not here"),
                        format!("fetch it first: iptl get {cid}"),
                    )
                })?;
                if workload.kind != def.kind {
                    return Err(Error::usage(
                        "workload.kind",
                        format!("workload {name} is {cid}, which another runner executes"),
                        "correct `runner` in plan.toml",
                    ));
                }
                let node = model::to_block(workload.clone());
                let made = *node.cid();
                // The node of one that is a file was made here, and is in nobody's store.
                if made != *cid && !only_hash {
                    store.put(vec![node]).await?;
                }
                blocks += u64::from(made != *cid);
                (made, workload)
            }
        };
        workloads.insert(name.clone(), entry);
    }
    let mut given = BTreeMap::new();
    for path in source.manifest.paths() {
        let options = ImportOptions { only_hash, ..Default::default() };
        let imported = import_path(store, &source.dir.join(path), &options).await?;
        blocks += imported.blocks;
        bytes += imported.bytes;
        given.insert(path.to_owned(), imported.cid);
    }
    let options = ImportOptions {
        only_hash,
        ignore: SOURCE_IGNORES.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let files = import_path(store, &source.dir, &options).await?;
    blocks += files.blocks;
    bytes += files.bytes;
    let networks = source.manifest.network_blocks();
    blocks += networks.len() as u64;
    bytes += networks.iter().map(|block| block.data().len() as u64).sum::<u64>();
    if !only_hash && !networks.is_empty() {
        store.put(networks).await?;
    }
    let cids = workloads.iter().map(|(name, (cid, _))| (name.clone(), *cid)).collect();
    let plan = source
        .manifest
        .to_plan(&cids, &given, Some(files.cid))
        .map_err(|e| Error::broken("internal", e, "report this: it is a mistake in iptl"))?;
    let block = model::to_block(plan.clone());
    let cid = *block.cid();
    if !only_hash {
        store.put(vec![block]).await?;
    }
    Ok(Made { cid, plan, workloads, blocks: blocks + 1, bytes })
}

impl From<ImportError> for Error {
    fn from(error: ImportError) -> Error {
        let text = error.to_string();
        match error {
            ImportError::Store(error) => error.into(),
            ImportError::Read { source, .. } => {
                Error::usage("import.unreadable", format!("{text}: {source}"), "check that it exists and may be read")
            }
            ImportError::Directory { source, .. } => {
                Error::usage("import.directory", format!("{text}: {source}"), "spread its entries over sub-folders")
            }
            ImportError::Symlink { .. } => Error::usage(
                "import.refused",
                text,
                "put what it points to in its place; `iptl publish data --links` keeps links as they are",
            ),
            ImportError::Special { .. } | ImportError::Name { .. } | ImportError::TooDeep { .. } => {
                Error::usage("import.refused", text, "leave it out: another machine could not have it")
            }
        }
    }
}
