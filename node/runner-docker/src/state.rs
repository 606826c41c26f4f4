//! What is known of running cells and must outlive the lablet, in its private directory.
//!
//! ```text
//! id                  who this lablet is, in the labels of its containers
//! bin/init-<hash>     the init program
//! cells/<key>/        one cell
//!   started           wall time of its start in milliseconds since 1970
//!   hosts             names of all instances, mounted into its containers
//!   resolver          that there is no server of names, mounted likewise
//!   <ordinal>/        one instance
//!     lab/            mounted into the container, with the socket in it
//!     token           what its init shows when it connects again
//!     published       events that it published for the run, one on a line
//!     wish            what it has asked of its network so far, as JSON
//!     adopted         wall times at which a lablet that was started again found it running, one on a line
//!     stake           what it loses of sync where the lablet ends, as one byte
//!     ended           how it ended, once that is known
//! ```
//!
//! What is written here reaches the kernel before anything depends on it: it survives the lablet, not the machine,
//! which no container survives either.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use iptl_dag::model::Adopted;
use iptl_labnet::Wish;
use iptl_runner::{Ended, Origin};
use iptl_testground::Stake;

use crate::INIT;
use crate::protocol::Token;

/// The directory of a lablet.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    id: String,
    init: PathBuf,
}

/// The directory of a cell.
#[derive(Clone, Debug)]
pub(crate) struct CellDir(PathBuf);

/// The directory of an instance.
#[derive(Clone, Debug)]
pub(crate) struct InstanceDir(PathBuf);

impl Store {
    /// Opens a directory, making what is missing.
    pub(crate) fn open(dir: &Path) -> io::Result<Store> {
        let dir = std::path::absolute(dir)?;
        make_private(&dir)?;
        make_private(&dir.join("cells"))?;
        let bin = dir.join("bin");
        make_private(&bin)?;
        let id = match fs::read_to_string(dir.join("id")) {
            Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
            Ok(_) | Err(_) => {
                let id = hex(&random()?);
                replace(&dir.join("id"), id.as_bytes())?;
                id
            }
        };
        // Named by its content: containers that were started with another one go on with that.
        let init = bin.join(format!("init-{}", &blake3::hash(INIT).to_hex()[..16]));
        if !fs::metadata(&init).is_ok_and(|m| m.len() == INIT.len() as u64) {
            replace(&init, INIT)?;
            fs::set_permissions(&init, Permissions::from_mode(0o555))?;
        }
        Ok(Store { dir, id, init })
    }

    /// Returns who this lablet is in labels.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the init program.
    pub(crate) fn init(&self) -> &Path {
        &self.init
    }

    /// Returns the name under which a cell's containers and directory are known.
    pub(crate) fn key(&self, origin: &Origin) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.id, &origin.lab, &origin.execution] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(&origin.epoch.to_le_bytes());
        hasher.finalize().to_hex()[..20].to_owned()
    }

    /// Returns the directory of a cell, which may not be there.
    pub(crate) fn cell(&self, key: &str) -> CellDir {
        CellDir(self.dir.join("cells").join(key))
    }

    /// Lists the keys of cells that there are directories of.
    pub(crate) fn cells(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.dir.join("cells"))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }
}

impl CellDir {
    /// Makes it, empty.
    pub(crate) fn make(&self) -> io::Result<()> {
        self.remove()?;
        make_private(&self.0)
    }

    /// Removes it with all that is in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Notes the wall time of the start.
    pub(crate) fn set_started(&self, wall_ms: u64) -> io::Result<()> {
        replace(&self.0.join("started"), wall_ms.to_string().as_bytes())
    }

    /// Returns the wall time of the start; none where it was not started.
    pub(crate) fn started(&self) -> Option<u64> {
        fs::read_to_string(self.0.join("started")).ok()?.trim().parse().ok()
    }

    /// Writes what its containers know of names.
    pub(crate) fn set_names(&self, hosts: &str, resolver: &str) -> io::Result<()> {
        for (path, text) in [(self.names(), hosts), (self.resolver(), resolver)] {
            replace(&path, text.as_bytes())?;
            // The container's user reads it; nobody of this machine gets so far.
            fs::set_permissions(path, Permissions::from_mode(0o444))?;
        }
        Ok(())
    }

