//! Kinds of NATs, after RFC 4787, and what is known of each pair of them.

use std::fmt;

/// What of the remote end a NAT looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depends {
    /// Nothing: "endpoint-independent".
    Nothing,
    /// Its address.
    Address,
    /// Its address and port.
    AddressPort,
}

/// A kind of NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// What a new mapping depends on.
    pub mapping: Depends,
    /// What lets a packet from outside in.
    pub filtering: Depends,
}

impl Depends {
    fn named(name: &str) -> Option<Depends> {
        match name {
            "ei" => Some(Depends::Nothing),
            "ad" => Some(Depends::Address),
            "apd" => Some(Depends::AddressPort),
            _ => None,
        }
    }
}

impl Kind {
    /// Reads the name of a group: `ei-apd`.
    pub fn named(group: &str) -> Option<Kind> {
        let (mapping, filtering) = group.split_once('-')?;
        Some(Kind { mapping: Depends::named(mapping)?, filtering: Depends::named(filtering)? })
    }
}

impl fmt::Display for Depends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Depends::Nothing => "ei",
            Depends::Address => "ad",
            Depends::AddressPort => "apd",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.mapping, self.filtering)
    }
}

/// Returns whether a pair should get a direct connection or cannot get one, where that follows from the NATs alone.
///
/// Both ends know of each other the address that the relay saw. Where both mappings are the same for whoever is asked,
/// these addresses are right, and each end's own packet opens its filter for the other's. Where neither mapping is,
/// neither address leads to the mapping that the other end would need, and answers come from another port than was
/// dialled. In between it depends on who dials, and on what the software does.
pub fn expected(one: Kind, other: Kind) -> Option<bool> {
    match (one.mapping, other.mapping) {
        (Depends::Nothing, Depends::Nothing) => Some(true),
        (Depends::Nothing, _) | (_, Depends::Nothing) => None,
        (Depends::Address | Depends::AddressPort, Depends::Address | Depends::AddressPort) => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_kinds_have_names_that_can_be_read_back() {
        let parts = ["ei", "ad", "apd"];
        let names: Vec<String> = parts.iter().flat_map(|m| parts.iter().map(move |f| format!("{m}-{f}"))).collect();
        assert_eq!(names.len(), 9);
        for name in names {
            assert_eq!(Kind::named(&name).map(|kind| kind.to_string()), Some(name));
        }
        assert_eq!(Kind::named("relay"), None);
    }
}
