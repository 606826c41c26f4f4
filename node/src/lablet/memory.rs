//! What a cell's sync must not forget, in a file beside the cell's scratch: its instances may outlive the lablet.
//!
//! A record reaches the kernel before anything that follows from it leaves: it survives the lablet, not the machine,
//! which no instance survives either.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use iptl_dag::codec;
use iptl_sync::Record;

/// Longest record in bytes that is believed: the largest payload with its names.
const MAX_RECORD: usize = 2 << 20;

/// The file of a cell.
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    path: PathBuf,
}

impl Memory {
    /// Opens the file, made where there is none, and returns what stands in it. A record that was not written whole
    /// was not acted on, and is cut off.
    pub(super) fn open(path: &Path) -> io::Result<(Memory, Vec<Record>)> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes)?;
        let (records, whole) = read(&bytes);
        file.set_len(whole as u64)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(whole as u64))?;
        Ok((Memory { file, path: path.to_owned() }, records))
    }

    /// Writes records behind the others, in one piece.
    pub(super) fn add(&mut self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            let record = codec::encode(record);
            bytes.extend(u32::try_from(record.len()).map_err(io::Error::other)?.to_le_bytes());
            bytes.extend(record);
        }
        self.file.write_all(&bytes)
    }

    /// Makes it as if there was none: a cell is not adopted without it.
    pub(super) fn give_up(&self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::error!(%error, path = %self.path.display(), "cannot remove what is not whole");
        }
    }
}

/// Reads records up to the first that is not whole; returns them with the number of bytes that they take.
fn read(bytes: &[u8]) -> (Vec<Record>, usize) {
    let (mut records, mut at) = (Vec::new(), 0);
    while let Some((head, rest)) = bytes.get(at..).and_then(<[u8]>::split_first_chunk::<4>) {
        let size = u32::from_le_bytes(*head) as usize;
        let Some(record) = rest.get(..size).filter(|_| size <= MAX_RECORD) else { break };
        let Ok(record) = codec::decode::<Record>(record) else { break };
        records.push(record);
        at += 4 + size;
    }
    (records, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_that_was_not_written_whole_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sync");
        let (mut memory, before) = Memory::open(&path).unwrap();
        assert_eq!(before, []);
        let payload = vec![7; 300].into();
        let instance = iptl_dag::model::InstanceId { group: "a".to_owned(), index: 3 };
        let all = [Record::Session(2), Record::Publication { instance, topic: "t".to_owned(), payload }];
        memory.add(&all).unwrap();
        let whole = std::fs::metadata(&path).unwrap().len();
        for torn in 0..whole {
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(torn).unwrap();
            let (mut memory, records) = Memory::open(&path).unwrap();
            assert_eq!(records, all[..records.len()], "{torn}");
            assert!(records.len() < all.len());
            memory.add(&all[records.len()..]).unwrap();
            assert_eq!(Memory::open(&path).unwrap().1, all, "{torn}");
        }
    }
}
