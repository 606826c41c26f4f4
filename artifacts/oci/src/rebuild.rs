//! Images for container engines: one tar that is an OCI layout and what `docker load` reads at once.
//!
//! Layers are written plain, so that the digest of each is its diff ID and nothing has to be compressed or hashed before.
//! What names the layers comes last: an archive that was cut off is not loaded.

use std::collections::BTreeSet;
use std::io;

use iptl_artifacts::BlobStore;
use iptl_dag::Cid;
use iptl_dag::model::Layer;
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::digest::Digest;
use crate::import::full_name;
use crate::limits::Limits;
use crate::read::{OpenImage, ReadError, Taken, check_layer, open, pieces, stream_layer};
use crate::tar::TarBlock;
use crate::tar::padding;
use crate::tar::scan::{Entry, Sink, Slot, TarError};
use crate::tar::write::{Body, END, Meta, headers};

/// Longest name in bytes that an image is given.
const MAX_NAME: usize = 255;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the archive.
    pub bytes: u64,
    /// Digest of the config: the ID under which engines that keep images by config know it.
    pub config_digest: Digest,
    /// Digest of the manifest: the ID under which engines that keep images as OCI content know it.
    pub manifest_digest: Digest,
}

/// Why an image was not rebuilt. What was written by then is no image.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The name is none.
    #[error("{name:?} cannot be the name of an image; names look like name:tag, in lower case")]
    Name {
        /// The name.
        name: String,
    },
    /// The writer failed.
    #[error("writing the image")]
    Write(#[source] io::Error),
}

/// Writes an image as an archive for `docker load` and OCI tools.
///
/// The same image and name are the same bytes everywhere. Layers are checked while they pass: their digests, and that
/// they hold nothing that an import would have refused. Not cancel safe: the writer has some of it.
pub async fn write_docker_archive(
    store: &dyn BlobStore,
    image: &Cid,
    name: Option<&str>,
    limits: &Limits,
    out: &mut (dyn AsyncWrite + Unpin + Send),
) -> Result<Written, RebuildError> {
    let name = name.map(check_name).transpose()?;
    let opened = open(store, image, limits).await?;
    let mut archive = Archive { out, bytes: 0 };
    archive.directory("blobs").await?;
    archive.directory("blobs/sha256").await?;
    let mut written = BTreeSet::new();
    for (number, layer) in (1..).zip(&opened.layers) {
        if written.insert(layer.diff_id) {
            archive.layer(store, number, layer).await?;
        }
    }
    let config_digest = Digest(opened.image.config_digest);
    archive.blob(&opened.config).await?;
    let manifest = manifest(&opened);
    let manifest_digest = Digest::of(&manifest);
    archive.blob(&manifest).await?;
    archive.file("index.json", &index(&opened, &manifest, name.as_deref())).await?;
    archive.file("manifest.json", &docker_manifest(&opened, name.as_deref())).await?;
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).await?;
    archive.write(&END).await?;
    archive.out.flush().await.map_err(RebuildError::Write)?;
    Ok(Written { bytes: archive.bytes, config_digest, manifest_digest })
}

/// Completes a name by its tag; refuses what no engine takes.
fn check_name(name: &str) -> Result<String, RebuildError> {
    let wrong = || RebuildError::Name { name: name.chars().take(MAX_NAME).collect() };
    let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
    let tagged = if last.contains(':') { name.to_owned() } else { format!("{name}:latest") };
    let (path, tag) = tagged.rsplit_once(':').ok_or_else(wrong)?;
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let path_fits = path.split('/').enumerate().all(|(i, part)| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        // The first part may be a host with a port.
        let part =
            if i == 0 && path.contains('/') { part.split_once(':').map_or(part, |(host, _)| host) } else { part };
        part.chars().all(word) && edge(part.chars().next()) && edge(part.chars().next_back())
    });
    let tag_fits = !tag.is_empty()
        && tag.len() <= 128
        && tag.chars().all(|c| word(c) || c.is_ascii_uppercase())
        && !tag.starts_with(['.', '-']);
    if path_fits && tag_fits && tagged.len() <= MAX_NAME { Ok(tagged) } else { Err(wrong()) }
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Keys are in the order of their bytes, since the map behind `json!` may keep or sort them.
fn manifest(opened: &OpenImage) -> Vec<u8> {
    let layers: Vec<_> = opened
        .layers
        .iter()
        .map(|layer| {
            json!({
                "digest": Digest(layer.diff_id).to_string(),
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "size": layer.size,
            })
        })
        .collect();
    let manifest = json!({
        "config": {
            "digest": Digest(opened.image.config_digest).to_string(),
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "size": opened.config.len(),
        },
        "layers": layers,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "schemaVersion": 2,
    });
    manifest.to_string().into_bytes()
}

