//! What an image may be.

use iptl_dag::model::Image;
use iptl_dag::model::image::MAX_LAYERS;
use iptl_dag::unixfs::LEAF_MIN;
use iptl_dag::walk;

/// Most bytes of an image, all layers unpacked, where the caller does not say: the largest images of machine learning
/// are about as large.
pub const MAX_IMAGE_SIZE: u64 = 16 << 30;

/// Most files, directories and links of an image. Large ones have 200,000; a million costs an engine minutes.
pub const MAX_ENTRIES: u64 = 1_000_000;

/// Longest path in bytes, that of Linux.
pub const MAX_PATH: usize = 4096;

/// Most components of a path: real trees have up to 40, and removing a tree takes an open directory for each.
pub const MAX_COMPONENTS: usize = 256;

/// Longest name within a directory in bytes, that of Linux.
pub(crate) const MAX_NAME: usize = 255;

/// Largest manifest, index or config in bytes: registries refuse manifests over 4 MiB.
pub const MAX_JSON_SIZE: u64 = 4 << 20;

/// Most bytes of the headers that tar puts before one entry, for long names and attributes: engines read 1 MiB.
pub(crate) const MAX_EXTENSION: usize = 1 << 20;

/// How many times its size a compressed layer may unpack to. Programs and text reach 3 to 20; gzip ends at 1,032, which
/// takes a bomb.
pub const MAX_COMPRESSION_RATIO: u64 = 250;

/// Bytes that a layer may unpack to before its ratio is looked at: an empty disk image of this size harms nobody.
pub(crate) const RATIO_FREE: u64 = 64 << 20;

/// Most files in an archive of images, which has a few for each layer.
pub(crate) const MAX_ARCHIVE_ENTRIES: u64 = 100_000;

/// Bounds of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of all layers as tar, and of an archive or a compressed layer on disk.
    pub bytes: u64,
    /// Most files, directories and links of all layers.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes: MAX_IMAGE_SIZE, entries: MAX_ENTRIES }
    }
}

/// What is too much about an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Too many bytes.
    #[error("the image says that it unpacks to {size} bytes, and {limit} are allowed here")]
    Size {
        /// Declared size in bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Too many files.
    #[error("the image says that it has {entries} files, and {limit} are allowed here")]
    Entries {
        /// Declared number.
        entries: u64,
        /// The limit.
        limit: u64,
    },
    /// Too many layers.
    #[error("the image has {layers} layers, and {MAX_LAYERS} are allowed")]
    Layers {
        /// Their number.
        layers: usize,
    },
}

/// Checks what an image says about itself, before anything below it is fetched or rebuilt.
///
/// What really comes is counted against what was said.
pub fn check_declared(image: &Image, limits: &Limits) -> Result<(), LimitError> {
    if image.layers.len() > MAX_LAYERS {
        return Err(LimitError::Layers { layers: image.layers.len() });
    }
    if image.size > limits.bytes {
        return Err(LimitError::Size { size: image.size, limit: limits.bytes });
    }
    if image.entries > limits.entries {
        return Err(LimitError::Entries { entries: image.entries, limit: limits.entries });
    }
    Ok(())
}

/// Returns how much a walk over an image may find, by what the image says about itself.
///
/// An honest image stays below it. One that says that it is small and links a terabyte is refused by the walk.
pub fn walk_limits(image: &Image) -> walk::Limits {
    // A file has leaves of at least this size but for the last, and one node over them; a page has an entry.
    let leaves = image.size / LEAF_MIN as u64;
    walk::Limits {
        blocks: leaves.saturating_mul(2).saturating_add(image.entries.saturating_mul(3)).saturating_add(8192),
        // Blocks of tar that share nothing take 8 bytes more each; a link takes 45, and 60 more in a node.
        bytes: image
            .size
            .saturating_add(image.size / 16)
            .saturating_add(image.entries.saturating_mul(128))
            .saturating_add(16 << 20),
        // Image, layer, page, and a file's tree of width 1024.
        depth: 32,
    }
}
