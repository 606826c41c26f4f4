//! Fetches that are cut by a death, of whoever fetches or of whoever gives: what was acknowledged moves once.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use iptl_e2e::{Foreground, Home, LIMIT, noise, run, wait};

/// Bytes of what is fetched: some seconds of a transfer between programs that are not optimised.
const SIZE: usize = 48 << 20;

/// More than what a pack holds beside a quarter of the blocks, and than one put, which a kill may cut off.
const FRAMING: u64 = 1 << 20;

/// A node that has the file and nothing else.
struct Provider {
    home: Home,
    address: String,
    node: Foreground,
}

impl Provider {
    fn start(file: &Path) -> (Provider, String) {
        let home = Home::new();
        let cid = home.run(&["publish", "data", &file.display().to_string(), "-q"]).exits(0).word();
        let node = Foreground::start(home.path(), &[]);
        let status = home.run(&["status", "--json"]).exits(0).json();
        let addrs = status["addrs"].as_array().unwrap().iter().filter_map(|addr| addr.as_str());
        // Who is killed says nothing, and over TCP the kernel says it at once.
        let address = addrs.into_iter().find(|addr| addr.contains("/tcp/")).unwrap().to_owned();
        (Provider { home, address, node }, cid)
    }

    /// Returns the bytes that it has written to streams on which peers ask for blocks.
    fn sent(&self) -> u64 {
        self.home.run(&["status", "--json"]).exits(0).json()["blocks"]["sent_bytes"].as_u64().unwrap()
    }
}

/// Returns how many bytes of blocks a store has, all of them whole.
fn stored(home: &Home) -> u64 {
    let checked = home.run(&["store", "check", "--json"]).exits(0).json();
    assert_eq!(checked["damaged"].as_u64(), Some(0), "{checked}");
    checked["bytes"].as_u64().unwrap()
}

/// Starts a fetch and returns once a quarter has come.
fn fetch_a_quarter(home: &Home, cid: &str, provider: &Provider, timeout: &str) -> Child {
    let args = ["get", cid, "--store-only", "--peer", &provider.address, "--timeout", timeout];
    let mut fetch = home.iptl(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while home.packed() < SIZE as u64 / 4 + FRAMING {
        assert_eq!(wait(&mut fetch, Duration::ZERO), None, "it ended before a quarter had come");
        assert!(Instant::now() < deadline, "a quarter has not come in {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    fetch
}

/// Fetches the rest from somebody else who has all of it; asserts that this is what moves.
fn the_rest_comes_once(home: &Home, cid: &str, file: &Path) {
    let (other, _) = Provider::start(file);
    let (whole, before) = (stored(&other.home), stored(home));
    assert!((SIZE as u64 / 4..whole).contains(&before), "{before} bytes were acknowledged of {whole}");
    let out = home.path().join("out");
    let args = ["get", cid, "-o", &out.display().to_string(), "--peer", &other.address, "--timeout", "60s", "--json"];
    let report = run(&mut home.iptl(&args)).exits(0).json();
    assert_eq!(report["bytes_fetched"].as_u64(), Some(whole - before), "{report}");
    // A block goes with its size, and with hashes of its parts.
    let (sent, rest) = (other.sent(), whole - before);
    assert!(sent >= rest && sent <= rest + rest / 100, "{sent} bytes were sent where {rest} were missing");
    assert_eq!(stored(home), whole);
    assert!(std::fs::read(out).unwrap() == std::fs::read(file).unwrap());
}

#[test]
fn a_fetch_that_is_killed_goes_on_with_what_it_had_not_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, noise(SIZE)).unwrap();
    let (provider, cid) = Provider::start(&file);
    let home = Home::new();
    let mut fetch = fetch_a_quarter(&home, &cid, &provider, "60s");
    fetch.kill().unwrap();
    fetch.wait().unwrap();
    the_rest_comes_once(&home, &cid, &file);
}

#[test]
fn a_fetch_whose_provider_is_killed_goes_on_with_another() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, noise(SIZE)).unwrap();
    let (provider, cid) = Provider::start(&file);
    let home = Home::new();
    let mut fetch = fetch_a_quarter(&home, &cid, &provider, "2s");
    iptl_e2e::kill(provider.node.pid());
    assert_eq!(wait(&mut fetch, LIMIT), Some(3), "nobody else has it");
    the_rest_comes_once(&home, &cid, &file);
}
