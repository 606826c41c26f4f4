//! What the DHT is told of the roots that are kept here: each under one key, which depends on who may read it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use iptl_dag::{Cid, PeerId, block};

use crate::links::Links;
use crate::members::Members;

/// Multihash code of BLAKE3-256.
const BLAKE3: u64 = 0x1e;

/// Sets the hashes of these keys apart from all others.
const MEMBERS_KEY: &[u8] = b"iptl/1 root for members of a lab";

/// Returns the key in the DHT of a root that only members of a lab may read.
///
/// Who keeps the record for others sees neither root nor lab in it, and can compute it only from both. A public root has
/// its multihash as a key, as everywhere.
pub fn members_key(lab: &PeerId, root: &Cid) -> Vec<u8> {
    let lab = lab.as_bytes();
    let text = [MEMBERS_KEY, &lab.len().to_be_bytes(), lab, &root.hash().to_bytes()].concat();
    block::digest(BLAKE3, &text).expect("BLAKE3 is known").to_bytes()
}

/// Returns the keys under which the providers of a root may be found by a member of `lab`, or by a stranger.
pub(crate) fn keys(lab: Option<&PeerId>, root: &Cid) -> Vec<Vec<u8>> {
    let of_members = lab.map(|lab| members_key(lab, root));
    [root.hash().to_bytes()].into_iter().chain(of_members).collect()
}

/// Tells the DHT of roots.
pub(crate) struct Announcer {
    links: Links,
    members: Members,
    roots: Mutex<BTreeMap<Cid, Arc<Announced>>>,
}

/// What is told of one root.
#[derive(Default)]
struct Announced {
    /// The key under which it should be found; none where it should not.
    wanted: Mutex<Option<Vec<u8>>>,
    /// The key under which the DHT was told of it; one task changes it at a time.
    told: tokio::sync::Mutex<Option<Vec<u8>>>,
}

impl Announcer {
    pub(crate) fn new(links: Links, members: Members) -> Announcer {
        Announcer { links, members, roots: Mutex::default() }
    }

    /// Lets a root be found: by everybody where it is public, else by those who know the lab and the root. Without a lab
    /// nobody may read what is not public, and nobody is told.
    pub(crate) fn announce(&self, root: Cid, public: bool) {
        let key = match public {
            true => Some(root.hash().to_bytes()),
            false => self.members.lab().map(|lab| members_key(&lab, &root)),
        };
        self.tell(root, key);
    }

    /// Lets a root be found no more. Others forget it with time.
    pub(crate) fn withdraw(&self, root: Cid) {
        self.tell(root, None);
    }

    fn tell(&self, root: Cid, key: Option<Vec<u8>>) {
        let Some(net) = self.links.net().cloned() else { return };
        let announced = {
            let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
            let announced = roots.entry(root).or_default().clone();
            *announced.wanted.lock().unwrap_or_else(PoisonError::into_inner) = key;
            announced
        };
        tokio::spawn(async move {
            let mut told = announced.told.lock().await;
            // Several changes at once come to the last of them, in whatever order their tasks get here.
            let wanted = announced.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(before) = told.take().filter(|before| wanted.as_ref() != Some(before)) {
                net.stop_providing(&before).await;
            }
            if let Some(key) = &wanted
                && let Err(error) = net.provide(key).await
            {
                tracing::warn!(%root, %error, "a root is not announced");
            }
            *told = wanted;
        });
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::{Block, Codec};
    use iptl_trust::Keypair;

    use super::*;

    #[test]
    fn key_for_members_tells_nothing_and_differs_by_lab_and_root() {
        let labs = [1, 2].map(|seed| Keypair::from_seed(&[seed; 32]).peer().clone());
        let roots = ["one", "two"].map(|text| *Block::new(Codec::Raw, text).cid());
        let mut all = Vec::new();
        for (lab, root) in labs.iter().flat_map(|lab| roots.iter().map(move |root| (lab, root))) {
            let key = members_key(lab, root);
            assert_eq!(key, members_key(lab, root));
            assert!(!key.windows(8).any(|part| root.hash().digest().starts_with(part)));
            all.push(key);
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4);
        assert_eq!(keys(None, &roots[0]), [roots[0].hash().to_bytes()]);
        assert_eq!(keys(Some(&labs[0]), &roots[0]).len(), 2);
    }
}
