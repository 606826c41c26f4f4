//! What the engine refuses to remove at first, and what somebody else is removing: a shutdown waits until it is gone.
//!
//! The engine stands behind a proxy here, which says at the first order to remove a container what a real engine says
//! in a race that no test can win every time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iptl_dag::model::Container;
use iptl_runner::Runner;
use iptl_runner::contract::{Lab, instance};
use iptl_runner_docker::OwnerLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Bench, until, wrote};

/// Returns where the engine of this machine listens.
fn engine() -> String {
    let named = std::env::var("DOCKER_HOST").ok();
    named.as_deref().and_then(|host| host.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock").to_owned()
}

/// What the proxy says at the first order to remove a container.
#[derive(Clone, Copy)]
enum First {
    /// Its process ended by itself between the engine's look and its order to kill it. Nothing is removed.
    NotRunning,
    /// Another order is being carried out, and takes its time.
    InProgress,
}

/// Time that the other order takes: long beside an answer, short beside a test.
const OTHER: Duration = Duration::from_millis(600);

/// An engine that speaks as it is told.
struct Proxy {
    socket: PathBuf,
    _serving: AbortOnDropHandle<()>,
}

impl Proxy {
    fn start(dir: &Path, first: First) -> Proxy {
        let socket = dir.join("engine");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(one(stream, first, Arc::clone(&seen)));
            }
        });
        Proxy { socket, _serving: AbortOnDropHandle::new(serving) }
    }
}

/// Answers one request.
async fn one(mut stream: UnixStream, first: First, seen: Arc<Mutex<BTreeSet<String>>>) {
    let mut said = Vec::new();
    let end = loop {
        if let Some(end) = said.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut said).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&said[..end]).into_owned();
    let line = head.lines().next().unwrap().to_owned();
    // One request on each connection, so that none passes unseen.
    let mut whole = format!("{head}\r\nConnection: close\r\n\r\n").into_bytes();
    whole.extend_from_slice(&said[end + 4..]);
    let removal = line.strip_prefix("DELETE ").filter(|rest| rest.contains("/containers/"));
    if removal.is_some_and(|what| seen.lock().unwrap().insert(what.to_owned())) {
        let (status, why) = match first {
            First::NotRunning => ("500 Internal Server Error", "Could not kill running container: it is not running"),
            First::InProgress => ("409 Conflict", "removal of container is already in progress"),
        };
        let body = format!("{{\"message\":\"{why}\"}}");
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        drop(stream);
        if let First::InProgress = first {
            tokio::time::sleep(OTHER).await;
            let mut engine = UnixStream::connect(engine()).await.unwrap();
            engine.write_all(&whole).await.unwrap();
            let _ = engine.read_to_end(&mut Vec::new()).await;
        }
        return;
    }
    let Ok(mut engine) = UnixStream::connect(engine()).await else { return };
    if engine.write_all(&whole).await.is_ok() {
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut engine).await;
    }
}

async fn shutdown_leaves_nothing_where(first: First) {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(dir.path(), first);
    let Some(bench) = Bench::at(OwnerLimits::default(), Some(proxy.socket.clone())).await else { return };
    let args: &[&[&str]] = &[&["ignore-term"], &["print"], &["park"]];
    let mut lab = Lab::prepare(&bench.runner, bench.cell(&Container::usual(), args)).await;
    lab.control.start().await;
    until(&mut lab, "one runs and one has ended", |outcome| {
        wrote(0, "ignoring")(outcome) && outcome.ended.contains_key(&instance(1))
    })
    .await;
    // One that runs, one whose end was told, one that waits, and two that were never started.
    let scratch = bench.dir.path().join("held");
    let held = Lab::prepare(&bench.runner, bench.cell_in(&scratch, &Container::usual(), &[&["park"], &["park"]])).await;
    bench.runner.shutdown().await;
    assert_eq!(bench.containers(), Vec::<String>::new(), "containers are left");
    drop((lab, held));
}

#[tokio::test]
async fn shutdown_removes_what_was_ending_by_itself() {
    shutdown_leaves_nothing_where(First::NotRunning).await;
}

#[tokio::test]
async fn shutdown_waits_for_a_removal_that_somebody_else_began() {
    shutdown_leaves_nothing_where(First::InProgress).await;
}

#[tokio::test]
async fn preparation_that_is_given_up_leaves_nothing_where_the_engine_refuses_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(dir.path(), First::NotRunning);
    let Some(bench) = Bench::at(OwnerLimits::default(), Some(proxy.socket.clone())).await else { return };
    let cell = bench.cell(&Container::usual(), &[&["park"][..]; 6]);
    let given_up = tokio::time::timeout(Duration::from_millis(500), bench.runner.prepare(cell)).await;
    drop(given_up);
    bench.close().await;
}
