//! Captures of links, on their way from who carries packets into files.
//!
//! Who carries packets must not wait for a disk: a thread of its own writes. What it still has to write is bounded by
//! [`MAX_SIZE`] for each instance, beyond which the engine captures nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc;

use iptl_dag::model::InstanceId;
use iptl_labnet::{Captured, PCAP_HEADER};
use tokio::sync::oneshot;

use crate::files::CellFiles;

/// Most bytes of the capture of one link.
pub const MAX_SIZE: u64 = 32 << 20;

enum Piece {
    Bytes(InstanceId, Captured),
    Keep(InstanceId, u64, oneshot::Sender<()>),
}

/// Takes pieces of captures. Their files are written for as long as there is one of it.
#[derive(Clone, Debug)]
pub struct Captures {
    pieces: mpsc::Sender<Piece>,
}

impl Captures {
    /// Writes below the scratch directory of a cell.
    ///
    /// # Errors
    ///
    /// Fails where there is no thread left.
    pub fn start(scratch: PathBuf) -> std::io::Result<Captures> {
        let (pieces, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("iptl-capture".to_owned())
            .spawn(move || write(&CellFiles::new(scratch), &queue))?;
        Ok(Captures { pieces })
    }

    /// Has a piece written. Does not wait.
    pub fn add(&self, id: InstanceId, piece: Captured) {
        // The thread lives as long as this.
        let _written = self.pieces.send(Piece::Bytes(id, piece));
    }

    /// Puts what was captured of an instance among its artifacts, once all of it is written, with an event at `at_us`
    /// that says whether it has everything. Dropped half-way, it happens all the same.
    pub async fn keep(&self, id: InstanceId, at_us: u64) {
        let (done, kept) = oneshot::channel();
        if self.pieces.send(Piece::Keep(id, at_us, done)).is_ok() {
            let _over = kept.await;
        }
    }
}

/// Returns how much may still be captured of an instance, of which an earlier life of its lablet may have captured some.
pub fn room(files: &CellFiles, id: &InstanceId) -> u64 {
    MAX_SIZE.saturating_sub(files.capture_size(id).max(PCAP_HEADER.len() as u64))
}

/// Returns what the wall clock is ahead of a clock that shows `now_ns`, in nanoseconds.
pub fn ahead_of(now_ns: u64) -> u64 {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX).saturating_sub(now_ns)
}

fn write(files: &CellFiles, queue: &mpsc::Receiver<Piece>) {
    let mut cut: BTreeSet<InstanceId> = BTreeSet::new();
    while let Ok(piece) = queue.recv() {
        match piece {
            Piece::Bytes(id, Captured { bytes, full, .. }) => {
                let head = if files.capture_size(&id) == 0 { &PCAP_HEADER[..] } else { &[] };
                let written = files.append_capture(&id, head).and_then(|()| files.append_capture(&id, &bytes));
                if let Err(error) = &written {
                    tracing::warn!(%id, %error, "a capture is not whole");
                }
                if full || written.is_err() {
                    cut.insert(id);
                }
            }
            Piece::Keep(id, at_us, done) => {
                // One that was silent has a capture without packets.
                if files.capture_size(&id) == 0
                    && let Err(error) = files.append_capture(&id, &PCAP_HEADER)
                {
                    tracing::warn!(%id, %error, "there is no capture");
                    cut.insert(id.clone());
                }
                let mut line = Vec::new();
                CellFiles::capture_line(&mut line, at_us, !cut.contains(&id));
                if let Err(error) = files.append_events(&id, &line).and_then(|()| files.keep_capture(&id)) {
                    tracing::warn!(%id, %error, "a capture is not among the artifacts");
                }
                let _nobody_waits = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use iptl_labnet::NodeId;

    use super::*;

    fn piece(bytes: &[u8], full: bool) -> Captured {
        Captured { node: NodeId::from_index(0), bytes: bytes.to_vec(), full }
    }

    #[tokio::test]
    async fn pieces_become_one_artifact_with_one_head() {
        let dir = tempfile::tempdir().unwrap();
        let files = CellFiles::new(dir.path().to_owned());
        let id = InstanceId { group: "g".into(), index: 3 };
        // A workload may have an artifact of the same name.
        files.append_artifact(&id, "lab-link.pcap", b"mine").unwrap();
        let captures = Captures::start(dir.path().to_owned()).unwrap();
        for bytes in [&b"one"[..], b"two"] {
            captures.add(id.clone(), piece(bytes, false));
        }
        captures.keep(id.clone(), 7).await;
        let left = files.left(&id);
        let kept = std::fs::read(left.artifacts.unwrap().join("lab-link.pcap")).unwrap();
        assert_eq!(kept, [&PCAP_HEADER[..], b"onetwo"].concat());
        let events = std::fs::read_to_string(left.events.unwrap()).unwrap();
        assert_eq!(
            events,
            "{\"t\":7,\"name\":\"iptl.capture\",\"data\":{\"artifact\":\"lab-link.pcap\",\"whole\":true}}\n"
        );
    }

    #[tokio::test]
    async fn capture_that_was_cut_says_so_and_one_of_nothing_is_a_capture_too() {
        let dir = tempfile::tempdir().unwrap();
        let files = CellFiles::new(dir.path().to_owned());
        let captures = Captures::start(dir.path().to_owned()).unwrap();
        let (cut, silent) = (InstanceId { group: "g".into(), index: 0 }, InstanceId { group: "g".into(), index: 1 });
        captures.add(cut.clone(), piece(b"some", true));
        captures.keep(cut.clone(), 1).await;
        captures.keep(silent.clone(), 1).await;
        let said = |id| std::fs::read_to_string(files.left(id).events.unwrap()).unwrap();
        assert!(said(&cut).contains("\"whole\":false") && said(&silent).contains("\"whole\":true"));
        let kept = std::fs::read(files.left(&silent).artifacts.unwrap().join("lab-link.pcap")).unwrap();
        assert_eq!(kept, PCAP_HEADER);
    }
}
