//! How exact this machine is without any network.

use std::io;

use crate::network::now_ns;
use crate::sys::{self, Epoll};

/// Waits again and again for nothing, as a network does, and returns how late each wait ended, in nanoseconds. What a
/// network is later than this is its own doing.
///
/// # Errors
///
/// Fails where the system has no threads or descriptors left.
pub fn empty_waits(count: usize, wait_ns: u64, realtime: bool) -> io::Result<Vec<u64>> {
    let wait = move || -> io::Result<Vec<u64>> {
        sys::exact_timers();
        if realtime {
            sys::set_realtime(true);
        }
        let epoll = Epoll::new()?;
        let mut tokens = Vec::new();
        (0..count)
            .map(|_| {
                let due_ns = now_ns() + wait_ns;
                while let Some(left_ns) = due_ns.checked_sub(now_ns()).filter(|left_ns| *left_ns > 0) {
                    epoll.wait(Some(left_ns), &mut tokens)?;
                }
                Ok(now_ns() - due_ns)
            })
            .collect()
    };
    let thread = std::thread::Builder::new().name("labnet-probe".to_owned()).spawn(wait)?;
    thread.join().map_err(|_| io::Error::other("a thread that waits broke"))?
}
