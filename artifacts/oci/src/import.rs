//! Images from what container tools write: OCI layouts, and the archives of `docker save`.
//!
//! Every digest that is named is checked: those of manifests, config and layers, and the diff IDs of the unpacked layers.
//! Names and compression are no part of an image, so they leave no trace in its CID.

mod ahead;
mod manifest;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use iptl_artifacts::{BlobStore, StoreError};
use iptl_dag::model::{Image, image::MAX_LAYERS, to_block};
use iptl_dag::unixfs::FileBuilder;
use serde::Deserialize;
use tokio::io::AsyncRead;

pub(crate) use manifest::full_name;

use crate::compression::{Compression, Decoder};
use crate::digest::{Digest, DigestError, Hashing};
use crate::layer::{CHUNK, Chunks, LayerStop, MadeLayer, make_layer};
use crate::limits::{Limits, MAX_COMPRESSION_RATIO, MAX_JSON_SIZE, RATIO_FREE};
use crate::out::{Imported, Made, Out, drive};
use crate::pages::{BlockSink, PageError};
use crate::tar::scan::TarError;
use ahead::{Earlies, Early, take_apart};
use manifest::{BlobRef, choose};
use source::{Archive, Blob, Source, shown};

/// How an image is imported.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Compute the CID and store nothing.
    pub only_hash: bool,
    /// What the image may be.
    pub limits: Limits,
    /// Which image is meant where there are several: `name:tag`.
    pub name: Option<String>,
    /// Which platform is meant where there are several; where this is `None`, that of this machine.
    pub platform: Option<Platform>,
    /// Directory for an archive that has to be written down first, because it is compressed or comes from a stream; that
    /// of the system where this is `None`.
    pub scratch: Option<PathBuf>,
}

/// An operating system and an architecture, in the words of container engines.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// Operating system: `linux`.
    pub os: String,
    /// Architecture: `amd64`, `arm64`.
    pub architecture: String,
    /// Variant of the architecture, where it matters: `v8`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on an architecture.
    pub fn linux(architecture: impl Into<String>) -> Platform {
        Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// The platform of this machine.
    pub fn host() -> Platform {
        Platform::linux(match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        })
    }

    fn fits(&self, wanted: &Platform) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_none() || self.variant == wanted.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        self.variant.as_deref().map_or(Ok(()), |variant| write!(f, "/{}", shown(variant)))
    }
}

