//! One program and the libraries that it needs, found the way the dynamic loader finds them.
//!
//! Nothing is executed: names are read from the files, and looked for in the directories of the program, of the caller, of
//! `ld.so.conf`, and in those of the system.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use super::elf::{Architecture, Program};
use super::{BinaryOptions, BuildError};

/// Directory of the image in which the program lies.
const PROGRAM_DIR: &str = "app";

/// Directory of the image in which the libraries lie: one, so that one variable finds them all.
pub(super) const LIBRARY_DIR: &str = "app/lib";

/// Most libraries of a program: desktops have 300.
const MAX_LIBRARIES: usize = 2000;

/// Deepest inclusion of one `ld.so.conf` in another.
const MAX_INCLUDES: usize = 8;

/// Why a file cannot become an image with one program.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// It cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// Path in question.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is a script.
    #[error(
        "{} is a script, which needs its interpreter beside it; put both into a directory and use --rootfs",
        path.display()
    )]
    Script {
        /// Path in question.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is {what}; --binary takes an ELF program for Linux", path.display())]
    NotElf {
        /// Path in question.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It is a library.
    #[error("{} is a shared library; --binary takes a program", path.display())]
    Library {
        /// Path in question.
        path: PathBuf,
    },
    /// It is for a machine for which there are no lablets.
    #[error("{} is for {machine}; programs for x86-64 and 64-bit ARM can run", path.display())]
    Machine {
        /// Path in question.
        path: PathBuf,
        /// The machine.
        machine: String,
    },
    /// It cannot be read as what it says that it is.
    #[error("{} is a damaged program: {reason}", path.display())]
    Damaged {
        /// Path in question.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It needs libraries, and they are not to be packed.
    #[error(
        "{} is dynamically linked: it needs {interpreter} and {}; add --with-libs to pack them, or link it statically \
         (Rust: --target x86_64-unknown-linux-musl; Go: CGO_ENABLED=0)",
        path.display(),
        if needed.is_empty() { "no library".to_owned() } else { needed.join(", ") }
    )]
    Dynamic {
        /// Path in question.
        path: PathBuf,
        /// Program that loads it.
        interpreter: String,
        /// Libraries that it names.
        needed: Vec<String>,
    },
    /// A library is nowhere.
    #[error("{library}, which {} needs, is in none of the directories where libraries are looked for", by.display())]
    MissingLibrary {
        /// Name of the library.
        library: String,
        /// What needs it.
        by: PathBuf,
    },
    /// The program that loads it is nowhere.
    #[error("{interpreter}, which loads {}, is not on this machine", path.display())]
    MissingInterpreter {
        /// Path in question.
        path: PathBuf,
        /// The program that loads it.
        interpreter: String,
    },
    /// A name that cannot be a path in the image.
    #[error("{} wants {name:?}, which cannot be a path in the image", path.display())]
    Name {
        /// Path in question.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// More libraries than any program has.
    #[error("{} needs more than {MAX_LIBRARIES} libraries", path.display())]
    TooMany {
        /// Path in question.
        path: PathBuf,
    },
}

/// What goes into the image.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) architecture: Architecture,
    /// Path of the program in the image.
    pub(super) program: String,
    /// Files by their path in the image.
    pub(super) files: BTreeMap<String, PathBuf>,
    pub(super) has_libraries: bool,
}

/// Finds out what a program needs.
pub(super) fn pack(path: &Path, options: &BinaryOptions) -> Result<Packed, BuildError> {
    let program = read(path)?;
    if !program.is_program {
        return Err(BinaryError::Library { path: path.into() }.into());
    }
    let file_name = || path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let bad_name = |name: &str| BinaryError::Name { path: path.into(), name: name.to_owned() };
    let name = options.name.clone().or_else(file_name).ok_or_else(|| bad_name(""))?;
    let as_path = format!("{PROGRAM_DIR}/{name}");
    // The libraries' directory stands beside the program.
    if name.contains('/')
        || name.starts_with(".wh.")
        || as_path == LIBRARY_DIR
        || inside(&as_path).as_ref() != Some(&as_path)
    {
        return Err(bad_name(&name).into());
    }
    let mut packed = Packed {
        architecture: program.architecture,
        files: BTreeMap::from([(as_path.clone(), path.to_path_buf())]),
        program: as_path,
        has_libraries: false,
    };
    let Some(interpreter) = program.interpreter.clone() else {
        if !program.needed.is_empty() {
            let reason = "it needs libraries and names no program that loads them".to_owned();
            return Err(BinaryError::Damaged { path: path.into(), reason }.into());
        }
        return Ok(packed);
    };
    if !options.with_libs {
        let needed = program.needed;
        return Err(BinaryError::Dynamic { path: path.into(), interpreter, needed }.into());
    }
    let loader = inside(&interpreter).filter(|_| interpreter.starts_with('/')).ok_or_else(|| bad_name(&interpreter))?;
    if !Path::new(&interpreter).is_file() {
        return Err(BinaryError::MissingInterpreter { path: path.into(), interpreter }.into());
    }
    packed.files.insert(loader, PathBuf::from(&interpreter));
    Search::new(&program, &interpreter, options).find_all(path, program, &mut packed)?;
    Ok(packed)
}

fn read(path: &Path) -> Result<Program, BuildError> {
    let failed = |source| BinaryError::Read { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(BinaryError::NotElf { path: path.into(), what: "not a file" }.into());
    }
    Ok(Program::read(file, path)?)
}

