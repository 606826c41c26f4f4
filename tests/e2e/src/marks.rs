//! Marks: words that instances leave in places of their own, and that a test counts while they run.
//!
//! No word of the lab is in these counts: no log of a node, no receipt, no result. A mark is what an instance's own program
//! wrote, and it is taken in while it is there: what a lab clears away, begins anew or forgets afterwards was counted.
//!
//! A component has a directory of its own, to which the process that runs it appends what it says before that call of the
//! program returns. [`Marks::of_components`] keeps the file from the moment it is there: one that was removed is counted
//! still, and one in its place is another. What a container says comes to such a file through its lablet; so it has a named
//! pipe of the test's ([`Marks::of_containers`]) in the directory that its lablet mounts, and what its program writes there is
//! in the test's hands without anybody between them but the kernel. Its lines are `<group>/<index> <word>`; who runs
//! [`BEFORE_MARKS`] first finds the pipe.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Name of the pipe in the directory that a lablet mounts.
const PIPE: &str = "marks";

/// Time between two looks for new places. A component that ends well is there for longer than a second.
const LOOK: Duration = Duration::from_millis(20);

/// What a container's shell does before its first mark: it waits for its pipe, and says how to leave one.
pub const BEFORE_MARKS: &str = "while [ ! -p /.iptl/lab/marks ]; do sleep 0.05; done; \
                                mark() { echo \"$IPTL_GROUP/$IPTL_INDEX $1\" >> /.iptl/lab/marks; }";

/// Words by instance.
pub type Words = BTreeMap<String, Vec<String>>;

/// Counts marks of instances on some nodes until it is dropped.
pub struct Marks {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Homes of the nodes.
    homes: Vec<PathBuf>,
    /// The pipe, of which each container gets another name; components have none.
    pipe: Option<PathBuf>,
    seen: Mutex<Seen>,
    is_over: AtomicBool,
}

#[derive(Default)]
struct Seen {
    /// Files of components by device and number, which nobody else gets while they are held.
    files: BTreeMap<(u64, u64), Diary>,
    /// Lines of containers.
    lines: Vec<String>,
    /// Executions whose marks were taken.
    taken: BTreeSet<String>,
}

/// The file of one start of one component.
struct Diary {
    execution: String,
    instance: String,
    file: File,
    text: Vec<u8>,
}

impl Marks {
    /// Begins to count what components say on nodes with these homes.
    pub fn of_components(homes: impl IntoIterator<Item = PathBuf>) -> Marks {
        Marks::start(homes.into_iter().collect(), None)
    }

    /// Begins to count what containers say on nodes with these homes. `dir` is on the same file system as they are, and
    /// holds the pipe.
    #[track_caller]
    pub fn of_containers(dir: &Path, homes: impl IntoIterator<Item = PathBuf>) -> Marks {
        let pipe = dir.join(PIPE);
        let made = Command::new("mkfifo").args(["-m", "666"]).arg(&pipe).status().expect("mkfifo is everywhere");
        assert!(made.success(), "cannot make {}", pipe.display());
        Marks::start(homes.into_iter().collect(), Some(pipe))
    }

    fn start(homes: Vec<PathBuf>, pipe: Option<PathBuf>) -> Marks {
        let shared = Shared { homes, pipe, seen: Mutex::default(), is_over: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let looking = shared.clone();
        let mut threads = vec![std::thread::spawn(move || {
            while !looking.is_over.load(Ordering::Relaxed) {
                looking.look();
                std::thread::sleep(LOOK);
            }
        })];
        if let Some(pipe) = &shared.pipe {
            // Whoever can write too does not find an end where the last container has closed it.
            let pipe = File::options().read(true).write(true).open(pipe).expect("the pipe is ours");
            let reading = shared.clone();
            threads.push(std::thread::spawn(move || reading.read(pipe)));
        }
        Marks { shared, threads }
    }

    /// Returns what the components of an execution have said so far, and containers since marks were taken last.
    pub fn now(&self, execution: &str) -> Words {
        self.shared.look();
        let seen = self.shared.seen();
        let mut words = Words::new();
        for file in seen.files.values().filter(|file| file.execution == execution) {
            let said = file.text.split(|byte| *byte == b'\n').filter_map(|line| {
                let line: serde_json::Value = serde_json::from_slice(line).ok()?;
                line["line"].as_str().map(str::to_owned)
            });
            words.entry(file.instance.clone()).or_default().extend(said);
        }
        for line in &seen.lines {
            let (instance, word) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?} is no mark"));
            words.entry(instance.to_owned()).or_default().push(word.to_owned());
        }
        words
    }

