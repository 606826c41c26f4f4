//! `[workloads.NAME]`: what instances execute.

use iptl_dag::model::WorkloadKind;
use iptl_dag::{Cid, Codec};

use crate::codes;
use crate::diagnostic::{Diagnostic, quote};
use crate::section::{Located, Section, Sink, check_text};

/// A workload as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadDef {
    /// How it is executed.
    pub kind: WorkloadKind,
    /// Where its content comes from.
    pub source: WorkloadSource,
    /// Command that makes the content, run in the manifest's directory; empty where there is nothing to build.
    pub build: Vec<String>,
}

/// Where a workload's content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadSource {
    /// A component: a file, relative to the manifest's directory, with `/`; never outside it.
    Path(String),
    /// A container image that is made or taken when the plan is published.
    Image(ImageSource),
    /// A workload that was published: the CID of its node.
    Published(Cid),
}

/// Where a container image comes from. Paths are relative to the manifest's directory and never outside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// One program.
    Binary {
        /// Its file.
        path: String,
        /// Whether the libraries that it is linked with are packed beside it.
        with_libs: bool,
    },
    /// A directory that becomes the root file system.
    Rootfs(String),
    /// An OCI layout, as a directory or a tar, or what `docker save` wrote.
    Oci(String),
    /// An image that the engine of the publishing machine has, by name.
    Engine(String),
    /// A directory with a `Dockerfile`, built by the engine of the publishing machine.
    Dockerfile(String),
}

/// Keys that say where a component comes from, and where an image does; exactly one is given.
const SOURCES_OF_WASM: &[&str] = &["path", "cid"];
const SOURCES_OF_DOCKER: &[&str] = &["binary", "rootfs", "oci", "image", "dockerfile", "cid"];

pub(super) fn read(sink: &mut Sink, section: &Section<'_>) -> WorkloadDef {
    section.require(sink, "runner", "runner = \"wasm\"");
    let runner = section.word(sink, "runner", &[("wasm", WorkloadKind::Wasm), ("docker", WorkloadKind::Docker)]);
    let known = runner.is_some();
    let kind = runner.map_or(WorkloadKind::Wasm, |word| word.value);
    let sources = match kind {
        WorkloadKind::Wasm => SOURCES_OF_WASM,
        WorkloadKind::Docker => SOURCES_OF_DOCKER,
    };
    let mut keys = vec!["runner", "build"];
    keys.extend(sources);
    match kind {
        // Where the runner is a mistake itself, nothing more can be said about keys of either.
        WorkloadKind::Wasm if !known => {
            keys.extend(SOURCES_OF_DOCKER.iter().filter(|key| !sources.contains(key)));
            keys.push("with_libs");
        }
        WorkloadKind::Wasm => {}
        WorkloadKind::Docker => keys.push("with_libs"),
    }
    section.only(sink, &keys);
    let source = one_source(sink, section, kind, sources, known);
    let build = build(sink, section);
    WorkloadDef { kind, source: source.unwrap_or(WorkloadSource::Path(String::new())), build }
}

