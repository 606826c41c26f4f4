//! Some bytes of a file, as `ipfs cat` has them: no block moves that holds none of them.

use iptl_e2e::{Foreground, Home, noise};

#[test]
fn bytes_of_a_file_come_without_the_rest_of_it() {
    let (provider, home) = (Home::new(), Home::new());
    let dir = provider.path().join("folder");
    std::fs::create_dir(&dir).unwrap();
    let bytes = noise(20_000_000);
    std::fs::write(dir.join("large"), &bytes).unwrap();
    let cid = provider.run(&["publish", "data", &dir.display().to_string(), "-q"]).exits(0).word();
    let node = Foreground::start(provider.path(), &[]);
    let status = || provider.run(&["status", "--json"]).exits(0).json();
    let address = status()["addrs"][0].as_str().unwrap().to_owned();
    let sent = || status()["blocks"]["sent_bytes"].as_u64().unwrap();
    let out = home.path().join("out");
    let (file, out_path) = (format!("{cid}/large"), out.display().to_string());
    let of = ["--peer", &address, "--timeout", "60s", "--json"];
    let range = ["get", &file, "--offset", "7000000", "--length", "500000"];

    let report = home.run(&[&range[..], &["-o", &out_path], &of].concat()).exits(0).json();
    assert!(std::fs::read(&out).unwrap() == bytes[7_000_000..7_500_000]);
    // A leaf at each end holds more than is wanted; above leaves are the file's node and the folder.
    let moved = sent();
    assert!((500_000..3_000_000).contains(&moved), "{moved} bytes moved");
    let blocks = report["blocks"].as_u64().unwrap();
    assert!((3..60).contains(&blocks), "{report}");

    // What is here is not asked for again, and is written to stdout where no output is named.
    let same = home.run(&["get", &file, "--offset", "7100000", "--length", "10", "--timeout", "1s"]).exits(0);
    assert_eq!(same.stdout.len(), String::from_utf8_lossy(&bytes[7_100_000..7_100_010]).len());
    assert_eq!(sent(), moved);

    // To the end, from the end, and what is no file.
    std::fs::remove_file(&out).unwrap();
    let tail = ["get", &file, "--offset", "19999000", "-o", &out_path];
    home.run(&[&tail[..], &of].concat()).exits(0);
    assert!(std::fs::read(&out).unwrap() == bytes[19_999_000..]);
    home.run(&[&tail[..], &of].concat()).fails(2, "get.exists");
    assert_eq!(home.run(&[&["get", &file, "--offset", "20000000"][..], &of[..4]].concat()).exits(0).stdout, "");
    home.run(&[&["get", &cid, "--length", "1"][..], &of[..4]].concat()).fails(2, "fetch.not-a-file");

    // The rest is not here.
    drop(node);
    home.run(&["get", &file, "--store-only", "--timeout", "1s"]).fails(3, "fetch.no-provider");
}
