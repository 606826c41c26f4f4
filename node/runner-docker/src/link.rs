//! The connection with the init of one container.
//!
//! The lablet listens and init connects, over a socket in a directory that is mounted into the container read-only.
//! While a workload runs there is no listener: what could connect then is the workload. After the connection broke,
//! or after a restart of the lablet, init shows the token that it was given before its workload ran.

use std::fs::{File, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iptl_labnet_tun::Device;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::egress::Sockets;
use crate::protocol::{
    DEVICE_SOCKET_NAME, FromInit, HELLO_DESCRIPTORS, MAX_FRAME, Phase, SOCKET_NAME, ToInit, Token, VERSION,
};

/// Time in which who connects has to say what it is.
const HELLO: Duration = Duration::from_secs(5);

/// Time after which a connection is taken again that could not be taken for want of something.
const AGAIN: Duration = Duration::from_millis(100);

/// Time in which init takes what it is told; it waits for nothing that could be longer.
const SEND: Duration = Duration::from_secs(20);

/// Where an init connects.
pub(crate) struct Door {
    listener: UnixListener,
    path: PathBuf,
}

/// A connection with an init.
pub(crate) struct Link {
    stream: UnixStream,
    received: Vec<u8>,
    sending: Vec<u8>,
}

/// What comes with a connection.
pub(crate) struct Greeting {
    pub(crate) phase: Phase,
    pub(crate) uid: u32,
    pub(crate) listener: TcpListener,
    pub(crate) out: OwnedFd,
    pub(crate) err: OwnedFd,
    pub(crate) egress: Option<Sockets>,
}

impl Door {
    /// Opens the socket in a directory.
    pub(crate) fn open(dir: &Path) -> io::Result<Door> {
        Door::named(dir, SOCKET_NAME)
    }

    /// Opens the socket in a directory over which a device comes.
    pub(crate) fn for_device(dir: &Path) -> io::Result<Door> {
        Door::named(dir, DEVICE_SOCKET_NAME)
    }

    fn named(dir: &Path, name: &str) -> io::Result<Door> {
        // Paths of sockets are short: this one goes through a descriptor.
        let dir = File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        // The user of the container is none of this machine; the directories above this one are the lablet's alone.
        std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?.join(name);
        Ok(Door { listener, path })
    }

    /// Waits for the device that comes with this token, or for the reason for which there is none. Who shows another is
    /// sent away: a workload that runs on reaches this door too. Safe to drop half-way.
    pub(crate) async fn take_device(&self, token: &str) -> io::Result<Device> {
        loop {
            let stream = self.take().await?;
            let mut link = Link { stream, received: Vec::new(), sending: Vec::new() };
            let Ok(Ok(fds)) = tokio::time::timeout(HELLO, link.receive_descriptors()).await else { continue };
            let Some(said) = link.received.strip_prefix(token.as_bytes()) else { continue };
            let mut fds = fds.into_iter();
            return match (fds.next(), fds.next()) {
                (Some(tun), Some(netlink)) => Ok(Device { tun, netlink }),
                _ => Err(io::Error::other(String::from_utf8_lossy(said).into_owned())),
            };
        }
    }

    /// Waits for an init that shows this token; others are sent away. Safe to drop half-way.
    pub(crate) async fn accept(&self, token: Token) -> io::Result<(Link, Greeting)> {
        loop {
            let stream = self.take().await?;
            if let Ok(Ok(Some(greeted))) = tokio::time::timeout(HELLO, greet(stream, token)).await {
                return Ok(greeted);
            }
        }
    }
}

impl Door {
    /// Waits for somebody. Where a machine has no room for one more descriptor now, there is some later: whoever waits in
    /// front of the door is a container that runs, and not lost for that.
    async fn take(&self) -> io::Result<UnixStream> {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return Ok(stream),
                Err(e) if is_passing(&e) => {
                    tracing::warn!(error = %e, "a container is let wait");
                    tokio::time::sleep(AGAIN).await;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// Tells whether a connection may be taken later that could not be taken.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ECONNABORTED | libc::EINTR)
    )
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn greet(stream: UnixStream, expected: Token) -> io::Result<Option<(Link, Greeting)>> {
    let mut link = Link { stream, received: Vec::new(), sending: Vec::new() };
    let fds = link.receive_descriptors().await?;
    let Some(FromInit::Hello { version, token, phase, uid }) = link.receive().await? else { return Ok(None) };
    if version != VERSION || token != expected {
        return Ok(None);
    }
    let egress = fds.len() == HELLO_DESCRIPTORS + 2;
    if fds.len() != HELLO_DESCRIPTORS && !egress {
        return Ok(None);
    }
    let mut fds = fds.into_iter();
    let (Some(listener), Some(out), Some(err)) = (fds.next(), fds.next(), fds.next()) else { return Ok(None) };
    let egress = match (fds.next(), fds.next()) {
        (Some(tcp), Some(udp)) => Some(Sockets { tcp: tcp.into(), udp: udp.into() }),
        _ => None,
    };
    Ok(Some((link, Greeting { phase, uid, listener: listener.into(), out, err, egress })))
}

impl Link {
    /// Returns the next message; none where the connection is over. Safe to drop half-way.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<FromInit>> {
        loop {
            if let Some(head) = self.received.first_chunk::<4>() {
                let length = u32::from_le_bytes(*head) as usize;
                if length > MAX_FRAME {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
                }
                if let Some(frame) = self.received.get(4..4 + length) {
                    let message = FromInit::decode(frame)
                        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame says nothing"))?;
                    self.received.drain(..4 + length);
                    if self.received.is_empty() {
                        // An idle container keeps no buffer.
                        self.received = Vec::new();
                    }
                    return Ok(Some(message));
                }
            }
            self.stream.readable().await?;
            self.received.reserve(if self.received.is_empty() { 512 } else { 64 << 10 });
            match self.stream.try_read_buf(&mut self.received) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends a message. Not to be dropped half-way.
    pub(crate) async fn send(&mut self, message: &ToInit) -> io::Result<()> {
        self.sending.clear();
        message.encode(&mut self.sending);
        match tokio::time::timeout(SEND, self.stream.write_all(&self.sending)).await {
            Ok(sent) => sent,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Reads the first bytes with the descriptors that come with them.
    async fn receive_descriptors(&mut self) -> io::Result<Vec<OwnedFd>> {
        let stream = &self.stream;
        let (bytes, fds) = stream.async_io(Interest::READABLE, || receive_with_descriptors(stream.as_raw_fd())).await?;
        self.received.extend_from_slice(&bytes);
        Ok(fds)
    }
}

/// Receives up to 512 bytes, and the descriptors that came with them.
#[expect(unsafe_code, reason = "descriptors come only by recvmsg, which takes pointers")]
fn receive_with_descriptors(socket: i32) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = [0u8; 512];
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut fds = Vec::new();
    // SAFETY: all pointers are to locals that outlive the call, with their true sizes. The kernel writes descriptors
    // that are nobody else's, and says by the length of each header how many there are.
    let size = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let size = libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT);
        if size < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<i32>();
                for index in 0..length / size_of::<i32>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        usize::try_from(size).unwrap_or(0)
    };
    Ok((bytes[..size].to_vec(), fds))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Where the process of the test below may open few files.
    const FEW_FILES: &str = "IPTL_TEST_FEW_FILES";

    #[test]
    fn who_comes_while_no_file_can_be_opened_is_let_wait() {
        if std::env::var_os(FEW_FILES).is_none() {
            let test = std::env::current_exe().unwrap();
            let name = "link::tests::who_comes_while_no_file_can_be_opened_is_let_wait";
            let mut child = Command::new("sh");
            child.args(["-c", "ulimit -n 64 && exec \"$0\" --exact \"$1\""]).arg(test).arg(name);
            let output = child.env(FEW_FILES, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let door = Door::open(dir.path()).unwrap();
            let _waits = std::os::unix::net::UnixStream::connect(dir.path().join(SOCKET_NAME)).unwrap();
            let mut held = Vec::new();
            while let Ok(file) = File::open("/dev/null") {
                held.push(file);
            }
            let taken = tokio::time::timeout(3 * AGAIN, door.take()).await;
            assert!(taken.is_err(), "it was not waited for: {:?}", taken.map(|taken| taken.map(|_| ())));
            drop(held);
            door.take().await.unwrap();
        });
    }
}
