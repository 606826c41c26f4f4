//! Every input that is kept, as it is and damaged.

use std::fs;
use std::path::PathBuf;

use iptl_fuzz::{TARGETS, Target};

/// Most bytes of all corpora: they are downloaded with the source.
const MAX_TOTAL: usize = 1 << 20;

/// Damaged inputs made of each that is kept.
const DAMAGED: usize = 24;

pub(crate) fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = folder(target.name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_corpus_reaches_what_is_taken_and_what_is_refused() {
    for target in TARGETS {
        let inputs = corpus(target);
        let taken = inputs.iter().filter(|input| (target.run)(input)).count();
        assert!(taken > 0, "nothing in the corpus of {} is taken", target.name);
        assert!(taken < inputs.len(), "nothing in the corpus of {} is refused", target.name);
    }
}

/// A change of a decoder that breaks a property near a kept input fails here, and need not wait for a night of fuzzing.
#[test]
fn damaged_inputs_break_nothing() {
    for target in TARGETS {
        for input in corpus(target).iter().filter(|input| !input.is_empty()) {
            let mut noise = blake3::Hasher::new().update(input).finalize_xof();
            for _ in 0..DAMAGED {
                let mut random = [0; 8];
                noise.fill(&mut random);
                let [kind, value, at @ ..] = random;
                let at = at.iter().fold(0, |at, byte| at << 8 | usize::from(*byte)) % input.len();
                let mut damaged = input.clone();
                match kind % 5 {
                    0 => damaged.truncate(at),
                    1 => damaged.insert(at, value),
                    2 => drop(damaged.remove(at)),
                    3 => damaged[at] = value,
                    _ => damaged[at] ^= 1 << (value % 8),
                }
                (target.run)(&damaged);
            }
        }
    }
}

#[test]
fn corpora_are_small_and_belong_to_targets() {
    let mut total = 0;
    for entry in fs::read_dir(folder("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let target = iptl_fuzz::target(&name).unwrap_or_else(|| panic!("corpus/{name} has no target"));
        total += corpus(target).iter().map(Vec::len).sum::<usize>();
    }
    assert!(total < MAX_TOTAL, "{total} bytes of corpora: minimise them by `cargo xtask fuzz --minimise`");
}

#[test]
fn targets_have_names_of_their_own() {
    for target in TARGETS {
        assert!(std::ptr::eq(iptl_fuzz::target(target.name).unwrap(), target), "{} is there twice", target.name);
    }
}

#[test]
#[should_panic(expected = "bytes of memory for an input of 1")]
fn a_decoder_that_reserves_what_it_is_told_is_caught() {
    iptl_fuzz::memory::bounded(1, &[255], || Vec::<u8>::with_capacity(1 << 30));
}
