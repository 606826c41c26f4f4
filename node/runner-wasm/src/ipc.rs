//! Frames between the lablet and a worker: a length of four bytes, then DAG-CBOR.
//!
//! Both ends are the same binary, so there are no versions; a frame that does not decode ends the worker.

use std::io::{self, Read};
use std::path::PathBuf;

use iptl_dag::Cid;
use iptl_runner::{CellEvent, CellInput, CellSpec, InstanceSpec, PrepareError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest frame in bytes: one instance with the longest arguments that a run can carry fits many times.
const MAX_FRAME_SIZE: u32 = 16 << 20;

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// A cell comes; its instances follow in [`ToWorker::Instances`].
    Cell(Box<CellOrder>),
    /// More instances of the cell.
    Instances(Vec<InstanceSpec>),
    /// That was all: make them ready.
    Prepare,
    /// Release them.
    Start,
    /// End all that still run.
    Stop {
        /// Why.
        reason: String,
    },
    /// Answers and packets: many in one frame, which costs little more than one.
    Input(Vec<CellInput>),
}

/// A cell without its instances.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CellOrder {
    /// The cell; its list of instances is empty.
    pub(crate) cell: CellSpec,
    /// Where compiled code is kept.
    pub(crate) cache_dir: PathBuf,
    /// Most memory that all guests together may have, in bytes.
    pub(crate) memory_bytes: u64,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// Every instance stands before its first instruction.
    Prepared,
    /// The cell cannot be made ready.
    Refused(Refusal),
    /// Something happened in the cell.
    Event(CellEvent),
}

/// Why a worker cannot make a cell ready.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// The file is no component that can be run.
    #[error("{workload} cannot be executed: {reason}")]
    BadArtifact { workload: Cid, reason: String },
    /// The component imports what nobody gives.
    #[error("{workload} imports {import}")]
    MissingImport { workload: Cid, import: String },
    /// The engine cannot hold the cell.
    #[error("no room for {needed} {what}: {bound}")]
    NoCapacity { what: String, needed: u64, bound: String },
    /// A file could not be used.
    #[error("{what}: {reason}")]
    Io { what: String, reason: String },
}

impl From<Refusal> for PrepareError {
    fn from(refusal: Refusal) -> PrepareError {
        match refusal {
            Refusal::BadArtifact { workload, reason } => PrepareError::BadArtifact { workload, reason },
            Refusal::MissingImport { workload, import } => PrepareError::MissingImport { workload, import },
            Refusal::NoCapacity { what, needed, bound } => {
                PrepareError::NoCapacity { what, needed, available: 0, bound }
            }
            Refusal::Io { what, reason } => PrepareError::Io { what, source: io::Error::other(reason) },
        }
    }
}

/// Encodes a frame at the end of `out`.
///
/// # Errors
///
/// Fails on values that are too large or that DAG-CBOR cannot hold, such as paths that are not UTF-8.
pub(crate) fn encode<T: Serialize>(out: &mut Vec<u8>, message: &T) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    // `Encoder` needs a writer that reports its capacity; a value of its own is simpler than undoing a half write.
    let body = match serde_encode(message) {
        Ok(body) => body,
        Err(e) => {
            out.truncate(start);
            return Err(e);
        }
    };
    let Some(len) = u32::try_from(body.len()).ok().filter(|len| *len <= MAX_FRAME_SIZE) else {
        out.truncate(start);
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {} bytes", body.len())));
    };
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

fn serde_encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    serde_ipld_dagcbor::to_vec(message).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

/// Reads a frame; `None` at the end of the stream. Blocks.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    match from.read_exact(&mut head) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut body = vec![0; checked_len(head)?];
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// Reads a frame; `None` at the end of the stream. Dropped half-way, the stream is useless.
pub(crate) async fn read_async<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    match from.read_exact(&mut head).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut body = vec![0; checked_len(head)?];
    from.read_exact(&mut body).await?;
    decode(&body).map(Some)
}

fn checked_len(head: [u8; 4]) -> io::Result<usize> {
    let len = u32::from_be_bytes(head);
    if len > MAX_FRAME_SIZE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes")));
    }
    Ok(len as usize)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_ipld_dagcbor::from_slice(body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

#[cfg(test)]
mod tests {
    use iptl_labnet::Batch;

    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &ToWorker::Stop { reason: "enough".into() }).unwrap();
        encode(&mut bytes, &ToWorker::Input(vec![CellInput::Packets(Batch::of(&[1, 2, 3]))])).unwrap();
        let mut from = bytes.as_slice();
        assert!(matches!(read(&mut from).unwrap(), Some(ToWorker::Stop { reason }) if reason == "enough"));
        assert!(
            matches!(read(&mut from).unwrap(), Some(ToWorker::Input(inputs)) if inputs == [CellInput::Packets(Batch::of(&[1, 2, 3]))])
        );
        assert!(read::<ToWorker>(&mut from).unwrap().is_none());
    }

    #[test]
    fn oversized_and_broken_frames_are_errors() {
        assert!(read::<ToWorker>(&mut [0xff, 0xff, 0xff, 0xff, 0].as_slice()).is_err());
        assert!(read::<ToWorker>(&mut [0, 0, 0, 1, 0xff].as_slice()).is_err());
        assert!(read::<ToWorker>(&mut [0, 0, 0, 9, 1].as_slice()).is_err());
    }
}
