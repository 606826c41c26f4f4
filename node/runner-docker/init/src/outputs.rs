//! The directory of outputs: how full it is, and its files, handed over one after the other.
//!
//! The workload may have put anything there. Links are never followed and nothing but plain files is opened; even a
//! link that was followed would lead no further than this container.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::protocol::{FromInit, MAX_CHUNK, Order, Sample};
use crate::sys::{self, Kind};

/// Files that hold records rather than artifacts, as `iptl-testground` reads them.
const RECORDS: [&str; 3] = ["run.out", "results.out", "diagnostics.out"];

/// Directories below directories that are looked into.
const MAX_DEPTH: usize = 32;

/// Returns what of the limits is met.
pub(crate) fn met(order: &Order) -> u32 {
    let Some(space) = sys::space(&order.outputs) else { return 0 };
    let records = record_bytes(order);
    if records > order.record_bytes {
        return Sample::RECORDS;
    }
    if space.is_full {
        return Sample::ARTIFACTS;
    }
    // Blocks are counted, which is at least what the files hold.
    if space.used.saturating_sub(records) <= order.artifact_bytes {
        return 0;
    }
    let mut walk = Walk::default();
    let mut add_up = |_: &FromInit| Ok(());
    let _ = walk.directory(&order.outputs, order, false, &mut add_up);
    walk.met
}

fn record_bytes(order: &Order) -> u64 {
    let sizes = RECORDS.map(|name| std::fs::symlink_metadata(format!("{}/{name}", order.outputs)));
    sizes.into_iter().filter_map(Result::ok).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// Hands over all files, up to the limits; returns the last message, which is still to be sent.
pub(crate) fn send(order: &Order, say: &mut dyn FnMut(&FromInit) -> io::Result<()>) -> io::Result<FromInit> {
    let mut walk = Walk::default();
    walk.directory(&order.outputs, order, true, say)?;
    Ok(FromInit::Collected { links: walk.links, other: walk.other, met: walk.met })
}

#[derive(Default)]
struct Walk {
    artifacts: u64,
    records: u64,
    links: u32,
    other: u32,
    met: u32,
}

type Say<'a> = &'a mut dyn FnMut(&FromInit) -> io::Result<()>;

impl Walk {
    fn directory(&mut self, path: &str, order: &Order, read: bool, say: Say<'_>) -> io::Result<()> {
        let Ok(root) = CString::new(path) else { return Ok(()) };
        match sys::open_directory(None, &root) {
            Ok(root) => self.level(&root, "", 0, order, read, say),
            Err(_) => Ok(()),
        }
    }

    fn level(
        &mut self,
        directory: &OwnedFd,
        prefix: &str,
        depth: usize,
        order: &Order,
        read: bool,
        say: Say<'_>,
    ) -> io::Result<()> {
        // A workload may have taken its own rights away.
        let Ok(mut names) = sys::names(directory) else {
            self.other += 1;
            return Ok(());
        };
        names.sort();
        for name in names {
            if self.met & Sample::ARTIFACTS != 0 {
                return Ok(());
            }
            let Ok(text) = name.to_str() else {
                self.other += 1;
                continue;
            };
            let path = if prefix.is_empty() { text.to_owned() } else { format!("{prefix}/{text}") };
            match sys::kind(directory, &name) {
                Some(Kind::File(size)) if read => self.file(directory, &name, size, &path, order, say)?,
                Some(Kind::File(size)) => {
                    self.room_for(&path, size, order);
                }
                Some(Kind::Directory) if depth < MAX_DEPTH => match sys::open_directory(Some(directory), &name) {
                    Ok(below) => self.level(&below, &path, depth + 1, order, read, say)?,
                    Err(_) => self.other += 1,
                },
                Some(Kind::Link) => self.links += 1,
                Some(Kind::Directory | Kind::Other) | None => self.other += 1,
            }
        }
        Ok(())
    }

    /// Counts bytes of a file; returns how many of them are within the limit.
    fn room_for(&mut self, path: &str, size: u64, order: &Order) -> u64 {
        let (used, limit, flag) = if RECORDS.contains(&path) {
            // Their lines hold more than what is kept of them; the lablet counts that.
            (&mut self.records, order.record_bytes, Sample::RECORDS)
        } else {
            (&mut self.artifacts, order.artifact_bytes, Sample::ARTIFACTS)
        };
        let room = limit.saturating_sub(*used).min(size);
        *used += size;
        if room < size {
            self.met |= flag;
        }
        room
    }

    fn file(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        size: u64,
        path: &str,
        order: &Order,
        say: Say<'_>,
    ) -> io::Result<()> {
        let Ok(file) = sys::open_file(directory, name) else {
            self.other += 1;
            return Ok(());
        };
        let mut left = self.room_for(path, size, order);
        let mut empty = true;
        let mut chunk = vec![0; MAX_CHUNK];
        while left > 0 || empty {
            let most = usize::try_from(left).unwrap_or(MAX_CHUNK).min(MAX_CHUNK);
            let size = sys::read(file.as_fd(), &mut chunk[..most]).unwrap_or(0);
            if size == 0 && !empty {
                break;
            }
            say(&FromInit::Artifact { path: path.to_owned(), data: chunk[..size].to_vec() })?;
            empty = false;
            left -= size as u64;
            if size == 0 {
                break;
            }
        }
        Ok(())
    }
}
