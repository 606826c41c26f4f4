//! What a container is while it runs, and what is said of it.

use std::collections::BTreeSet;
use std::time::Duration;

use iptl_dag::model::{Container, Exit, Health};
use iptl_runner::contract::{Lab, instance};
use iptl_runner::{ExecError, ExecInput, ExecOrder, ExecOutput, OutputStream, Runner};

use crate::engine;
use crate::support::{PROGRAM, artifact, docker, layer_of, plain, program, until, wrote};

#[tokio::test]
async fn container_has_no_more_than_is_written() {
    let bench = engine!();
    let mut lab = Lab::prepare(&bench.runner, bench.cell(&Container::usual(), &[&["ignore-term"]])).await;
    lab.control.start().await;
    until(&mut lab, "it runs", wrote(0, "ignoring")).await;
    let id = bench.containers().remove(0);
    let found: serde_json::Value = serde_json::from_str(&docker(&["inspect", &id])).unwrap();
    let (host, config) = (&found[0]["HostConfig"], &found[0]["Config"]);
    assert_eq!(host["NetworkMode"], "none");
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    assert_eq!(host["CapAdd"], serde_json::Value::Null);
    assert_eq!(host["SecurityOpt"], serde_json::json!(["no-new-privileges:true"]));
    assert_eq!((&host["Privileged"], &host["ReadonlyRootfs"]), (&false.into(), &true.into()));
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&(32 << 20).into(), &(32 << 20).into()));
    assert_eq!(host["PidsLimit"], 257);
    assert_eq!(host["CpuShares"], 2, "the least there is: the lablet has 1024");
    assert_eq!(config["User"], "65534:65534");
    for mount in found[0]["Mounts"].as_array().unwrap() {
        let destination = mount["Destination"].as_str().unwrap();
        let of_the_lab =
            destination.starts_with("/.iptl/") || ["/etc/hosts", "/etc/resolv.conf"].contains(&destination);
        assert!(of_the_lab && mount["RW"] == false, "{mount}");
    }
    let labels = &config["Labels"];
    assert_eq!((&labels["iptl.lab"], &labels["iptl.group"]), (&"lab".into(), &"g".into()));
    assert_eq!((&labels["iptl.instance"], &labels["iptl.epoch"]), (&"0".into(), &"1".into()));
    assert!(labels["iptl.execution"].is_string());
    lab.control.stop("seen".to_owned()).await;
    lab.finish().await;
    bench.close().await;
}

#[tokio::test]
async fn samples_come_each_second() {
    let bench = engine!();
    let mut cell = bench.cell(&Container::usual(), &[&["spin"]]);
    cell.instances[0].limits.wall_ms = 3_500;
    let outcome = bench.run(cell).await;
    let path = outcome.ended[&instance(0)].left.samples.clone().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!((3..=8).contains(&rows.len()), "{text}");
    let cpu: Vec<u64> = rows.iter().map(|row| row["cpu_us"].as_u64().unwrap()).collect();
    assert!(cpu.is_sorted() && cpu[cpu.len() - 1] > 500_000, "{cpu:?}");
    assert!(rows.iter().all(|row| row["memory"].as_u64().unwrap() > 0), "{text}");
    bench.close().await;
}

#[tokio::test]
async fn command_runs_in_an_instance_where_the_plan_allows() {
    let bench = engine!();
    let open = Container { exec: true, ..Container::usual() };
    let mut cell = bench.cell(&open, &[&["ignore-term"], &["ignore-term"]]);
    cell.instances[1].container = Some(plain(Container::usual()));
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    let order = |index, command: &[&str]| ExecOrder {
        id: instance(index),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        terminal: None,
    };
    let early = lab.control.exec(order(0, &[PROGRAM, "print"])).await.unwrap_err();
    assert_eq!(early, ExecError::NotRunning(instance(0)));
    lab.control.start().await;
    until(&mut lab, "both run", |o| wrote(0, "ignoring")(o) && wrote(1, "ignoring")(o)).await;
    let mut stream = lab.control.exec(order(0, &[PROGRAM, "print"])).await.unwrap();
    stream.input.send(ExecInput::End).await.unwrap();
    let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), None);
    while let Some(said) = stream.output.recv().await {
        match said {
            ExecOutput::Bytes(OutputStream::Out, bytes) => out.extend(bytes),
            ExecOutput::Bytes(OutputStream::Err, bytes) => err.extend(bytes),
            ExecOutput::Ended(code) => status = Some(code),
        }
    }
    assert_eq!((&out[..], &err[..], status), (&b"one\ntwo\nfour"[..], &b"three\n"[..], Some(0)));
    let closed = lab.control.exec(order(1, &[PROGRAM, "print"])).await.unwrap_err();
    assert!(matches!(closed, ExecError::Failed { .. }), "{closed}");
    let mut stream = lab.control.exec(order(0, &["/missing"])).await.unwrap();
    let mut last = None;
    while let Some(said) = stream.output.recv().await {
        last = Some(said);
    }
    assert!(matches!(last, Some(ExecOutput::Ended(126 | 127))), "{last:?}");
    lab.control.stop("seen".to_owned()).await;
    lab.finish().await;
    bench.close().await;
}

