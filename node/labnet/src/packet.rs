//! Packets: what one cell sends to another for its instances.
//!
//! The encoding is a fixed head and the payload, so that decoding bulk data copies nothing and no length can lie:
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | version (high half, 1), 8 where it is IPv6, and kind (low three bits) |
//! | 4 + 2 | address and port of the sending instance: its IPv4 address also over IPv6, which [says the rest](v6_of) |
//! | 4 + 2 | address and port of the receiving instance |
//! | 4 | TCP only: serial of the connection, chosen by who opened it |
//! | rest | payload; of `TcpWindow` four bytes of credit; of the others nothing |
//!
//! Numbers are big-endian. Packets of one connection are delivered in the order in which they were sent.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::{BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::directory::{home_of, v6_of};

/// Largest payload of a datagram in bytes: what IPv4 leaves of 65,535.
pub const MAX_DATAGRAM_SIZE: usize = 65_507;

/// Largest payload of one piece of a stream in bytes.
pub const MAX_CHUNK_SIZE: usize = 64 << 10;

/// Largest encoded packet in bytes.
pub const MAX_PACKET_SIZE: usize = TCP_HEAD + MAX_CHUNK_SIZE;

const VERSION: u8 = 1;

/// Beside the kind: both ends are IPv6.
const IS_V6: u8 = 0x08;
const UDP_HEAD: usize = 13;
const TCP_HEAD: usize = 17;

/// One direction of a connection, seen from who sends.
///
/// The serial tells a connection from an earlier one between the same ports, whose packets may still be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// Sender.
    pub src: SocketAddr,
    /// Receiver.
    pub dst: SocketAddr,
    /// Number that the opener gave to the connection.
    pub serial: u32,
}

impl Flow {
    /// Returns the other direction.
    pub fn reversed(self) -> Flow {
        Flow { src: self.dst, dst: self.src, serial: self.serial }
    }
}

/// What one cell sends to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Packet {
    /// A datagram.
    Udp {
        /// Sender.
        src: SocketAddr,
        /// Receiver.
        dst: SocketAddr,
        /// Payload.
        payload: Bytes,
    },
    /// Opens a connection.
    TcpOpen {
        /// Connection.
        flow: Flow,
    },
    /// The connection is open; both ends may send a window's worth.
    TcpAccept {
        /// Connection.
        flow: Flow,
    },
    /// Nobody listens.
    TcpRefuse {
        /// Connection.
        flow: Flow,
    },
    /// Bytes of the stream.
    TcpData {
        /// Connection.
        flow: Flow,
        /// The bytes, at least one.
        payload: Bytes,
    },
    /// The receiver has taken bytes out and may be sent so many more.
    TcpWindow {
        /// Connection.
        flow: Flow,
        /// Bytes, at least one.
        credit: u32,
    },
    /// The sender will send no more bytes.
    TcpFin {
        /// Connection.
        flow: Flow,
    },
    /// The connection is over.
    TcpReset {
        /// Connection.
        flow: Flow,
    },
}

/// Why bytes are not a packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than its head, or longer than its kind allows.
    #[error("packet of {size} bytes has the wrong length for its kind")]
    Length {
        /// Its length in bytes.
        size: usize,
    },
    /// Of another version.
    #[error("packet of version {version}, known is {VERSION}")]
    Version {
        /// Its version.
        version: u8,
    },
}

impl Packet {
    /// Returns the address of the sending instance.
    pub fn src(&self) -> SocketAddr {
        match self {
            Packet::Udp { src, .. } => *src,
            Packet::TcpOpen { flow }
            | Packet::TcpAccept { flow }
            | Packet::TcpRefuse { flow }
            | Packet::TcpData { flow, .. }
            | Packet::TcpWindow { flow, .. }
            | Packet::TcpFin { flow }
            | Packet::TcpReset { flow } => flow.src,
        }
    }

