//! `[[faults]]`: what the lab does to a case on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use iptl_dag::model::{Fault, FaultSchedule, FaultTarget, GroupSpec, LinkModel, NetworkModel, ScheduledFault};
use toml::de::DeValue;

use super::{access, duration_us, unknown, unknown_group};
use crate::codes;
use crate::diagnostic::{Diagnostic, quote};
use crate::section::{Node, Section, Sink, quantity, wrong_type};
use crate::units;

/// Latest time of a fault, in milliseconds: the longest that a case may take, a week.
const MAX_TIME_MS: u64 = 7 * 24 * 3_600_000;

/// Shortest time between a fault and its next, in milliseconds.
const MIN_PERIOD_MS: u64 = 10;

/// Most faults of one case: what happens often has `every`.
const MAX_FAULTS: usize = 1_000;

/// Time after which a crashed instance starts again where nobody says, in milliseconds.
const DEFAULT_RESTART_MS: u64 = 1_000;

/// Time for which an instance is paused where nobody says, in milliseconds.
const DEFAULT_PAUSE_MS: u64 = 1_000;

const KINDS: &[&str] = &["partition", "heal", "link", "delay", "rebind", "address", "clock", "crash", "pause"];

/// Farthest that a clock may jump, in milliseconds: a year, to either side.
const MAX_STEP_MS: u64 = 366 * 24 * 3_600_000;

/// Where faults happen.
pub(crate) struct Stage<'a> {
    pub(crate) network: &'a NetworkModel,
    pub(crate) groups: &'a BTreeMap<String, GroupSpec>,
    /// Names of workloads that are images.
    pub(crate) images: BTreeSet<&'a str>,
}

impl<'a> Stage<'a> {
    /// Returns whether a group has containers.
    fn has_containers(&self, group: &GroupSpec) -> bool {
        self.images.contains(group.workload.as_str())
    }

    /// Returns the groups of which a target may mean instances.
    fn concerned(&self, who: &FaultTarget) -> impl Iterator<Item = (&'a String, &'a GroupSpec)> {
        let wanted = who.group.clone();
        self.groups.iter().filter(move |(name, _)| wanted.as_ref().is_none_or(|wanted| wanted == *name))
    }
}

/// Reads an array of faults.
pub(crate) fn read_all(sink: &mut Sink, path: &str, node: &Node<'_>, stage: &Stage<'_>) -> FaultSchedule {
    let mut faults = Vec::new();
    let DeValue::Array(array) = node.get_ref() else {
        wrong_type(sink, path, node, "an array of tables", Some(format!("write `[[{path}]]`")));
        return FaultSchedule { faults };
    };
    if array.len() > MAX_FAULTS {
        sink.push(
            shape(node.span(), path, &format!("has {} faults", array.len()))
                .label(format!("there may be {MAX_FAULTS}"))
                .help("write `every = \"30s\"` for what happens often"),
        );
        return FaultSchedule { faults };
    }
    for (at, node) in array.iter().enumerate() {
        if let Some(section) = Section::open(sink, format!("{path}[{at}]"), node) {
            faults.extend(read(sink, &section, stage));
        }
    }
    FaultSchedule { faults }
}

fn shape(span: Range<usize>, path: &str, what: &str) -> Diagnostic {
    Diagnostic::new(codes::FAULT_SHAPE, span, format!("`{path}` {what}"))
}

