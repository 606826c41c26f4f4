//! From what an author has to a workload: components are checked and imported, container images are made or taken.

use std::io::Read;
use std::path::Path;

use iptl_artifacts::BlobStore;
use iptl_artifacts::import::{ImportOptions, import_path};
use iptl_artifacts_oci as oci;
use iptl_dag::model::{self, Workload, WorkloadKind};
use iptl_dag::unixfs::UnixFs;
use iptl_dag::{Block, Cid, Codec};
use iptl_plans::ImageSource;
use iptl_runner_docker::{Images, ImagesError, Unusable};
use tokio::io::AsyncRead;

use crate::context::Context;
use crate::exit::{Error, Exit, Result};

/// First bytes of a WebAssembly component; a core module has version 1 and layer 0.
const COMPONENT_MAGIC: [u8; 8] = [0x00, b'a', b's', b'm', 0x0d, 0x00, 0x01, 0x00];

/// A workload as nodes.
pub struct Made {
    /// CID of its node.
    pub cid: Cid,
    /// The node.
    pub workload: Workload,
    /// Blocks, its node included.
    pub blocks: u64,
    /// Bytes of its content.
    pub bytes: u64,
}

/// Imports a component.
pub async fn component(store: &dyn BlobStore, name: &str, path: &Path, only_hash: bool) -> Result<Made> {
    check_component(path)?;
    let imported = import_path(store, path, &ImportOptions { only_hash, ..Default::default() }).await?;
    let workload =
        Workload { name: name.to_owned(), kind: WorkloadKind::Wasm, content: imported.cid, size: imported.bytes };
    finish(store, workload, imported.blocks, only_hash).await
}

/// Returns the size of a file whose root this is, published by whatever tool; none where it is a node of the lab.
pub fn file_size(root: &Block) -> Result<Option<u64>> {
    let is_no_file = |what: &str| {
        Error::usage(
            "workload.kind",
            format!("{} is {what}", root.cid()),
            "`cid` names what `iptl publish workload` printed, or the file of a component",
        )
    };
    match Codec::of(root.cid()) {
        Some(Codec::Raw) => Ok(Some(root.data().len() as u64)),
        Some(Codec::DagPb) => match UnixFs::of_block(root) {
            Ok(UnixFs::File(node)) => Ok(Some(node.size)),
            Ok(UnixFs::Directory(_) | UnixFs::Shard(_)) => Err(is_no_file("a folder")),
            Ok(UnixFs::Symlink(_)) => Err(is_no_file("a symbolic link")),
            Err(error) => Err(is_no_file(&format!("no file: {error}"))),
        },
        Some(Codec::DagCbor | Codec::DagJson) | None => Ok(None),
    }
}

/// Makes a container image of its source, whose paths are relative to `dir`, and imports it.
pub async fn image(
    ctx: &Context,
    store: &dyn BlobStore,
    name: &str,
    dir: &Path,
    source: &ImageSource,
    only_hash: bool,
) -> Result<Made> {
    let imported = match source {
        ImageSource::Binary { path, with_libs } => {
            let options = oci::BinaryOptions { only_hash, with_libs: *with_libs, ..Default::default() };
            oci::image_from_binary(store, &dir.join(path), options).await.map_err(|e| of_build(&e))?
        }
        ImageSource::Rootfs(path) => {
            let options = oci::RootfsOptions { only_hash, ..Default::default() };
            oci::image_from_rootfs(store, &dir.join(path), options).await.map_err(|e| of_build(&e))?
        }
        ImageSource::Oci(path) => {
            let path = dir.join(path);
            let options = oci::ImportOptions { only_hash, ..Default::default() };
            let imported = match path.is_dir() {
                true => oci::import_layout_dir(store, &path, options).await,
                false => oci::import_archive(store, &path, options).await,
            };
            imported.map_err(|e| of_import(&e))?
        }
        ImageSource::Engine(image) => saved(store, export(ctx, image).await?, only_hash).await?,
        ImageSource::Dockerfile(path) => {
            let images = engine(ctx).await?;
            let id = images.build(&dir.join(path), |line| ctx.say(format!("    {line}"))).await.map_err(of_engine)?;
            saved(store, Export::begin(&images, &id).await?, only_hash).await?
        }
    };
    of_image(store, name, &imported, only_hash).await
}

