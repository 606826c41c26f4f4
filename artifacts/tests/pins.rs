//! Pins survive crashes and say what is kept.

use iptl_artifacts::contract::sample;
use iptl_artifacts::{Pin, PinKind, PinMode, Pins, PinsError};
use iptl_dag::model::ExecutionId;

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
    let execution = ExecutionId(*sample(100, 1).cid());
    let list = vec![pin(1, PinMode::Recursive), pin(2, PinMode::Direct), pin(3, PinMode::Temporary(execution))];
    Pins::open(&path).unwrap().add(list.clone()).unwrap();
    let pins = Pins::open(&path).unwrap();
    let mut expected = list;
    expected.sort_by_key(|pin| (pin.root, pin.mode));
    assert_eq!(pins.list(), expected);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn one_root_may_be_pinned_by_several() {
    let dir = tempfile::tempdir().unwrap();
    let pins = Pins::open(dir.path().join("pins")).unwrap();
    let [a, b] = [1, 2].map(|seed| ExecutionId(*sample(100 + seed, 1).cid()));
    pins.add([pin(1, PinMode::Direct), pin(1, PinMode::Temporary(a)), pin(1, PinMode::Temporary(b))]).unwrap();
    let root = *sample(1, 10).cid();
    assert_eq!(pins.roots(), [(root, true)]);
    assert_eq!(pins.release(&a).unwrap(), 1);
    assert_eq!(pins.release(&a).unwrap(), 0);
    assert_eq!(pins.roots(), [(root, true)]);
    assert_eq!(pins.release(&b).unwrap(), 1);
    assert_eq!(pins.roots(), [(root, false)], "the direct pin keeps the root alone");
    assert!(pins.remove(&root).unwrap());
    assert!(!pins.remove(&root).unwrap());
    assert!(pins.roots().is_empty());
}

#[test]
fn pin_with_the_same_root_and_mode_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let pins = Pins::open(dir.path().join("pins")).unwrap();
    pins.add([pin(1, PinMode::Recursive)]).unwrap();
    pins.add([Pin { name: "again".into(), ..pin(1, PinMode::Recursive) }]).unwrap();
    assert_eq!(pins.list().len(), 1);
    assert_eq!(pins.get(&sample(1, 10).cid().to_owned()).unwrap().name, "again");
    assert_eq!(pins.get(sample(2, 10).cid()), None);
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
