//! Container images: their config and their layers, kept so that each layer's tar comes back byte for byte.
//!
//! What a layer's pages hold is described in `docs/spec/data-model.md`; the crate `iptl-artifacts-oci` writes and reads it.

use serde::{Deserialize, Serialize};

use crate::Cid;

/// A container image.
///
/// It is content alone: no name, no tag, no registry. However an image was compressed and wherever it came from, equal
/// config and layers are one CID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// UnixFS file of the config, the JSON as its builder wrote it.
    pub config: Cid,
    /// SHA-256 of the config: the ID under which container engines know the image.
    #[serde(with = "serde_bytes")]
    pub config_digest: [u8; 32],
    /// Architecture in the words of container engines: `amd64`, `arm64`.
    pub architecture: String,
    /// Operating system in the words of container engines: `linux`.
    pub os: String,
    /// Layers from the lowest to the highest; each links a [`Layer`].
    pub layers: Vec<Cid>,
    /// Bytes of all layers as tar, one that stands twice counted twice.
    pub size: u64,
    /// Files, directories and links in all layers, counted likewise.
    pub entries: u64,
}

/// A layer of an image: a tar, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// SHA-256 of the tar.
    #[serde(with = "serde_bytes")]
    pub diff_id: [u8; 32],
    /// Size of the tar in bytes.
    pub size: u64,
    /// Files, directories and links in it.
    pub entries: u64,
    /// UnixFS file of the contents of its small files, one after the other; none where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub small: Option<Cid>,
    /// Parts of the tar in its order; each links a [`LayerPage`].
    pub pages: Vec<Cid>,
}

/// A part of a layer: what tar needs beside the contents of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPage {
    /// Headers, padding and ends as a sequence of operations.
    #[serde(with = "serde_bytes")]
    pub tar: Vec<u8>,
    /// UnixFS files whose contents the operations name, in their order.
    pub files: Vec<Cid>,
}

/// Most pages of a layer: with some 45 bytes each, the block of a layer stays under 1 MiB.
pub const MAX_PAGES_PER_LAYER: usize = 16_384;

/// Most layers of an image, four times as many as engines mount.
pub const MAX_LAYERS: usize = 512;
