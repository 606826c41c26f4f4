//! Fuzz targets: what the lab reads of what strangers send, each as a function from bytes.
//!
//! A target feeds the bytes to one decoder and demands more than that it comes back: what was read can be written and read
//! again as the same value, bounds hold, and memory grows with the input by no more than a [factor](memory). It returns
//! whether the decoder took the bytes, so that a corpus can be seen to reach what lies behind the first check.
//!
//! `cargo xtask fuzz` runs the targets under libFuzzer (`engine.rs`). The inputs under `corpus/` are ordinary tests too.

pub mod memory;
mod targets;

pub use targets::blobs;

/// One decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its corpus.
    pub name: &'static str,
    /// Feeds it and returns whether it took the bytes; panics where a property does not hold.
    pub run: fn(&[u8]) -> bool,
    /// Longest input that the engine makes, in bytes: what is longer is slower and finds no more.
    pub max_len: usize,
}

/// All targets, in the order in which they are run.
pub static TARGETS: &[Target] = &[
    Target { name: "cid", run: targets::cid::cid, max_len: 256 },
    Target { name: "multihash", run: targets::cid::multihash, max_len: 256 },
    Target { name: "dag-cbor", run: targets::codecs::dag_cbor, max_len: 4096 },
    Target { name: "dag-json", run: targets::codecs::dag_json, max_len: 4096 },
    Target { name: "dag-pb", run: targets::codecs::dag_pb, max_len: 4096 },
    Target { name: "unixfs", run: targets::unixfs::unixfs, max_len: 4096 },
    Target { name: "hamt", run: targets::unixfs::hamt, max_len: 1024 },
    Target { name: "path", run: targets::unixfs::path, max_len: 2048 },
    Target { name: "car", run: targets::car::car, max_len: 8192 },
    Target { name: "bitswap", run: targets::bitswap::bitswap, max_len: 4096 },
    Target { name: "blobs-request", run: targets::blobs::request, max_len: 4096 },
    Target { name: "blobs-answer", run: targets::blobs::answer, max_len: 4096 },
    Target { name: "wire", run: targets::wire::wire, max_len: 4096 },
    Target { name: "ticket", run: targets::wire::ticket, max_len: 1024 },
    Target { name: "manifest", run: targets::plans::manifest, max_len: 4096 },
    Target { name: "network", run: targets::networks::network, max_len: 2048 },
    Target { name: "packet", run: targets::networks::packet, max_len: 2048 },
    Target { name: "away", run: targets::networks::away, max_len: 2048 },
    Target { name: "ip", run: targets::networks::ip, max_len: 2048 },
    Target { name: "oci-layer", run: targets::images::layer, max_len: 16_384 },
    Target { name: "oci-page", run: targets::images::page, max_len: 4096 },
    Target { name: "testground", run: targets::instances::conversation, max_len: 4096 },
    Target { name: "testground-output", run: targets::instances::output, max_len: 4096 },
];

/// Returns the target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
