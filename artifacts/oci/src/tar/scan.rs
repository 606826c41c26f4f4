//! A layer's tar, read as it streams past, with every rule that an entry has to keep.
//!
//! [`Scanner`] is pushed bytes and tells a [`Sink`] what they are. Every byte reaches the sink, in order and in exactly one
//! call, so that a sink can keep them all. The scanner holds one entry's headers and no content.

use std::fmt;

use super::header::{Extended, Header, is_zero, text};
use super::{BLOCK, TarBlock, padding};
use crate::limits::{Limits, MAX_COMPONENTS, MAX_EXTENSION, MAX_NAME, MAX_PATH};

/// A path of a stranger, for people: cut, and without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownPath(String);

impl ShownPath {
    pub(crate) fn new(path: &[u8]) -> ShownPath {
        const SHOWN: usize = 200;
        let text = String::from_utf8_lossy(&path[..path.len().min(4 * SHOWN)]);
        let mut shown: String = text.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        if shown.len() < text.len() || path.len() > 4 * SHOWN {
            shown.push('…');
        }
        ShownPath(shown)
    }
}

impl fmt::Display for ShownPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Why a tar is not taken as a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// Not a tar, or a damaged one.
    #[error("byte {offset} begins no valid tar header: {reason}")]
    Header {
        /// Where, in bytes from the start.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// It ends in the middle of something.
    #[error("it ends in the middle of an entry, after {size} bytes: the file is incomplete")]
    Truncated {
        /// Bytes that there are.
        size: u64,
    },
    /// A device node.
    #[error("{path} is a device node, which containers of a lab do not get; remove it from the image")]
    Device {
        /// Path in the layer.
        path: ShownPath,
    },
    /// A FIFO.
    #[error("{path} is a FIFO; remove it from the image, and let the program make it when it starts")]
    Fifo {
        /// Path in the layer.
        path: ShownPath,
    },
    /// A file with holes, in one of tar's ways to write them.
    #[error("{path} is written with holes; make the image without tar's --sparse")]
    Sparse {
        /// Path in the layer.
        path: ShownPath,
    },
    /// Another kind of entry.
    #[error("{path} is of the kind {kind:?}, which no container engine unpacks")]
    Kind {
        /// Path in the layer.
        path: ShownPath,
        /// Type flag.
        kind: char,
    },
    /// A name or the target of a hard link that leads up.
    #[error("{path} leads out of its directory with \"..\"")]
    LeadsUp {
        /// Path in the layer.
        path: ShownPath,
    },
    /// A name that Linux does not take.
    #[error("{path} cannot be a path: {reason}")]
    Path {
        /// Path in the layer.
        path: ShownPath,
        /// What is wrong.
        reason: &'static str,
    },
    /// A whiteout that removes nothing that has a name.
    #[error("{path} marks nothing as removed that could be in a directory")]
    Whiteout {
        /// Path in the layer.
        path: ShownPath,
    },
    /// More files than allowed.
    #[error("too many files: more than {limit}")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// More bytes than allowed.
    #[error("it unpacks to more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// More attributes than anybody reads.
    #[error("the names and attributes before byte {offset} take more than {MAX_EXTENSION} bytes")]
    Extension {
        /// Where, in bytes from the start.
        offset: u64,
    },
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
}

/// One entry, with its meaning.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Path from the root without `.` and doubled slashes; empty for the root.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Of a hard link the path that it links, cleaned like `path`; of a symbolic link its target as it is.
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    /// Bytes of content; of files alone.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Last component.
    pub(crate) fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// What a block before a content is: blocks of one kind resemble each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Header of an entry.
    Header,
    /// Header of an extension.
    ExtensionHeader,
    /// Content of an extension.
    ExtensionData,
}

/// Takes a tar apart. Nothing is called again after an error.
pub(crate) trait Sink {
    type Error: From<TarError>;

    /// An entry begins: its meaning, and all blocks up to its content.
    fn entry(&mut self, entry: &Entry, blocks: &[(Slot, TarBlock)]) -> Result<(), Self::Error>;

