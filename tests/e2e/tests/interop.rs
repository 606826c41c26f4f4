//! With software of other people: a peer on boxo, one on Helia, npm's `ipfs-car`, and an `ipfs` program where one is given.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iptl_e2e::beside::Beside;
use iptl_e2e::witness::{Witness, assert_same_tree, ipfs_car};
use iptl_e2e::{Foreground, Home, Lab, Node, Output, left_out, noise, repository, run};
use serde_json::Value;

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Profiles whose CIDs others give too.
const PROFILES: [&str; 2] = ["unixfs-v1-2025", "unixfs-v0-2015"];

/// Returns what `dag stat` counts of a DAG that is here: blocks and bytes, in the words of the witnesses.
#[track_caller]
fn counted(stat: &Output) -> String {
    let stat = stat.json();
    format!("{} {}", stat["blocks"], stat["bytes"])
}

fn address<'a>(node: &'a Node, transport: &str) -> &'a str {
    node.addrs.iter().find(|addr| addr.contains(transport)).expect("it listens on both")
}

#[test]
fn a_whole_result_is_fetched_by_helia_and_by_boxo() {
    let lab = Lab::start(1);
    let ping = repository().join("plans/ping").display().to_string();
    let last = lab.run(&["run", &ping, "--no-build", "-g", "node=2", "-p", "rounds=3", "--json"]).exits(0).last_json();
    let result = last["result"].as_str().unwrap();
    let expected = counted(&lab.run(&["dag", "stat", result, "--json"]).exits(0));
    for (mut witness, transport) in
        [(Witness::helia(), "/tcp/"), (Witness::boxo(TCP), "/tcp/"), (Witness::boxo(QUIC), "/quic-v1")]
    {
        witness.ask(&format!("connect {}", address(&lab.orchestrator, transport)));
        assert_eq!(witness.ask(&format!("fetch {result}")), expected, "{} over {transport}", witness.name);
    }
}

#[test]
fn paths_below_a_result_lead_helia_and_boxo_to_where_they_lead_us() {
    let lab = Lab::start(1);
    let ping = repository().join("plans/ping").display().to_string();
    let last = lab.run(&["run", &ping, "--no-build", "-g", "node=2", "-p", "rounds=3", "--json"]).exits(0).last_json();
    let result = last["result"].as_str().unwrap();
    let paths = ["files", "files/summary.json", "files/metrics/node/1.jsonl"].map(|path| format!("{result}/{path}"));
    let expected = paths.clone().map(|path| leads_to(&lab, &path));
    for (mut witness, transport) in
        [(Witness::helia(), "/tcp/"), (Witness::boxo(TCP), "/tcp/"), (Witness::boxo(QUIC), "/quic-v1")]
    {
        witness.ask(&format!("connect {}", address(&lab.orchestrator, transport)));
        let found = paths.clone().map(|path| witness.ask(&format!("resolve {path}")));
        assert_eq!(found, expected, "{} over {transport}", witness.name);
    }
}

/// Returns the CID to which a path leads us.
#[track_caller]
fn leads_to(lab: &Lab, path: &str) -> String {
    lab.orchestrator.run(&["show", path, "--json"]).exits(0).json()["cid"].as_str().unwrap().to_owned()
}

#[test]
fn a_tree_under_sha2_is_fetched_by_helia_and_by_boxo() {
    let home = Home::new();
    let folder = home.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("large"), noise(3_000_000)).unwrap();
    std::fs::write(folder.join("small"), "small").unwrap();
    let _node = Foreground::start(home.path(), &[]);
    let status = home.run(&["status", "--json"]).exits(0).json();
    let addrs: Vec<&str> = status["addrs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for profile in PROFILES {
        let args = ["publish", "data", &folder.display().to_string(), "--profile", profile, "-q"];
        let root = home.run(&args).exits(0).word();
        let expected = counted(&home.run(&["dag", "stat", &root, "--json"]).exits(0));
        for (mut witness, transport) in
            [(Witness::helia(), "/tcp/"), (Witness::boxo(TCP), "/tcp/"), (Witness::boxo(QUIC), "/quic-v1")]
        {
            let addr = addrs.iter().find(|addr| addr.contains(transport)).expect("it listens on both");
            witness.ask(&format!("connect {addr}"));
            let name = witness.name;
            assert_eq!(witness.ask(&format!("fetch {root}")), expected, "{profile}, {name} over {transport}");
        }
    }
}

