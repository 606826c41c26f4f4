//! The plans that ship.

use std::path::Path;

use iptl_plans::parse;

#[test]
fn manifests_of_plans_that_ship_have_no_mistakes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).expect("the directory is there") {
        let file = entry.expect("an entry").path().join("plan.toml");
        let Ok(source) = std::fs::read_to_string(&file) else { continue };
        match parse(&source, "plan.toml") {
            Ok(manifest) => {
                let locked = ["Cargo.lock", "go/go.sum"].iter().any(|name| file.with_file_name(name).exists());
                assert!(locked, "{} has a lock file", manifest.name);
                assert!(file.with_file_name("README.md").exists(), "{} has a page", manifest.name);
                names.push(manifest.name);
            }
            Err(mistakes) => {
                let shown: Vec<String> =
                    mistakes.iter().map(|mistake| mistake.render(&file.to_string_lossy(), &source)).collect();
                panic!("{}", shown.join("\n"));
            }
        }
    }
    names.sort();
    assert_eq!(names, ["dht", "gossip", "hostile", "ipfs-exchange", "mixed", "nat", "ping", "split", "storm"]);
}
