//! Paths below a CID: `CID/files/logs/a/0.jsonl`.
//!
//! [`Resolve`] is a step function: it names the block that it needs, takes it, and ends at a block or at a value
//! within one. Names go through UnixFS directories, sharded or not; keys and indices through maps and lists of DAG-CBOR
//! and DAG-JSON. The tag of a node of the lab is a version and no name: paths go through it, so that `CID/run` works on a
//! result.

use crate::codec::DecodeError;
use crate::unixfs::{Found, Place, UnixFs, UnixFsError};
use crate::{Block, Cid, Codec, Ipld, codec};

/// Most segments of a path.
pub const MAX_SEGMENTS: usize = 256;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// To a whole block, which need not have been read.
    Block {
        /// Its CID.
        cid: Cid,
    },
    /// To a value inside a block.
    Value {
        /// CID of the block.
        cid: Cid,
        /// The value.
        value: Ipld,
    },
}

/// What a resolution needs, or where it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The block to [`supply`](Resolve::supply) next.
    Need(Cid),
    /// The end.
    Found(Target),
}

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The path has too many segments.
    #[error("a path of more than {MAX_SEGMENTS} segments")]
    TooLong,
    /// There is nothing of this name.
    #[error("no {segment:?} in {at}")]
    NotFound {
        /// Segment that is not there.
        segment: String,
        /// Path up to it, from the root's CID.
        at: String,
    },
    /// The path goes on below something that has nothing below it.
    #[error("{at} is {what}, so there is no {segment:?} in it")]
    NotATree {
        /// Segment that was looked for.
        segment: String,
        /// Path up to it, from the root's CID.
        at: String,
        /// What is there: `a file`, `a symbolic link`, `a number`.
        what: &'static str,
    },
    /// The block is not valid in its codec.
    #[error("{at} cannot be read")]
    Decode {
        /// Path of the block, from the root's CID.
        at: String,
        /// What the decoder met.
        #[source]
        source: DecodeError,
    },
    /// The block is not a UnixFS node that can be read.
    #[error("{at} cannot be read")]
    UnixFs {
        /// Path of the block, from the root's CID.
        at: String,
        /// What the decoder met.
        #[source]
        source: UnixFsError,
    },
    /// The block has a codec that the lab does not read.
    #[error("{at} has codec {codec:#x}, which cannot be read")]
    Codec {
        /// Path of the block, from the root's CID.
        at: String,
        /// Multicodec number.
        codec: u64,
    },
    /// The block that was supplied is not the one that was needed.
    #[error("expected block {expected} and got {got}")]
    WrongBlock {
        /// CID that was needed.
        expected: Cid,
        /// CID of the block that was supplied.
        got: Cid,
    },
}

/// State of the resolution of one path.
#[derive(Clone, Debug)]
pub struct Resolve {
    root: Cid,
    segments: Vec<String>,
    /// How many segments are behind us.
    done: usize,
    /// Where in a sharded directory the search stands.
    place: Place,
    step: Step,
}

impl Resolve {
    /// Starts at `root`. Empty segments are passed over, so that `a//b/` is `a/b`.
    pub fn new(root: Cid, path: &str) -> Result<Resolve, PathError> {
        let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        if segments.len() > MAX_SEGMENTS {
            return Err(PathError::TooLong);
        }
        let mut resolve = Resolve { root, segments, done: 0, place: Place::default(), step: Step::Need(root) };
        resolve.arrive(root);
        Ok(resolve)
    }

    /// Returns what is needed, or where the path ended.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// Takes the block that was needed. Has no effect at the end.
    pub fn supply(&mut self, block: &Block) -> Result<(), PathError> {
        let cid = match &self.step {
            Step::Need(cid) if cid == block.cid() => *cid,
            Step::Need(cid) => return Err(PathError::WrongBlock { expected: *cid, got: *block.cid() }),
            Step::Found(_) => return Ok(()),
        };
        match Codec::of(&cid) {
            Some(Codec::Raw | Codec::DagPb) => self.enter_directory(block),
            Some(codec @ (Codec::DagCbor | Codec::DagJson)) => {
                self.enter_value(cid, codec::decode_as(codec, block.data()))
            }
            None => Err(PathError::Codec { at: self.here(), codec: cid.codec() }),
        }
    }