/// Why an image was not imported. What was stored by then is unpinned, and goes with the next collection.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// Path or name of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is no room to write a stream down.
    #[error("writing the archive to {} first, since it is compressed or a stream", path.display())]
    Scratch {
        /// Directory in question.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The archive is longer than an image may be.
    #[error("the archive has more than {limit} bytes")]
    ArchiveTooLarge {
        /// The limit.
        limit: u64,
    },
    /// The archive is not a tar.
    #[error("{} is no archive of an image", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// Neither form is there.
    #[error(
        "there is no image in it: no manifest.json as docker save writes, no index.json as OCI tools write; \
         for a plain directory of files use --rootfs"
    )]
    NotAnImage,
    /// The list of images is empty.
    #[error("the list of images in it is empty")]
    Empty,
    /// No image has the name that was asked for.
    #[error("no image in it is named {name:?}; there are: {names}")]
    NoSuchName {
        /// The name.
        name: String,
        /// Names that there are.
        names: String,
    },
    /// No image is for the platform.
    #[error("no image in it is for {wanted}; there are: {images}")]
    NoPlatform {
        /// The platform.
        wanted: String,
        /// Images that there are.
        images: String,
    },
    /// Several images could be meant.
    #[error("several images could be meant, say which by name or platform: {images}")]
    Ambiguous {
        /// Images that there are.
        images: String,
    },
    /// The manifest is of something else.
    #[error("it is no container image: its config is of the type {media_type:?}")]
    NotAContainer {
        /// Media type of the config.
        media_type: String,
    },
    /// More manifests than any image has.
    #[error("its indexes name more manifests, or lie deeper in each other, than those of any image")]
    TooManyManifests,
    /// A file of the image is not there.
    #[error("{name} is named and not there: the image is incomplete, or of another platform than was saved")]
    Missing {
        /// Name of the file.
        name: String,
    },
    /// A manifest, index or config does not say what it must.
    #[error("{name} cannot be understood: {reason}")]
    Json {
        /// Name of the file.
        name: String,
        /// What the decoder met.
        reason: String,
    },
    /// A manifest, index or config is larger than any.
    #[error("{name} has {size} bytes; manifests and configs have {MAX_JSON_SIZE} at most")]
    JsonTooLarge {
        /// Name of the file.
        name: String,
        /// Its size.
        size: u64,
    },
    /// A digest cannot be checked.
    #[error(transparent)]
    DigestForm(#[from] DigestError),
    /// A file is not what its digest says.
    #[error("{name} should hash to {stated} and hashes to {actual}: it is damaged, or was changed")]
    Digest {
        /// Name of the file.
        name: String,
        /// Digest that is stated.
        stated: Digest,
        /// Digest that it has.
        actual: Digest,
    },
    /// A file is not as long as its descriptor says.
    #[error("{name} should have {stated} bytes and has {actual}")]
    Size {
        /// Name of the file.
        name: String,
        /// Size that is stated.
        stated: u64,
        /// Size that it has.
        actual: u64,
    },
    /// Config and manifest disagree.
    #[error("the image has {layers} layers, and its config names {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Diff IDs of the config.
        diff_ids: usize,
    },
    /// More layers than any engine mounts.
    #[error("the image has {layers} layers, and {MAX_LAYERS} are allowed")]
    TooManyLayers {
        /// Layers of the manifest.
        layers: usize,
    },
    /// A layer is not what the config says.
    #[error("layer {layer} should unpack to {stated} and unpacks to {actual}: it is damaged, or was changed")]
    DiffId {
        /// Which one, from 1.
        layer: usize,
        /// Diff ID that is stated.
        stated: Digest,
        /// Diff ID that it has.
        actual: Digest,
    },
    /// A layer cannot be taken.
    #[error("layer {layer} cannot be taken")]
    Layer {
        /// Which one, from 1.
        layer: usize,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// A layer's names and attributes are too much.
    #[error("layer {layer} cannot be kept")]
    Page {
        /// Which one, from 1.
        layer: usize,
        /// What is wrong with it.
        #[source]
        source: PageError,
    },
    /// A compressed layer is damaged, or cannot be read.
    #[error("layer {layer} cannot be unpacked")]
    Unpack {
        /// Which one, from 1.
        layer: usize,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A layer is compressed in a way that is not read.
    #[error("{what} is compressed with {method}; gzip, zstd and plain can be read")]
    Compression {
        /// What is compressed.
        what: String,
        /// Name of the method.
        method: &'static str,
    },
    /// A layer that unpacks to many times its size.
    #[error(
        "layer {layer} unpacks to over {MAX_COMPRESSION_RATIO} times its size, as only a bomb does; \
         if it is meant, save the image uncompressed"
    )]
    Bomb {
        /// Which one, from 1.
        layer: usize,
    },
    /// The image is larger than it may be.
    #[error("the image unpacks to more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The image has more files than it may.
    #[error("too many files: the image has more than {limit}")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// The store did not take the blocks.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Imports an image from an archive: `docker save`, or a tar of an OCI layout; the archive itself may be compressed.
///
/// Memory does not grow with the size of the image. The blocks are acknowledged but not flushed. Safe to drop half-way:
/// blocks that were stored by then are unpinned.
pub async fn import_archive(
    store: &dyn BlobStore,
    path: &Path,
    options: ImportOptions,
) -> Result<Imported, ImportError> {
    let path = path.to_path_buf();
    drive(store, options.only_hash, move |out| {
        let file = seekable(&path, &options)?;
        import(&Source::Archive(Archive::index(file, &path)?), Earlies::new(), &options, out)
    })
    .await
}

