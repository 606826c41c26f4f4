//! Images from nothing: a directory as a root file system, or one program.
//!
//! Equal files give an equal image on any machine: entries are sorted, times are fixed, owners are root's unless they are
//! kept.

mod elf;
mod libraries;
mod rootfs;

use std::io;
use std::path::{Path, PathBuf};

use iptl_artifacts::{BlobStore, StoreError};
use iptl_dag::model::Image;
use iptl_dag::unixfs::FileBuilder;
use serde::Serialize;

pub use elf::Architecture;
pub use libraries::BinaryError;

use crate::digest::Digest;
use crate::import::Platform;
use crate::layer::{LayerStop, MadeLayer, make_layer};
use crate::limits::Limits;
use crate::out::{Imported, Made, Out, drive};
use crate::pages::{BlockSink, PageError};
use crate::tar::scan::TarError;
use rootfs::Writer;

/// What a container of the image starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments where a run gives none.
    pub command: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
    /// Directory in which it starts; empty means `/`.
    pub working_dir: String,
    /// User, as `uid`, `uid:gid` or a name in the image; empty means that the image does not say.
    pub user: String,
}

/// How a directory becomes an image.
#[derive(Clone, Debug, Default)]
pub struct RootfsOptions {
    /// Compute the CID and store nothing.
    pub only_hash: bool,
    /// What the image may be.
    pub limits: Limits,
    /// What a container starts.
    pub process: Process,
    /// For which architecture it is; where this is `None`, that of the entrypoint or of the shell, or of this machine.
    pub architecture: Option<Architecture>,
    /// Keep owners as they are, where they are else root.
    pub keep_owners: bool,
    /// Time of every file in seconds since 1970.
    pub mtime: u64,
}

/// How a program becomes an image.
#[derive(Clone, Debug, Default)]
pub struct BinaryOptions {
    /// Compute the CID and store nothing.
    pub only_hash: bool,
    /// What the image may be.
    pub limits: Limits,
    /// Find the libraries that it needs and pack them with it.
    pub with_libs: bool,
    /// Directories in which libraries are looked for first.
    pub library_dirs: Vec<PathBuf>,
    /// Name in the image, `/app/<name>`; that of the file where this is `None`.
    pub name: Option<String>,
    /// Arguments where a run gives none.
    pub command: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
}

