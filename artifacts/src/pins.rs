//! Pins: the roots that garbage collection starts from, in one small file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iptl_dag::{Cid, codec};
use serde::{Deserialize, Serialize};

/// Largest pin file that is read, in bytes: some 400,000 pins; a larger one is not ours.
const MAX_FILE_SIZE: u64 = 64 << 20;

/// How much of a DAG a pin keeps, until someone removes the pin. What an execution needs while it goes on is held by the
/// roles that carry it out, in memory, and named again out of its log or journal when they resume it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinMode {
    /// The root and everything that it links to.
    Recursive,
    /// The root alone.
    Direct,
}

impl PinMode {
    /// Returns the word for people.
    pub const fn name(self) -> &'static str {
        match self {
            PinMode::Recursive => "recursive",
            PinMode::Direct => "direct",
        }
    }
}

/// What a pinned root is, for people and for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinKind {
    /// A plan.
    Plan,
    /// A workload's program.
    Workload,
    /// Files that plans use.
    Data,
    /// A result.
    Result,
}

impl PinKind {
    /// Returns the word for people.
    pub const fn name(self) -> &'static str {
        match self {
            PinKind::Plan => "plan",
            PinKind::Workload => "workload",
            PinKind::Data => "data",
            PinKind::Result => "result",
        }
    }
}

/// One pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The pinned root.
    pub root: Cid,
    /// How much is kept.
    pub mode: PinMode,
    /// What the root is.
    pub kind: PinKind,
    /// Name for people; need not be unique.
    pub name: String,
    /// When it was pinned, in milliseconds since 1970, as the caller knows it.
    pub pinned_ms: u64,
    /// Whether strangers may read what the root leads to, where the pin is recursive.
    #[serde(default = "is_public", skip_serializing_if = "Clone::clone")]
    pub public: bool,
}

/// Everything was, before there was a choice.
const fn is_public() -> bool {
    true
}

/// What went wrong with the pin file.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// The file is not a pin file, or is damaged.
    #[error("{} is not a list of pins: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the decoder met.
        reason: String,
    },
    /// The disk is full; the pins are as they were.
    #[error("the disk that holds {} is full", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Anything else that the operating system reports.
    #[error("pins in {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The file, as DAG-CBOR.
#[derive(Serialize, Deserialize)]
enum PinFile {
    #[serde(rename = "pins/1")]
    V1(Vec<Pin>),
}

/// The pins of one node, in memory and in one file: one for each root.
///
/// Every change is durable on return: the new list is written beside the old one, synced, and renamed over it, so that a
/// crash leaves the one or the other. The calls block for these few milliseconds; from async code use
/// [`spawn_blocking`](tokio::task::spawn_blocking) or accept it. One process at a time: whoever opens pins holds the
/// lock of the store beside them.
pub struct Pins {
    path: PathBuf,
    pins: Mutex<BTreeMap<Cid, Pin>>,
}

impl Pins {
    /// Reads the pins in `path`; a file that does not exist is an empty list.
    pub fn open(path: impl Into<PathBuf>) -> Result<Pins, PinsError> {
        let path = path.into();
        let bytes = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_FILE_SIZE => {
                return Err(PinsError::Corrupt { path, reason: format!("{} bytes are too many", metadata.len()) });
            }
            Ok(_) => fs::read(&path).map_err(|source| PinsError::Io { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(PinsError::Io { path, source }),
        };
        let mut pins = BTreeMap::new();
        if !bytes.is_empty() {
            let file: PinFile = codec::decode(&bytes)
                .map_err(|error| PinsError::Corrupt { path: path.clone(), reason: error.to_string() })?;
            let PinFile::V1(list) = file;
            pins.extend(list.into_iter().map(|pin| (pin.root, pin)));
        }
        Ok(Pins { path, pins: Mutex::new(pins) })
    }

    /// Adds pins, in one write; one with the same root is replaced.
    pub fn add(&self, new: impl IntoIterator<Item = Pin>) -> Result<(), PinsError> {
        self.change(|pins| pins.extend(new.into_iter().map(|pin| (pin.root, pin))))
    }

    /// Makes the recursive pin of a root public, or for members alone; says whether there is one.
    pub fn set_public(&self, root: &Cid, public: bool) -> Result<bool, PinsError> {
        let mut found = false;
        self.change(|pins| {
            if let Some(pin) = pins.get_mut(root).filter(|pin| pin.mode == PinMode::Recursive) {
                found = true;
                pin.public = public;
            }
        })?;
        Ok(found)
    }

    /// Returns the roots under which strangers may read everything.
    pub fn public_roots(&self) -> Vec<Cid> {
        let pins = self.lock();
        let public = pins.values().filter(|pin| pin.public && pin.mode == PinMode::Recursive);
        public.map(|pin| pin.root).collect()
    }

    /// Removes the pin of a root; says whether there was one.
    pub fn remove(&self, root: &Cid) -> Result<bool, PinsError> {
        let mut removed = false;
        self.change(|pins| removed = pins.remove(root).is_some())?;
        Ok(removed)
    }

    /// Returns every pin, ordered by root.
    pub fn list(&self) -> Vec<Pin> {
        self.lock().values().cloned().collect()
    }

    /// Returns the pin of a root.
    pub fn get(&self, root: &Cid) -> Option<Pin> {
        self.lock().get(root).cloned()
    }

    /// Returns the roots, each with whether everything below it is kept.
    pub fn roots(&self) -> Vec<(Cid, bool)> {
        self.lock().values().map(|pin| (pin.root, pin.mode == PinMode::Recursive)).collect()
    }

    fn change(&self, edit: impl FnOnce(&mut BTreeMap<Cid, Pin>)) -> Result<(), PinsError> {
        let mut pins = self.lock();
        let mut changed = pins.clone();
        edit(&mut changed);
        if changed == *pins {
            return Ok(());
        }
        let bytes = codec::encode(&PinFile::V1(changed.values().cloned().collect()));
        write_durably(&self.path, &bytes).map_err(|source| {
            if crate::store::is_full(&source) {
                PinsError::Full { path: self.path.clone() }
            } else {
                PinsError::Io { path: self.path.clone(), source }
            }
        })?;
        *pins = changed;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Cid, Pin>> {
        // The map is replaced whole after the file was written, so a panic leaves it as it was.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces a file so that a crash at any moment leaves the old or the new content.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    fs::create_dir_all(dir)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}
