//! A log of one's own on its way from records to the facts that are replayed, as many at a time as the caller likes.

use iptl_dag::PeerId;
use iptl_dag::model::{self, ExecutionId, Fact, FactKind};

use super::{Chain, Entry, Misfit, check_signature};

/// Takes in the records of a log in their order and says what to replay.
///
/// Facts count for nothing before [`Opening::end`] has held: only the last one's signature covers all.
///
/// A snapshot at the beginning is unfolded. A later one repeats what came before it and is passed over.
#[derive(Debug)]
pub struct Opening {
    chain: Chain,
    /// Whether a part that comes now belongs to the snapshot at the beginning.
    unfolds: bool,
    /// Facts since the last snapshot.
    fresh: u64,
    /// Facts that the last snapshot repeats.
    repeated: u64,
}

/// A log that was read to its end.
#[derive(Debug)]
pub struct Opened {
    /// What the next fact must fit to.
    pub chain: Chain,
    /// Facts since the last snapshot.
    pub fresh: u64,
    /// Facts that the last snapshot repeats.
    pub repeated: u64,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The last fact is not in the one form that facts have.
    #[error(transparent)]
    Form(#[from] iptl_dag::DecodeError),
    /// A fact does not fit.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

impl Opening {
    /// Begins with the first fact at hand; `is_whole` says whether a snapshot begins with it of which every part is at
    /// hand. `writers` are the orchestrators that may have written the log.
    pub fn new(writers: impl IntoIterator<Item = PeerId>, first: &Fact, is_whole: bool) -> Opening {
        let writers: Vec<PeerId> = writers.into_iter().collect();
        let chain = Chain::at_snapshot(first.execution, writers.clone(), first)
            .unwrap_or_else(|| Chain::new(first.execution, writers));
        Opening { chain, unfolds: is_whole, fresh: 0, repeated: 0 }
    }

    /// Returns whose log it is.
    pub fn execution(&self) -> ExecutionId {
        self.chain.execution
    }

    /// Returns the position of the next fact.
    pub fn next_seq(&self) -> u64 {
        self.chain.next_seq()
    }

    /// Takes in the next record; what it says is appended to `facts`. Facts of a snapshot stand at the position of the
    /// part that holds them.
    pub fn take(&mut self, entry: Entry, facts: &mut Vec<Fact>) -> Result<(), Misfit> {
        let Entry { cid, signer, fact } = entry;
        self.chain.fit(&cid, &signer, &fact)?;
        if !matches!(fact.kind, FactKind::Snapshot { .. }) {
            self.fresh += 1;
            self.unfolds = false;
            facts.push(fact);
            return Ok(());
        }
        let Fact { execution, seq, prev, kind, .. } = fact;
        let FactKind::Snapshot { part, last, facts: repeated } = kind else { return Ok(()) };
        self.fresh = if last { 0 } else { self.fresh + 1 };
        self.repeated = repeated.len() as u64 + if part == 0 { 0 } else { self.repeated };
        if self.unfolds {
            self.unfolds = !last;
            facts.extend(repeated.into_iter().map(|r| Fact {
                execution,
                seq,
                prev,
                epoch: r.epoch,
                at_ms: r.at_ms,
                kind: r.kind,
            }));
        }
        Ok(())
    }

    /// Checks the last fact, of which these are the bytes.
    pub fn end(self, last: &[u8]) -> Result<Opened, OpenError> {
        let signed: model::Signed<Fact> = model::from_bytes(last)?;
        check_signature(&signed, signed.body.seq)?;
        Ok(Opened { chain: self.chain, fresh: self.fresh, repeated: self.repeated })
    }
}
