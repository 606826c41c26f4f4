//! Two results side by side: the same plan with two versions of its workload.

use iptl_e2e::{Home, repository};

/// Writes `plans/ping` as a plan whose component ends with `more`, which changes nothing that it does.
fn version(home: &Home, more: &[u8]) -> String {
    let dir = home.path().join("plan");
    std::fs::create_dir_all(&dir).unwrap();
    let source = repository().join("plans/ping");
    let mut program = std::fs::read(source.join("target/wasm32-wasip2/release/ping.wasm")).unwrap();
    program.extend_from_slice(more);
    std::fs::write(dir.join("ping.wasm"), program).unwrap();
    let manifest = std::fs::read_to_string(source.join("plan.toml")).unwrap();
    std::fs::write(dir.join("plan.toml"), manifest.replace("target/wasm32-wasip2/release/ping.wasm", "ping.wasm"))
        .unwrap();
    dir.display().to_string()
}

#[test]
fn two_versions_of_a_workload_are_shown_side_by_side() {
    let home = Home::new();
    let run = |more: &[u8], rounds: &str| {
        let plan = version(&home, more);
        let options = ["run", &plan, "--no-build", "--local", "-g", "node=2", "-p", rounds, "--json"];
        home.run(&options).exits(0).last_json()["result"].as_str().unwrap().to_owned()
    };
    // A custom section, called `x`.
    let (first, second) = (run(&[], "rounds=2"), run(&[0, 2, 1, b'x'], "rounds=3"));
    let local = home.path().join("local").display().to_string();
    let show = |more: &[&str]| home.run(&[&["show", &first, "--home", &local], more].concat());

    let text = show(&["--against", &second]).exits(0).stdout;
    for part in ["workload of node", "param rounds", "ping.tcp.rtt", "p99", "B / A", "node   cpu", "memory"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    assert!(!text.contains("seed"), "what is the same is not said:\n{text}");
    let both = show(&["--against", &second, "--json"]).exits(0).json();
    let differ: Vec<&str> = both["differ"].as_array().unwrap().iter().filter_map(|row| row["what"].as_str()).collect();
    assert_eq!(differ, ["param rounds", "workload of node"]);
    let metrics = both["metrics"].as_array().unwrap();
    assert!(metrics.iter().all(|row| row["a"].is_number() && row["b"].is_number()), "{both}");

    show(&["--against", &format!("{first}/files")]).fails(2, "show.no-result");
}
