//! The contract from outside: conversations, servers with clients at real sockets, journals, and programs on the
//! published SDKs as witnesses.
//!
//! [`lab`] is a lab of one cell around servers; [`go`] a client that sends what the Go SDK sends, frame by frame.

#![allow(unreachable_pub, reason = "a test has no outside; `pub` here says what a module means for its siblings")]
#![allow(clippy::unwrap_used, reason = "what a test stands on may panic as well as the test")]

mod bad_input;
mod conversation;
mod environment;
mod go;
mod journal;
mod lab;
mod schedules;
mod server;
mod witnesses;
