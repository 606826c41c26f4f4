//! The manifest: what its author wrote, checked, with workloads still as paths.
//!
//! [`parse`] reads a `plan.toml` and notes every mistake it can see in one pass; [`Manifest::to_plan`] makes the node
//! once the workloads have CIDs. The parts of a manifest are read in [`workload`], [`case`], [`group`], [`container`], [`param`] and
//! [`threshold`]; `docs/spec/plan-manifest.md` says what may stand in each.

mod case;
mod container;
mod group;
mod loss;
mod param;
mod threshold;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use iptl_dag::Block;
use iptl_dag::Cid;
use iptl_dag::model::{Case, FaultSchedule, Network, NetworkModel, Plan, WorkloadKind, to_block};
use toml::de::DeTable;

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::names;
use crate::network::{self, Chosen, Described, Stage};
use crate::section::{Node, Section, Sink, check_text};

pub(crate) use param::MAX_TEXT_VALUE;
pub use workload::{ImageSource, WorkloadDef, WorkloadSource};

/// Largest manifest, in bytes: its plan must fit into a block of 2 MiB.
pub const MAX_MANIFEST_BYTES: usize = 512 << 10;

/// Most instances of one run: ten times what a lab is built for.
pub const MAX_INSTANCES: u32 = 100_000;

/// A manifest without mistakes.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Name of the file, for messages.
    pub file: String,
    /// Name of the plan.
    pub name: String,
    /// Version that the author gave.
    pub version: String,
    /// What the plan shows.
    pub description: String,
    /// Workloads by name.
    pub workloads: BTreeMap<String, WorkloadDef>,
    /// Cases by name; the files of their containers are still missing.
    pub cases: BTreeMap<String, Case>,
    /// Files of containers, as paths in the manifest's directory: by case, group and the path at which they appear.
    pub files: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>,
    /// Networks of cases, by case; their CIDs stand there.
    pub networks: BTreeMap<String, NetworkModel>,
    /// Faults of cases, by case; their CIDs stand there.
    pub faults: BTreeMap<String, Vec<FaultSchedule>>,
    /// Networks by name that the plan brings along.
    own_networks: BTreeMap<String, Described>,
}

/// Why a manifest could not become a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToPlanError {
    /// The caller has no CID for a workload that the manifest names.
    #[error("workload `{name}` has no CID yet")]
    MissingWorkload {
        /// Name in the manifest.
        name: String,
    },
    /// The caller has no CID for a file that a container gets.
    #[error("file `{path}` has no CID yet")]
    MissingFile {
        /// Path in the manifest's directory.
        path: String,
    },
}

/// Reads a manifest. `file` is what messages call it.
///
/// # Errors
///
/// Returns every mistake, sorted by place; there is at least one.
pub fn parse(source: &str, file: &str) -> Result<Manifest, Vec<Diagnostic>> {
    document(source, file, |sink, document| read(sink, document, file))
}

/// Reads a document of TOML; none of it where that notes no mistake is a bug of `read`.
///
/// # Errors
///
/// Returns every mistake, sorted by place; there is at least one.
pub(crate) fn document<T>(
    source: &str,
    file: &str,
    read: impl FnOnce(&mut Sink, &Section<'_>) -> Option<T>,
) -> Result<T, Vec<Diagnostic>> {
    if source.len() > MAX_MANIFEST_BYTES {
        return Err(vec![Diagnostic::new(codes::TOO_LARGE, 0..0, format!("{file} is larger than any manifest")).help(
            format!(
                "it has {} KiB; there may be {} KiB. Put data that a plan needs beside it, not into it",
                source.len() >> 10,
                MAX_MANIFEST_BYTES >> 10
            ),
        )]);
    }
    let (table, errors) = DeTable::parse_recoverable(source);
    let mut sink = Sink::default();
    let mut broken = false;
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if error.message().contains("duplicate key") {
            let text = source.get(span.clone()).unwrap_or_default();
            sink.push(
                Diagnostic::new(codes::DUPLICATE, span, format!("{} is defined twice", crate::diagnostic::quote(text)))
                    .label("defined again here")
                    .help("keep one of them"),
            );
        } else {
            broken = true;
            // A place that is nowhere, as the end of the file, still is one that an excerpt can show.
            let span = if span.is_empty() { span.start.saturating_sub(1)..span.start } else { span };
            let message = error.message().lines().next().unwrap_or_default().to_owned();
            sink.push(Diagnostic::new(codes::SYNTAX, span, "this is not TOML").label(message));
        }
    }
    // What is missing from the document as a whole is shown at its start.
    let document = Section::new(String::new(), 0..1, table.get_ref());
    let found = if broken { None } else { read(&mut sink, &document) };
    for diagnostic in &mut sink.found {
        let related = diagnostic.related.iter_mut().map(|related| &mut related.span);
        related.chain([&mut diagnostic.span]).for_each(|span| *span = within(source, span));
    }
    sink.found.sort_by(|a, b| (a.span.start, a.code).cmp(&(b.span.start, b.code)));
    match found {
        Some(found) if sink.found.is_empty() => Ok(found),
        _ => Err(sink.found),
    }
}