fn read(sink: &mut Sink, section: &Section<'_>, stage: &Stage<'_>) -> Vec<ScheduledFault> {
    let mut known = vec!["at", "every", "for"];
    known.extend(KINDS);
    section.only(sink, &known);
    let kinds: Vec<&str> = KINDS.iter().copied().filter(|kind| section.get(kind).is_some()).collect();
    let [kind] = kinds.as_slice() else {
        let label = if kinds.is_empty() { "nothing happens" } else { "several things happen" };
        sink.push(shape(section.span.clone(), &section.path, "must say one thing that happens").label(label).help(
            "write one of `partition`, `heal`, `link`, `delay`, `rebind`, `address`, `clock`, `crash` and `pause`",
        ));
        return Vec::new();
    };
    let every = section.duration_ms(sink, "every", MIN_PERIOD_MS, MAX_TIME_MS).map(|every| every.value);
    let at = section.duration_ms(sink, "at", 0, MAX_TIME_MS).map(|at| at.value);
    if section.get("at").is_none() && section.get("every").is_none() {
        sink.push(
            shape(section.span.clone(), &section.path, "does not say when")
                .label("when?")
                .help("write `at = \"10s\"`, `every = \"30s\"`, or both"),
        );
    }
    // What happens every 30 s happens first after 30 s.
    let (at_ms, every_ms) = (at.or(every).unwrap_or(0), every.unwrap_or(0));
    let lasts = section.duration_ms(sink, "for", 1, MAX_TIME_MS);
    if let (Some(lasts), true) = (&lasts, *kind != "partition") {
        sink.push(
            shape(lasts.span.clone(), &section.path, &format!("has `for` beside `{kind}`"))
                .label("only a partition ends by itself")
                .help("remove it, and write another fault for the end"),
        );
    }
    let Some(node) = section.get(kind) else { return Vec::new() };
    let path = section.path_of(kind);
    let faults = match *kind {
        "partition" => {
            let partition = Fault::Partition { sides: sides(sink, &path, node, stage) };
            let heal = lasts.map(|lasts| (lasts.value, Fault::Heal {}));
            std::iter::once((0, partition)).chain(heal).collect()
        }
        "heal" => {
            if section.boolean(sink, "heal").is_some_and(|heal| !heal.value) {
                sink.push(
                    shape(node.span(), &section.path, "does not heal").label("false").help("write `heal = true`"),
                );
            }
            vec![(0, Fault::Heal {})]
        }
        "link" => link(sink, &path, node, stage).into_iter().map(|fault| (0, fault)).collect(),
        "delay" => delay(sink, &path, node, stage).into_iter().map(|fault| (0, fault)).collect(),
        "rebind" => {
            let who = target(sink, &path, node, stage, &[]).map(|(who, _)| Fault::Rebind { who });
            who.into_iter().map(|fault| (0, fault)).collect::<Vec<_>>()
        }
        "address" => {
            let who = target(sink, &path, node, stage, &[]).map(|(who, _)| Fault::Address { who });
            who.into_iter().map(|fault| (0, fault)).collect()
        }
        "clock" => clock(sink, &path, node, stage).into_iter().map(|fault| (0, fault)).collect(),
        "pause" => {
            let pause = target(sink, &path, node, stage, &["for"]).map(|(who, section)| {
                let lasts = section.duration_ms(sink, "for", 1, MAX_TIME_MS);
                Fault::Pause { who, for_ms: lasts.map_or(DEFAULT_PAUSE_MS, |lasts| lasts.value) }
            });
            pause.into_iter().map(|fault| (0, fault)).collect()
        }
        _ => {
            let crash = crash(sink, &path, node, stage);
            crash.into_iter().map(|fault| (0, fault)).collect()
        }
    };
    faults
        .into_iter()
        .map(|(later_ms, fault)| ScheduledFault { at_ms: at_ms.saturating_add(later_ms), every_ms, fault })
        .collect()
}

fn sides(sink: &mut Sink, path: &str, node: &Node<'_>, stage: &Stage<'_>) -> Vec<Vec<FaultTarget>> {
    let help = "write the sides: `partition = [{ region = \"eu\" }, { region = \"us\" }]`";
    let DeValue::Array(array) = node.get_ref() else {
        wrong_type(sink, path, node, "an array of sides", Some(help.to_owned()));
        return Vec::new();
    };
    if array.is_empty() || array.len() > 255 {
        let label = format!("it has {} sides; there may be from 1 to 255", array.len());
        sink.push(shape(node.span(), path, "parts nobody").label(label).help(help));
    }
    let side = |(at, node): (usize, &Node<'_>), sink: &mut Sink| {
        let path = format!("{path}[{at}]");
        match node.get_ref() {
            DeValue::Array(parts) => {
                let parts = parts.iter().enumerate();
                parts
                    .filter_map(|(part, node)| target(sink, &format!("{path}[{part}]"), node, stage, &[]))
                    .map(|(target, _)| target)
                    .collect()
            }
            _ => target(sink, &path, node, stage, &[]).map(|(target, _)| target).into_iter().collect(),
        }
    };
    array.iter().enumerate().map(|row| side(row, sink)).collect()
}

/// Reads which instances, from a table that may have further keys.
fn target<'a>(
    sink: &mut Sink,
    path: &str,
    node: &'a Node<'a>,
    stage: &Stage<'_>,
    further: &[&str],
) -> Option<(FaultTarget, Section<'a>)> {
    let section = Section::open(sink, path.to_owned(), node)?;
    let mut known = vec!["group", "region", "share"];
    known.extend(further);
    section.only(sink, &known);
    let group = section.string(sink, "group");
    if let Some(group) = &group
        && !stage.groups.contains_key(&group.value)
    {
        let known = stage.groups.keys().map(String::as_str);
        unknown_group(sink, "the case lacks", &group.value, group.span.clone(), known);
    }
    let region = section.string(sink, "region");
    if let Some(region) = &region {
        check_region(sink, &region.value, region.span.clone(), stage);
    }
    let share = section.get("share");
    let share =
        share.and_then(|node| quantity(sink, &section.path_of("share"), node, "a share", "10%", units::share_ppm));
    let target = FaultTarget {
        group: group.map(|group| group.value),
        region: region.map(|region| region.value),
        share_ppm: share.map_or(1_000_000, |share| share.value),
    };
    Some((target, section))
}