/// Imports an image from an archive that streams past, such as an engine's export.
///
/// The manifest stands at its end, so layers are taken apart while it still comes, and the rest is written to a file
/// without a name. Whatever the stream holds counts to what the image may be. Safe to drop half-way.
pub async fn import_stream(
    store: &dyn BlobStore,
    stream: impl AsyncRead + Unpin + Send,
    options: ImportOptions,
) -> Result<Imported, ImportError> {
    let file = scratch_file(&options)?;
    let (reading, arriving) = ahead::arriving();
    let read = reading.read(stream, &options);
    let imported = drive(store, options.only_hash, {
        let options = options.clone();
        move |out| {
            let path = Path::new("the stream");
            let earlies = take_apart(arriving, &file, &options, out)?;
            let file = decompressed(file, path, &options)?;
            import(&Source::Archive(Archive::index(file, path)?), earlies, &options, out)
        }
    });
    // What stopped the stream is why the import ended too, and not the other way round.
    let (read, imported) = tokio::join!(read, imported);
    read.and(imported)
}

/// Imports an image from an OCI layout, or an unpacked `docker save`, in a directory.
///
/// As [`import_archive`] in all else.
pub async fn import_layout_dir(
    store: &dyn BlobStore,
    dir: &Path,
    options: ImportOptions,
) -> Result<Imported, ImportError> {
    let dir = dir.to_path_buf();
    drive(store, options.only_hash, move |out| {
        std::fs::read_dir(&dir).map_err(|source| ImportError::Read { path: dir.clone(), source })?;
        import(&Source::Dir(dir), Earlies::new(), &options, out)
    })
    .await
}

/// An archive may hold more than the image that is meant.
fn archive_limit(options: &ImportOptions) -> u64 {
    options.limits.bytes.saturating_mul(2).saturating_add(MAX_JSON_SIZE)
}

fn scratch_file(options: &ImportOptions) -> Result<File, ImportError> {
    match &options.scratch {
        Some(dir) => tempfile::tempfile_in(dir),
        None => tempfile::tempfile(),
    }
    .map_err(scratch_error(options))
}

fn scratch_error(options: &ImportOptions) -> impl Fn(io::Error) -> ImportError + use<> {
    let path = options.scratch.clone().unwrap_or_else(std::env::temp_dir);
    move |source| ImportError::Scratch { path: path.clone(), source }
}

/// Opens an archive so that it can be read anywhere.
fn seekable(path: &Path, options: &ImportOptions) -> Result<File, ImportError> {
    let read = |source| ImportError::Read { path: path.into(), source };
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if metadata.is_dir() {
        return Err(read(io::ErrorKind::IsADirectory.into()));
    }
    if metadata.is_file() {
        return decompressed(file, path, options);
    }
    let mut spooled = scratch_file(options)?;
    spool(file, &mut spooled, path, options)?;
    decompressed(spooled, path, options)
}

/// Returns the archive as it is, or unpacked to a file.
fn decompressed(file: File, path: &Path, options: &ImportOptions) -> Result<File, ImportError> {
    use std::os::unix::fs::FileExt;
    let read = |source| ImportError::Read { path: path.into(), source };
    let mut head = [0; 8];
    let count = file.read_at(&mut head, 0).map_err(read)?;
    let compression = Compression::of(&head[..count]);
    match compression {
        Compression::Plain => Ok(file),
        Compression::Other(method) => Err(ImportError::Compression { what: path.display().to_string(), method }),
        Compression::Gzip | Compression::Zstd => {
            use std::io::Seek;
            let mut file = file;
            file.rewind().map_err(read)?;
            let mut unpacked = scratch_file(options)?;
            spool(Decoder::new(compression, BufReader::with_capacity(CHUNK, file)), &mut unpacked, path, options)?;
            Ok(unpacked)
        }
    }
}

fn spool(mut from: impl Read, to: &mut File, path: &Path, options: &ImportOptions) -> Result<(), ImportError> {
    use std::io::Write;
    let limit = archive_limit(options);
    let (mut buffer, mut total) = (vec![0; CHUNK], 0);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(ImportError::Read { path: path.into(), source }),
        };
        total += count as u64;
        if total > limit {
            return Err(ImportError::ArchiveTooLarge { limit });
        }
        to.write_all(&buffer[..count]).map_err(scratch_error(options))?;
    }
}

