//! What the runner asks the engine for. Each question is bounded in time; an engine that does not answer is asked
//! again for a while, since it may be restarting.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::time::Duration;

use bollard::errors::Error as EngineError;
use bollard::models::{ContainerCreateBody, ContainerState, ImageConfig, SystemInfo, SystemVersion};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ImportImageOptionsBuilder, InspectContainerOptions, InspectContainerOptionsBuilder,
    ListContainersOptions, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, StatsOptionsBuilder,
    TagImageOptionsBuilder,
};
use bollard::{ClientVersion, Docker};
use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::archive::Manifest;
use crate::config::Unusable;

/// Oldest version of the engine's API that has all we ask for: 1.41 came with Docker 20.10.
const OLDEST: (usize, usize) = (1, 41);

/// Time for an engine to say what it is.
const GREETING: Duration = Duration::from_secs(10);

/// Most bytes that it says about that.
const MAX_GREETING: u64 = 256 << 10;

/// Time for an answer. Starting a container takes seconds on a machine that swaps.
const PATIENCE_S: u64 = 120;

/// Time in which an engine may be restarted.
const RESTART: Duration = Duration::from_secs(60);

/// Time between two tries to reach it.
const RETRY: Duration = Duration::from_millis(250);

/// Time in which a container has to go. The engine itself waits for tens of seconds for a process that does not die.
const REMOVAL: Duration = Duration::from_secs(PATIENCE_S + RESTART.as_secs());

/// Time until a removal that was refused is tried again, the first time; each time after that it is twice as long.
const REMOVE_AGAIN: Duration = Duration::from_millis(10);

/// Label of every container: whose it is.
pub(crate) const LABLET: &str = "iptl.lablet";

/// Bytes of an image that are handed over at once.
const CHUNK: usize = 256 << 10;

/// An engine that can be used.
#[derive(Clone)]
pub(crate) struct Engine {
    docker: Docker,
    version: String,
    architecture: String,
    own_groups: bool,
}

/// An image, ready to be used.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// What the engine calls it.
    pub(crate) id: String,
    /// What its builder set.
    pub(crate) config: ImageConfig,
}

/// Why an image is none that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("{0}")]
    Bad(String),
    #[error("the container engine: {0}")]
    Engine(#[source] EngineError),
    #[error("the image's file cannot be read")]
    Io(#[source] io::Error),
}

/// One container as a list of them shows it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) id: String,
    pub(crate) labels: HashMap<String, String>,
}

impl Engine {
    /// Connects to the engine behind a socket.
    pub(crate) async fn connect(socket: &Path) -> Result<Engine, Unusable> {
        let strange = |reason: String| Unusable {
            reason,
            fix: "install Docker Engine 20.10 or newer: sudo apt-get install docker.io".to_owned(),
        };
        let path = socket.display();
        let said = match tokio::time::timeout(GREETING, ask_version(socket)).await {
            Ok(Ok(said)) => said,
            Ok(Err(Silence::Closed(e))) => return Err(unreachable(socket, &e)),
            Ok(Err(Silence::NoEngine(e))) => return Err(strange(format!("what listens on {path} is no engine: {e}"))),
            Err(_) => {
                return Err(Unusable {
                    reason: format!("the container engine on {path} does not answer within {} s", GREETING.as_secs()),
                    fix: "start it again: sudo systemctl restart docker".to_owned(),
                });
            }
        };
        let number = |version: Option<&str>| {
            let (major, minor) = version?.split_once('.')?;
            Some((major.parse::<usize>().ok()?, minor.parse::<usize>().ok()?))
        };
        let api = said.api_version.clone().unwrap_or_default();
        let newest = (bollard::API_DEFAULT_VERSION.major_version, bollard::API_DEFAULT_VERSION.minor_version);
        let ours = match number(Some(&api)) {
            Some(theirs) if theirs >= OLDEST => theirs.min(newest),
            Some(_) | None => {
                let (major, minor) = OLDEST;
                return Err(strange(format!("its API is version {api}, and {major}.{minor} is needed")));
            }
        };
        if number(said.min_api_version.as_deref()).is_some_and(|least| least > ours) {
            return Err(Unusable {
                reason: format!("the container engine is newer than this program: its API is version {api}"),
                fix: "update this program, or use an older Docker Engine".to_owned(),
            });
        }
        if said.os.as_deref().is_some_and(|os| os != "linux") {
            return Err(strange(format!("it runs containers of {}", said.os.unwrap_or_default())));
        }
        // The newest that both know; the library asks for a version in a way that older engines refuse.
        let version = ClientVersion { major_version: ours.0, minor_version: ours.1 };
        let docker = Docker::connect_with_unix(&socket.to_string_lossy(), PATIENCE_S, &version)
            .map_err(|e| strange(format!("the socket {path} cannot be used: {e}")))?;
        let info = docker.info().await.map_err(|e| strange(e.to_string()))?;
        can_limit(&info)?;
        let unified = info.cgroup_version == Some(bollard::models::SystemInfoCgroupVersionEnum::_2);
        Ok(Engine {
            docker,
            own_groups: unified,
            version: said.version.unwrap_or_else(|| "of unknown version".to_owned()),
            architecture: said.arch.unwrap_or_default(),
        })
    }

