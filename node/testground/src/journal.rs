//! What an instance says about itself, on stdout, to the sync service and in files, and how it therefore ended.
//!
//! Three SDKs write events as JSON lines in three dialects, and publish some of them for the run; [`Journal`] takes
//! each once, whichever way it came first. What an SDK says about success counts more than the status of its process,
//! which is zero after most failures. Everything else on stdout is the log.
//!
//! Records become the lab's own lines of events and metrics, the same as those of Wasm instances. Nothing here opens a
//! file; [`outputs`](crate::outputs) does.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use iptl_dag::model::Exit;
use iptl_runner::files::CellFiles;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::request::is_shallow;

/// Longest line in bytes that is looked at; a longer one is log, or nothing where a file holds records.
pub const MAX_LINE: usize = 256 << 10;

/// Longest reason of a failure that is kept, in bytes.
const MAX_REASON: usize = 1024;

/// Longest name of an event or a metric in bytes, as for Wasm instances.
const MAX_NAME: usize = 256;

/// Longest unit of a metric in bytes, as for Wasm instances.
const MAX_UNIT: usize = 32;

/// Published events that wait for the same on stdout; beyond it the oldest is taken as one of its own.
const MAX_UNPAIRED: usize = 64;

/// Events that Testground's SDKs know.
const KINDS: [&str; 7] = [
    "start_event",
    "message_event",
    "success_event",
    "failure_event",
    "crash_event",
    "stage_start_event",
    "stage_end_event",
];

/// The records of one instance.
#[derive(Debug)]
pub struct Journal {
    limit: u64,
    used: u64,
    said: Said,
    /// Published events without their twin on stdout.
    unpaired: VecDeque<(u64, Event)>,
    /// Events on stdout without their published twin, by kind.
    unpublished: BTreeMap<&'static str, u64>,
    events: Vec<u8>,
    metrics: Vec<u8>,
}

/// What it said of its success.
#[derive(Debug, Default)]
struct Said {
    anything: bool,
    success: bool,
    failure: Option<String>,
}

#[derive(Debug)]
struct Event {
    kind: &'static str,
    data: Box<RawValue>,
}

impl Journal {
    /// Keeps as many bytes of events and metrics as the instance may record.
    pub fn new(record_bytes: u64) -> Journal {
        Journal {
            limit: record_bytes,
            used: 0,
            said: Said::default(),
            unpaired: VecDeque::new(),
            unpublished: BTreeMap::new(),
            events: Vec::new(),
            metrics: Vec::new(),
        }
    }

