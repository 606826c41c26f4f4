//! The plan contract of containers and native programs: what programs written for Testground speak, and the native
//! back end of our own SDK. The page `docs/spec/testground.md` says it for people.
//!
//! [`mod@environment`] is what an instance starts with. [`conversation`] is the sync protocol of one connection as a pure
//! state machine: messages in, calls to the lab out, and back; [`keys`] are the names in it, [`request`] and
//! [`reply`] its JSON. [`server`] puts sockets around conversations: one [`SyncServer`] for each instance, on a
//! listener that the runner has opened where only this instance can reach it. [`journal`] reads what an instance says
//! on stdout and leaves in files, and says how it ended; [`outputs`] opens those files.
//!
//! Nothing here starts a program; that is a runner's work, in these steps:
//!
//! 1. It fills in a [`Setting`], opens a listener on loopback in the instance's network namespace, and starts a
//!    [`SyncServer`] on it, whose observer hands events to the instance's [`Journal`]
//!    ([`published`](Journal::published)), and whose shaper puts in force what the program asks of its network.
//! 2. It starts the program with [`environment()`](environment()), where [`SYNC_HOST`] leads to that listener.
//! 3. It gives each line of stdout to [`Journal::line`], which says what of it is log, and each
//!    [`SyncReply`](iptl_runner::SyncReply) to [`SyncServer::reply`].
//! 4. When the program has ended it calls [`SyncServer::finish`], [`read_outputs`] and [`Journal::finish`], and the
//!    instance ended as [`Journal::exit`] says.
//!
//! Start reading at [`conversation::Conversation`].

pub mod conversation;
pub mod environment;
pub mod journal;
pub mod keys;
mod network;
pub mod outputs;
mod prompt;
pub mod reply;
pub mod request;
pub mod server;

pub use conversation::Conversation;
pub use environment::{Setting, environment};
pub use journal::Journal;
pub use keys::Identity;
pub use outputs::read_outputs;
pub use reply::Dialect;
pub use server::{Asked, Seen, Stake, SyncServer};

/// Name by which instances look for the sync service; the published Rust crate knows no other.
pub const SYNC_HOST: &str = "testground-sync-service";

/// Port of the sync service; the published Rust crate knows no other.
pub const SYNC_PORT: u16 = 5050;
