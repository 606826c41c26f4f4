//! Certificates of orchestrators and tokens of members: the lab's word, signed with the lab's own key.

use iptl_dag::PeerId;
use iptl_dag::model::Signed;
use iptl_wire::WallTime;
use iptl_wire::lab::{Certificate, MAX_REVOKED, MemberToken, Revocations, Revoked, Role};
use iptl_wire::takeover::Claim;

use crate::keys::{Keypair, SignatureError, sign, verify_by};

/// Why a certificate or token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The lab has not signed it.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It is of another lab.
    #[error("it is of lab {lab}")]
    OtherLab {
        /// That lab.
        lab: PeerId,
    },
    /// It is for another peer than the one that shows it.
    #[error("it was given to {holder}")]
    OtherPeer {
        /// To whom it was given.
        holder: PeerId,
    },
    /// It lapsed.
    #[error("it lapsed")]
    Lapsed {
        /// When.
        at: WallTime,
    },
    /// It gives another role than is needed.
    #[error("it is for the role of a {has}, needed is that of a {needs}")]
    Role {
        /// Role that it gives.
        has: Role,
        /// Role that is needed.
        needs: Role,
    },
}

/// Makes `orchestrator` an orchestrator of the lab whose key this is.
///
/// In a `private` lab, what members keep is for members alone until they share it.
pub fn issue_certificate(
    lab: &Keypair,
    orchestrator: PeerId,
    name: String,
    expires: WallTime,
    private: bool,
) -> Signed<Certificate> {
    sign(lab, Certificate { lab: lab.peer().clone(), orchestrator, name, expires, private })
}

/// Checks that `lab` says at `now` that `orchestrator` is an orchestrator of it.
pub fn check_certificate(
    certificate: &Signed<Certificate>,
    lab: &PeerId,
    orchestrator: &PeerId,
    now: WallTime,
) -> Result<(), MembershipError> {
    verify_by(certificate, lab)?;
    let body = &certificate.body;
    check(&body.lab, lab, &body.orchestrator, orchestrator, body.expires, now)
}

/// Checks that whom a claim names has signed it, and is an orchestrator of `lab` at `now`.
pub fn check_claim(claim: &Signed<Claim>, lab: &PeerId, now: WallTime) -> Result<(), MembershipError> {
    let Claim { lab: named, term, certificate } = &claim.body;
    verify_by(claim, &term.peer)?;
    check_certificate(certificate, lab, &term.peer, now)?;
    check(named, lab, &term.peer, &term.peer, certificate.body.expires, now)
}

/// Makes `member` a member of the lab whose key this is.
pub fn issue_token(lab: &Keypair, member: PeerId, role: Role, expires: WallTime) -> Signed<MemberToken> {
    sign(lab, MemberToken { lab: lab.peer().clone(), member, role, expires })
}

/// Checks that `lab` says at `now` that `member` is a member of it, and returns as what.
pub fn check_token(
    token: &Signed<MemberToken>,
    lab: &PeerId,
    member: &PeerId,
    now: WallTime,
) -> Result<Role, MembershipError> {
    verify_by(token, lab)?;
    let body = &token.body;
    check(&body.lab, lab, &body.member, member, body.expires, now)?;
    Ok(body.role)
}

/// Makes the list of the peers that are members of the lab no more.
///
/// # Panics
///
/// Panics where there are more than [`MAX_REVOKED`]: whoever keeps the list leaves out those whose tokens have lapsed, and
/// refuses to make it longer.
pub fn issue_revocations(lab: &Keypair, serial: u64, revoked: Vec<Revoked>) -> Signed<Revocations> {
    assert!(revoked.len() <= MAX_REVOKED, "{} revoked members", revoked.len());
    sign(lab, Revocations { lab: lab.peer().clone(), serial, revoked })
}

/// Checks that a list of revocations is `lab`'s.
pub fn check_revocations(list: &Signed<Revocations>, lab: &PeerId) -> Result<(), MembershipError> {
    verify_by(list, lab)?;
    match list.body.lab == *lab {
        true => Ok(()),
        false => Err(MembershipError::OtherLab { lab: list.body.lab.clone() }),
    }
}

/// Checks a token as [`check_token`] does, and that it gives the role that is needed.
pub fn check_role(
    token: &Signed<MemberToken>,
    lab: &PeerId,
    member: &PeerId,
    now: WallTime,
    needs: Role,
) -> Result<(), MembershipError> {
    let has = check_token(token, lab, member, now)?;
    if has == needs { Ok(()) } else { Err(MembershipError::Role { has, needs }) }
}

fn check(
    named: &PeerId,
    lab: &PeerId,
    holder: &PeerId,
    peer: &PeerId,
    expires: WallTime,
    now: WallTime,
) -> Result<(), MembershipError> {
    if named != lab {
        return Err(MembershipError::OtherLab { lab: named.clone() });
    }
    if holder != peer {
        return Err(MembershipError::OtherPeer { holder: holder.clone() });
    }
    if now >= expires {
        return Err(MembershipError::Lapsed { at: expires });
    }
    Ok(())
}
