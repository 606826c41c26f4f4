//! Captures: what passes between nodes and their links, in the format that `tcpdump` and Wireshark read.
//!
//! Packets are as the nodes see them: with their addresses behind a NAT, before the link up and after the link down. Where
//! systems hand over many in one, a capture has that one, and checksums that a network card would complete are not
//! complete, as in captures elsewhere.

use std::collections::BTreeMap;

use crate::topology::NodeId;

/// Head of a capture: pcap with times in nanoseconds, packets of raw IP, none of them cut.
pub const PCAP_HEADER: [u8; 24] = [
    0x4d, 0x3c, 0xb2, 0xa1, // the order of bytes, and nanoseconds
    2, 0, 4, 0, // version 2.4
    0, 0, 0, 0, 0, 0, 0, 0, // times are UTC and exact
    0, 0, 4, 0, // 262144 bytes of a packet at most
    101, 0, 0, 0, // LINKTYPE_RAW
];

/// Bytes before a packet in a capture.
const RECORD_SIZE: u64 = 16;

/// Captures of some nodes of an engine.
#[derive(Debug, Default)]
pub(crate) struct Captures(BTreeMap<usize, Capture>);

#[derive(Debug)]
struct Capture {
    /// Bytes that may still come.
    left: u64,
    /// What the wall clock is ahead of the engine's, in nanoseconds.
    ahead_ns: u64,
    bytes: Vec<u8>,
    /// Whether a packet found no room; told once.
    full: Option<bool>,
}

/// A piece of a capture, to be appended to what came before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Whose link it is.
    pub node: NodeId,
    /// Packets behind their heads, without the [`PCAP_HEADER`] of a file.
    pub bytes: Vec<u8>,
    /// From here on packets are left out: there was no room for one.
    pub full: bool,
}

impl Captures {
    pub(crate) fn begin(&mut self, node: usize, limit: u64, ahead_ns: u64) {
        self.0.insert(node, Capture { left: limit, ahead_ns, bytes: Vec::new(), full: None });
    }

    pub(crate) fn take(&mut self, node: usize, now_ns: u64, packet: &[u8]) {
        if self.0.is_empty() {
            return;
        }
        let Some(capture) = self.0.get_mut(&node) else { return };
        let size = packet.len() as u64 + RECORD_SIZE;
        if capture.full.is_some() || size > capture.left {
            capture.full.get_or_insert(false);
            return;
        }
        capture.left -= size;
        let at_ns = now_ns.saturating_add(capture.ahead_ns);
        let field = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let length = field(packet.len() as u64);
        for part in [field(at_ns / 1_000_000_000), field(at_ns % 1_000_000_000), length, length] {
            capture.bytes.extend_from_slice(&part);
        }
        capture.bytes.extend_from_slice(packet);
    }

    pub(crate) fn poll(&mut self) -> Option<Captured> {
        let news = |capture: &Capture| !capture.bytes.is_empty() || capture.full == Some(false);
        let (node, capture) = self.0.iter_mut().find(|(_, capture)| news(capture))?;
        let full = capture.full == Some(false);
        if full {
            capture.full = Some(true);
        }
        Some(Captured { node: NodeId::from_index(*node), bytes: std::mem::take(&mut capture.bytes), full })
    }
}
