//! Names of content: multihashes and CIDs, as bytes and as text, and the check of bytes against them.

use std::str::FromStr;

use iptl_dag::block::{self, MIN_DIGEST_SIZE};
use iptl_dag::{Block, Cid, HashError, Multihash, PeerId, varint};

use crate::memory::bounded;

/// The bytes are read as a CID with content behind it, and as text.
pub(crate) fn cid(data: &[u8]) -> bool {
    let read = bounded(2, data, || varint::decode_cid(data)).ok();
    if let Some((cid, rest)) = read {
        let bytes = cid.to_bytes();
        assert_eq!(bytes.len(), cid.encoded_len());
        assert_eq!(Cid::try_from(bytes.as_slice()).expect("it was just written"), cid);
        // Two forms of one name would be two entries in every index.
        assert_eq!(bytes, data[..data.len() - rest.len()], "a CID has one form");
        assert_eq!(Cid::from_str(&cid.to_string()).expect("it was just written"), cid);
        check_content(&cid, rest);
    }
    let text = std::str::from_utf8(data).unwrap_or_default();
    if let Ok(peer) = PeerId::from_str(text) {
        assert_eq!(PeerId::from_str(&peer.to_string()).as_ref(), Ok(&peer));
        assert_eq!(PeerId::from_bytes(peer.as_bytes()).as_ref(), Ok(&peer));
    }
    match bounded(4, data, || Cid::from_str(text)) {
        Ok(cid) => {
            assert_eq!(Cid::from_str(&cid.to_string()).expect("it was just written"), cid);
            true
        }
        Err(_) => read.is_some(),
    }
}

/// The bytes are read as a multihash with content behind it.
pub(crate) fn multihash(data: &[u8]) -> bool {
    let named = [&[1, 0x55], data].concat();
    let Ok((cid, rest)) = varint::decode_cid(&named) else { return false };
    let hash = *cid.hash();
    assert_eq!(hash.to_bytes(), data[..data.len() - rest.len()], "a multihash has one form");
    assert_eq!(varint::whole_cid(&named[..named.len() - rest.len()]), Ok(cid));
    assert_eq!(Multihash::from_bytes(&hash.to_bytes()).expect("it was just written"), hash);
    if let Some(computed) = block::digest(hash.code(), rest) {
        assert_eq!(computed.code(), hash.code());
        let named = Block::hashed(hash.code(), rest.to_vec()).expect("its hash can be computed");
        assert_eq!(*named.cid().hash(), computed);
        assert_eq!(named.named(Cid::new_v1(0x71, hash)).is_some(), computed == hash);
        if computed.digest().len() >= MIN_DIGEST_SIZE || hash.code() == 0 {
            assert_eq!(block::check(&Cid::new_v1(0x55, computed), rest), Ok(()));
        }
    }
    check_content(&cid, rest);
    true
}

/// Content is accepted only under a hash that its own begins with.
fn check_content(cid: &Cid, content: &[u8]) {
    match Block::verify(*cid, content.to_vec()) {
        Ok(block) => {
            assert_eq!((block.cid(), block.data().as_ref()), (cid, content));
            let digest = cid.hash().digest();
            assert!(digest.len() >= MIN_DIGEST_SIZE || digest == content, "a short digest proves nothing");
        }
        Err(HashError::Mismatch { cid: named } | HashError::UnknownHash { cid: named, .. }) => assert_eq!(named, *cid),
        Err(HashError::TooLarge { size }) => assert!(size > iptl_dag::MAX_BLOCK_SIZE),
    }
}
