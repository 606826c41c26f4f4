//! Waiting for many sockets of std at once, which std itself cannot: `poll(2)`.
//!
//! Set the sockets non-blocking, ask [`wait`] which of them have something, and try those.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// What to wait for on a socket.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    fd: RawFd,
    events: i16,
}

impl Interest {
    /// Waits until there is something to read or to accept, or the other side is gone.
    pub fn read(socket: &impl AsRawFd) -> Interest {
        Interest { fd: socket.as_raw_fd(), events: sys::POLLIN }
    }

    /// Waits until something can be written.
    pub fn write(socket: &impl AsRawFd) -> Interest {
        Interest { fd: socket.as_raw_fd(), events: sys::POLLOUT }
    }

    /// Waits for either.
    pub fn read_write(socket: &impl AsRawFd) -> Interest {
        Interest { fd: socket.as_raw_fd(), events: sys::POLLIN | sys::POLLOUT }
    }
}

/// Blocks until a socket has what it is waited for or the time is over; returns which have, by position.
///
/// Times are rounded up to milliseconds. A socket that is broken counts as having something, so that trying it tells.
///
/// # Errors
///
/// Fails as `poll(2)` does.
pub fn wait(interests: &[Interest], timeout: Duration) -> io::Result<Vec<usize>> {
    let timeout_ms = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
    if interests.is_empty() {
        std::thread::sleep(timeout);
        return Ok(Vec::new());
    }
    let mut fds: Vec<sys::PollFd> =
        interests.iter().map(|i| sys::PollFd { fd: i.fd, events: i.events, revents: 0 }).collect();
    // SAFETY: the array is valid for its length during the call, and the descriptors are open or reported as bad.
    let ready = unsafe { sys::poll(fds.as_mut_ptr(), fds.len() as sys::Count, timeout_ms) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(Vec::new()) } else { Err(error) };
    }
    Ok(fds.iter().enumerate().filter(|(_, fd)| fd.revents != 0).map(|(at, _)| at).collect())
}

mod sys {
    /// `struct pollfd`, the same on all targets.
    #[repr(C)]
    pub(super) struct PollFd {
        pub(super) fd: i32,
        pub(super) events: i16,
        pub(super) revents: i16,
    }

    pub(super) const POLLIN: i16 = 1;

    #[cfg(target_os = "wasi")]
    pub(super) const POLLOUT: i16 = 2;
    #[cfg(not(target_os = "wasi"))]
    pub(super) const POLLOUT: i16 = 4;

    #[cfg(target_os = "macos")]
    pub(super) type Count = std::ffi::c_uint;
    #[cfg(not(target_os = "macos"))]
    pub(super) type Count = std::ffi::c_ulong;

    unsafe extern "C" {
        pub(super) fn poll(fds: *mut PollFd, count: Count, timeout_ms: std::ffi::c_int) -> std::ffi::c_int;
    }
}
