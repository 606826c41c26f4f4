//! Makes the device of the lab network in the namespace of another container, and hands it to the lablet.
//!
//! A lablet that is nobody special on its machine may not enter a container's namespaces. It has the engine start this
//! program beside, in a container that shares the network of the other, may change that, and ends at once.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use crate::device::{self, Interface};
use crate::protocol::{DEVICE_SOCKET_NAME, LAB_DIR};
use crate::sys;

/// Makes the device; returns the status to end with. The words are the token that the lablet knows this by, the name, the
/// largest packet and the addresses, each with the length of its prefix: `10.0.0.1/8`.
pub(crate) fn make(words: &[String]) -> i32 {
    let [token, name, mtu, addrs @ ..] = words else { return 64 };
    let addr = |text: &String| {
        let (addr, prefix) = text.split_once('/')?;
        Some((addr.parse().ok()?, prefix.parse().ok()?))
    };
    let (Ok(mtu), Some(addrs)) = (mtu.parse(), addrs.iter().map(addr).collect()) else { return 64 };
    let made = device::open_here(&Interface { name: name.clone(), addrs, mtu });
    let hand_over = || -> io::Result<()> {
        let stream = UnixStream::connect(format!("{LAB_DIR}/{DEVICE_SOCKET_NAME}"))?;
        match &made {
            Ok(device) => {
                let fds = [device.tun.as_raw_fd(), device.netlink.as_raw_fd()];
                sys::send_with_descriptors(stream.as_fd(), token.as_bytes(), &fds).map(drop)
            }
            Err(e) => (&stream).write_all(format!("{token}{}: {}", e.what, e.source).as_bytes()),
        }
    };
    match hand_over() {
        Ok(()) => 0,
        Err(_) => 71,
    }
}