#[test]
fn what_only_a_witness_has_is_fetched() {
    for mut witness in [Witness::helia(), Witness::boxo(TCP), Witness::boxo(QUIC)] {
        for hash in ["blake3", "sha2-256"] {
            let root = witness.ask(&format!("put {hash} 40 20000"));
            let home = Home::new();
            let got = home.run(&["get", &root, "--store-only", "--peer", &witness.addr, "--json"]).exits(0).json();
            assert_eq!(got["blocks"], 41, "{hash} from {}: {got}", witness.name);
            assert!(witness.addr.ends_with(got["providers"][0]["peer"].as_str().unwrap()), "{got}");
        }
    }
}

#[test]
fn a_plan_runs_whose_component_only_helia_had() {
    let lab = Lab::start(1);
    let mut helia = Witness::helia();
    let component = repository().join("plans/ping/target/wasm32-wasip2/release/ping.wasm");
    let cid = helia.ask(&format!("add unixfs-v1-2025 {}", component.display()));
    let manifest = std::fs::read_to_string(repository().join("plans/ping/plan.toml")).unwrap();
    let dir = lab.path().join("foreign");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("plan.toml"), of_component(&manifest, &cid)).unwrap();
    let dir = dir.display().to_string();
    let args = ["run", &dir, "-g", "node=2", "-p", "rounds=3", "--json"];
    lab.orchestrator.run(&["get", &cid, "--store-only", "--peer", &helia.addr]).exits(0);
    let last = lab.run(&args).exits(0).last_json();
    assert_eq!((last["verdict"].as_str(), last["ok"].as_u64()), (Some("pass"), Some(2)), "{last}");

    // What is no component's file is told apart.
    let folder = helia.ask(&format!("add unixfs-v1-2025 {}", repository().join("plans/ping/src").display()));
    lab.orchestrator.run(&["get", &folder, "--store-only", "--peer", &helia.addr]).exits(0);
    std::fs::write(Path::new(&dir).join("plan.toml"), of_component(&manifest, &folder)).unwrap();
    lab.run(&args).fails(2, "workload.kind");
}

/// Nobody fetches it beforehand: whoever is connected with the node is asked.
#[test]
fn a_plan_finds_its_component_where_only_boxo_has_it() {
    for (listen, transport) in [(TCP, "/tcp/"), (QUIC, "/quic-v1")] {
        let lab = Lab::start(1);
        let mut boxo = Witness::boxo(listen);
        let component = repository().join("plans/ping/target/wasm32-wasip2/release/ping.wasm");
        let cid = boxo.ask(&format!("add unixfs-v1-2025 {}", component.display()));
        boxo.ask(&format!("connect {}", address(&lab.orchestrator, transport)));
        let manifest = std::fs::read_to_string(repository().join("plans/ping/plan.toml")).unwrap();
        let dir = lab.path().join("foreign");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("plan.toml"), of_component(&manifest, &cid)).unwrap();
        let args = ["run", &dir.display().to_string(), "-g", "node=2", "-p", "rounds=3", "--json"];
        let last = lab.run(&args).exits(0).last_json();
        assert_eq!((last["verdict"].as_str(), last["ok"].as_u64()), (Some("pass"), Some(2)), "{listen}: {last}");
    }
}

/// Returns a manifest whose workload is a published one.
fn of_component(manifest: &str, cid: &str) -> String {
    let lines = manifest.lines().filter(|line| !line.starts_with("build = "));
    lines
        .map(|line| if line.starts_with("path = ") { format!("cid = \"{cid}\"\n") } else { format!("{line}\n") })
        .collect()
}

/// Returns a seed that no run before had, or that of `IPTL_SEED` where it is set; a test that fails says which.
fn seed() -> u64 {
    let seed = match std::env::var("IPTL_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("IPTL_SEED={text}: {e}")),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    eprintln!("IPTL_SEED={seed} draws the same trees again");
    seed
}

/// Returns numbers below what is asked for, the same from the same seed.
fn draw_from(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        // SplitMix64: any seed is as good as another.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % below as u64) as usize
    }
}

