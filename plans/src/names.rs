//! Names that authors give: what they may look like, and what was probably meant.

use std::ops::Range;

use crate::codes;
use crate::diagnostic::{Diagnostic, quote};
use crate::section::Sink;

/// Longest name, in characters: with an index it still is a DNS label of 63.
pub const MAX_NAME: usize = 40;

/// Longest name of a metric or event, in characters.
pub const MAX_METRIC_NAME: usize = 80;

/// Tells whether text can name a plan, case, group, workload or parameter: `[a-z0-9-]{1,40}`, no `-` at an end.
///
/// Names become host names, directories and environment variables, so nothing else is let through.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Tells whether text can name a metric: `[a-z0-9._-]{1,80}`.
pub fn is_metric_name(text: &str) -> bool {
    (1..=MAX_METRIC_NAME).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Returns the variable that carries a parameter to an instance: `IPTL_PARAM_MAX_PEERS` for `max-peers`.
pub fn param_variable(name: &str) -> String {
    format!("IPTL_PARAM_{}", name.to_uppercase().replace('-', "_"))
}

/// Notes a name that cannot be one.
pub(crate) fn check(sink: &mut Sink, what: &str, name: &str, span: &Range<usize>) {
    if is_name(name) {
        return;
    }
    let nearest = slug(name);
    sink.push(
        Diagnostic::new(codes::BAD_NAME, span.clone(), format!("{} cannot name a {what}", quote(name)))
            .label(format!("a name has 1 to {MAX_NAME} of `a-z`, `0-9` and `-`, with no `-` at an end"))
            .maybe_help((!nearest.is_empty()).then(|| format!("write `{nearest}`"))),
    );
}

/// Returns the name that is nearest to some text; empty where there is none.
pub(crate) fn slug(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(4 * MAX_NAME) {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => out.push(c),
            _ if !out.is_empty() && !out.ends_with('-') => out.push('-'),
            _ => {}
        }
    }
    out.truncate(MAX_NAME);
    out.trim_end_matches('-').to_owned()
}
