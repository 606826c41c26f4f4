//! What peers say to each other, and tickets.

use std::fmt::Debug;
use std::str::FromStr;

use iptl_dag::codec::encode;
use iptl_dag::model::Signed;
use iptl_trust::Ticket;
use iptl_wire::exec::{ExecInput, ExecOrder, ExecOutput};
use iptl_wire::lab::{
    Certificate, Introduction, IntroductionAnswer, JoinAnswer, JoinRequest, MemberToken, Revocations,
};
use iptl_wire::offer::Offer;
use iptl_wire::session::{ToLablet, ToOrchestrator};
use iptl_wire::takeover::{Claim, ToFollower, ToLeader};
use iptl_wire::{control, frame};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::memory::typed;

/// Messages by the first byte, which says of what kind.
const KINDS: [fn(&[u8]) -> bool; 14] = [
    message::<ToOrchestrator>,
    message::<ToLablet>,
    message::<Signed<Offer>>,
    message::<JoinRequest>,
    message::<JoinAnswer>,
    message::<control::Request>,
    message::<control::Reply>,
    message::<ExecOrder>,
    message::<ExecInput>,
    message::<ExecOutput>,
    message::<Signed<MemberToken>>,
    message::<Signed<Certificate>>,
    message::<Introduction>,
    message::<IntroductionAnswer>,
];

/// Messages that came later, by the first byte from the last down, so that those before keep theirs.
const LATER: [fn(&[u8]) -> bool; 4] =
    [message::<Signed<Revocations>>, message::<ToLeader>, message::<ToFollower>, message::<Signed<Claim>>];

/// A message can be written and read again.
pub(crate) fn wire(data: &[u8]) -> bool {
    let Some((kind, body)) = data.split_first() else { return false };
    match LATER.get(usize::from(u8::MAX - kind)) {
        Some(later) => later(body),
        None => KINDS[usize::from(*kind) % KINDS.len()](body),
    }
}

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) -> bool {
    let Ok(message) = typed(body, || frame::decode::<T>(body)) else { return false };
    let framed = frame::encode(&message);
    let (header, written) = framed.split_first_chunk::<{ frame::HEADER_SIZE }>().expect("a frame has a header");
    assert_eq!(frame::length(*header, written.len()).ok(), Some(written.len()));
    assert!(frame::length(*header, written.len() - 1).is_err(), "a limit holds");
    let again: T = frame::decode(written).expect("it was just written");
    assert_eq!(again, message);
    assert_eq!(encode(&again), written, "there is one form");
    true
}

/// Text of a ticket; or, after a zero, what stands in one behind its checksum, which nobody comes upon by chance.
pub(crate) fn ticket(data: &[u8]) -> bool {
    let text = match data.split_first() {
        Some((0, content)) => {
            let sum = blake3::hash(content);
            let sealed = [content, &sum.as_bytes()[..4]].concat();
            format!("lab1{}", data_encoding::BASE32_NOPAD.encode(&sealed).to_lowercase())
        }
        Some(_) | None => String::from_utf8_lossy(data).into_owned(),
    };
    let Ok(ticket) = typed(text.as_bytes(), || Ticket::from_str(&text)) else { return false };
    let written = ticket.text();
    assert!(written.len() <= iptl_trust::ticket::MAX_TICKET_SIZE);
    let again: Ticket = written.parse().expect("it was just written");
    assert!(ticket.addrs.starts_with(&again.addrs), "addresses are left out from the end");
    assert_eq!(Ticket { addrs: again.addrs.clone(), ..ticket }, again);
    true
}
