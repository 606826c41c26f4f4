//! The lab's server of names, without IO: answers to queries of DNS (RFC 1035) about the instances of a run.
//!
//! It answers what it is asked and knows nobody else: addresses of `<group>-<index>` and `<index>.<group>.lab` (`A`,
//! `AAAA`), and the name behind an address (`PTR`). Everything else does not exist. Whatever the bytes of a query, nothing
//! here panics, and no answer is longer than what every resolver takes without asking for more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iptl_dag::model::InstanceId;

use crate::directory::Directory;
use crate::topology::Addrs;

/// Port of the server.
pub(crate) const PORT: u16 = 53;

/// Bytes of the head of a message.
const HEAD: usize = 12;

/// Longest name as a message holds it, in bytes (RFC 1035).
const MAX_NAME: usize = 255;

/// For how long an answer may be kept, in seconds: an instance may get another address in mid-run.
const TTL: u32 = 1;

/// Kinds of records, and the class of the Internet.
mod kind {
    pub(super) const A: u16 = 1;
    pub(super) const PTR: u16 = 12;
    pub(super) const AAAA: u16 = 28;
    pub(super) const ANY: u16 = 255;
    pub(super) const IN: u16 = 1;
}

/// How a query ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Fine = 0,
    Malformed = 1,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// What the server knows.
pub(crate) trait Known {
    /// Returns the run's instances.
    fn directory(&self) -> &Directory;

    /// Returns the addresses under which others know an instance, by its number over all groups.
    fn addrs(&self, ordinal: u64) -> Option<Addrs>;

    /// Returns who is known under an address.
    fn holder(&self, addr: IpAddr) -> Option<InstanceId>;

    /// Returns whether a name means whoever asks.
    fn is_asker(&self, name: &str) -> bool;
}

/// What a name is asked for.
struct Question {
    /// In lower case, its labels divided by dots.
    name: String,
    kind: u16,
    class: u16,
    /// Where it ends in the message.
    end: usize,
}

/// What there is of a name.
enum Found {
    Addrs(Addrs),
    Name(InstanceId),
    /// Names below it.
    Inner,
    Nothing,
}

/// Answers a query; none where it is none, or not even its number can be read.
pub(crate) fn answer(query: &[u8], known: &impl Known) -> Option<Vec<u8>> {
    let head = query.first_chunk::<HEAD>()?;
    // An answer is not answered.
    if head[2] & 0x80 != 0 {
        return None;
    }
    let (operation, questions) = (head[2] >> 3 & 0x0f, u16::from_be_bytes([head[4], head[5]]));
    let question = question(query);
    let (code, records) = match &question {
        _ if operation != 0 => (Code::NotImplemented, Vec::new()),
        None => (Code::Malformed, Vec::new()),
        Some(_) if questions != 1 => (Code::Malformed, Vec::new()),
        Some(question) if question.class != kind::IN && question.class != kind::ANY => (Code::Refused, Vec::new()),
        Some(question) => records(question, known),
    };
    let asked = question.filter(|_| code != Code::Malformed && code != Code::NotImplemented);
    let count = |many: usize| u16::try_from(many).unwrap_or(u16::MAX).to_be_bytes();
    let mut answer = Vec::with_capacity(512);
    answer.extend_from_slice(&head[..2]);
    // An answer, by who knows best; whether others are to be asked is as it was said, and nobody is.
    answer.push(0x84 | head[2] & 0x79);
    answer.push(0x80 | code as u8);
    answer.extend_from_slice(&count(usize::from(asked.is_some())));
    answer.extend_from_slice(&count(records.len()));
    answer.extend_from_slice(&[0; 4]);
    if let Some(question) = asked {
        answer.extend_from_slice(query.get(HEAD..question.end)?);
    }
    for (kind, data) in &records {
        // The name is that of the question, which begins after the head.
        answer.extend_from_slice(&[0xc0, HEAD as u8]);
        answer.extend_from_slice(&kind.to_be_bytes());
        answer.extend_from_slice(&kind::IN.to_be_bytes());
        answer.extend_from_slice(&TTL.to_be_bytes());
        answer.extend_from_slice(&count(data.len()));
        answer.extend_from_slice(data);
    }
    Some(answer)
}

