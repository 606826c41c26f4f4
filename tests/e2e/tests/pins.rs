//! What is kept because somebody said so: by `iptl gc`, by a quota, and for how long.

use iptl_e2e::{Foreground, Home, Output, noise, until};

/// Bytes of a file: some blocks.
const SIZE: usize = 800_000;

/// A node that publishes folders, and goes when the test says so.
struct Publisher {
    home: Home,
    address: String,
    node: Foreground,
}

impl Publisher {
    fn new() -> Publisher {
        let home = Home::new();
        let node = Foreground::start(home.path(), &[]);
        let address = home.run(&["status", "--json"]).exits(0).json()["addrs"][0].as_str().unwrap().to_owned();
        Publisher { home, address, node }
    }

    /// Publishes a folder with a file of [`SIZE`] that no other folder has; returns its CID.
    fn publish(&self, number: usize) -> String {
        let dir = self.home.path().join(format!("folder-{number}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("file"), &noise((number + 1) * SIZE)[number * SIZE..]).unwrap();
        self.home.run(&["publish", "data", &dir.display().to_string(), "-q"]).exits(0).word()
    }
}

/// Reads the whole of something that has to be here.
fn get_here(home: &Home, cid: &str) -> Output {
    home.run(&["get", cid, "--store-only", "--timeout", "1s"])
}

#[test]
fn what_is_pinned_stays_and_the_rest_of_what_came_goes() {
    let publisher = Publisher::new();
    let [kept, gone, block] = [0, 1, 2].map(|number| publisher.publish(number));
    let home = Home::new();
    let from = ["--peer", &publisher.address, "--timeout", "60s"];
    home.run(&[&["get", &gone, "--store-only"][..], &from].concat()).exits(0);
    let pinned = home.run(&[&["pin", &kept, "--name", "corpus", "--json"][..], &from].concat()).exits(0).json();
    assert_eq!((pinned["cid"].as_str(), pinned["direct"].as_bool()), (Some(kept.as_str()), Some(false)), "{pinned}");
    assert!(pinned["bytes_fetched"].as_u64().unwrap() > SIZE as u64, "{pinned}");
    let pinned = home.run(&[&["pin", &block, "--direct", "--json"][..], &from].concat()).exits(0).json();
    assert_eq!((pinned["blocks"].as_u64(), pinned["direct"].as_bool()), (Some(1), Some(true)), "{pinned}");
    drop(publisher.node);

    // No upload or fetch of this process has brought anything, so that nothing stays for some minutes.
    let collected = home.run(&["gc", "--json"]).exits(0).json();
    assert!(collected["removed"].as_u64().unwrap() > 2 && collected["missing"] == 0, "{collected}");
    get_here(&home, &kept).exits(0);
    get_here(&home, &gone).fails(3, "fetch.no-provider");
    home.run(&["dag", "get", &block, "--timeout", "1s"]).exits(0);
    get_here(&home, &block).fails(3, "fetch.no-provider");

    let rows = home.run(&["ls", "pins", "--json"]).exits(0).json_lines();
    let row = |cid: &str| rows.iter().find(|row| row["cid"] == cid).unwrap_or_else(|| panic!("{cid} in {rows:?}"));
    assert_eq!((row(&kept)["mode"].as_str(), row(&kept)["name"].as_str()), (Some("recursive"), Some("corpus")));
    assert_eq!((row(&block)["mode"].as_str(), row(&block)["readers"].as_str()), (Some("direct"), Some("members")));
    assert_eq!(rows.len(), 2, "{rows:?}");

    home.run(&["unpin", &kept]).exits(0);
    home.run(&["unpin", &block]).exits(0);
    home.run(&["gc"]).exits(0);
    get_here(&home, &kept).fails(3, "fetch.no-provider");
    home.run(&["dag", "get", &block, "--timeout", "1s"]).fails(3, "fetch.no-provider");
}

#[test]
fn pins_say_what_they_cannot_keep_and_stay_as_they_were() {
    let publisher = Publisher::new();
    let cid = publisher.publish(0);
    let home = Home::new();
    let mode = || home.run(&["ls", "pins", "--json"]).exits(0).last_json()["mode"].as_str().unwrap().to_owned();
    home.run(&["pin", &cid, "--timeout", "1s"]).fails(3, "fetch.no-provider");
    assert_eq!(home.run(&["ls", "pins", "--json"]).exits(0).stdout, "");
    home.run(&["pin", &cid, "--direct", "--name", "folder", "--peer", &publisher.address]).exits(0);
    drop(publisher.node);
    // Its file is not here.
    home.run(&["pin", &cid, "--timeout", "1s"]).fails(3, "fetch.no-provider");
    assert_eq!(mode(), "direct");

    let whole = publisher.home;
    whole.run(&["pin", &cid, "--direct"]).fails(2, "pin.recursive");
    // One that is there already is called something else, and stays what it is.
    whole.run(&["pin", &cid, "--name", "other"]).exits(0);
    let row = whole.run(&["ls", "pins", "--json"]).exits(0).last_json();
    assert_eq!(
        (row["name"].as_str(), row["kind"].as_str(), row["mode"].as_str()),
        (Some("other"), Some("data"), Some("recursive"))
    );
    whole.run(&["pin", &format!("{cid}/file"), "--name", "part"]).exits(0);
    whole.run(&["pin", &format!("{cid}/nothing")]).fails(3, "path.not-found");
    whole.run(&["unpin", &cid]).exits(0);
    whole.run(&["gc"]).exits(0);
    // The folder is gone, and its file is not.
    let rows = whole.run(&["ls", "pins", "--json"]).exits(0).json_lines();
    assert_eq!(rows.len(), 1, "{rows:?}");
    get_here(&whole, &cid).fails(3, "fetch.no-provider");
    get_here(&whole, rows[0]["cid"].as_str().unwrap()).exits(0);
}

#[test]
fn a_quota_takes_nothing_that_is_pinned() {
    let publisher = Publisher::new();
    let [kept, gone] = [0, 1].map(|number| publisher.publish(number));
    let home = Home::new();
    home.run(&["pin", &kept, "--peer", &publisher.address]).exits(0);
    home.run(&["get", &gone, "--store-only", "--peer", &publisher.address]).exits(0);
    drop(publisher.node);
    let settings = home.path().join("node.toml");
    let before = std::fs::read_to_string(&settings).unwrap_or_default();
    // Room for one of the two, and a little.
    std::fs::write(&settings, format!("{before}\n[store]\nquota_bytes = 1000000\n")).unwrap();
    let _node = Foreground::start(home.path(), &[]);
    // Looked at from outside: what is read while it is collected stays.
    until("a store within its quota", || (home.packed() <= 1_000_000).then_some(()));
    get_here(&home, &kept).exits(0);
    get_here(&home, &gone).fails(3, "fetch.no-provider");
}
