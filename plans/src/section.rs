//! Reading a table of TOML key by key, with every mistake noted and none fatal.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::codes;
use crate::diagnostic::{Diagnostic, quote, suggestion};
use crate::names;
use crate::units::{self, UnitError};

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
}

/// A value of the document.
pub(crate) type Node<'a> = toml::Spanned<DeValue<'a>>;

/// Mistakes found so far.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    pub(crate) found: Vec<Diagnostic>,
}

impl Sink {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.found.push(diagnostic);
    }
}

/// One table, under the path that messages call it by.
pub(crate) struct Section<'a> {
    /// `cases.mesh.groups.node`; empty for the document.
    pub(crate) path: String,
    /// Its header, or its braces.
    pub(crate) span: Range<usize>,
    table: &'a DeTable<'a>,
}

/// Names the type of a value as TOML does.
pub(crate) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Notes that a value has another type than `expected`.
pub(crate) fn wrong_type(sink: &mut Sink, path: &str, node: &Node<'_>, expected: &str, help: Option<String>) {
    sink.push(
        Diagnostic::new(codes::WRONG_TYPE, node.span(), format!("`{path}` must be {expected}"))
            .label(format!("this is {}", type_name(node.get_ref())))
            .maybe_help(help),
    );
}

impl<'a> Section<'a> {
    pub(crate) fn new(path: String, span: Range<usize>, table: &'a DeTable<'a>) -> Section<'a> {
        Section { path, span, table }
    }

    /// Takes a value that must be a table.
    pub(crate) fn open(sink: &mut Sink, path: String, node: &'a Node<'a>) -> Option<Section<'a>> {
        match node.get_ref() {
            DeValue::Table(table) => Some(Section::new(path, node.span(), table)),
            _ => {
                wrong_type(sink, &path, node, "a table", None);
                None
            }
        }
    }

    /// Returns the path of a key of this table.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes every key that is not among `known`.
    pub(crate) fn only(&self, sink: &mut Sink, known: &[&str]) {
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let place = if self.path.is_empty() { "a manifest".to_owned() } else { format!("`{}`", self.path) };
            sink.push(
                Diagnostic::new(codes::UNKNOWN_KEY, key.span(), format!("{place} has no key {}", quote(name)))
                    .label("unknown key")
                    .maybe_help(suggestion(name, known.iter().copied())),
            );
        }
    }

    /// Returns the value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Node<'a>> {
        self.table.iter().find(|(k, _)| k.get_ref() == key).map(|(_, v)| v)
    }

    /// Returns the place of a key.
    pub(crate) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table.iter().find(|(k, _)| k.get_ref() == key).map(|(k, _)| k.span())
    }

    /// Returns all keys with their places and values, in the order of the document.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, Range<usize>, &'a Node<'a>)> + use<'a> {
        self.table.iter().map(|(k, v)| (&**k.get_ref(), k.span(), v))
    }

    /// Returns the value of a key, noting where it is missing.
    pub(crate) fn require(&self, sink: &mut Sink, key: &str, example: &str) -> Option<&'a Node<'a>> {
        let found = self.get(key);
        if found.is_none() {
            let place = if self.path.is_empty() { "the manifest".to_owned() } else { format!("`{}`", self.path) };
            sink.push(
                Diagnostic::new(codes::MISSING_KEY, self.span.clone(), format!("{place} lacks `{key}`"))
                    .label(format!("`{key}` must be here"))
                    .help(format!("add `{example}`")),
            );
        }
        found
    }

    /// Returns a table below this one, where there is one.
    pub(crate) fn section(&self, sink: &mut Sink, key: &str) -> Option<Section<'a>> {
        Section::open(sink, self.path_of(key), self.get(key)?)
    }

    /// Returns the tables of a table of named things: `[cases.NAME]`. Names that cannot be one are noted.
    pub(crate) fn named(&self, sink: &mut Sink, key: &str, what: &str) -> Vec<(Located<String>, Section<'a>)> {
        let Some(all) = self.section(sink, key) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, span, node) in all.entries() {
            names::check(sink, what, name, &span);
            if let Some(section) = Section::open(sink, all.path_of(name), node) {
                found.push((Located { value: name.to_owned(), span }, section));
            }
        }
        found
    }

    /// Returns a string.
    pub(crate) fn string(&self, sink: &mut Sink, key: &str) -> Option<Located<String>> {
        string(sink, &self.path_of(key), self.get(key)?)
    }

    /// Returns text for people, within bounds; empty where there is none.
    pub(crate) fn text(&self, sink: &mut Sink, key: &str) -> String {
        let Some(text) = self.string(sink, key) else { return String::new() };
        check_text(sink, &self.path_of(key), &text, 0, MAX_TEXT);
        text.value
    }

    /// Returns a whole number within bounds.
    pub(crate) fn integer(&self, sink: &mut Sink, key: &str, min: i64, max: i64) -> Option<Located<i64>> {
        integer(sink, &self.path_of(key), self.get(key)?, min, max)
    }

    /// Returns a duration in milliseconds within bounds.
    pub(crate) fn duration_ms(&self, sink: &mut Sink, key: &str, min: u64, max: u64) -> Option<Located<u64>> {
        let read = quantity(sink, &self.path_of(key), self.get(key)?, "a duration", "60s", units::duration_ms)?;
        self.within(sink, key, read, min, max, units::show_ms)
    }

    /// Returns a size in bytes within bounds.
    pub(crate) fn size_bytes(&self, sink: &mut Sink, key: &str, min: u64, max: u64) -> Option<Located<u64>> {
        let read = quantity(sink, &self.path_of(key), self.get(key)?, "a size", "64MiB", units::size_bytes)?;
        self.within(sink, key, read, min, max, units::show_bytes)
    }

    fn within(
        &self,
        sink: &mut Sink,
        key: &str,
        read: Located<u64>,
        min: u64,
        max: u64,
        show: fn(u64) -> String,
    ) -> Option<Located<u64>> {
        if (min..=max).contains(&read.value) {
            return Some(read);
        }
        out_of_range(sink, &self.path_of(key), read.span, &show(min), &show(max));
        None
    }

    /// Returns an array of strings without zero bytes; empty where there is none.
    pub(crate) fn strings(&self, sink: &mut Sink, key: &str) -> Vec<Located<String>> {
        let Some(node) = self.get(key) else { return Vec::new() };
        let path = self.path_of(key);
        let DeValue::Array(array) = node.get_ref() else {
            wrong_type(sink, &path, node, "an array of strings", None);
            return Vec::new();
        };
        let mut found = Vec::new();
        for (at, item) in array.iter().enumerate() {
            if let Some(text) = string(sink, &format!("{path}[{at}]"), item) {
                if text.value.contains('\0') {
                    bad_text(sink, &format!("{path}[{at}]"), text.span, "there is a zero byte in it");
                } else {
                    found.push(text);
                }
            }
        }
        found
    }

    /// Returns a value that is true or false.
    pub(crate) fn boolean(&self, sink: &mut Sink, key: &str) -> Option<Located<bool>> {
        let node = self.get(key)?;
        let value = node.get_ref().as_bool();
        if value.is_none() {
            wrong_type(sink, &self.path_of(key), node, "true or false", None);
        }
        value.map(|value| Located { value, span: node.span() })
    }

    /// Returns one of the words of a closed list.
    pub(crate) fn word<T: Copy>(&self, sink: &mut Sink, key: &str, words: &[(&str, T)]) -> Option<Located<T>> {
        let given = self.string(sink, key)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == given.value) {
            return Some(Located { value: *value, span: given.span });
        }
        let known = words.iter().map(|(word, _)| *word);
        sink.push(
            Diagnostic::new(
                codes::UNKNOWN_WORD,
                given.span,
                format!("`{}` cannot be {}", self.path_of(key), quote(&given.value)),
            )
            .label("unknown word")
            .maybe_help(suggestion(&given.value, known)),
        );
        None
    }
}

