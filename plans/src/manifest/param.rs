//! `[cases.NAME.params.NAME]`: a parameter that a run may set.

use iptl_dag::model::{ParamKind, ParamSpec, Value};
use toml::de::DeValue;

use super::group::{default_outside, reversed};
use crate::codes;
use crate::diagnostic::{Diagnostic, list, quote};
use crate::section::{Located, Node, Section, Sink, check_text, number, quantity, string, wrong_type};
use crate::units;

/// Type of a parameter, as its author writes it.
#[derive(Clone, Copy, PartialEq)]
enum Type {
    Bool,
    Int,
    Float,
    Text,
    Duration,
    Size,
}

const TYPES: &[(&str, Type)] = &[
    ("bool", Type::Bool),
    ("int", Type::Int),
    ("float", Type::Float),
    ("text", Type::Text),
    ("duration", Type::Duration),
    ("size", Type::Size),
];

/// Longest text value, in characters.
pub(crate) const MAX_TEXT_VALUE: usize = 4096;

/// Reads a parameter; none where there is a mistake in it that leaves no type or default.
pub(super) fn read(sink: &mut Sink, section: &Section<'_>) -> Option<ParamSpec> {
    section.only(sink, &["type", "default", "min", "max", "choices", "description"]);
    let description = section.text(sink, "description");
    section.require(sink, "type", "type = \"int\"");
    let kind = section.word(sink, "type", TYPES)?.value;
    let default = section.require(sink, "default", example(kind));

    let bounded = matches!(kind, Type::Int | Type::Float | Type::Duration | Type::Size);
    for (key, fits) in [("min", bounded), ("max", bounded), ("choices", kind == Type::Text)] {
        if let (Some(span), false) = (section.key_span(key), fits) {
            sink.push(
                Diagnostic::new(codes::PARAM_KEY, span, format!("`{}` means nothing here", section.path_of(key)))
                    .label(format!("a parameter of type `{}` has no `{key}`", word(kind)))
                    .help("remove it, or change `type`"),
            );
        }
    }

    let (kind, default) = match kind {
        Type::Bool => (ParamKind::Bool {}, boolean(sink, &section.path_of("default"), default?)?),
        Type::Text => {
            let (choices, default) = text(sink, section, default?)?;
            (ParamKind::Text { choices }, default)
        }
        Type::Int => {
            let int = |sink: &mut Sink, path: &str, node: &Node<'_>| {
                crate::section::integer(sink, path, node, i64::MIN, i64::MAX)
            };
            let (min, max, default) = bounds(sink, section, default, i64::MIN, i64::MAX, int, |n| n.to_string())?;
            (ParamKind::Int { min, max }, Value::Int(default))
        }
        Type::Float => {
            let (min, max, default) = bounds(sink, section, default, f64::MIN, f64::MAX, number, |n| n.to_string())?;
            (ParamKind::Float { min, max }, Value::Float(default))
        }
        Type::Duration => {
            let read = |sink: &mut Sink, path: &str, node: &Node<'_>| {
                quantity(sink, path, node, "a duration", "5s", units::duration_ms)
            };
            let (min_ms, max_ms, default) =
                bounds(sink, section, default, 0, units::MAX_DURATION_MS, read, units::show_ms)?;
            (ParamKind::Duration { min_ms, max_ms }, Value::Int(default as i64))
        }
        Type::Size => {
            let read = |sink: &mut Sink, path: &str, node: &Node<'_>| {
                quantity(sink, path, node, "a size", "64KiB", units::size_bytes)
            };
            let (min_bytes, max_bytes, default) =
                bounds(sink, section, default, 0, units::MAX_SIZE_BYTES, read, units::show_bytes)?;
            (ParamKind::Size { min_bytes, max_bytes }, Value::Int(default as i64))
        }
    };
    Some(ParamSpec { kind, default, description })
}

fn word(kind: Type) -> &'static str {
    TYPES.iter().find(|(_, known)| *known == kind).map_or("", |(word, _)| word)
}

fn example(kind: Type) -> &'static str {
    match kind {
        Type::Bool => "default = false",
        Type::Int => "default = 10",
        Type::Float => "default = 0.5",
        Type::Text => "default = \"\"",
        Type::Duration => "default = \"5s\"",
        Type::Size => "default = \"64KiB\"",
    }
}

fn boolean(sink: &mut Sink, path: &str, node: &Node<'_>) -> Option<Value> {
    if let DeValue::Boolean(value) = node.get_ref() {
        return Some(Value::Bool(*value));
    }
    wrong_type(sink, path, node, "a boolean", Some("write `true` or `false`".to_owned()));
    None
}

/// Reads `min`, `max` and `default` of an ordered type, and checks that they are in order.
fn bounds<T: PartialOrd + Copy>(
    sink: &mut Sink,
    section: &Section<'_>,
    default: Option<&Node<'_>>,
    lowest: T,
    highest: T,
    read: impl Fn(&mut Sink, &str, &Node<'_>) -> Option<Located<T>>,
    show: impl Fn(T) -> String,
) -> Option<(T, T, T)> {
    let mut at = |key: &str| read(sink, &section.path_of(key), section.get(key)?);
    let (min, max) = (at("min"), at("max"));
    let default = default.and_then(|_| at("default"));
    if let (Some(min), Some(max)) = (&min, &max)
        && min.value > max.value
    {
        sink.push(reversed(&section.path, min.span.clone(), max.span.clone()));
        return None;
    }
    let (min, max) = (min.map_or(lowest, |min| min.value), max.map_or(highest, |max| max.value));
    let default = default?;
    if default.value < min || default.value > max {
        sink.push(default_outside(&section.path, default.span, &show(min), &show(max)));
    }
    Some((min, max, default.value))
}

fn text(sink: &mut Sink, section: &Section<'_>, default: &Node<'_>) -> Option<(Vec<String>, Value)> {
    let path = section.path_of("default");
    let choices: Vec<String> = section.strings(sink, "choices").into_iter().map(|choice| choice.value).collect();
    let default = string(sink, &path, default)?;
    check_text(sink, &path, &default, 0, MAX_TEXT_VALUE);
    if !choices.is_empty() && !choices.contains(&default.value) {
        sink.push(
            Diagnostic::new(
                codes::DEFAULT_OUTSIDE,
                default.span,
                format!("`{}.default` is not one of the values allowed", section.path),
            )
            .label(format!("{} is not a choice", quote(&default.value)))
            .maybe_help(list(choices.iter().map(String::as_str)).map(|words| format!("there is {words}"))),
        );
    }
    Some((choices, Value::Text(default.value)))
}
