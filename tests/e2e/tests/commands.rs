//! Commands that need no lab, no daemon and no network.

use std::net::TcpListener;
use std::path::Path;

use iptl_e2e::{Foreground, Home, noise};

#[test]
fn published_data_comes_back_the_same_with_no_daemon_running() {
    let home = Home::new();
    let dir = home.path().join("data");
    std::fs::create_dir_all(dir.join("inner")).unwrap();
    std::fs::write(dir.join("a.txt"), "hello\n").unwrap();
    let big = noise(3_000_000);
    std::fs::write(dir.join("inner/b.bin"), &big).unwrap();
    let path = dir.display().to_string();

    let hashed = home.run(&["publish", "data", &path, "--only-hash"]).exits(0).word();
    let published = home.run(&["publish", "data", &path]).exits(0);
    assert_eq!(published.word(), hashed);
    assert_eq!(home.run(&["publish", "data", &path, "-q"]).exits(0).stderr, "");

    let out = home.path().join("out").display().to_string();
    home.run(&["get", &hashed, "-o", &out]).exits(0);
    assert_eq!(std::fs::read(home.path().join("out/inner/b.bin")).unwrap(), big);
    let text = home.run(&["get", &format!("{hashed}/a.txt"), "-o", "-"]).exits(0);
    assert_eq!(text.stdout, "hello\n");

    let car = home.path().join("data.car").display().to_string();
    home.run(&["get", &hashed, "--car", "-o", &car]).exits(0);
    assert!(std::fs::metadata(&car).unwrap().len() > 3_000_000);
    let stat = home.run(&["dag", "stat", &hashed, "--json"]).exits(0).json();
    assert!(stat["blocks"].as_u64().unwrap() > 10);
    let tree = home.run(&["dag", "tree", &hashed]).exits(0).stdout;
    assert!(tree.contains("inner  "), "{tree}");
}

#[test]
fn a_car_goes_from_home_to_home_and_one_that_lacks_blocks_says_so() {
    let (author, reader) = (Home::new(), Home::new());
    let dir = author.path().join("data");
    std::fs::create_dir_all(dir.join("a/b")).unwrap();
    std::fs::write(dir.join("hello.txt"), "hello world").unwrap();
    std::fs::write(dir.join("a/zeros"), vec![0; 3 << 20]).unwrap();
    std::fs::write(dir.join("a/b/empty"), "").unwrap();
    let path = dir.display().to_string();
    // As npm's ipfs-unixfs-importer names this folder.
    for (profile, cid) in [
        ("unixfs-v1-2025", "bafybeibowlhlqbjpgtumw54vmod5r6wrimsuuvbxuumaiygsfk7xlme35q"),
        ("unixfs-v0-2015", "Qmejx5gsf49fhfaxtEuH5GFwxckXHQ54dGyW9ZXnYpKqYs"),
    ] {
        assert_eq!(author.run(&["publish", "data", &path, "--profile", profile, "-q"]).exits(0).word(), cid);
        let car = author.path().join(format!("{profile}.car")).display().to_string();
        author.run(&["get", cid, "--car", "-o", &car]).exits(0);
        let told = reader.run(&["import", &car, "--json"]).exits(0).json();
        assert_eq!((told["roots"][0].as_str(), told["complete"].as_bool()), (Some(cid), Some(true)), "{told}");
        let out = reader.path().join(profile).display().to_string();
        reader.run(&["get", cid, "-o", &out]).exits(0);
        assert_eq!(std::fs::read(format!("{out}/a/zeros")).unwrap(), vec![0; 3 << 20]);
        assert_eq!(std::fs::read(format!("{out}/hello.txt")).unwrap(), b"hello world");

        let cut = reader.path().join("cut.car").display().to_string();
        let bytes = std::fs::read(&car).unwrap();
        std::fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
        reader.run(&["import", &cut]).fails(2, "import.not-car");
    }
    author.run(&["publish", "data", &path, "--profile", "kubo"]).exits(2);
    author.run(&["publish", "workload", &path, "--links"]).fails(2, "publish.form");

    // The root alone, out of the whole: its head is the header and the first section.
    let whole = std::fs::read(author.path().join("unixfs-v1-2025.car")).unwrap();
    let header = 1 + usize::from(whole[0]);
    let length = usize::from(whole[header] & 0x7f) | usize::from(whole[header + 1]) << 7;
    assert!(whole[0] < 0x80 && whole[header] >= 0x80 && whole[header + 1] < 0x80, "lengths of one byte and of two");
    let root = header + 2 + length;
    let partial = reader.path().join("partial.car").display().to_string();
    std::fs::write(&partial, &whole[..root]).unwrap();
    let empty = Home::new();
    let told = empty.run(&["import", &partial, "--json"]).exits(0).json();
    assert_eq!(
        (told["complete"].as_bool(), told["blocks"].as_u64(), told["missing"].as_u64()),
        (Some(false), Some(1), Some(2))
    );
    let said = empty.run(&["import", &partial]).exits(0).stderr;
    assert!(said.contains("partial  2 blocks under the roots missing"), "{said}");
}

