//! Figures, each as a ratio to the bare engine in the same run. Ignored every day; a release build and a quiet machine:
//! `cargo test --release -p iptl-runner-docker --test main -- --ignored --nocapture --test-threads 1 measures`.

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptionsBuilder, StartContainerOptions};
use futures::StreamExt;
use iptl_dag::model::{Container, Exit};
use iptl_runner::contract::{Lab, instance};
use iptl_runner::{CellSpec, Runner};

use crate::engine;
use crate::support::{Bench, PROGRAM, docker, program};

/// What the runner does at once, too.
fn parallel() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) * 4
}

fn many(bench: &Bench, count: usize, args: &[&str]) -> CellSpec {
    let mut cell = bench.cell(&Container::usual(), &vec![args; count]);
    for instance in &mut cell.instances {
        instance.limits.output_bytes = 1 << 30;
        instance.limits.wall_ms = 600_000;
    }
    cell
}

/// Seconds from the start of one prepared instance to its end.
async fn ours(bench: &Bench, args: &[&str]) -> f64 {
    let mut lab = Lab::prepare(&bench.runner, many(bench, 1, args)).await;
    let began = Instant::now();
    lab.control.start().await;
    while lab.outcome.ended.is_empty() {
        assert!(lab.step().await);
        lab.outcome.output.clear();
    }
    let took = began.elapsed().as_secs_f64();
    assert_eq!(lab.finish().await.exit(0), &Exit::Exited { code: 0 });
    took
}

/// Seconds from the start of one container to its end, by the engine with its own way to keep output.
fn json_file(image: &str, args: &[&str]) -> f64 {
    let mut line = vec!["create", "--network", "none", "--log-driver", "json-file", "--entrypoint", PROGRAM, image];
    line.extend(args);
    let id = docker(&line);
    let began = Instant::now();
    docker(&["start", &id]);
    assert_eq!(docker(&["wait", &id]), "0");
    let took = began.elapsed().as_secs_f64();
    docker(&["rm", &id]);
    took
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measure"]
async fn capturing_output() {
    let bench = engine!();
    ours(&bench, &["succeed"]).await;
    let image = format!("iptl/{}:latest", program().cid);
    for round in 0..3 {
        let (empty, full) = (ours(&bench, &["succeed"]).await, ours(&bench, &["bytes", "100000000"]).await);
        let (bare_empty, bare_full) = (json_file(&image, &["succeed"]), json_file(&image, &["bytes", "100000000"]));
        println!(
            "round {round}: 100 MB of stdout: lab {:.2} s, json-file {:.2} s, ratio {:.2}; whole runs {full:.2} and {bare_full:.2}",
            full - empty,
            bare_full - bare_empty,
            (full - empty) / (bare_full - bare_empty),
        );
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measure"]
async fn many_containers() {
    let bench = engine!();
    ours(&bench, &["succeed"]).await;
    let image = format!("iptl/{}:latest", program().cid);
    let api = Docker::connect_with_unix_defaults().unwrap().negotiate_version().await.unwrap();
    for count in [50, 100, 200] {
        let began = Instant::now();
        let lab = Lab::prepare(&bench.runner, many(&bench, count, &["park"])).await;
        lab.control.start().await;
        let up = began.elapsed();
        let began = Instant::now();
        lab.control.stop("enough".to_owned()).await;
        lab.finish().await;
        let down = began.elapsed();
        let host = HostConfig {
            memory: Some(32 << 20),
            memory_swap: Some(32 << 20),
            pids_limit: Some(257),
            network_mode: Some("none".to_owned()),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
            readonly_rootfs: Some(true),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            ..HostConfig::default()
        };
        let body = ContainerCreateBody {
            image: Some(image.clone()),
            entrypoint: Some(vec![PROGRAM.to_owned()]),
            cmd: Some(vec!["park".to_owned()]),
            user: Some("65534:65534".to_owned()),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
        let began = Instant::now();
        let one = |_| {
            let (api, body) = (api.clone(), body.clone());
            async move {
                let id = api.create_container(None::<CreateContainerOptions>, body).await.unwrap().id;
                api.start_container(&id, None::<StartContainerOptions>).await.unwrap();
                id
            }
        };
        let ids: Vec<String> = futures::stream::iter(0..count).map(one).buffer_unordered(parallel()).collect().await;
        let bare_up = began.elapsed();
        let began = Instant::now();
        let gone = |id: String| {
            let api = api.clone();
            async move {
                let options = RemoveContainerOptionsBuilder::new().force(true).build();
                api.remove_container(&id, Some(options)).await.unwrap();
            }
        };
        futures::stream::iter(ids).map(gone).buffer_unordered(parallel()).collect::<Vec<_>>().await;
        let bare_down = began.elapsed();
        println!(
            "{count} containers: lab up {:.1} s, down {:.1} s; engine up {:.1} s, down {:.1} s; ratio up {:.2}, both {:.2}",
            up.as_secs_f64(),
            down.as_secs_f64(),
            bare_up.as_secs_f64(),
            bare_down.as_secs_f64(),
            up.as_secs_f64() / bare_up.as_secs_f64(),
            (up + down).as_secs_f64() / (bare_up + bare_down).as_secs_f64(),
        );
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measure"]
async fn idle_containers() {
    const COUNT: usize = 50;
    const TIME: Duration = Duration::from_secs(20);
    let bench = engine!();
    ours(&bench, &["succeed"]).await;
    let before = resident();
    let lab = Lab::prepare(&bench.runner, many(&bench, COUNT, &["park"])).await;
    lab.control.start().await;
    // The first samples bring files and buffers.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let memory = resident().saturating_sub(before) / COUNT as u64;
    let cpu = cpu_time();
    tokio::time::sleep(TIME).await;
    let share = (cpu_time() - cpu).as_secs_f64() / TIME.as_secs_f64() / COUNT as f64;
    lab.control.stop("enough".to_owned()).await;
    let outcome = lab.finish().await;
    let used: u64 = (0..COUNT).map(|i| outcome.ended[&instance(i as u32)].usage.cpu_us).sum();
    println!(
        "an idle container: {} KB and {:.4} % of a processor in the lablet; {} ms of CPU in the container in {} s, its start included",
        memory >> 10,
        share * 100.0,
        used / COUNT as u64 / 1000,
        TIME.as_secs() + 3,
    );
    bench.runner.warm().await;
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measure"]
async fn barriers() {
    let bench = engine!();
    for count in [20, 50, 100] {
        let lab = Lab::prepare(&bench.runner, many(&bench, count, &["barriers", "50"])).await;
        lab.control.start().await;
        let outcome = lab.finish().await;
        let mut medians: Vec<u64> = outcome.output.iter().filter_map(|(_, _, line)| line.parse::<u64>().ok()).collect();
        assert_eq!(medians.len(), count);
        medians.sort_unstable();
        println!("barrier of {count} containers: p50 {:.1} ms", medians[count / 2] as f64 / 1000.0);
    }
    bench.close().await;
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}
