//! What an ELF file says about itself. It is read, never executed.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use object::LittleEndian;
use object::elf;
use object::read::ReadCache;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

use super::BinaryError;

/// Largest table of a program that is read, in bytes: that of dynamic entries has some 500.
const MAX_TABLE: u64 = 1 << 20;

/// Longest path or name in a program, in bytes.
const MAX_STRING: usize = 4096;

/// Most names that a program has: large ones need a hundred libraries.
const MAX_STRINGS: usize = 4096;

/// An architecture for which containers of a lab are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Architecture {
    /// Returns the word of container engines.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is of interest about a program or a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) architecture: Architecture,
    /// Program that loads it.
    pub(super) interpreter: Option<String>,
    /// Libraries that it names.
    pub(super) needed: Vec<String>,
    /// Directories in which it wants them to be looked for, before the environment's.
    pub(super) rpath: Vec<String>,
    /// The same after the environment's; where there is one, `rpath` does not count.
    pub(super) runpath: Option<Vec<String>>,
    /// Whether it can be executed, where it can else only be loaded.
    pub(super) is_program: bool,
}

impl Program {
    /// Reads a file; `path` is for people.
    pub(super) fn read(file: File, path: &Path) -> Result<Program, BinaryError> {
        let mut head = [0; 20];
        let count = file.read_at(&mut head, 0).unwrap_or(0);
        check_head(&head[..count], path)?;
        let damaged = |reason: String| BinaryError::Damaged { path: path.into(), reason };
        let strings = file.try_clone().map_err(|error| damaged(error.to_string()))?;
        let data = ReadCache::new(file);
        let header = elf::FileHeader64::<LittleEndian>::parse(&data).map_err(|error| damaged(error.to_string()))?;
        let architecture = match header.e_machine(LittleEndian) {
            elf::EM_X86_64 => Architecture::Amd64,
            elf::EM_AARCH64 => Architecture::Arm64,
            number => {
                return Err(BinaryError::Machine { path: path.into(), machine: format!("machine number {number}") });
            }
        };
        let what = match header.e_type(LittleEndian) {
            elf::ET_EXEC | elf::ET_DYN => None,
            elf::ET_REL => Some("an object file, which has to be linked first"),
            elf::ET_CORE => Some("a core dump"),
            _ => Some("not a program that Linux can execute"),
        };
        if let Some(what) = what {
            return Err(BinaryError::NotElf { path: path.into(), what });
        }
        read_segments(header, &data, &strings, architecture).map_err(damaged)
    }
}

/// Tells what is no ELF for Linux by its first bytes.
fn check_head(head: &[u8], path: &Path) -> Result<(), BinaryError> {
    let path = || path.to_path_buf();
    if head.starts_with(b"#!") {
        return Err(BinaryError::Script { path: path() });
    }
    let what = match head {
        [] => Some("an empty file"),
        [0x7f, b'E', b'L', b'F', ..] => None,
        [b'M', b'Z', ..] => Some("a Windows program"),
        [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] | [0xca, 0xfe, 0xba, 0xbe, ..] => Some("a macOS program"),
        [0, b'a', b's', b'm', ..] => Some("WebAssembly, which the runner \"wasm\" executes"),
        [0x1f, 0x8b, ..] => Some("a gzip archive"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        _ => Some("not a program that Linux can execute"),
    };
    if let Some(what) = what {
        return Err(BinaryError::NotElf { path: path(), what });
    }
    let [_, _, _, _, class, order, _, abi, ..] = head else {
        return Err(BinaryError::Damaged { path: path(), reason: "it ends in its header".into() });
    };
    if *class != elf::ELFCLASS64 || *order != elf::ELFDATA2LSB {
        return Err(BinaryError::Machine { path: path(), machine: "32 bits or big-endian".into() });
    }
    if ![elf::ELFOSABI_SYSV, elf::ELFOSABI_LINUX].contains(abi) {
        return Err(BinaryError::NotElf { path: path(), what: "a program of another system than Linux" });
    }
    Ok(())
}

type Header = elf::FileHeader64<LittleEndian>;

fn read_segments(
    header: &Header,
    data: &ReadCache<File>,
    file: &File,
    architecture: Architecture,
) -> Result<Program, String> {
    let text = |error: object::Error| error.to_string();
    let mut program = Program {
        architecture,
        interpreter: None,
        needed: Vec::new(),
        rpath: Vec::new(),
        runpath: None,
        is_program: header.e_type(LittleEndian) == elf::ET_EXEC,
    };
    let segments = header.program_headers(LittleEndian, data).map_err(text)?;
    // Where the table of names is in the file, by its address.
    let offset_of = |address: u64| {
        segments.iter().filter(|segment| segment.p_type(LittleEndian) == elf::PT_LOAD).find_map(|segment| {
            let (start, size) = (segment.p_vaddr(LittleEndian), segment.p_filesz(LittleEndian));
            let within = address.checked_sub(start).filter(|within| *within < size)?;
            segment.p_offset(LittleEndian).checked_add(within)
        })
    };
    for segment in segments {
        let kind = segment.p_type(LittleEndian);
        if (kind == elf::PT_INTERP || kind == elf::PT_DYNAMIC) && segment.p_filesz(LittleEndian) > MAX_TABLE {
            return Err("a table in it is larger than in any program".into());
        }
        if let Some(interpreter) = segment.interpreter(LittleEndian, data).map_err(text)? {
            let interpreter = String::from_utf8(interpreter.to_vec()).map_err(|error| error.to_string())?;
            program.interpreter = Some(interpreter);
            program.is_program = true;
        }
        let Some(dynamic) = segment.dynamic(LittleEndian, data).map_err(text)? else { continue };
        let entries: Vec<(i64, u64)> = dynamic
            .iter()
            .map(|entry| (entry.tag(LittleEndian), entry.val(LittleEndian)))
            .take_while(|(tag, _)| *tag != elf::DT_NULL)
            .collect();
        let table = entries.iter().find(|(tag, _)| *tag == elf::DT_STRTAB).and_then(|(_, at)| offset_of(*at));
        let mut names = 0;
        let mut name = |at: u64| -> Result<String, String> {
            names += 1;
            let table = table.filter(|_| names <= MAX_STRINGS).ok_or("it has no table of names")?;
            string_at(file, table.checked_add(at).ok_or("a name lies outside of it")?)
        };
        for (tag, value) in &entries {
            match *tag {
                elf::DT_NEEDED => program.needed.push(name(*value)?),
                elf::DT_RPATH => program.rpath.extend(directories(&name(*value)?)),
                elf::DT_RUNPATH => program.runpath = Some(directories(&name(*value)?)),
                elf::DT_FLAGS_1 if *value & u64::from(elf::DF_1_PIE) != 0 => program.is_program = true,
                _ => {}
            }
        }
    }
    Ok(program)
}

fn directories(list: &str) -> Vec<String> {
    list.split(':').filter(|directory| !directory.is_empty()).map(str::to_owned).collect()
}

fn string_at(file: &File, offset: u64) -> Result<String, String> {
    let mut bytes = vec![0; MAX_STRING];
    let mut have = 0;
    while have < MAX_STRING {
        let count = file.read_at(&mut bytes[have..], offset.saturating_add(have as u64)).map_err(|e| e.to_string())?;
        let end = bytes[have..have + count].iter().position(|byte| *byte == 0);
        if let Some(end) = end {
            bytes.truncate(have + end);
            return String::from_utf8(bytes).map_err(|error| error.to_string());
        }
        if count == 0 {
            break;
        }
        have += count;
    }
    Err("a name in it has no end".into())
}
