//! The Wasm runner against real components in real workers.
//!
//! The worker of these tests is this very binary: [`worker_process`] is a test that the others start.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod contract;
mod density;
mod guests;
mod hostile;
mod network;
mod samples;
mod workers;

use std::path::Path;
use std::sync::Arc;

use iptl_runner::contract::Fixture;
use iptl_runner_wasm::{WasmConfig, WasmRunner};

/// What a worker is; ends at once where nobody is at the other end.
#[test]
#[ignore = "the worker of the other tests, which start it"]
fn worker_process() {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::metadata("/proc/self/fd/0").is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket {
        iptl_runner_wasm::worker_main();
    }
}

/// Makes a runner whose compiled code is kept for all tests.
fn runner() -> WasmRunner {
    runner_in(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("cwasm"))
}

fn runner_in(cache_dir: &Path) -> WasmRunner {
    let worker = std::env::current_exe().unwrap();
    let args = ["--exact", "worker_process", "--ignored", "--nocapture", "--quiet"];
    WasmRunner::new(WasmConfig {
        worker_command: (worker, args.map(str::to_owned).to_vec()),
        cache_dir: cache_dir.to_owned(),
        max_instances: None,
        max_memory_bytes: None,
    })
}

/// Makes a fixture of the contract's suite.
fn fixture() -> Fixture {
    let artifact = guests::behaves();
    Fixture {
        runner: Arc::new(runner()),
        workload: Box::new(move |behaviour| (artifact.clone(), vec![behaviour.name().to_owned()])),
        container: None,
    }
}
