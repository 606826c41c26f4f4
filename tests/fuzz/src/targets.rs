//! The targets, by what they read.

pub(crate) mod bitswap;
pub mod blobs;
pub(crate) mod car;
pub(crate) mod cid;
pub(crate) mod codecs;
pub(crate) mod images;
pub(crate) mod instances;
pub(crate) mod networks;
pub(crate) mod plans;
pub(crate) mod unixfs;
pub(crate) mod wire;
