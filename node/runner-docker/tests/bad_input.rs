//! Images and settings that are not what they should be.

use iptl_dag::model::{Container, Exit};
use iptl_runner::contract::{Lab, instance};
use iptl_runner::{Artifact, PrepareError, Runner};
use iptl_runner_docker::{DockerConfig, DockerRunner, OwnerLimits};

use crate::engine;
use crate::engine_restart::Engine as OwnEngine;
use crate::support::{Bench, artifact, docker, not_run, plain, save, tar, until, wrote};

async fn refused(bench: &Bench, artifact: Artifact) -> PrepareError {
    let mut cell = bench.cell(&Container::usual(), &[&["succeed"]]);
    cell.instances[0].artifact = artifact;
    bench.runner.prepare(cell).await.err().unwrap()
}

#[tokio::test]
async fn file_that_is_no_image_is_refused_with_the_reason() {
    let bench = engine!();
    let rows = [
        (save("text", b"hello"), "no tar"),
        (save("tar", &tar(&[("a", 0o644, b"x")])), "manifest.json"),
        (save("json", &tar(&[("manifest.json", 0o644, b"{}")])), "manifest.json"),
        (save("two", &tar(&[("manifest.json", 0o644, br#"[{"Config":"a"},{"Config":"b"}]"#)])), "2 images"),
        (save("config", &tar(&[("manifest.json", 0o644, br#"[{"Config":"a"}]"#)])), "has no a"),
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

#[tokio::test]
async fn image_of_another_architecture_is_refused() {
    let bench = engine!();
    let arm = artifact("arm", &tar(&[("a", 0o644, b"x")]), &serde_json::json!({}), "arm64");
    let error = refused(&bench, arm).await;
    let PrepareError::BadArtifact { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("made for arm64, and this machine is"), "{reason}");
    bench.close().await;
}

#[tokio::test]
async fn program_that_lacks_its_libraries_is_not_started_with_the_reason() {
    let bench = engine!();
    // A program of this machine that is linked dynamically, as all of a distribution are, alone in its image.
    let program = std::fs::read("/bin/true").unwrap();
    let image = artifact("dynamic", &tar(&[("program", 0o755, &program)]), &serde_json::json!({}), "amd64");
    let mut cell = bench.cell(&Container::usual(), &[&[]]);
    cell.instances[0].artifact = image;
    cell.instances[0].container =
        Some(plain(Container { entrypoint: vec!["/program".to_owned()], ..Container::usual() }));
    let outcome = bench.run(cell).await;
    let Exit::NotStarted { reason } = outcome.exit(0) else { panic!("{:?}", outcome.exit(0)) };
    assert!(reason.contains("interpreter"), "{reason}");
    bench.close().await;
}

#[tokio::test]
async fn entrypoint_that_exits_at_once_has_a_receipt_with_its_status() {
    let bench = engine!();
    let outcome = bench.run(bench.cell(&Container::usual(), &[&["fail"], &["succeed"]])).await;
    assert!(matches!(outcome.exit(0), Exit::Exited { code } if *code != 0), "{:?}", outcome.exit(0));
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 0 });
    assert!(outcome.ended.values().all(|ended| ended.started_ms > 0 && ended.ended_ms >= ended.started_ms));
    bench.close().await;
}

#[tokio::test]
async fn name_that_somebody_else_has_taken_stays_theirs() {
    let bench = engine!();
    let cell = bench.cell(&Container::usual(), &[&["park"], &["park"]]);
    let names = |bench: &Bench| {
        let found: Vec<String> =
            bench.containers().iter().map(|id| docker(&["inspect", "--format", "{{.Name}}", id])).collect();
        found.into_iter().map(|name| name.trim_start_matches('/').to_owned()).collect::<Vec<String>>()
    };
    // What names it would take is seen when it does.
    let lab = Lab::prepare(&bench.runner, cell.clone()).await;
    let mut taken = names(&bench);
    taken.sort();
    let image = docker(&["inspect", "--format", "{{.Image}}", &taken[0]]);
    lab.control.stop("enough".to_owned()).await;
    lab.finish().await;
    let theirs = docker(&["create", "--name", &taken[0], "--label", "theirs=yes", &image]);
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "the refusal", |outcome| outcome.ended.contains_key(&instance(0))).await;
    let Exit::NotStarted { reason } = lab.outcome.exit(0).clone() else { panic!("{:?}", lab.outcome.exit(0)) };
    assert!(reason.contains("already in use"), "{reason}");
    assert_eq!(docker(&["inspect", "--format", "{{.Id}}", &taken[0]]), theirs, "it was not theirs to lose");
    lab.control.stop("enough".to_owned()).await;
    let outcome = lab.finish().await;
    assert_eq!(outcome.exit(1), &Exit::Stopped { reason: "enough".to_owned() });
    docker(&["rm", &theirs]);
    bench.close().await;
}

#[test]
fn socket_without_permission_is_named_with_what_helps() {
    if !nix::unistd::geteuid().is_root() {
        not_run("only root has a socket that others may not use");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = DockerConfig { socket: Some(socket), ..DockerConfig::new(dir.path().join("lablet")) };
    // Another user for the files that this thread opens, and for no other thread.
    let unusable = std::thread::spawn(move || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(DockerRunner::connect(config)).err().unwrap()
    });
    let unusable = unusable.join().unwrap();
    assert!(unusable.reason.contains("no permission") && unusable.fix.contains("usermod"), "{unusable:?}");
}

#[tokio::test]
async fn engine_that_dies_in_mid_run_and_takes_its_containers_along_is_told() {
    let Some(mut engine) = OwnEngine::start(false) else { return };
    let Some(bench) = Bench::at(OwnerLimits::default(), Some(engine.socket())).await else { return };
    let mut lab = Lab::prepare(&bench.runner, bench.cell(&Container::usual(), &[&["ignore-term"]])).await;
    lab.control.start().await;
    until(&mut lab, "it runs", wrote(0, "ignoring")).await;
    engine.kill();
    engine.again();
    let outcome = lab.finish().await;
    let Exit::WorkerDied { reason } = outcome.exit(0) else { panic!("{:?}", outcome.exit(0)) };
    assert!(reason.contains("container"), "{reason}");
    iptl_runner::Runner::shutdown(&bench.runner).await;
}

#[tokio::test]
async fn engine_that_is_gone_for_good_is_named() {
    let Some(mut engine) = OwnEngine::start(false) else { return };
    let Some(bench) = Bench::at(OwnerLimits::default(), Some(engine.socket())).await else { return };
    engine.kill();
    let cell = bench.cell(&Container::usual(), &[&["succeed"]]);
    let refused = iptl_runner::Runner::prepare(&bench.runner, cell).await.err().unwrap();
    assert!(refused.to_string().contains("container engine"), "{refused}");
}
