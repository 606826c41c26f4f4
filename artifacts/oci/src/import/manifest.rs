//! Which of the images in a source is meant, and what it is made of, in the two forms that tools write.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::source::{Source, shown};
use super::{ImportError, ImportOptions, Platform};
use crate::digest::Digest;

/// Deepest nesting of indexes: tools write one in another.
const MAX_DEPTH: usize = 4;

/// Most manifests that are looked at: an image for every platform has some ten, twice with attestations.
const MAX_MANIFESTS: usize = 1024;

/// A named file with what is known of it beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobRef {
    pub(crate) name: String,
    pub(crate) digest: Option<Digest>,
    pub(crate) size: Option<u64>,
}

/// The image that is meant.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) names: Vec<String>,
    pub(crate) config: BlobRef,
    pub(crate) layers: Vec<BlobRef>,
}

/// Finds the image that is meant.
pub(crate) fn choose(source: &Source, options: &ImportOptions) -> Result<Chosen, ImportError> {
    if let Some(bytes) = source.read("manifest.json")? {
        return from_docker(parse("manifest.json", &bytes)?, options);
    }
    match source.read("index.json")? {
        Some(bytes) => from_index(source, &bytes, options),
        None => Err(ImportError::NotAnImage),
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ImportError> {
    serde_json::from_slice(bytes).map_err(|error| ImportError::Json { name: shown(name), reason: error.to_string() })
}

/// An image in the `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

fn from_docker(images: Vec<DockerImage>, options: &ImportOptions) -> Result<Chosen, ImportError> {
    let names = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
    let all: Vec<String> =
        images.iter().map(|image| names(image).first().cloned().unwrap_or_else(|| image.config.clone())).collect();
    let mut meant: Vec<&DockerImage> = match &options.name {
        Some(name) => images.iter().filter(|image| names(image).iter().any(|known| is_named(known, name))).collect(),
        None => images.iter().collect(),
    };
    meant.dedup_by(|a, b| a.config == b.config);
    match (meant.as_slice(), &options.name) {
        ([image], _) => {
            let of = |name: &String| BlobRef { name: name.clone(), digest: digest_in(name), size: None };
            // Old engines name the config by its digest, and a layer by an ID that is none.
            let config_digest = image.config.strip_suffix(".json").and_then(Digest::from_hex);
            let config = of(&image.config);
            Ok(Chosen {
                names: names(image),
                config: BlobRef { digest: config.digest.or(config_digest), ..config },
                layers: image.layers.iter().flatten().map(of).collect(),
            })
        }
        ([], None) => Err(ImportError::Empty),
        ([], Some(name)) => Err(ImportError::NoSuchName { name: name.clone(), names: shown_list(all) }),
        (_, _) => Err(ImportError::Ambiguous { images: shown_list(all) }),
    }
}

/// Returns the digest in a path of the form `blobs/sha256/<digest>`.
fn digest_in(path: &str) -> Option<Digest> {
    Digest::from_hex(path.trim_start_matches("./").strip_prefix("blobs/sha256/")?)
}

fn shown_list(names: Vec<String>) -> String {
    const SHOWN: usize = 10;
    let more = names.len().saturating_sub(SHOWN);
    let list: Vec<String> = names.iter().take(SHOWN).map(|name| shown(name)).collect();
    if more > 0 { format!("{} and {more} more", list.join(", ")) } else { list.join(", ") }
}

/// Compares names the way people write them: `nginx` is `docker.io/library/nginx:latest`.
fn is_named(known: &str, wanted: &str) -> bool {
    known == wanted || full_name(known) == full_name(wanted)
}

/// Returns a name with registry and tag.
pub(crate) fn full_name(name: &str) -> String {
    let tagged = match name.rsplit_once('/').map_or(name, |(_, last)| last).contains([':', '@']) {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    };
    match tagged.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => tagged,
        Some(_) => format!("docker.io/{tagged}"),
        None => format!("docker.io/library/{tagged}"),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

impl Descriptor {
    fn blob(&self) -> Result<BlobRef, ImportError> {
        let digest: Digest = self.digest.parse()?;
        let name = format!("blobs/sha256/{}", digest.hex());
        Ok(BlobRef { name, digest: Some(digest), size: Some(self.size) })
    }

    fn annotation(&self, key: &str) -> Option<&String> {
        self.annotations.as_ref()?.get(key)
    }

    /// Names in the words of the two tools that write them.
    fn names(&self) -> Vec<String> {
        let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        keys.iter().filter_map(|key| self.annotation(key).cloned()).collect()
    }

    /// Says whether it is a note about another image.
    fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type").is_some()
            || self.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
    }
}

/// A manifest on the way to which all names and platforms were collected.
struct Candidate {
    blob: BlobRef,
    names: Vec<String>,
    platform: Option<Platform>,
}

fn from_index(source: &Source, bytes: &[u8], options: &ImportOptions) -> Result<Chosen, ImportError> {
    let mut candidates = Vec::new();
    let index: Index = parse("index.json", bytes)?;
    collect(source, index, &[], 0, &mut candidates)?;
    let all = shown_list(candidates.iter().map(label).collect());
    if let Some(name) = &options.name {
        candidates.retain(|candidate| candidate.names.iter().any(|known| is_named(known, name)));
        if candidates.is_empty() {
            return Err(ImportError::NoSuchName { name: name.clone(), names: all });
        }
    }
    // The same manifest may stand under several names.
    let mut distinct: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        match distinct.iter_mut().find(|known| known.blob == candidate.blob) {
            Some(known) => known.names.extend(candidate.names),
            None => distinct.push(candidate),
        }
    }
    let wanted = match &options.platform {
        Some(platform) => Some(platform.clone()),
        None if distinct.len() > 1 => Some(Platform::host()),
        None => None,
    };
    if let Some(wanted) = wanted {
        let fits = |candidate: &Candidate| candidate.platform.as_ref().is_none_or(|platform| platform.fits(&wanted));
        if !distinct.iter().any(fits) {
            return Err(ImportError::NoPlatform { wanted: wanted.to_string(), images: all });
        }
        distinct.retain(fits);
    }
    match distinct.as_slice() {
        [] => Err(ImportError::Empty),
        [candidate] => from_manifest(source, candidate),
        _ => Err(ImportError::Ambiguous { images: all }),
    }
}

fn label(candidate: &Candidate) -> String {
    let name = candidate.names.first().cloned().unwrap_or_else(|| candidate.blob.name.clone());
    match &candidate.platform {
        Some(platform) => format!("{name} ({platform})"),
        None => name,
    }
}

fn collect(
    source: &Source,
    index: Index,
    names: &[String],
    depth: usize,
    candidates: &mut Vec<Candidate>,
) -> Result<(), ImportError> {
    for descriptor in index.manifests.unwrap_or_default() {
        if candidates.len() >= MAX_MANIFESTS || depth >= MAX_DEPTH {
            return Err(ImportError::TooManyManifests);
        }
        if descriptor.is_attestation() {
            continue;
        }
        let blob = descriptor.blob()?;
        let mut names = names.to_vec();
        names.extend(descriptor.names());
        let is_index = matches!(
            descriptor.media_type.as_str(),
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json"
        );
        if is_index {
            let inner: Index = parse(&blob.name, &super::read_blob(source, &blob)?)?;
            collect(source, inner, &names, depth + 1, candidates)?;
        } else {
            candidates.push(Candidate { blob, names, platform: descriptor.platform });
        }
    }
    Ok(())
}

fn from_manifest(source: &Source, candidate: &Candidate) -> Result<Chosen, ImportError> {
    let name = &candidate.blob.name;
    let manifest: Index = parse(name, &super::read_blob(source, &candidate.blob)?)?;
    let config = manifest.config.ok_or_else(|| ImportError::Json {
        name: name.clone(),
        reason: "it is no manifest of an image: it has no config".into(),
    })?;
    let known = [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        // Some tools leave it out.
        "",
    ];
    if !known.contains(&config.media_type.as_str()) {
        return Err(ImportError::NotAContainer { media_type: shown(&config.media_type) });
    }
    let layers = manifest.layers.unwrap_or_default().iter().map(Descriptor::blob).collect::<Result<_, _>>()?;
    Ok(Chosen { names: candidate.names.clone(), config: config.blob()?, layers })
}

#[cfg(test)]
mod tests {
    use super::{full_name, is_named};

    #[test]
    fn names_are_completed_as_engines_do() {
        let rows = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1", "docker.io/library/nginx:1"),
            ("a/b", "docker.io/a/b:latest"),
            ("localhost/b:1", "localhost/b:1"),
            ("host:5000/b", "host:5000/b:latest"),
            ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ];
        for (name, full) in rows {
            assert_eq!(full_name(name), full);
            assert!(is_named(full, name));
        }
    }
}
