//! Encoded packets that travel together: what is due at one time costs one message.

use std::net::Ipv4Addr;

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::directory::{Directory, v4_of};
use crate::engine::Away;
use crate::packet::Packet;

/// Bytes from which a batch takes no more: one more of the largest packets makes it less than twice as long.
pub const BATCH_SIZE: usize = 48 << 10;

/// Bytes before each packet: its length, big-endian.
const HEAD: usize = 4;

/// Encoded packets, each behind its length, in one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
    count: usize,
}

/// A batch that is being made.
#[derive(Debug, Default)]
pub struct Batching {
    bytes: BytesMut,
    count: usize,
}

impl Batching {
    /// Adds a packet.
    pub fn push(&mut self, packet: &[u8]) {
        let Ok(length) = u32::try_from(packet.len()) else { return };
        if self.bytes.is_empty() {
            self.bytes.reserve(HEAD + packet.len());
        }
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(packet);
        self.count += 1;
    }

    /// Returns the batch where it takes no more, and begins another.
    pub fn take_full(&mut self) -> Option<Batch> {
        (self.bytes.len() >= BATCH_SIZE).then(|| self.take()).flatten()
    }

    /// Returns the batch, where there is something in it, and begins another.
    pub fn take(&mut self) -> Option<Batch> {
        let count = std::mem::take(&mut self.count);
        (count > 0).then(|| Batch { bytes: std::mem::take(&mut self.bytes).freeze(), count })
    }
}

impl Batch {
    /// Makes the batch of one packet.
    pub fn of(packet: &[u8]) -> Batch {
        let mut batching = Batching::default();
        batching.push(packet);
        batching.take().unwrap_or_default()
    }

    /// Reads a batch; none where the bytes are not those of whole packets. Never panics, whatever they are.
    pub fn decode(bytes: Bytes) -> Option<Batch> {
        let (mut rest, mut count) = (&bytes[..], 0);
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk::<HEAD>()?;
            rest = after.get(usize::try_from(u32::from_be_bytes(*length)).ok()?..)?;
            count += 1;
        }
        Some(Batch { bytes, count })
    }

    /// Returns the bytes, as [`decode`](Batch::decode) reads them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns how many packets there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the packets, in their order; none is copied.
    pub fn packets(&self) -> impl Iterator<Item = Bytes> + use<> {
        let mut rest = self.bytes.clone();
        std::iter::from_fn(move || {
            if rest.remaining() < HEAD {
                return None;
            }
            let length = rest.get_u32() as usize;
            Some(rest.split_to(length.min(rest.len())))
        })
    }

    /// Changes packets where they lie, without changing their lengths.
    pub fn edit(self, mut change: impl FnMut(&mut [u8])) -> Batch {
        let Batch { bytes, count } = self;
        let mut bytes = BytesMut::from(bytes);
        let mut rest = &mut bytes[..];
        while let Some((length, after)) = std::mem::take(&mut rest).split_first_chunk_mut::<HEAD>() {
            let length = (u32::from_be_bytes(*length) as usize).min(after.len());
            let (packet, after) = after.split_at_mut(length);
            change(packet);
            rest = after;
        }
        Batch { bytes: bytes.freeze(), count }
    }

    /// Returns those packets that are wanted; nothing is copied where all are.
    pub fn retain(self, mut wanted: impl FnMut(&Bytes) -> bool) -> Batch {
        let kept: Vec<bool> = self.packets().map(|packet| wanted(&packet)).collect();
        if kept.iter().all(|kept| *kept) {
            return self;
        }
        let mut batching = Batching::default();
        let packets = self.packets().zip(kept).filter_map(|(packet, kept)| kept.then_some(packet));
        packets.for_each(|packet| batching.push(&packet));
        batching.take().unwrap_or_default()
    }

    /// Sorts packets by somebody for whom they are, in their order; those for nobody are left out. Nothing is copied
    /// where all are for one.
    pub fn split<K: Ord + Clone>(self, mut whose: impl FnMut(&Bytes) -> Option<K>) -> Vec<(K, Batch)> {
        let keys: Vec<Option<K>> = self.packets().map(|packet| whose(&packet)).collect();
        if let Some(Some(first)) = keys.first()
            && keys.iter().all(|key| key.as_ref() == Some(first))
        {
            return vec![(first.clone(), self)];
        }
        let mut sorted = std::collections::BTreeMap::<K, Batching>::new();
        for (packet, key) in self.packets().zip(keys) {
            if let Some(key) = key {
                sorted.entry(key).or_default().push(&packet);
            }
        }
        sorted.into_iter().filter_map(|(key, mut batching)| Some((key, batching.take()?))).collect()
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Batch, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        Batch::decode(bytes).ok_or_else(|| serde::de::Error::custom("packets that are not whole"))
    }
}

impl Directory {
    /// Returns the address of an instance for whose cell an encoded packet is; none where it is none.
    pub fn destination(&self, packet: &Bytes) -> Option<Ipv4Addr> {
        match Away::target_of(packet) {
            // Nodes have the numbers of instances.
            Some(node) => self.addr(&self.at(node.index() as u64)?),
            None => v4_of(Packet::decode(packet).ok()?.dst().ip()),
        }
    }
}