    fn enter_directory(&mut self, block: &Block) -> Result<(), PathError> {
        let node = UnixFs::of_block(block).map_err(|source| PathError::UnixFs { at: self.here(), source })?;
        if self.place != Place::default() && !matches!(node, UnixFs::Shard(_)) {
            return Err(PathError::UnixFs { at: self.here(), source: UnixFsError::NotADirectory });
        }
        match node {
            UnixFs::Directory(entries) => {
                let segment = &self.segments[self.done];
                let cid = entries.iter().find(|e| e.name == *segment).ok_or_else(|| self.not_found())?.cid;
                self.enter(cid);
                Ok(())
            }
            UnixFs::Shard(shard) => {
                let mut place = self.place;
                let found = shard.find(&self.segments[self.done], &mut place);
                match found.map_err(|source| PathError::UnixFs { at: self.here(), source })? {
                    Found::Entry(entry) => self.enter(entry.cid),
                    Found::Shard(cid) => (self.place, self.step) = (place, Step::Need(cid)),
                    Found::Nothing => return Err(self.not_found()),
                }
                Ok(())
            }
            UnixFs::File(_) => Err(self.not_a_tree("a file")),
            UnixFs::Symlink(_) => Err(self.not_a_tree("a symbolic link")),
        }
    }

    /// Goes from a directory to what the next segment names in it.
    fn enter(&mut self, cid: Cid) {
        self.done += 1;
        self.place = Place::default();
        self.arrive(cid);
    }

    fn enter_value(&mut self, cid: Cid, value: Result<Ipld, DecodeError>) -> Result<(), PathError> {
        let mut value = untagged(value.map_err(|source| PathError::Decode { at: self.here(), source })?);
        while let Some(segment) = self.segments.get(self.done) {
            let child = match value {
                Ipld::Link(cid) => {
                    self.arrive(cid);
                    return Ok(());
                }
                Ipld::Map(mut entries) => entries.remove(segment),
                Ipld::List(mut items) => {
                    let index = segment.parse::<usize>().ok().filter(|i| *i < items.len());
                    index.map(|i| items.swap_remove(i))
                }
                Ipld::Null => return Err(self.not_a_tree("null")),
                Ipld::Bool(_) => return Err(self.not_a_tree("a truth value")),
                Ipld::Integer(_) | Ipld::Float(_) => return Err(self.not_a_tree("a number")),
                Ipld::String(_) => return Err(self.not_a_tree("a text")),
                Ipld::Bytes(_) => return Err(self.not_a_tree("a byte string")),
            };
            value = child.ok_or_else(|| self.not_found())?;
            self.done += 1;
        }
        self.step = Step::Found(match value {
            Ipld::Link(cid) => Target::Block { cid },
            value => Target::Value { cid, value },
        });
        Ok(())
    }

    /// Goes on at a block: it is the end where no segment is left.
    fn arrive(&mut self, cid: Cid) {
        self.step = if self.done == self.segments.len() { Step::Found(Target::Block { cid }) } else { Step::Need(cid) };
    }

    fn here(&self) -> String {
        let mut path = self.root.to_string();
        for segment in &self.segments[..self.done] {
            path.push('/');
            path.push_str(segment);
        }
        path
    }

    fn not_found(&self) -> PathError {
        PathError::NotFound { segment: self.segments[self.done].clone(), at: self.here() }
    }

    fn not_a_tree(&self, what: &'static str) -> PathError {
        PathError::NotATree { segment: self.segments[self.done].clone(), at: self.here(), what }
    }
}

/// Returns what a node of the lab holds under its tag, with `files` where that stands beside it; any other value as it is.
fn untagged(value: Ipld) -> Ipld {
    let Ipld::Map(mut entries) = value else { return value };
    let files = entries.remove_entry("files");
    // A tag holds a slash, which no segment can.
    if entries.len() != 1 || !entries.keys().all(|key| key.starts_with("iptl.") && key.contains('/')) {
        entries.extend(files);
        return Ipld::Map(entries);
    }
    match (entries.into_values().next().unwrap_or(Ipld::Null), files) {
        (body, None) => body,
        (Ipld::Map(mut body), files) => {
            body.extend(files);
            Ipld::Map(body)
        }
        (_, files) => Ipld::Map(files.into_iter().collect()),
    }
}
