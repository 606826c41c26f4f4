//! What the pure half must not reach: the same inputs give the same outputs on every machine, and a test of it compiles
//! in seconds.

use std::ffi::OsStr;
use std::path::Path;

use iptl_tidy::{built_of, files, read, root, workspace};

/// The pure half. Its time and randomness are inputs.
const PURE: &[&str] = &[
    "iptl-dag",
    "iptl-result",
    "iptl-wire",
    "iptl-sync",
    "iptl-trust",
    "iptl-scheduler",
    "iptl-plans",
    "iptl-bitswap",
    "iptl-labnet",
    "iptl-sim",
];

/// Packages by prefix that do IO, wait, or make randomness of their own.
const IMPURE: &[&str] = &[
    "async-io",
    "async-std",
    "bollard",
    "chrono",
    "fastrand",
    "getrandom",
    "hyper",
    "iroh",
    "libp2p",
    "mio",
    "nix",
    "quinn",
    "reqwest",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "wasmtime",
];

#[test]
fn nothing_impure_is_reachable_from_the_pure_half() {
    let mut wrong = Vec::new();
    for name in PURE {
        for package in built_of(name) {
            let impure = |prefix: &&&str| package == **prefix || package.starts_with(&format!("{prefix}-"));
            if IMPURE.iter().find(impure).is_some() {
                wrong.push(format!("{name} reaches {package} (cargo tree -e normal -p {name} -i {package})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\nthe driver in node/ does such things, and tells the core", wrong.join("\n"));
}

/// Names of the standard library that the pure half does not say in what it ships, and what it does instead.
const UNSAID: &[(&str, &str)] = &[
    ("std::fs", "files are the driver's: take their content, return an effect"),
    ("std::process", "programs are started by the driver"),
    ("std::env::", "configuration is an input; what the compiler knows comes by env!"),
    ("Instant::now", "time is an input: take a Timestamp"),
    ("SystemTime", "time is an input: take a WallTime"),
    ("std::thread", "a core is one state that one task owns"),
    ("TcpStream", "sockets are the driver's"),
    ("TcpListener", "sockets are the driver's"),
    ("UdpSocket", "sockets are the driver's"),
    ("HashMap", "its order differs in each process: use BTreeMap"),
    ("HashSet", "its order differs in each process: use BTreeSet"),
];

/// The dependency graph does not see the standard library.
#[test]
fn the_pure_half_names_nothing_impure_of_the_standard_library() {
    let workspace = workspace();
    let mut wrong = Vec::new();
    for path in files().iter().filter(|path| path.extension() == Some(OsStr::new("rs"))) {
        let pure = PURE.iter().any(|name| root().join(path).starts_with(workspace.members[*name].dir.join("src")));
        // A program's own file reads arguments and files and hands them to the library.
        let program = path.ends_with("src/main.rs");
        let Some(text) = read(path).filter(|_| pure && !program) else { continue };
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            for (name, instead) in UNSAID.iter().filter(|(name, _)| code.contains(name)) {
                wrong.push(format!("{}:{number} says {name}: {instead}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Clippy resolves names that a search of the text does not, and says it while one types. The folder of `iptl-plans`
/// holds plans too, which may ask what time it is; there the search has to do.
#[test]
fn clippy_watches_the_whole_pure_half() {
    let workspace = workspace();
    let expected = read(Path::new("dag/.clippy.toml")).expect("the rules of the pure half are text");
    for name in PURE.iter().filter(|name| **name != "iptl-plans") {
        let dir = &workspace.members[*name].dir;
        let nearest = dir.ancestors().take_while(|dir| dir.starts_with(root())).find_map(|dir| {
            let path = dir.join(".clippy.toml");
            path.is_file().then_some(path)
        });
        let nearest = nearest.unwrap_or_else(|| panic!("{name} has no .clippy.toml"));
        let found = read(nearest.strip_prefix(root()).expect("it is below the root"));
        assert_eq!(found.as_deref(), Some(expected.as_str()), "{} is not dag/.clippy.toml", nearest.display());
    }
}
