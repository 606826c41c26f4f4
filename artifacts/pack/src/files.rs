//! What the store needs of a file system, and the real one.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::{Errno, ReadWriteFlags};

/// Most pieces that one system call takes (`IOV_MAX` of Linux).
const MAX_PIECES: usize = 1024;

/// A directory of files, flat.
pub trait Files: Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing; where it is not there, [`io::ErrorKind::NotFound`].
    fn open(&self, name: &str) -> io::Result<Arc<dyn FileAt>>;

    /// Makes an empty file, or empties the one that is there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>>;

    /// Lists the names of all files.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Removes a file; those who have it open go on.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable: what was made and removed before.
    fn sync_names(&self) -> io::Result<()>;

    /// Returns the bytes that may still be written.
    fn available(&self) -> io::Result<u64>;
}

/// A file that is read and written at places.
pub trait FileAt: Debug + Send + Sync + 'static {
    /// Returns its length.
    fn size(&self) -> io::Result<u64>;

    /// Fills `out` from `at` on; returns how much there was, less than asked only at the end of the file.
    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<usize>;

    /// As [`FileAt::read_at`], where all of it is in memory; otherwise `None`, without waiting for the disk.
    fn read_now(&self, at: u64, out: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes all of `pieces`, one after the other, from `at` on. After an error some of it may be written.
    fn write_at(&self, at: u64, pieces: &[&[u8]]) -> io::Result<()>;

    /// Sets the length.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes a handle on an existing directory.
    pub fn new(path: impl Into<PathBuf>) -> Directory {
        Directory { path: path.into() }
    }
}

impl Files for Directory {
    fn open(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        Ok(Arc::new(OnDisk(File::options().read(true).write(true).open(self.path.join(name))?)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        let path = self.path.join(name);
        Ok(Arc::new(OnDisk(File::options().read(true).write(true).create(true).truncate(true).open(path)?)))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is no text is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn available(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug)]
struct OnDisk(File);

impl FileAt for OnDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < out.len() {
            match self.0.read_at(&mut out[done..], at + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn read_now(&self, at: u64, out: &mut [u8]) -> io::Result<Option<usize>> {
        let wanted = out.len();
        match rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(out)], at, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == wanted => Ok(Some(read)),
            // Only a part is in memory, the file ends, or its file system cannot tell: the slow way finds out.
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, mut at: u64, pieces: &[&[u8]]) -> io::Result<()> {
        for group in pieces.chunks(MAX_PIECES) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut rest = slices.as_mut_slice();
            while rest.iter().any(|slice| !slice.is_empty()) {
                match rustix::io::pwritev(&self.0, rest, at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        at += written as u64;
                        IoSlice::advance_slices(&mut rest, written);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
