//! The lab network as data: who has which address, what travels between instances, and the sockets of one cell.
//!
//! [`Directory`] gives each instance its address and names, a function of the run's groups and never of placement.
//! [`Packet`] is what one cell sends to another. [`Switch`] holds the sockets of the instances of one cell and moves
//! bytes between them; what concerns another cell comes in and goes out as packets.
//!
//! Nothing here touches a socket of the host, a file or a clock: a `Switch` is told what happens and asked what
//! follows. Links are clean: nothing is delayed or lost but datagrams for which there is no room. Start reading at
//! [`Switch`].

mod directory;
mod packet;
mod switch;

pub use directory::{Directory, DirectoryError};
pub use packet::{Flow, MAX_CHUNK_SIZE, MAX_DATAGRAM_SIZE, MAX_PACKET_SIZE, Packet, PacketError};
pub use switch::{
    Datagram, Dropped, Half, InstanceStats, Limits, NetError, Read, SocketId, Switch, UDP_QUEUE_SIZE, WINDOW_SIZE,
};
