//! What the author of a plan, or whoever starts a run of it, did wrong, and how it is shown.

use std::fmt::Write as _;
use std::ops::Range;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code: `E0201`. [`explain`](crate::explain) has a long text for each.
    pub code: &'static str,
    /// What is wrong, in one line.
    pub message: String,
    /// Where in the manifest, in bytes; empty where the mistake is not in a file, as in the choices of a run.
    pub span: Range<usize>,
    /// What stands at the span; empty where the message says it all.
    pub label: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Other places that have to do with it.
    pub related: Vec<Related>,
}

/// Another place that has to do with a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Related {
    /// Where, in bytes.
    pub span: Range<usize>,
    /// What stands there.
    pub label: String,
}

impl Diagnostic {
    pub(crate) fn new(code: &'static str, span: Range<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic { code, message: message.into(), span, label: String::new(), help: None, related: Vec::new() }
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = label.into();
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn maybe_help(mut self, help: Option<String>) -> Diagnostic {
        self.help = help;
        self
    }

    pub(crate) fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Diagnostic {
        self.related.push(Related { span, label: label.into() });
        self
    }

    /// Renders the mistake as plain text: the message, each place with the line it is on, the help.
    ///
    /// `source` is the manifest that the spans are about; without it, or with empty spans, there are no excerpts.
    pub fn render(&self, file: &str, source: &str) -> String {
        let mut out = format!("error[{}]: {}\n", self.code, self.message);
        if !self.span.is_empty() {
            excerpt(&mut out, file, source, &self.span, &self.label, '^');
        }
        for related in &self.related {
            excerpt(&mut out, file, source, &related.span, &related.label, '-');
        }
        if let Some(help) = &self.help {
            let _ = writeln!(out, "  help: {help}");
        }
        out
    }
}

/// Longest excerpt of one line, in characters.
const MAX_EXCERPT: usize = 120;

/// Writes the line of a span with its place underlined. Spans that are not of this source are clamped to it.
fn excerpt(out: &mut String, file: &str, source: &str, span: &Range<usize>, label: &str, mark: char) {
    let start = floor_boundary(source, span.start);
    let end = floor_boundary(source, span.end).max(start);
    let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = source[start..].find('\n').map_or(source.len(), |at| start + at);
    let number = source[..line_start].matches('\n').count() + 1;
    let column = source[line_start..start].chars().count();
    let line: String = source[line_start..line_end].chars().take(MAX_EXCERPT).map(printable).collect();
    let width = source[start..end.min(line_end)].chars().count().max(1).min(MAX_EXCERPT.saturating_sub(column).max(1));
    let margin = " ".repeat(number.to_string().len());
    let _ = writeln!(out, "  {margin} at {file}:{number}:{}", column + 1);
    let _ = writeln!(out, "  {number} | {line}");
    if column < MAX_EXCERPT {
        let marks: String = std::iter::repeat_n(mark, width).collect();
        let _ = writeln!(out, "  {margin} | {}{}", " ".repeat(column), format!("{marks} {label}").trim_end());
    }
}

/// Replaces what would move the terminal's cursor.
fn printable(c: char) -> char {
    if c == '\t' {
        ' '
    } else if c.is_control() {
        '\u{fffd}'
    } else {
        c
    }
}

fn floor_boundary(source: &str, at: usize) -> usize {
    let mut at = at.min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Quotes text of the author for a message: bounded, and without control characters.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(60).map(printable).collect();
    if text.chars().nth(60).is_some() {
        quoted.push('…');
    }
    format!("`{quoted}`")
}

/// Returns the known word that was probably meant.
pub(crate) fn suggest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > 80 {
        return None;
    }
    let given = given.to_lowercase();
    known
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&given, &word.to_lowercase()), word))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))
        .map(|(_, word)| word)
}

/// Returns `did you mean …?`, or else the list of what there is.
pub(crate) fn suggestion<'a>(given: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(word) = suggest(given, known.clone()) {
        return Some(format!("did you mean `{word}`?"));
    }
    list(known).map(|words| format!("there is {words}"))
}

/// Joins words as `a`, `b` and `c`; none where there are none.
pub(crate) fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let words: Vec<String> = words.into_iter().map(|w| format!("`{w}`")).collect();
    match words.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        [first @ .., last] => Some(format!("{} and {last}", first.join(", "))),
    }
}
