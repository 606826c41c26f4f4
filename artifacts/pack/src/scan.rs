//! Reading a pack from front to back, past damage.

use std::io;
use std::sync::Arc;

use iptl_dag::block::is_hash_of;

use crate::files::FileAt;
use crate::record::{FIXED, Header, MAGIC, MAX_HASH, Salt, parse};

/// Bytes read at once where data is looked at.
const WINDOW: usize = 4 << 20;

/// Bytes read at once where only headers are.
const GLANCE: usize = 4 << 10;

/// A record that was met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) header: Header,
    pub(crate) offset: u32,
}

/// Goes through the records of a pack.
///
/// Where there is no record, the next one is looked for; its check makes sure that it is one. Records whose data does
/// not hash to them are passed over where data is looked at.
pub(crate) struct Scan {
    file: Arc<dyn FileAt>,
    salt: Salt,
    verify: bool,
    /// Length of the file, as of the beginning.
    len: u64,
    at: u64,
    /// End of the last good record.
    end: u64,
    /// Bytes that belong to no good record, up to `end`.
    pub(crate) damaged: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Scan {
    pub(crate) fn new(file: Arc<dyn FileAt>, salt: Salt, from: u64, verify: bool) -> io::Result<Scan> {
        let len = file.size()?;
        Ok(Scan { file, salt, verify, len, at: from, end: from, damaged: 0, window: Vec::new(), window_at: 0 })
    }

    /// Returns the end of the last record that was found.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Returns the next good record.
    pub(crate) fn next(&mut self) -> io::Result<Option<Found>> {
        while self.at < self.len {
            let offset = self.at;
            let Some(header) = self.header(offset)? else {
                self.at = self.find_magic(offset + 1)?;
                continue;
            };
            let (start, next) = (offset + header.len(), offset + header.record_len());
            if next > self.len {
                self.at += 1;
                continue;
            }
            self.at = next;
            if self.verify {
                let data = self.bytes(start, header.size as usize)?;
                if !is_hash_of(&header.hash, data) {
                    continue;
                }
            }
            self.damaged += offset - self.end;
            self.end = next;
            let offset = u32::try_from(offset).expect("a pack is shorter than 4 GiB");
            return Ok(Some(Found { header, offset }));
        }
        Ok(None)
    }

    fn header(&mut self, offset: u64) -> io::Result<Option<Header>> {
        let Ok(place) = u32::try_from(offset) else { return Ok(None) };
        let salt = self.salt;
        let bytes = self.bytes(offset, FIXED + MAX_HASH)?;
        Ok(parse(&salt, place, bytes))
    }

    /// Returns the next place from `from` on at which a record may begin.
    fn find_magic(&mut self, mut from: u64) -> io::Result<u64> {
        while from < self.len {
            let window = self.bytes(from, GLANCE)?;
            if let Some(found) = window.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) {
                return Ok(from + found as u64);
            }
            if window.len() < GLANCE {
                break;
            }
            from += (GLANCE - MAGIC.len() + 1) as u64;
        }
        Ok(self.len)
    }

    /// Returns bytes of the file, fewer than asked for at its end.
    fn bytes(&mut self, at: u64, count: usize) -> io::Result<&[u8]> {
        let count = count.min(usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX));
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if !(held.start <= at && at + count as u64 <= held.end) {
            let wanted = count.max(if self.verify { WINDOW } else { GLANCE });
            self.window.resize(wanted, 0);
            let read = self.file.read_at(at, &mut self.window)?;
            self.window.truncate(read);
            self.window_at = at;
        }
        let start = usize::try_from(at - self.window_at).expect("the window was moved there");
        Ok(&self.window[start..self.window.len().min(start + count)])
    }
}