    /// The next bytes of the entry's content.
    fn content(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;

    /// The content is complete; what follows it up to the next block may be short at the end of a tar.
    fn end(&mut self, padding: &[u8]) -> Result<(), Self::Error>;

    /// Bytes after the last entry.
    fn rest(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// A block of zeros was read: another one ends the tar.
    Zero,
    /// Content of an extension: its bytes still to come.
    Extension {
        kind: u8,
        left: usize,
    },
    Content {
        left: u64,
        padding: usize,
    },
    Padding {
        length: usize,
    },
    Rest,
}

/// State of reading one tar.
pub(crate) struct Scanner {
    limits: Limits,
    offset: u64,
    entries: u64,
    state: State,
    block: TarBlock,
    have: usize,
    /// Blocks before the next entry's content.
    group: Vec<(Slot, TarBlock)>,
    extension: Vec<u8>,
    extended: Extended,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
    /// An archive of images: symbolic links go where they want, nobody unpacks it.
    paths_only: bool,
}

impl Scanner {
    /// Starts; `limits` are of this tar.
    pub(crate) fn new(limits: Limits) -> Scanner {
        Scanner {
            limits,
            offset: 0,
            entries: 0,
            state: State::Header,
            block: [0; BLOCK],
            have: 0,
            group: Vec::new(),
            extension: Vec::new(),
            extended: Extended::default(),
            long_name: Vec::new(),
            long_link: Vec::new(),
            paths_only: false,
        }
    }

    /// Starts on an archive that holds layers rather than being one.
    pub(crate) fn of_archive(limits: Limits) -> Scanner {
        Scanner { paths_only: true, ..Scanner::new(limits) }
    }

    /// Bytes taken.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Entries met.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Says whether the end of the tar was read.
    pub(crate) fn at_end(&self) -> bool {
        matches!(self.state, State::Rest)
    }

    /// Passes over the content without its padding, of which the sink is told nothing; returns how many bytes.
    pub(crate) fn skip_content(&mut self) -> u64 {
        match self.state {
            State::Content { left, padding } => {
                self.offset = self.offset.saturating_add(left);
                self.state = if padding == 0 { State::Header } else { State::Padding { length: padding } };
                left
            }
            State::Header | State::Zero | State::Extension { .. } | State::Padding { .. } | State::Rest => 0,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn push<S: Sink>(&mut self, mut bytes: &[u8], sink: &mut S) -> Result<(), S::Error> {
        if self.offset.saturating_add(bytes.len() as u64) > self.limits.bytes {
            return Err(TarError::TooLarge { limit: self.limits.bytes }.into());
        }
        while !bytes.is_empty() {
            let taken = self.step(bytes, sink)?;
            self.offset += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Ends the tar.
    pub(crate) fn finish<S: Sink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        let truncated = TarError::Truncated { size: self.offset };
        match self.state {
            State::Header if self.have == 0 && self.group.is_empty() => Ok(()),
            // Engines take it as the end when the last padding is missing.
            State::Padding { .. } => sink.end(&self.block[..self.have]),
            State::Zero if self.have == 0 => Ok(()),
            State::Rest => Ok(()),
            State::Header | State::Zero | State::Extension { .. } | State::Content { .. } => Err(truncated.into()),
        }
    }

    fn step<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, S::Error> {
        match self.state {
            State::Rest => {
                sink.rest(bytes)?;
                Ok(bytes.len())
            }
            State::Content { left, padding } => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                sink.content(&bytes[..taken])?;
                let left = left - taken as u64;
                self.state = match (left, padding) {
                    (0, 0) => {
                        sink.end(&[])?;
                        State::Header
                    }
                    (0, length) => State::Padding { length },
                    (left, padding) => State::Content { left, padding },
                };
                Ok(taken)
            }
            State::Padding { length } => {
                let taken = self.fill(bytes, length);
                if self.have == length {
                    self.have = 0;
                    self.state = State::Header;
                    sink.end(&self.block[..length])?;
                }
                Ok(taken)
            }
            State::Header | State::Zero | State::Extension { .. } => {
                let taken = self.fill(bytes, BLOCK);
                if self.have == BLOCK {
                    self.have = 0;
                    self.block(sink)?;
                }
                Ok(taken)
            }
        }
    }

    fn fill(&mut self, bytes: &[u8], length: usize) -> usize {
        let taken = (length - self.have).min(bytes.len());
        self.block[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        taken
    }

    /// Start of the block that was filled last.
    fn block_offset(&self) -> u64 {
        // The bytes of this step are not counted yet, and a block starts at a multiple of its size.
        self.offset / BLOCK as u64 * BLOCK as u64
    }

    fn wrong(&self, reason: &'static str) -> TarError {
        TarError::Header { offset: self.block_offset(), reason }
    }

    fn block<S: Sink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        let block = self.block;
        match self.state {
            State::Extension { kind, left } => {
                self.add(Slot::ExtensionData, block)?;
                self.extension.extend_from_slice(&block[..left.min(BLOCK)]);
                self.state = State::Extension { kind, left: left.saturating_sub(BLOCK) };
                if left <= BLOCK {
                    self.end_extension(kind)?;
                }
                Ok(())
            }
            State::Zero if is_zero(&block) => {
                self.state = State::Rest;
                sink.rest(&block)
            }
            State::Zero => Err(self.wrong("a block of zeros comes before it").into()),
            State::Header if is_zero(&block) => {
                for (_, block) in std::mem::take(&mut self.group) {
                    sink.rest(&block)?;
                }
                self.state = State::Zero;
                sink.rest(&block)
            }
            State::Header => self.header(&block, sink),
            State::Content { .. } | State::Padding { .. } | State::Rest => Ok(()),
        }
    }

    fn add(&mut self, slot: Slot, block: TarBlock) -> Result<(), TarError> {
        if (self.group.len() + 1) * BLOCK > MAX_EXTENSION + 2 * BLOCK {
            return Err(TarError::Extension { offset: self.block_offset() });
        }
        self.group.push((slot, block));
        Ok(())
    }

    fn header<S: Sink>(&mut self, block: &TarBlock, sink: &mut S) -> Result<(), S::Error> {
        let header = Header::parse(block).map_err(|reason| self.wrong(reason))?;
        match header.kind {
            kind @ (b'x' | b'g' | b'L' | b'K') => {
                let left = usize::try_from(header.size).map_err(|_| self.wrong("its size is negative"))?;
                if left > MAX_EXTENSION {
                    return Err(TarError::Extension { offset: self.block_offset() }.into());
                }
                self.add(Slot::ExtensionHeader, *block)?;
                self.extension.clear();
                if left == 0 {
                    self.end_extension(kind)?;
                } else {
                    self.state = State::Extension { kind, left };
                }
                Ok(())
            }
            _ => {
                self.add(Slot::Header, *block)?;
                let entry = self.entry(header)?;
                self.entries += 1;
                if self.entries > self.limits.entries {
                    return Err(TarError::TooManyEntries { limit: self.limits.entries }.into());
                }
                let group = std::mem::take(&mut self.group);
                self.state = match entry.size {
                    0 => State::Header,
                    left => State::Content { left, padding: padding(left) },
                };
                sink.entry(&entry, &group)?;
                // Without content there is nothing to end.
                self.group = group;
                self.group.clear();
                Ok(())
            }
        }
    }

    fn end_extension(&mut self, kind: u8) -> Result<(), TarError> {
        self.state = State::Header;
        match kind {
            b'x' => self.extended = Extended::parse(&self.extension).map_err(|reason| self.wrong(reason))?,
            b'L' => self.long_name = text(&self.extension).to_vec(),
            b'K' => self.long_link = text(&self.extension).to_vec(),
            // Of the whole archive. Engines read it as an entry that is nothing, and forget what came before it.
            _ => {
                Extended::parse(&self.extension).map_err(|reason| self.wrong(reason))?;
                self.forget();
            }
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.extended = Extended::default();
        self.long_name.clear();
        self.long_link.clear();
    }

    /// Puts the header and what extends it together.
    fn entry(&mut self, header: Header) -> Result<Entry, TarError> {
        let extended = std::mem::take(&mut self.extended);
        let long_name = Some(std::mem::take(&mut self.long_name)).filter(|name| !name.is_empty());
        let long_link = Some(std::mem::take(&mut self.long_link)).filter(|link| !link.is_empty());
        let name = long_name.or(extended.path).unwrap_or(header.name);
        let link = long_link.or(extended.link).unwrap_or(header.link);
        let shown = || ShownPath::new(&name);
        let kind = match header.kind {
            b'0' => Kind::File,
            0 if name.ends_with(b"/") => Kind::Directory,
            0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => return Err(TarError::Device { path: shown() }),
            b'5' => Kind::Directory,
            b'6' => return Err(TarError::Fifo { path: shown() }),
            b'S' => return Err(TarError::Sparse { path: shown() }),
            kind => return Err(TarError::Kind { path: shown(), kind: char::from(kind) }),
        };
        if extended.sparse {
            return Err(TarError::Sparse { path: shown() });
        }
        // The largest number means "leave it" to the system call that sets owners.
        let number = |value: i64, reason| {
            u32::try_from(value).ok().filter(|value| *value != u32::MAX).ok_or_else(|| self.wrong(reason))
        };
        let size =
            u64::try_from(extended.size.unwrap_or(header.size)).map_err(|_| self.wrong("its size is negative"))?;
        let path = clean(&name)?;
        let link = match kind {
            Kind::HardLink => clean(&link)?,
            Kind::Symlink if !self.paths_only => check_target(&name, link)?,
            Kind::Symlink | Kind::File | Kind::Directory => link,
        };
        let entry = Entry {
            path,
            kind,
            link,
            mode: number(header.mode & 0o7777, "its mode is out of range")?,
            uid: number(extended.uid.unwrap_or(header.uid), "its owner is out of range")?,
            gid: number(extended.gid.unwrap_or(header.gid), "its group is out of range")?,
            mtime: extended.mtime.unwrap_or((header.mtime, 0)),
            size: match kind {
                Kind::File => size,
                Kind::Directory | Kind::Symlink | Kind::HardLink => 0,
            },
            xattrs: extended.xattrs,
        };
        if entry.path.is_empty() && kind != Kind::Directory {
            return Err(TarError::Path { path: shown(), reason: "only a directory can be the root" });
        }
        if kind == Kind::HardLink && entry.link.is_empty() {
            return Err(TarError::Path { path: shown(), reason: "it is a hard link to the root" });
        }
        check_whiteout(&entry)?;
        Ok(entry)
    }
}

/// Prefix of names that mark something of a lower layer as removed.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Name that marks everything of lower layers in its directory as removed.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of names that are notes of an old engine to itself.
pub(crate) const WHITEOUT_META: &[u8] = b".wh..wh.";

fn check_whiteout(entry: &Entry) -> Result<(), TarError> {
    match entry.name().strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => Err(TarError::Whiteout { path: ShownPath::new(&entry.path) }),
        Some(_) | None => Ok(()),
    }
}

/// Takes `.`, doubled and leading slashes out of a path; refuses one that Linux does not take or that leads up.
fn clean(path: &[u8]) -> Result<Vec<u8>, TarError> {
    let wrong = |reason| Err(TarError::Path { path: ShownPath::new(path), reason });
    if path.len() > MAX_PATH {
        return wrong("it is longer than Linux takes");
    }
    let mut cleaned = Vec::with_capacity(path.len());
    let mut components = 0;
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(TarError::LeadsUp { path: ShownPath::new(path) }),
            _ if component.len() > MAX_NAME => return wrong("a name in it is longer than Linux takes"),
            _ if component.contains(&0) => return wrong("it contains a NUL"),
            _ => components += 1,
        }
        if !cleaned.is_empty() {
            cleaned.push(b'/');
        }
        cleaned.extend_from_slice(component);
    }
    if components > MAX_COMPONENTS {
        return wrong("it lies too many directories deep");
    }
    Ok(cleaned)
}

/// The target of a symbolic link may lead anywhere: it means something inside the container alone.
fn check_target(name: &[u8], target: Vec<u8>) -> Result<Vec<u8>, TarError> {
    let reason = match target.len() {
        0 => "it is a symbolic link to nothing",
        length if length >= MAX_PATH => "its target is longer than Linux takes",
        _ if target.contains(&0) => "its target contains a NUL",
        _ => return Ok(target),
    };
    Err(TarError::Path { path: ShownPath::new(name), reason })
}
