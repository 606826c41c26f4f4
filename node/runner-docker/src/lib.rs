//! Runs containers by Docker Engine: the only crate that names bollard.
//!
//! [`DockerRunner`] takes cells. Each instance is a container whose first process is a small static program of ours,
//! in the folder `init/`, which the build embeds: it holds the workload until the cell is started, reaps, says what is
//! used, and speaks with the lablet over a socket that is mounted into the container. Output goes from the workload
//! into pipes whose other ends are here, so the engine is asked for nothing while an instance runs, and may be
//! restarted. The page `docs/decisions/0008-container-init.md` says why.
//!
//! [`config`] is what an owner decides and why an engine cannot be used; [`engine`] asks the engine for things;
//! [`archive`] reads the files that images come as; [`settings`] makes the container that a plan asks for within what
//! its owner allows; [`set_up`] makes a container whose init holds its workload; [`link`] is the connection with an init, [`network`] the one between containers, [`output`] the lines that a workload writes; [`instance`]
//! is the life of one instance, [`cell`] that of a cell; [`state`] is what must outlive a lablet. [`images`] is for those who publish.
//!
//! Nothing that a workload or its init says is trusted for more than a workload's word. Start reading at
//! [`instance`].

mod archive;
mod capacity;
mod cell;
pub mod config;
mod egress;
mod engine;
mod exec;
mod exit;
mod faults;
mod images;
mod instance;
mod link;
mod network;
mod output;
#[path = "../init/src/protocol.rs"]
#[allow(unreachable_pub, reason = "the file belongs to two crates")]
#[expect(dead_code, reason = "each end uses its half")]
mod protocol;
mod runner;
mod set_up;
mod settings;
mod shaper;
mod state;
#[cfg(test)]
#[path = "../init/src/usage.rs"]
#[expect(dead_code, reason = "init reads them; its tests run with those of this crate")]
mod usage;

pub use config::{Devices, DockerConfig, OwnerLimits, Unusable};
pub use images::{Images, ImagesError};
pub use runner::DockerRunner;

/// Finds out who would make the devices of containers for a lablet of this user, for people.
///
/// Blocks for some milliseconds: it makes one, in a namespace of its own.
///
/// # Errors
///
/// Fails with what is wrong and what helps where nobody can: then containers have no network, and none is run.
pub fn device_maker() -> Result<&'static str, Unusable> {
    Ok(match network::maker(Devices::WhoeverMay)? {
        network::Maker::Lablet => "this user makes the devices of containers",
        network::Maker::Engine => "the engine makes the devices of containers, which takes a container for each",
    })
}

/// The init program, as the build made it.
const INIT: &[u8] = include_bytes!(env!("IPTL_INIT"));
