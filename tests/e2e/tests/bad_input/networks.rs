//! Networks that are none: refused by `iptl check`, with the place, before anything runs.

use iptl_e2e::Home;

const PLAN: &str = r#"[plan]
name = "bad"
version = "0.1.0"

[workloads.work]
runner = "wasm"
path = "work.wasm"

[cases.only]
timeout = "20s"

[cases.only.groups.node]
workload = "work"
count = 2

"#;

/// Checks that a plan with this network is refused with a code and these words, at a line of the network.
fn is_refused(network: &str, code: &str, words: &str) {
    let home = Home::new();
    let plan = home.path().join("plan.toml");
    std::fs::write(&plan, format!("{PLAN}{network}")).unwrap();
    let refused = home.run(&["check", &plan.display().to_string()]).exits(2).stderr;
    assert!(refused.contains(code) && refused.contains(words), "{code}, {words:?}: {refused}");
    let line = refused.split("plan.toml:").nth(1).and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
    assert!(line.is_some_and(|line| line > PLAN.lines().count()), "a line of the network: {refused}");
    home.run(&["explain", code]).exits(0);
}

#[test]
fn matrix_that_is_not_square() {
    let network = "[network]\nregions = [\"eu\", \"us\"]\ndelays = [[\"1ms\", \"50ms\"], [\"50ms\"]]\n";
    is_refused(network, "E0315", "not square");
}

#[test]
fn delay_that_is_negative() {
    is_refused("[network]\nregions = [\"eu\"]\ndelay = \"-5ms\"\n", "E0206", "-5ms");
}

#[test]
fn delay_that_is_absurd() {
    is_refused("[network]\nregions = [\"eu\"]\ndelay = \"90000h\"\n", "E0206", "too large");
}

#[test]
fn group_in_no_region() {
    let network =
        "[network]\nregions = [\"eu\"]\ndelay = \"5ms\"\n\n[network.groups.node]\nregions = { mars = \"100%\" }\n";
    is_refused(network, "E0317", "no region `mars`");
}

#[test]
fn hundred_thousand_links() {
    let regions: Vec<String> = (0..320).map(|n| format!("\"r{n}\"")).collect();
    is_refused(&format!("[network]\nregions = [{}]\ndelay = \"5ms\"\n", regions.join(", ")), "E0316", "regions");
}

#[test]
fn nat_inside_itself() {
    let network = "[network]\nregions = [\"eu\"]\ndelay = \"5ms\"\n\n\
                   [network.sites.office]\ngateway = \"symmetric\"\ninside = \"office\"\n";
    is_refused(network, "E0319", "inside itself");
}

#[test]
fn name_that_is_taken() {
    is_refused("[network]\nregions = [\"eu\", \"eu\"]\ndelay = \"5ms\"\n", "E0320", "a region already");
}
