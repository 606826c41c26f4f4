//! What needs no lab: a run on this computer, and fetching that was broken off.

use iptl_e2e::beside::Beside;
use iptl_e2e::{Foreground, Home, until};

use super::Plan;

#[test]
fn a_local_run_is_kept_and_verified_without_a_network() {
    let home = Home::new();
    let dir = home.path().join("plan");
    let plan = Plan::new(2).quick(1);
    plan.write_to(&dir);
    let run = || home.run(&["run", &dir.display().to_string(), "--no-build", "--local", "-p", "watch=200ms", "--json"]);
    let (first, second) = (run().exits(0).last_json(), run().exits(0).last_json());
    assert_eq!((first["run"].clone(), first["verdict"].clone()), (second["run"].clone(), second["verdict"].clone()));
    let local = home.path().join("local").display().to_string();
    let shown = home.run(&["show", "last", "--json", "--home", &local]);
    assert_eq!(shown.exits(0).json()["verified"], true);
}

#[test]
fn a_fetch_that_was_killed_goes_on_where_it_was() {
    let (source, sink) = (Home::new(), Home::new());
    let _node = Foreground::start(source.path(), &[]);
    let address = source.run(&["status", "--json"]).exits(0).json()["addrs"][0].as_str().unwrap().to_owned();
    let file = source.path().join("big.bin");
    let mut state = 1u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(128 << 20)
    .collect();
    std::fs::write(&file, &bytes).unwrap();
    let cid = source.run(&["publish", "data", &file.display().to_string()]).exits(0).word();

    let out = sink.path().join("out.bin").display().to_string();
    let get = ["get", &cid, "-o", &out, "--peer", &address, "--json"];
    let fetching = Beside::start(&mut sink.iptl(&get));
    until("some of it", || (size_of(&sink.path().join("store")) > 64 << 20).then_some(()));
    fetching.signal("KILL");
    let broken = fetching.end();
    assert!(broken.code == 137 || broken.code == 0, "{broken:?}");
    let whole = sink.run(&get).exits(0).last_json();
    let (all, fetched) = (whole["bytes"].as_u64().unwrap(), whole["bytes_fetched"].as_u64().unwrap());
    assert!(all >= 128 << 20 && fetched < all - (4 << 20), "{whole}");
    assert!(std::fs::read(&out).unwrap() == bytes, "what came is not what was published");
}

fn size_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of(&entry.path()),
            Ok(meta) => meta.len(),
            // It was moved meanwhile.
            Err(_) => 0,
        })
        .sum()
}
