//! The lab network for containers: its engine on TUN devices.
//!
//! A container has a network namespace with nothing in it. [`Namespace::open`] makes a device there, whose descriptor
//! works from anywhere; a [`Network`] is the thread that reads packets from the devices of a cell, lets the pure engine
//! of `iptl-labnet` decide what becomes of them, and writes them into others. Nothing else is connected to a device, so
//! no packet leaves the lab, and none comes in.
//!
//! `device.rs` makes devices, `namespace.rs` enters namespaces, `network.rs` is the thread, `alarm.rs` how long it may
//! sleep, `report.rs` what it says that the network did, `probe.rs` how exact the machine is by itself, `sys.rs` what it
//! asks of the system. Linux alone has such devices; on other systems containers run in a Linux machine of their own.
//! Start reading at [`Network`].

mod alarm;
#[allow(unsafe_code, reason = "requests to devices and netlink are pointers; each place says why it is sound")]
#[allow(unreachable_pub, reason = "the file belongs to two crates")]
mod device;
mod namespace;
mod network;
mod probe;
mod report;
mod sys;

pub use device::{Counters, Device, DeviceError, Interface, V6_SETTINGS};
pub use namespace::{Namespace, OpenError};
pub use network::{DEVICE_NAME, End, Network, Options, Outlets, now_ns};
pub use probe::empty_waits;
pub use report::{LabReport, NodeReport, Report};