    /// Returns the same once an execution is over, and forgets it.
    pub fn take(&self, execution: &str) -> Words {
        let words = self.now(execution);
        let mut seen = self.shared.seen();
        seen.files.retain(|_, file| file.execution != execution);
        seen.lines.clear();
        seen.taken.insert(execution.to_owned());
        words
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // It wakes who reads.
        let wake = |pipe| File::options().write(true).open(pipe).and_then(|mut pipe| pipe.write_all(b"\n"));
        if self.shared.pipe.as_ref().is_none_or(|pipe| wake(pipe).is_ok()) {
            for thread in std::mem::take(&mut self.threads) {
                // What went wrong there was told where it did.
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in lines of containers until the end.
    fn read(&self, mut pipe: File) {
        let (mut part, mut rest) = ([0; 4096], Vec::new());
        while let Ok(count) = pipe.read(&mut part) {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            rest.extend_from_slice(&part[..count]);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.seen().lines.push(String::from_utf8_lossy(&line[..end]).into_owned());
            }
        }
    }

    /// Finds new places, and takes in what is new in those that are known.
    fn look(&self) {
        match &self.pipe {
            Some(pipe) => self.hand_out(pipe),
            None => self.look_at_files(),
        }
    }

    /// Gives each container the pipe.
    fn hand_out(&self, pipe: &Path) {
        for cell in self.homes.iter().flat_map(|home| entries(&home.join("docker/cells"))) {
            for lab in entries(&cell).iter().map(|instance| instance.join("lab")).filter(|lab| lab.is_dir()) {
                // It is there already, or is going away.
                let _ = std::fs::hard_link(pipe, lab.join(PIPE));
            }
        }
    }

    fn look_at_files(&self) {
        let mut seen = self.seen();
        for cell in self.homes.iter().flat_map(|home| entries(&home.join("scratch"))) {
            let name = cell.file_name().unwrap_or_default().to_string_lossy();
            // `<execution>-<epoch>-<attempt>`
            let execution = name.split('-').next().unwrap_or_default().to_owned();
            if !seen.taken.contains(&execution) {
                entries(&cell).iter().flat_map(|group| entries(group)).for_each(|of| seen.find(&execution, &of));
            }
        }
        for file in seen.files.values_mut() {
            // What was read before an error still tells something.
            let _ = file.file.read_to_end(&mut file.text);
        }
    }
}

impl Seen {
    /// Keeps what a component writes to its directory, where that is not known yet.
    fn find(&mut self, execution: &str, dir: &Path) {
        let path = dir.join("logs.jsonl");
        let key = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        if std::fs::metadata(&path).is_ok_and(|meta| self.files.contains_key(&key(meta))) {
            return;
        }
        let Ok(file) = File::open(&path) else { return };
        let Ok(meta) = file.metadata() else { return };
        let mut names = dir.iter().rev().map(|name| name.to_string_lossy());
        let (Some(index), Some(group)) = (names.next(), names.next()) else { return };
        let (execution, instance) = (execution.to_owned(), format!("{group}/{index}"));
        self.files.insert(key(meta), Diary { execution, instance, file, text: Vec::new() });
    }
}

/// Returns what is in a directory; nothing where it is gone.
fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Returns how often a word is among those of an instance.
pub fn said(words: &Words, instance: &str, word: &str) -> u32 {
    let said = words.get(instance).into_iter().flatten().filter(|said| *said == word);
    u32::try_from(said.count()).expect("words are few")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Home, until};

    /// Appends a line as the process does that runs a component.
    fn append(dir: &Path, word: &str) {
        std::fs::create_dir_all(dir).expect("the home is writable");
        let mut file = File::options().create(true).append(true).open(dir.join("logs.jsonl")).expect("it is writable");
        writeln!(file, "{{\"t\":1,\"stream\":\"out\",\"line\":\"{word}\"}}").expect("it is writable");
    }

    #[test]
    fn what_a_component_said_counts_after_its_file_is_gone_and_again_in_another_one() {
        let home = Home::new();
        let marks = Marks::of_components([home.path().to_owned()]);
        let dir = home.path().join("scratch/execution-1-1/work/3");
        append(&dir, "began");
        until("a first mark", || (said(&marks.now("execution"), "work/3", "began") == 1).then_some(()));
        std::fs::remove_dir_all(home.path().join("scratch")).expect("it is ours");
        append(&dir, "began");
        append(&dir, "rested");
        let words = marks.take("execution");
        assert_eq!((said(&words, "work/3", "began"), said(&words, "work/3", "rested")), (2, 1), "{words:?}");
        assert_eq!(marks.now("execution"), Words::new(), "they were taken");
    }

    #[test]
    fn what_a_container_said_is_in_the_hands_of_the_test() {
        let home = Home::new();
        let marks = Marks::of_containers(home.path(), [home.path().to_owned()]);
        let lab = home.path().join("docker/cells/key/0/lab");
        std::fs::create_dir_all(&lab).expect("the home is writable");
        let script = BEFORE_MARKS.replace("/.iptl/lab", &lab.display().to_string()) + "; mark began; mark began";
        let shell = Command::new("sh").args(["-c", &script]).env("IPTL_GROUP", "work").env("IPTL_INDEX", "3").status();
        assert!(shell.expect("a shell").success());
        until("both marks", || (said(&marks.now("any"), "work/3", "began") == 2).then_some(()));
    }
}
