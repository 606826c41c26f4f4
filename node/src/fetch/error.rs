//! Why a fetch ends without the whole.

use std::time::Duration;

use iptl_artifacts::StoreError;
use iptl_dag::walk::Limits;
use iptl_dag::{Cid, PeerId};

/// Why a DAG is not complete here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody who can be found has it.
    #[error("nobody who was found within {} s has {cid}{}", timeout.as_secs_f32(), dropped_text(dropped))]
    NoProvider {
        /// First block that is missing.
        cid: Cid,
        /// Wait.
        timeout: Duration,
        /// Providers that were dropped, with the reasons.
        dropped: Vec<(PeerId, String)>,
    },
    /// It cannot be moved by a protocol that this node speaks.
    #[error("{cid} uses hash function {code:#x}, which this node cannot fetch")]
    NotFetchable {
        /// The block.
        cid: Cid,
        /// Multihash code.
        code: u64,
    },
    /// A block is no valid node of its codec.
    #[error("{cid} is damaged: {reason}")]
    Damaged {
        /// The block.
        cid: Cid,
        /// What is wrong.
        reason: String,
    },
    /// Bytes of a file are wanted, and it is none.
    #[error("{cid} cannot be read as a file: {reason}")]
    NotAFile {
        /// The root.
        cid: Cid,
        /// What it is.
        reason: String,
    },
    /// The DAG is larger than any that is accepted.
    #[error(
        "the DAG under {root} has more than {} blocks, {} bytes or {} levels",
        limits.blocks, limits.bytes, limits.depth
    )]
    TooLarge {
        /// Its root.
        root: Cid,
        /// What is accepted.
        limits: Limits,
    },
    /// There is no room for it.
    #[error("{root} says that it takes {claimed} bytes, and there is room for {room}")]
    NoRoom {
        /// Its root.
        root: Cid,
        /// What it says, or what came of it already.
        claimed: u64,
        /// Bytes that the disk and the quota of the store leave.
        room: u64,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FetchError {
    /// Says whether it is the DAG that cannot be had as it is, whoever gives it.
    pub(super) fn is_of_dag(&self) -> bool {
        match self {
            FetchError::Damaged { .. } | FetchError::TooLarge { .. } | FetchError::NoRoom { .. } => true,
            FetchError::NoProvider { .. }
            | FetchError::NotFetchable { .. }
            | FetchError::NotAFile { .. }
            | FetchError::Store(_) => false,
        }
    }
}

fn dropped_text(dropped: &[(PeerId, String)]) -> String {
    dropped.iter().map(|(peer, reason)| format!("; dropped {}: {reason}", peer.short())).collect()
}
