//! Builds the init program of containers, which the library embeds.
//!
//! It is a static program for another target than the library, so cargo cannot build it as a dependency: this runs
//! cargo for it, in the folder that cargo gives to build scripts.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let init = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("init");
    for file in ["Cargo.toml", "Cargo.lock", "src"] {
        println!("cargo::rerun-if-changed={}", init.join(file).display());
    }
    println!("cargo::rerun-if-changed={}", init.join("../../labnet/tun/src/device.rs").display());
    let target = format!("{}-unknown-linux-musl", variable("CARGO_CFG_TARGET_ARCH"));
    let out = PathBuf::from(variable("OUT_DIR")).join("init");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--locked", "--target", &target, "--manifest-path"]);
    cargo.arg(init.join("Cargo.toml")).arg("--target-dir").arg(&out);
    // What is set for the library is not meant for this: wrappers of lints, flags of its own target.
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_TARGET_DIR"]
    {
        cargo.env_remove(name);
    }
    let built = cargo.status().is_ok_and(|status| status.success());
    if !built {
        println!(
            "cargo::error=the init program of containers cannot be built; is its target there?  rustup target add {target}"
        );
        exit(1);
    }
    println!("cargo::rustc-env=IPTL_INIT={}", out.join(&target).join("release/iptl-init").display());
}
