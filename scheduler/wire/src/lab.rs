//! Joining a lab: certificates, member tokens, tickets as they travel.

use iptl_dag::PeerId;
use iptl_dag::model::signed::{Signable, Signed};
use serde::{Deserialize, Serialize};

use crate::takeover::Orchestrators;
use crate::time::WallTime;

/// Protocol ID of the stream on which a peer asks to join, one request and its answers.
pub const JOIN_PROTOCOL: &str = "/iptl/join/1";

/// Largest message of a join stream, in bytes.
pub const MAX_JOIN_SIZE: usize = 16 << 10;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Accepts runs and schedules them.
    Orchestrator,
    /// Lends its machine.
    Lablet,
    /// Submits runs.
    Developer,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Orchestrator => "orchestrator",
            Role::Lablet => "lablet",
            Role::Developer => "developer",
        })
    }
}

/// The lab's word that a peer is an orchestrator of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The lab; it signs.
    pub lab: PeerId,
    /// The orchestrator.
    pub orchestrator: PeerId,
    /// Name of the lab, for people.
    pub name: String,
    /// When it lapses.
    pub expires: WallTime,
    /// What members keep is for members alone, until they share it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private: bool,
}

impl Signable for Certificate {
    const DOMAIN: &'static str = "iptl/certificate/1";
}

/// The lab's word that a peer is a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberToken {
    /// The lab; it signs.
    pub lab: PeerId,
    /// The member.
    pub member: PeerId,
    /// What the member is.
    pub role: Role,
    /// When it lapses.
    pub expires: WallTime,
}

impl Signable for MemberToken {
    const DOMAIN: &'static str = "iptl/member/1";
}

/// The lab's word that peers are members no more, whatever token they show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocations {
    /// The lab; it signs.
    pub lab: PeerId,
    /// A list with a higher one replaces this one.
    pub serial: u64,
    /// The peers.
    pub revoked: Vec<Revoked>,
}

impl Signable for Revocations {
    const DOMAIN: &'static str = "iptl/revocations/1";
}

/// A peer that is a member no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// The peer.
    pub peer: PeerId,
    /// When the last token that it may have lapses.
    pub until: WallTime,
}

/// Protocol ID of the stream on which members make themselves known to one another.
pub const MEMBER_PROTOCOL: &str = "/iptl/member/1";

/// Most peers of a list of revocations.
pub const MAX_REVOKED: usize = 4096;

/// Largest message of a member stream, in bytes: a whole list of revocations.
pub const MAX_MEMBER_SIZE: usize = 512 << 10;

/// What who opens a member stream says: who it is, and then perhaps the list of revocations that the other lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Introduction {
    /// Always the first.
    Member {
        /// Its membership.
        token: Signed<MemberToken>,
        /// Serial of its list of revocations; zero where it has none.
        serial: u64,
    },
    /// Said where the answer has shown an older serial.
    Revocations(Signed<Revocations>),
}

/// What is answered to an [`Introduction`].
#[expect(clippy::large_enum_variant, reason = "messages are made, sent and gone")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum IntroductionAnswer {
    /// It counts as a member from now on.
    Known {
        /// Membership of who answers.
        token: Signed<MemberToken>,
        /// Serial of its list of revocations.
        serial: u64,
        /// That list, where it is newer than the asker's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revocations: Option<Signed<Revocations>>,
        /// The orchestrators of the lab, where there are several.
        #[serde(default, skip_serializing_if = "Orchestrators::is_empty")]
        orchestrators: Orchestrators,
    },
    /// It is a stranger.
    Unknown {
        /// For people.
        reason: String,
    },
}

/// First message of a join stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum JoinRequest {
    /// Joins by a ticket's secret.
    Ticket {
        /// The lab that the ticket names.
        lab: PeerId,
        /// The secret.
        #[serde(with = "serde_bytes")]
        secret: Vec<u8>,
        /// Name that the owner gives the machine.
        name: String,
    },
    /// Asks to be let in.
    Ask {
        /// Role that is asked for.
        role: Role,
        /// Name that the owner gives the machine.
        name: String,
    },
}

/// Answers on a join stream: any number of `Waiting`, then one of the others.
#[expect(clippy::large_enum_variant, reason = "messages are made, sent and gone")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum JoinAnswer {
    /// The owner has to approve.
    Waiting {
        /// Certificate of the orchestrator, so that the asker sees whom it asks.
        certificate: Signed<Certificate>,
    },
    /// Let in.
    Joined {
        /// Certificate of the orchestrator.
        certificate: Signed<Certificate>,
        /// Membership.
        token: Signed<MemberToken>,
        /// Addresses of the orchestrator.
        addrs: Vec<String>,
        /// What makes the one who joins an orchestrator too, where its role is that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        own: Option<Signed<Certificate>>,
        /// The orchestrators of the lab, where there are several.
        #[serde(default, skip_serializing_if = "Orchestrators::is_empty")]
        orchestrators: Orchestrators,
    },
    /// Not let in.
    Refused {
        /// Stable code: `ticket-unknown`, `ticket-used`, `ticket-expired`, `ticket-other-lab`, `denied`, `no-lab`.
        code: String,
        /// For people.
        reason: String,
    },
}
