//! From a plan and somebody's choices to a run.
//!
//! Nothing here depends on anything but its inputs, so equal choices make equal runs with equal CIDs. Values are
//! spelt as in a manifest (`5s`, `64KiB`), since they come from a command line.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::Cid;
use iptl_dag::model::{
    Case, Container, Count, GroupRun, InstanceId, LossPolicy, Network, ParamKind, ParamSpec, Placing, Plan, Run, Value,
    Workload, WorkloadKind,
};

use crate::codes;
use crate::diagnostic::{Diagnostic, list, quote, suggest, suggestion};
use crate::manifest::MAX_INSTANCES;
use crate::units;

/// Name of the case that is run where none is chosen and there are several.
pub const DEFAULT_CASE: &str = "default";

/// Seed of a run that does not choose one: never random, so that a command repeated is a run repeated.
pub const DEFAULT_SEED: u64 = 1;

/// Somebody's choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// Case; none means the only one, or the one called `default`.
    pub case: Option<String>,
    /// Sizes of groups that differ from the plan's default.
    pub groups: BTreeMap<String, u32>,
    /// Values of parameters that differ from the plan's default, as text.
    pub params: BTreeMap<String, String>,
    /// Seed of everything random that the lab controls.
    pub seed: u64,
    /// Network; none means that of the case.
    pub network: Option<Network>,
    /// Of that network, how many neighbours of a group are to be on one lablet
    /// ([`NetworkModel::together`](iptl_dag::model::NetworkModel::together)); counts where there is one.
    pub together: BTreeMap<String, u32>,
    /// Faults, as schedules; none means those of the case.
    pub faults: Option<Vec<Cid>>,
    /// Instances whose links are captured.
    pub captures: BTreeSet<InstanceId>,
    /// Whether ways between lablets may be longer than delays, whatever the case says.
    pub slow_ways: bool,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions {
            case: None,
            groups: BTreeMap::new(),
            params: BTreeMap::new(),
            seed: DEFAULT_SEED,
            network: None,
            together: BTreeMap::new(),
            faults: None,
            captures: BTreeSet::new(),
            slow_ways: false,
        }
    }
}

/// Makes the run of a plan with somebody's choices.
///
/// `workloads` has, for every workload name of the plan, its CID and node.
///
/// # Errors
///
/// Returns every mistake in the choices; their spans are empty, for they stand in no file.
pub fn make_run(
    plan: &Plan,
    plan_cid: Cid,
    workloads: &BTreeMap<String, (Cid, Workload)>,
    options: &RunOptions,
) -> Result<Run, Vec<Diagnostic>> {
    let (case_name, case) = choose_case(plan, options.case.as_deref()).map_err(|mistake| vec![*mistake])?;
    let mut mistakes = Vec::new();
    let mut groups = groups(plan, case_name, case, workloads, &options.groups, &mut mistakes);
    if options.network.is_some() {
        for (name, group) in &mut groups {
            group.requires.together = options.together.get(name).copied();
        }
    }
    let params = params(case_name, case, &options.params, &mut mistakes);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let run = Run {
        plan: plan_cid,
        case: case_name.to_owned(),
        groups,
        params,
        seed: options.seed,
        engine: case.engine,
        network: options.network.clone().unwrap_or_else(|| case.network.clone()),
        faults: options.faults.clone().unwrap_or_else(|| case.faults.clone()),
        loss: LossPolicy {
            max_lost_ppm: case.max_lost_ppm,
            max_lost: case.max_lost,
            barriers: case.barriers,
            ..LossPolicy::default()
        },
        thresholds: case.thresholds.clone(),
        timeout_ms: case.timeout_ms,
        placing: Placing { slow_ways: case.placing.slow_ways || options.slow_ways, ..case.placing },
        captures: by_group(&options.captures),
    };
    check_captures(&run, &options.captures)?;
    match run.instances() {
        0 => Err(vec![
            mistake(codes::RUN_SIZE, "the run would have no instances".to_owned())
                .help("give a group a size: `-g GROUP=3`"),
        ]),
        n if n > u64::from(MAX_INSTANCES) => Err(vec![mistake(
            codes::RUN_SIZE,
            format!("the run would have {n} instances; there may be {MAX_INSTANCES}"),
        )]),
        _ => Ok(run),
    }
}

fn by_group(ids: &BTreeSet<InstanceId>) -> BTreeMap<String, BTreeSet<u32>> {
    let mut groups: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for id in ids {
        groups.entry(id.group.clone()).or_default().insert(id.index);
    }
    groups
}

