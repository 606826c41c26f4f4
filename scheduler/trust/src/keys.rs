//! Key pairs, and signatures over the bodies of the model.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use iptl_dag::PeerId;
use iptl_dag::model::signed::{Signable, Signed, signing_bytes};
use iptl_wire::Verified;

/// An ed25519 key pair with its peer ID. Wiped when dropped; prints as `***`.
pub struct Keypair {
    key: SigningKey,
    peer: PeerId,
}

/// Why a signature does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The signer's peer ID carries no ed25519 key, or one that is no point of the curve.
    #[error("{signer} carries no usable ed25519 key")]
    BadKey {
        /// Who is said to have signed.
        signer: PeerId,
    },
    /// The signature is not over these bytes by this key.
    #[error("signature of {signer} on {domain} does not hold")]
    Invalid {
        /// Who is said to have signed.
        signer: PeerId,
        /// What is said to be signed.
        domain: &'static str,
    },
    /// Somebody else signed than had to.
    #[error("{domain} is signed by {actual} and not by {expected}")]
    WrongSigner {
        /// Who had to sign.
        expected: PeerId,
        /// Who did.
        actual: PeerId,
        /// What is signed.
        domain: &'static str,
    },
}

impl Keypair {
    /// Makes the key pair of a secret seed.
    pub fn from_seed(seed: &[u8; 32]) -> Keypair {
        let key = SigningKey::from_bytes(seed);
        let peer = PeerId::from_ed25519(key.verifying_key().as_bytes());
        Keypair { key, peer }
    }

    /// Returns the peer ID.
    pub fn peer(&self) -> &PeerId {
        &self.peer
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({}, ***)", self.peer)
    }
}

/// Signs a body.
pub fn sign<T: Signable>(keypair: &Keypair, body: T) -> Signed<T> {
    let signature = keypair.key.sign(&signing_bytes(&body)).to_bytes().to_vec();
    Signed { body, signer: keypair.peer.clone(), signature }
}

/// Checks that whoever is named as signer has signed this body, for this domain.
///
/// The check is strict: keys of small order are refused, and so are second spellings of a signature.
pub fn verify<T: Signable>(signed: &Signed<T>) -> Result<(), SignatureError> {
    let bad_key = || SignatureError::BadKey { signer: signed.signer.clone() };
    let invalid = || SignatureError::Invalid { signer: signed.signer.clone(), domain: T::DOMAIN };
    let key = signed.signer.ed25519().ok_or_else(bad_key)?;
    let key = VerifyingKey::from_bytes(&key).map_err(|_| bad_key())?;
    let signature = Signature::from_slice(&signed.signature).map_err(|_| invalid())?;
    key.verify_strict(&signing_bytes(&signed.body), &signature).map_err(|_| invalid())
}

/// Checks a signature over bytes that carry their domain already, for readers of many kinds of bodies.
pub fn is_signature(signer: &PeerId, bytes: &[u8], signature: &[u8]) -> bool {
    let key = signer.ed25519().and_then(|key| VerifyingKey::from_bytes(&key).ok());
    let signature = Signature::from_slice(signature).ok();
    key.zip(signature).is_some_and(|(key, signature)| key.verify_strict(bytes, &signature).is_ok())
}

/// Checks that `signer` has signed this body.
pub fn verify_by<T: Signable>(signed: &Signed<T>, signer: &PeerId) -> Result<(), SignatureError> {
    if signed.signer != *signer {
        let (expected, actual) = (signer.clone(), signed.signer.clone());
        return Err(SignatureError::WrongSigner { expected, actual, domain: T::DOMAIN });
    }
    verify(signed)
}

/// Checks that `signer` has signed, and takes the body out as the proof of it that a core asks for.
pub fn verified<T: Signable>(signed: Signed<T>, signer: &PeerId) -> Result<Verified<T>, SignatureError> {
    verify_by(&signed, signer)?;
    Ok(Verified::vouch(signed.body))
}
