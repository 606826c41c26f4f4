//! One header block, and the records that extend it.
//!
//! Engines read layers with the tar package of Go. What it takes is taken here, with the same meaning, and what it refuses
//! is refused: a layer that two readers understand differently is how images smuggle things.

use super::{BLOCK, TarBlock};

/// Numbers and texts of a header block.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: i64,
    pub(crate) mtime: i64,
}

impl Header {
    /// Reads a block; the reason is for people.
    pub(crate) fn parse(block: &TarBlock) -> Result<Header, &'static str> {
        check_sum(block)?;
        let field = |at: usize, length: usize| &block[at..at + length];
        let number = |at, length, what| number(field(at, length)).ok_or(what);
        let mut name = text(field(0, 100)).to_vec();
        let magic = field(257, 6);
        let version = field(263, 2);
        let prefix = if magic == b"ustar\0" {
            // The format of star keeps times where ustar has the end of the prefix.
            let star = field(508, 4) == b"tar\0";
            text(field(345, if star { 131 } else { 155 }))
        } else if magic == b"ustar " && version == b" \0" {
            let times = [field(345, 12), field(357, 12)];
            let bad = times.iter().any(|time| time[0] != 0 && self::number(time).is_none());
            // Old writers of Go put a prefix where GNU has times.
            if bad { Some(text(field(345, 155))).filter(|p| p.is_ascii()).unwrap_or_default() } else { &[] }
        } else {
            &[]
        };
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        Ok(Header {
            name,
            link: text(field(157, 100)).to_vec(),
            kind: block[156],
            mode: number(100, 8, "its mode is no number")?,
            uid: number(108, 8, "its owner is no number")?,
            gid: number(116, 8, "its group is no number")?,
            size: number(124, 12, "its size is no number")?,
            mtime: number(136, 12, "its time is no number")?,
        })
    }
}

fn check_sum(block: &TarBlock) -> Result<(), &'static str> {
    let stated = octal(&block[148..156]).ok_or("its checksum is no number")?;
    // The sum is taken with blanks in its own place. Some old writers summed bytes as signed.
    let [before, own, after] = [&block[..148], &b"        "[..], &block[156..]];
    let unsigned = |part: &[u8]| part.iter().fold(0, |sum, byte| sum + i64::from(*byte));
    let signed = |part: &[u8]| part.iter().fold(0, |sum, byte| sum + i64::from(*byte as i8));
    let fits = stated == unsigned(before) + unsigned(own) + unsigned(after)
        || stated == signed(before) + signed(own) + signed(after);
    if fits { Ok(()) } else { Err("its checksum is wrong") }
}

/// Returns the bytes before the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Reads an octal number, or a binary one where the first bit is set.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    let negative = first & 0x40 != 0;
    let invert = if negative { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (i, byte) in field.iter().enumerate() {
        let mut byte = byte ^ invert;
        if i == 0 {
            byte &= 0x7f;
        }
        if value >> 56 > 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { !value } else { value })
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let mut value: i64 = 0;
    for byte in text(&field[start..end]) {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(i64::from(digit))?;
    }
    Some(value)
}

/// What an extended header changes about the entry after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extended {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<i64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<(i64, u32)>,
    /// Extended attributes: name and value.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A file with holes.
    pub(crate) sparse: bool,
}

/// Key of an extended attribute, before its name.
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Extended {
    /// Reads records of the form `<length> <key>=<value>\n`; the reason is for people.
    pub(crate) fn parse(mut records: &[u8]) -> Result<Extended, &'static str> {
        let mut extended = Extended::default();
        while !records.is_empty() {
            let (key, value, rest) = record(records)?;
            records = rest;
            if key.starts_with(b"GNU.sparse.") {
                extended.sparse = true;
                continue;
            }
            if let Some(name) = key.strip_prefix(XATTR) {
                extended.xattrs.retain(|(known, _)| known != name);
                extended.xattrs.push((name.to_vec(), value.to_vec()));
                continue;
            }
            // An empty value takes back what was said before.
            let some = !value.is_empty();
            let integer =
                || if some { decimal(value).map(Some).ok_or("a number in an extension is none") } else { Ok(None) };
            match key {
                b"path" => extended.path = some.then(|| value.to_vec()),
                b"linkpath" => extended.link = some.then(|| value.to_vec()),
                b"size" => extended.size = integer()?,
                b"uid" => extended.uid = integer()?,
                b"gid" => extended.gid = integer()?,
                b"mtime" if some => extended.mtime = Some(time(value).ok_or("a time in an extension is none")?),
                b"mtime" => extended.mtime = None,
                _ => {}
            }
        }
        Ok(extended)
    }
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn record(bytes: &[u8]) -> Result<Record<'_>, &'static str> {
    const WRONG: &str = "an extension is garbled";
    let space = bytes.iter().position(|byte| *byte == b' ').ok_or(WRONG)?;
    let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or(WRONG)?;
    let body = bytes.get(space + 1..length).ok_or(WRONG)?;
    let body = body.strip_suffix(b"\n").ok_or(WRONG)?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or(WRONG)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || key.contains(&0) || (text && value.contains(&0)) {
        return Err(WRONG);
    }
    Ok((key, value, &bytes[length..]))
}

fn decimal(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Reads seconds with an optional fraction.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    // -1.25 is a quarter before -1, and clocks count forward from whole seconds.
    if whole.starts_with('-') && nanos > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos))
    } else {
        Some((seconds, nanos))
    }
}

/// Returns whether a block is all zeros.
pub(crate) fn is_zero(block: &TarBlock) -> bool {
    *block == [0; BLOCK]
}