#[tokio::test]
async fn command_at_a_terminal_ends_with_who_sat_there() {
    let bench = engine!();
    let open = Container { exec: true, ..Container::usual() };
    let mut lab = Lab::prepare(&bench.runner, bench.cell(&open, &[&["ignore-term"]])).await;
    lab.control.start().await;
    until(&mut lab, "it runs", wrote(0, "ignoring")).await;
    let command = [PROGRAM, "copy"].map(str::to_owned).to_vec();
    let order = ExecOrder { id: instance(0), command, terminal: Some((80, 24)) };
    let mut stream = lab.control.exec(order).await.unwrap();
    stream.input.send(ExecInput::Bytes(b"hello\n".to_vec())).await.unwrap();
    let mut said = Vec::new();
    // What is typed, and what the program says.
    while said.windows(5).filter(|five| five == b"hello").count() < 2 {
        let Some(ExecOutput::Bytes(OutputStream::Out, bytes)) = stream.output.recv().await else { panic!("{said:?}") };
        said.extend(bytes);
    }
    stream.input.send(ExecInput::Resize(100, 30)).await.unwrap();
    let id = bench.containers().remove(0);
    let programs = || docker(&["top", &id, "-o", "pid,args"]).lines().filter(|line| line.contains("copy")).count();
    assert_eq!(programs(), 1);
    drop(stream);
    let began = std::time::Instant::now();
    while programs() > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "the command goes on without anybody");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.control.stop("seen".to_owned()).await;
    lab.finish().await;
    bench.close().await;
}

#[tokio::test]
async fn container_that_is_ended_from_outside_is_told_so() {
    let bench = engine!();
    let mut lab =
        Lab::prepare(&bench.runner, bench.cell(&Container::usual(), &[&["ignore-term"], &["ignore-term"]])).await;
    lab.control.start().await;
    until(&mut lab, "both run", |o| wrote(0, "ignoring")(o) && wrote(1, "ignoring")(o)).await;
    for id in bench.containers() {
        if docker(&["inspect", "--format", "{{index .Config.Labels \"iptl.instance\"}}", &id]) == "0" {
            docker(&["kill", &id]);
        } else {
            docker(&["rm", "--force", &id]);
        }
    }
    let outcome = lab.finish().await;
    for index in 0..2 {
        let Exit::WorkerDied { reason } = outcome.exit(index) else { panic!("{:?}", outcome.exit(index)) };
        assert!(reason.starts_with("its container"), "{reason}");
        assert!(outcome.ended[&instance(index)].started_ms > 0);
    }
    bench.close().await;
}

#[tokio::test]
async fn signal_from_outside_reaches_the_workload() {
    let bench = engine!();
    let mut lab = Lab::prepare(&bench.runner, bench.cell(&Container::usual(), &[&["catch-term"]])).await;
    lab.control.start().await;
    until(&mut lab, "it runs", wrote(0, "catching")).await;
    docker(&["kill", "--signal", "TERM", &bench.containers()[0]]);
    assert_eq!(lab.finish().await.exit(0), &Exit::Exited { code: 7 });
    bench.close().await;
}

