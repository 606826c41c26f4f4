//! Inputs that are made rather than stored.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Returns the first `size` bytes of the ChaCha20 keystream under SHA-256 of `seed`, the generator of IPIP-499.
pub(crate) fn keystream(seed: &str, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    keystream_rng(seed).fill_bytes(&mut bytes);
    bytes
}

/// Returns that keystream at its beginning.
pub(crate) fn keystream_rng(seed: &str) -> ChaCha20Rng {
    let block = multihash_codetable::MultihashDigest::digest(&multihash_codetable::Code::Sha2_256, seed.as_bytes());
    ChaCha20Rng::from_seed(block.digest().try_into().expect("SHA-256 has 32 bytes"))
}
