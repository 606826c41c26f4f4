//! Tar as this crate writes it: one way for each entry, so that equal trees are equal bytes.
//!
//! ustar headers without names of users; what does not fit goes into an extended header before it.

use super::{BLOCK, TarBlock, padding};

/// What an entry is, and what only that kind has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    File { size: u64 },
    Directory,
    Symlink { target: &'a [u8] },
    HardLink { target: &'a [u8] },
}

/// What is written about an entry.
#[derive(Clone, Debug)]
pub(crate) struct Meta<'a> {
    /// Path from the root, without slashes at its ends.
    pub(crate) path: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: u64,
    /// Extended attributes, sorted by name.
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Largest number of an octal field of seven digits.
const MAX_SEVEN: u64 = 0o777_7777;
/// Largest number of an octal field of eleven digits.
const MAX_ELEVEN: u64 = 0o777_7777_7777;

/// Returns the blocks of an entry up to its content.
pub(crate) fn headers(meta: &Meta<'_>, body: Body<'_>) -> Vec<u8> {
    let (kind, size, target): (u8, u64, &[u8]) = match body {
        Body::File { size } => (b'0', size, &[]),
        Body::Directory => (b'5', 0, &[]),
        Body::Symlink { target } => (b'2', 0, target),
        Body::HardLink { target } => (b'1', 0, target),
    };
    let mut path = meta.path.to_vec();
    if kind == b'5' {
        path.push(b'/');
    }
    let mut records = Vec::new();
    if meta.uid as u64 > MAX_SEVEN {
        record(&mut records, b"uid", meta.uid.to_string().as_bytes());
    }
    if meta.gid as u64 > MAX_SEVEN {
        record(&mut records, b"gid", meta.gid.to_string().as_bytes());
    }
    if target.len() > 100 {
        record(&mut records, b"linkpath", target);
    }
    if meta.mtime > MAX_ELEVEN {
        record(&mut records, b"mtime", meta.mtime.to_string().as_bytes());
    }
    if path.len() > 100 {
        record(&mut records, b"path", &path);
    }
    if size > MAX_ELEVEN {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    for (name, value) in meta.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    let mut out = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        let extended = Fields { kind: b'x', size: records.len() as u64, mode: 0o644, uid: 0, gid: 0, mtime: 0 };
        out.extend(block(b"PaxHeaders/entry", &[], &extended));
        out.extend_from_slice(&records);
        out.resize(out.len() + padding(records.len() as u64), 0);
    }
    let fits = |value: u64, max: u64| if value > max { 0 } else { value };
    let fields = Fields {
        kind,
        size: fits(size, MAX_ELEVEN),
        mode: meta.mode,
        uid: fits(meta.uid.into(), MAX_SEVEN),
        gid: fits(meta.gid.into(), MAX_SEVEN),
        mtime: fits(meta.mtime, MAX_ELEVEN),
    };
    out.extend(block(&path[..path.len().min(100)], &target[..target.len().min(100)], &fields));
    out
}

/// The end of a tar.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

struct Fields {
    kind: u8,
    size: u64,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
}

fn block(name: &[u8], link: &[u8], fields: &Fields) -> TarBlock {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, format!("{:07o}", fields.mode).as_bytes());
    put(108, format!("{:07o}", fields.uid).as_bytes());
    put(116, format!("{:07o}", fields.gid).as_bytes());
    put(124, format!("{:011o}", fields.size).as_bytes());
    put(136, format!("{:011o}", fields.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[fields.kind]);
    put(157, link);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// Appends `<length> <key>=<value>\n`, where the length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}
