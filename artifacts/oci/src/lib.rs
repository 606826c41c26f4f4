//! Container images as blocks, and blocks as container images, without any container engine.
//!
//! A layer is a tar, and its digest hangs on every byte of it. Here it is taken apart: contents of files become UnixFS
//! files, so that equal ones are one over images, layers and compressions, and what tar needs beside them goes to pages.
//! From both the tar comes back byte for byte, so the image has the same ID on every machine that rebuilds it.
//!
//! [`import_archive`], [`import_stream`] and [`import_layout_dir`] read what `docker save` and OCI tools write;
//! [`image_from_rootfs`] and [`image_from_binary`] make images from nothing. [`write_docker_archive`] writes what `docker
//! load` and OCI tools read; [`unpack`] merges the layers into a directory.
//!
//! Images come from strangers. [`Limits`] bound what one may be; the rules on names and kinds of entries are checked by
//! one parser (`tar/scan.rs`) at import, when an image is rebuilt, and when it is unpacked. Start reading there, then at
//! `pages.rs`, which holds the encoding of a layer.

mod build;
mod compression;
mod digest;
mod import;
mod layer;
mod limits;
mod out;
mod pages;
pub mod probe;
mod read;
mod rebuild;
mod tar;
mod unpack;

pub use self::tar::scan::TarError;
pub use build::{
    Architecture, BinaryError, BinaryOptions, BuildError, Process, RootfsOptions, image_from_binary, image_from_rootfs,
};
pub use digest::{Digest, DigestError};
pub use import::{ImportError, ImportOptions, Platform, import_archive, import_layout_dir, import_stream};
pub use limits::{
    LimitError, Limits, MAX_COMPONENTS, MAX_COMPRESSION_RATIO, MAX_ENTRIES, MAX_IMAGE_SIZE, MAX_JSON_SIZE, MAX_PATH,
    check_declared, walk_limits,
};
pub use out::Imported;
pub use pages::{MAX_SMALL_FILE, PageError};
pub use read::{ReadError, read_config, read_image};
pub use rebuild::{RebuildError, Written, write_docker_archive};
pub use unpack::{UnpackError, Unpacked, unpack};
