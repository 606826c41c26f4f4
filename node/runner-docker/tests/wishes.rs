//! What programs ask of their own network is done to their packets.

use std::path::Path;

use iptl_dag::model::{Container, Exit};
use iptl_runner::contract::{Lab, Outcome, instance};
use iptl_runner::{Artifact, CellEvent, OutputStream, Runner};

use crate::engine;
use crate::support::{PROGRAM, artifact, tar, until};

/// Returns the image of a program on the published Rust SDK of Testground, which `cargo xtask witnesses` makes.
fn witness() -> Artifact {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the build folder");
    let path = target.join("interop/rust/x86_64-unknown-linux-musl/release/witness-rust");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask witnesses`", path.display()));
    artifact("witness", &tar(&[("program", 0o755, &bytes)]), &serde_json::json!({ "Entrypoint": [PROGRAM] }), "amd64")
}

/// Returns what an instance said of something.
fn said(lines: &[String], what: &str) -> String {
    let line = lines.iter().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {what} in {lines:?}")).to_owned()
}

/// Returns the events of one name that an instance left.
fn events(outcome: &Outcome, index: u32, name: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(outcome.ended[&instance(index)].left.events.as_ref().unwrap()).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.filter(|event| event["name"] == name).map(|event| event["data"].clone()).collect()
}

#[tokio::test]
async fn network_of_a_program_on_the_published_sdk_is_as_it_asks() {
    let bench = engine!();
    let mut cell = bench.cell(&Container::usual(), &[&[], &[]]);
    cell.case = "shape".to_owned();
    cell.instances.iter_mut().for_each(|instance| instance.artifact = witness());
    let outcome = bench.run(cell).await;
    let lines = outcome.lines(1, OutputStream::Out);
    for index in 0..2 {
        assert_eq!(outcome.exit(index), &Exit::Reported { code: 0, failure: None }, "{lines:?}");
    }
    let ms = |what: &str| said(&lines, what).parse::<f64>().unwrap() / 1_000.0;
    let clean = ms("clean");
    assert!(clean < 20.0, "{clean} ms");
    // The shortest of five trips, on a machine that does other things.
    for (what, asked) in [("slow", 100.0), ("faster", 20.0), ("near", 100.0)] {
        assert!((asked..asked + 15.0).contains(&ms(what)), "{what}: {} ms", ms(what));
    }
    assert_eq!((said(&lines, "drop"), said(&lines, "reject")), ("silence".to_owned(), "HostUnreachable".to_owned()));
    assert_eq!((said(&lines, "off"), said(&lines, "lossy")), ("silence".to_owned(), "silence".to_owned()));
    // 100,000 bytes and their heads at a megabit per second, one way.
    let narrow = ms("narrow");
    assert!((800.0..1_100.0).contains(&narrow), "{narrow} ms");
    assert!(said(&lines, "refused").contains("routes out of the lab"), "{lines:?}");

    let told = events(&outcome, 1, "iptl.network");
    assert_eq!(told.len(), 9, "{told:?}");
    assert_eq!(told[0], serde_json::json!({ "asked": { "enabled": true, "shape": { "latency_ns": 100_000_000 } } }));
    assert_eq!(told[1]["asked"]["rules"], serde_json::json!({ "10.0.0.1/32": { "filter": "drop" } }));
    assert_eq!(told[4]["asked"]["enabled"], false);
    assert!(told[7]["refused"].as_str().unwrap().ends_with("routes out of the lab"), "{told:?}");
    let own = outcome.ended[&instance(1)].network.as_ref().unwrap().own.unwrap();
    assert!(own.lost > 3 && own.delivered > 100, "{own:?}");
    assert_eq!(outcome.ended[&instance(0)].network.as_ref().unwrap().own, None);
    bench.close().await;
}

#[tokio::test]
async fn network_that_was_asked_for_outlives_the_lablet() {
    let mut bench = engine!();
    let spec = bench.cell(&Container::usual(), &[&["answer"], &["shaped", "g-0"]]);
    let is_trip = |line: &str| line.strip_prefix("trip ").and_then(|us| us.parse::<u64>().ok());
    // A runtime of its own, as the lablet's process would be: it ends with everything that it did.
    std::thread::scope(|scope| {
        let first = || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let runner = bench.again().await;
                let mut lab = Lab::prepare(&runner, spec.clone()).await;
                lab.control.start().await;
                until(&mut lab, "a trip", |outcome| outcome.output.iter().any(|(_, _, line)| is_trip(line).is_some()))
                    .await;
                assert!(lab.outcome.lines(1, OutputStream::Out).contains(&"asked true".to_owned()));
                std::mem::forget(lab.control);
                std::mem::forget(runner);
            });
            runtime.shutdown_background();
        };
        scope.spawn(first).join().unwrap();
    });
    bench.runner = bench.again().await;
    let adopted = bench.runner.adopt(spec.clone()).await.unwrap().unwrap();
    let mut events = adopted.events;
    let mut trips = Vec::new();
    while let Some(event) = events.recv().await {
        let CellEvent::Output { line, .. } = event else { continue };
        trips.extend(is_trip(&line));
        if trips.len() == 10 {
            adopted.control.stop("enough".to_owned()).await;
        }
    }
    // The first may have been under way while nobody carried packets.
    assert!(trips.len() >= 10 && trips.iter().all(|us| *us >= 100_000), "{trips:?}");
    bench.close().await;
}
