//! `[cases.NAME.groups.NAME.container]`: what containers of a group ask for.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::{Container, Destination, Health, WorkloadKind};

use super::group::{MAX_TIME_MS, narrow, or};
use super::workload::check_path;
use crate::codes;
use crate::diagnostic::{Diagnostic, quote};
use crate::section::{Section, Sink, check_text, number, quantity, string};
use crate::units;

/// Most processors that an instance may ask for.
const MAX_CPUS: f64 = 1024.0;

/// Most processes and open files each.
const MAX_COUNT: i64 = 1 << 20;

/// Most bytes of disk and of one directory in memory.
const MAX_BYTES: u64 = 1 << 40;

/// Longest path, user and signal, in characters.
const MAX_PATH: usize = 4096;
const MAX_WORD: usize = 80;

/// Most places outside of the lab.
const MAX_EGRESS: usize = 64;

/// Most failed looks in a row.
const MAX_RETRIES: i64 = 1000;

/// Settings of a container with its files still as paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ContainerDef {
    pub(super) settings: Option<Container>,
    /// Paths in the plan's directory by the absolute path at which they appear.
    pub(super) files: BTreeMap<String, String>,
}

/// Reads the settings of a group whose workload is of this kind; none where the workload is not known.
pub(super) fn read(sink: &mut Sink, group: &Section<'_>, kind: Option<WorkloadKind>) -> ContainerDef {
    let section = group.section(sink, "container");
    match kind {
        Some(WorkloadKind::Wasm) => {
            if section.is_some() {
                let span = group.key_span("container").unwrap_or_default();
                sink.push(
                    Diagnostic::new(codes::CONTAINER, span, format!("`{}` has no containers", group.path))
                        .label("its workload is a component")
                        .help("remove the table, or use a workload with `runner = \"docker\"`"),
                );
            }
            return ContainerDef::default();
        }
        Some(WorkloadKind::Docker) | None => {}
    }
    let usual = Container::usual();
    let Some(section) = section else {
        return ContainerDef { settings: Some(usual), files: BTreeMap::new() };
    };
    section.only(
        sink,
        &[
            "entrypoint",
            "workdir",
            "user",
            "files",
            "tmpfs",
            "writable",
            "cpu",
            "pids",
            "open_files",
            "disk",
            "stop_signal",
            "stop_grace",
            "health",
            "exec",
            "egress",
        ],
    );
    let files = files(sink, &section);
    let settings = Container {
        entrypoint: section.strings(sink, "entrypoint").into_iter().map(|word| word.value).collect(),
        workdir: absolute(sink, &section, "workdir"),
        user: word(sink, &section, "user"),
        files: BTreeMap::new(),
        tmpfs: tmpfs(sink, &section),
        writable: section.boolean(sink, "writable").is_some_and(|yes| yes.value),
        cpu_milli: cpu(sink, &section),
        pids: narrow(section.integer(sink, "pids", 1, MAX_COUNT), usual.pids),
        open_files: narrow(section.integer(sink, "open_files", 16, MAX_COUNT), usual.open_files),
        disk_bytes: or(section.size_bytes(sink, "disk", 0, MAX_BYTES), usual.disk_bytes),
        stop_signal: word(sink, &section, "stop_signal"),
        stop_grace_ms: or(section.duration_ms(sink, "stop_grace", 0, MAX_TIME_MS), usual.stop_grace_ms),
        health: health(sink, &section),
        exec: section.boolean(sink, "exec").is_some_and(|yes| yes.value),
        egress: egress(sink, &section),
    };
    ContainerDef { settings: Some(settings), files }
}

/// Reads places outside of the lab that the group must reach.
fn egress(sink: &mut Sink, section: &Section<'_>) -> BTreeSet<Destination> {
    let mut places = BTreeSet::new();
    for text in section.strings(sink, "egress") {
        let why = match text.value.parse::<Destination>() {
            Ok(_) if places.len() == MAX_EGRESS => format!("a group reaches {MAX_EGRESS} places at most"),
            Ok(place) if !places.insert(place.clone()) => "it stands here twice".to_owned(),
            Ok(_) => continue,
            Err(e) => e.to_string(),
        };
        let what = format!("`{}` cannot name {}", section.path_of("egress"), quote(&text.value));
        let found = Diagnostic::new(codes::DESTINATION, text.span, what).label(why);
        sink.push(found.help("write HOST:PORT/tcp or HOST:PORT/udp, as in `bootstrap.example:4001/udp`"));
    }
    places
}