    /// Returns the engine's version: `20.10.24`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Returns whether containers see their own control group only in a namespace of their own: with version 2.
    pub(crate) fn needs_group_namespace(&self) -> bool {
        self.own_groups
    }

    /// Makes sure that the image in an archive is there, under a name of ours that keeps it; loads it where it is not.
    pub(crate) async fn image(&self, archive: &Path, name: &str) -> Result<Image, ImageError> {
        let path = archive.to_owned();
        let manifest = tokio::task::spawn_blocking(move || Manifest::read(&path))
            .await
            .map_err(|e| ImageError::Io(io::Error::other(e)))?
            .map_err(|e| match e {
                crate::archive::ArchiveError::Io(e) => ImageError::Io(e),
                other => ImageError::Bad(other.to_string()),
            })?;
        if !manifest.architecture.is_empty() && manifest.architecture != self.architecture {
            return Err(ImageError::Bad(format!(
                "it is made for {}, and this machine is {}",
                manifest.architecture, self.architecture
            )));
        }
        if let Some(image) = self.look_up(&manifest.id, &manifest).await? {
            return Ok(image);
        }
        self.load(archive).await?;
        // Engines that keep images in containerd call them by another digest.
        for known_as in std::iter::once(&manifest.id).chain(&manifest.tags) {
            if let Some(image) = self.look_up(known_as, &manifest).await? {
                let (repo, tag) = name.split_once(':').unwrap_or((name, "latest"));
                let options = TagImageOptionsBuilder::new().repo(repo).tag(tag).build();
                self.docker.tag_image(&image.id, Some(options)).await.map_err(ImageError::Engine)?;
                return Ok(image);
            }
        }
        Err(ImageError::Bad("the engine loaded something else than its archive holds".to_owned()))
    }

    async fn look_up(&self, name: &str, manifest: &Manifest) -> Result<Option<Image>, ImageError> {
        match self.docker.inspect_image(name).await {
            Ok(found) => {
                let layers = found.root_fs.and_then(|fs| fs.layers).unwrap_or_default();
                let id = found.id.unwrap_or_default();
                let is_it = id == manifest.id || layers == manifest.diff_ids;
                Ok(is_it.then(|| Image { id, config: found.config.unwrap_or_default() }))
            }
            Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(e) => Err(ImageError::Engine(e)),
        }
    }

    async fn load(&self, archive: &Path) -> Result<(), ImageError> {
        let file = tokio::fs::File::open(archive).await.map_err(ImageError::Io)?;
        let bytes = futures::stream::try_unfold(file, |mut file| async move {
            let mut chunk = Vec::with_capacity(CHUNK);
            let size = file.read_buf(&mut chunk).await?;
            Ok::<_, io::Error>((size > 0).then(|| (Bytes::from(chunk), file)))
        });
        let body = bollard::body_try_stream(bytes);
        let mut said =
            std::pin::pin!(self.docker.import_image(ImportImageOptionsBuilder::new().quiet(true).build(), body, None));
        while let Some(line) = said.next().await {
            line.map_err(|e| match e {
                EngineError::DockerStreamError { error } => ImageError::Bad(error),
                other => ImageError::Engine(other),
            })?;
        }
        Ok(())
    }