/// Reads the one key that says where the content comes from.
fn one_source(
    sink: &mut Sink,
    section: &Section<'_>,
    kind: WorkloadKind,
    keys: &[&'static str],
    known: bool,
) -> Option<WorkloadSource> {
    let given: Vec<&str> = keys.iter().copied().filter(|key| section.get(key).is_some()).collect();
    let key = match given[..] {
        [key] => key,
        _ => {
            if known {
                sink.push(not_one_source(section, keys, &given));
            }
            return None;
        }
    };
    let text = section.string(sink, key)?;
    let path = section.path_of(key);
    if key == "cid" {
        return read_cid(sink, &path, kind, &text).map(WorkloadSource::Published);
    }
    if key == "image" {
        check_text(sink, &path, &text, 1, MAX_IMAGE_NAME);
        return Some(WorkloadSource::Image(ImageSource::Engine(text.value)));
    }
    check_path(sink, &path, &text);
    let path = text.value;
    let with_libs = section.boolean(sink, "with_libs");
    if let (Some(with_libs), true) = (&with_libs, key != "binary") {
        sink.push(
            Diagnostic::new(
                codes::WORKLOAD_SOURCE,
                with_libs.span.clone(),
                format!("`{}.with_libs` is about a `binary`", section.path),
            )
            .help("remove it"),
        );
    }
    Some(match key {
        "binary" => {
            let with_libs = with_libs.is_some_and(|with_libs| with_libs.value);
            WorkloadSource::Image(ImageSource::Binary { path, with_libs })
        }
        "rootfs" => WorkloadSource::Image(ImageSource::Rootfs(path)),
        "oci" => WorkloadSource::Image(ImageSource::Oci(path)),
        "dockerfile" => WorkloadSource::Image(ImageSource::Dockerfile(path)),
        _ => WorkloadSource::Path(path),
    })
}

fn not_one_source(section: &Section<'_>, keys: &[&str], given: &[&str]) -> Diagnostic {
    let span = given.last().and_then(|key| section.key_span(key)).unwrap_or_else(|| section.span.clone());
    let wanted = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let label = match given.len() {
        0 => "it has none".to_owned(),
        n => format!("it has {n}"),
    };
    let mut found =
        Diagnostic::new(codes::WORKLOAD_SOURCE, span, format!("`{}` must have exactly one of {wanted}", section.path))
            .label(label)
            .help("`cid` is a workload that was published, all others are what the plan brings");
    for key in given.iter().rev().skip(1) {
        if let Some(span) = section.key_span(key) {
            found = found.related(span, "and another is here");
        }
    }
    found
}

fn build(sink: &mut Sink, section: &Section<'_>) -> Vec<String> {
    let build = section.strings(sink, "build");
    if let (Some(first), Some(_)) = (build.first(), section.get("cid")) {
        sink.push(
            Diagnostic::new(
                codes::WORKLOAD_SOURCE,
                first.span.clone(),
                format!("`{}.build` has nothing to build", section.path),
            )
            .label("a workload that was published is not built")
            .help("remove `build`, or name a file instead of `cid`"),
        );
    }
    if section.get("build").is_some_and(|node| node.get_ref().as_array().is_some_and(|array| array.is_empty())) {
        sink.push(
            Diagnostic::new(
                codes::BAD_TEXT,
                section.key_span("build").unwrap_or_default(),
                format!("`{}.build` is empty", section.path),
            )
            .help("write the command as its words: `build = [\"cargo\", \"build\"]`, or remove the key"),
        );
    }
    build.into_iter().map(|word| word.value).collect()
}

/// Longest name of an image, in characters, as engines allow it.
const MAX_IMAGE_NAME: usize = 384;

/// Notes a path that is not a relative one that stays in its directory.
pub(super) fn check_path(sink: &mut Sink, key: &str, path: &Located<String>) {
    let text = &path.value;
    let why = if text.is_empty() {
        "it is empty"
    } else if text.contains('\\') || text.chars().any(char::is_control) {
        "there are backslashes or control characters in it"
    } else if text.starts_with('/') || text.starts_with('~') || text.get(1..2) == Some(":") {
        "it is not relative"
    } else if text.split('/').any(|step| step == "..") {
        "it leaves the plan's directory"
    } else {
        return;
    };
    sink.push(
        Diagnostic::new(codes::BAD_PATH, path.span.clone(), format!("`{key}` cannot be {}", quote(text)))
            .label(why)
            .help("write a path relative to the manifest, with `/`, such as `target/wasm32-wasip2/release/ping.wasm`"),
    );
}

fn read_cid(sink: &mut Sink, key: &str, kind: WorkloadKind, text: &Located<String>) -> Option<Cid> {
    let found = Cid::try_from(text.value.as_str());
    let why = match &found {
        Ok(cid) if Codec::of(cid) == Some(Codec::DagCbor) => return Some(*cid),
        // A file, whoever published it.
        Ok(cid) if kind == WorkloadKind::Wasm && matches!(Codec::of(cid), Some(Codec::Raw | Codec::DagPb)) => {
            return Some(*cid);
        }
        Ok(_) => "this CID is not that of a workload, which begins with `bafy`".to_owned(),
        Err(error) => error.to_string().to_lowercase(),
    };
    sink.push(
        Diagnostic::new(codes::BAD_CID, text.span.clone(), format!("`{key}` is not the CID of a workload"))
            .label(why)
            .help("`iptl publish workload FILE` prints it"),
    );
    None
}
