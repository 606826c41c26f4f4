//! The folder of a node: identity, membership, store, logs and socket.
//!
//! ```text
//! identity.key   seed of the node's key, 32 bytes, mode 0600
//! node.toml      what the owner set: name, listen, labels, limits, quota of the store
//! lab.cbor       membership: lab, role, token, orchestrators
//! lab.key        seed of the lab's own key, where this node made the lab
//! admission.cbor tickets, peers that ask, peers that were let in; where this node made the lab
//! state.cbor     what the node remembers for itself: ports
//! revoked.cbor   peers that are members no more
//! orchestrators.cbor  orchestrators of the lab, where there are several, and the claim to lead
//! office.cbor    what an orchestrator must not forget of who leads: terms, lablets
//! store/         blocks          pins.cbor   roots that are kept
//! public         index of the blocks that strangers may read
//! log/           one file of facts for each execution; `aside/` logs that another orchestrator's replaced
//! runs/          one record for each execution that ended
//! docker/        what is known of running containers, and the sockets to them
//! cache/         compiled code and artifacts as files; may be deleted
//! scratch/       files of running cells; emptied at start
//! api.sock       control API          lock       held while a node runs on this home
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iptl_dag::model::Destination;
use iptl_dag::model::signed::Signed;
use iptl_dag::{PeerId, codec};
use iptl_runner_docker::{DockerConfig, OwnerLimits};
use iptl_scheduler::{EGRESS, GRANTED, egress_label};
use iptl_trust::Keypair;
use iptl_wire::lab::{Certificate, MemberToken, Role};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// Folder of a node.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another node runs on it.
    #[error("another node already runs on {}", path.display())]
    Locked {
        /// The home.
        path: PathBuf,
    },
    /// A file of it cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file of it is damaged.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What the owner set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this machine for people; the host's name where it is empty.
    pub name: String,
    /// Multiaddrs to listen on; any port on all interfaces where it is empty.
    pub listen: Vec<String>,
    /// Nodes to know from the start, as multiaddrs with `/p2p/…`.
    pub known: Vec<String>,
    /// Whether to find nodes on the local network by mDNS.
    pub mdns: Option<bool>,
    /// Labels that plans may ask for.
    pub labels: BTreeMap<String, String>,
    /// What instances may take in all.
    pub limits: Limits,
    /// Containers.
    pub docker: Docker,
    /// The network of instances.
    pub network: LabNetwork,
    /// Blocks.
    pub store: Store,
    /// How an orchestrator looks after its lab.
    pub health: Health,
    /// Reaching nodes that nobody can dial.
    pub relay: Relay,
}

/// How nodes are reached that nobody can dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    /// Whether members of the lab that nobody can dial are reached through this node; orchestrators do it where it is absent.
    pub serve: Option<bool>,
    /// Whether this node asks for a place at a relay while nobody can dial it.
    pub ask: bool,
    /// Relays beside the lab's orchestrators, as multiaddrs with `/p2p/…`.
    pub at: Vec<String>,
}

impl Default for Relay {
    fn default() -> Relay {
        Relay { serve: None, ask: true, at: Vec::new() }
    }
}

impl Relay {
    /// Says whether a node of this role relays connections for others.
    pub fn serves(&self, role: Role) -> bool {
        self.serve.unwrap_or(role == Role::Orchestrator)
    }
}

/// How an orchestrator looks after its lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Seconds without an execution after which the lab executes its canary; 0 for never, five minutes where it is
    /// absent.
    pub canary_s: Option<u64>,
}

impl Health {
    /// Returns the time without an execution after which there is a canary.
    pub fn canary(&self) -> Option<Duration> {
        Some(self.canary_s.map_or(CANARY, Duration::from_secs)).filter(|pause| !pause.is_zero())
    }
}

/// Time without an execution after which a lab executes its canary.
const CANARY: Duration = Duration::from_secs(300);

/// What the owner allows blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Bytes on the disk above which what nobody pinned or uses is dropped; no bound where it is absent.
    pub quota_bytes: Option<u64>,
}

