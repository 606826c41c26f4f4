//! `[workloads.NAME]`: what instances execute.

use iptl_dag::model::WorkloadKind;
use iptl_dag::{Cid, Codec};

use crate::codes;
use crate::diagnostic::{Diagnostic, quote};
use crate::section::{Located, Section, Sink};

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
    /// A file, relative to the manifest's directory, with `/`; never outside it.
    Path(String),
    /// A workload that was published: the CID of its node.
    Published(Cid),
}

pub(super) fn read(sink: &mut Sink, section: &Section<'_>) -> WorkloadDef {
    section.only(sink, &["kind", "path", "cid", "build"]);
    section.require(sink, "kind", "kind = \"wasm\"");
    let kind = section.word(sink, "kind", &[("wasm", WorkloadKind::Wasm)]);

    let path = section.string(sink, "path");
    let cid = section.string(sink, "cid");
    if section.get("path").is_some() == section.get("cid").is_some() {
        let both = section.get("cid").is_some();
        let span = if both { section.key_span("cid") } else { None }.unwrap_or_else(|| section.span.clone());
        let found = Diagnostic::new(
            codes::WORKLOAD_SOURCE,
            span,
            format!("`{}` must have either `path` or `cid`", section.path),
        )
        .label(if both { "it has both" } else { "it has neither" })
        .help("`path` is a file that the plan brings, `cid` a workload that was published");
        sink.push(match section.key_span("path") {
            Some(span) if both => found.related(span, "and the path is here"),
            _ => found,
        });
    }
    let build = section.strings(sink, "build");
    if let (Some(first), None, Some(_)) = (build.first(), section.get("path"), section.get("cid")) {
        sink.push(
            Diagnostic::new(
                codes::WORKLOAD_SOURCE,
                first.span.clone(),
                format!("`{}.build` has nothing to build", section.path),
            )
            .label("a workload that was published is not built")
            .help("remove `build`, or use `path` instead of `cid`"),
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

    let path = path.map(|path| {
        check_path(sink, &section.path_of("path"), &path);
        path.value
    });
    let source = match (path, cid.and_then(|cid| read_cid(sink, &section.path_of("cid"), &cid))) {
        (None, Some(cid)) => WorkloadSource::Published(cid),
        (path, _) => WorkloadSource::Path(path.unwrap_or_default()),
    };
    WorkloadDef {
        kind: kind.map_or(WorkloadKind::Wasm, |kind| kind.value),
        source,
        build: build.into_iter().map(|word| word.value).collect(),
    }
}

/// Notes a path that is not a relative one that stays in its directory.
fn check_path(sink: &mut Sink, key: &str, path: &Located<String>) {
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

fn read_cid(sink: &mut Sink, key: &str, text: &Located<String>) -> Option<Cid> {
    let found = Cid::try_from(text.value.as_str());
    let why = match &found {
        Ok(cid) if Codec::of(cid) == Some(Codec::DagCbor) => return Some(*cid),
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