fn check_captures(run: &Run, captures: &BTreeSet<InstanceId>) -> Result<(), Vec<Diagnostic>> {
    let most = Run::MAX_CAPTURES;
    let mut mistakes = Vec::new();
    for id in captures {
        let size = run.groups.get(&id.group).map(|group| group.count);
        let help = match size {
            Some(size) if id.index < size => continue,
            Some(0) => Some(format!("group `{}` has none", id.group)),
            Some(size) => Some(format!("group `{}` has 0 to {}", id.group, size - 1)),
            None => suggestion(&id.group, run.groups.keys().map(String::as_str)),
        };
        mistakes.push(mistake(codes::CAPTURE, format!("the run has no instance {id} to capture")).maybe_help(help));
    }
    if captures.len() > most {
        let message = format!("{} instances would be captured; {most} may be", captures.len());
        mistakes.push(mistake(codes::CAPTURE, message));
    }
    if !captures.is_empty() && !run.has_packets() {
        let message = "components on clean links send no packets that could be captured".to_owned();
        mistakes.push(mistake(codes::CAPTURE, message).help("give the run a network: `--network world-2019`"));
    }
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

fn mistake(code: &'static str, message: String) -> Diagnostic {
    Diagnostic::new(code, 0..0, message)
}

/// Returns the name of the case that a choice means.
///
/// # Errors
///
/// Returns the mistake where there is none of that name, or where one must be chosen and none is.
pub fn chosen_case<'a>(plan: &'a Plan, wanted: Option<&str>) -> Result<&'a str, Box<Diagnostic>> {
    choose_case(plan, wanted).map(|(name, _)| name)
}

fn choose_case<'a>(plan: &'a Plan, wanted: Option<&str>) -> Result<(&'a str, &'a Case), Box<Diagnostic>> {
    let known = plan.cases.keys().map(String::as_str);
    if let Some(wanted) = wanted {
        return match plan.cases.get_key_value(wanted) {
            Some((name, case)) => Ok((name, case)),
            None => Err(Box::new(
                mistake(codes::UNKNOWN_CASE, format!("plan `{}` has no case {}", plan.name, quote(wanted)))
                    .maybe_help(suggestion(wanted, known)),
            )),
        };
    }
    let only = if plan.cases.len() == 1 { plan.cases.iter().next() } else { plan.cases.get_key_value(DEFAULT_CASE) };
    only.map(|(name, case)| (name.as_str(), case)).ok_or_else(|| {
        let words = list(known).unwrap_or_else(|| "none".to_owned());
        Box::new(
            mistake(codes::NO_CASE, format!("plan `{}` has several cases and none called `{DEFAULT_CASE}`", plan.name))
                .help(format!("choose one with `--case`: there is {words}")),
        )
    })
}

fn groups(
    plan: &Plan,
    case_name: &str,
    case: &Case,
    workloads: &BTreeMap<String, (Cid, Workload)>,
    sizes: &BTreeMap<String, u32>,
    mistakes: &mut Vec<Diagnostic>,
) -> BTreeMap<String, GroupRun> {
    for wanted in sizes.keys().filter(|name| !case.groups.contains_key(*name)) {
        mistakes.push(
            mistake(codes::UNKNOWN_GROUP, format!("case `{case_name}` has no group {}", quote(wanted)))
                .maybe_help(suggestion(wanted, case.groups.keys().map(String::as_str))),
        );
    }
    let mut groups = BTreeMap::new();
    for (name, spec) in &case.groups {
        let count = sizes.get(name).copied().unwrap_or(spec.count.default);
        let Count { min, max, .. } = spec.count;
        if !(min..=max).contains(&count) {
            let found = mistake(codes::GROUP_SIZE, format!("group `{name}` cannot have {count} instances"));
            mistakes.push(if min == max {
                found.help(format!(
                    "the plan fixes it at {min}; write `count = {{ default = {min}, min = 1, max = {} }}` there",
                    count.clamp(1, MAX_INSTANCES)
                ))
            } else {
                found.help(format!("the plan allows {min} to {max}"))
            });
        }
        if let Some(start) = spec.start.filter(|start| start.last_ms(count) >= case.timeout_ms) {
            mistakes.push(
                mistake(
                    codes::GROUP_SIZE,
                    format!("group `{name}` cannot have {count} instances: the last would start when time is over"),
                )
                .help(format!(
                    "{} start every {} ms, and the case ends after {} ms",
                    start.count, start.every_ms, case.timeout_ms
                )),
            );
        }
        let (Some(linked), Some((cid, workload))) = (plan.workloads.get(&spec.workload), workloads.get(&spec.workload))
        else {
            mistakes.push(
                mistake(
                    codes::NO_WORKLOAD,
                    format!("group `{name}` runs workload {}, which is not there", quote(&spec.workload)),
                )
                .maybe_help(match plan.workloads.get(&spec.workload) {
                    Some(cid) => Some(format!("fetch its node: `iptl get {cid}`")),
                    None => suggestion(&spec.workload, plan.workloads.keys().map(String::as_str)),
                }),
            );
            continue;
        };
        if linked != cid {
            mistakes.push(mistake(
                codes::NO_WORKLOAD,
                format!("workload `{}` is {cid}, but the plan links {linked}", spec.workload),
            ));
            continue;
        }
        groups.insert(
            name.clone(),
            GroupRun {
                workload: *cid,
                kind: workload.kind,
                count,
                args: spec.args.clone(),
                env: spec.env.clone(),
                resources: spec.resources,
                requires: spec.requires.clone(),
                container: match workload.kind {
                    WorkloadKind::Wasm => None,
                    WorkloadKind::Docker => Some(spec.container.clone().unwrap_or_else(Container::usual)),
                },
                loss: spec.loss,
                start: spec.start,
            },
        );
    }
    groups
}

