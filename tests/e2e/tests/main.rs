//! End-to-end tests, one program: [`first_light`] is the whole path, [`against`] two results, [`bad_input`] what must fail
//! well, [`cars`] large streams, [`commands`] what needs no lab, [`containers`] images and what runs from them, [`exec`]
//! commands in running instances, [`exec_members`] those of members, [`faults`] what a lab does on purpose, [`feeding`] many
//! that want the same, [`imports`] those that are killed, [`interop`] other people's software, [`lifecycle`] what dies, waits,
//! joins and leaves while a lab works, [`manuals`] the documents that are executed, [`pins`] what is kept, [`ranges`] parts of
//! files, [`relayed`] lablets that only a third machine joins, [`resuming`] fetches that are cut, [`stacks`] plans on libp2p,
//! [`top`] the live view.

#![allow(clippy::unwrap_used, reason = "a test fails where an unwrap does")]

mod against;
mod audit;
mod bad_input;
mod cars;
mod commands;
#[macro_use]
mod containers;
mod exec;
mod exec_members;
mod faults;
mod feeding;
mod first_light;
mod imports;
mod interop;
mod lifecycle;
mod machines;
mod manuals;
mod network;
mod pins;
mod ranges;
mod relayed;
mod resuming;
mod sharing;
mod stacks;
mod top;
