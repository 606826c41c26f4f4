//! Tickets: what one person hands another so that a machine can join.
//!
//! The text form is `lab1` and base32 (lower case, no padding) of a version byte, the ticket as DAG-CBOR, and the first
//! four bytes of the BLAKE3 hash of both. A slip of the keyboard or a lost end is told from a ticket of a newer version.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use iptl_dag::{PeerId, codec};
use iptl_wire::WallTime;
use iptl_wire::lab::Role;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// What every ticket begins with.
const PREFIX: &str = "lab1";

/// Version of what is encoded.
const VERSION: u8 = 1;

/// Bytes of the checksum: one slip in four thousand million goes unseen, and then the secret is wrong.
const CHECKSUM_SIZE: usize = 4;

/// Longest ticket as text, in bytes: some twenty addresses, and still one line of a chat.
pub const MAX_TICKET_SIZE: usize = 4096;

/// The secret of a ticket. Wiped when dropped; prints as `***`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(#[serde(with = "serde_bytes")] [u8; 16]);

impl Secret {
    /// Makes a secret of random bytes.
    pub fn new(bytes: [u8; 16]) -> Secret {
        Secret(bytes)
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Lets who holds it join a lab, once.
///
/// It shows as text only through [`text`](Ticket::text): printing it for debugging hides the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// The lab.
    pub lab: PeerId,
    /// The orchestrator that redeems it.
    pub orchestrator: PeerId,
    /// Addresses of the orchestrator.
    pub addrs: Vec<String>,
    /// What who joins by it becomes.
    pub role: Role,
    /// When it lapses.
    pub expires: WallTime,
    /// What the orchestrator knows it by.
    pub secret: Secret,
}

/// Why a text is not a ticket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not begin as a ticket does.
    #[error("not a ticket: a ticket begins with {PREFIX}")]
    WrongPrefix,
    /// It begins as a ticket, but was changed or cut on its way.
    #[error("the ticket is damaged: a part is missing or mistyped")]
    Garbled,
    /// It was made by a newer version of this software.
    #[error("the ticket is of version {version}, this software knows {VERSION}")]
    Newer {
        /// Its version.
        version: u8,
    },
    /// It is longer than a ticket can be.
    #[error("text of {size} bytes is longer than a ticket can be ({MAX_TICKET_SIZE})")]
    TooLong {
        /// Its length in bytes.
        size: usize,
    },
}

impl Ticket {
    /// Returns the text form, which holds the secret.
    ///
    /// Addresses are left out from the end where the text would be too long.
    pub fn text(&self) -> Zeroizing<String> {
        let mut ticket = self.clone();
        loop {
            let text = ticket.encode();
            if text.len() <= MAX_TICKET_SIZE || ticket.addrs.pop().is_none() {
                return text;
            }
        }
    }

    fn encode(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(vec![VERSION]);
        bytes.extend_from_slice(&Zeroizing::new(codec::encode(self)));
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        let mut text = BASE32_NOPAD.encode(&bytes);
        text.make_ascii_lowercase();
        text.insert_str(0, PREFIX);
        Zeroizing::new(text)
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Reads a ticket; space around it and capital letters do no harm.
    fn from_str(text: &str) -> Result<Ticket, TicketError> {
        let text = text.trim();
        if text.len() > MAX_TICKET_SIZE {
            return Err(TicketError::TooLong { size: text.len() });
        }
        let upper = Zeroizing::new(text.to_ascii_uppercase());
        let body = upper.strip_prefix(&PREFIX.to_ascii_uppercase()).ok_or(TicketError::WrongPrefix)?;
        let bytes = Zeroizing::new(BASE32_NOPAD.decode(body.as_bytes()).map_err(|_| TicketError::Garbled)?);
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM_SIZE>().ok_or(TicketError::Garbled)?;
        if checksum(content) != *sum {
            return Err(TicketError::Garbled);
        }
        match content.split_first() {
            Some((&VERSION, body)) => codec::decode(body).map_err(|_| TicketError::Garbled),
            Some((&version, _)) if version > VERSION => Err(TicketError::Newer { version }),
            Some(_) | None => Err(TicketError::Garbled),
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_SIZE] {
    let hash = blake3::hash(bytes);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}
