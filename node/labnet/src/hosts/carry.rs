//! Packets from and to the instances of other cells: they come and go between regions, as [`Away`] says.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::Hosts;
use crate::engine::Away;

/// Bytes of packets that wait to leave the cell: what all windows of a hundred busy connections come to. What comes
/// beyond is lost, and counted as the lab's doing.
const MAX_LEAVING: usize = 32 << 20;

/// What a packet that waits takes beside its bytes.
const PACKET_COST: usize = size_of::<Away>();

/// Packets that wait to leave the cell.
#[derive(Default)]
pub(super) struct Leaving {
    packets: VecDeque<Away>,
    bytes: usize,
    pub(super) crowded_out: u64,
}

impl Hosts {
    /// Takes what the engine has for other cells, as far as there is room.
    pub(super) fn take_leaving(&mut self) {
        while let Some(packet) = self.engine.poll_away() {
            let cost = packet.bytes.len() + PACKET_COST;
            if self.leaving.bytes + cost > MAX_LEAVING {
                self.leaving.crowded_out += 1;
                self.engine.recycle(packet.bytes);
                continue;
            }
            self.leaving.bytes += cost;
            self.leaving.packets.push_back(packet);
        }
    }

    /// Returns the next packet for another cell, encoded, with the directory address of an instance there.
    pub(super) fn leave(&mut self) -> Option<(Ipv4Addr, Vec<u8>)> {
        self.settle();
        loop {
            let packet = self.leaving.packets.pop_front()?;
            self.leaving.bytes -= packet.bytes.len() + PACKET_COST;
            // Nodes have the numbers of instances.
            let id = self.directory.at(packet.to.index() as u64);
            let dst = id.and_then(|id| self.directory.addr(&id));
            let encoded = packet.encode();
            self.engine.recycle(packet.bytes);
            if let Some(dst) = dst {
                return Some((dst, encoded));
            }
        }
    }

    /// Takes a packet of another cell, whose caller answers for it that its origin is one of that cell's; false where
    /// it is no such packet.
    pub(super) fn come_in(&mut self, encoded: &[u8]) -> bool {
        let Some(packet) = Away::decode(encoded) else { return false };
        self.engine.handle_away(self.now_ns, packet);
        self.settle();
        true
    }
}
