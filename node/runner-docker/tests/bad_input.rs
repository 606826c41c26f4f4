//! Images and settings that are not what they should be.

use iptl_dag::model::{Container, Exit};
use iptl_runner::contract::instance;
use iptl_runner::{Artifact, PrepareError, Runner};
use iptl_runner_docker::{DockerConfig, DockerRunner};

use crate::engine;
use crate::support::{Bench, artifact, plain, save, tar};

async fn refused(bench: &Bench, artifact: Artifact) -> PrepareError {
    let mut cell = bench.cell(&Container::usual(), &[&["succeed"]]);
    cell.instances[0].artifact = artifact;
    bench.runner.prepare(cell).await.err().unwrap()
}

#[tokio::test]
async fn file_that_is_no_image_is_refused_with_the_reason() {
    let bench = engine!();
    let empty = serde_json::json!({});
    let rows = [
        (save("text", b"hello"), "no tar"),
        (save("tar", &tar(&[("a", 0o644, b"x")])), "manifest.json"),
        (save("json", &tar(&[("manifest.json", 0o644, b"{}")])), "manifest.json"),
        (save("two", &tar(&[("manifest.json", 0o644, br#"[{"Config":"a"},{"Config":"b"}]"#)])), "2 images"),
        (save("config", &tar(&[("manifest.json", 0o644, br#"[{"Config":"a"}]"#)])), "has no a"),
        (artifact("arm", &tar(&[("a", 0o644, b"x")]), &empty, "arm64"), "made for arm64, and this machine is"),
    ];
    for (artifact, expected) in rows {
        let error = refused(&bench, artifact).await;
        let PrepareError::BadArtifact { reason, .. } = &error else { panic!("{expected}: {error}") };
        assert!(reason.contains(expected), "{reason}");
    }
    bench.close().await;
}

#[tokio::test]
async fn layer_that_is_not_what_its_config_says_is_refused() {
    let bench = engine!();
    let good = artifact("layers", &tar(&[("a", 0o644, b"one")]), &serde_json::json!({}), "amd64");
    let bytes = std::fs::read(&good.path).unwrap();
    let at = bytes.windows(3).position(|three| three == b"one").unwrap();
    let mut bad = bytes.clone();
    bad[at..at + 3].copy_from_slice(b"two");
    let error = refused(&bench, save("layers-bad", &bad)).await;
    assert!(matches!(error, PrepareError::BadArtifact { .. }), "{error}");
    bench.close().await;
}

#[tokio::test]
async fn missing_file_is_an_error_of_the_lab() {
    let bench = engine!();
    let good = artifact("gone", &tar(&[("a", 0o644, b"gone")]), &serde_json::json!({}), "amd64");
    let gone = Artifact { path: bench.dir.path().join("no"), ..good };
    let error = refused(&bench, gone).await;
    assert!(matches!(error, PrepareError::Io { .. }), "{error}");
    bench.close().await;
}

#[tokio::test]
async fn program_that_cannot_be_executed_is_not_started_with_the_reason() {
    let bench = engine!();
    let layer = tar(&[
        ("text", 0o644, b"no program"),
        ("other", 0o755, b"\x7fELF\x02\x01\x01\0 of another kind"),
        ("script", 0o755, b"#!/bin/nothing\n"),
    ]);
    let image = artifact("programs", &layer, &serde_json::json!({}), "amd64");
    let rows = [
        ("/missing", "there is no such program"),
        ("/text", "not executable"),
        ("/other", "no program of this machine's kind"),
        ("/script", "interpreter"),
    ];
    let args = vec![&[][..]; rows.len()];
    let mut cell = bench.cell(&Container::usual(), &args);
    for (instance, (program, _)) in cell.instances.iter_mut().zip(rows) {
        instance.artifact = image.clone();
        instance.container = Some(plain(Container { entrypoint: vec![program.to_owned()], ..Container::usual() }));
    }
    let outcome = bench.run(cell).await;
    for (index, (program, expected)) in (0..).zip(rows) {
        let Exit::NotStarted { reason } = outcome.exit(index) else { panic!("{program}: {:?}", outcome.exit(index)) };
        assert!(reason.contains(expected), "{program}: {reason}");
        assert_eq!(outcome.ended[&instance(index)].started_ms, 0);
    }
    bench.close().await;
}

#[tokio::test]
async fn wish_beyond_what_the_owner_allows_is_not_started_and_no_other_instance_minds() {
    let bench = engine!();
    let usual = Container::usual;
    let rows = [
        (Container { user: Some("root".to_owned()), ..usual() }, "root"),
        (Container { pids: 100_000, ..usual() }, "100000 processes"),
        (Container { writable: true, disk_bytes: 1 << 40, ..usual() }, "bytes of disk"),
        (Container { open_files: 1 << 30, ..usual() }, "open files"),
        (Container { tmpfs: [("/proc/x".to_owned(), 1)].into(), ..usual() }, "/proc is the lab's"),
        (Container { tmpfs: [("../x".to_owned(), 1)].into(), ..usual() }, "no absolute path"),
        (Container { stop_signal: Some("SIGNOTHING".to_owned()), ..usual() }, "no signal"),
        (Container { user: Some("nobody-knows-me".to_owned()), ..usual() }, "nobody-knows-me"),
        (Container { cpu_milli: 1_000_000, ..usual() }, "CPUs"),
    ];
    let mut args: Vec<&[&str]> = vec![&["succeed"]; rows.len()];
    args.push(&["print"]);
    let mut cell = bench.cell(&usual(), &args);
    for (instance, (settings, _)) in cell.instances.iter_mut().zip(&rows) {
        instance.container = Some(plain(settings.clone()));
    }
    let outcome = bench.run(cell).await;
    for (index, (_, expected)) in (0..).zip(&rows) {
        let Exit::NotStarted { reason } = outcome.exit(index) else { panic!("{expected}: {:?}", outcome.exit(index)) };
        assert!(reason.contains(expected), "{reason}");
    }
    let last = u32::try_from(rows.len()).unwrap();
    assert_eq!(outcome.exit(last), &Exit::Exited { code: 0 });
    bench.close().await;
}

#[tokio::test]
async fn engine_that_cannot_be_used_is_named_with_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let connect = async |socket: &std::path::Path| {
        let config = DockerConfig { socket: Some(socket.to_owned()), ..DockerConfig::new(dir.path().join("lablet")) };
        DockerRunner::connect(config).await.err().unwrap()
    };
    let none = connect(&dir.path().join("no.sock")).await;
    assert!(none.reason.contains("there is no socket") && none.fix.contains("docker.io"), "{none:?}");
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let dead = connect(&dead).await;
    assert!(dead.reason.contains("no container engine listens") && dead.fix.contains("start"), "{dead:?}");
    let rows = [
        (
            r#"{"Version":"17.03.0","ApiVersion":"1.26","Os":"linux","Arch":"amd64"}"#,
            "version 1.26, and 1.41 is needed",
        ),
        (r#"{"Version":"99.0","ApiVersion":"9.9","MinAPIVersion":"9.0","Os":"linux"}"#, "newer than this program"),
        (r#"{"Version":"28.0","ApiVersion":"1.48","Os":"windows"}"#, "containers of windows"),
        ("hello", "is no engine"),
    ];
    for (index, (body, expected)) in rows.into_iter().enumerate() {
        let socket = dir.path().join(format!("{index}.sock"));
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let answering = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        });
        let unusable = connect(&socket).await;
        assert!(unusable.reason.contains(expected), "{unusable:?}");
        answering.await.unwrap();
    }
}
