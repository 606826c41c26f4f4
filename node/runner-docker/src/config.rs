//! What the owner of a lablet decides, and why an engine cannot be used.

use std::path::PathBuf;

/// How the Docker runner works.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// Socket of the engine; none means what `DOCKER_HOST` names, and `/var/run/docker.sock` where it names nothing.
    pub socket: Option<PathBuf>,
    /// Private directory of this lablet, made where it does not exist: sockets and what is known of running cells. A
    /// lablet that finds it again finds its containers again.
    pub dir: PathBuf,
    /// What instances may have.
    pub limits: OwnerLimits,
    /// How containers get their place in the lab network.
    pub devices: Devices,
    /// Whether the thread of a lab network goes before others, where it may and as long as it uses little.
    pub realtime: bool,
}

/// Who makes the devices of the lab network in containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// The lablet itself, where it may, and otherwise the engine.
    #[default]
    WhoeverMay,
    /// The engine: a container for each device, which shares a network and ends at once.
    Engine,
}

/// What the owner of a lablet lets instances have, whatever their plan wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerLimits {
    /// Most instances at once.
    pub instances: Option<u32>,
    /// Most memory of all instances in bytes.
    pub memory_bytes: Option<u64>,
    /// Most thousandths of a processor of one instance; zero means as many as there are.
    pub cpu_milli: u32,
    /// Most processes of one instance.
    pub pids: u32,
    /// Most open files of one process.
    pub open_files: u32,
    /// Most bytes below a root file system that can be written to; zero means that none can.
    pub disk_bytes: u64,
    /// Longest time between the signal that asks an instance to stop and its end by force, in milliseconds.
    pub stop_grace_ms: u64,
    /// Whether a workload may be root in its container, without any capability.
    pub root: bool,
}

impl Default for OwnerLimits {
    fn default() -> OwnerLimits {
        OwnerLimits {
            instances: None,
            memory_bytes: None,
            cpu_milli: 0,
            pids: 4096,
            open_files: 1 << 20,
            disk_bytes: 1 << 30,
            stop_grace_ms: 10_000,
            root: false,
        }
    }
}

/// Why containers cannot be run here, and what helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unusable {
    /// What is wrong.
    pub reason: String,
    /// What the owner of the machine can do.
    pub fix: String,
}

impl DockerConfig {
    /// Returns a configuration that keeps what it needs in `dir` and has the usual limits.
    pub fn new(dir: PathBuf) -> DockerConfig {
        DockerConfig { socket: None, dir, limits: OwnerLimits::default(), devices: Devices::default(), realtime: true }
    }

    /// Returns the path of the engine's socket.
    pub(crate) fn socket_path(&self) -> Result<PathBuf, Unusable> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        match std::env::var("DOCKER_HOST") {
            Err(_) => Ok(PathBuf::from("/var/run/docker.sock")),
            Ok(host) => match host.strip_prefix("unix://") {
                Some(path) => Ok(PathBuf::from(path)),
                None => Err(Unusable {
                    reason: format!("DOCKER_HOST names {host}, and containers share files with the lablet"),
                    fix: "use an engine of this machine: unset DOCKER_HOST".to_owned(),
                }),
            },
        }
    }
}
