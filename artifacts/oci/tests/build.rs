//! Images from a directory, and from one program.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use iptl_artifacts::MemStore;
use iptl_artifacts_oci::{
    Architecture, BinaryError, BinaryOptions, BuildError, Imported, Limits, Process, RootfsOptions, image_from_binary,
    image_from_rootfs, read_config, read_image, unpack,
};
use serde_json::Value;

use crate::make::{noise, rebuilt, try_import};

async fn config_of(store: &MemStore, imported: &Imported) -> Value {
    let image = read_image(store, &imported.image).await.unwrap();
    serde_json::from_slice(&read_config(store, &image).await.unwrap()).unwrap()
}

fn make_rootfs(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("var/empty")).unwrap();
    fs::write(root.join("bin/thing"), noise(1, 40_000)).unwrap();
    fs::set_permissions(root.join("bin/thing"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(root.join("var/empty"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::hard_link(root.join("bin/thing"), root.join("bin/twin")).unwrap();
    symlink("thing", root.join("bin/link")).unwrap();
    let long = root.join("long".repeat(40));
    fs::create_dir(&long).unwrap();
    fs::write(long.join("name ".repeat(30)), "far away").unwrap();
    symlink("x".repeat(150), root.join("far")).unwrap();
}

#[tokio::test]
async fn rootfs_is_the_same_image_wherever_and_whenever_it_lies() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_rootfs(one.path());
    make_rootfs(two.path());
    let old = fs::File::options().write(true).open(two.path().join("bin/thing")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH).unwrap();
    let store = MemStore::new();
    let options = || RootfsOptions {
        process: Process {
            entrypoint: vec!["/bin/thing".into()],
            command: vec!["--flag".into()],
            env: vec!["A=b".into()],
            working_dir: "/var".into(),
            user: "1000".into(),
        },
        architecture: Some(Architecture::Arm64),
        ..RootfsOptions::default()
    };
    let first = image_from_rootfs(&store, one.path(), options()).await.unwrap();
    let second = image_from_rootfs(&store, two.path(), options()).await.unwrap();
    assert_eq!(first.image, second.image);
    assert_eq!(second.new_blocks, 0);
    let config = config_of(&store, &first).await;
    assert_eq!(config["architecture"], "arm64");
    assert_eq!(config["config"]["Entrypoint"][0], "/bin/thing");
    assert_eq!(config["config"]["Cmd"][0], "--flag");
    assert_eq!(config["config"]["WorkingDir"], "/var");
    assert_eq!(config["config"]["User"], "1000");
    assert!(config["config"]["Env"].as_array().unwrap().contains(&"A=b".into()));
}

#[tokio::test]
async fn rootfs_comes_back_as_it_was() {
    let source = tempfile::tempdir().unwrap();
    make_rootfs(source.path());
    let store = MemStore::new();
    let imported = image_from_rootfs(&store, source.path(), RootfsOptions::default()).await.unwrap();
    let dest = tempfile::tempdir().unwrap();
    let root = dest.path().join("root");
    unpack(&store, &imported.image, &root, &Limits::default()).await.unwrap();
    let mut diff = std::process::Command::new("diff");
    let output = diff.arg("-r").arg("--no-dereference").arg(source.path()).arg(&root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mode = fs::metadata(root.join("var/empty")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // What this crate writes, it imports as the same image.
    let archive = rebuilt(&store, &imported.image, None).await;
    let again = try_import(&store, &archive, Default::default()).await.unwrap();
    assert_eq!(again.image, imported.image);
}

#[tokio::test]
async fn rootfs_with_what_no_image_holds_is_refused() {
    let store = MemStore::new();
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let error = image_from_rootfs(&store, dir.path(), RootfsOptions::default()).await.unwrap_err();
    assert!(matches!(error, BuildError::Special { .. }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".wh.x"), "").unwrap();
    let error = image_from_rootfs(&store, dir.path(), RootfsOptions::default()).await.unwrap_err();
    assert!(matches!(error, BuildError::Whiteout { .. }), "{error}");
    let error = image_from_rootfs(&store, Path::new("/dev/null"), RootfsOptions::default()).await.unwrap_err();
    assert!(matches!(error, BuildError::NotADirectory { .. }), "{error}");
    let error = image_from_rootfs(&store, Path::new("/nonexistent"), RootfsOptions::default()).await.unwrap_err();
    assert!(matches!(error, BuildError::Read { .. }), "{error}");
    assert!(store.is_empty());
}

#[tokio::test]
async fn rootfs_over_its_limits_is_refused() {
    let source = tempfile::tempdir().unwrap();
    make_rootfs(source.path());
    let options = RootfsOptions { limits: Limits { bytes: 20_000, entries: 100 }, ..RootfsOptions::default() };
    let error = image_from_rootfs(&MemStore::new(), source.path(), options).await.unwrap_err();
    assert!(matches!(error, BuildError::Tar(_)), "{error}");
    let options = RootfsOptions { limits: Limits { bytes: 1 << 30, entries: 3 }, ..RootfsOptions::default() };
    let error = image_from_rootfs(&MemStore::new(), source.path(), options).await.unwrap_err();
    assert!(matches!(error, BuildError::Tar(_)), "{error}");
}

/// A program of a few hundred bytes, as far as its headers go.
struct Elf {
    machine: u16,
    kind: u16,
    interpreter: Option<String>,
    needed: Vec<String>,
    rpath: Option<String>,
    runpath: Option<String>,
    pie: bool,
}

impl Default for Elf {
    fn default() -> Elf {
        Elf { machine: 62, kind: 2, interpreter: None, needed: Vec::new(), rpath: None, runpath: None, pie: false }
    }
}

impl Elf {
    fn bytes(&self) -> Vec<u8> {
        let mut strings = vec![0];
        let mut add = |text: &str| {
            let at = strings.len() as u64;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let mut dynamic: Vec<(u64, u64)> = self.needed.iter().map(|name| (1, add(name))).collect();
        dynamic.extend(self.rpath.iter().map(|path| (15, add(path))));
        dynamic.extend(self.runpath.iter().map(|path| (29, add(path))));
        if self.pie {
            dynamic.push((0x6fff_fffb, 0x0800_0000));
        }
        const BASE: u64 = 0x40_0000;
        let headers = 64 + 3 * 56_u64;
        let interpreter = self.interpreter.as_ref().map(|path| format!("{path}\0").into_bytes()).unwrap_or_default();
        let strings_at = headers + interpreter.len() as u64;
        dynamic.extend([(5, BASE + strings_at), (10, strings.len() as u64), (0, 0)]);
        let dynamic_at = (strings_at + strings.len() as u64).next_multiple_of(8);
        let dynamic: Vec<u8> =
            dynamic.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()).collect();
        let end = dynamic_at + dynamic.len() as u64;
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        elf.extend(self.kind.to_le_bytes());
        elf.extend(self.machine.to_le_bytes());
        elf.extend(1_u32.to_le_bytes());
        for word in [BASE, 64, 0] {
            elf.extend(word.to_le_bytes());
        }
        elf.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 3, 64, 0, 0] {
            elf.extend(half.to_le_bytes());
        }
        let has_dynamic = !self.needed.is_empty() || self.interpreter.is_some() || self.pie;
        let segments = [
            (1_u32, 0, end),
            (if self.interpreter.is_some() { 3 } else { 0 }, headers, interpreter.len() as u64),
            (if has_dynamic { 2 } else { 0 }, dynamic_at, dynamic.len() as u64),
        ];
        for (kind, offset, size) in segments {
            elf.extend(kind.to_le_bytes());
            elf.extend(5_u32.to_le_bytes());
            for word in [offset, BASE + offset, BASE + offset, size, size, 8] {
                elf.extend(word.to_le_bytes());
            }
        }
        elf.extend(interpreter);
        elf.extend(strings);
        elf.resize(dynamic_at as usize, 0);
        elf.extend(dynamic);
        elf
    }

    fn write(&self, path: &Path) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, self.bytes()).unwrap();
        path.to_path_buf()
    }
}

#[tokio::test]
async fn static_program_becomes_an_image_that_starts_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = MemStore::new();
    let rows = [
        (Elf::default(), "amd64"),
        (Elf { machine: 183, ..Elf::default() }, "arm64"),
        (Elf { kind: 3, pie: true, ..Elf::default() }, "amd64"),
    ];
    for (elf, architecture) in rows {
        let program = elf.write(&dir.path().join("node"));
        let imported = image_from_binary(&store, &program, BinaryOptions::default()).await.unwrap();
        assert_eq!(imported.architecture, architecture);
        let config = config_of(&store, &imported).await;
        assert_eq!(config["architecture"], architecture);
        assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/app/node"]));
        let root = dir.path().join(format!("root-{architecture}-{}", elf.kind));
        unpack(&store, &imported.image, &root, &Limits::default()).await.unwrap();
        assert_eq!(fs::read(root.join("app/node")).unwrap(), elf.bytes());
        assert_eq!(fs::metadata(root.join("app/node")).unwrap().permissions().mode() & 0o777, 0o755);
    }
}

