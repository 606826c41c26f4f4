//! Places outside of the lab that containers may reach where the owner of a machine lets them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest name of a host, in bytes.
const MAX_NAME: usize = 253;

/// Longest part of one between two dots.
const MAX_PART: usize = 63;

/// One place outside of the lab: a host, one port of it, and how it is spoken to. Written `bootstrap.example:4001/udp`,
/// `192.0.2.7:443/tcp` or `[2001:db8::7]:443/tcp`, and in no other way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Who.
    pub host: Host,
    /// Port, from 1.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
}

/// Who is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A name of the global system of names, in lower case, of two parts or more.
    Name(String),
    /// An address of one host.
    Addr(IpAddr),
}

/// How a destination is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Returns its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// Why a text is no [`Destination`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// It has another form.
    #[error("a destination is HOST:PORT/tcp or HOST:PORT/udp, as in 192.0.2.7:443/tcp")]
    Form,
    /// Its port is none.
    #[error("a port is a number from 1 to 65535")]
    Port,
    /// Its host is no name that everybody resolves alike.
    #[error("a host is an address, or a name of two parts or more in lower case, as in bootstrap.example")]
    Name,
    /// Its host is a name of the lab's own.
    #[error("names under lab and localhost are the lab's own")]
    OwnName,
    /// Its address is that of no single host, or is written in another way elsewhere.
    #[error("{0} is the address of no single host")]
    Addr(IpAddr),
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Destination, DestinationError> {
        let (place, protocol) = text.rsplit_once('/').ok_or(DestinationError::Form)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(DestinationError::Form),
        };
        let (host, port) = place.rsplit_once(':').ok_or(DestinationError::Form)?;
        let digits =
            (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
        let port: u16 = port.parse().ok().filter(|_| digits).ok_or(DestinationError::Port)?;
        let host = match host.strip_prefix('[') {
            Some(inside) => {
                let addr = inside.strip_suffix(']').ok_or(DestinationError::Form)?;
                let addr: Ipv6Addr = addr.parse().map_err(|_| DestinationError::Form)?;
                Host::Addr(addr.into())
            }
            None => match host.parse::<Ipv4Addr>() {
                Ok(addr) => Host::Addr(addr.into()),
                Err(_) => Host::Name(name(host)?),
            },
        };
        if let Host::Addr(addr) = host
            && !is_one_host(addr)
        {
            return Err(DestinationError::Addr(addr));
        }
        let destination = Destination { host, port, protocol };
        // One spelling each, since they are compared with what an owner wrote.
        if destination.to_string() == text { Ok(destination) } else { Err(DestinationError::Form) }
    }
}

/// Checks a name: letters, digits and hyphens between dots. The last part begins with a letter, so that no spelling of an
/// address passes for a name.
fn name(text: &str) -> Result<String, DestinationError> {
    let part = |part: &str| {
        (1..=MAX_PART).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    if matches!(last, "lab" | "localhost") {
        return Err(DestinationError::OwnName);
    }
    let holds = text.len() <= MAX_NAME
        && text.contains('.')
        && text.split('.').all(part)
        && last.starts_with(|c: char| c.is_ascii_lowercase());
    if holds { Ok(text.to_owned()) } else { Err(DestinationError::Name) }
}

/// Whether an address can be that of one host, and has no other spelling.
fn is_one_host(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_unspecified() && !addr.is_multicast() && !addr.is_broadcast(),
        IpAddr::V6(addr) => !addr.is_unspecified() && !addr.is_multicast() && addr.to_ipv4_mapped().is_none(),
    }
}

/// Returns whether an address is one of the public network: none of a home, an office, a carrier, a machine itself, of
/// documents, tests and measurements, or one that stands for another. What is not known to be public is not.
pub fn is_public(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            let [a, b, c, _] = addr.octets();
            let own = addr.is_private() || addr.is_loopback() || addr.is_link_local() || a == 0;
            let carrier = a == 100 && (64..128).contains(&b);
            // Protocols' own, relays of 6to4, benchmarks.
            let special = (a, b, c) == (192, 0, 0) || (a, b, c) == (192, 88, 99) || (a == 198 && (b & 0xfe) == 18);
            // Multicast, what is kept for later, and broadcast.
            !(own || carrier || special || addr.is_documentation() || a >= 224)
        }
        IpAddr::V6(addr) => {
            let [a, b, ..] = addr.segments();
            // Global unicast, without what carries an IPv4 address (Teredo, 6to4) or is of documents and tests.
            a & 0xe000 == 0x2000 && a != 0x2002 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8)) && a & 0xfff0 != 0x3ff0
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Destination { host, port, protocol } = self;
        match host {
            Host::Name(name) => write!(f, "{name}:{port}/{}", protocol.name()),
            Host::Addr(IpAddr::V4(addr)) => write!(f, "{addr}:{port}/{}", protocol.name()),
            Host::Addr(IpAddr::V6(addr)) => write!(f, "[{addr}]:{port}/{}", protocol.name()),
        }
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Destination, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