/// Reads a jump of clocks, which components have and containers do not: theirs is that of their machine.
fn clock(sink: &mut Sink, path: &str, node: &Node<'_>, stage: &Stage<'_>) -> Option<Fault> {
    let (who, section) = target(sink, path, node, stage, &["forward", "back"])?;
    if let Some((name, _)) = stage.concerned(&who).find(|(_, group)| stage.has_containers(group)) {
        let span = section.get("group").map_or_else(|| node.span(), |group| group.span());
        sink.push(
            shape(span, path, "wants to set the clocks of containers")
                .label(format!("instances of `{name}` have the clock of their machine"))
                .help("name a group of components: `clock = { group = \"…\", forward = \"1h\" }`"),
        );
        return None;
    }
    let step = |sink: &mut Sink, key| section.duration_ms(sink, key, 1, MAX_STEP_MS).map(|step| step.value);
    let (forward, back) = (step(sink, "forward"), step(sink, "back"));
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    match (section.get("forward").is_some(), section.get("back").is_some()) {
        (true, false) => Some(Fault::Clock { who, by_ms: signed(forward?) }),
        (false, true) => Some(Fault::Clock { who, by_ms: -signed(back?) }),
        (true, true) | (false, false) => {
            sink.push(
                shape(section.span.clone(), path, "does not say which way clocks jump, or says two")
                    .label("by how much?")
                    .help("write `forward = \"1h\"` or `back = \"1h\"`"),
            );
            None
        }
    }
}

/// Reads a crash, after which instances are what they were but for their memory, unless it says otherwise.
fn crash(sink: &mut Sink, path: &str, node: &Node<'_>, stage: &Stage<'_>) -> Option<Fault> {
    let (who, section) = target(sink, path, node, stage, &["restart", "files", "address"])?;
    let restart = section.duration_ms(sink, "restart", 0, MAX_TIME_MS);
    let files_lost = section.word(sink, "files", &[("kept", false), ("lost", true)]);
    let new_address = section.word(sink, "address", &[("kept", false), ("new", true)]);
    let is_writable = |group: &GroupSpec| {
        stage.has_containers(group) && group.container.as_ref().is_some_and(|container| container.writable)
    };
    if let Some(lost) = files_lost.as_ref().filter(|lost| lost.value)
        && let Some((name, _)) = stage.concerned(&who).find(|(_, group)| is_writable(group))
    {
        sink.push(
            shape(lost.span.clone(), path, "cannot lose the files of a writable root")
                .label(format!("containers of `{name}` have `writable = true`"))
                .help("have them write below `tmpfs`, which is emptied, or name a group whose root is read-only"),
        );
    }
    Some(Fault::Crash {
        who,
        restart_ms: restart.map_or(DEFAULT_RESTART_MS, |restart| restart.value),
        files_lost: files_lost.is_some_and(|lost| lost.value),
        new_address: new_address.is_some_and(|new| new.value),
    })
}

fn check_region(sink: &mut Sink, name: &str, span: Range<usize>, stage: &Stage<'_>) {
    if !stage.network.regions.iter().any(|region| region == name) {
        unknown(sink, "region", name, span, stage.network.regions.iter().map(String::as_str));
    }
}

fn link(sink: &mut Sink, path: &str, node: &Node<'_>, stage: &Stage<'_>) -> Option<Fault> {
    let section = Section::open(sink, path.to_owned(), node)?;
    let mut known = vec!["access", "up", "down"];
    known.extend(access::LINK_KEYS);
    section.only(sink, &known);
    section.require(sink, "access", "access = \"dsl\"");
    let name = section.string(sink, "access")?;
    let Some(class) = stage.network.access.get(&name.value) else {
        unknown(sink, "access class", &name.value, name.span, stage.network.access.keys().map(String::as_str));
        return None;
    };
    // What is not said stays as it is.
    let mut direction = |key: &str, base: LinkModel| {
        let both = access::link(sink, &section, base);
        let Some(inner) = section.section(sink, key) else { return access::with_queue(both) };
        inner.only(sink, access::LINK_KEYS);
        access::with_queue(access::link(sink, &inner, both))
    };
    let (up, down) = (direction("up", class.up), direction("down", class.down));
    Some(Fault::Link { access: name.value, up, down })
}