/// Trees on whose edges importers differ, if they do: by seed, sizes around blocks, and folders around the size of one.
fn make_trees(root: &Path, seed: u64) -> Vec<String> {
    let bytes = noise((5 << 20) + 1);
    let mut paths = Vec::new();
    let sizes = [0, 1, 262_143, 262_144, 262_145, 1_048_575, 1_048_576, 1_048_577, 5 << 20, (5 << 20) + 1];
    std::fs::create_dir_all(root.join("sizes")).unwrap();
    for size in sizes {
        let path = root.join(format!("sizes/{size}"));
        std::fs::write(&path, &bytes[..size]).unwrap();
    }
    paths.push(root.join("sizes").display().to_string());
    paths.push(root.join("sizes/1048577").display().to_string());
    // A folder is sharded where its block is over 256 KiB, or its names and CIDs are: a name of 100 bytes, and 36 or 34.
    for (entries, name) in [(1_700, "wide-a"), (1_800, "wide-b"), (1_930, "wide-c"), (2_100, "wide-d")] {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for entry in 0..entries {
            std::fs::write(folder.join(format!("{entry:0100}")), [entry as u8]).unwrap();
        }
        paths.push(folder.display().to_string());
    }
    // Of eight trees each has up to three levels and odd names.
    let mut next = draw_from(seed);
    for tree in 0..8 {
        let folder = root.join(format!("tree-{tree}"));
        for _ in 0..3 + next(12) {
            let names = ["a", "ü", "b c", "README", "z.z", "-", "長"];
            let mut path = folder.clone();
            for _ in 0..next(3) {
                path.push(format!("dir {}", names[next(names.len())]));
            }
            std::fs::create_dir_all(&path).unwrap();
            let from = next(256) * 3000;
            let file = path.join(names[next(names.len())]);
            std::fs::write(file, &bytes[from..from + next(256) * next(256) * 20]).unwrap();
        }
        paths.push(folder.display().to_string());
    }
    paths
}

#[test]
fn trees_get_the_cids_that_boxo_and_npm_give_them() {
    let home = Home::new();
    // The witnesses' commands have no blanks in paths, so the names of the trees themselves have none.
    let seed = seed();
    let paths = make_trees(&home.path().join("trees"), seed);
    let (mut boxo, mut helia) = (Witness::boxo(TCP), Witness::helia());
    for profile in PROFILES {
        // A folder's CID is made of those of all that is in it.
        for path in &paths {
            let ours = home.run(&["publish", "data", path, "--only-hash", "--profile", profile, "-q"]).exits(0).word();
            for witness in [&mut boxo, &mut helia] {
                let theirs = witness.ask(&format!("add {profile} {path}"));
                assert_eq!(ours, theirs, "{path} under {profile}, by {}, IPTL_SEED={seed}", witness.name);
            }
        }
    }
}

/// Modes that are not the usual ones, which npm's importer leaves out.
const MODES: [u32; 4] = [0o600, 0o444, 0o700, 0o1777];

/// Gives every file and folder of a tree a mode and a time, and every folder links that lead somewhere and nowhere.
fn give_metadata(folder: &Path, next: &mut impl FnMut(usize) -> usize) {
    std::os::unix::fs::symlink("README", folder.join("link")).unwrap();
    std::os::unix::fs::symlink("../nowhere/ü", folder.join("broken")).unwrap();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let (kind, path) = (entry.file_type().unwrap(), entry.path());
        if kind.is_dir() {
            give_metadata(&path, next);
        } else if kind.is_file() {
            change(&path, [0o644, 0o600, 0o755, 0o444][next(4)], TIMES, next);
        }
    }
    change(folder, [0o755, 0o700, 0o1777][next(3)], TIMES, next);
}

/// Seconds within which times are drawn, before and after 1970; those from which on npm's importer writes other times than
/// it is given.
const TIMES: usize = 4_000_000_000;
const TIMES_OF_NPM: usize = 1 << 31;

