//! The system calls, and nothing that decides.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::protocol::End;

/// Signals that are for the workload, whoever sends them to the container.
const PASSED_ON: [i32; 6] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// What a name stands for.
pub(crate) enum Kind {
    File(u64),
    Directory,
    Link,
    Other,
}

/// Space of a file system.
pub(crate) struct Space {
    pub(crate) used: u64,
    pub(crate) is_full: bool,
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Keeps other processes of this user from tracing this one and from reading what is its own below `/proc`.
pub(crate) fn hide_from_others() -> io::Result<()> {
    // SAFETY: prctl with numbers alone touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

pub(crate) fn uid() -> u32 {
    // SAFETY: it cannot fail and touches no memory.
    unsafe { libc::getuid() }
}

pub(crate) fn processors() -> u32 {
    // SAFETY: it touches no memory of ours.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u32::try_from(count).unwrap_or(1)
}

/// Blocks the signals that are waited for and returns where they are read.
pub(crate) fn take_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before anything else looks at it; the new descriptor is nobody else's.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        for signal in PASSED_ON {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes a signal that came; zero is none.
pub(crate) fn next_signal(signals: BorrowedFd<'_>) -> i32 {
    let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
    match read(signals, &mut bytes) {
        // The number is the first field.
        Ok(size) if size == bytes.len() => bytes.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number)),
        Ok(_) | Err(_) => 0,
    }
}

/// Returns the ends to read and to write of a new pipe.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: two descriptors are written to an array of two, and are nobody else's.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

pub(crate) fn read(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: as many bytes are asked for as the slice has.
    let size = unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}

/// Reads where that does not wait.
pub(crate) fn read_if_ready(fd: RawFd, bytes: &mut [u8]) -> Option<usize> {
    // SAFETY: the descriptor is open for as long as this borrow lasts: its owner calls.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    is_readable(fd).then(|| read(fd, bytes).unwrap_or(0))
}

fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) {
    // SAFETY: the length is that of the slice.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
}

fn pollfd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [pollfd(fd.as_raw_fd(), libc::POLLIN)];
    poll(&mut fds, 0);
    fds[0].revents != 0
}

pub(crate) fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [pollfd(fd.as_raw_fd(), libc::POLLOUT)];
    poll(&mut fds, 0);
    fds[0].revents & libc::POLLOUT != 0
}

/// Waits for a signal, a word of the lablet or of a look, or the time; returns whether the first two came.
pub(crate) fn wait(
    signals: BorrowedFd<'_>,
    link: Option<BorrowedFd<'_>>,
    look: Option<BorrowedFd<'_>>,
    time: Duration,
) -> (bool, bool) {
    let raw = |fd: Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
    let mut fds = [
        pollfd(signals.as_raw_fd(), libc::POLLIN),
        pollfd(raw(link), libc::POLLIN),
        // Only that a look fills its pipe needs somebody: its end is a signal.
        pollfd(raw(look), libc::POLLIN),
    ];
    let count = if look.is_some_and(|fd| is_readable(fd) && !has_bytes(fd)) { 2 } else { 3 };
    // Rounded up, so that what is due is due when it returns.
    let ms = i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    poll(&mut fds[..count], ms);
    (fds[0].revents != 0, fds[1].revents != 0)
}

fn has_bytes(fd: BorrowedFd<'_>) -> bool {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD as _, &raw mut count) };
    count > 0
}

/// Sends bytes with descriptors; returns how many bytes went.
pub(crate) fn send_with_descriptors(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let size = size_of_val(fds);
    let mut control = [0u64; 8];
    assert!(size_of_val(&control) >= 64 && fds.len() <= 5, "room for five descriptors");
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all pointers are to what lives until sendmsg returns; the control buffer is aligned and large enough for
    // one header and five descriptors; bytes are only read.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size as u32) as _;
        std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), size);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Starts a program with these as stdout and stderr; fails with the error of the system where it cannot be executed.
pub(crate) fn spawn(argv: &[String], out: BorrowedFd<'_>, err: BorrowedFd<'_>) -> Result<i32, i32> {
    let errno = |e: io::Error| e.raw_os_error().unwrap_or(libc::EINVAL);
    let args: Vec<CString> =
        argv.iter().map(|arg| CString::new(arg.as_str())).collect::<Result<_, _>>().map_err(|_| libc::EINVAL)?;
    let Some(program) = args.first() else { return Err(libc::ENOENT) };
    let mut pointers: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let (failed, failing) = pipe().map_err(errno)?;
    // SAFETY: this process has one thread, and the child calls nothing but what is safe after a fork; all pointers are
    // to memory of this function, which the child has a copy of. The child never returns from here.
    let pid = unsafe {
        let pid = check(libc::fork()).map_err(errno)?;
        if pid == 0 {
            become_program(program, &pointers, out.as_raw_fd(), err.as_raw_fd());
            let errno = *libc::__errno_location();
            libc::write(failing.as_raw_fd(), (&raw const errno).cast(), size_of::<i32>());
            libc::_exit(127);
        }
        pid
    };
    drop(failing);
    let mut bytes = [0; 4];
    let failed = std::os::fd::AsFd::as_fd(&failed);
    loop {
        return match read(failed, &mut bytes) {
            // It was closed as the program took over.
            Ok(0) => Ok(pid),
            Ok(_) => {
                // SAFETY: it waits for a child of this process, without asking for its status.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
                Err(i32::from_ne_bytes(bytes))
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => Err(errno(e)),
        };
    }
}

/// Sets a variable that all programs get which are started from now on; one without a name, or with a zero byte, is none.
pub(crate) fn set_variable(name: &str, value: &str) {
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return;
    }
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var(name, value) };
}

