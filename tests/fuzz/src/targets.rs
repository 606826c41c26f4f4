//! The targets, by what they read.

pub(crate) mod bitswap;
pub(crate) mod car;
pub(crate) mod cid;
pub(crate) mod codecs;
