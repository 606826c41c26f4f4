//! Why a peer is dropped.

/// What a peer did that ends its service here; the text is for logs and reports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It sent blocks that nobody asked it for, wrong bytes among them: those hash to something that was not asked for.
    #[error("sent {count} blocks that nobody asked it for")]
    Unwanted {
        /// How many.
        count: u32,
    },
    /// It said that it has blocks, and when asked for them that it does not.
    #[error("said {count} times that it has a block and then that it has not")]
    Fickle {
        /// How often.
        count: u32,
    },
    /// It was asked and answered nothing, several times.
    #[error("did not answer, {times} times")]
    Silent {
        /// How often.
        times: u32,
    },
    /// Others, asked later, sent first what it was asked for.
    #[error("was too slow: others, asked {seconds} s later, sent {count} blocks before it")]
    Slow {
        /// How much later the others were asked.
        seconds: u64,
        /// Blocks.
        count: u32,
    },
    /// It cannot be reached, several times.
    #[error("could not be reached: {reason}")]
    Unreachable {
        /// What is known.
        reason: String,
    },
    /// It goes on wanting more than is kept for one peer.
    #[error("wanted {count} blocks more than are kept for one peer")]
    Flood {
        /// Wants that were refused.
        count: u64,
    },
    /// It does not take in what it asked for.
    #[error("took in no message within {seconds} s")]
    Stalled {
        /// The wait.
        seconds: u64,
    },
    /// It sends what is no message.
    #[error("sent what is no message: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
}

impl Fault {
    /// Says whether the peer did what no honest one does, so that it is not worth another try.
    pub fn is_lie(&self) -> bool {
        match self {
            Fault::Unwanted { .. } | Fault::Fickle { .. } | Fault::Malformed { .. } => true,
            Fault::Silent { .. }
            | Fault::Slow { .. }
            | Fault::Unreachable { .. }
            | Fault::Flood { .. }
            | Fault::Stalled { .. } => false,
        }
    }
}
