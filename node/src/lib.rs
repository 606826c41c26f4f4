//! A node of the lab: the drivers that own the pure cores and carry out what they decide.
//!
//! [`start`] makes a node of a [`Home`]: a store, a swarm and the roles that the home's membership gives. Its tasks:
//!
//! * [`orchestrator`] owns the scheduler's core, the log of [`facts`] and the results;
//! * [`lablet`] owns the other core and the cells; [`carrier`] carries lab packets between cells;
//! * [`fetch`] brings DAGs here: providers × protocols → verified blocks; [`keeper`] pins, [`announce`] tells the DHT;
//! * [`control`] answers whoever commands the node; [`admission`] and [`join`] are the lab's door;
//! * [`members`] knows who is in the lab, [`readers`] who may read which block, [`serving`] serves
//!   them, [`traffic`] counts what moved;
//! * [`links`] opens streams to peers, this node itself included.
//!
//! A driver task never waits for a peer: what takes long runs beside it and reports back as a command. Start reading at
//! [`node`].

pub mod admission;
pub mod announce;
mod carrier;
pub mod clock;
mod control;
pub mod facts;
pub mod fetch;
pub mod framed;
mod gate;
pub mod home;
mod hush;
pub mod join;
pub mod keeper;
mod lablet;
pub mod links;
pub mod members;
mod node;
mod orchestrator;
mod probe;
pub mod rate;
pub mod readers;
mod relaying;
mod serving;
pub mod traffic;

pub use home::{Home, HomeError};
pub use iptl_net::StartError as SwarmError;
pub use node::{Options, Running, StartError, start};
