//! SHA-256 digests as container tools write them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest; written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Hashes bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Returns the 64 digits alone.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// Reads 64 hexadecimal digits.
    pub(crate) fn from_hex(hex: &str) -> Option<Digest> {
        HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok().map(Digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a digest that can be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Another hash function.
    #[error("{text:?} is not a SHA-256 digest; others are not supported")]
    Function {
        /// The text.
        text: String,
    },
    /// Not a digest.
    #[error("{text:?} is not a digest, which is sha256: and 64 lower-case hexadecimal digits")]
    Form {
        /// The text.
        text: String,
    },
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        // What is shown was written by a stranger, and may be long.
        let shown = || text.chars().take(100).collect();
        match text.split_once(':') {
            Some(("sha256", hex)) => Digest::from_hex(hex).ok_or_else(|| DigestError::Form { text: shown() }),
            Some(_) => Err(DigestError::Function { text: shown() }),
            None => Err(DigestError::Form { text: shown() }),
        }
    }
}

/// A reader that counts, and perhaps hashes, what passes through it.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Option<Sha256>,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    /// Hashes where `digest` is set; else only counts.
    pub(crate) fn new(inner: R, digest: bool) -> Hashing<R> {
        Hashing { inner, hash: digest.then(Sha256::new), bytes: 0 }
    }

    /// Bytes that passed.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Digest of the bytes that passed, where they were hashed.
    pub(crate) fn finish(self) -> Option<Digest> {
        self.hash.map(|hash| Digest(hash.finalize().into()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..count]);
        }
        self.bytes += count as u64;
        Ok(count)
    }
}
