//! What every command gets: which home, how to speak.
//!
//! stdout is the answer and stderr the story: commands write the one with [`Context::answer`] and the other with
//! [`Context::say`], and never print by themselves.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iptl_node::Running;
use serde_json::{Value, json};

use crate::exit::Error;

/// After how long a wait is announced, at most.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(800);

/// Between two lines about the same wait where there is no terminal.
const REPEAT_EVERY: Duration = Duration::from_secs(10);

/// Between two looks at how far something is, where it is shown on a terminal.
const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR says otherwise.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Which home, how to speak.
pub struct Context {
    /// Home as it was given or found, before a lab under it is looked for.
    pub base: PathBuf,
    /// Only the CID or name on stdout, nothing on stderr but errors.
    pub quiet: bool,
    /// Answers as JSON.
    pub json: bool,
    /// Colour on stderr and stdout.
    pub color: bool,
    /// Progress bars.
    pub progress: bool,
    /// Nodes that this process runs for a command.
    nodes: Mutex<Vec<Arc<Running>>>,
}

impl Context {
    /// Makes the context from the global flags.
    pub fn new(home: Option<PathBuf>, quiet: bool, json: bool, color: ColorChoice, no_progress: bool) -> Context {
        let terminal = std::io::stderr().is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let color = match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto if set("NO_COLOR") => false,
            ColorChoice::Auto if set("CLICOLOR_FORCE") => true,
            ColorChoice::Auto => terminal && std::io::stdout().is_terminal(),
        };
        let base = home.unwrap_or_else(default_home);
        let base = std::path::absolute(&base).unwrap_or(base);
        let progress = terminal && !no_progress && !quiet;
        Context { base, quiet, json, color, progress, nodes: Mutex::default() }
    }

    /// Keeps a node of this process until the command is over.
    pub fn keep_node(&self, node: Arc<Running>) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node);
    }

    /// Stops the nodes of this process in order: blocks are flushed, workers end.
    pub async fn stop_nodes(&self) {
        let nodes = std::mem::take(&mut *self.nodes.lock().unwrap_or_else(PoisonError::into_inner));
        for node in nodes {
            // Whoever still asks it loses it when the process ends.
            if let Some(node) = Arc::into_inner(node) {
                node.stop().await;
            }
        }
    }

    /// Returns the home of the node that commands talk to: the orchestrator of a lab on this computer where one was
    /// made under the home, else the home itself.
    pub fn home(&self) -> PathBuf {
        if self.base.join(crate::commands::dev::STATE_FILE).exists() {
            self.base.join("orchestrator")
        } else {
            self.base.clone()
        }
    }

    /// Returns the home of the lab in one process that `run --local` uses.
    pub fn local_home(&self) -> PathBuf {
        self.base.join("local")
    }

    /// Writes a line of the answer.
    pub fn answer(&self, text: impl std::fmt::Display) {
        // A closed pipe is the reader's wish to hear no more.
        let _ = match std::io::stdout().is_terminal() {
            true => writeln!(std::io::stdout().lock(), "{}", crate::ui::harmless(&text.to_string())),
            false => writeln!(std::io::stdout().lock(), "{text}"),
        };
    }

    /// Writes an object of the answer, with its schema first.
    pub fn answer_json(&self, kind: &str, mut body: Value) {
        if let Some(map) = body.as_object_mut() {
            let mut tagged = serde_json::Map::new();
            tagged.insert("schema".to_owned(), json!(format!("iptl.{kind}/1")));
            tagged.append(map);
            body = Value::Object(tagged);
        }
        self.answer(body);
    }

    /// Writes a line of the story.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "{}", crate::ui::harmless(&text.to_string()));
        }
    }

    /// Writes the next useful command, where there are people to read it.
    pub fn next(&self, text: impl std::fmt::Display) {
        if !self.json {
            self.say(format!("  next: {text}"));
        }
    }

    /// Colours a text where colour is on; `style` is the number of an SGR sequence.
    pub fn paint(&self, style: &str, text: &str) -> String {
        if self.color { format!("\u{1b}[{style}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Awaits something and says what it waits for when that takes longer than a second.
    pub async fn waiting<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let started = std::time::Instant::now();
        self.watching(what, || crate::ui::duration(millis(started.elapsed())), work).await
    }

    /// Awaits something and says, when that takes longer than a second and then again and again, how far it is.
    pub async fn watching<T>(&self, what: &str, mut far: impl FnMut() -> String, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let bar = self.progress.then(|| spinner(what));
        let mut pause = ANNOUNCE_AFTER;
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                () = tokio::time::sleep(pause) => match &bar {
                    Some(bar) => {
                        bar.set_message(format!("{what} ({})", far()));
                        pause = REDRAW_EVERY;
                    }
                    None => {
                        self.say(format!("… {what} ({})", far()));
                        pause = REPEAT_EVERY;
                    }
                }
            }
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        result
    }

    /// Reports an error: a diagnostic on stderr, and with `--json` an object on stdout.
    pub fn report(&self, error: &Error) {
        let theme = match (self.color, std::io::stderr().is_terminal()) {
            (true, _) => miette::GraphicalTheme::unicode(),
            (false, true) => miette::GraphicalTheme::unicode_nocolor(),
            (false, false) => miette::GraphicalTheme::unicode_nocolor(),
        };
        let handler = miette::GraphicalReportHandler::new_themed(theme).with_width(110);
        let mut text = String::new();
        for diagnostic in &error.diagnostics {
            // Writing into a string cannot fail.
            let _ = handler.render_report(&mut text, diagnostic);
        }
        let _ = handler.render_report(&mut text, error);
        let _ = write!(std::io::stderr().lock(), "{}", crate::ui::harmless(&text));
        if self.json {
            let diagnostics: Vec<Value> = error
                .diagnostics
                .iter()
                .map(|d| {
                    json!({
                        "code": d.code, "message": d.message, "help": d.help,
                        "start": d.span.start, "end": d.span.end,
                    })
                })
                .collect();
            self.answer_json(
                "error",
                json!({
                    "code": error.code, "message": error.message, "help": error.help,
                    "exit": error.exit.code(), "diagnostics": diagnostics,
                }),
            );
        }
    }
}

/// Returns a moving line for a wait of unknown length.
fn spinner(what: &str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new_spinner().with_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Returns a duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns where a node lives when nobody says: the data directory of the user.
fn default_home() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(data) = from("XDG_DATA_HOME").filter(|p| p.is_absolute()) {
        return data.join("iptl");
    }
    match from("HOME") {
        Some(home) => home.join(".local/share/iptl"),
        None => Path::new("/var/lib/iptl").to_path_buf(),
    }
}
