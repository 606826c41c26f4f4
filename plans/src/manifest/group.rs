//! `[cases.NAME.groups.NAME]`: instances that share a workload and a role.

use std::collections::BTreeMap;

use iptl_dag::model::{Affinity, Count, GroupSpec, Requirements, Resources, Rolling, WorkloadKind};
use toml::de::DeValue;

use super::{MAX_INSTANCES, WorkloadDef, container, loss};
use crate::codes;
use crate::diagnostic::{Diagnostic, quote, suggestion};
use crate::section::{Located, Section, Sink, check_text, string};

/// Reads a group; the second value are the files of its containers, by the path at which they appear.
pub(super) fn read(
    sink: &mut Sink,
    section: &Section<'_>,
    workloads: &BTreeMap<String, WorkloadDef>,
) -> (GroupSpec, BTreeMap<String, String>) {
    section.only(
        sink,
        &[
            &["workload", "count", "args", "env", "labels", "affinity", "max_per_lablet", "resources", "container"][..],
            &["start"],
            loss::GROUP_KEYS,
        ]
        .concat(),
    );
    let workload = workload(sink, section, workloads);
    let kind = workloads.get(&workload).map(|def| def.kind);
    let container = container::read(sink, section, kind);
    let spec = GroupSpec {
        workload,
        count: count(sink, section),
        args: section.strings(sink, "args").into_iter().map(|arg| arg.value).collect(),
        env: env(sink, section),
        resources: resources(sink, section, kind),
        requires: Requirements {
            labels: labels(sink, section),
            affinity: section
                .word(
                    sink,
                    "affinity",
                    &[("balance", Affinity::Balance), ("spread", Affinity::Spread), ("pack", Affinity::Pack)],
                )
                .map(|word| word.value)
                .unwrap_or_default(),
            max_per_lablet: narrow(section.integer(sink, "max_per_lablet", 0, i64::from(MAX_INSTANCES)), 0),
            // The network says it.
            together: None,
        },
        container: container.settings.filter(|_| kind == Some(WorkloadKind::Docker)),
        loss: loss::of_group(sink, section),
        start: start(sink, section),
    };
    (spec, container.files)
}

/// Returns a number that was read within bounds of a `u32`, or else `otherwise`.
pub(super) fn narrow(read: Option<Located<i64>>, otherwise: u32) -> u32 {
    read.and_then(|read| u32::try_from(read.value).ok()).unwrap_or(otherwise)
}

fn workload(sink: &mut Sink, section: &Section<'_>, workloads: &BTreeMap<String, WorkloadDef>) -> String {
    let known = workloads.keys().map(String::as_str);
    let example = format!("workload = \"{}\"", known.clone().next().unwrap_or("NAME"));
    section.require(sink, "workload", &example);
    let Some(name) = section.string(sink, "workload") else { return String::new() };
    if !workloads.contains_key(&name.value) {
        sink.push(
            Diagnostic::new(
                codes::UNKNOWN_WORKLOAD,
                name.span,
                format!("the plan has no workload {}", quote(&name.value)),
            )
            .label("unknown workload")
            .maybe_help(suggestion(&name.value, known)),
        );
    }
    name.value
}

/// Reads `count = 30` or `count = { default = 30, min = 2, max = 1000 }`.
fn count(sink: &mut Sink, section: &Section<'_>) -> Count {
    let path = section.path_of("count");
    let fallback = Count { default: 1, min: 1, max: 1 };
    let Some(node) = section.require(sink, "count", "count = { default = 3, min = 1, max = 100 }") else {
        return fallback;
    };
    let DeValue::Table(table) = node.get_ref() else {
        if !matches!(node.get_ref(), DeValue::Integer(_)) {
            crate::section::wrong_type(
                sink,
                &path,
                node,
                "an integer or a table",
                Some("write `count = 30`, or `count = { default = 30, min = 2, max = 1000 }`".to_owned()),
            );
            return fallback;
        }
        let fixed = narrow(crate::section::integer(sink, &path, node, 1, i64::from(MAX_INSTANCES)), 1);
        return Count { default: fixed, min: fixed, max: fixed };
    };
    let bounds = Section::new(path, node.span(), table);
    bounds.only(sink, &["default", "min", "max"]);
    bounds.require(sink, "default", "default = 3");
    let largest = i64::from(MAX_INSTANCES);
    let default = bounds.integer(sink, "default", 0, largest);
    let min = bounds.integer(sink, "min", 0, largest);
    let max = bounds.integer(sink, "max", 1, largest);
    let read = Count {
        default: narrow(default.clone(), 1),
        min: narrow(min.clone(), 1),
        max: narrow(max.clone(), MAX_INSTANCES),
    };
    if let (Some(min), Some(max)) = (&min, &max)
        && min.value > max.value
    {
        sink.push(reversed(&bounds.path, min.span.clone(), max.span.clone()));
        return fallback;
    }
    if let Some(default) = default
        && !(read.min..=read.max).contains(&read.default)
    {
        sink.push(default_outside(&bounds.path, default.span, &read.min.to_string(), &read.max.to_string()));
    }
    read
}

