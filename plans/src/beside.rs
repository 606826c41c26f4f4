//! What somebody chooses for a run in a file beside its plan: a network, faults, or both.
//!
//! Such a file has `[network]`, `[networks.NAME]` and `[[faults]]` as a manifest has them, and nothing else, so that a part
//! of a manifest can be such a file, and the other way round.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::Cid;
use iptl_dag::model::{Case, FaultSchedule, NetworkModel, Workload, WorkloadKind};

use crate::codes;
use crate::diagnostic::{Diagnostic, quote, suggestion};
use crate::manifest::document;
use crate::network::{self, Chosen, Described, Stage};
use crate::section::{Node, Section, Sink};

/// Reads the network of a file, for the groups of a case, or without a case for those that it mentions itself. `file` is what
/// messages call it; none is the clean network.
///
/// # Errors
///
/// Returns every mistake, sorted by place; there is at least one.
pub fn network_in(source: &str, file: &str, case: Option<&Case>) -> Result<Option<NetworkModel>, Vec<Diagnostic>> {
    document(source, file, |sink, document| {
        only(sink, document);
        let node = required(sink, document, "network", "[network]")?;
        let named = network::named(sink, document);
        let Chosen::Described(described) = network::read(sink, "network", node, &named)? else { return Some(None) };
        let Some(case) = case else {
            let groups: BTreeSet<&str> = described.mentioned().map(|(group, _)| group).collect();
            return Some(Some(described.of_groups(groups)));
        };
        let known = || case.groups.keys().map(String::as_str);
        unknown_groups(sink, &described, case);
        Some(Some(described.of_groups(known())))
    })
}

/// Notes groups that a network mentions and the case lacks.
fn unknown_groups(sink: &mut Sink, described: &Described, case: &Case) {
    for (group, span) in described.mentioned().filter(|(group, _)| !case.groups.contains_key(*group)) {
        network::unknown_group(sink, "the case lacks", group, span, case.groups.keys().map(String::as_str));
    }
}

/// Reads the faults of a file, which happen to a case in a network; none is the clean one. `file` is what messages call it.
///
/// # Errors
///
/// Returns every mistake, sorted by place; there is at least one.
pub fn faults_in(
    source: &str,
    file: &str,
    case: &Case,
    workloads: &BTreeMap<String, (Cid, Workload)>,
    network: Option<&NetworkModel>,
) -> Result<FaultSchedule, Vec<Diagnostic>> {
    document(source, file, |sink, document| {
        only(sink, document);
        let node = required(sink, document, "faults", "[[faults]]")?;
        let clean = clean_network(case);
        let images = workloads.iter().filter(|(_, (_, workload))| workload.kind == WorkloadKind::Docker);
        let images = images.map(|(name, _)| name.as_str()).collect();
        let stage = Stage { network: network.unwrap_or(&clean), groups: &case.groups, images };
        Some(network::read_faults(sink, "faults", node, &stage))
    })
}

/// Returns the network in which nothing is slow or lost, for a case, as one to which faults can be done.
pub fn clean_network(case: &Case) -> NetworkModel {
    network::clean(case.groups.keys().map(String::as_str))
}

/// Returns what of some faults a network and a case do not have, once each: their spans are empty, for they stand in no file.
pub fn unfit_faults<'a>(
    schedules: impl IntoIterator<Item = &'a FaultSchedule>,
    network: &NetworkModel,
    case: &Case,
) -> Vec<Diagnostic> {
    let faults = schedules.into_iter().flat_map(|schedule| &schedule.faults);
    network::no_fit(faults, network, &case.groups)
}

fn only(sink: &mut Sink, document: &Section<'_>) {
    let known = ["network", "networks", "faults"];
    for (name, span, _) in document.entries().filter(|(name, ..)| !known.contains(name)) {
        sink.push(
            Diagnostic::new(codes::UNKNOWN_KEY, span, format!("a file beside a plan has no key {}", quote(name)))
                .label("unknown key")
                .maybe_help(suggestion(name, known)),
        );
    }
}

fn required<'a>(sink: &mut Sink, document: &Section<'a>, key: &str, example: &str) -> Option<&'a Node<'a>> {
    let found = document.get(key);
    if found.is_none() {
        sink.push(
            Diagnostic::new(codes::MISSING_KEY, document.span.clone(), format!("the file has no `{example}`"))
                .label(format!("`{key}` must be here"))
                .help(format!("add `{example}` as a manifest has it")),
        );
    }
    found
}
