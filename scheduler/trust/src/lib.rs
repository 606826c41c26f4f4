//! Keys, signatures, tickets and memberships.
//!
//! A lab is a key of its own. It signs the [certificates](membership::issue_certificate) of its orchestrators and the
//! [tokens](membership::issue_token) of its members; a machine becomes a member by a [`Ticket`], which the
//! orchestrator's [`TicketBook`] redeems once. Everything signed is a [`Signed`](iptl_dag::model::Signed) body whose
//! domain keeps its signature from being used for anything else: [`sign`], [`verify`].
//!
//! Nothing here reads a clock or makes randomness: times, seeds and secrets are given. Secrets are wiped when dropped
//! and never printed.

pub mod book;
pub mod keys;
pub mod membership;
pub mod ticket;

pub use book::{RedeemError, TicketBook};
pub use keys::{Keypair, SignatureError, is_signature, sign, verified, verify, verify_by};
pub use membership::{
    MembershipError, check_certificate, check_claim, check_revocations, check_role, check_token, issue_certificate,
    issue_revocations, issue_token,
};
pub use ticket::{Secret, Ticket, TicketError};
