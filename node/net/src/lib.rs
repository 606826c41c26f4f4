//! The swarm: one libp2p node behind a handle.
//!
//! This is the only crate that names libp2p. Its users see peers as [`iptl_dag::PeerId`], addresses as multiaddr text
//! and streams as tokio IO; nothing of libp2p crosses the boundary.
//!
//! * [`start`] builds the node and returns a cloneable [`Net`] and the channel of [`NetEvent`]s.
//! * `task` is the one task that owns the swarm; each family of swarm events has a file below it. It translates, and
//!   takes no decision that belongs to a scheduler, a store or a fetcher.
//! * `streams` is the behaviour behind [`Net::open`] and [`Net::accept`]: many negotiations at a time, a direct
//!   connection before a relayed one, queues that push back.
//! * `bitswap` drives the two cores of `iptl-bitswap` over such streams: [`Bitswap`].
//! * `swarm` puts transports and behaviours together, with every limit as a named constant.
//!
//! Start reading at [`Net`].

mod addr;
mod bitswap;
mod config;
mod error;
mod event;
mod net;
mod stream;
mod streams;
mod swarm;
mod task;

pub use bitswap::{Bitswap, BitswapSession, SessionEvent};
pub use config::{Config, KadMode, RelayFor, RelayLimits};
pub use error::{
    AcceptError, AddrError, DialError, ListenError, OpenError, ProvideError, PublishError, StartError, SubscribeError,
};
pub use event::{GossipMessage, GossipVerdict, NetEvent, PeerInfo, Place, Reach, Reached, Validate};
pub use net::{Net, start};
pub use stream::{Incoming, Stream};