#[test]
fn a_node_is_started_asked_and_stopped() {
    let home = Home::new();
    let node = Foreground::start(home.path(), &[]);
    let status = home.run(&["status", "--json"]).exits(0).json();
    assert_eq!(status["schema"], "iptl.status/1");
    assert_eq!(status["lab"], serde_json::Value::Null);
    home.run(&["down", "--now"]).exits(0);
    assert!(!std::path::Path::new(&format!("/proc/{}/fd", node.pid())).exists() || home.run(&["status"]).code == 5);
    home.run(&["status"]).fails(5, "node.not-running");
}

#[test]
fn a_member_joins_by_ticket_and_by_approval() {
    let owner = Home::new();
    let _orchestrator = Foreground::start(owner.path(), &["--name", "owner"]);
    owner.run(&["lab", "init", "--name", "homelab"]).exits(0);
    let address = owner.run(&["status", "--json"]).exits(0).json()["addrs"][0].as_str().unwrap().to_owned();

    let by_ticket = Home::new();
    let ticket = owner.run(&["invite", "-q"]).exits(0).word();
    let joined = by_ticket.run(&["join", &ticket, "--name", "first", "--json"]).exits(0).json();
    assert_eq!((joined["lab_name"].as_str(), joined["role"].as_str()), (Some("homelab"), Some("lablet")));

    let by_asking = Home::new();
    let mut asking = by_asking.iptl(&["join", &address, "--name", "second", "--json"]);
    let asking = std::thread::spawn(move || iptl_e2e::run(&mut asking));
    let peer = iptl_e2e::until("a peer that asks", || {
        let status = owner.run(&["status", "--json"]).json();
        status["asking"][0]["peer"].as_str().map(str::to_owned)
    });
    owner.run(&["lab", "approve", &peer]).exits(0);
    let joined = asking.join().unwrap().exits(0).json();
    assert_eq!(joined["lab_name"], "homelab");
}

#[test]
fn a_new_plan_is_valid_and_its_name_is_checked() {
    let home = Home::new();
    let path = home.path().join("my-plan").display().to_string();
    home.run(&["new", &path]).exits(0);
    home.run(&["check", &path]).exits(0);
    assert!(home.path().join("my-plan/sdk/src/lib.rs").exists());
    home.run(&["new", &path]).fails(2, "new.exists");
    home.run(&["new", "My Plan"]).fails(2, "new.name");
}

#[test]
fn the_status_without_a_node_says_how_to_start_one() {
    let home = Home::new();
    let output = home.run(&["status"]).fails(5, "node.not-running");
    assert!(output.stderr.contains("iptl up"), "{}", output.stderr);
    home.run(&[]).exits(0);
    home.run(&["doctor"]).exits(0);
}

#[test]
fn the_doctor_finds_a_port_that_another_program_holds() {
    let home = Home::new();
    let address = {
        let _node = Foreground::start(home.path(), &[]);
        let addrs = home.run(&["status", "--json"]).json()["addrs"].clone();
        let tcp = addrs.as_array().unwrap().iter().filter_map(|a| a.as_str()).find(|a| a.contains("/tcp/")).unwrap();
        tcp.split("/p2p/").next().unwrap().to_owned()
    };
    let port = address.rsplit('/').next().unwrap();
    drop(Foreground::again(home.path(), &["--listen", &address]));
    home.run(&["doctor"]).exits(0);
    let _taken = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let output = home.run(&["doctor"]).exits(1);
    assert!(output.stdout.contains(&format!("tcp/{port}")), "{}", output.stdout);
}

#[test]
fn hidden_files_are_left_out_by_the_profiles_of_others_unless_they_are_asked_for() {
    let home = Home::new();
    let (with, without) = (home.path().join("with"), home.path().join("without"));
    for folder in [&with, &without] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("seen"), "seen").unwrap();
    }
    std::fs::create_dir(with.join(".folder")).unwrap();
    std::fs::write(with.join(".folder/inside"), "inside").unwrap();
    std::fs::write(with.join(".file"), "hidden").unwrap();
    let cid = |folder: &Path, options: &[&str]| {
        home.run(&[&["publish", "data", &folder.display().to_string(), "-q"], options].concat()).exits(0).word()
    };
    for profile in ["unixfs-v1-2025", "unixfs-v0-2015"] {
        let options = ["--profile", profile];
        assert_eq!(cid(&with, &options), cid(&without, &options), "{profile}");
        assert_ne!(cid(&with, &[&options[..], &["--hidden"]].concat()), cid(&without, &options), "{profile}");
    }
    assert_ne!(cid(&with, &[]), cid(&without, &[]), "the lab's own profile takes everything");
}
