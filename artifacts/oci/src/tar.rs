//! Tar, as container engines read it.

pub(crate) mod header;
pub(crate) mod scan;
pub(crate) mod write;

/// Size of a block of tar in bytes.
pub(crate) const BLOCK: usize = 512;

/// A block of tar.
pub(crate) type TarBlock = [u8; BLOCK];

/// Bytes after a content of `size` bytes up to the next block.
pub(crate) fn padding(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}
