//! Network namespaces, entered by threads of their own, so that no caller ever changes its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::device::{self, Device, Interface};
use crate::sys;

/// A network namespace. It exists at least as long as this.
#[derive(Debug)]
pub struct Namespace(File);

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The namespace is the one that this process is in: a lab address would be the host's.
    #[error("the network namespace is that of the lablet itself")]
    OwnNamespace,
    /// The namespace cannot be entered.
    #[error("entering the network namespace")]
    Enter(#[source] io::Error),
    /// A step of making the device did not work.
    #[error("{what}")]
    Device {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Namespace {
    /// Opens the namespace of a process.
    ///
    /// # Errors
    ///
    /// Fails where there is no such process, or it may not be looked into.
    pub fn of_process(pid: u32) -> io::Result<Namespace> {
        Namespace::at(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// Opens the namespace behind a path: `/run/netns/NAME`.
    ///
    /// # Errors
    ///
    /// Fails where there is none.
    pub fn at(path: &Path) -> io::Result<Namespace> {
        File::open(path).map(Namespace)
    }

    /// Makes a namespace with nothing in it but a loopback that is down.
    ///
    /// # Errors
    ///
    /// Fails without the privilege to do that.
    pub fn empty() -> io::Result<Namespace> {
        let make = || sys::leave_network().and_then(|()| Namespace::at(Path::new("/proc/thread-self/ns/net")));
        on_a_thread(make)?
    }

    /// Tells whether it is the namespace of this process.
    ///
    /// # Errors
    ///
    /// Fails where that cannot be seen.
    pub fn is_own(&self) -> io::Result<bool> {
        let (own, this) = (std::fs::metadata("/proc/self/ns/net")?, self.0.metadata()?);
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }

    /// Does something in it. Sockets that are made there stay there, whoever uses them.
    ///
    /// # Errors
    ///
    /// Fails where it cannot be entered.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| sys::enter_network(self.as_fd()).map(|()| act()))?
    }

    /// Makes a device in it, or attaches to one that an earlier life of the lablet left there.
    ///
    /// # Errors
    ///
    /// Returns which step did not work.
    pub fn open(&self, interface: &Interface) -> Result<Device, OpenError> {
        if self.is_own().map_err(OpenError::Enter)? {
            return Err(OpenError::OwnNamespace);
        }
        let made = self.run(|| device::open_here(interface)).map_err(OpenError::Enter)?;
        made.map_err(|e| OpenError::Device { what: e.what, source: e.source })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn on_a_thread<T: Send>(act: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("labnet-ns".to_owned()).spawn_scoped(scope, act)?;
        thread.join().map_err(|_| io::Error::other("a thread in a network namespace broke"))
    })
}
