//! Pins survive crashes and say what is kept.

use iptl_artifacts::contract::sample;
use iptl_artifacts::{Pin, PinKind, PinMode, Pins, PinsError};

fn pin(seed: u64, mode: PinMode) -> Pin {
    Pin {
        root: *sample(seed, 10).cid(),
        mode,
        kind: PinKind::Plan,
        name: format!("pin {seed}"),
        pinned_ms: 7,
        public: true,
    }
}

#[test]
fn pins_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pins");
    let list = vec![pin(1, PinMode::Recursive), pin(2, PinMode::Direct)];
    Pins::open(&path).unwrap().add(list.clone()).unwrap();
    let pins = Pins::open(&path).unwrap();
    let mut expected = list;
    expected.sort_by_key(|pin| pin.root);
    assert_eq!(pins.list(), expected);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn one_root_has_one_pin_which_keeps_what_was_said_last() {
    let dir = tempfile::tempdir().unwrap();
    let pins = Pins::open(dir.path().join("pins")).unwrap();
    let root = *sample(1, 10).cid();
    for (mode, keeps_all) in [(PinMode::Direct, false), (PinMode::Recursive, true), (PinMode::Direct, false)] {
        pins.add([Pin { name: mode.name().to_owned(), ..pin(1, mode) }]).unwrap();
        assert_eq!(pins.roots(), [(root, keeps_all)]);
        assert_eq!(pins.get(&root).unwrap().name, mode.name());
    }
    assert_eq!(pins.get(sample(2, 10).cid()), None);
    assert!(pins.remove(&root).unwrap());
    assert!(!pins.remove(&root).unwrap());
    assert!(pins.roots().is_empty());
}

#[test]
fn only_what_is_pinned_with_all_below_it_is_for_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let pins = Pins::open(dir.path().join("pins")).unwrap();
    pins.add([pin(1, PinMode::Recursive), pin(2, PinMode::Direct)]).unwrap();
    let [whole, block] = [1, 2].map(|seed| *sample(seed, 10).cid());
    assert_eq!(pins.public_roots(), [whole]);
    assert!(pins.set_public(&whole, false).unwrap());
    assert!(!pins.set_public(&block, true).unwrap());
    assert!(pins.public_roots().is_empty());
}

#[test]
fn damaged_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pins");
    let pins = Pins::open(&path).unwrap();
    pins.add((0..20).map(|seed| pin(seed, PinMode::Recursive))).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in (1..whole.len()).step_by(13) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = Pins::open(&path).err().expect("a truncated list is refused");
        assert!(matches!(error, PinsError::Corrupt { .. }), "{error}");
    }
    std::fs::write(&path, "[pins]\nwhat = \"toml\"\n").unwrap();
    assert!(Pins::open(&path).err().unwrap().to_string().contains("is not a list of pins"));
}

#[test]
fn unwritable_directory_leaves_the_list_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pins");
    let pins = Pins::open(&path).unwrap();
    pins.add([pin(1, PinMode::Recursive)]).unwrap();
    std::fs::remove_file(&path).unwrap();
    // A directory in the file's place cannot be replaced by a file, whoever the user is.
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("occupied"), "").unwrap();
    assert!(pins.add([pin(2, PinMode::Recursive)]).is_err());
    assert_eq!(pins.list().len(), 1);
}