/// What the owner allows containers, whatever their plan wishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// Whether containers are run where an engine can be used.
    pub enabled: bool,
    /// Socket of the engine; the engine's own default where it is absent.
    pub socket: Option<PathBuf>,
    /// Most containers at a time; what the machine can hold where it is absent.
    pub instances: Option<u32>,
    /// Most thousandths of a processor of one container; zero means as many as there are.
    pub cpu_milli: u32,
    /// Most processes of one container.
    pub pids: u32,
    /// Most open files of one process.
    pub open_files: u32,
    /// Most bytes below a root file system that can be written to; zero means that none can.
    pub disk_bytes: u64,
    /// Whether a program may be root in its container, without any capability.
    pub root: bool,
    /// Whether commands may be executed in containers whose plan allows it.
    pub exec: bool,
}

impl Default for Docker {
    fn default() -> Docker {
        let usual = OwnerLimits::default();
        Docker {
            enabled: true,
            socket: None,
            instances: usual.instances,
            cpu_milli: usual.cpu_milli,
            pids: usual.pids,
            open_files: usual.open_files,
            disk_bytes: usual.disk_bytes,
            root: usual.root,
            exec: false,
        }
    }
}

impl Docker {
    /// Returns the configuration of a runner that keeps its own files in `dir`.
    pub fn runner(&self, dir: PathBuf, limits: Limits, network: &LabNetwork) -> DockerConfig {
        DockerConfig {
            socket: self.socket.clone(),
            dir,
            realtime: network.realtime,
            limits: OwnerLimits {
                instances: self.instances,
                memory_bytes: limits.memory_bytes,
                cpu_milli: self.cpu_milli,
                pids: self.pids,
                open_files: self.open_files,
                disk_bytes: self.disk_bytes,
                root: self.root,
                ..OwnerLimits::default()
            },
            ..DockerConfig::new(PathBuf::new())
        }
    }
}

/// What the owner lets the network of instances do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabNetwork {
    /// Places outside of the lab that containers may reach where their plan asks for them: `bootstrap.example:4001/udp`,
    /// `192.0.2.7:443/tcp`. An address of the owner's own network counts only as it is written here, never behind a name.
    pub egress: BTreeSet<Destination>,
    /// Whether the thread that carries packets of containers goes before others, where it may and uses little.
    pub realtime: bool,
}

impl Default for LabNetwork {
    fn default() -> LabNetwork {
        LabNetwork { egress: BTreeSet::new(), realtime: true }
    }
}

impl Config {
    /// Returns the labels under which this machine is known: the owner's, and one for each place outside of the lab that
    /// containers may reach.
    pub fn told_labels(&self) -> BTreeMap<String, String> {
        let own = self.labels.iter().filter(|(name, _)| !name.starts_with(EGRESS));
        let own = own.map(|(name, value)| (name.clone(), value.clone()));
        own.chain(self.network.egress.iter().map(|place| (egress_label(place), GRANTED.to_owned()))).collect()
    }
}

/// What instances may take of a machine in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most instances of each runner; what the machine can hold where it is absent.
    pub instances: Option<u32>,
    /// Most memory in bytes; three quarters of what the machine has where it is absent.
    pub memory_bytes: Option<u64>,
}

/// What makes a node one of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// Certificate of the orchestrator through which it joined.
    pub certificate: Signed<Certificate>,
    /// Its own membership.
    pub token: Signed<MemberToken>,
    /// Addresses of the orchestrator.
    pub addrs: Vec<String>,
    /// What makes this node an orchestrator of the lab, where it joined as one beside the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Signed<Certificate>>,
}

impl Membership {
    /// Returns the lab.
    pub fn lab(&self) -> &PeerId {
        &self.certificate.body.lab
    }

    /// Returns the orchestrator.
    pub fn orchestrator(&self) -> &PeerId {
        &self.certificate.body.orchestrator
    }

    /// Returns what makes this node an orchestrator of the lab, where it is one.
    pub fn own_certificate(&self) -> &Signed<Certificate> {
        self.own.as_ref().unwrap_or(&self.certificate)
    }

    /// Returns the role.
    pub fn role(&self) -> Role {
        self.token.body.role
    }
}

/// What a node remembers for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// Addresses that it listened on last, with their ports, so that others find it again.
    pub listen: Vec<String>,
}

/// Holds the home against a second node; let go at drop or death.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
}