fn delay(sink: &mut Sink, path: &str, node: &Node<'_>, stage: &Stage<'_>) -> Vec<Fault> {
    let Some(section) = Section::open(sink, path.to_owned(), node) else { return Vec::new() };
    section.only(sink, &["from", "to", "is", "one_way"]);
    let mut end = |key: &str| {
        section.require(sink, key, &format!("{key} = \"eu\""));
        let name = section.string(sink, key)?;
        check_region(sink, &name.value, name.span, stage);
        Some(name.value)
    };
    let (from, to) = (end("from"), end("to"));
    let is = section.require(sink, "is", "is = \"200ms\"");
    let is = is.and_then(|node| duration_us(sink, &section.path_of("is"), node));
    let one_way = section.boolean(sink, "one_way").is_some_and(|one_way| one_way.value);
    let (Some(from), Some(to), Some(delay_us)) = (from, to, is) else { return Vec::new() };
    let there = Fault::Delay { from: from.clone(), to: to.clone(), delay_us };
    let back = (!one_way && from != to).then_some(Fault::Delay { from: to, to: from, delay_us });
    std::iter::once(there).chain(back).collect()
}

/// Notes regions, access classes and groups that faults name and a run does not have.
pub(crate) fn no_fit<'a>(
    faults: impl IntoIterator<Item = &'a ScheduledFault>,
    network: &NetworkModel,
    groups: &BTreeMap<String, GroupSpec>,
) -> Vec<Diagnostic> {
    let mut named: BTreeSet<(&str, &str)> = BTreeSet::new();
    for ScheduledFault { fault, .. } in faults {
        let mut targets: Vec<&FaultTarget> = fault.who().into_iter().collect();
        match fault {
            Fault::Partition { sides } => targets.extend(sides.iter().flatten()),
            Fault::Link { access, .. } => named.extend([("access class", access.as_str())]),
            Fault::Delay { from, to, .. } => named.extend([("region", from.as_str()), ("region", to.as_str())]),
            Fault::Heal {}
            | Fault::Rebind { .. }
            | Fault::Address { .. }
            | Fault::Clock { .. }
            | Fault::Crash { .. }
            | Fault::Pause { .. } => {}
        }
        for target in targets {
            named.extend(target.region.as_deref().map(|region| ("region", region)));
            named.extend(target.group.as_deref().map(|group| ("group", group)));
        }
    }
    let mut sink = Sink::default();
    for (what, name) in named {
        let known: Vec<&str> = match what {
            "region" => network.regions.iter().map(String::as_str).collect(),
            "group" => groups.keys().map(String::as_str).collect(),
            _ => network.access.keys().map(String::as_str).collect(),
        };
        if !known.contains(&name) {
            let message = format!("a fault names {what} {}, which the run does not have", quote(name));
            sink.push(
                Diagnostic::new(codes::UNKNOWN_PLACE, 0..0, message)
                    .help("take a network that has it, or other faults: `--faults FILE`, `--faults none`"),
            );
        }
    }
    sink.found
}

/// Says in a line for people what happens and when: `at 10s: partition of 2 sides`.
pub fn summary(scheduled: &ScheduledFault) -> String {
    let ScheduledFault { at_ms, every_ms, fault } = scheduled;
    let when = match every_ms {
        0 => format!("at {}", units::show_ms(*at_ms)),
        every if every == at_ms => format!("every {}", units::show_ms(*every)),
        every => format!("at {} and every {}", units::show_ms(*at_ms), units::show_ms(*every)),
    };
    let who = |target: &FaultTarget| {
        let share = f64::from(target.share_ppm) / 10_000.0;
        let group = target.group.as_ref().map_or_else(|| "all".to_owned(), Clone::clone);
        let region = target.region.as_ref().map_or_else(String::new, |region| format!(" in {region}"));
        format!("{share}% of {group}{region}")
    };
    let what = match fault {
        Fault::Partition { sides } => format!("partition of {} sides", sides.len()),
        Fault::Heal {} => "heal".to_owned(),
        Fault::Link { access, .. } => format!("links of {access} change"),
        Fault::Delay { from, to, delay_us } => {
            format!("delay from {from} to {to} becomes {}ms", *delay_us as f64 / 1_000.0)
        }
        Fault::Rebind { who: target } => format!("NATs of {} forget", who(target)),
        Fault::Address { who: target } => format!("other addresses for {}", who(target)),
        Fault::Clock { who: target, by_ms } => {
            let way = if *by_ms < 0 { "back" } else { "forward" };
            format!("clocks of {} jump {way} by {}", who(target), units::show_ms(by_ms.unsigned_abs()))
        }
        Fault::Crash { who: target, restart_ms, files_lost, new_address } => {
            let files = if *files_lost { " without files" } else { "" };
            let address = if *new_address { " at another address" } else { "" };
            format!("crash of {}, restart after {}{files}{address}", who(target), units::show_ms(*restart_ms))
        }
        Fault::Pause { who: target, for_ms } => format!("pause of {} for {}", who(target), units::show_ms(*for_ms)),
    };
    format!("{when}: {what}")
}
