//! `[cases.NAME]`: one test case.

use std::collections::BTreeMap;

use iptl_dag::model::{Case, Engine, MaxLost, Network};

use super::loss::CaseLoss;
use super::{MAX_INSTANCES, WorkloadDef, empty, group, loss, param, threshold};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::section::{Section, Sink};

/// Longest wall time where the case does not say, in milliseconds: what an instance gets at most by default.
const DEFAULT_TIMEOUT_MS: u64 = 300_000;

/// Longest wall time that a case may ask for, in milliseconds: a week.
pub(super) const MAX_TIMEOUT_MS: u64 = 7 * 24 * 3_600_000;

/// Reads a case; the files of its containers go to `files`, by group.
pub(super) fn read(
    sink: &mut Sink,
    section: &Section<'_>,
    workloads: &BTreeMap<String, WorkloadDef>,
    files: &mut BTreeMap<String, BTreeMap<String, String>>,
) -> Case {
    section.only(
        sink,
        &[
            &["description", "timeout", "engine", "groups", "params", "thresholds", "network", "faults"][..],
            loss::CASE_KEYS,
        ]
        .concat(),
    );
    let description = section.text(sink, "description");
    let timeout = section.duration_ms(sink, "timeout", 1, MAX_TIMEOUT_MS);
    let CaseLoss { max_lost, barriers, placing } = loss::of_case(sink, section);
    let engine = section.word(sink, "engine", &[("live", Engine::Live)]);

    let mut groups = BTreeMap::new();
    let mut smallest = 0u64;
    let timeout_ms = timeout.map_or(DEFAULT_TIMEOUT_MS, |timeout| timeout.value);
    for (name, table) in section.named(sink, "groups", "group") {
        let (group, files_of_group) = group::read(sink, &table, workloads);
        if let (Some(start), Some(node)) = (group.start, table.get("start"))
            && start.last_ms(group.count.default) >= timeout_ms
        {
            sink.push(
                Diagnostic::new(
                    codes::OUT_OF_RANGE,
                    node.span(),
                    format!("`{}` is out of range", table.path_of("start")),
                )
                .label(format!(
                    "the last of {} would start {} ms after the first",
                    group.count.default,
                    start.last_ms(group.count.default)
                ))
                .help(format!(
                    "the case ends after {timeout_ms} ms: start more together, or give it a longer `timeout`"
                )),
            );
        }
        if !files_of_group.is_empty() {
            files.insert(name.value.clone(), files_of_group);
        }
        smallest += u64::from(group.count.min);
        groups.insert(name.value, group);
    }
    if groups.is_empty() && section.get("groups").is_none_or(|node| node.get_ref().is_table()) {
        let help = format!("add `[{}]`", section.path_of("groups.NAME"));
        empty(sink, section, "groups", &format!("`{}` has no groups", section.path), &help);
    }
    if smallest > u64::from(MAX_INSTANCES) {
        sink.push(
            Diagnostic::new(codes::TOO_MANY, section.span.clone(), format!("`{}` is too large", section.path))
                .label(format!("its groups have {smallest} instances at least; a run may have {MAX_INSTANCES}"))
                .help("make `min` of its groups smaller"),
        );
    }

    let params = section
        .named(sink, "params", "parameter")
        .into_iter()
        .filter_map(|(name, param)| param::read(sink, &param).map(|spec| (name.value, spec)));
    let params = params.collect();
    let thresholds = threshold::read_all(sink, section, &groups);
    Case {
        description,
        groups,
        params,
        thresholds,
        timeout_ms,
        max_lost_ppm: match max_lost {
            Some(MaxLost::Share(ppm)) => ppm,
            Some(MaxLost::Count(_)) | None => 0,
        },
        engine: engine.map_or(Engine::Live, |engine| engine.value),
        network: Network::Clean,
        faults: Vec::new(),
        max_lost: match max_lost {
            Some(MaxLost::Count(most)) => Some(most),
            Some(MaxLost::Share(_)) | None => None,
        },
        barriers,
        placing,
    }
}