impl Home {
    /// Opens a home, making its folders where they are missing.
    pub fn open(root: impl Into<PathBuf>) -> Result<Home, HomeError> {
        let root = root.into();
        for dir in [root.clone(), root.join("log"), root.join("runs"), root.join("cache"), root.join("scratch")] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|source| io_error(&dir, source))?;
        }
        let root = root.canonicalize().map_err(|source| io_error(&root, source))?;
        Ok(Home { root })
    }

    /// Returns the folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a part of the home.
    pub fn path(&self, part: &str) -> PathBuf {
        self.root.join(part)
    }

    /// Returns the path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    /// Takes the home for one node.
    pub fn lock(&self) -> Result<HomeLock, HomeError> {
        let path = self.path("lock");
        let file = File::create(&path).map_err(|source| io_error(&path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(HomeLock { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(HomeError::Locked { path: self.root.clone() }),
            Err(fs::TryLockError::Error(source)) => Err(io_error(&path, source)),
        }
    }

    /// Reads the node's key, making one at the first call.
    pub fn identity(&self) -> Result<Keypair, HomeError> {
        Ok(Keypair::from_seed(&*self.seed()?))
    }

    /// Reads the seed of the node's key, which the swarm needs too.
    pub fn seed(&self) -> Result<Zeroizing<[u8; 32]>, HomeError> {
        self.secret("identity.key")
    }

    /// Reads the lab's own key, making one at the first call.
    pub fn lab_key(&self) -> Result<Keypair, HomeError> {
        Ok(Keypair::from_seed(&*self.secret("lab.key")?))
    }

    /// Tells whether this node made its lab.
    pub fn owns_lab(&self) -> bool {
        self.path("lab.key").exists()
    }

    /// Reads what the owner set.
    pub fn config(&self) -> Result<Config, HomeError> {
        let path = self.path("node.toml");
        match fs::read_to_string(&path) {
            Ok(text) => {
                toml::from_str(&text).map_err(|e| HomeError::Damaged { path, reason: e.to_string().trim().to_owned() })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
            Err(source) => Err(io_error(&path, source)),
        }
    }

    /// Writes what the owner set.
    pub fn set_config(&self, config: &Config) -> Result<(), HomeError> {
        let text = toml::to_string_pretty(config).expect("a config is plain data");
        self.write("node.toml", text.as_bytes())
    }

    /// Reads the membership; none where the node is in no lab.
    pub fn membership(&self) -> Result<Option<Membership>, HomeError> {
        self.read("lab.cbor")
    }

    /// Writes the membership.
    pub fn set_membership(&self, membership: &Membership) -> Result<(), HomeError> {
        self.write("lab.cbor", &codec::encode(membership))
    }

    /// Forgets the membership.
    pub fn clear_membership(&self) -> Result<(), HomeError> {
        let path = self.path("lab.cbor");
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(io_error(&path, source)),
        }
    }

    /// Reads a record in DAG-CBOR; none where there is none.
    pub fn read<T: DeserializeOwned>(&self, part: &str) -> Result<Option<T>, HomeError> {
        let path = self.path(part);
        match fs::read(&path) {
            Ok(bytes) => {
                codec::decode(&bytes).map(Some).map_err(|e| HomeError::Damaged { path, reason: e.to_string() })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error(&path, source)),
        }
    }

    /// Replaces a file by one that is complete and durable, or leaves it as it was.
    pub fn write(&self, part: &str, bytes: &[u8]) -> Result<(), HomeError> {
        let path = self.path(part);
        replace(&path, bytes).map_err(|source| io_error(&path, source))
    }

    fn secret(&self, part: &str) -> Result<Zeroizing<[u8; 32]>, HomeError> {
        let path = self.path(part);
        match fs::read(&path).map(Zeroizing::new) {
            Ok(bytes) => {
                let seed: [u8; 32] = bytes.as_slice().try_into().map_err(|_| HomeError::Damaged {
                    path: path.clone(),
                    reason: format!("{} bytes instead of 32", bytes.len()),
                })?;
                Ok(Zeroizing::new(seed))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut seed = Zeroizing::new([0; 32]);
                getrandom::fill(&mut *seed).map_err(|e| io_error(&path, io::Error::other(e)))?;
                self.write(part, &*seed)?;
                Ok(seed)
            }
            Err(source) => Err(io_error(&path, source)),
        }
    }
}

/// Returns the name of this machine.
pub fn host_name() -> String {
    nix::sys::utsname::uname()
        .ok()
        .and_then(|name| name.nodename().to_str().map(str::to_owned))
        .unwrap_or_else(|| "machine".to_owned())
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = dir.join(format!(".{name}.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temp, path)?;
    File::open(dir)?.sync_all()
}

fn io_error(path: &Path, source: io::Error) -> HomeError {
    HomeError::Io { path: path.to_owned(), source }
}