    /// Writes names anew in the file that its containers see, which must stay the same file.
    pub(crate) fn change_names(&self, hosts: &str) -> io::Result<()> {
        let path = self.names();
        fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        let file = OpenOptions::new().write(true).open(&path)?;
        // In one go, and cut afterwards: who reads it meanwhile finds no empty file.
        file.write_all_at(hosts.as_bytes(), 0)?;
        file.set_len(hosts.len() as u64)?;
        fs::set_permissions(path, Permissions::from_mode(0o444))
    }

    /// Returns the file of names.
    pub(crate) fn names(&self) -> PathBuf {
        self.0.join("hosts")
    }

    /// Returns the file that says where to ask for names.
    pub(crate) fn resolver(&self) -> PathBuf {
        self.0.join("resolver")
    }

    /// Returns the directory of an instance.
    pub(crate) fn instance(&self, ordinal: u32) -> InstanceDir {
        InstanceDir(self.0.join(ordinal.to_string()))
    }
}

impl InstanceDir {
    /// Makes it, with a new token.
    pub(crate) fn make(&self) -> io::Result<Token> {
        make_private(&self.0)?;
        fs::create_dir(self.lab())?;
        // The container's user looks into it; nobody of this machine gets so far.
        fs::set_permissions(self.lab(), Permissions::from_mode(0o755))?;
        let token = random()?;
        replace(&self.0.join("token"), &token)?;
        Ok(token)
    }

    /// Returns the directory that is mounted into the container.
    pub(crate) fn lab(&self) -> PathBuf {
        self.0.join("lab")
    }

    /// Returns what its init shows.
    pub(crate) fn token(&self) -> io::Result<Token> {
        let bytes = fs::read(self.0.join("token"))?;
        bytes.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a token has 16 bytes"))
    }

    /// Notes an event that it published for the run.
    pub(crate) fn add_published(&self, event: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.0.join("published"))?;
        file.write_all(format!("{}\n", event.replace(['\n', '\r'], " ")).as_bytes())
    }

    /// Returns the events that it published.
    pub(crate) fn published(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("published")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Notes what it has asked of its network so far.
    pub(crate) fn set_wish(&self, wish: &Wish) -> io::Result<()> {
        replace(&self.0.join("wish"), &serde_json::to_vec(wish).map_err(io::Error::other)?)
    }

    /// Returns what it has asked of its network; none where it has asked for nothing.
    pub(crate) fn wish(&self) -> Option<Wish> {
        serde_json::from_slice(&fs::read(self.0.join("wish")).ok()?).ok()
    }

    /// Notes that a lablet which was started again found it running.
    pub(crate) fn add_adoption(&self, wall_ms: u64) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.0.join("adopted"))?;
        file.write_all(format!("{wall_ms}\n").as_bytes())
    }

    /// Returns when lablets found it running.
    pub(crate) fn adoptions(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.0.join("adopted")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).take(Adopted::MAX_ADOPTED).collect()
    }

    /// Opens the note of what it loses where this lablet ends, which says what it said.
    pub(crate) fn stake(&self) -> io::Result<StakeNote> {
        let path = self.0.join("stake");
        OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path).map(StakeNote)
    }

    /// Notes how it ended.
    pub(crate) fn set_ended(&self, ended: &Ended) -> io::Result<()> {
        let bytes = serde_json::to_vec(ended).map_err(io::Error::other)?;
        replace(&self.0.join("ended"), &bytes)
    }

    /// Returns how it ended, where that is known.
    pub(crate) fn ended(&self) -> Option<Ended> {
        serde_json::from_slice(&fs::read(self.0.join("ended")).ok()?).ok()
    }
}

/// What an instance loses where the lablet ends, kept up to date: one byte, so that it is whole whenever that is.
#[derive(Debug)]
pub(crate) struct StakeNote(File);

impl StakeNote {
    /// Returns what was written last.
    pub(crate) fn read(&self) -> Stake {
        let mut byte = [0];
        match self.0.read_at(&mut byte, 0) {
            Ok(1) if byte[0] == b'c' => Stake::Connection,
            Ok(1) if byte[0] == b'a' => Stake::Answers,
            Ok(_) | Err(_) => Stake::Nothing,
        }
    }

    /// Writes what is so now.
    pub(crate) fn write(&self, stake: Stake) -> io::Result<()> {
        let byte = match stake {
            Stake::Nothing => b'n',
            Stake::Connection => b'c',
            Stake::Answers => b'a',
        };
        self.0.write_all_at(&[byte], 0)
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a file whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(new, path)
}

/// Returns bytes that nobody can guess.
pub(crate) fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(bytes)
}

/// Writes bytes as hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
