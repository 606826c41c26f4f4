//! Commands and views of members: who asks is not the lab's owner, and not where the instances are.

use std::process::Command;

use iptl_e2e::beside::Beside;
use iptl_e2e::{Foreground, Home, Lab, not_run, run, until};
use serde_json::Value;

use crate::exec::{is_there_an_engine, write_plan};

/// Commands that run at a time on one lablet.
const MAX_AT_ONCE: usize = 32;

/// Networks that only one machine connects: the orchestrator's, which forwards no packets.
struct Apart {
    names: [String; 3],
}

impl Apart {
    /// Makes networks of an orchestrator, a lablet and a developer; none where this user may not.
    fn make() -> Option<Apart> {
        if run(Command::new("id").arg("-u")).stdout.trim() != "0" {
            not_run("only root may make networks");
            return None;
        }
        let name = |of: &str| format!("iptl-{}-{of}", std::process::id());
        let apart = Apart { names: ["orch", "lablet", "dev"].map(name) };
        let ip = |line: String| run(Command::new("ip").args(line.split(' '))).exits(0);
        for name in &apart.names {
            ip(format!("netns add {name}"));
            ip(format!("-n {name} link set lo up"));
        }
        let [orchestrator, others @ ..] = &apart.names;
        for (number, other) in others.iter().enumerate() {
            ip(format!("-n {orchestrator} link add to-{number} type veth peer name eth0 netns {other}"));
            for (network, link, host) in [(orchestrator, format!("to-{number}"), 1), (other, "eth0".to_owned(), 2)] {
                ip(format!("-n {network} addr add 10.77.{number}.{host}/24 dev {link}"));
                ip(format!("-n {network} link set {link} up"));
            }
        }
        Some(apart)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Lets a developer's node join and returns its home.
fn developer(lab: &Lab) -> (Home, Foreground) {
    let home = Home::new();
    let node = Foreground::start(home.path(), &[]);
    let ticket = lab.run(&["invite", "--role", "developer", "-q"]).exits(0).word();
    home.run(&["join", &ticket]).exits(0);
    (home, node)
}

/// Waits until the instance of the last run runs: that the run was started is one thing, that its lablet has heard of it
/// another.
fn running(home: &Home) {
    until("an instance that runs", || {
        let top: Value = serde_json::from_str(&home.run(&["top", "last", "--json"]).stdout).ok()?;
        (top["groups"]["open"]["running"] == 1).then_some(())
    });
}

#[test]
fn a_command_reaches_a_lablet_that_only_the_orchestrator_connects_with_who_asks() {
    if !is_there_an_engine() {
        return;
    }
    let Some(apart) = Apart::make() else { return };
    let [in_orchestrator, in_lablet, in_developer] = &apart.names;
    let listen = |addrs: &[&str]| -> Vec<String> {
        addrs.iter().flat_map(|ip| ["--listen".to_owned(), format!("/ip4/{ip}/tcp/0")]).collect()
    };
    let start = |network: &str, home: &Home, addrs: &[&str], more: &[&str]| {
        let listen = listen(addrs);
        let args: Vec<&str> =
            listen.iter().map(String::as_str).chain(["--no-mdns"]).chain(more.iter().copied()).collect();
        Foreground::within(network, home.path(), &args)
    };
    let (owner, lablet, asker) = (Home::new(), Home::new(), Home::new());
    let _orchestrator = start(in_orchestrator, &owner, &["10.77.0.1", "10.77.1.1"], &["--no-docker"]);
    owner.run(&["lab", "init", "--name", "apart"]).exits(0);
    let _lablet = start(in_lablet, &lablet, &["10.77.0.2"], &["--allow-exec"]);
    let _developer = start(in_developer, &asker, &["10.77.1.2"], &["--no-docker"]);
    for (home, role) in [(&lablet, "lablet"), (&asker, "developer")] {
        let ticket = owner.run(&["invite", "--role", role, "-q"]).exits(0).word();
        home.run(&["join", &ticket]).exits(0);
    }
    until("a lablet", || (owner.run(&["status", "--json"]).json()["lablets_ready"] == 1).then_some(()));
    let far = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{in_developer}"))
        .args(["ip", "route", "get", "10.77.0.2"])
        .output()
        .unwrap();
    assert!(!far.status.success(), "there is a way from the developer to the lablet");

    let plan = tempfile::tempdir().unwrap();
    asker.run(&["run", &write_plan(plan.path()), "--no-build", "--detach", "-g", "open=1"]).exits(0);
    running(&asker);
    let said = asker.run(&["exec", "last/open/0", "--", "sh", "-c", "echo from there; exit 5"]).exits(5);
    assert_eq!(said.stdout, "from there\n");
    asker.run(&["exec", "last/open/0", "--", "sh", "-c", "echo > /tmp/done"]).exits(0);
    let done = asker.run(&["watch", "last", "--json"]).exits(0).last_json();
    let shown = asker.run(&["show", done["result"].as_str().unwrap(), "--json"]).exits(0).json();
    let by = asker.run(&["status", "--json"]).json()["peer"].clone();
    assert_eq!(shown["interventions"][0]["by"], by, "{shown}");
    assert_eq!(shown["interventions"][0]["exit"], 5, "{shown}");
}

#[test]
fn commands_in_the_run_of_another_developer_are_refused_and_so_are_too_many() {
    if !is_there_an_engine() {
        return;
    }
    let lab = Lab::start_with_exec(1);
    let ((mine, _first), (theirs, _second)) = (developer(&lab), developer(&lab));
    let plan = tempfile::tempdir().unwrap();
    let execution =
        mine.run(&["run", &write_plan(plan.path()), "--no-build", "--detach", "-g", "open=1"]).exits(0).word();
    running(&mine);
    let target = format!("{execution}/open/0");
    // It is another's run: its name is no secret, and its instances are.
    let refused = theirs.run(&["exec", &target, "--", "sh"]).fails(4, "exec.not-allowed");
    assert!(refused.stderr.contains("and not by you"), "{}", refused.stderr);
    mine.run(&["exec", &target, "--", "sh", "-c", "exit 0"]).exits(0);
    lab.run(&["exec", &target, "--", "sh", "-c", "exit 0"]).exits(0);

    // They wait without a process of their own beside them: a container may have only so many.
    let waiting = "echo hold-the-line; read enough";
    let mut sessions: Vec<Beside> = (0..MAX_AT_ONCE)
        .map(|_| Beside::start_with_input(&mut mine.iptl(&["exec", &target, "--", "sh", "-c", waiting])))
        .collect();
    for session in &mut sessions {
        session.says("hold-the-line");
    }
    let refused = mine.run(&["exec", &target, "--", "sh", "-c", "exit 0"]).fails(5, "exec.too-many");
    assert!(refused.stderr.contains("32 commands run on this lablet already"), "{}", refused.stderr);
    lab.run(&["explain", "exec.too-many"]).exits(0);
    // One that ends makes room for another.
    drop(sessions.pop());
    until("room for another", || (mine.run(&["exec", &target, "--", "sh", "-c", "exit 0"]).code == 0).then_some(()));
    for mut session in sessions {
        session.types("enough\n");
        session.end().exits(0);
    }
    mine.run(&["exec", &target, "--", "sh", "-c", "echo > /tmp/done"]).exits(0);
    mine.run(&["watch", &execution]).exits(0);
}