/// Returns what of a span is in the source, from one character to another: the end of a file, and the start of an empty
/// one, are places too.
fn within(source: &str, span: &Range<usize>) -> Range<usize> {
    let start = source.floor_char_boundary(span.start.min(source.len()));
    let end = source.ceil_char_boundary(span.end.min(source.len()));
    start..end.max(start)
}

/// Reads the document; none where a part is missing without which there is no plan (which is then noted).
fn read(sink: &mut Sink, document: &Section<'_>, file: &str) -> Option<Manifest> {
    document.only(sink, &["plan", "workloads", "cases", "network", "networks", "faults"]);

    let (name, version, description) = head(sink, document);
    let workloads = workloads(sink, document);
    let mut files = BTreeMap::new();
    let named_networks = network::named(sink, document);
    let of_plan = document.get("network").and_then(|node| network::read(sink, "network", node, &named_networks));
    let shared = Shared { named: &named_networks, of_plan: of_plan.as_ref(), faults: document.get("faults") };
    let Cases { cases, networks, faults } = cases(sink, document, &workloads, &shared, &mut files);
    // A network of the whole plan may place groups that only some cases have.
    let groups: Vec<&str> = cases.values().flat_map(|case| case.groups.keys()).map(String::as_str).collect();
    let placed = named_networks.values().flatten().chain(match &of_plan {
        Some(Chosen::Described(described)) => Some(described),
        Some(Chosen::Clean) | None => None,
    });
    let mut told = BTreeSet::new();
    for (name, span) in placed.flat_map(Described::mentioned) {
        if !groups.contains(&name) && told.insert(span.start) {
            network::unknown_group(sink, "no case of the plan has", name, span, groups.iter().copied());
        }
    }
    let own_networks = named_networks.into_iter().filter_map(|(name, network)| Some((name, network?))).collect();
    Some(Manifest {
        file: file.to_owned(),
        name: name?,
        version: version?,
        description,
        workloads,
        cases,
        files,
        networks,
        faults,
        own_networks,
    })
}

fn head(sink: &mut Sink, document: &Section<'_>) -> (Option<String>, Option<String>, String) {
    if document.require(sink, "plan", "[plan]").is_none() {
        return (None, None, String::new());
    }
    let Some(plan) = document.section(sink, "plan") else { return (None, None, String::new()) };
    plan.only(sink, &["name", "version", "description"]);
    plan.require(sink, "name", "name = \"my-plan\"");
    let name = plan.string(sink, "name").map(|name| {
        names::check(sink, "plan", &name.value, &name.span);
        name.value
    });
    plan.require(sink, "version", "version = \"0.1.0\"");
    let version = plan.string(sink, "version").map(|version| {
        check_text(sink, "plan.version", &version, 1, 40);
        version.value
    });
    (name, version, plan.text(sink, "description"))
}

fn workloads(sink: &mut Sink, document: &Section<'_>) -> BTreeMap<String, WorkloadDef> {
    let named = document.named(sink, "workloads", "workload");
    if named.is_empty() && document.get("workloads").is_none_or(|node| node.get_ref().is_table()) {
        empty(sink, document, "workloads", "the plan has no workloads", "add `[workloads.NAME]`");
    }
    // A workload with a mistake stays known by its name, so that groups which use it do not add to the list.
    named.into_iter().map(|(name, section)| (name.value, workload::read(sink, &section))).collect()
}

