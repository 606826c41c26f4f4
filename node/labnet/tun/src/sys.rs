//! What the engine's thread asks of the system: waiting for packets to the nanosecond, its scheduling, its namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Waits for several descriptors.
pub(crate) struct Epoll(OwnedFd);

/// Most descriptors that are told at once.
const MAX_EVENTS: usize = 256;

impl Epoll {
    #[expect(unsafe_code, reason = "a system call that makes a descriptor")]
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: takes a number; the descriptor is nobody else's.
        unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Epoll(OwnedFd::from_raw_fd(fd))) }
        }
    }

    /// Tells of a descriptor that can be read from, by its token.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token)
    }

    /// Ends that.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0)
    }

    #[expect(unsafe_code, reason = "a system call that takes a pointer")]
    fn control(&self, operation: libc::c_int, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN.cast_unsigned(), u64: token };
        // SAFETY: the event lives until the call is over.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for at most this many nanoseconds, for ever where there are none, and adds the tokens of what can be read.
    #[expect(unsafe_code, reason = "a system call that fills an array")]
    pub(crate) fn wait(&self, timeout_ns: Option<u64>, tokens: &mut Vec<u64>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MAX_EVENTS];
        let timeout = timeout_ns.map(timespec);
        let timeout: *const libc::timespec = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let most = libc::c_int::try_from(MAX_EVENTS).unwrap_or(1);
        // SAFETY: events and timeout live until the call is over; a mask of signals is not given, so its size does not
        // count.
        let count = unsafe {
            let mask: *const libc::sigset_t = std::ptr::null();
            libc::syscall(libc::SYS_epoll_pwait2, self.0.as_raw_fd(), events.as_mut_ptr(), most, timeout, mask, 8usize)
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        };
        tokens.extend(events.iter().take(count).map(|event| event.u64));
        Ok(())
    }
}

fn timespec(ns: u64) -> libc::timespec {
    const SECOND: u64 = 1_000_000_000;
    let (seconds, rest) = (ns / SECOND, ns % SECOND);
    libc::timespec { tv_sec: seconds.try_into().unwrap_or(1 << 30), tv_nsec: rest.try_into().unwrap_or(0) }
}

/// Lets timers of this thread be exact: by default they may be 50 µs late.
#[expect(unsafe_code, reason = "a system call")]
pub(crate) fn exact_timers() {
    // SAFETY: takes numbers alone. That it does not work is seen in the lateness that is measured.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) };
}

/// Lets this thread go before all that is not real-time, or no longer; returns whether it may.
#[expect(unsafe_code, reason = "a system call that takes a pointer")]
pub(crate) fn set_realtime(on: bool) -> bool {
    let (policy, priority) = if on { (libc::SCHED_FIFO, 1) } else { (libc::SCHED_OTHER, 0) };
    // SAFETY: every field of the structure may be zero; it lives until the call is over. Zero means this thread.
    unsafe {
        let mut param: libc::sched_param = std::mem::zeroed();
        param.sched_priority = priority;
        libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const param) == 0
    }
}

/// Enters a network namespace with this thread.
#[expect(unsafe_code, reason = "a system call")]
pub(crate) fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers alone.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a network namespace and enters it with this thread.
#[expect(unsafe_code, reason = "a system call")]
pub(crate) fn leave_network() -> io::Result<()> {
    // SAFETY: takes a number.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads a packet into an empty buffer, as far as that has room, and the bytes before it into `head`; returns whether
/// there were so many.
#[expect(unsafe_code, reason = "reading into memory that was never written costs nothing, and is a pointer")]
pub(crate) fn read_packet<const N: usize>(
    fd: BorrowedFd<'_>,
    head: &mut [u8; N],
    packet: &mut Vec<u8>,
) -> io::Result<bool> {
    packet.clear();
    let room = packet.spare_capacity_mut();
    let parts = [
        libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: N },
        libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() },
    ];
    // SAFETY: both parts live until the call is over, with their true sizes, and nobody else sees them meanwhile.
    let size = unsafe { libc::readv(fd.as_raw_fd(), parts.as_ptr(), 2) };
    let size = usize::try_from(size).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written what it says that it has: after the head, so many bytes of the room.
    unsafe { packet.set_len(size.saturating_sub(N)) };
    Ok(size >= N)
}

/// Returns the CPU time of this thread in microseconds.
pub(crate) fn thread_cpu_us() -> u64 {
    use nix::sys::time::TimeValLike;
    let Ok(usage) = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD) else { return 0 };
    let spent = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    u64::try_from(spent).unwrap_or(0)
}