/// Sets mode and time, which may have no fraction of a second, and may lie before 1970.
fn change(path: &Path, mode: u32, times: usize, next: &mut impl FnMut(usize) -> usize) {
    let seconds = Duration::from_secs(next(times) as u64);
    let at = if next(8) == 0 { UNIX_EPOCH - seconds } else { UNIX_EPOCH + seconds };
    let at = at + Duration::from_nanos([0, 1, 999_999_999][next(3)]);
    File::open(path).unwrap().set_modified(at).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn modes_times_and_links_get_the_cids_that_boxo_and_npm_give_them() {
    let home = Home::new();
    let seed = seed();
    let mut next = draw_from(seed);
    make_trees(&home.path().join("trees"), seed);
    let (mut boxo, mut helia) = (Witness::boxo(TCP), Witness::helia());
    let ours = |path: &str, profile: &str, how: &[&str]| {
        let args = ["publish", "data", path, "--only-hash", "--profile", profile, "-q"];
        home.run(&[&args[..], how].concat()).exits(0).word()
    };

    // npm's importer knows no links. Where a file is one block, each puts mode and time elsewhere.
    let large = home.path().join("large");
    std::fs::create_dir(&large).unwrap();
    for (number, size) in [(1 << 20) + 1, 5 << 20, (5 << 20) + 1].into_iter().enumerate() {
        let file = large.join(format!("file {number}"));
        std::fs::write(&file, noise(size)).unwrap();
        change(&file, MODES[next(4)], TIMES_OF_NPM, &mut next);
    }
    change(&large, MODES[next(4)], TIMES_OF_NPM, &mut next);
    let path = large.display().to_string();
    for profile in PROFILES {
        let whole = ours(&path, profile, &["--metadata"]);
        for witness in [&mut boxo, &mut helia] {
            let theirs = witness.ask(&format!("addall {profile} {path}"));
            assert_eq!(whole, theirs, "{profile}, by {}, IPTL_SEED={seed}", witness.name);
        }
    }

    for tree in ["tree-0", "tree-1", "sizes"] {
        let path = home.path().join("trees").join(tree);
        give_metadata(&path, &mut next);
        let path = path.display().to_string();
        for profile in PROFILES {
            let said = format!("{tree} under {profile}, IPTL_SEED={seed}");
            assert_eq!(ours(&path, profile, &[]), boxo.ask(&format!("add {profile} {path}")), "{said}, bare");
        }
        // Of a file that is one raw block, boxo drops mode and time: under the other profile none is.
        let profile = "unixfs-v0-2015";
        let whole = ours(&path, profile, &["--metadata"]);
        assert_eq!(whole, boxo.ask(&format!("addall {profile} {path}")), "{tree}, IPTL_SEED={seed}");
    }
}

#[test]
fn cars_go_to_ipfs_car_and_to_boxo_and_come_back() {
    let home = Home::new();
    let _node = Foreground::start(home.path(), &[]);
    let path = |name: &str| home.path().join(name).display().to_string();
    make_trees(&home.path().join("trees"), 1);
    let tree = path("trees/tree-1");

    // Ours to ipfs-car, which unpacks it, and to boxo, which counts it.
    let args = ["publish", "data", &tree, "--profile", "unixfs-v1-2025", "-q"];
    let root = home.run(&args).exits(0).word();
    home.run(&["get", &root, "--car", "-o", &path("ours.car")]).exits(0);
    assert_eq!(ipfs_car(&["roots", &path("ours.car")]).exits(0).word(), root);
    ipfs_car(&["unpack", &path("ours.car"), "--output", &path("unpacked")]).exits(0);
    assert_same_tree(Path::new(&tree), Path::new(&path("unpacked")));
    let mut boxo = Witness::boxo(TCP);
    assert_eq!(boxo.ask(&format!("import {}", path("ours.car"))), root);
    let expected = counted(&home.run(&["dag", "stat", &root, "--json"]).exits(0));
    assert_eq!(boxo.ask(&format!("fetch {root}")), expected);

    // Theirs to us: what comes is what they packed.
    let check = |car: &str, root: &str| {
        let fresh = Home::new();
        assert_eq!(fresh.run(&["import", car, "-q"]).exits(0).word(), root);
        let out = fresh.path().join("out").display().to_string();
        fresh.run(&["get", root, "-o", &out]).exits(0);
        assert_same_tree(Path::new(&tree), Path::new(&out));
    };
    let packed = ipfs_car(&["pack", &tree, "--output", &path("npm.car"), "--no-wrap"]).exits(0).word();
    check(&path("npm.car"), &packed);
    for profile in PROFILES {
        let root = boxo.ask(&format!("add {profile} {tree}"));
        boxo.ask(&format!("export {root} {}", path("boxo.car")));
        check(&path("boxo.car"), &root);
    }
}

/// An `ipfs` program with a repository and a daemon of its own.
struct Kubo {
    program: OsString,
    repo: Home,
    _daemon: Beside,
}

impl Kubo {
    fn start(program: &OsStr) -> Kubo {
        let repo = Home::new();
        let ipfs = |args: &[&str]| run(&mut Kubo::command(program, &repo, args)).exits(0);
        ipfs(&["init", "--profile", "test"]);
        // Loopback alone, ports that are free, nobody to ask.
        ipfs(&["config", "--json", "Addresses.Swarm", r#"["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]"#]);
        ipfs(&["config", "Addresses.API", "/ip4/127.0.0.1/tcp/0"]);
        ipfs(&["config", "Routing.Type", "none"]);
        let mut daemon = Beside::start(&mut Kubo::command(program, &repo, &["daemon"]));
        daemon.says("Daemon is ready");
        Kubo { program: program.to_owned(), repo, _daemon: daemon }
    }

    fn command(program: &OsStr, repo: &Home, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("IPFS_PATH", repo.path().join("kubo")).current_dir(repo.path());
        command
    }

    #[track_caller]
    fn ipfs(&self, args: &[&str]) -> String {
        run(&mut Kubo::command(&self.program, &self.repo, args)).exits(0).stdout
    }

    /// Has it fetch all of a DAG in each of its ways, and checks what came; `folder` is the path of a directory in it.
    #[track_caller]
    fn takes(&self, lab: &Lab, root: &str, folder: &str) {
        let name = folder.replace('/', "-");
        let (ours, theirs) = (self.repo.path().join(format!("ours-{name}")), self.repo.path().join(name));
        self.ipfs(&["get", folder, "-o", &theirs.display().to_string()]);
        lab.orchestrator.run(&["get", folder, "-o", &ours.display().to_string()]).exits(0);
        assert_same_tree(&ours, &theirs);
        let listed = self.ipfs(&["ls", "--size=false", folder]);
        let listed: BTreeSet<&str> =
            listed.lines().map(|line| line.split_once(' ').expect(line).1.trim_end_matches('/')).collect();
        let names: Vec<String> =
            std::fs::read_dir(&ours).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(listed, names.iter().map(String::as_str).collect(), "{folder}");

        let stat = lab.orchestrator.run(&["dag", "stat", root, "--json"]).exits(0).json();
        let refs = self.ipfs(&["refs", "-r", "--unique", root]);
        assert_eq!(refs.lines().count() as u64 + 1, stat["blocks"].as_u64().unwrap(), "{root}");
        self.ipfs(&["pin", "add", root]);
        assert!(self.ipfs(&["pin", "ls", "--type", "recursive"]).contains(root));

        let car = self.repo.path().join(format!("{root}.car"));
        let out = File::create(&car).unwrap();
        let exported = Kubo::command(&self.program, &self.repo, &["dag", "export", root]).stdout(out).status().unwrap();
        assert!(exported.success());
        let fresh = Home::new();
        assert_eq!(fresh.run(&["import", &car.display().to_string(), "-q"]).exits(0).word(), root);
        assert_eq!(fresh.run(&["dag", "stat", root, "--json"]).exits(0).json()["blocks"], stat["blocks"]);
    }
}

/// Kubo is in no registry of packages: whoever has it names it.
#[test]
fn kubo_gets_lists_pins_and_exports_a_result_by_path_and_a_tree_under_sha2_by_tcp_and_quic() {
    let Some(program) = std::env::var_os("IPTL_KUBO") else {
        return left_out("IPTL_KUBO names no `ipfs` program");
    };
    let lab = Lab::start(1);
    let ping = repository().join("plans/ping").display().to_string();
    let last = lab.run(&["run", &ping, "--no-build", "-g", "node=2", "-p", "rounds=3", "--json"]).exits(0).last_json();
    let result = last["result"].as_str().unwrap();
    make_trees(&lab.path().join("trees"), 1);
    // Kubo gets a tree block by block: one of large files is enough.
    let sizes = lab.path().join("trees/sizes").display().to_string();
    let args = ["publish", "data", &sizes, "--profile", "unixfs-v1-2025", "-q"];
    let tree = lab.orchestrator.run(&args).exits(0).word();
    for transport in ["/tcp/", "/quic-v1"] {
        let kubo = Kubo::start(&program);
        kubo.ipfs(&["swarm", "connect", address(&lab.orchestrator, transport)]);
        let connected = kubo.ipfs(&["swarm", "peers"]);
        assert!(connected.contains(transport), "{connected}");
        let files = format!("{result}/files");
        kubo.takes(&lab, result, &files);
        let summary = format!("{files}/summary.json");
        assert_eq!(kubo.ipfs(&["dag", "resolve", &summary]).trim(), leads_to(&lab, &summary));
        let node: Value = serde_json::from_str(&kubo.ipfs(&["dag", "get", result])).unwrap();
        assert_eq!(node["files"]["/"], leads_to(&lab, &files), "{node}");
        assert_eq!(node["iptl.result/2"]["verdict"], "pass", "{node}");
        kubo.takes(&lab, &tree, &tree);
    }
}