/// What concerns every case.
struct Shared<'a> {
    /// By name; one with a mistake stays known.
    named: &'a BTreeMap<String, Option<Described>>,
    /// That of cases which have none of their own.
    of_plan: Option<&'a Chosen>,
    /// Faults that all have beside their own.
    faults: Option<&'a Node<'a>>,
}

/// Cases with the nodes that they link.
struct Cases {
    cases: BTreeMap<String, Case>,
    networks: BTreeMap<String, NetworkModel>,
    faults: BTreeMap<String, Vec<FaultSchedule>>,
}

fn cases(
    sink: &mut Sink,
    document: &Section<'_>,
    workloads: &BTreeMap<String, WorkloadDef>,
    shared: &Shared<'_>,
    files: &mut BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>,
) -> Cases {
    let named = document.named(sink, "cases", "case");
    if named.is_empty() && document.get("cases").is_none_or(|node| node.get_ref().is_table()) {
        empty(sink, document, "cases", "the plan has no cases", "add `[cases.NAME]`");
    }
    let mut all = Cases { cases: BTreeMap::new(), networks: BTreeMap::new(), faults: BTreeMap::new() };
    for (name, section) in named {
        let mut of_groups = BTreeMap::new();
        let mut case = case::read(sink, &section, workloads, &mut of_groups);
        if !of_groups.is_empty() {
            files.insert(name.value.clone(), of_groups);
        }
        let own = section.get("network");
        let own = own.map(|node| network::read(sink, &section.path_of("network"), node, shared.named));
        if let Some(Some(Chosen::Described(described))) = &own {
            for (group, span) in described.mentioned().filter(|(group, _)| !case.groups.contains_key(*group)) {
                // A network that only a name leads to may be of other cases too.
                if section.get("network").is_some_and(|node| node.get_ref().is_table()) {
                    let known = case.groups.keys().map(String::as_str);
                    network::unknown_group(sink, "the case lacks", group, span, known);
                }
            }
        }
        let chosen = match &own {
            Some(own) => own.as_ref(),
            None => shared.of_plan,
        };
        let lists: Vec<(String, &Node<'_>)> = [
            shared.faults.map(|node| ("faults".to_owned(), node)),
            section.get("faults").map(|node| (section.path_of("faults"), node)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let clean = Described::clean();
        let described = match chosen {
            Some(Chosen::Described(described)) => Some(described),
            // A clean network to which something is done is one that has links.
            Some(Chosen::Clean) | None => (!lists.is_empty()).then_some(&clean),
        };
        if let Some(described) = described {
            let model = described.of_groups(case.groups.keys().map(String::as_str));
            let images = workloads.iter().filter(|(_, workload)| workload.kind == WorkloadKind::Docker);
            let images = images.map(|(name, _)| name.as_str()).collect();
            let schedules = faults(sink, &lists, &Stage { network: &model, groups: &case.groups, images });
            case.network = Network::Model(*to_block(model.clone()).cid());
            case.faults = schedules.iter().map(|schedule| *to_block(schedule.clone()).cid()).collect();
            all.networks.insert(name.value.clone(), model);
            if !schedules.is_empty() {
                all.faults.insert(name.value.clone(), schedules);
            }
        }
        all.cases.insert(name.value, case);
    }
    all
}

/// Reads the faults of a case. What is wrong with those of all cases is said once.
fn faults(sink: &mut Sink, lists: &[(String, &Node<'_>)], stage: &Stage<'_>) -> Vec<FaultSchedule> {
    let mut found = Sink::default();
    let mut schedules = Vec::new();
    for (path, node) in lists {
        schedules.push(network::read_faults(&mut found, path, node, stage));
    }
    for mistake in found.found {
        if !sink.found.contains(&mistake) {
            sink.push(mistake);
        }
    }
    schedules.retain(|schedule| !schedule.faults.is_empty());
    schedules
}

/// Notes that there is nothing where something must be.
fn empty(sink: &mut Sink, section: &Section<'_>, key: &str, message: &str, help: &str) {
    let span = section.key_span(key).unwrap_or_else(|| section.span.clone());
    sink.push(Diagnostic::new(codes::EMPTY, span, message).help(help));
}

impl Manifest {
    /// Makes the plan. `workloads` has the CID of a [`Workload`](iptl_dag::model::Workload) node for each name, `files`
    /// the CIDs of the [paths](Manifest::paths) that containers get, and `source` is the directory of the plan's source where it is published with it.
    ///
    /// # Errors
    ///
    /// Returns the first workload or file that has no CID; a workload that the manifest itself gives needs none.
    pub fn to_plan(
        &self,
        workloads: &BTreeMap<String, Cid>,
        files: &BTreeMap<String, Cid>,
        source: Option<Cid>,
    ) -> Result<Plan, ToPlanError> {
        let mut linked = BTreeMap::new();
        for (name, def) in &self.workloads {
            let cid = match (&def.source, workloads.get(name)) {
                (_, Some(cid)) | (WorkloadSource::Published(cid), None) => *cid,
                (WorkloadSource::Path(_) | WorkloadSource::Image(_), None) => {
                    return Err(ToPlanError::MissingWorkload { name: name.clone() });
                }
            };
            linked.insert(name.clone(), cid);
        }
        Ok(Plan {
            name: self.name.clone(),
            version: self.version.clone(),
            description: self.description.clone(),
            source,
            workloads: linked,
            cases: self.cases_with(files)?,
        })
    }

    /// Returns the blocks of the networks and faults that cases link, each once.
    pub fn network_blocks(&self) -> Vec<Block> {
        let networks = self.networks.values().map(|model| to_block(model.clone()));
        let faults = self.faults.values().flatten().map(|schedule| to_block(schedule.clone()));
        let blocks = networks.chain(faults);
        let by_cid: BTreeMap<Cid, Block> = blocks.map(|block| (*block.cid(), block)).collect();
        by_cid.into_values().collect()
    }

    /// Returns a network by name for the groups of a case: one of the plan, or one that everybody has; none is the
    /// clean network, which is one all the same where there are `faults`.
    ///
    /// # Errors
    ///
    /// Returns the mistake where there is none of that name. A case that is not there has no groups.
    pub fn network(&self, name: &str, case: &str, faults: bool) -> Result<Option<NetworkModel>, Box<Diagnostic>> {
        let groups = self.cases.get(case).into_iter().flat_map(|case| case.groups.keys()).map(String::as_str);
        match self.own_networks.get(name) {
            Some(described) => Ok(Some(described.of_groups(groups))),
            None => network::by_name(name, groups, faults, self.own_networks.keys().map(String::as_str)),
        }
    }

    /// Returns the network of a case, or of the first that has one; none where it is clean.
    pub fn network_of(&self, case: Option<&str>) -> Option<&NetworkModel> {
        match case {
            Some(case) => self.networks.get(case),
            None => self.networks.values().next(),
        }
    }

    /// Returns the paths in the manifest's directory that containers get, each once.
    pub fn paths(&self) -> BTreeSet<&str> {
        let groups = self.files.values().flat_map(BTreeMap::values);
        groups.flat_map(BTreeMap::values).map(String::as_str).collect()
    }

    fn cases_with(&self, files: &BTreeMap<String, Cid>) -> Result<BTreeMap<String, Case>, ToPlanError> {
        let mut cases = self.cases.clone();
        for (case, network) in &self.networks {
            for (group, together) in network.together() {
                let spec = cases.get_mut(case).and_then(|case| case.groups.get_mut(&group));
                spec.into_iter().for_each(|spec| spec.requires.together = Some(together));
            }
        }
        for (case, groups) in &self.files {
            for (group, wanted) in groups {
                let spec = cases.get_mut(case).and_then(|case| case.groups.get_mut(group));
                let Some(container) = spec.and_then(|spec| spec.container.as_mut()) else { continue };
                for (inside, path) in wanted {
                    let cid = files.get(path).ok_or_else(|| ToPlanError::MissingFile { path: path.clone() })?;
                    container.files.insert(inside.clone(), *cid);
                }
            }
        }
        Ok(cases)
    }
}
