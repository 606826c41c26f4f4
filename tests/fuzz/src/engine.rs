//! The program of `cargo xtask fuzz`: libFuzzer around the target that `IPTL_FUZZ_TARGET` names.
//!
//! Its arguments are libFuzzer's. One program holds all targets: they share most of what is instrumented.

#![no_main]

use std::sync::OnceLock;

use iptl_fuzz::{TARGETS, Target, target};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("IPTL_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        let found = target(&name).unwrap_or_else(|| panic!("set IPTL_FUZZ_TARGET to one of {}", names.join(", ")));
        TARGET.set(found).expect("the engine initialises once");
    },
    |data: &[u8]| {
        let target = TARGET.get().expect("it was set before the first input");
        (target.run)(data);
    }
);
