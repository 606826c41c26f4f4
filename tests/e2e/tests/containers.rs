//! Containers: published as blocks, moved between nodes, run beside components.
//!
//! Where no engine can be used these tests say so on stderr and pass; where `CI` or `IPTL_DOCKER=required` is set they fail.

use std::path::PathBuf;

use iptl_e2e::beside::Beside;
use iptl_e2e::{Home, Lab, docker_is_required, noise, repository};
use serde_json::Value;

/// Ends a test where there is no engine.
macro_rules! engine {
    () => {
        let home = Home::new();
        let found = home.run(&["doctor", "--json"]).stdout;
        let docker = found.lines().find(|line| line.contains("\"docker\"")).unwrap_or_default().to_owned();
        if !docker.contains("\"state\":\"ok\"") {
            assert!(!docker_is_required(), "no engine can be used: {docker}");
            iptl_e2e::not_run(&format!("no engine can be used: {docker}"));
            return;
        }
    };
}

mod busy;
mod egress;
mod faults;
mod network;
mod random_deaths;
mod restarts;
mod stops;
mod takeover;

/// The program of `plans/mixed` as a static binary; `cargo xtask setup` and `test` build it.
fn program() -> PathBuf {
    repository().join("plans/mixed/target/x86_64-unknown-linux-musl/release/mixed")
}

fn plan() -> String {
    repository().join("plans/mixed").display().to_string()
}

#[test]
fn components_and_containers_talk_over_the_network_of_their_run() {
    engine!();
    // On one lablet, and on two with some of each kind on both; by IPv4, which is found first where there is both, and by
    // IPv6 where that is all there is.
    for (lablets, ip) in [(1, "both"), (1, "ipv6"), (2, "both"), (2, "ipv6")] {
        let lab = Lab::start_with_docker(lablets);
        let dir = lab.path().join("plan");
        std::fs::create_dir_all(&dir).unwrap();
        let manifest = std::fs::read_to_string(repository().join("plans/mixed/plan.toml")).unwrap();
        let built = format!("{}/target", plan());
        let network = format!(
            "\n[network]\nregions = [\"here\"]\ndelays = [[\"20ms\"]]\nip = \"{ip}\"\n\n[[cases.meet.thresholds]]\n\
             metric = \"connect.time\"\nstat = \"min\"\nat_least = \"40ms\"\n"
        );
        for (kind, name) in [("wasm32-wasip2", "mixed.wasm"), ("x86_64-unknown-linux-musl", "mixed")] {
            let to = dir.join("target").join(kind).join("release");
            std::fs::create_dir_all(&to).unwrap();
            std::fs::copy(format!("{built}/{kind}/release/{name}"), to.join(name)).unwrap();
        }
        std::fs::write(dir.join("plan.toml"), format!("{manifest}{network}")).unwrap();
        let plan = dir.display().to_string();
        let run = ["run", &plan, "--no-build", "-g", "component=4", "-g", "container=4", "--json"];
        let result = lab.run(&run).exits(0).last_json();
        assert_eq!((&result["verdict"], &result["ok"]), (&Value::from("pass"), &Value::from(8)), "{result}");
        let out = lab.path().join("out");
        let files = format!("{}/files", result["result"].as_str().unwrap());
        lab.run(&["get", &files, "-o", &out.display().to_string()]).exits(0);
        for (group, other) in [("component", "container"), ("container", "component")] {
            for index in 0..4 {
                let log = std::fs::read_to_string(out.join(format!("logs/{group}/{index}.jsonl"))).unwrap();
                assert!(log.contains(&format!("{group}-{index} was answered by {other}-{index}")), "{log}");
            }
        }
    }
}

#[test]
fn components_and_containers_of_one_run_meet() {
    engine!();
    let lab = Lab::start_with_docker(2);
    let last = lab.run(&["run", &plan(), "--no-build", "-g", "component=4", "-g", "container=4", "--json"]);
    let result = last.exits(0).last_json();
    assert_eq!((&result["verdict"], &result["ok"]), (&Value::from("pass"), &Value::from(8)));
    let shown = lab.run(&["show", "last", "--json"]).exits(0).json();
    assert_eq!((&shown["verified"], &shown["receipts"]), (&Value::from(true), &Value::from(8)));
    // Both kinds leave logs, events and metrics in the same places of the result.
    let out = lab.path().join("out");
    let files = format!("{}/files", result["result"].as_str().unwrap());
    lab.run(&["get", &files, "-o", &out.display().to_string()]).exits(0);
    for group in ["component", "container"] {
        let log = std::fs::read_to_string(out.join(format!("logs/{group}/3.jsonl"))).unwrap();
        assert!(log.contains(&format!("{group}-3 heard 7 others")), "{log}");
        let other = if group == "component" { "container" } else { "component" };
        assert!(log.contains(&format!("{group}-3 was answered by {other}-3")), "{log}");
        let events = std::fs::read_to_string(out.join(format!("events/{group}/0.jsonl"))).unwrap();
        assert!(events.contains("heard"), "{events}");
        let metrics = std::fs::read_to_string(out.join(format!("metrics/{group}/0.jsonl"))).unwrap();
        assert_eq!(metrics.lines().filter(|line| line.contains("barrier.time")).count(), 10, "{metrics}");
    }
}