    /// Returns the address of the receiving instance.
    pub fn dst(&self) -> SocketAddr {
        match self {
            Packet::Udp { dst, .. } => *dst,
            Packet::TcpOpen { flow }
            | Packet::TcpAccept { flow }
            | Packet::TcpRefuse { flow }
            | Packet::TcpData { flow, .. }
            | Packet::TcpWindow { flow, .. }
            | Packet::TcpFin { flow }
            | Packet::TcpReset { flow } => flow.dst,
        }
    }

    /// Encodes the packet.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, serial, payload): (u8, Option<u32>, &[u8]) = match self {
            Packet::Udp { payload, .. } => (0, None, payload),
            Packet::TcpOpen { flow } => (1, Some(flow.serial), &[]),
            Packet::TcpAccept { flow } => (2, Some(flow.serial), &[]),
            Packet::TcpRefuse { flow } => (3, Some(flow.serial), &[]),
            Packet::TcpData { flow, payload } => (4, Some(flow.serial), payload),
            Packet::TcpWindow { flow, credit } => (5, Some(flow.serial), &credit.to_be_bytes()),
            Packet::TcpFin { flow } => (6, Some(flow.serial), &[]),
            Packet::TcpReset { flow } => (7, Some(flow.serial), &[]),
        };
        let mut bytes = Vec::with_capacity(TCP_HEAD + payload.len());
        let family = if self.dst().is_ipv6() { IS_V6 } else { 0 };
        bytes.put_u8(VERSION << 4 | family | kind);
        for end in [self.src(), self.dst()] {
            // Only lab addresses leave a cell; what else there might be is nobody's.
            bytes.put_slice(&home_of(end.ip()).octets());
            bytes.put_u16(end.port());
        }
        if let Some(serial) = serial {
            bytes.put_u32(serial);
        }
        bytes.put_slice(payload);
        bytes
    }

    /// Decodes a packet; the payload shares the memory of `bytes`. Never panics, whatever the bytes.
    pub fn decode(bytes: &Bytes) -> Result<Packet, PacketError> {
        let size = bytes.len();
        let wrong_length = PacketError::Length { size };
        let Some(head) = bytes.first_chunk::<UDP_HEAD>() else { return Err(wrong_length) };
        let version = head[0] >> 4;
        if version != VERSION {
            return Err(PacketError::Version { version });
        }
        let (kind, is_v6) = (head[0] & 0x07, head[0] & IS_V6 != 0);
        let end = |at: usize| {
            let ip = Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
            let ip = if is_v6 { IpAddr::V6(v6_of(ip)) } else { IpAddr::V4(ip) };
            SocketAddr::new(ip, u16::from_be_bytes([head[at + 4], head[at + 5]]))
        };
        let (src, dst) = (end(1), end(7));
        if kind == 0 {
            let payload = bytes.slice(UDP_HEAD..);
            return if payload.len() > MAX_DATAGRAM_SIZE {
                Err(wrong_length)
            } else {
                Ok(Packet::Udp { src, dst, payload })
            };
        }
        let Some(head) = bytes.first_chunk::<TCP_HEAD>() else { return Err(wrong_length) };
        let [.., a, b, c, d] = *head;
        let flow = Flow { src, dst, serial: u32::from_be_bytes([a, b, c, d]) };
        let payload = bytes.slice(TCP_HEAD..);
        let bare = |packet| if payload.is_empty() { Ok(packet) } else { Err(wrong_length.clone()) };
        match kind {
            1 => bare(Packet::TcpOpen { flow }),
            2 => bare(Packet::TcpAccept { flow }),
            3 => bare(Packet::TcpRefuse { flow }),
            4 if payload.is_empty() || payload.len() > MAX_CHUNK_SIZE => Err(wrong_length),
            4 => Ok(Packet::TcpData { flow, payload }),
            5 => match <[u8; 4]>::try_from(&payload[..]) {
                Ok(credit) => Ok(Packet::TcpWindow { flow, credit: u32::from_be_bytes(credit) }),
                Err(_) => Err(wrong_length),
            },
            6 => bare(Packet::TcpFin { flow }),
            _ => bare(Packet::TcpReset { flow }),
        }
    }
}
