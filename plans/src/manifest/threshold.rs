//! `[[cases.NAME.thresholds]]`: a condition under which the case passes.

use std::collections::BTreeMap;
use std::ops::Range;

use iptl_dag::model::{Comparison, GroupSpec, Statistic, Subject, Threshold};
use toml::de::DeValue;

use crate::codes;
use crate::diagnostic::{Diagnostic, list, quote, suggestion};
use crate::names;
use crate::section::{Located, Node, Section, Sink, number, quantity, wrong_type};
use crate::units;

const STATISTICS: &[(&str, Statistic)] = &[
    ("count", Statistic::Count),
    ("sum", Statistic::Sum),
    ("mean", Statistic::Mean),
    ("min", Statistic::Min),
    ("max", Statistic::Max),
    ("p50", Statistic::P50),
    ("p90", Statistic::P90),
    ("p95", Statistic::P95),
    ("p99", Statistic::P99),
];

const COMPARISONS: &[(&str, Comparison)] = &[
    ("below", Comparison::Less),
    ("at_most", Comparison::AtMost),
    ("above", Comparison::More),
    ("at_least", Comparison::AtLeast),
    ("equals", Comparison::Equal),
];

pub(super) fn read_all(sink: &mut Sink, case: &Section<'_>, groups: &BTreeMap<String, GroupSpec>) -> Vec<Threshold> {
    let Some(node) = case.get("thresholds") else { return Vec::new() };
    let path = case.path_of("thresholds");
    let DeValue::Array(array) = node.get_ref() else {
        wrong_type(sink, &path, node, "an array of tables", Some(format!("write `[[{path}]]`")));
        return Vec::new();
    };
    let mut thresholds = Vec::new();
    for (at, node) in array.iter().enumerate() {
        if let Some(section) = Section::open(sink, format!("{path}[{at}]"), node) {
            thresholds.extend(read(sink, &section, groups));
        }
    }
    thresholds
}

fn read(sink: &mut Sink, section: &Section<'_>, groups: &BTreeMap<String, GroupSpec>) -> Option<Threshold> {
    section.only(sink, &["metric", "stat", "success_rate", "group", "below", "at_most", "above", "at_least", "equals"]);
    let group = section.string(sink, "group");
    if let Some(group) = &group
        && !groups.contains_key(&group.value)
    {
        sink.push(
            Diagnostic::new(
                codes::THRESHOLD_GROUP,
                group.span.clone(),
                format!("the case has no group {}", quote(&group.value)),
            )
            .label("unknown group")
            .maybe_help(suggestion(&group.value, groups.keys().map(String::as_str))),
        );
    }
    let (subject, (comparison, value, unit)) = match (section.get("metric"), section.get("success_rate")) {
        (Some(_), None) => metric(sink, section)?,
        (None, Some(node)) => success_rate(sink, section, node)?,
        (both, _) => {
            let label = if both.is_some() { "it has both" } else { "it has neither" };
            sink.push(
                shape(section.span.clone(), &section.path, "must have either `metric` or `success_rate`")
                    .label(label)
                    .help("write `metric = \"ping.rtt\"`, or `success_rate = { at_least = 1.0 }`"),
            );
            return None;
        }
    };
    Some(Threshold { subject, group: group.map(|group| group.value), comparison, value, unit })
}

type Condition = (Comparison, f64, String);

fn shape(span: Range<usize>, path: &str, what: &str) -> Diagnostic {
    Diagnostic::new(codes::THRESHOLD_SHAPE, span, format!("`{path}` {what}"))
}

fn metric(sink: &mut Sink, section: &Section<'_>) -> Option<(Subject, Condition)> {
    let name = section.string(sink, "metric");
    if let Some(name) = &name
        && !names::is_metric_name(&name.value)
    {
        sink.push(
            Diagnostic::new(codes::BAD_NAME, name.span.clone(), format!("{} cannot name a metric", quote(&name.value)))
                .label("a metric has 1 to 80 of `a-z`, `0-9`, `.`, `_` and `-`, and begins with a letter or digit"),
        );
    }
    section.require(sink, "stat", "stat = \"p95\"");
    let statistic = section.word(sink, "stat", STATISTICS);
    let condition = condition(sink, section, &["metric", "stat", "group"], |sink, path, node| match node.get_ref() {
        DeValue::String(_) => quantity(sink, path, node, "a quantity", "50ms", units::quantity),
        _ => number(sink, path, node).map(|n| Located { value: (n.value, String::new()), span: n.span }),
    });
    let (Some(name), Some(statistic), Some(condition)) = (name, statistic, condition) else { return None };
    Some((Subject::Metric { name: name.value, statistic: statistic.value }, condition))
}

fn success_rate(sink: &mut Sink, section: &Section<'_>, node: &Node<'_>) -> Option<(Subject, Condition)> {
    for key in ["stat", "below", "at_most", "above", "at_least", "equals"] {
        if let Some(span) = section.key_span(key) {
            sink.push(
                shape(span, &section.path, &format!("has `{key}` beside `success_rate`"))
                    .label("it belongs to a metric")
                    .help("write the comparison inside: `success_rate = { at_least = 0.99 }`"),
            );
        }
    }
    let path = section.path_of("success_rate");
    let DeValue::Table(table) = node.get_ref() else {
        let help = "write `success_rate = { at_least = 1.0 }`".to_owned();
        wrong_type(sink, &path, node, "a table with a comparison", Some(help));
        return None;
    };
    let inner = Section::new(path, node.span(), table);
    inner.only(sink, &["below", "at_most", "above", "at_least", "equals"]);
    let (comparison, value, _) = condition(sink, &inner, &[], |sink, path, node| {
        let read = match node.get_ref() {
            DeValue::String(_) => {
                let share = quantity(sink, path, node, "a share", "99.5%", units::share_ppm)?;
                Located { value: f64::from(share.value) / 1e6, span: share.span }
            }
            _ => number(sink, path, node)?,
        };
        if !(0.0..=1.0).contains(&read.value) {
            crate::section::out_of_range(sink, path, read.span, "0", "1");
            return None;
        }
        Some(Located { value: (read.value, String::new()), span: read.span })
    })?;
    Some((Subject::SuccessRate {}, (comparison, value, String::new())))
}

/// Reads the one comparison of a table.
fn condition(
    sink: &mut Sink,
    section: &Section<'_>,
    beside: &[&str],
    read: impl Fn(&mut Sink, &str, &Node<'_>) -> Option<Located<(f64, String)>>,
) -> Option<Condition> {
    let mut given = section.entries().filter_map(|(key, span, node)| {
        COMPARISONS.iter().find(|(word, _)| *word == key).map(|(_, comparison)| (*comparison, key, span, node))
    });
    let words = list(COMPARISONS.iter().map(|(word, _)| *word)).unwrap_or_default();
    let Some((comparison, key, _, node)) = given.next() else {
        // Where a key is misspelt that has been said already.
        let misspelt = section.entries().any(|(key, ..)| !beside.contains(&key));
        if !misspelt {
            sink.push(
                shape(section.span.clone(), &section.path, "compares with nothing").help(format!("add one of {words}")),
            );
        }
        return None;
    };
    if let Some((_, second, span, _)) = given.next() {
        sink.push(
            shape(span, &section.path, "has more than one comparison")
                .label(format!("`{second}` beside `{key}`"))
                .help("write a threshold for each"),
        );
        return None;
    }
    let (value, unit) = read(sink, &section.path_of(key), node)?.value;
    Some((comparison, value, unit))
}
