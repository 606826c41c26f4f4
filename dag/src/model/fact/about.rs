//! What a fact is about: the blocks that it links, the lablet whose cell it tells of, the end that it is.
//!
//! Who wants one of these of facts of any kind asks for it here. A new kind of fact is thought about in these matches, and
//! in those of whoever must know all kinds.

use super::FactKind;
use crate::model::execution::{Epoch, InstanceId};
use crate::model::fault::FaultDone;
use crate::model::network::Way;
use crate::model::placement::Assignment;
use crate::{Cid, PeerId};

/// A block that a fact links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactLink {
    /// The [`Execution`](crate::model::Execution).
    Execution(Cid),
    /// Its [`Run`](crate::model::Run).
    Run(Cid),
    /// A [`Placement`](crate::model::Placement).
    Placement(Cid),
    /// A [`ReceiptShard`](crate::model::ReceiptShard).
    Receipts(Cid),
    /// The [`ResultNode`](crate::model::ResultNode), with which the execution is over.
    Result(Cid),
}

/// What a fact says of one lablet's cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellFact<'a> {
    /// The lablet holds these instances from here on, by a new grant or by one that was found again.
    Held {
        /// What it got.
        assignments: &'a [Assignment],
        /// Attempt of these instances, from one.
        attempt: u32,
    },
    /// The lablet took its grant.
    Accepted,
    /// The lablet gave its grant back.
    Refused,
    /// Ways to other lablets that it measured.
    Measured(&'a [Way]),
    /// What it did on purpose.
    Faulted(&'a [FaultDone]),
    /// Receipts of it came: so many.
    Received(u32),
    /// These instances were lost with it.
    Lost(&'a [InstanceId]),
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End<'a> {
    /// With this result.
    Sealed(Cid),
    /// With nothing to seal, for this reason.
    Failed(&'a str),
}

impl FactKind {
    /// Returns the blocks that it links, in order; those of a snapshot are what its facts link.
    pub fn links(&self) -> impl Iterator<Item = FactLink> {
        let recorded = if let FactKind::Snapshot { facts, .. } = self { &facts[..] } else { &[] };
        let of_recorded = recorded.iter().flat_map(|fact| fact.kind.own_links());
        self.own_links().into_iter().chain(of_recorded).flatten()
    }

    fn own_links(&self) -> [Option<FactLink>; 2] {
        match self {
            FactKind::Submitted { execution, run, .. } => {
                [Some(FactLink::Execution(*execution)), Some(FactLink::Run(*run))]
            }
            FactKind::Placed { placement } => [Some(FactLink::Placement(*placement)), None],
            FactKind::Received { shard, .. } => [Some(FactLink::Receipts(*shard)), None],
            FactKind::Sealed { result, term: _ } => [Some(FactLink::Result(*result)), None],
            // What its facts link stands with them.
            FactKind::Snapshot { .. }
            | FactKind::Granted { .. }
            | FactKind::Accepted { .. }
            | FactKind::Refused { .. }
            | FactKind::Started {}
            | FactKind::Measured { .. }
            | FactKind::Faulted { .. }
            | FactKind::Lost { .. }
            | FactKind::Cancelled { .. }
            | FactKind::TimedOut {}
            | FactKind::EndedEarly { .. }
            | FactKind::CannotStart(_)
            | FactKind::Failed { .. }
            | FactKind::TakenOver { .. }
            | FactKind::Recovered { .. } => [None, None],
        }
    }

    /// Returns the lablet whose cell it tells of, and what it says of it; none where it tells of the execution as a whole
    /// or is a snapshot.
    pub fn of_cell(&self) -> Option<(&PeerId, CellFact<'_>)> {
        match self {
            FactKind::Granted { lablet, assignments, attempt }
            | FactKind::Recovered { lablet, granted: _, assignments, attempt } => {
                Some((lablet, CellFact::Held { assignments, attempt: *attempt }))
            }
            FactKind::Accepted { lablet } => Some((lablet, CellFact::Accepted)),
            FactKind::Refused { lablet, reason: _ } => Some((lablet, CellFact::Refused)),
            FactKind::Measured { lablet, ways } => Some((lablet, CellFact::Measured(ways))),
            FactKind::Faulted { lablet, faults } => Some((lablet, CellFact::Faulted(faults))),
            FactKind::Received { lablet, shard: _, count } => Some((lablet, CellFact::Received(*count))),
            FactKind::Lost { lablet, instances, reason: _ } => {
                lablet.as_ref().map(|lablet| (lablet, CellFact::Lost(instances)))
            }
            FactKind::Submitted { .. }
            | FactKind::Placed { .. }
            | FactKind::Started {}
            | FactKind::Cancelled { .. }
            | FactKind::TimedOut {}
            | FactKind::EndedEarly { .. }
            | FactKind::CannotStart(_)
            | FactKind::Sealed { .. }
            | FactKind::Failed { .. }
            | FactKind::TakenOver { .. }
            | FactKind::Snapshot { .. } => None,
        }
    }

    /// Returns the term of the lab in which this ended the execution, where it did and the lab had one.
    pub fn ended_in(&self) -> Option<&Epoch> {
        let (FactKind::Sealed { term, .. } | FactKind::Failed { term, .. }) = self else { return None };
        term.as_ref()
    }

    /// Returns how the execution ended, where it is over with this fact.
    pub fn end(&self) -> Option<End<'_>> {
        match self {
            FactKind::Sealed { result, term: _ } => Some(End::Sealed(*result)),
            FactKind::Failed { reason, term: _ } => Some(End::Failed(reason)),
            FactKind::Submitted { .. }
            | FactKind::Placed { .. }
            | FactKind::Granted { .. }
            | FactKind::Accepted { .. }
            | FactKind::Refused { .. }
            | FactKind::Started {}
            | FactKind::Measured { .. }
            | FactKind::Faulted { .. }
            | FactKind::Received { .. }
            | FactKind::Lost { .. }
            | FactKind::Cancelled { .. }
            | FactKind::TimedOut {}
            | FactKind::EndedEarly { .. }
            | FactKind::CannotStart(_)
            | FactKind::TakenOver { .. }
            | FactKind::Recovered { .. }
            | FactKind::Snapshot { .. } => None,
        }
    }
}