/// Reads `start = { rolling = 10, every = "1s" }`.
fn start(sink: &mut Sink, section: &Section<'_>) -> Option<Rolling> {
    let table = section.section(sink, "start")?;
    table.only(sink, &["rolling", "every"]);
    table.require(sink, "rolling", "rolling = 10");
    let count = table.integer(sink, "rolling", 1, i64::from(MAX_INSTANCES));
    let every = table.duration_ms(sink, "every", 1, MAX_TIME_MS);
    Some(Rolling { count: narrow(count, 1), every_ms: or(every, DEFAULT_EVERY_MS) })
}

/// Time from one batch of a rolling start to the next where it is not said, in milliseconds.
const DEFAULT_EVERY_MS: u64 = 1_000;

pub(super) fn reversed(path: &str, min: std::ops::Range<usize>, max: std::ops::Range<usize>) -> Diagnostic {
    Diagnostic::new(codes::REVERSED_BOUNDS, min, format!("`{path}.min` is larger than `{path}.max`"))
        .label("the smallest")
        .related(max, "the largest")
        .help("swap them")
}

pub(super) fn default_outside(path: &str, span: std::ops::Range<usize>, min: &str, max: &str) -> Diagnostic {
    Diagnostic::new(codes::DEFAULT_OUTSIDE, span, format!("`{path}.default` is not one of the values allowed"))
        .label(format!("must be from {min} to {max}"))
}

/// Longest value of a variable, in characters.
const MAX_ENV_VALUE: usize = 32 << 10;

fn env(sink: &mut Sink, section: &Section<'_>) -> BTreeMap<String, String> {
    let Some(table) = section.section(sink, "env") else { return BTreeMap::new() };
    let mut env = BTreeMap::new();
    for (name, span, node) in table.entries() {
        let why = if name.starts_with("IPTL_") {
            Some("variables with `IPTL_` are set by the lab")
        } else if !is_variable(name) {
            Some("a variable has 1 to 80 of `A-Z`, `a-z`, `0-9` and `_`, and does not begin with a digit")
        } else {
            None
        };
        if let Some(why) = why {
            sink.push(
                Diagnostic::new(codes::BAD_ENV, span, format!("`{}` cannot set {}", table.path, quote(name)))
                    .label(why)
                    .help("give it another name"),
            );
        }
        let path = table.path_of(name);
        if let Some(value) = string(sink, &path, node) {
            check_text(sink, &path, &value, 0, MAX_ENV_VALUE);
            env.insert(name.to_owned(), value.value);
        }
    }
    env
}

fn is_variable(name: &str) -> bool {
    (1..=80).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn labels(sink: &mut Sink, section: &Section<'_>) -> BTreeMap<String, String> {
    let Some(table) = section.section(sink, "labels") else { return BTreeMap::new() };
    let mut labels = BTreeMap::new();
    for (name, span, node) in table.entries() {
        crate::names::check(sink, "label", name, &span);
        let path = table.path_of(name);
        if let Some(value) = string(sink, &path, node) {
            check_text(sink, &path, &value, 1, 80);
            labels.insert(name.to_owned(), value.value);
        }
    }
    labels
}

/// Least memory that an instance may ask for, in bytes: a small std program needs 1.1 MiB.
const MIN_MEMORY: u64 = 1 << 20;
/// Most memory of a component: what a 32-bit guest can address.
const MAX_GUEST_MEMORY: u64 = 4 << 30;
/// Most memory of a container: more than any machine has that people lend.
const MAX_CONTAINER_MEMORY: u64 = 1 << 42;
/// Longest CPU and wall time, in milliseconds: a week.
pub(super) const MAX_TIME_MS: u64 = 7 * 24 * 3_600_000;
/// Most bytes of output, records and artifacts each.
const MAX_BYTES: u64 = 1 << 40;
/// Most open sockets: the ports of one address.
const MAX_SOCKETS: i64 = 65_535;

/// Returns what was read, or else `otherwise`.
pub(super) fn or(read: Option<Located<u64>>, otherwise: u64) -> u64 {
    read.map_or(otherwise, |read| read.value)
}

fn resources(sink: &mut Sink, section: &Section<'_>, kind: Option<WorkloadKind>) -> Resources {
    let default = Resources::default();
    let Some(table) = section.section(sink, "resources") else { return default };
    table.only(sink, &["memory", "cpu", "wall", "output", "records", "artifacts", "sockets"]);
    let most = match kind {
        Some(WorkloadKind::Wasm) => MAX_GUEST_MEMORY,
        Some(WorkloadKind::Docker) | None => MAX_CONTAINER_MEMORY,
    };
    Resources {
        memory_bytes: or(table.size_bytes(sink, "memory", MIN_MEMORY, most), default.memory_bytes),
        cpu_ms: or(table.duration_ms(sink, "cpu", 1, MAX_TIME_MS), default.cpu_ms),
        wall_ms: or(table.duration_ms(sink, "wall", 1, MAX_TIME_MS), default.wall_ms),
        output_bytes: or(table.size_bytes(sink, "output", 0, MAX_BYTES), default.output_bytes),
        record_bytes: or(table.size_bytes(sink, "records", 0, MAX_BYTES), default.record_bytes),
        artifact_bytes: or(table.size_bytes(sink, "artifacts", 0, MAX_BYTES), default.artifact_bytes),
        sockets: narrow(table.integer(sink, "sockets", 0, MAX_SOCKETS), default.sockets),
    }
}
