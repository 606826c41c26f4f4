//! Keys that all instances of a run can compute, so that each knows who the others are without asking.

use libp2p::PeerId;
use libp2p::identity::Keypair;

/// Returns the key of an instance. It is a secret from nobody, which is all that an experiment needs.
pub fn key(seed: u64, ordinal: u32) -> Keypair {
    let mut secret = *b"iptl: a key that everybody knows";
    secret[16..24].copy_from_slice(&seed.to_be_bytes());
    secret[24..28].copy_from_slice(&ordinal.to_be_bytes());
    Keypair::ed25519_from_bytes(secret).expect("any 32 bytes are a key")
}

/// Returns who has that key.
pub fn peer(seed: u64, ordinal: u32) -> PeerId {
    key(seed, ordinal).public().to_peer_id()
}
