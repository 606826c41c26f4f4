//! Ways out of the lab: what the owner grants, and the addresses that names have when a cell is prepared.
//!
//! A name is looked up once, by the machine's own resolver, and only addresses of the public network count: whoever
//! answers for a name cannot lead a container into the owner's network. An address of that network is reached where the
//! owner has written the address itself. What was found is kept with the cell, so that a lablet that is started again
//! looks nothing up anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iptl_dag::model::destination::is_public;
use iptl_dag::model::{Container, Destination, Host};

/// Places by the addresses at which they are.
pub(super) type Pinned = BTreeMap<Destination, Vec<SocketAddr>>;

/// File in a cell's scratch with what was found; no group is called so.
const PINNED_FILE: &str = ".egress";

/// Time in which a name is to be found.
const LOOKUP: Duration = Duration::from_secs(10);

/// Most addresses of one place that are kept.
const MAX_ADDRS: usize = 16;

/// Why instances cannot be let out of the lab.
#[derive(Debug, thiserror::Error)]
pub(super) enum EgressError {
    /// The owner does not let them.
    #[error("its owner grants no way out of the lab to {0}")]
    NotGranted(Destination),
    /// A name has no address.
    #[error("{place} cannot be found: {reason}")]
    NotFound {
        /// The place.
        place: Destination,
        /// Why.
        reason: String,
    },
    /// A name leads into the owner's own network, or another that is not public.
    #[error(
        "{place} leads to {addr}, which is no address of the public network; its owner may grant that address itself"
    )]
    NotPublic {
        /// The place.
        place: Destination,
        /// The first address that it has.
        addr: std::net::IpAddr,
    },
    /// What was found cannot be kept, or read again.
    #[error("the addresses of what is outside of the lab, in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Finds the addresses of places, of which each must be granted. Safe to drop.
pub(super) async fn pin(
    granted: &BTreeSet<Destination>,
    places: &BTreeSet<Destination>,
) -> Result<Pinned, EgressError> {
    check(granted, places)?;
    let mut pinned = Pinned::new();
    for place in places {
        let found = match &place.host {
            Host::Addr(addr) => vec![SocketAddr::new(*addr, place.port)],
            Host::Name(name) => {
                let asked = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((name.as_str(), place.port))).await;
                let not_found = |reason: String| EgressError::NotFound { place: place.clone(), reason };
                let found = asked.map_err(|_| not_found("its resolver does not answer".to_owned()))?;
                public(place, found.map_err(|e| not_found(e.to_string()))?)?
            }
        };
        pinned.insert(place.clone(), found);
    }
    Ok(pinned)
}

/// Keeps those addresses of a name that are public; fails where there are none.
fn public(place: &Destination, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, EgressError> {
    let (public, other): (Vec<SocketAddr>, Vec<SocketAddr>) = found.partition(|addr| is_public(addr.ip()));
    match (public.is_empty(), other.first()) {
        (false, _) => Ok(public.into_iter().take(MAX_ADDRS).collect()),
        (true, Some(addr)) => Err(EgressError::NotPublic { place: place.clone(), addr: addr.ip() }),
        (true, None) => Err(EgressError::NotFound { place: place.clone(), reason: "it has no address".to_owned() }),
    }
}

fn check(granted: &BTreeSet<Destination>, places: &BTreeSet<Destination>) -> Result<(), EgressError> {
    match places.difference(granted).next() {
        Some(place) => Err(EgressError::NotGranted(place.clone())),
        None => Ok(()),
    }
}

/// Returns those of a container.
pub(super) fn of(settings: &Container, pinned: &Pinned) -> Pinned {
    let own = pinned.iter().filter(|(place, _)| settings.egress.contains(*place));
    own.map(|(place, addrs)| (place.clone(), addrs.clone())).collect()
}

/// Keeps what was found for a cell with this scratch.
pub(super) fn note(scratch: &Path, pinned: &Pinned) -> Result<(), EgressError> {
    if pinned.is_empty() {
        return Ok(());
    }
    let path = scratch.join(PINNED_FILE);
    std::fs::write(&path, iptl_dag::codec::encode(pinned)).map_err(|source| EgressError::File { path, source })
}

/// Returns what was found before; each place must still be granted.
pub(super) fn noted(
    scratch: &Path,
    granted: &BTreeSet<Destination>,
    places: &BTreeSet<Destination>,
) -> Result<Pinned, EgressError> {
    check(granted, places)?;
    if places.is_empty() {
        return Ok(Pinned::new());
    }
    let path = scratch.join(PINNED_FILE);
    let bytes = std::fs::read(&path).map_err(|source| EgressError::File { path: path.clone(), source })?;
    iptl_dag::codec::decode(&bytes).map_err(|e| EgressError::File { path, source: io::Error::other(e) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(texts: &[&str]) -> BTreeSet<Destination> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn what_is_not_granted_as_it_is_written_is_refused() {
        let granted = places(&["127.0.0.1:443/tcp", "a.example:1/udp"]);
        let pinned = pin(&granted, &places(&["127.0.0.1:443/tcp"])).await.unwrap();
        assert_eq!(pinned.into_values().collect::<Vec<_>>(), [addrs(&["127.0.0.1:443"])]);
        for other in
            ["127.0.0.1:444/tcp", "127.0.0.1:443/udp", "127.0.0.2:443/tcp", "a.example:1/tcp", "b.example:1/udp"]
        {
            let refused = pin(&granted, &places(&[other])).await.unwrap_err();
            assert_eq!(refused.to_string(), format!("its owner grants no way out of the lab to {other}"));
        }
    }

    #[test]
    fn names_do_not_lead_into_the_owners_network() {
        let place: Destination = "a.example:443/tcp".parse().unwrap();
        let own =
            ["10.0.0.1:443", "192.168.1.1:443", "127.0.0.1:443", "169.254.169.254:443", "[::1]:443", "[fe80::1]:443"];
        for addr in own.into_iter().chain(["[fd00::1]:443", "[::ffff:10.0.0.1]:443"]) {
            let refused = public(&place, addrs(&[addr]).into_iter()).unwrap_err();
            assert!(matches!(refused, EgressError::NotPublic { .. }), "{addr}: {refused}");
            let both = public(&place, addrs(&[addr, "8.8.8.8:443"]).into_iter()).unwrap();
            assert_eq!(both, addrs(&["8.8.8.8:443"]));
        }
        assert!(matches!(public(&place, std::iter::empty()).unwrap_err(), EgressError::NotFound { .. }));
    }

    #[test]
    fn what_was_found_is_the_same_after_a_restart_unless_the_grant_is_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let wanted = places(&["a.example:443/tcp", "127.0.0.1:1/udp"]);
        let pinned: Pinned = wanted.iter().cloned().zip([addrs(&["8.8.8.8:443"]), addrs(&["127.0.0.1:1"])]).collect();
        note(scratch.path(), &pinned).unwrap();
        assert_eq!(noted(scratch.path(), &wanted, &wanted).unwrap(), pinned);
        let fewer = places(&["a.example:443/tcp"]);
        assert!(matches!(noted(scratch.path(), &fewer, &wanted).unwrap_err(), EgressError::NotGranted(_)));
        let container = Container { egress: fewer, ..Container::usual() };
        assert_eq!(of(&container, &pinned).into_values().collect::<Vec<_>>(), [addrs(&["8.8.8.8:443"])]);
    }
}
