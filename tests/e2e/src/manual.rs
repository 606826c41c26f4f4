//! Manuals that are executed: prose, and blocks of commands with what they print.
//!
//! A block starts with ` ```console `. In it, a line `$ command` is run by a shell, and the lines after it are what it
//! prints, stdout and stderr together; where there are none, it may print what it likes. `[..]` stands for anything
//! within a line, a line `...` for any number of lines, and `# exits with N` behind a command for an exit that is not
//! zero. A line that begins with `…` tells of the time that something takes, and is said where it takes long: it does not
//! count. A manual starts in an empty directory, with a home of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Output, program, repository, run};

/// A command of a manual with what it must print.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    exit: i32,
}

/// Executes a manual; fails the test at the first step that does something else.
pub fn execute(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let steps = parse(&text);
    assert!(!steps.is_empty(), "{} has no commands", path.display());
    let place = Place::new();
    for step in steps {
        let output = place.run(&step.command);
        let at = format!("{}:{}: $ {}", path.display(), step.line, step.command);
        assert_eq!(output.code, step.exit, "{at}\n{}", output.stdout);
        let actual: Vec<&str> =
            output.stdout.lines().map(str::trim_end).filter(|line| !line.starts_with("… ")).collect();
        let expected: Vec<&str> = step.expected.iter().map(String::as_str).collect();
        assert!(
            expected.is_empty() || matches_lines(&expected, &actual),
            "{at}\n── expected\n{}\n── printed\n{}",
            expected.join("\n"),
            actual.join("\n")
        );
    }
}

/// Where a manual runs: an empty directory, with a home beside it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("iptl-").tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("work")).expect("it is empty");
        Place { dir }
    }

    fn run(&self, command: &str) -> Output {
        let program = program();
        let folder = program.parent().expect("a program has a folder");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(folder.to_path_buf()).chain(std::env::split_paths(&path));
        let mut shell = Command::new("sh");
        // The next command starts where this one ends, as in a shell that stays open.
        let script =
            "exec 2>&1; cd \"$(cat ../cwd 2>/dev/null || pwd)\"; eval \"$1\"; code=$?; pwd >\"$2\"; exit $code";
        let cwd = self.dir.path().join("cwd");
        shell.args(["-c", script, "sh", command]).arg(&cwd).current_dir(self.dir.path().join("work"));
        shell.env("PATH", std::env::join_paths(paths).expect("no path has a colon"));
        shell.env("IPTL_HOME", self.dir.path().join("home")).env("IPTL_PLANS", repository().join("plans"));
        shell.env_remove("CARGO_TARGET_DIR").env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        // What runs on behind a command must not hold its output open.
        shell.stdin(Stdio::null());
        run(&mut shell)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for folder in ["home", "work"] {
            crate::stop(&self.dir.path().join(folder));
        }
    }
}

fn parse(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            inside = !inside && line.trim() == "```console";
            continue;
        }
        if !inside {
            continue;
        }
        if let Some(command) = line.strip_prefix("$ ") {
            let exit = command.split_once("# exits with ").and_then(|(_, n)| n.trim().parse().ok()).unwrap_or(0);
            steps.push(Step { line: number + 1, command: command.to_owned(), expected: Vec::new(), exit });
        } else if let Some(step) = steps.last_mut() {
            step.expected.push(line.trim_end().to_owned());
        }
    }
    for step in &mut steps {
        while step.expected.last().is_some_and(String::is_empty) {
            step.expected.pop();
        }
    }
    steps
}

/// Compares lines, `...` standing for any number of them.
fn matches_lines(expected: &[&str], actual: &[&str]) -> bool {
    match (expected, actual) {
        ([], []) => true,
        (["...", rest @ ..], _) => (0..=actual.len()).any(|skip| matches_lines(rest, &actual[skip..])),
        ([first, rest @ ..], [line, more @ ..]) => matches_line(first, line) && matches_lines(rest, more),
        (_, _) => false,
    }
}

/// Compares one line, `[..]` standing for anything.
fn matches_line(expected: &str, actual: &str) -> bool {
    let Some((head, rest)) = expected.split_once("[..]") else { return expected == actual };
    let Some(tail) = actual.strip_prefix(head) else { return false };
    tail.char_indices().map(|(i, _)| i).chain([tail.len()]).any(|i| matches_line(rest, &tail[i..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_what_differs() {
        assert!(matches_line("a [..] c", "a b c"));
        assert!(matches_line("[..]", ""));
        assert!(matches_line("x[..]", "x"));
        assert!(!matches_line("a [..] c", "a b d"));
        assert!(matches_lines(&["a", "...", "d"], &["a", "b", "c", "d"]));
        assert!(matches_lines(&["..."], &[]));
        assert!(!matches_lines(&["a", "..."], &["b"]));
    }

    #[test]
    fn a_block_is_read_into_steps() {
        let steps = parse("prose\n```console\n$ one\nout\n\n$ two    # exits with 3\n```\n```sh\n$ not this\n```\n");
        assert_eq!(steps.len(), 2);
        assert_eq!((steps[0].command.as_str(), steps[0].expected.as_slice()), ("one", ["out".to_owned()].as_slice()));
        assert_eq!((steps[1].exit, steps[1].line), (3, 6));
    }
}