    /// Takes a line of stdout, without its end, that came `at_us` microseconds after the start of the cell. Returns
    /// what of it belongs into the log: plain lines as they are, and the text of messages.
    pub fn line<'a>(&mut self, at_us: u64, line: &'a str) -> Option<Cow<'a, str>> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            event: &'a RawValue,
        }
        let looks_like_one = line.len() <= MAX_LINE && line.starts_with('{') && line.contains("_event\"");
        let event = looks_like_one
            .then(|| serde_json::from_str::<Line<'_>>(line).ok())
            .flatten()
            .and_then(|line| Event::read(line.event.get()));
        let Some(event) = event else { return Some(Cow::Borrowed(line)) };
        let text = (event.kind == "message_event").then(|| Cow::Owned(event.field("message")));
        if let Some(at) = self.unpaired.iter().position(|(_, published)| published.kind == event.kind) {
            self.unpaired.remove(at);
        } else {
            *self.unpublished.entry(event.kind).or_default() += 1;
        }
        self.said.hear(&event);
        self.record(at_us, &event);
        text
    }

    /// Takes an event that the instance published for the run.
    pub fn published(&mut self, at_us: u64, event: &str) {
        let Some(event) = Event::read(event) else { return };
        self.said.hear(&event);
        match self.unpublished.get_mut(event.kind) {
            Some(count) if *count > 0 => *count -= 1,
            Some(_) | None => self.unpaired.push_back((at_us, event)),
        }
        if self.unpaired.len() > MAX_UNPAIRED {
            self.record_unpaired();
        }
    }

    /// Takes an event of the lab's own, which counts as one that the instance records.
    pub fn note(&mut self, at_us: u64, name: &str, data: &RawValue) {
        self.record_as(at_us, name, data);
    }

    /// Takes a line of `run.out`: events of our own SDK. What other SDKs write there stands on stdout as well.
    ///
    /// `start_ns` is the start of the cell in nanoseconds since 1970, by the clock that the instance has too.
    pub fn own_event(&mut self, line: &str, start_ns: u64) {
        #[derive(Deserialize)]
        struct Line<'a> {
            ts: u64,
            #[serde(borrow)]
            event: Own<'a>,
        }
        #[derive(Deserialize)]
        struct Own<'a> {
            #[serde(borrow)]
            iptl_event: Named<'a>,
        }
        #[derive(Deserialize)]
        struct Named<'a> {
            name: String,
            #[serde(borrow)]
            data: &'a RawValue,
        }
        if line.len() > MAX_LINE || !line.contains("\"iptl_event\"") || !is_shallow(line) {
            return;
        }
        let Ok(Line { ts, event: Own { iptl_event: Named { name, data } } }) = serde_json::from_str(line) else {
            return;
        };
        if is_name(&name) {
            self.record_as(since(ts, start_ns), &name, data);
        }
    }

    /// Takes a line of `results.out`: the measures of a metric at one time.
    ///
    /// A measure called `value` is the metric itself, others are metrics of their own: `latency.p95`. Tags behind the
    /// name are left out; the file itself has them.
    pub fn result(&mut self, line: &str, start_ns: u64) {
        #[derive(Deserialize)]
        struct Line {
            ts: u64,
            name: String,
            #[serde(default)]
            unit: Option<String>,
            measures: BTreeMap<String, Option<f64>>,
        }
        if line.len() > MAX_LINE {
            return;
        }
        let Ok(Line { ts, name, unit, measures }) = serde_json::from_str(line) else { return };
        // Our own SDK, which alone writes a unit, knows no tags.
        let name = if unit.is_some() { &name } else { name.split(',').next().unwrap_or_default() };
        let unit = unit.unwrap_or_default();
        if unit.len() > MAX_UNIT {
            return;
        }
        for (measure, value) in &measures {
            let name = if measure == "value" { Cow::Borrowed(name) } else { Cow::Owned(format!("{name}.{measure}")) };
            let Some(value) = value.filter(|value| value.is_finite() && is_name(&name)) else { continue };
            let mut line = Vec::new();
            CellFiles::metric_line(&mut line, since(ts, start_ns), &name, value, &unit);
            if self.charge(line.len()) {
                self.metrics.append(&mut line);
            }
        }
    }

    /// Returns the lines of events since the last time; what was published and never stood on stdout comes at the end,
    /// after [`finish`](Journal::finish).
    pub fn take_events(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.events)
    }

    /// Returns the lines of metrics since the last time.
    pub fn take_metrics(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.metrics)
    }

    /// Returns whether it recorded more than it may: it is to be ended, as a Wasm instance would be.
    pub fn is_over_limit(&self) -> bool {
        self.used > self.limit
    }

    /// Takes note that nothing comes any more.
    pub fn finish(&mut self) {
        while !self.unpaired.is_empty() {
            self.record_unpaired();
        }
    }

    /// Returns how the instance ended, from how its process did: the one rule for all SDKs.
    ///
    /// 1. A process that did not end by itself (stopped, out of memory, out of time …) ended so, whatever it said.
    /// 2. One that recorded more than it may ended so.
    /// 3. One that said nothing as Testground's SDKs do is judged by its status.
    /// 4. Else what it said counts and the status is only recorded: the first failure or crash is a failure, whatever
    ///    was said before or after; success is success, said once or often; neither of them is a failure.
    pub fn exit(&self, process: Exit) -> Exit {
        match process {
            Exit::Exited { .. } if self.is_over_limit() => Exit::TooMuchOutput { what: "records".to_owned() },
            Exit::Exited { code } if self.said.anything => Exit::Reported { code, failure: self.said.verdict() },
            Exit::Exited { .. }
            | Exit::Reported { .. }
            | Exit::Trapped { .. }
            | Exit::Signalled { .. }
            | Exit::Unwell { .. }
            | Exit::StackOverflow {}
            | Exit::OutOfMemory {}
            | Exit::OutOfCpu {}
            | Exit::OutOfTime {}
            | Exit::TooMuchOutput { .. }
            | Exit::Stopped { .. }
            | Exit::WorkerDied { .. }
            | Exit::NotStarted { .. } => process,
        }
    }

    fn record_unpaired(&mut self) {
        if let Some((at_us, event)) = self.unpaired.pop_front() {
            self.record(at_us, &event);
        }
    }

    fn record(&mut self, at_us: u64, event: &Event) {
        self.record_as(at_us, event.kind, &event.data);
    }

    fn record_as(&mut self, at_us: u64, name: &str, data: &RawValue) {
        let mut line = Vec::new();
        CellFiles::event_line(&mut line, at_us, name, data);
        // JSON may have ends of line between its tokens, and a record is one line.
        let end = line.len() - 1;
        line[..end].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        if self.charge(line.len()) {
            self.events.append(&mut line);
        }
    }

    /// Counts a record; returns whether it may be kept.
    fn charge(&mut self, bytes: usize) -> bool {
        self.used = self.used.saturating_add(bytes as u64);
        !self.is_over_limit()
    }
}

impl Said {
    fn hear(&mut self, event: &Event) {
        self.anything = true;
        let failure = match event.kind {
            "success_event" => {
                self.success = true;
                return;
            }
            "failure_event" => event.field("error"),
            "crash_event" => format!("crash: {}", event.field("error")),
            _ => return,
        };
        if self.failure.is_none() {
            let failure = if failure.is_empty() { "it said that it failed".to_owned() } else { failure };
            self.failure = Some(failure[..failure.floor_char_boundary(MAX_REASON)].to_owned());
        }
    }

    fn verdict(&self) -> Option<String> {
        match &self.failure {
            Some(reason) => Some(reason.clone()),
            None if self.success => None,
            None => Some("it ended without saying that it succeeded".to_owned()),
        }
    }
}

impl Event {
    /// Reads `{"success_event":{"group":"single"}}`; none where it is no event that an SDK writes.
    fn read(json: &str) -> Option<Event> {
        if json.len() > MAX_LINE || !json.trim_start().starts_with('{') || !is_shallow(json) {
            return None;
        }
        let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(json).ok()?;
        let (kind, data) = KINDS.iter().find_map(|kind| Some((*kind, *fields.get(*kind)?)))?;
        // Keys that an SDK leaves empty may be there as null.
        data.get().starts_with('{').then(|| Event { kind, data: data.to_owned() })
    }

    /// Returns a field as text; empty where there is none.
    fn field(&self, name: &str) -> String {
        let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(self.data.get()).unwrap_or_default();
        let Some(value) = fields.get(name) else { return String::new() };
        serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned())
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME
}

/// Microseconds since the start, for a time in nanoseconds since 1970.
fn since(ts: u64, start_ns: u64) -> u64 {
    ts.saturating_sub(start_ns) / 1000
}
