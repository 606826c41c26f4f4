//! Two orchestrators that cannot hear each other: lablets hear one of them, and what the other does counts for nothing.

use std::process::Command;

use iptl_e2e::{Foreground, Home, not_run, run, until};

use super::takeover::{is_followed, leads, leads_now, log_holds};
use super::{Plan, passed_once};

/// Two networks with a link between them that can be cut: one of the first orchestrator, one of all others.
struct Networks {
    names: [String; 2],
}

impl Networks {
    /// Makes them; none where this user may not.
    fn make() -> Option<Networks> {
        if run(Command::new("id").arg("-u")).stdout.trim() != "0" {
            not_run("only root may make networks");
            return None;
        }
        let names = ["first", "rest"].map(|of| format!("iptl-{}-{of}", std::process::id()));
        let networks = Networks { names };
        for name in &networks.names {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        let [first, rest] = &networks.names;
        ip(&format!("-n {first} link add eth0 type veth peer name eth0 netns {rest}"));
        for (name, host) in [(first, 1), (rest, 2)] {
            ip(&format!("-n {name} addr add 10.78.0.{host}/24 dev eth0"));
            ip(&format!("-n {name} link set eth0 up"));
        }
        Some(networks)
    }

    /// Starts a node in one of them.
    fn start(&self, network: usize, home: &Home) -> Foreground {
        let listen = format!("/ip4/10.78.0.{}/tcp/0", network + 1);
        let args = ["--no-mdns", "--no-docker", "--listen", &listen];
        Foreground::within(&self.names[network], home.path(), &args)
    }

    /// Cuts or mends the link.
    fn link(&self, state: &str) {
        ip(&format!("-n {} link set eth0 {state}", self.names[0]));
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

#[track_caller]
fn ip(line: &str) {
    run(Command::new("ip").args(line.split(' '))).exits(0);
}

fn submit(home: &Home, plan: &str, watch: &str) -> String {
    home.run(&["run", plan, "--no-build", "-p", &format!("watch={watch}"), "--detach"]).exits(0).word()
}

/// Waits until an execution is in a state: the word that `ls runs` begins it with.
#[track_caller]
fn reaches(home: &Home, execution: &str, state: &str) {
    until(&format!("state {state} of {execution}"), || {
        let rows = home.run(&["ls", "runs", "--json"]).stdout;
        let row = rows.lines().find(|row| row.contains(execution))?;
        row.contains(&format!("\"state\":\"{state}")).then_some(())
    });
}

#[test]
fn of_two_leaders_that_are_parted_the_old_one_does_nothing_that_counts() {
    let Some(networks) = Networks::make() else { return };
    let (old, new, lablet) = (Home::new(), Home::new(), Home::new());
    let _old = networks.start(0, &old);
    old.run(&["lab", "init", "--name", "parted"]).exits(0);
    let _new = networks.start(1, &new);
    let _lablet = networks.start(1, &lablet);
    for (home, role) in [(&new, "orchestrator"), (&lablet, "lablet")] {
        let ticket = old.run(&["invite", "--role", role]).exits(0).word();
        home.run(&["join", &ticket]).exits(0);
    }
    until("a lablet", || (old.run(&["status", "--json"]).json()["lablets_ready"] == 1).then_some(()));
    let plan = Plan::new(2).quick(2);
    let folder = old.path().join("plan");
    plan.write_to(&folder);
    let folder = folder.display().to_string();
    let execution = submit(&old, &folder, "25s");
    reaches(&old, &execution, "running");
    is_followed(old.path());

    networks.link("down");
    assert_eq!(leads_now(&new), 1);
    // The old one still believes that it leads, accepts a run, and finds nobody who takes it.
    let orphan = submit(&old, &folder, "10ms");
    let stays = leads(old.path()).unwrap();
    assert_eq!((stays["term"].as_u64(), &stays["leader"]), (Some(0), &old.run(&["status", "--json"]).json()["peer"]));
    passed_once(&new, new.run(&["watch", &execution, "--json"]), plan.instances());
    let meanwhile = submit(&new, &folder, "10ms");
    passed_once(&new, new.run(&["watch", &meanwhile, "--json"]), plan.instances());
    // The old one has lost its lablet, and seals what it knows of: nothing.
    reaches(&old, &execution, "sealed");
    let junk = old.run(&["watch", &execution, "--json"]).last_json();
    assert_eq!(junk["verdict"], "inconclusive", "{junk}");
    let rows = old.run(&["ls", "runs", "--json"]).stdout;
    let orphaned = rows.lines().find(|row| row.contains(&orphan)).unwrap();
    assert!(!orphaned.contains("running") && !orphaned.contains("sealed"), "{rows}");

    networks.link("up");
    is_followed(new.path());
    until("that the old one follows", || (leads(old.path())?["term"] == 1).then_some(()));
    // Both say the same of what ran, and what the old one had to itself is nowhere.
    passed_once(&old, old.run(&["watch", &execution, "--json"]), plan.instances());
    log_holds(&old, &execution);
    for home in [&old, &new] {
        home.run(&["watch", &orphan]).fails(3, "execution.unknown");
    }
    let said = std::fs::read_to_string(lablet.path().join("node.log")).unwrap();
    assert!(said.contains(&execution) && !said.contains(&orphan), "{said}");
    let next = submit(&old, &folder, "10ms");
    passed_once(&new, new.run(&["watch", &next, "--json"]), plan.instances());

    // The old one leads again, and tells the result of the later term: what it sealed alone counts for nothing.
    let sealed = new.run(&["watch", &execution, "--json"]).last_json();
    is_followed(new.path());
    new.run(&["lab", "handover"]).exits(0);
    assert_eq!(leads_now(&old), 2);
    for home in [&old, &new] {
        passed_once(home, home.run(&["watch", &execution, "--json"]), plan.instances());
        assert_eq!(home.run(&["watch", &execution, "--json"]).last_json()["result"], sealed["result"]);
        reaches(home, &execution, "sealed");
    }
    assert_ne!(sealed["result"], junk["result"]);
    let listed = old.run(&["ls", "results", "--json"]).stdout;
    assert!(listed.contains(sealed["result"].as_str().unwrap()), "{listed}");
    assert!(!listed.contains(junk["result"].as_str().unwrap()), "{listed}");
}