/// What is read of an image's config.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    pub(crate) rootfs: RootFs,
}

/// The layers in a config.
#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Option<Vec<String>>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Config, String> {
        let config: Config = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if config.architecture.is_empty() || config.architecture.len() > 64 || config.os.len() > 64 {
            return Err("it does not say for which architecture the image is".into());
        }
        Ok(config)
    }

    /// Returns the operating system; old tools left it out.
    pub(crate) fn os(&self) -> &str {
        if self.os.is_empty() { "linux" } else { &self.os }
    }

    pub(crate) fn diff_ids(&self) -> Result<Vec<Digest>, DigestError> {
        self.rootfs.diff_ids.iter().flatten().map(|text| text.parse()).collect()
    }
}

/// Reads a small file whose digest and size are known.
fn read_blob(source: &Source, blob: &BlobRef) -> Result<Vec<u8>, ImportError> {
    let bytes = source.read(&blob.name)?.ok_or_else(|| ImportError::Missing { name: shown(&blob.name) })?;
    check_size(blob, bytes.len() as u64)?;
    if let Some(stated) = blob.digest {
        check_digest(blob, stated, Digest::of(&bytes))?;
    }
    Ok(bytes)
}

fn check_size(blob: &BlobRef, actual: u64) -> Result<(), ImportError> {
    match blob.size {
        Some(stated) if stated != actual => Err(ImportError::Size { name: shown(&blob.name), stated, actual }),
        Some(_) | None => Ok(()),
    }
}

fn check_digest(blob: &BlobRef, stated: Digest, actual: Digest) -> Result<(), ImportError> {
    if stated == actual { Ok(()) } else { Err(ImportError::Digest { name: shown(&blob.name), stated, actual }) }
}

fn import(source: &Source, mut earlies: Earlies, options: &ImportOptions, out: &mut Out) -> Result<Made, ImportError> {
    let chosen = choose(source, options)?;
    let config_bytes = read_blob(source, &chosen.config)?;
    let config_name = || shown(&chosen.config.name);
    let config = Config::parse(&config_bytes).map_err(|reason| ImportError::Json { name: config_name(), reason })?;
    let diff_ids = config.diff_ids()?;
    if chosen.layers.len() != diff_ids.len() {
        return Err(ImportError::LayerCount { layers: chosen.layers.len(), diff_ids: diff_ids.len() });
    }
    if diff_ids.len() > MAX_LAYERS {
        return Err(ImportError::TooManyLayers { layers: diff_ids.len() });
    }
    let mut left = options.limits;
    // A layer may stand twice, such as the empty one.
    let mut done: BTreeMap<&str, MadeLayer> = BTreeMap::new();
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (number, (blob, stated)) in (1..).zip(chosen.layers.iter().zip(diff_ids)) {
        let made = match done.get(blob.name.as_str()) {
            Some(made) if made.size <= left.bytes && made.entries <= left.entries => *made,
            Some(_) | None => import_layer(source, &mut earlies, blob, number, left, options, out)?,
        };
        if made.diff_id != stated {
            return Err(ImportError::DiffId { layer: number, stated, actual: made.diff_id });
        }
        done.insert(&blob.name, made);
        left.bytes -= made.size;
        left.entries -= made.entries;
        layers.push(made.cid);
    }
    let image = Image {
        config: FileBuilder::of_bytes(&config_bytes, out.blocks()).cid,
        config_digest: Digest::of(&config_bytes).0,
        architecture: config.architecture.clone(),
        os: config.os().to_owned(),
        layers,
        size: options.limits.bytes - left.bytes,
        entries: options.limits.entries - left.entries,
    };
    Ok(finish_image(image, chosen.names, out))
}

/// Appends the node of an image.
pub(crate) fn finish_image(image: Image, names: Vec<String>, out: &mut Out) -> Made {
    let block = to_block(image.clone());
    let cid = *block.cid();
    out.blocks().push(block);
    Made {
        image: cid,
        config_digest: Digest(image.config_digest),
        architecture: image.architecture,
        names,
        size: image.size,
        entries: image.entries,
    }
}

