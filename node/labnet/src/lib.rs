//! The lab network as data: who has which address, what travels between instances, and what becomes of it on the way.
//!
//! [`Directory`] gives each instance its address and names, a function of the run's groups and never of placement.
//! Two ways lead from instance to instance:
//!
//! * [`Switch`] holds the sockets of the instances of one cell and moves bytes between them; what concerns another cell
//!   comes in and goes out as [`Packet`]s. Its links are clean: nothing is delayed or lost but datagrams for which
//!   there is no room.
//! * [`Engine`] carries IP packets through a [`Topology`] of realms, gateways and regions. [`Link`] is its model of a
//!   link, [`Nat`] of a gateway, [`Header`] what it reads of a packet. [`compile`](compile()) makes the topology of a run from
//!   its network's description.
//!
//! [`Hosts`] gives each instance of a cell an IP stack and has an [`Engine`] between them; [`Sockets`] is what it and
//! [`Switch`] have in common.
//!
//! An engine may have a [server of names](Engine::serve_names) in it, and [`Doors`] out of the lab.
//!
//! [`Faults`] does to an engine what a run's schedule asks for, [`Wish`] is what instances ask for themselves.
//!
//! [`Batch`] is what goes from cell to cell: packets, encoded, several in one.
//!
//! [`Probe`] sends packets over a network's links to see what they do.
//!
//! Nothing here touches a socket of the host, a file or a clock: both are told what happens and asked what follows.
//! Start reading at [`Switch`] or [`Engine`].

mod batch;
mod capture;
mod compile;
mod directory;
mod draw;
mod engine;
mod faults;
mod hosts;
mod ip;
mod link;
mod names;
mod nat;
mod packet;
mod ports;
mod probe;
mod slots;
mod sockets;
mod switch;
mod topology;
mod wish;

pub use batch::{BATCH_SIZE, Batch, Batching};
pub use capture::{Captured, PCAP_HEADER};
pub use compile::{CompileError, Compiled, MAX_GATEWAYS, PRIVATE_ADDR, clean, compile};
pub use directory::{Directory, DirectoryError, prefix_of, v4_of, v6_of};
pub use engine::{
    Away, Between, Door, Doors, Engine, EngineConfig, EngineStats, Lateness, LinkId, LinkStats, NAMES, Output,
    between_regions,
};
pub use faults::{Act, FaultError, Faults, Happened, Moved};
pub use hosts::Hosts;
pub use ip::{
    Fragment, Header, IcmpError, IpError, OFFLOAD_SIZE, Offload, Transport, embedded, fragments, source_fragments,
};
pub use link::{Fate, Jitter, Link, LinkConfig};
pub use nat::{Dependence, Nat, NatConfig, Ports, Refusal};
pub use packet::{Flow, MAX_CHUNK_SIZE, MAX_DATAGRAM_SIZE, MAX_PACKET_SIZE, Packet, PacketError};
pub use probe::{Probe, Probed};
pub use sockets::Sockets;
pub use switch::{
    Datagram, Dropped, Half, InstanceStats, Limits, NetError, Read, SocketId, Switch, UDP_QUEUE_SIZE, WINDOW_SIZE,
};
pub use topology::{
    Access, Addrs, GatewayId, MAX_REGIONS, MIN_MTU, MIN_MTU_V6, NodeId, RealmId, Topology, TopologyError,
};
pub use wish::{Filter, MAX_RULES, MAX_SHAPED, NoSubnet, Shape, Subnet, WISH_QUEUE_BYTES, Wish, WishError};