/// Imports an image that the engine has begun to write.
pub async fn exported(store: &dyn BlobStore, name: &str, export: Export, only_hash: bool) -> Result<Made> {
    let imported = saved(store, export, only_hash).await?;
    of_image(store, name, &imported, only_hash).await
}

async fn of_image(store: &dyn BlobStore, name: &str, imported: &oci::Imported, only_hash: bool) -> Result<Made> {
    let workload =
        Workload { name: name.to_owned(), kind: WorkloadKind::Docker, content: imported.image, size: imported.size };
    finish(store, workload, imported.blocks, only_hash).await
}

async fn finish(store: &dyn BlobStore, workload: Workload, blocks: u64, only_hash: bool) -> Result<Made> {
    let block: Block = model::to_block(workload.clone());
    let cid = *block.cid();
    if !only_hash {
        store.put(vec![block]).await?;
    }
    Ok(Made { cid, bytes: workload.size, workload, blocks: blocks + 1 })
}

/// An image that the engine writes: it works at that for a while before the first byte comes.
pub struct Export {
    archive: Box<dyn AsyncRead + Send + Unpin>,
}

impl Export {
    async fn begin(images: &Images, name: &str) -> Result<Export> {
        let archive = images.save(name).await.map_err(of_engine)?;
        Ok(Export { archive: Box::new(archive) })
    }
}

/// Has the engine of this machine begin to write an image. Dropped, the engine gives it up.
pub async fn export(ctx: &Context, image: &str) -> Result<Export> {
    Export::begin(&engine(ctx).await?, image).await
}

/// Imports what the engine writes.
async fn saved(store: &dyn BlobStore, export: Export, only_hash: bool) -> Result<oci::Imported> {
    let options = oci::ImportOptions { only_hash, ..Default::default() };
    oci::import_stream(store, export.archive, options).await.map_err(|e| of_import(&e))
}

/// Connects to the engine that a lablet of this home would use.
async fn engine(ctx: &Context) -> Result<Images> {
    let home = ctx.home();
    let socket = match home.join("node.toml").exists() {
        true => iptl_node::Home::open(&home)?.config()?.docker.socket,
        false => None,
    };
    Images::connect(socket).await.map_err(|unusable| of_engine(unusable.into()))
}

fn of_engine(error: ImagesError) -> Error {
    match error {
        ImagesError::Unusable(Unusable { reason, fix }) => Error::broken("docker.unusable", reason, fix),
        ImagesError::Unknown { .. } => Error::new(
            Exit::NotFound,
            "docker.no-image",
            &error,
            "`docker images` lists what there is; or publish a layout: --oci PATH",
        ),
        ImagesError::Build(_) => {
            Error::broken("build.failed", &error, "run `docker build` there by hand to see all that it says")
        }
        ImagesError::Read { .. } => Error::usage("path.not-found", chain(&error), "name a directory with a Dockerfile"),
        ImagesError::Engine(_) => Error::broken("docker.failed", &error, "`iptl doctor` checks the engine"),
    }
}

fn of_build(error: &oci::BuildError) -> Error {
    Error::usage("workload.no-image", chain(error), "mend what it says, then publish again; nothing was kept")
}

fn of_import(error: &oci::ImportError) -> Error {
    Error::usage("workload.bad-image", chain(error), "save the image anew and publish again; nothing was kept")
}

/// Writes an error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    anyhow::Chain::new(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Checks that a file starts as a WebAssembly component does.
fn check_component(path: &Path) -> Result<()> {
    let mut file = std::fs::File::open(path).map_err(|e| {
        Error::usage(
            "workload.not-found",
            format!("{}: {e}", path.display()),
            "build it (leave --no-build out), or correct `path` in plan.toml",
        )
    })?;
    let mut head = [0; COMPONENT_MAGIC.len()];
    let enough = file.read_exact(&mut head).is_ok();
    if enough && head == COMPONENT_MAGIC {
        return Ok(());
    }
    let found = if enough && head[..4] == COMPONENT_MAGIC[..4] { "a core module" } else { "no WebAssembly at all" };
    Err(Error::usage(
        "workload.not-component",
        format!("{} is no WASI 0.2 component, but {found}", path.display()),
        "build it with `cargo build --target wasm32-wasip2`",
    ))
}