/// Returns a path below the root of the image; `None` where it leads out of it.
fn inside(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty() && !path.contains('\0')).then(|| parts.join("/"))
}

struct Search<'a> {
    architecture: Architecture,
    options: &'a BinaryOptions,
    /// Directories of the system, in order.
    system: Vec<PathBuf>,
    /// Names under which the loader knows itself.
    loader: &'a str,
}

impl<'a> Search<'a> {
    fn new(program: &Program, interpreter: &'a str, options: &'a BinaryOptions) -> Search<'a> {
        let mut system = Vec::new();
        read_conf(Path::new("/etc/ld.so.conf"), 0, &mut system);
        let triple = match program.architecture {
            Architecture::Amd64 => "x86_64-linux-gnu",
            Architecture::Arm64 => "aarch64-linux-gnu",
        };
        for directory in ["/lib", "/usr/lib"] {
            system.push(format!("{directory}/{triple}").into());
        }
        system.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"].map(PathBuf::from));
        let loader = interpreter.rsplit('/').next().unwrap_or(interpreter);
        Search { architecture: program.architecture, options, system, loader }
    }

    /// Adds everything that the program needs, and what that needs.
    fn find_all(&self, path: &Path, program: Program, packed: &mut Packed) -> Result<(), BuildError> {
        let mut known = BTreeSet::new();
        let program_rpath = expanded(&program.rpath, path);
        let mut open = vec![(path.to_path_buf(), program)];
        while let Some((by, binary)) = open.pop() {
            for name in &binary.needed {
                if known.contains(name) || self.is_loader(name) {
                    continue;
                }
                if known.len() == MAX_LIBRARIES {
                    return Err(BinaryError::TooMany { path: path.into() }.into());
                }
                let missing = || BinaryError::MissingLibrary { library: name.clone(), by: by.clone() };
                let (found, library) = self.find(name, &by, &binary, &program_rpath).ok_or_else(missing)?;
                // A name with a slash is a path, and is looked for nowhere else.
                let wanted = if name.contains('/') { name.clone() } else { format!("{LIBRARY_DIR}/{name}") };
                let in_image = inside(&wanted).filter(|path| !path.starts_with(".wh."));
                let in_image = in_image.ok_or_else(|| BinaryError::Name { path: by.clone(), name: name.clone() })?;
                known.insert(name.clone());
                packed.has_libraries |= !name.contains('/');
                packed.files.insert(in_image, found.clone());
                open.push((found, library));
            }
        }
        Ok(())
    }

    /// The loader is a library too; musl's is all of them.
    fn is_loader(&self, name: &str) -> bool {
        name == self.loader
            || (self.loader.starts_with("ld-musl-") && (name == "libc.so" || name.starts_with("libc.musl-")))
    }

    fn find(&self, name: &str, by: &Path, binary: &Program, program_rpath: &[PathBuf]) -> Option<(PathBuf, Program)> {
        if name.contains('/') {
            return self.fits(Path::new(name));
        }
        let mut directories: Vec<PathBuf> = Vec::new();
        if binary.runpath.is_none() {
            directories.extend(expanded(&binary.rpath, by));
            directories.extend(program_rpath.iter().cloned());
        }
        directories.extend(self.options.library_dirs.iter().cloned());
        directories.extend(expanded(binary.runpath.as_deref().unwrap_or_default(), by));
        directories.extend(self.system.iter().cloned());
        directories.iter().find_map(|directory| self.fits(&directory.join(name)))
    }

    /// Reads a candidate; as the loader does, one for another machine is passed over.
    fn fits(&self, path: &Path) -> Option<(PathBuf, Program)> {
        let library = read(path).ok().filter(|library| library.architecture == self.architecture)?;
        Some((path.to_path_buf(), library))
    }
}

/// Puts the directory of `by` where a path says `$ORIGIN`.
fn expanded(directories: &[String], by: &Path) -> Vec<PathBuf> {
    // The loader takes the path without links on it.
    let by = fs::canonicalize(by).unwrap_or_else(|_| by.to_path_buf());
    let origin = by.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    let expand = |directory: &String| {
        directory
            .replace("${ORIGIN}", &origin)
            .replace("$ORIGIN", &origin)
            .replace("${LIB}", "lib")
            .replace("$LIB", "lib")
    };
    directories.iter().map(|directory| PathBuf::from(expand(directory))).collect()
}

/// Reads the directories of an `ld.so.conf`, with the files that it includes; what cannot be read holds none.
fn read_conf(path: &Path, depth: usize, directories: &mut Vec<PathBuf>) {
    let Ok(text) = fs::read_to_string(path) else { return };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include ").map(str::trim) {
            if depth < MAX_INCLUDES {
                included(path, pattern).iter().for_each(|file| read_conf(file, depth + 1, directories));
            }
        } else if line.starts_with('/') {
            directories.push(line.into());
        }
    }
}

/// Returns the files that an `include` names, sorted; a star stands in the last name alone.
fn included(conf: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = conf.parent().unwrap_or(Path::new("/")).join(pattern);
    let Some(name) = pattern.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let Some((head, tail)) = name.split_once('*') else { return vec![pattern] };
    let Some(dir) = pattern.parent().and_then(|dir| fs::read_dir(dir).ok()) else { return Vec::new() };
    let fits = |name: &str| name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail);
    let mut files: Vec<PathBuf> = dir
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(fits))
        .collect();
    files.sort();
    files
}
