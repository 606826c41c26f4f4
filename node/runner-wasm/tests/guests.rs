//! The guests of the tests, built once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use iptl_dag::{Block, Codec};
use iptl_runner::Artifact;

/// Returns the component that behaves as its first argument says.
pub(crate) fn behaves() -> Artifact {
    artifact("iptl-test-guests.wasm")
}

/// Returns a component with an import that nobody gives.
pub(crate) fn stranger() -> Artifact {
    artifact("stranger.wasm")
}

fn artifact(name: &str) -> Artifact {
    let path = built().join(name);
    let bytes = std::fs::read(&path).unwrap();
    Artifact { cid: *Block::new(Codec::Raw, bytes).cid(), path }
}

fn built() -> &'static Path {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/Cargo.toml");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--locked", "--target", "wasm32-wasip2", "--manifest-path"])
            .arg(manifest)
            .arg("--target-dir")
            .arg(&target)
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS")
            .status()
            .unwrap();
        status.success().then(|| target.join("wasm32-wasip2/release"))
    });
    built.as_ref().expect("the guests do not build; is the target wasm32-wasip2 installed?")
}
