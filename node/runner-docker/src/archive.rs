//! The files that images come as: what `docker save` writes, read only as far as is needed to know what it holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Largest text file in an archive that is read: a config with thousands of layers is smaller.
const MAX_TEXT: u64 = 4 << 20;

/// Most members that are looked at.
const MAX_MEMBERS: usize = 10_000;

/// What an archive says of its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// `sha256:` and the digest of the config, as it was computed here.
    pub(crate) id: String,
    /// Names that loading it makes.
    pub(crate) tags: Vec<String>,
    /// Digests of the layers, unpacked.
    pub(crate) diff_ids: Vec<String>,
    /// What it is made for, in the engine's words; empty where it does not say.
    pub(crate) architecture: String,
}

/// Why a file is no archive of an image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("its file is no tar archive: {0}")]
    Tar(&'static str),
    #[error("its archive has no {0}")]
    Missing(String),
    #[error("its archive holds {0} images, and one is expected")]
    NotOne(usize),
    #[error("{name} in its archive is not what it should be")]
    Json {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("its archive cannot be read")]
    Io(#[from] io::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl Manifest {
    /// Reads an archive.
    pub(crate) fn read(path: &Path) -> Result<Manifest, ArchiveError> {
        let mut file = BufReader::new(File::open(path)?);
        let members = members(&mut file)?;
        let name = "manifest.json";
        let text = member(&mut file, &members, name)?;
        let entries: Vec<Entry> = serde_json::from_slice(&text).map_err(|source| json(name, source))?;
        let [entry] = &entries[..] else { return Err(ArchiveError::NotOne(entries.len())) };
        let text = member(&mut file, &members, &entry.config)?;
        let config: Config = serde_json::from_slice(&text).map_err(|source| json(&entry.config, source))?;
        let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Manifest {
            id: format!("sha256:{digest}"),
            tags: entry.repo_tags.clone().unwrap_or_default(),
            diff_ids: config.rootfs.diff_ids,
            architecture: config.architecture,
        })
    }
}

fn json(name: &str, source: serde_json::Error) -> ArchiveError {
    ArchiveError::Json { name: name.to_owned(), source }
}

fn member(
    file: &mut BufReader<File>,
    members: &BTreeMap<String, (u64, u64)>,
    name: &str,
) -> Result<Vec<u8>, ArchiveError> {
    let missing = || ArchiveError::Missing(name.chars().take(80).collect());
    let (at, size) = *members.get(name).filter(|(_, size)| *size <= MAX_TEXT).ok_or_else(missing)?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns where each plain file of a tar stands, and its size. Long names, which only layers could have, are not
/// looked for.
fn members(file: &mut BufReader<File>) -> Result<BTreeMap<String, (u64, u64)>, ArchiveError> {
    let end = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut members = BTreeMap::new();
    let mut at = 0;
    while at + 512 <= end && members.len() < MAX_MEMBERS {
        let mut header = [0; 512];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut header)?;
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let size = number(&header[124..136]).ok_or(ArchiveError::Tar("the size of a member is no number"))?;
        at += 512;
        if matches!(header[156], b'0' | 0) {
            let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
            let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            members.insert(name.trim_start_matches("./").to_owned(), (at, size));
        }
        at = size
            .checked_next_multiple_of(512)
            .and_then(|size| at.checked_add(size))
            .ok_or(ArchiveError::Tar("too large"))?;
    }
    if members.is_empty() {
        return Err(ArchiveError::Tar("it has no files"));
    }
    Ok(members)
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Reads octal digits, or the binary form that larger numbers have.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return field[4..].first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
    }
    let text = text(field);
    u64::from_str_radix(text.trim_matches(' '), 8).ok()
}