fn word(sink: &mut Sink, section: &Section<'_>, key: &str) -> Option<String> {
    let word = section.string(sink, key)?;
    check_text(sink, &section.path_of(key), &word, 1, MAX_WORD);
    Some(word.value)
}

fn absolute(sink: &mut Sink, section: &Section<'_>, key: &str) -> Option<String> {
    let path = section.string(sink, key)?;
    check_inside(sink, &section.path_of(key), &path.value, &path.span);
    Some(path.value)
}

/// Notes a path that is none within a container.
fn check_inside(sink: &mut Sink, key: &str, path: &str, span: &std::ops::Range<usize>) {
    let why = if !path.starts_with('/') {
        "it does not begin with /"
    } else if path.split('/').any(|step| step == ".." || step == ".") {
        "there is a step . or .. in it"
    } else if path.chars().any(char::is_control) || path.chars().count() > MAX_PATH {
        "it is too long or has control characters"
    } else {
        return;
    };
    sink.push(
        Diagnostic::new(codes::BAD_PATH, span.clone(), format!("`{key}` cannot be {}", quote(path)))
            .label(why)
            .help("write an absolute path inside the container, such as `/etc/node.toml`"),
    );
}

fn files(sink: &mut Sink, section: &Section<'_>) -> BTreeMap<String, String> {
    let Some(table) = section.section(sink, "files") else { return BTreeMap::new() };
    let mut files = BTreeMap::new();
    for (inside, span, node) in table.entries() {
        check_inside(sink, &table.path, inside, &span);
        let path = table.path_of(inside);
        if let Some(from) = string(sink, &path, node) {
            check_path(sink, &path, &from);
            files.insert(inside.to_owned(), from.value);
        }
    }
    files
}

fn tmpfs(sink: &mut Sink, section: &Section<'_>) -> BTreeMap<String, u64> {
    let Some(table) = section.section(sink, "tmpfs") else { return BTreeMap::new() };
    let mut sizes = BTreeMap::new();
    for (inside, span, node) in table.entries() {
        check_inside(sink, &table.path, inside, &span);
        let path = table.path_of(inside);
        if let Some(size) = quantity(sink, &path, node, "a size", "16MiB", units::size_bytes) {
            if !(1..=MAX_BYTES).contains(&size.value) {
                crate::section::out_of_range(sink, &path, size.span, "1B", "1TiB");
            }
            sizes.insert(inside.to_owned(), size.value);
        }
    }
    sizes
}

/// Reads processors, whole or not, as thousandths.
fn cpu(sink: &mut Sink, section: &Section<'_>) -> u32 {
    let Some(node) = section.get("cpu") else { return 0 };
    let path = section.path_of("cpu");
    let Some(cpus) = number(sink, &path, node) else { return 0 };
    if !(0.01..=MAX_CPUS).contains(&cpus.value) {
        crate::section::out_of_range(sink, &path, cpus.span, "0.01", &MAX_CPUS.to_string());
        return 0;
    }
    (cpus.value * 1000.0).round() as u32
}

fn health(sink: &mut Sink, section: &Section<'_>) -> Option<Health> {
    let table = section.section(sink, "health")?;
    table.only(sink, &["command", "interval", "timeout", "start", "retries"]);
    table.require(sink, "command", "command = [\"/app/node\", \"health\"]");
    let mut time = |key: &str, least: u64, default: u64| or(table.duration_ms(sink, key, least, MAX_TIME_MS), default);
    let (interval_ms, timeout_ms, start_ms) =
        (time("interval", 100, 5_000), time("timeout", 10, 5_000), time("start", 0, 0));
    Some(Health {
        command: table.strings(sink, "command").into_iter().map(|word| word.value).collect(),
        interval_ms,
        timeout_ms,
        start_ms,
        retries: narrow(table.integer(sink, "retries", 1, MAX_RETRIES), 3),
    })
}
