//! What a switch keeps of each socket.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;

use super::buffer::Buffer;
use super::{NetError, SocketId, WINDOW_SIZE};
use crate::packet::Flow;

#[derive(Debug)]
pub(super) struct Socket {
    /// Instance that it belongs to, by lab address.
    pub(super) owner: Ipv4Addr,
    /// Address that it is bound to.
    pub(super) local: Option<SocketAddr>,
    /// Whether it holds a port, as all bound sockets do but accepted ones.
    pub(super) holds_port: bool,
    /// Whether it stands in the queue of [`Switch::poll_ready`](super::Switch::poll_ready).
    pub(super) announced: bool,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Udp(Udp),
    /// TCP, neither connected nor listening.
    Idle,
    Listening(Listener),
    Connecting(Connecting),
    /// Could not connect.
    Failed(NetError),
    Stream(Box<Stream>),
}

/// A datagram that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Sender.
    pub src: SocketAddr,
    /// Payload.
    pub payload: Bytes,
}

#[derive(Debug, Default)]
pub(super) struct Udp {
    pub(super) queue: VecDeque<Datagram>,
    /// Bytes in `queue`, each datagram with its overhead.
    pub(super) queued: usize,
    /// Bytes that wait to be taken to other cells.
    pub(super) outgoing: usize,
    /// A sender met a full `outgoing` and waits.
    pub(super) blocked: bool,
    /// Only peer that it talks to.
    pub(super) peer: Option<SocketAddr>,
    pub(super) dropped: u64,
}

#[derive(Debug, Default)]
pub(super) struct Listener {
    pub(super) backlog: usize,
    /// Established, not yet accepted.
    pub(super) ready: VecDeque<SocketId>,
    /// Openers for whom the backlog has no room yet. May hold some that have gone away.
    pub(super) waiting: VecDeque<Opener>,
    /// Openers refused because too many wait.
    pub(super) refused: usize,
    /// Openers of other cells in `waiting` that have not gone away: serial by connection.
    pub(super) remote: BTreeMap<(SocketAddr, SocketAddr), u32>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Opener {
    Local(SocketId),
    /// The flow as its opener sees it.
    Remote(Flow),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Connecting {
    /// The flow as we see it.
    pub(super) flow: Flow,
    /// Whether the other end is in another cell.
    pub(super) remote: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// In this cell.
    Local(SocketId),
    /// In another cell.
    Remote,
    /// Closed or reset: nothing that is written arrives.
    Gone,
}

#[derive(Debug)]
pub(super) struct Stream {
    /// The flow as we see it.
    pub(super) flow: Flow,
    pub(super) peer: Peer,
    /// Received, not yet read.
    pub(super) rx: Buffer,
    /// Bytes that a remote peer may still send.
    pub(super) rx_credit: usize,
    /// Bytes read since the remote peer was last given credit.
    pub(super) rx_taken: usize,
    /// The peer will send no more.
    pub(super) rx_end: bool,
    /// The owner wants no more: what arrives is thrown away.
    pub(super) rx_off: bool,
    /// Written, not yet taken to another cell.
    pub(super) tx: Buffer,
    /// Bytes that may still be written towards another cell.
    pub(super) tx_credit: usize,
    /// Stands in the queue of outgoing packets.
    pub(super) tx_queued: bool,
    /// The owner will write no more.
    pub(super) tx_end: bool,
    /// Another cell was told so.
    pub(super) fin_sent: bool,
    /// Reset by the peer.
    pub(super) broken: bool,
    /// A writer met a full window and waits.
    pub(super) blocked: bool,
}

impl Stream {
    pub(super) fn new(flow: Flow, peer: Peer) -> Stream {
        Stream {
            flow,
            peer,
            rx: Buffer::default(),
            rx_credit: WINDOW_SIZE,
            rx_taken: 0,
            rx_end: false,
            rx_off: false,
            tx: Buffer::default(),
            tx_credit: WINDOW_SIZE,
            tx_queued: false,
            tx_end: false,
            fin_sent: false,
            broken: false,
            blocked: false,
        }
    }

    pub(super) fn readable(&self) -> bool {
        !self.rx.is_empty() || self.rx_end || self.rx_off || self.broken
    }

    /// Ends the connection at this end without asking the peer.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
        self.peer = Peer::Gone;
        self.tx.clear();
    }
}