/// Reads the question of a query: one name, without the references that only answers have.
fn question(query: &[u8]) -> Option<Question> {
    let mut name = String::new();
    let mut at = HEAD;
    loop {
        let len = usize::from(*query.get(at)?);
        if len == 0 {
            break;
        }
        // The two upper bits are of references; a label has up to 63 bytes.
        if len > 63 || at + len + 2 > HEAD + MAX_NAME {
            return None;
        }
        let label = query.get(at + 1..at + 1 + len)?;
        if !name.is_empty() {
            name.push('.');
        }
        // What is no letter of a name is in none of ours; a dot within a label must not look like two labels.
        name.extend(label.iter().map(|byte| match byte {
            b'0'..=b'9' | b'-' | b'_' => char::from(*byte),
            b'a'..=b'z' | b'A'..=b'Z' => char::from(byte.to_ascii_lowercase()),
            _ => '?',
        }));
        at += 1 + len;
    }
    let rest = query.get(at + 1..at + 5)?;
    let (kind, class) = (u16::from_be_bytes([rest[0], rest[1]]), u16::from_be_bytes([rest[2], rest[3]]));
    Some(Question { name, kind, class, end: at + 5 })
}

/// Returns the records that answer a question.
fn records(question: &Question, known: &impl Known) -> (Code, Vec<(u16, Vec<u8>)>) {
    let wants = |kind| question.kind == kind || question.kind == kind::ANY;
    let mut records = Vec::new();
    match find(&question.name, known) {
        Found::Addrs(addrs) => {
            if let Some(addr) = addrs.v4.filter(|_| wants(kind::A)) {
                records.push((kind::A, addr.octets().to_vec()));
            }
            if let Some(addr) = addrs.v6.filter(|_| wants(kind::AAAA)) {
                records.push((kind::AAAA, addr.octets().to_vec()));
            }
        }
        Found::Name(instance) => {
            if let Some(name) = encode(&format!("{}-{}", instance.group, instance.index)).filter(|_| wants(kind::PTR)) {
                records.push((kind::PTR, name));
            }
        }
        Found::Inner => {}
        Found::Nothing => return (Code::NoSuchName, records),
    }
    (Code::Fine, records)
}

fn find(name: &str, known: &impl Known) -> Found {
    if known.is_asker(name) {
        return Found::Addrs(Addrs { v4: Some(Ipv4Addr::LOCALHOST), v6: Some(Ipv6Addr::LOCALHOST) });
    }
    if let Some(addr) = reversed(name) {
        return known.holder(addr).map_or(Found::Nothing, Found::Name);
    }
    // An address as text is a name that nobody has.
    let instance = known.directory().find(name);
    if let Some(addrs) = instance.and_then(|instance| known.addrs(known.directory().ordinal(&instance)?)) {
        return Found::Addrs(addrs);
    }
    let is_inner = name == "lab" || name.strip_suffix(".lab").is_some_and(|group| known.directory().has_group(group));
    if is_inner { Found::Inner } else { Found::Nothing }
}

/// Returns the address that a name of `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = digits.rsplit('.').map(|text| text.parse::<u8>().ok().filter(|n| n.to_string() == text));
        let mut next = || octets.next().flatten();
        let addr = Ipv4Addr::new(next()?, next()?, next()?, next()?);
        return octets.next().is_none().then_some(addr.into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let (mut bits, mut count) = (0u128, 0);
    for digit in digits.rsplit('.') {
        let value = digit.parse::<char>().ok()?.to_digit(16)?;
        bits = bits << 4 | u128::from(value);
        count += 1;
        if count > 32 {
            return None;
        }
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

/// Writes a name as a message holds it; none where it has a label that is too long for one.
fn encode(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= MAX_NAME).then_some(bytes)
}