fn index(opened: &OpenImage, manifest: &[u8], name: Option<&str>) -> Vec<u8> {
    let platform = json!({ "architecture": opened.image.architecture, "os": opened.image.os });
    let (digest, media_type) = (Digest::of(manifest).to_string(), "application/vnd.oci.image.manifest.v1+json");
    let descriptor = match name {
        None => json!({ "digest": digest, "mediaType": media_type, "platform": platform, "size": manifest.len() }),
        Some(name) => {
            let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
            json!({
                "annotations": {
                    "io.containerd.image.name": full_name(name),
                    "org.opencontainers.image.ref.name": tag,
                },
                "digest": digest,
                "mediaType": media_type,
                "platform": platform,
                "size": manifest.len(),
            })
        }
    };
    let index = json!({
        "manifests": [descriptor],
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "schemaVersion": 2,
    });
    index.to_string().into_bytes()
}

fn docker_manifest(opened: &OpenImage, name: Option<&str>) -> Vec<u8> {
    let layers: Vec<String> = opened.layers.iter().map(|layer| blob_path(Digest(layer.diff_id))).collect();
    let config = blob_path(Digest(opened.image.config_digest));
    let names: Vec<&str> = name.into_iter().collect();
    json!([{ "Config": config, "Layers": layers, "RepoTags": names }]).to_string().into_bytes()
}

/// The archive on its way out.
struct Archive<'a> {
    out: &'a mut (dyn AsyncWrite + Unpin + Send),
    bytes: u64,
}

impl Archive<'_> {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), RebuildError> {
        self.out.write_all(bytes).await.map_err(RebuildError::Write)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    async fn header(&mut self, path: &str, mode: u32, body: Body<'_>) -> Result<(), RebuildError> {
        let meta = Meta { path: path.as_bytes(), mode, uid: 0, gid: 0, mtime: 0, xattrs: &[] };
        self.write(&headers(&meta, body)).await
    }

    async fn directory(&mut self, path: &str) -> Result<(), RebuildError> {
        self.header(path, 0o755, Body::Directory).await
    }

    async fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), RebuildError> {
        let size = bytes.len() as u64;
        self.header(path, 0o644, Body::File { size }).await?;
        self.write(bytes).await?;
        self.pad(size).await
    }

    async fn blob(&mut self, bytes: &[u8]) -> Result<(), RebuildError> {
        self.file(&blob_path(Digest::of(bytes)), bytes).await
    }

    async fn pad(&mut self, size: u64) -> Result<(), RebuildError> {
        self.write(&END[..padding(size)]).await
    }

    /// Writes a layer while a thread checks it.
    async fn layer(&mut self, store: &dyn BlobStore, number: usize, layer: &Layer) -> Result<(), RebuildError> {
        self.header(&blob_path(Digest(layer.diff_id)), 0o644, Body::File { size: layer.size }).await?;
        let (to_writer, mut written) = pieces();
        let (to_checker, checked) = pieces();
        let of_layer = layer.clone();
        let checker = tokio::task::spawn_blocking(move || check_layer(number, &of_layer, checked, &mut Check));
        let write = async {
            while let Some(piece) = written.recv().await {
                // The checker is gone where it refused the layer, and says why below.
                if to_checker.send(piece.clone()).await.is_err() {
                    break;
                }
                self.write(&piece).await?;
            }
            drop(to_checker);
            drop(written);
            Ok::<_, RebuildError>(())
        };
        let (streamed, wrote) = tokio::join!(stream_layer(store, number, layer, to_writer), write);
        wrote?;
        let whole = streamed?;
        let checked = checker.await.map_err(|error| RebuildError::Write(io::Error::other(error)))?;
        checked.map_err(|error| match error {
            CheckError::Tar(source) => ReadError::Tar { layer: number, source },
            CheckError::Read(error) => error,
        })?;
        match whole {
            Taken::Whole => {}
            Taken::Stopped => return Err(RebuildError::Write(io::ErrorKind::BrokenPipe.into())),
        }
        self.pad(layer.size).await
    }
}

/// Looks at a layer without keeping anything; the rules are the scanner's.
struct Check;

enum CheckError {
    Tar(TarError),
    Read(ReadError),
}

impl From<TarError> for CheckError {
    fn from(error: TarError) -> CheckError {
        CheckError::Tar(error)
    }
}

impl From<ReadError> for CheckError {
    fn from(error: ReadError) -> CheckError {
        CheckError::Read(error)
    }
}

impl Sink for Check {
    type Error = CheckError;

    fn entry(&mut self, _: &Entry, _: &[(Slot, TarBlock)]) -> Result<(), CheckError> {
        Ok(())
    }

    fn content(&mut self, _: &[u8]) -> Result<(), CheckError> {
        Ok(())
    }

    fn end(&mut self, _: &[u8]) -> Result<(), CheckError> {
        Ok(())
    }

    fn rest(&mut self, _: &[u8]) -> Result<(), CheckError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_are_completed_or_refused() {
        let rows = [
            ("a", Some("a:latest")),
            ("iptl/x:1", Some("iptl/x:1")),
            ("localhost:5000/a/b:V1", Some("localhost:5000/a/b:V1")),
            ("localhost:5000/a", Some("localhost:5000/a:latest")),
            ("", None),
            ("A", None),
            ("a:", None),
            ("a/../b", None),
            ("/a", None),
            ("a b", None),
            ("a\"b", None),
        ];
        for (name, expected) in rows {
            assert_eq!(check_name(name).ok().as_deref(), expected, "{name}");
        }
    }
}