    /// Forgets the name under which an image was kept, and the image where it has no other; returns false where a
    /// container has it.
    pub(crate) async fn forget_image(&self, name: &str) -> Result<bool, EngineError> {
        let options = RemoveImageOptionsBuilder::new().force(false).build();
        match self.docker.remove_image(name, Some(options), None).await {
            Ok(_) | Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(true),
            Err(EngineError::DockerResponseServerError { status_code: 409, .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes a container and returns its ID. One of the same name that this lablet left is removed first; a name that
    /// somebody else has taken stays theirs.
    pub(crate) async fn create(&self, name: &str, body: &ContainerCreateBody) -> Result<String, EngineError> {
        let create = || async {
            let options = CreateContainerOptionsBuilder::new().name(name).build();
            self.docker.create_container(Some(options), body.clone()).await.map(|created| created.id)
        };
        match create().await {
            Err(EngineError::DockerResponseServerError { status_code: 409, message }) => {
                let lablet = body.labels.as_ref().and_then(|labels| labels.get(LABLET));
                match self.remove_of(name, lablet).await? {
                    true => create().await,
                    false => Err(EngineError::DockerResponseServerError { status_code: 409, message }),
                }
            }
            other => other,
        }
    }

    /// Removes the container of this name where it is a lablet's; returns whether it was.
    pub(crate) async fn remove_of(&self, name: &str, lablet: Option<&String>) -> Result<bool, EngineError> {
        let found = self.docker.inspect_container(name, None::<InspectContainerOptions>).await;
        let found = match found {
            Ok(found) => found,
            Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => return Ok(true),
            Err(e) => return Err(e),
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let (Some(id), true) = (found.id, lablet.is_some() && labels.get(LABLET) == lablet) else { return Ok(false) };
        self.remove(&id).await.map(|()| true)
    }

    /// Starts a container.
    pub(crate) async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.docker.start_container(id, None::<bollard::query_parameters::StartContainerOptions>).await
    }

    /// Ends a container by force, where it runs, removes it, and returns once it is gone.
    ///
    /// An engine that is away is waited for. One that refuses is asked again: it does so where the process ends by
    /// itself at this moment (500, "is not running"), where another removal goes on (409, "already in progress") and
    /// where its disk is busy.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let deadline = tokio::time::Instant::now() + REMOVAL;
        let mut pause = REMOVE_AGAIN;
        loop {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            match self.docker.remove_container(id, Some(options)).await {
                Ok(()) | Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => return Ok(()),
                Err(e) if (is_away(&e) || may_change(&e)) && tokio::time::Instant::now() < deadline => {
                    tracing::debug!(error = %said(&e), container = id, "a container is not removed yet");
                }
                Err(e) => return Err(e),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY);
        }
    }

    /// Ends a container by force.
    pub(crate) async fn kill(&self, id: &str) -> Result<(), EngineError> {
        match self.docker.kill_container(id, None::<bollard::query_parameters::KillContainerOptions>).await {
            Ok(()) | Err(EngineError::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Returns how a container is; none where there is none. An engine that is away is waited for.
    pub(crate) async fn state(&self, id: &str) -> Result<Option<ContainerState>, EngineError> {
        self.insist(|| async {
            match self.docker.inspect_container(id, None::<bollard::query_parameters::InspectContainerOptions>).await {
                Ok(found) => Ok(Some(found.state.unwrap_or_default())),
                Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// Returns how many bytes a container has written below its root file system.
    pub(crate) async fn written(&self, id: &str) -> Result<u64, EngineError> {
        let options = InspectContainerOptionsBuilder::new().size(true).build();
        let found = self.docker.inspect_container(id, Some(options)).await?;
        Ok(u64::try_from(found.size_rw.unwrap_or(0)).unwrap_or(0))
    }

    /// Returns the CPU time in microseconds that a container has used, as the engine sees it.
    pub(crate) async fn cpu_us(&self, id: &str) -> Option<u64> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let stats = std::pin::pin!(self.docker.stats(id, Some(options))).next().await?.ok()?;
        Some(stats.cpu_stats?.cpu_usage?.total_usage? / 1000)
    }

    /// Lists containers, running or not, that have all these labels.
    pub(crate) async fn list(&self, labels: &BTreeMap<&str, String>) -> Result<Vec<Listed>, EngineError> {
        let filter: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.insist(|| async {
            let options = ListContainersOptions {
                all: true,
                filters: Some(HashMap::from([("label".to_owned(), filter.clone())])),
                ..ListContainersOptions::default()
            };
            let found = self.docker.list_containers(Some(options)).await?;
            let listed = found
                .into_iter()
                .filter_map(|c| Some(Listed { id: c.id?, labels: c.labels.unwrap_or_default() }))
                .collect();
            Ok(listed)
        })
        .await
    }

    /// Returns the client, for commands in containers.
    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Asks again while the engine is away, for as long as a restart may take.
    async fn insist<T, F: Future<Output = Result<T, EngineError>>>(
        &self,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, EngineError> {
        let deadline = tokio::time::Instant::now() + RESTART;
        loop {
            match ask().await {
                Err(e) if is_away(&e) && tokio::time::Instant::now() < deadline => tokio::time::sleep(RETRY).await,
                other => return other,
            }
        }
    }
}

/// Returns whether an error is that of an engine that is not there, rather than one that answers.
pub(crate) fn is_away(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::HyperResponseError { .. }
            | EngineError::HyperLegacyError { .. }
            | EngineError::IOError { .. }
            | EngineError::SocketNotFoundError(..)
            | EngineError::RequestTimeoutError
    )
}

/// Returns whether an engine that was asked to remove a container may do so if it is asked again.
fn may_change(error: &EngineError) -> bool {
    matches!(error, EngineError::DockerResponseServerError { status_code: 409 | 500.., .. })
}

/// Returns what the engine says, without the library's words around it.
pub(crate) fn said(error: &EngineError) -> String {
    match error {
        EngineError::DockerResponseServerError { message, .. } => message.lines().next().unwrap_or_default().to_owned(),
        other => other.to_string(),
    }
}

/// Refuses an engine that cannot limit what containers use: it would take the limits, and run them without.
fn can_limit(info: &SystemInfo) -> Result<(), Unusable> {
    let can = [("memory", info.memory_limit), ("processes", info.pids_limit), ("CPU", info.cpu_cfs_quota)];
    let cannot: Vec<&str> = can.iter().filter(|(_, can)| *can == Some(false)).map(|(what, _)| *what).collect();
    match cannot.is_empty() {
        true => Ok(()),
        false => Err(Unusable {
            reason: format!("the container engine cannot limit {} of containers here", cannot.join(", ")),
            fix: "have the control groups for that set up, which `docker info` warns of: on a machine with both \
                  versions, the engine has to use the one with the controllers memory, pids and cpu"
                .to_owned(),
        }),
    }
}

/// Why an engine's version is not known.
enum Silence {
    /// The socket cannot be opened.
    Closed(io::Error),
    /// What answers speaks otherwise.
    NoEngine(String),
}

/// Asks an engine what it is, without naming a version that it may not know.
async fn ask_version(socket: &Path) -> Result<SystemVersion, Silence> {
    let strange = |e: &dyn std::fmt::Display| Silence::NoEngine(e.to_string());
    let mut stream = tokio::net::UnixStream::connect(socket).await.map_err(Silence::Closed)?;
    // As in the first version of the protocol: the answer is in one piece and then over.
    let request = b"GET /version HTTP/1.0\r\nHost: engine\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.map_err(|e| strange(&e))?;
    let mut answer = Vec::new();
    stream.take(MAX_GREETING).read_to_end(&mut answer).await.map_err(|e| strange(&e))?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| strange(&"it does not speak HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(strange(&status));
    }
    serde_json::from_str(body).map_err(|e| strange(&e))
}

fn unreachable(socket: &Path, error: &io::Error) -> Unusable {
    let path = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => Unusable {
            reason: format!("no container engine: there is no socket {path}"),
            fix: "install and start one: sudo apt-get install docker.io, or `cargo xtask setup` in the repository"
                .to_owned(),
        },
        io::ErrorKind::PermissionDenied => Unusable {
            reason: format!("no permission on the container engine's socket {path}"),
            fix: "sudo usermod -aG docker $USER, then log in again; whoever may use the socket is root".to_owned(),
        },
        io::ErrorKind::ConnectionRefused => Unusable {
            reason: format!("no container engine listens on {path}"),
            fix: "start it: sudo systemctl start docker, or sudo dockerd where there is no systemd".to_owned(),
        },
        _ => {
            Unusable { reason: format!("the socket {path} cannot be opened: {error}"), fix: format!("look at {path}") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_that_would_run_containers_without_limits_is_not_used() {
        let all = SystemInfo {
            memory_limit: Some(true),
            pids_limit: Some(true),
            cpu_cfs_quota: Some(true),
            ..SystemInfo::default()
        };
        assert_eq!(can_limit(&all), Ok(()));
        // An engine that does not say so is asked for limits, and says then what it cannot.
        assert_eq!(can_limit(&SystemInfo::default()), Ok(()));
        let none = SystemInfo { memory_limit: Some(false), pids_limit: Some(false), ..all };
        let refused = can_limit(&none).unwrap_err();
        assert_eq!(refused.reason, "the container engine cannot limit memory, processes of containers here");
    }
}
