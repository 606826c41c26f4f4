//! A lab that looks after itself: it sees by its canary whether users could use it, and says so.

use iptl_e2e::{Foreground, Home, Lab, until};
use serde_json::Value;

/// A lab whose orchestrator executes its canary after a second without anything.
fn lab(lablets: u32) -> Lab {
    let home = Home::new();
    let orchestrator = home.path().join("orchestrator");
    std::fs::create_dir_all(&orchestrator).unwrap();
    let listen = "listen = [\"/ip4/127.0.0.1/udp/0/quic-v1\", \"/ip4/127.0.0.1/tcp/0\"]";
    std::fs::write(orchestrator.join("node.toml"), format!("{listen}\n\n[health]\ncanary_s = 1\n")).unwrap();
    Lab::start_in(home, lablets)
}

/// Returns the three booleans, where all were seen.
fn signs(status: &Value) -> Option<[bool; 3]> {
    let ok = |need: &str| status["health"][need]["ok"].as_bool();
    Some([ok("place")?, ok("run")?, ok("seal")?])
}

#[test]
fn an_idle_lab_shows_that_it_places_runs_and_seals_and_nothing_of_it_is_listed() {
    let lab = lab(1);
    // The orchestrator looks for the first time after a second, and whether the lablet has come by then is another matter.
    let output = until("three signs of health", || {
        let output = lab.run(&["status", "--json"]);
        (signs(&output.json()) == Some([true; 3])).then_some(output)
    });
    let status = output.exits(0).json();
    assert!(status["health"]["seal"]["age_ms"].as_u64().unwrap() < 60_000, "{status}");
    let text = lab.run(&["status"]).exits(0).stdout;
    assert!(text.contains("place: ok") && text.contains("run: ok") && text.contains("seal: ok"), "{text}");
    for what in ["runs", "results", "pins"] {
        let listed = lab.run(&["ls", what, "--json"]).exits(0).stdout;
        assert_eq!(listed.trim(), "", "the canary is among the {what}");
    }
    let logs = std::fs::read_dir(lab.orchestrator.home.join("log/over")).map_or(0, |entries| entries.count());
    assert_eq!(logs, 0, "logs of canaries are kept");
}

#[test]
fn a_lab_whose_lablets_are_gone_is_offline_by_itself_and_comes_back_by_itself() {
    let lab = lab(1);
    let seen = |wanted: [bool; 3]| move |status: &Value| signs(status) == Some(wanted);
    let wait = |what: &str, holds: &dyn Fn(&Value) -> bool| {
        until(what, || {
            let output = lab.run(&["status", "--json"]);
            holds(&output.json()).then_some(output)
        })
    };
    wait("health", &seen([true; 3])).exits(0);
    lab.lablets[0].kill();
    // A canary that was on its way when the lablet died is lost with it, and that is seen before that nobody is left.
    let nobody_places = |status: &Value| status["online"] == false && status["health"]["place"]["ok"] == false;
    let status = wait("trouble", &nobody_places).exits(5).json();
    let reason = status["offline_reason"].as_str().unwrap();
    assert!(!reason.is_empty() && status["health"]["place"]["trouble"] == reason, "{status}");
    let _again = Foreground::again(&lab.lablets[0].home, &[]);
    wait("health again", &|status| status["online"] == true && signs(status) == Some([true; 3])).exits(0);
}
