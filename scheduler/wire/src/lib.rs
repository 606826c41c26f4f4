//! What peers say to each other, and what a command line says to its node.
//!
//! [`session`] is the conversation between a lablet and an orchestrator, [`offer`] what travels by gossip, [`lab`]
//! joining and certificates, [`takeover`] several orchestrators, [`control`] the API of a node, [`exec`] commands in running instances, [`probe`] probes of networks,
//! [`frame`] how messages are cut out of a stream, and [`Verified`] the proof that a driver checked one.
//!
//! Every message is a version of a union and bounded in size; control records refuse unknown fields.

pub mod control;
pub mod exec;
pub mod frame;
pub mod lab;
pub mod offer;
pub mod probe;
pub mod session;
pub mod takeover;
pub mod time;
pub mod verified;

pub use iptl_dag::PeerId;
pub use time::{Timestamp, WallTime};
pub use verified::Verified;