#[tokio::test]
async fn cell_that_is_there_is_not_made_again() {
    let bench = engine!();
    let cell = bench.cell(&Container::usual(), &[&["print"]]);
    let lab = Lab::prepare(&bench.runner, cell.clone()).await;
    let refused = bench.runner.prepare(cell.clone()).await.err().unwrap();
    assert!(matches!(refused, iptl_runner::PrepareError::Io { .. }), "{refused}");
    lab.control.start().await;
    assert_eq!(lab.finish().await.exit(0), &Exit::Exited { code: 0 });
    // Once it is over and nobody holds it any more, it may be.
    bench.run(cell).await;
    bench.close().await;
}

#[tokio::test]
async fn preparation_that_is_given_up_leaves_nothing() {
    let bench = engine!();
    let args = vec![&["park"][..]; 12];
    let cell = bench.cell(&Container::usual(), &args);
    let given_up = tokio::time::timeout(Duration::from_millis(700), bench.runner.prepare(cell)).await;
    drop(given_up);
    bench.close().await;
}

#[tokio::test]
async fn settings_of_the_plan_are_seen_inside() {
    let bench = engine!();
    let dir = bench.dir.path().join("given");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("tired"), "x").unwrap();
    let mut cell = bench.cell(&Container::usual(), &[&["environment", "an argument"], &["park"], &["park"]]);
    let health = |file: &str| Health {
        command: vec![PROGRAM.to_owned(), "well-until".to_owned(), file.to_owned()],
        interval_ms: 200,
        timeout_ms: 5_000,
        start_ms: 0,
        retries: 2,
    };
    // One whose check fails since a file of the plan is there, and one that is well until its time is over.
    for (index, file) in [(1, "/given/tired"), (2, "/given/awake")] {
        let settings = Container { health: Some(health(file)), ..Container::usual() };
        let mut container = plain(settings);
        container.files.insert("/given".to_owned(), dir.clone());
        cell.instances[index].container = Some(container);
    }
    cell.instances[2].limits.wall_ms = 2_500;
    let outcome = bench.run(cell).await;
    assert!(outcome.lines(0, OutputStream::Out).contains(&"an argument".to_owned()));
    assert_eq!(outcome.exit(1), &Exit::Unwell { reason: "it is tired".to_owned() });
    assert_eq!(outcome.exit(2), &Exit::OutOfTime {});
    bench.close().await;
}

#[tokio::test]
async fn image_is_forgotten_once_no_container_has_it_and_loaded_again_where_it_is_wanted() {
    let bench = engine!();
    // An image that no other test has, now or at another time: they share the engine.
    let own = bench.dir.path().display().to_string();
    let program = program();
    let bytes = std::fs::read(&program.path).unwrap();
    let config = serde_json::json!({ "Entrypoint": [PROGRAM], "Labels": { "of": own } });
    let layer = layer_of(&bytes);
    let image = artifact("forgotten", &layer, &config, "amd64");
    let name = format!("iptl/{}:latest", image.cid);
    let is_there = || !docker(&["images", "--quiet", &name]).is_empty();
    let cell = |args: &[&[&str]]| {
        let mut cell = bench.cell(&Container::usual(), args);
        cell.instances.iter_mut().for_each(|instance| instance.artifact = image.clone());
        cell
    };
    assert!(bench.runner.forget(&image.cid).await, "what is not there is forgotten");
    let mut lab = Lab::prepare(&bench.runner, cell(&[&["ignore-term"]])).await;
    lab.control.start().await;
    until(&mut lab, "it runs", wrote(0, "ignoring")).await;
    assert!(is_there());
    assert!(!bench.runner.forget(&image.cid).await, "a container has it");
    assert!(is_there(), "and keeps it");
    lab.control.stop("enough".to_owned()).await;
    lab.finish().await;
    bench.runner.reap(&BTreeSet::new()).await;
    let began = std::time::Instant::now();
    while !bench.containers().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20), "its container is left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(bench.runner.forget(&image.cid).await);
    assert!(!is_there(), "the engine has it no more");
    // Wanted again, it is loaded from the file again.
    assert_eq!(bench.run(cell(&[&["print"]])).await.exit(0), &Exit::Exited { code: 0 });
    assert!(is_there());
    bench.runner.shutdown().await;
    assert!(bench.runner.forget(&image.cid).await);
    bench.close().await;
}
