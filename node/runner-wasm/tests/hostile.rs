//! Files and guests that are not what they should be.

use std::path::Path;

use iptl_dag::model::Exit;
use iptl_dag::{Block, Codec};
use iptl_runner::contract::{Behaviour, Lab};
use iptl_runner::{Artifact, OutputStream, PrepareError};

use crate::{fixture, guests, runner_in};

#[tokio::test]
async fn file_that_is_no_component_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let rows: [(&str, &[u8], &str); 3] =
        [("text", b"hello", "wasm"), ("empty", b"", "wasm"), ("module", b"\0asm\x01\0\0\0", "module")];
    for (name, bytes, expected) in rows {
        let error = refused(dir.path(), artifact(dir.path(), name, bytes)).await;
        let PrepareError::BadArtifact { reason, .. } = &error else { panic!("{name}: {error}") };
        assert!(reason.to_lowercase().contains(expected), "{name}: {reason}");
    }
}

#[tokio::test]
async fn component_that_is_no_command_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let empty_component = b"\0asm\x0d\0\x01\0";
    let error = refused(dir.path(), artifact(dir.path(), "empty", empty_component)).await;
    assert!(matches!(&error, PrepareError::BadArtifact { reason, .. } if reason.contains("wasi:cli/run")), "{error}");
}

#[tokio::test]
async fn import_that_nobody_gives_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = refused(dir.path(), guests::stranger()).await;
    let expected = "example:stranger/api@1.0.0";
    assert!(matches!(&error, PrepareError::MissingImport { import, .. } if import == expected), "{error}");
}

#[tokio::test]
async fn missing_file_is_an_error_of_the_lab() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Artifact { cid: *Block::new(Codec::Raw, b"missing".to_vec()).cid(), path: dir.path().join("no") };
    let error = refused(dir.path(), missing).await;
    assert!(matches!(error, PrepareError::Io { .. }), "{error}");
}

#[tokio::test]
async fn group_that_names_another_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = fixture();
    for name in ["..", "a/b", "/tmp", ""] {
        let mut cell = fixture.cell(dir.path(), &[Behaviour::Print]);
        cell.groups = [(name.to_owned(), 1)].into();
        cell.instances[0].id.group = name.to_owned();
        let error = fixture.runner.prepare(cell).await.err().expect("the cell is refused");
        assert!(matches!(error, PrepareError::Io { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn records_and_calls_that_make_no_sense_fail_without_ending_the_guest() {
    let outcome = run_one("bad-records").await;
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 }, "{outcome:?}");
}

#[tokio::test]
async fn long_lines_are_split() {
    let outcome = run_one("long-line").await;
    let lengths: Vec<usize> = outcome.lines(0, OutputStream::Out).iter().map(String::len).collect();
    assert_eq!(lengths, [16 << 10, 16 << 10, 40_000 - (32 << 10)]);
}

#[tokio::test]
async fn order_of_maps_follows_the_seed() {
    let (a, b) = (run_one("hash-order").await, run_one("hash-order").await);
    assert_eq!(a.lines(0, OutputStream::Out), b.lines(0, OutputStream::Out));
}

#[tokio::test]
async fn broken_code_in_the_cache_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let runner = runner_in(&cache);
    let mut fixture = fixture();
    fixture.runner = std::sync::Arc::new(runner);
    iptl_runner::contract::statuses_are_told(&fixture).await;
    let files: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    std::fs::write(&files[0], b"broken").unwrap();
    iptl_runner::contract::statuses_are_told(&fixture).await;
    fixture.runner.shutdown().await;
}

async fn run_one(behaviour: &str) -> iptl_runner::contract::Outcome {
    let dir = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let mut cell = fixture.cell(dir.path(), &[Behaviour::Succeed]);
    cell.instances[0].args = vec![behaviour.to_owned()];
    let lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    let outcome = lab.finish().await;
    fixture.runner.shutdown().await;
    outcome
}

async fn refused(scratch: &Path, artifact: Artifact) -> PrepareError {
    let fixture = fixture();
    let mut cell = fixture.cell(scratch, &[Behaviour::Succeed]);
    cell.instances[0].artifact = artifact;
    let error = fixture.runner.prepare(cell).await.err().expect("the cell is refused");
    fixture.runner.shutdown().await;
    error
}

fn artifact(dir: &Path, name: &str, bytes: &[u8]) -> Artifact {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    Artifact { cid: *Block::new(Codec::Raw, bytes.to_vec()).cid(), path }
}