#[test]
fn a_lab_without_an_engine_says_what_a_run_of_containers_waits_for() {
    let lab = Lab::start(1);
    let mut run = Beside::start(&mut lab.iptl(&["run", &plan(), "--no-build"]));
    run.says("has no docker runner");
    lab.run(&["cancel", "last"]).exits(0);
    run.end();
}

#[test]
fn a_program_is_published_as_an_image_and_a_second_version_moves_what_changed() {
    let (author, other) = (Home::new(), Home::new());
    let dir = author.path().join("rootfs");
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    std::fs::create_dir_all(dir.join("data")).unwrap();
    std::fs::copy(program(), dir.join("bin/mixed")).unwrap();
    for number in 0..20 {
        // No two files have a part in common.
        let data: Vec<u8> = noise(1_000_000).into_iter().map(|byte| byte.wrapping_mul(2 * number + 1)).collect();
        std::fs::write(dir.join(format!("data/{number}")), data).unwrap();
    }
    let rootfs = dir.display().to_string();
    let publish = |home: &Home| home.run(&["publish", "workload", "--rootfs", &rootfs]).exits(0).word();
    let first = publish(&author);
    assert_eq!(publish(&author), first, "equal files make an equal image");

    let node = iptl_e2e::Foreground::start(author.path(), &[]);
    let address = author.run(&["status", "--json"]).json()["addrs"][0].as_str().unwrap().to_owned();
    let fetch = |cid: &str| {
        let got = other.run(&["get", cid, "--car", "--json", "--peer", &address, "-o", "/dev/null"]).exits(0).json();
        got["bytes_fetched"].as_u64().unwrap()
    };
    let whole = fetch(&first);
    assert!(whole > 20_000_000, "{whole}");
    // A rebuilt program is another file at the same place.
    let mut rebuilt = std::fs::read(dir.join("bin/mixed")).unwrap();
    let middle = rebuilt.len() / 2;
    rebuilt[middle] ^= 1;
    std::fs::write(dir.join("bin/mixed"), rebuilt).unwrap();
    let second = publish(&author);
    assert_ne!(second, first);
    let moved = fetch(&second);
    assert!(moved * 100 <= whole * 3, "{moved} of {whole} bytes moved again");
    drop(node);
}

#[test]
fn what_is_no_program_is_no_image() {
    let home = Home::new();
    let path = |name: &str| home.path().join(name).display().to_string();
    std::fs::write(home.path().join("text"), "hello").unwrap();
    std::fs::write(home.path().join("script"), "#!/bin/sh\n").unwrap();
    home.run(&["publish", "workload", "--binary", &path("text")]).fails(2, "workload.no-image");
    let script = home.run(&["publish", "workload", "--binary", &path("script")]).fails(2, "workload.no-image");
    assert!(script.stderr.contains("--rootfs"), "{}", script.stderr);
    let linked = home.run(&["publish", "workload", "--binary", "/bin/ls"]).fails(2, "workload.no-image");
    assert!(linked.stderr.contains("--with-libs"), "{}", linked.stderr);
    home.run(&["publish", "workload", "--oci", &path("text")]).fails(2, "workload.bad-image");
    home.run(&["publish", "workload", "--rootfs", &path("nowhere")]).fails(2, "path.not-found");
    home.run(&["publish", "data", "--rootfs", &path("")]).fails(2, "publish.image");
}

#[test]
fn an_image_is_built_by_the_engine_and_published_from_it() {
    engine!();
    let home = Home::new();
    let dir = home.path().join("context");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(program(), dir.join("mixed")).unwrap();
    std::fs::write(dir.join("Dockerfile"), "FROM scratch\nCOPY mixed /app/mixed\nENTRYPOINT [\"/app/mixed\"]\n")
        .unwrap();
    let context = dir.display().to_string();
    let cid = home.run(&["publish", "workload", "--dockerfile", &context]).exits(0).word();
    let shown = home.run(&["dag", "get", &cid]).exits(0).stdout;
    assert!(shown.contains("docker"), "{shown}");

    std::fs::write(dir.join("Dockerfile"), "FROM scratch\nCOPY nothing /\n").unwrap();
    home.run(&["publish", "workload", "--dockerfile", &context]).fails(1, "build.failed");
    home.run(&["publish", "workload", "--image", "iptl.invalid/nobody/has:this"]).fails(3, "docker.no-image");
}

#[test]
fn images_are_taken_from_the_engine_that_the_home_names() {
    let home = Home::new();
    std::fs::write(home.path().join("node.toml"), "[docker]\nsocket = \"/nowhere/engine.sock\"\n").unwrap();
    let refused = home.run(&["publish", "workload", "--image", "any:thing"]).fails(1, "docker.unusable");
    assert!(refused.stderr.contains("/nowhere/engine.sock"), "{}", refused.stderr);
}