/// Longest text for people, in characters.
const MAX_TEXT: usize = 4096;

/// Notes text that is too short, too long, or holds control characters other than a line's end.
pub(crate) fn check_text(sink: &mut Sink, path: &str, text: &Located<String>, min: usize, max: usize) {
    let length = text.value.chars().count();
    if length < min {
        bad_text(sink, path, text.span.clone(), "it is empty");
    } else if length > max {
        bad_text(sink, path, text.span.clone(), &format!("it has {length} characters; there may be {max}"));
    } else if text.value.chars().any(|c| c.is_control() && c != '\n') {
        bad_text(sink, path, text.span.clone(), "there are control characters in it");
    }
}

fn bad_text(sink: &mut Sink, path: &str, span: Range<usize>, what: &str) {
    sink.push(Diagnostic::new(codes::BAD_TEXT, span, format!("`{path}` cannot be this text")).label(what));
}

pub(crate) fn out_of_range(sink: &mut Sink, path: &str, span: Range<usize>, min: &str, max: &str) {
    sink.push(
        Diagnostic::new(codes::OUT_OF_RANGE, span, format!("`{path}` is out of range"))
            .label(format!("must be from {min} to {max}")),
    );
}

pub(crate) fn string(sink: &mut Sink, path: &str, node: &Node<'_>) -> Option<Located<String>> {
    match node.get_ref() {
        DeValue::String(text) => Some(Located { value: text.to_string(), span: node.span() }),
        other => {
            let help = match other {
                DeValue::Integer(n) => Some(format!("write \"{n}\"")),
                DeValue::Float(n) => Some(format!("write \"{n}\"")),
                DeValue::Boolean(b) => Some(format!("write \"{b}\"")),
                DeValue::String(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
            };
            wrong_type(sink, path, node, "a string", help);
            None
        }
    }
}

pub(crate) fn integer(sink: &mut Sink, path: &str, node: &Node<'_>, min: i64, max: i64) -> Option<Located<i64>> {
    let DeValue::Integer(number) = node.get_ref() else {
        wrong_type(sink, path, node, "an integer", None);
        return None;
    };
    match i64::from_str_radix(number.as_str(), number.radix()) {
        Ok(value) if (min..=max).contains(&value) => Some(Located { value, span: node.span() }),
        _ => {
            out_of_range(sink, path, node.span(), &min.to_string(), &max.to_string());
            None
        }
    }
}

/// Reads a finite number, whole or not.
pub(crate) fn number(sink: &mut Sink, path: &str, node: &Node<'_>) -> Option<Located<f64>> {
    let value = match node.get_ref() {
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix()).ok().map(|n| n as f64),
        DeValue::Float(n) => n.as_str().parse::<f64>().ok().filter(|n| n.is_finite()),
        DeValue::String(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            wrong_type(sink, path, node, "a number", None);
            return None;
        }
    };
    if value.is_none() {
        sink.push(
            Diagnostic::new(codes::OUT_OF_RANGE, node.span(), format!("`{path}` is out of range"))
                .label("must be a finite number"),
        );
    }
    // Minus zero and zero are one number, so they must have one encoding.
    value.map(|value| Located { value: value + 0.0, span: node.span() })
}

/// Reads a quantity, which is a string.
pub(crate) fn quantity<T>(
    sink: &mut Sink,
    path: &str,
    node: &Node<'_>,
    what: &str,
    example: &str,
    read: fn(&str) -> Result<T, UnitError>,
) -> Option<Located<T>> {
    let DeValue::String(text) = node.get_ref() else {
        wrong_type(sink, path, node, &format!("{what} in a string"), Some(format!("write it as \"{example}\"")));
        return None;
    };
    match read(text) {
        Ok(value) => Some(Located { value, span: node.span() }),
        Err(UnitError { what: why, help }) => {
            sink.push(
                Diagnostic::new(codes::BAD_QUANTITY, node.span(), format!("`{path}` is not {what}"))
                    .label(why)
                    .help(help),
            );
            None
        }
    }
}