/// # Safety
///
/// Only in a child right after a fork: it changes descriptors and signals of the process.
unsafe fn become_program(program: &CStr, argv: &[*const libc::c_char], out: RawFd, err: RawFd) {
    // SAFETY: nothing here allocates; paths are literals, and the caller's argv ends with a null.
    unsafe {
        // Should memory run out, the workload goes and not the process that says so.
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, c"1000".as_ptr().cast(), 4);
            libc::close(score);
        }
        libc::setsid();
        let nothing = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
        if nothing >= 0 {
            libc::dup2(nothing, 0);
            if nothing > 2 {
                libc::close(nothing);
            }
        }
        if libc::dup2(out, 1) < 0 || libc::dup2(err, 2) < 0 {
            return;
        }
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
        // Rust ignores it; programs expect otherwise.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execvp(program.as_ptr(), argv.as_ptr());
    }
}

pub(crate) fn signal(pid: i32, signal: i32) {
    // SAFETY: it touches no memory. The number of a child that was not waited for is still its own; another process that
    // got the number of one that has ended meanwhile is of the same container and user.
    unsafe { libc::kill(pid, signal) };
}

/// Kills every process of the container but this one, those that are being made too.
pub(crate) fn kill_others() {
    // SAFETY: it touches no memory; as the first process of a namespace this one reaches no further than that.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Stops every process of the container but this one, those that are being made too, or lets them go on.
pub(crate) fn stop_others(stop: bool) {
    let signal = if stop { libc::SIGSTOP } else { libc::SIGCONT };
    // SAFETY: as above.
    unsafe { libc::kill(-1, signal) };
}

fn status(status: i32) -> End {
    if libc::WIFSIGNALED(status) {
        End::Signalled(libc::WTERMSIG(status))
    } else {
        End::Exited(libc::WEXITSTATUS(status))
    }
}

/// Returns a child that has ended, where there is one.
pub(crate) fn ended_child() -> Option<(i32, End)> {
    let mut code = 0;
    // SAFETY: one int is written.
    let pid = unsafe { libc::waitpid(-1, &raw mut code, libc::WNOHANG) };
    (pid > 0).then(|| (pid, status(code)))
}

/// Waits for all children, which were killed.
pub(crate) fn reap_all() {
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
}

/// Looks at the space of the file system at a path; none where that is not one of its own.
pub(crate) fn space(path: &str) -> Option<Space> {
    let path = CString::new(path).ok()?;
    let mut found = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the structure is written where the call succeeds, and read only then.
    let found = unsafe {
        check(libc::statvfs(path.as_ptr(), found.as_mut_ptr())).ok()?;
        found.assume_init()
    };
    let used = found.f_blocks.saturating_sub(found.f_bfree).saturating_mul(found.f_frsize);
    Some(Space { used, is_full: found.f_bfree == 0 || (found.f_files > 0 && found.f_ffree == 0) })
}

/// Opens a directory, by its path or by its name in another, where it is one and no link.
pub(crate) fn open_directory(at: Option<&OwnedFd>, name: &CStr) -> io::Result<OwnedFd> {
    let at = at.map_or(libc::AT_FDCWD, AsRawFd::as_raw_fd);
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    open(at, name, flags, 0o700)
}

/// Opens a file by its name in a directory, where it is no link; never waits.
pub(crate) fn open_file(at: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    open(at.as_raw_fd(), name, flags, 0o600)
}

/// Opens; where the mode forbids that, gives its owner, which is this user, the mode `mode` first.
fn open(at: RawFd, name: &CStr, flags: i32, mode: libc::mode_t) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a null, and a descriptor that was opened is nobody else's.
    let open = || unsafe { check(libc::openat(at, name.as_ptr(), flags)).map(|fd| OwnedFd::from_raw_fd(fd)) };
    match open() {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
            // SAFETY: as above. A link is followed here, no further than this container; opening does not follow it.
            unsafe { libc::fchmodat(at, name.as_ptr(), mode, 0) };
            open()
        }
        other => other,
    }
}

/// Returns the names in a directory.
pub(crate) fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let fd = directory.try_clone()?;
    let mut names = Vec::new();
    // SAFETY: the stream owns its descriptor from fdopendir on and is closed at the end; entries are read before the
    // next call invalidates them.
    unsafe {
        let stream = libc::fdopendir(std::os::fd::IntoRawFd::into_raw_fd(fd));
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        libc::rewinddir(stream);
        loop {
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            let name = CStr::from_ptr((*entry).d_name.as_ptr());
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        libc::closedir(stream);
    }
    Ok(names)
}

/// Returns what a name in a directory stands for.
pub(crate) fn kind(at: &OwnedFd, name: &CStr) -> Option<Kind> {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the structure is written where the call succeeds, and read only then.
    let found = unsafe {
        check(libc::fstatat(at.as_raw_fd(), name.as_ptr(), found.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW)).ok()?;
        found.assume_init()
    };
    Some(match found.st_mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File(u64::try_from(found.st_size).unwrap_or(0)),
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    })
}
