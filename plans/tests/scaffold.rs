//! What a new plan consists of. That it builds and runs is tested where there is a lab to run it.

use std::collections::BTreeSet;
use std::path::Path;

use iptl_plans::{ScaffoldError, parse, scaffold};

#[test]
fn a_new_plan_has_no_mistakes() {
    let files = scaffold("my-plan").expect("the name is allowed");
    let (_, manifest) = files.iter().find(|(path, _)| path == "plan.toml").expect("it has a manifest");
    let manifest = parse(manifest, "plan.toml").expect("it has no mistakes");
    assert_eq!(manifest.name, "my-plan");
    assert!(files.iter().all(|(_, text)| !text.contains("{{")));
}

/// A file that is added to the SDK must be added to the scaffold.
#[test]
fn a_new_plan_has_all_of_the_sdk() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk");
    let mut there = BTreeSet::from(["sdk/Cargo.toml".to_owned()]);
    let mut open = vec![root.join("src"), root.join("wit")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("the SDK is there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let relative = path.strip_prefix(&root).expect("it is below");
                there.insert(format!("sdk/{}", relative.to_str().expect("UTF-8").replace('\\', "/")));
            }
        }
    }
    let files = scaffold("a").expect("the name is allowed");
    let copied: BTreeSet<String> = files.into_iter().map(|(path, _)| path).filter(|p| p.starts_with("sdk/")).collect();
    assert_eq!(copied, there);
}

#[test]
fn names_that_cargo_or_the_lab_refuse_are_refused() {
    for (name, nearest) in
        [("My Plan", "my-plan"), ("", "my"), ("7up", "my-7up"), ("test", "my-test"), ("../x", "x"), ("a_b", "a-b")]
    {
        let Err(ScaffoldError::BadName { nearest: found, .. }) = scaffold(name) else { panic!("{name} is refused") };
        assert_eq!(found, nearest, "{name}");
        assert!(scaffold(&found).is_ok(), "{found}");
    }
}