fn params(
    case_name: &str,
    case: &Case,
    given: &BTreeMap<String, String>,
    mistakes: &mut Vec<Diagnostic>,
) -> BTreeMap<String, Value> {
    for wanted in given.keys().filter(|name| !case.params.contains_key(*name)) {
        mistakes.push(
            mistake(codes::UNKNOWN_PARAM, format!("case `{case_name}` has no parameter {}", quote(wanted)))
                .maybe_help(suggestion(wanted, case.params.keys().map(String::as_str))),
        );
    }
    let mut params = BTreeMap::new();
    for (name, spec) in &case.params {
        let value = match given.get(name) {
            None => spec.default.clone(),
            Some(text) => match read_value(name, spec, text) {
                Ok(value) => value,
                Err(mistake) => {
                    mistakes.push(*mistake);
                    continue;
                }
            },
        };
        params.insert(name.clone(), value);
    }
    params
}

/// Reads the value of a parameter from text, within its bounds.
fn read_value(name: &str, spec: &ParamSpec, text: &str) -> Result<Value, Box<Diagnostic>> {
    let text = match &spec.kind {
        ParamKind::Text { .. } => text,
        _ => text.trim(),
    };
    let wrong = |what: &str, help: String| {
        Box::new(mistake(codes::PARAM_TYPE, format!("parameter `{name}` cannot be {}: {what}", quote(text))).help(help))
    };
    let outside = |help: String| {
        Box::new(mistake(codes::PARAM_RANGE, format!("parameter `{name}` cannot be {}", quote(text))).help(help))
    };
    let between = |low: String, high: String| format!("the plan allows {low} to {high}");
    match &spec.kind {
        ParamKind::Bool {} => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(wrong("it is true or false", format!("write `-p {name}=true` or `-p {name}=false`"))),
        },
        ParamKind::Int { min, max } => match text.parse::<i64>() {
            Ok(value) if (*min..=*max).contains(&value) => Ok(Value::Int(value)),
            Ok(_) => Err(outside(between(min.to_string(), max.to_string()))),
            Err(_) => Err(wrong("it is a whole number", format!("write `-p {name}={}`", spec.default))),
        },
        ParamKind::Float { min, max } => match text.parse::<f64>() {
            // Minus zero and zero are one number, so they must have one encoding.
            Ok(value) if value.is_finite() && (*min..=*max).contains(&value) => Ok(Value::Float(value + 0.0)),
            Ok(value) if value.is_finite() => Err(outside(between(min.to_string(), max.to_string()))),
            _ => Err(wrong("it is a finite number", format!("write `-p {name}={}`", spec.default))),
        },
        ParamKind::Text { choices } => {
            let length = text.chars().count();
            if length > crate::manifest::MAX_TEXT_VALUE || text.contains('\0') {
                return Err(wrong("it is too long or has a zero byte", "write less".to_owned()));
            }
            if choices.is_empty() || choices.iter().any(|choice| choice == text) {
                return Ok(Value::Text(text.to_owned()));
            }
            let words = list(choices.iter().map(String::as_str)).unwrap_or_default();
            Err(outside(match suggest(text, choices.iter().map(String::as_str)) {
                Some(meant) => format!("did you mean `{meant}`? There is {words}"),
                None => format!("there is {words}"),
            }))
        }
        ParamKind::Duration { min_ms, max_ms } => match units::duration_ms(text) {
            Ok(value) if (*min_ms..=*max_ms).contains(&value) => Ok(Value::Int(value as i64)),
            Ok(_) => Err(outside(between(units::show_ms(*min_ms), units::show_ms(*max_ms)))),
            Err(error) => Err(wrong(&error.what, error.help)),
        },
        ParamKind::Size { min_bytes, max_bytes } => match units::size_bytes(text) {
            Ok(value) if (*min_bytes..=*max_bytes).contains(&value) => Ok(Value::Int(value as i64)),
            Ok(_) => Err(outside(between(units::show_bytes(*min_bytes), units::show_bytes(*max_bytes)))),
            Err(error) => Err(wrong(&error.what, error.help)),
        },
    }
}