fn import_layer(
    source: &Source,
    earlies: &mut Earlies,
    blob: &BlobRef,
    layer: usize,
    limits: Limits,
    options: &ImportOptions,
    out: &mut Out,
) -> Result<MadeLayer, ImportError> {
    let name = || shown(&blob.name);
    let opened = source.open(&blob.name)?.ok_or_else(|| ImportError::Missing { name: name() })?;
    check_size(blob, opened.size)?;
    let place = source.place(&blob.name).unwrap_or_default();
    let early = match earlies.get(&place) {
        Some(Early::Made { made, digest }) => Some(Ok((*made, *digest))),
        // Its refusal ends the import, so nobody asks again.
        Some(Early::Refused(_)) => earlies.remove(&place).and_then(Early::refusal).map(Err),
        None => None,
    };
    let made = match early {
        Some(Ok((made, _))) if made.size > limits.bytes => Err(TarError::TooLarge { limit: limits.bytes }.into()),
        Some(Ok((made, _))) if made.entries > limits.entries => {
            Err(TarError::TooManyEntries { limit: limits.entries }.into())
        }
        Some(early) => early,
        None => make_layer(limits, out, |tar| read_layer(opened, blob.digest.is_some(), tar)),
    };
    let (made, digest) = made.map_err(|stop| stopped(stop, layer, options))?;
    if let Some(stated) = blob.digest {
        check_digest(blob, stated, digest.unwrap_or(made.diff_id))?;
    }
    Ok(made)
}

fn stopped(stop: LayerStop, layer: usize, options: &ImportOptions) -> ImportError {
    match stop {
        LayerStop::Tar(TarError::TooLarge { .. }) => ImportError::TooLarge { limit: options.limits.bytes },
        LayerStop::Tar(TarError::TooManyEntries { .. }) => {
            ImportError::TooManyEntries { limit: options.limits.entries }
        }
        LayerStop::Tar(source) => ImportError::Layer { layer, source },
        LayerStop::Page(source) => ImportError::Page { layer, source },
        LayerStop::Store(error) => error.into(),
        LayerStop::Read(source) => ImportError::Unpack { layer, source },
        LayerStop::Bomb => ImportError::Bomb { layer },
        LayerStop::Compression(method) => ImportError::Compression { what: format!("layer {layer}"), method },
        LayerStop::Stopped | LayerStop::Tree(_) => ImportError::Store(StoreError::Closed),
    }
}

/// Unpacks a layer; returns the digest of its compressed form, where it has one and it is asked for.
fn read_layer(mut blob: Blob, digest: bool, tar: &mut Chunks) -> Result<Option<Digest>, LayerStop> {
    let mut head = Vec::with_capacity(8);
    blob.reader.by_ref().take(8).read_to_end(&mut head).map_err(LayerStop::Read)?;
    let compression = Compression::of(&head);
    let packed = match compression {
        Compression::Plain => false,
        Compression::Gzip | Compression::Zstd => true,
        Compression::Other(method) => return Err(LayerStop::Compression(method)),
    };
    let whole = Read::chain(io::Cursor::new(head), blob.reader);
    if !packed {
        tar.copy_from(&mut { whole }, |_, _| Ok(()))?;
        return Ok(None);
    }
    let hashing = BufReader::with_capacity(CHUNK, Hashing::new(whole, digest));
    let mut decoder = Decoder::new(compression, hashing);
    tar.copy_from(&mut decoder, |decoder, unpacked| {
        let read = decoder.get_ref().get_ref().bytes();
        if unpacked > RATIO_FREE && unpacked / MAX_COMPRESSION_RATIO > read {
            return Err(LayerStop::Bomb);
        }
        Ok(())
    })?;
    // What follows the compressed stream belongs to the digest too.
    let mut hashing = decoder.into_inner();
    while let count @ 1.. = hashing.fill_buf().map_err(LayerStop::Read)?.len() {
        hashing.consume(count);
    }
    Ok(hashing.into_inner().finish())
}