/// Why no image was made of a directory or a program.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Something cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// Path in question.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The root is not a directory.
    #[error("{} is not a directory; --rootfs takes one that becomes the container's root", path.display())]
    NotADirectory {
        /// Path in question.
        path: PathBuf,
    },
    /// A device node.
    #[error("{} is a device node, which containers of a lab do not get; remove it", path.display())]
    Device {
        /// Path in question.
        path: PathBuf,
    },
    /// A socket or a FIFO.
    #[error("{} is a socket or a FIFO, which no image holds; remove it", path.display())]
    Special {
        /// Path in question.
        path: PathBuf,
    },
    /// A name that would be a whiteout.
    #[error("{} begins with .wh., which in an image means that something is removed; rename it", path.display())]
    Whiteout {
        /// Path in question.
        path: PathBuf,
    },
    /// A file was written to meanwhile.
    #[error("{} changed while it was read; try again", path.display())]
    Changed {
        /// Path in question.
        path: PathBuf,
    },
    /// The program cannot become an image.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// The tree has what an image cannot hold.
    #[error("the tree cannot become an image")]
    Tar(#[source] TarError),
    /// The names and attributes are too much.
    #[error("the tree cannot become an image")]
    Page(#[source] PageError),
    /// The store did not take the blocks.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<LayerStop> for BuildError {
    fn from(stop: LayerStop) -> BuildError {
        match stop {
            LayerStop::Tree(error) => *error,
            LayerStop::Tar(error) => BuildError::Tar(error),
            LayerStop::Page(error) => BuildError::Page(error),
            LayerStop::Store(error) => error.into(),
            LayerStop::Read(source) => BuildError::Read { path: "the tree".into(), source },
            LayerStop::Bomb | LayerStop::Compression(_) | LayerStop::Stopped => StoreError::Closed.into(),
        }
    }
}

/// Makes an image whose root file system is a directory.
///
/// Symbolic links are kept as they are, hard links within the directory are kept too, devices, sockets and FIFOs are
/// refused. Memory does not grow with the size of files. The blocks are acknowledged but not flushed. Safe to drop half-way.
pub async fn image_from_rootfs(
    store: &dyn BlobStore,
    dir: &Path,
    options: RootfsOptions,
) -> Result<Imported, BuildError> {
    let dir = dir.to_path_buf();
    drive(store, options.only_hash, move |out| {
        rootfs::check_directory(&dir)?;
        let architecture = match options.architecture {
            Some(architecture) => architecture.name().to_owned(),
            None => match rootfs::architecture(&dir, &options.process.entrypoint)? {
                Some(architecture) => architecture.name().to_owned(),
                None => Platform::host().architecture,
            },
        };
        let (made, ()) = make_layer(options.limits, out, |tar| {
            rootfs::write_tree(&dir, &options, &mut Writer::new(tar, options.mtime)).map_err(Box::new)?;
            Ok(())
        })?;
        Ok(finish(&made, &architecture, options.process, out))
    })
    .await
}

/// Makes an image that holds one program, `/app/<name>`, and starts it.
///
/// The program is read and never executed. A dynamic one needs [`with_libs`](BinaryOptions::with_libs): its interpreter
/// then goes to where it wants it, and its libraries to `/app/lib`. Libraries that a program opens while it runs are not
/// seen. As [`image_from_rootfs`] in all else.
pub async fn image_from_binary(
    store: &dyn BlobStore,
    program: &Path,
    options: BinaryOptions,
) -> Result<Imported, BuildError> {
    let program = program.to_path_buf();
    drive(store, options.only_hash, move |out| {
        let packed = libraries::pack(&program, &options)?;
        let (made, ()) = make_layer(options.limits, out, |tar| {
            let mut writer = Writer::new(tar, 0);
            packed.files.iter().try_for_each(|(path, file)| writer.program(path, file)).map_err(Box::new)?;
            writer.end().map_err(Box::new)?;
            Ok(())
        })?;
        let mut env = options.env;
        if packed.has_libraries && !env.iter().any(|variable| variable.starts_with("LD_LIBRARY_PATH=")) {
            env.push(format!("LD_LIBRARY_PATH=/{}", libraries::LIBRARY_DIR));
        }
        let process = Process {
            entrypoint: vec![format!("/{}", packed.program)],
            command: options.command,
            env,
            working_dir: "/".into(),
            user: String::new(),
        };
        Ok(finish(&made, packed.architecture.name(), process, out))
    })
    .await
}

impl From<Box<BuildError>> for LayerStop {
    fn from(error: Box<BuildError>) -> LayerStop {
        LayerStop::Tree(error)
    }
}

/// The config of an image; the order of the fields is that of its bytes.
#[derive(Serialize)]
struct Config<'a> {
    architecture: &'a str,
    config: ConfigProcess,
    created: &'a str,
    history: [History<'a>; 1],
    os: &'a str,
    rootfs: ConfigRootfs,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigProcess {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    env: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    working_dir: String,
}

#[derive(Serialize)]
struct History<'a> {
    created: &'a str,
    created_by: &'a str,
}

#[derive(Serialize)]
struct ConfigRootfs {
    diff_ids: [String; 1],
    #[serde(rename = "type")]
    kind: &'static str,
}

/// Where programs are looked for where an image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Time of images: of no moment, so that equal content is an equal image.
const CREATED: &str = "1970-01-01T00:00:00Z";

fn finish(layer: &MadeLayer, architecture: &str, process: Process, out: &mut Out) -> Made {
    let mut env = process.env;
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, PATH.to_owned());
    }
    let config = Config {
        architecture,
        config: ConfigProcess {
            cmd: process.command,
            entrypoint: process.entrypoint,
            env,
            user: process.user,
            working_dir: process.working_dir,
        },
        created: CREATED,
        history: [History { created: CREATED, created_by: "iptl" }],
        os: "linux",
        rootfs: ConfigRootfs { diff_ids: [layer.diff_id.to_string()], kind: "layers" },
    };
    let config = serde_json::to_vec(&config).expect("texts and lists have a form in JSON");
    let image = Image {
        config: FileBuilder::of_bytes(&config, out.blocks()).cid,
        config_digest: Digest::of(&config).0,
        architecture: architecture.to_owned(),
        os: "linux".into(),
        layers: vec![layer.cid],
        size: layer.size,
        entries: layer.entries,
    };
    crate::import::finish_image(image, Vec::new(), out)
}
