//! Commands that people execute in running instances.
//!
//! A request of the control API goes from the asker's node to the orchestrator, which opens a stream of [`PROTOCOL`] to
//! the instance's lablet, on the connection that the lablet has made. The first frame on it is an [`ExecOrder`]. From
//! then on the asker's frames are [`ExecInput`]s and the answers are replies of the control API, which hold
//! [`ExecOutput`]s. Whoever stands between passes both on, and reads no more than it has passed on. Where the stream
//! ends without [`ExecOutput::Ended`], the command is ended on the lablet.

use iptl_dag::PeerId;
use iptl_dag::model::{ExecutionId, InstanceId};
use serde::{Deserialize, Serialize};

/// Protocol ID of the stream between orchestrator and lablet.
pub const PROTOCOL: &str = "/iptl/exec/1";

/// Most bytes of input or output in one frame.
pub const MAX_CHUNK_SIZE: usize = 64 << 10;

/// Largest frame in bytes: a chunk, or an order, with its wrapping.
pub const MAX_FRAME_SIZE: usize = MAX_CHUNK_SIZE + (8 << 10);

/// Longest command in bytes, all its arguments together: it stands in the receipt.
pub const MAX_COMMAND_SIZE: usize = 4 << 10;

/// A command to execute in an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecOrder {
    /// Execution.
    pub execution: ExecutionId,
    /// Instance.
    pub instance: InstanceId,
    /// Program with its arguments.
    pub command: Vec<String>,
    /// Terminal that it gets; none where it gets pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Window>,
    /// Who asked for it, as the orchestrator knows them.
    pub by: PeerId,
}

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What a command is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExecInput {
    /// Bytes of its standard input, at most [`MAX_CHUNK_SIZE`].
    Bytes {
        /// The bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Its terminal has another size now.
    Resize(Window),
    /// There will be no more bytes. A stream that ends without this is a person who went away.
    End {},
}

/// What a command says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExecOutput {
    /// It runs.
    Started {},
    /// Bytes of its standard output, at most [`MAX_CHUNK_SIZE`]; with a terminal all that it writes.
    Out {
        /// The bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Bytes of its standard error, at most [`MAX_CHUNK_SIZE`].
    Err {
        /// The bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// It ended with this status; nothing of it follows.
    Ended {
        /// Status; 128 and more where a signal ended it.
        code: i32,
    },
}
