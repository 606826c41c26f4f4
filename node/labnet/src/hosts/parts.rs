//! Putting fragments together again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use crate::ip::{Header, V4_HEAD};

/// Bytes of fragments that wait for the rest of their packets: four of the largest, as Linux has per peer.
const MAX_HELD: usize = 256 << 10;

/// What a fragment costs beside its bytes.
const COST: usize = 64;

/// Fragments whose packet is not whole after this time are given up (RFC 1122: 60 s at least; Linux: 30 s).
const LIFE_NS: u64 = 30_000_000_000;

/// Whose fragments they are: sender, receiver, protocol, number.
type Key = (IpAddr, IpAddr, u8, u32);

#[derive(Default)]
pub(super) struct Parts {
    open: BTreeMap<Key, Packet>,
    held: usize,
}

struct Packet {
    since_ns: u64,
    /// Bytes by offset.
    parts: BTreeMap<usize, Vec<u8>>,
    /// Length of the whole, once the last part is here.
    len: Option<usize>,
    held: usize,
}

impl Parts {
    /// Takes a fragment; returns the payload of its packet where that is whole now.
    pub(super) fn take(&mut self, now_ns: u64, header: &Header, bytes: &[u8]) -> Option<Vec<u8>> {
        let fragment = header.fragment?;
        let payload = bytes.get(header.transport_at..header.len)?;
        self.forget(now_ns);
        let key = (header.src, header.dst, header.protocol, fragment.id);
        let cost = payload.len() + COST;
        if self.held + cost > MAX_HELD || payload.is_empty() {
            return None;
        }
        let packet = self.open.entry(key).or_insert_with(|| Packet {
            since_ns: now_ns,
            parts: BTreeMap::new(),
            len: None,
            held: 0,
        });
        if !fragment.more {
            packet.len = Some(fragment.offset + payload.len());
        }
        // A second part for the same place is a copy, or a lie that nobody can tell from one.
        if let Entry::Vacant(place) = packet.parts.entry(fragment.offset) {
            place.insert(payload.to_vec());
            packet.held += cost;
            self.held += cost;
        }
        let len = packet.len?;
        let mut whole = Vec::with_capacity(len);
        for (offset, part) in &packet.parts {
            if *offset != whole.len() {
                return None;
            }
            whole.extend_from_slice(part);
        }
        if whole.len() != len || len > usize::from(u16::MAX) - V4_HEAD {
            return None;
        }
        if let Some(packet) = self.open.remove(&key) {
            self.held -= packet.held;
        }
        Some(whole)
    }

    fn forget(&mut self, now_ns: u64) {
        let held = &mut self.held;
        self.open.retain(|_, packet| {
            let keep = now_ns.saturating_sub(packet.since_ns) < LIFE_NS;
            if !keep {
                *held -= packet.held;
            }
            keep
        });
    }
}
