//! Images of this machine's engine, for whoever publishes them: saved as archives, built from a `Dockerfile`.
//!
//! Nothing here concerns instances: a workload is published on the machine of its author, and runs on others.

use std::io;
use std::path::{Path, PathBuf};

use bollard::query_parameters::BuildImageOptionsBuilder;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use crate::config::{DockerConfig, Unusable};
use crate::engine::{Engine, said};

/// Bytes of a build's context that are handed over at once, and how many such parts wait.
const CHUNK: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 4;

/// The images of an engine.
#[derive(Clone)]
pub struct Images {
    engine: Engine,
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The engine cannot be used.
    #[error("{}", .0.reason)]
    Unusable(#[from] Unusable),
    /// The engine has no such image.
    #[error("the engine has no image {name}")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The build failed.
    #[error("the build failed: {0}")]
    Build(String),
    /// The engine refused.
    #[error("the container engine: {0}")]
    Engine(String),
    /// A directory cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// Directory in question.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Images {
    /// Connects to the engine behind a socket; to the default one where none is named.
    ///
    /// # Errors
    ///
    /// Fails with what is wrong and what helps where the engine cannot be used.
    pub async fn connect(socket: Option<PathBuf>) -> Result<Images, Unusable> {
        let config = DockerConfig { socket, ..DockerConfig::new(PathBuf::new()) };
        Ok(Images { engine: Engine::connect(&config.socket_path()?).await? })
    }

    /// Returns the engine's version: `20.10.24`.
    pub fn engine_version(&self) -> &str {
        self.engine.version()
    }

    /// Returns an image as `docker save` writes it.
    ///
    /// # Errors
    ///
    /// Fails where there is no such image; what fails later fails the reader.
    pub async fn save(&self, name: &str) -> Result<impl AsyncRead + Unpin + Send + use<>, ImagesError> {
        let docker = self.engine.docker().clone();
        // Asked for first: an export of what is not there begins as any other.
        docker.inspect_image(name).await.map_err(|e| match e {
            bollard::errors::Error::DockerResponseServerError { status_code: 404, .. } => {
                ImagesError::Unknown { name: name.to_owned() }
            }
            other => ImagesError::Engine(said(&other)),
        })?;
        let (parts, queue) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(CHUNKS_AHEAD);
        let name = name.to_owned();
        tokio::spawn(async move {
            let mut export = Box::pin(docker.export_image(&name).map_err(|e| io::Error::other(said(&e))));
            while let Some(part) = export.next().await {
                if parts.send(part).await.is_err() {
                    return;
                }
            }
        });
        Ok(StreamReader::new(
            futures::stream::unfold(queue, |mut queue| async {
                let part = queue.recv().await?;
                Some((part, queue))
            })
            .boxed(),
        ))
    }

    /// Builds the `Dockerfile` of a directory, tells what the engine says, and returns the image's ID.
    ///
    /// Safe to drop: the engine gives the build up.
    ///
    /// # Errors
    ///
    /// Fails where the build does, with what it said last.
    pub async fn build(&self, dir: &Path, mut note: impl FnMut(&str)) -> Result<String, ImagesError> {
        if !dir.join("Dockerfile").is_file() {
            let source = io::Error::new(io::ErrorKind::NotFound, "there is no Dockerfile in it");
            return Err(ImagesError::Read { path: dir.to_owned(), source });
        }
        let (parts, queue) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(CHUNKS_AHEAD);
        let context = dir.to_owned();
        let packing = tokio::task::spawn_blocking(move || pack(&context, parts));
        let body = bollard::body_try_stream(futures::stream::unfold(queue, |mut queue| async {
            let part = queue.recv().await?;
            Some((part, queue))
        }));
        let options = BuildImageOptionsBuilder::new().dockerfile("Dockerfile").rm(true).forcerm(true).build();
        let mut building = Box::pin(self.engine.docker().build_image(options, None, Some(body)));
        let mut id = None;
        while let Some(said_now) = building.next().await {
            let info = said_now.map_err(|e| ImagesError::Build(said(&e)))?;
            if let Some(detail) = info.error_detail {
                return Err(ImagesError::Build(detail.message.unwrap_or_default()));
            }
            if let Some(text) = info.stream.as_deref().map(str::trim).filter(|text| !text.is_empty()) {
                note(text);
            }
            id = info.aux.and_then(|aux| aux.id).or(id);
        }
        let read = |source| ImagesError::Read { path: dir.to_owned(), source };
        packing.await.map_err(|e| read(io::Error::other(e)))?.map_err(read)?;
        id.ok_or_else(|| ImagesError::Build("the engine named no image at its end".to_owned()))
    }
}

/// Packs a directory as the context of a build.
fn pack(dir: &Path, parts: tokio::sync::mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(CHUNK, Parts(parts)));
    tar.follow_symlinks(false);
    tar.append_dir_all(".", dir)?;
    tar.into_inner()?.into_inner().map_err(|e| e.into_error())?;
    Ok(())
}

/// Hands on what is written.
struct Parts(tokio::sync::mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
