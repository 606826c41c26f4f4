//! The orchestrator's record of the tickets that it gave out.

use iptl_dag::PeerId;
use iptl_wire::WallTime;
use iptl_wire::lab::Role;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::ticket::{Secret, Ticket};

/// Context of the hash under which secrets are kept, so that it is of use for nothing else.
const HASH_CONTEXT: &str = "iptl 2026 ticket secret";

/// The tickets of one lab: hashes of their secrets, and who used them.
///
/// Who reads the book cannot make a ticket of it. It is written down by its owner after each change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketBook {
    lab: PeerId,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(with = "serde_bytes")]
    hash: [u8; 32],
    role: Role,
    expires: WallTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<PeerId>,
}

/// Why a ticket does not let anybody in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedeemError {
    /// It is for another lab.
    #[error("the ticket is for lab {lab}")]
    OtherLab {
        /// That lab.
        lab: PeerId,
    },
    /// No ticket with this secret was given out here.
    #[error("no such ticket was given out here")]
    Unknown,
    /// Somebody else has joined by it.
    #[error("the ticket was used by {by}")]
    Used {
        /// Who.
        by: PeerId,
    },
    /// It lapsed.
    #[error("the ticket lapsed")]
    Expired {
        /// When.
        at: WallTime,
    },
}

impl RedeemError {
    /// Returns the stable code of [`JoinAnswer::Refused`](iptl_wire::lab::JoinAnswer::Refused).
    pub fn code(&self) -> &'static str {
        match self {
            RedeemError::OtherLab { .. } => "ticket-other-lab",
            RedeemError::Unknown => "ticket-unknown",
            RedeemError::Used { .. } => "ticket-used",
            RedeemError::Expired { .. } => "ticket-expired",
        }
    }
}

impl TicketBook {
    /// Makes an empty book for a lab.
    pub fn new(lab: PeerId) -> TicketBook {
        TicketBook { lab, entries: Vec::new() }
    }

    /// Makes a ticket of 16 fresh random bytes and records it.
    pub fn mint(
        &mut self,
        secret: Secret,
        role: Role,
        expires: WallTime,
        orchestrator: PeerId,
        addrs: Vec<String>,
    ) -> Ticket {
        self.entries.push(Entry { hash: hash(secret.as_bytes()), role, expires, used: None });
        Ticket { lab: self.lab.clone(), orchestrator, addrs, role, expires, secret }
    }

    /// Uses a ticket for `by` and returns the role that it gives.
    ///
    /// A peer that has used a ticket may use it again while it is valid: the answer may have been lost on its way.
    pub fn redeem(&mut self, lab: &PeerId, secret: &[u8], by: &PeerId, now: WallTime) -> Result<Role, RedeemError> {
        if *lab != self.lab {
            return Err(RedeemError::OtherLab { lab: lab.clone() });
        }
        let hash = hash(secret);
        // All entries are compared, each in constant time: how long it takes says nothing about a near miss.
        let found = self
            .entries
            .iter_mut()
            .fold(None, |found, entry| if bool::from(entry.hash.ct_eq(&hash)) { Some(entry) } else { found });
        let entry = found.ok_or(RedeemError::Unknown)?;
        match &entry.used {
            Some(user) if user != by => return Err(RedeemError::Used { by: user.clone() }),
            Some(_) | None => {}
        }
        if now >= entry.expires {
            return Err(RedeemError::Expired { at: entry.expires });
        }
        entry.used = Some(by.clone());
        Ok(entry.role)
    }

    /// Forgets tickets that lapsed before `before`; they are unknown from then on.
    pub fn forget(&mut self, before: WallTime) {
        self.entries.retain(|entry| entry.expires >= before);
    }

    /// Forgets the tickets that `user` has joined by: it cannot come back by them.
    pub fn forget_used_by(&mut self, user: &PeerId) {
        self.entries.retain(|entry| entry.used.as_ref() != Some(user));
    }

    /// Returns how many tickets can still be used at `now`.
    pub fn open(&self, now: WallTime) -> usize {
        self.entries.iter().filter(|entry| entry.used.is_none() && now < entry.expires).count()
    }
}

fn hash(secret: &[u8]) -> [u8; 32] {
    blake3::derive_key(HASH_CONTEXT, secret)
}
