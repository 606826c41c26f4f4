//! Containers leave the lab where the owner of their machine grants it, to what is granted, and nowhere else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};

use iptl_e2e::beside::Beside;
use iptl_e2e::{Home, Lab, docker_is_required};
use serde_json::Value;

use super::network::program;

/// A server outside of the lab, until the test is over.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut heard = String::new();
            let _ = stream.read_to_string(&mut heard);
            let _ = stream.write_all(format!("outside {heard}").as_bytes());
        }
    });
    at
}

/// A lab whose second lablet grants this alone.
fn lab(granted: &str) -> Lab {
    let home = Home::new();
    let listen = "listen = [\"/ip4/127.0.0.1/udp/0/quic-v1\", \"/ip4/127.0.0.1/tcp/0\"]";
    for (number, egress) in [(1, String::new()), (2, format!("\"{granted}\""))] {
        let lablet = home.path().join(format!("lablet-{number}"));
        std::fs::create_dir_all(&lablet).unwrap();
        std::fs::write(lablet.join("node.toml"), format!("{listen}\n\n[network]\negress = [{egress}]\n")).unwrap();
    }
    Lab::start_in_with_docker(home, 2)
}

/// Writes a plan whose instances ask for a place, and try it and another.
fn plan(lab: &Lab, name: &str, asked: &str, tried: &[String]) -> String {
    let dir = lab.path().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(program(), dir.join("work")).unwrap();
    let args: Vec<String> = tried.iter().map(|place| format!("\"{place}\"")).collect();
    let text = format!(
        "[plan]\nname = \"leaving\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"docker\"\nbinary = \"work\"\n\n\
         [cases.only]\ntimeout = \"2m\"\n\n[cases.only.groups.node]\nworkload = \"work\"\ncount = 3\n\
         args = [\"reach-out\", {}]\naffinity = \"spread\"\n\
         resources = {{ memory = \"32MiB\", cpu = \"20s\", wall = \"1m\" }}\n\n\
         [cases.only.groups.node.container]\negress = [\"{asked}\"]\n\n\
         [[cases.only.thresholds]]\nsuccess_rate = {{ at_least = 1.0 }}\n",
        args.join(", ")
    );
    std::fs::write(dir.join("plan.toml"), text).unwrap();
    dir.display().to_string()
}

#[test]
fn containers_leave_the_lab_where_the_owner_grants_it() {
    engine!();
    let (server, other) = (serve(), serve());
    let granted = format!("{server}/tcp");
    let lab = lab(&granted);
    // An address of the machine's own is reached at one of the lab's, which the first place of a run has.
    let inside = |port: u16| format!("tcp/192.0.2.64:{port}");
    let tried = [inside(server.port()), inside(other.port()), format!("tcp/{server}")];
    let plan_of = plan(&lab, "granted", &granted, &tried);

    let shown = lab.run(&["run", &plan_of, "--dry-run"]).exits(0);
    let all = format!("{}{}", shown.stdout, shown.stderr);
    assert!(all.contains(&format!("leaves    node: {granted}")), "{all}");
    assert!(all.contains(&format!("way out of the lab to {granted} wanted, its owner does not grant it")), "{all}");
    assert!(all.contains("lablet-2") && all.contains("0..=2 (3)"), "all on the one that grants it: {all}");

    let result = lab.run(&["run", &plan_of, "--json"]).exits(0).last_json();
    assert_eq!((&result["verdict"], &result["ok"]), (&Value::from("pass"), &Value::from(3)), "{result}");
    let result = result["result"].as_str().unwrap();
    let out = lab.path().join("out");
    lab.run(&["get", &format!("{result}/files"), "-o", &out.display().to_string()]).exits(0);
    for index in 0..3 {
        let log = std::fs::read_to_string(out.join(format!("logs/node/{index}.jsonl"))).unwrap();
        assert_eq!(log.matches("outside hello").count(), 1, "{log}");
    }
    for receipt in super::network::receipts(&lab, result) {
        let used = &receipt["network"]["egress"][&granted];
        assert_eq!(
            (&used["connections"], &used["sent_bytes"], &used["received_bytes"]),
            (&1.into(), &5.into(), &13.into())
        );
    }

    // What nobody grants is waited for, and the reason is told.
    let asked = format!("{other}/tcp");
    let plan_of = plan(&lab, "refused", &asked, &[inside(other.port())]);
    let mut run = Beside::start(&mut lab.iptl(&["run", &plan_of]));
    run.says(&format!("way out of the lab to {asked} wanted, its owner does not grant it"));
    lab.run(&["cancel", "last"]).exits(0);
    run.end();
}
