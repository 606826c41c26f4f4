//! Documents whose commands are executed.

use iptl_e2e::{manual, repository};

#[test]
fn every_manual_does_what_it_says() {
    let mut manuals: Vec<_> = std::fs::read_dir(repository().join("tests/e2e/cli"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    manuals.sort();
    assert!(!manuals.is_empty());
    for path in manuals {
        eprintln!("{}", path.display());
        manual::execute(&path);
    }
}

#[test]
fn the_first_plan_goes_as_its_guide_says() {
    manual::execute(&repository().join("docs/guides/first-plan.md"));
}

#[test]
fn a_lab_is_made_and_looked_after_as_its_guide_says() {
    manual::execute(&repository().join("docs/guides/own-a-lab.md"));
}

#[test]
fn a_machine_is_lent_as_its_guide_says() {
    manual::execute(&repository().join("docs/guides/lend-a-machine.md"));
}