async fn refusal(path: &Path, options: BinaryOptions) -> BinaryError {
    match image_from_binary(&MemStore::new(), path, options).await {
        Err(BuildError::Binary(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was taken"),
    }
}

fn with_libs(dirs: &[&Path]) -> BinaryOptions {
    let library_dirs = dirs.iter().map(|dir| dir.to_path_buf()).collect();
    BinaryOptions { with_libs: true, library_dirs, ..BinaryOptions::default() }
}

#[tokio::test]
async fn dynamic_program_without_its_libraries_is_refused_by_naming_them() {
    let dir = tempfile::tempdir().unwrap();
    let elf = Elf {
        interpreter: Some("/lib64/ld-linux-x86-64.so.2".into()),
        needed: vec!["libssl.so.3".into(), "libc.so.6".into()],
        ..Elf::default()
    };
    let error = refusal(&elf.write(&dir.path().join("node")), BinaryOptions::default()).await;
    let message = error.to_string();
    for part in ["/lib64/ld-linux-x86-64.so.2", "libssl.so.3, libc.so.6", "--with-libs"] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn libraries_are_found_with_those_that_they_need() {
    let dir = tempfile::tempdir().unwrap();
    let loader = dir.path().join("ld-test.so.1");
    fs::write(&loader, Elf { kind: 3, ..Elf::default() }.bytes()).unwrap();
    let library = |needed: &[&str], runpath: Option<&str>| Elf {
        kind: 3,
        needed: needed.iter().map(|name| (*name).to_owned()).collect(),
        runpath: runpath.map(str::to_owned),
        pie: false,
        ..Elf::default()
    };
    // Of another machine: passed over, as the loader does.
    Elf { kind: 3, machine: 183, ..Elf::default() }.write(&dir.path().join("given/liba.so"));
    library(&["libb.so", "ld-test.so.1"], Some("$ORIGIN/../more")).write(&dir.path().join("own/liba.so"));
    library(&["liba.so", "libc-test.so"], None).write(&dir.path().join("more/libb.so"));
    library(&[], None).write(&dir.path().join("given/libc-test.so"));
    let program = Elf {
        interpreter: Some(loader.to_str().unwrap().into()),
        needed: vec!["liba.so".into()],
        runpath: Some("/nonexistent:${ORIGIN}/own".into()),
        ..Elf::default()
    };
    let program = program.write(&dir.path().join("node"));
    let store = MemStore::new();
    let given = dir.path().join("given");
    let imported = image_from_binary(&store, &program, with_libs(&[&given])).await.unwrap();
    let root = dir.path().join("root");
    unpack(&store, &imported.image, &root, &Limits::default()).await.unwrap();
    let mut libraries: Vec<_> =
        fs::read_dir(root.join("app/lib")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    libraries.sort();
    assert_eq!(libraries, ["liba.so", "libb.so", "libc-test.so"]);
    assert!(root.join(loader.strip_prefix("/").unwrap()).is_file(), "the loader lies where the program wants it");
    let env = config_of(&store, &imported).await["config"]["Env"].clone();
    assert!(env.as_array().unwrap().contains(&"LD_LIBRARY_PATH=/app/lib".into()), "{env}");
}

#[tokio::test]
async fn missing_library_is_named_with_what_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let loader = Elf { kind: 3, ..Elf::default() }.write(&dir.path().join("ld.so"));
    let library = Elf { kind: 3, needed: vec!["libnowhere.so.7".into()], ..Elf::default() };
    library.write(&dir.path().join("libs/liba.so"));
    let program = Elf {
        interpreter: Some(loader.to_str().unwrap().into()),
        needed: vec!["liba.so".into()],
        rpath: Some("$ORIGIN/libs".into()),
        ..Elf::default()
    };
    let error = refusal(&program.write(&dir.path().join("node")), with_libs(&[])).await;
    assert!(
        matches!(&error, BinaryError::MissingLibrary { library, by } if library == "libnowhere.so.7" && by.ends_with("liba.so")),
        "{error}"
    );
    let program = Elf { interpreter: Some("/nonexistent/ld.so".into()), ..Elf::default() };
    let error = refusal(&program.write(&dir.path().join("node")), with_libs(&[])).await;
    assert!(matches!(error, BinaryError::MissingInterpreter { .. }), "{error}");
}

#[tokio::test]
async fn what_is_no_program_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let rows: [(&[u8], &str); 7] = [
        (b"", "an empty file"),
        (b"just text", "not a program that Linux can execute"),
        (b"MZ\x90\0\x03", "a Windows program"),
        (b"\xcf\xfa\xed\xfe\x07\0\0\x01", "a macOS program"),
        (b"\0asm\x01\0\0\0", "WebAssembly"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"PK\x03\x04", "a zip archive"),
    ];
    for (bytes, what) in rows {
        fs::write(&path, bytes).unwrap();
        let error = refusal(&path, BinaryOptions::default()).await;
        assert!(matches!(error, BinaryError::NotElf { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let object = Elf { kind: 1, ..Elf::default() }.write(&path);
    assert!(matches!(refusal(&object, BinaryOptions::default()).await, BinaryError::NotElf { .. }));
    let library = Elf { kind: 3, ..Elf::default() }.write(&path);
    assert!(matches!(refusal(&library, BinaryOptions::default()).await, BinaryError::Library { .. }));
    let machine = Elf { machine: 243, ..Elf::default() }.write(&path);
    assert!(matches!(refusal(&machine, BinaryOptions::default()).await, BinaryError::Machine { .. }));
    assert!(matches!(refusal(dir.path(), BinaryOptions::default()).await, BinaryError::NotElf { .. }));
    let missing = dir.path().join("missing");
    assert!(matches!(refusal(&missing, BinaryOptions::default()).await, BinaryError::Read { .. }));
}

#[tokio::test]
async fn script_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.sh");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    let error = refusal(&path, BinaryOptions::default()).await;
    assert!(matches!(error, BinaryError::Script { .. }), "{error}");
    assert!(error.to_string().contains("--rootfs"), "{error}");
}

#[tokio::test]
async fn names_that_would_lead_elsewhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let program = Elf::default().write(&dir.path().join("node"));
    for name in ["..", "", "a/b", ".wh.x", "lib", "/"] {
        let options = BinaryOptions { name: Some(name.into()), ..BinaryOptions::default() };
        assert!(matches!(refusal(&program, options).await, BinaryError::Name { .. }), "{name:?}");
    }
    let hostile = Elf { interpreter: Some("../../etc/passwd".into()), ..Elf::default() };
    let error = refusal(&hostile.write(&dir.path().join("node")), with_libs(&[])).await;
    assert!(matches!(error, BinaryError::Name { .. }), "{error}");
}

#[tokio::test]
async fn damaged_programs_are_refused_or_read() {
    let dir = tempfile::tempdir().unwrap();
    let elf = Elf {
        interpreter: Some("/nonexistent/ld.so".into()),
        needed: vec!["liba.so".into()],
        runpath: Some("$ORIGIN".into()),
        ..Elf::default()
    };
    let good = elf.bytes();
    let store = MemStore::new();
    let path = dir.path().join("node");
    // No byte may bring it down, whatever becomes of the program.
    for at in 4..good.len() {
        for value in [0, 0xff, good[at] ^ 0x40] {
            let mut bad = good.clone();
            bad[at] = value;
            fs::write(&path, &bad).unwrap();
            let options = BinaryOptions { only_hash: true, ..BinaryOptions::default() };
            let _ = image_from_binary(&store, &path, options).await;
        }
    }
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        let _ = image_from_binary(&store, &path, BinaryOptions::default()).await;
    }
}

#[tokio::test]
async fn program_of_this_machine_is_packed_with_its_libraries() {
    // The test's own program is dynamic on most machines.
    let program = std::env::current_exe().unwrap();
    let store = MemStore::new();
    let options = BinaryOptions { name: Some("test".into()), ..with_libs(&[]) };
    let imported = image_from_binary(&store, &program, options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    unpack(&store, &imported.image, &root, &Limits::default()).await.unwrap();
    assert_eq!(fs::metadata(root.join("app/test")).unwrap().len(), fs::metadata(&program).unwrap().len());
}
