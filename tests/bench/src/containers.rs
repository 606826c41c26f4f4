//! Containers of one lablet against the engine by itself: many that end at once, idle ones, barriers, and output.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use iptl_dag::model::{self, Fact, FactKind, Plan, Workload};
use iptl_wire::control::Event;
use tokio::sync::{Semaphore, mpsc};

use crate::engine::Engine;
use crate::lab::{Guest, Lab};
use crate::process::{cpu_ticks, pss_kib};
use crate::reference::loopback_round_trip;
use crate::report::{Report, Row};

/// Containers of a run.
const MANY: [u32; 3] = [50, 100, 200];

/// Times the engine's own wall time that a run of them may take.
const MANY_GOAL: f64 = 1.1;

/// Containers that idle, the time before they are looked at, and the time over which processor time is counted.
const IDLE: u32 = 50;
const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(20);

/// Bytes of output.
const FLOOD: u64 = 100_000_000;

/// Times the time of the engine's own log that they may take.
const FLOOD_GOAL: f64 = 1.2;

/// Takes all measures in one lab; what was measured before one fails is in the report.
pub async fn measure(guest: &Guest, report: &mut Report) -> Result<()> {
    let engine = Engine::find().await?;
    let lab = Lab::start(1, guest)?;
    let image = image(&lab).await?;
    for count in MANY {
        report.add(many(&lab, &engine, &image, count).await?);
    }
    report.add(idle(&lab).await?);
    report.add(barriers(&lab).await?);
    report.add(flood(&lab, &engine, &image).await?);
    Ok(())
}

/// Takes the first measure again where the lablet may not make devices, and has the engine start a container beside each
/// to do it.
pub async fn measure_unprivileged(guest: &Guest) -> Result<Vec<Row>> {
    let engine = Engine::find().await?;
    let lab = Lab::start_unprivileged(1, guest)?;
    let image = image(&lab).await?;
    let log = std::fs::read_to_string(lab.lablets.first().context("a lab without lablets")?.home.join("node.log"))?;
    anyhow::ensure!(log.contains("the engine makes the devices"), "a lablet without privileges makes devices itself");
    let row = many(&lab, &engine, &image, MANY[0]).await?;
    Ok(vec![Row {
        measure: format!("{}; the lablet is nobody special", row.measure),
        goal: "report (unprivileged lablet)".to_owned(),
        reached: None,
        bound: "a second container for each instance, which makes its device in the lab network and ends".to_owned(),
        ..row
    }])
}

/// Has the engine load the guest's image, and returns its name there.
async fn image(lab: &Lab) -> Result<String> {
    let ended = lab.run("containers", &[]).await?;
    anyhow::ensure!(ended.counts.ok == 1, "{:?}: a container does not run here", ended.counts);
    let plan: Plan = model::from_bytes(lab.block(lab.plan.parse()?).await?.data())?;
    let program = plan.workloads.get("program").context("a plan without the program")?;
    let program: Workload = model::from_bytes(lab.block(*program).await?.data())?;
    Ok(format!("iptl/{}:latest", program.content))
}

async fn many(lab: &Lab, engine: &Engine, image: &str, count: u32) -> Result<Row> {
    let ended = lab.run("containers", &["-g", &format!("node={count}")]).await?;
    anyhow::ensure!(ended.counts.ok == u64::from(count), "{:?} of {count} ended well", ended.counts);
    let times = Times::of(&lab.facts(ended.execution)?).context("a log without its facts")?;
    // The lab tells the end first and removes then: what it still does is not to slow down what it is held against.
    engine.has_none_of(&ended.execution.to_string()).await?;
    let begun = Instant::now();
    // As many at once as the lab makes.
    let room = Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from) * 4));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (engine, image, room) = (engine.clone(), image.to_owned(), Arc::clone(&room));
        tasks.spawn(async move {
            let _place = room.acquire().await?;
            let id = engine.create(&image, &["bare-end"], "none").await?;
            engine.start(&id).await?;
            engine.wait(&id).await?;
            engine.remove(&id).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let bare = begun.elapsed().as_secs_f64();
    Ok(Row {
        measure: format!("{count} containers that end at once, submission → sealed result"),
        figure: format!("{:.1} s, of which {:.1} s until they start", times.sealed, times.started),
        reference: format!("create, start, wait and remove by the engine's API, the same limits: {bare:.1} s"),
        ratio: format!("{:.2} ×", times.sealed / bare),
        goal: format!("≤ {MANY_GOAL} × (privileged lablet)"),
        reached: Some(times.sealed / bare <= MANY_GOAL),
        bound:
            "the engine: namespaces, control groups and mounts of each container; the lab removes them after it told \
                the end"
                .to_owned(),
    })
}

async fn idle(lab: &Lab) -> Result<Row> {
    let lablet = lab.lablets.first().context("a lab without lablets")?.pid;
    let before = pss_kib(lablet)?;
    let hold = format!("hold={}s", (SETTLE + WATCH).as_secs() + 10);
    let submitted = lab.submit("parked-containers", &["-g", &format!("node={IDLE}"), "-p", &hold])?;
    let (started, mut starts) = mpsc::channel(1);
    let watching = lab.watch(submitted.execution, |event| {
        if let Event::Started { .. } = event {
            let _once = started.try_send(());
        }
    });
    let looking = async {
        starts.recv().await.context("it never started")?;
        tokio::time::sleep(SETTLE).await;
        let (memory, ticks) = (pss_kib(lablet)?, cpu_ticks(lablet)?);
        tokio::time::sleep(WATCH).await;
        anyhow::Ok((memory, cpu_ticks(lablet)? - ticks))
    };
    let (ended, looked) = tokio::join!(watching, looking);
    let (ended, (memory, ticks)) = (ended?, looked?);
    anyhow::ensure!(ended.counts.ok == u64::from(IDLE), "{:?} of {IDLE} parked well", ended.counts);
    let kib = memory.saturating_sub(before) as f64 / f64::from(IDLE);
    let share = ticks as f64 / WATCH.as_secs_f64() / f64::from(IDLE);
    Ok(Row {
        measure: format!("an idle container in the lablet, of {IDLE}"),
        figure: format!("{kib:.0} KiB PSS, {share:.4} % of a processor, the lablet's own idling included"),
        reference: "–".to_owned(),
        ratio: "–".to_owned(),
        goal: "≤ 200 KB, ≤ 0.05 %".to_owned(),
        reached: Some(kib * 1.024 <= 200.0 && share <= 0.05),
        bound: "a sample each second, which is a line in a file".to_owned(),
    })
}

async fn barriers(lab: &Lab) -> Result<Row> {
    let round_trip = loopback_round_trip()?;
    let (mut figures, mut ratio) = (Vec::new(), f64::NAN);
    for count in [20, 50, 100] {
        let ended = lab.run("synced-containers", &["-g", &format!("node={count}")]).await?;
        anyhow::ensure!(ended.counts.ok == count, "{:?} of {count} ended well", ended.counts);
        let measured: Vec<f64> = ended.measured.into_iter().flatten().collect();
        let [p50, p99] = measured[..] else { anyhow::bail!("the run measured {} of 2 values", measured.len()) };
        figures.push(format!("{count}: p50 {p50:.1} ms, p99 {p99:.1} ms"));
        ratio = p50 / round_trip;
    }
    Ok(Row {
        measure: "barrier of containers on one lablet, as each sees it".to_owned(),
        figure: figures.join("; "),
        reference: format!("round trip over the loopback {round_trip:.3} ms"),
        ratio: format!("{ratio:.0} × at 100"),
        goal: "report (Testground's sync service elsewhere: 2.4, 5.6, 12.9 ms)".to_owned(),
        reached: None,
        bound: "a WebSocket in each container's own network namespace, all served by one lablet".to_owned(),
    })
}

async fn flood(lab: &Lab, engine: &Engine, image: &str) -> Result<Row> {
    let mut ours = Vec::new();
    let mut bare = Vec::new();
    for _ in 0..3 {
        let ended = lab.run("flood", &["-p", &format!("bytes={FLOOD}B")]).await?;
        anyhow::ensure!(ended.counts.ok == 1, "{:?}: the flood did not end well", ended.counts);
        ours.push(ended.measured.into_iter().flatten().next().context("no time of the flood")? / 1e3);
        let id = engine.create(image, &["bare-flood", &FLOOD.to_string()], "json-file").await?;
        engine.start(&id).await?;
        engine.wait(&id).await?;
        bare.push(engine.errors(&id).await?.trim().parse::<f64>()? / 1e3);
        engine.remove(&id).await?;
    }
    let (ours, bare) = (crate::report::percentile(&ours, 50), crate::report::percentile(&bare, 50));
    Ok(Row {
        measure: "100 MB of standard output, as the program that writes it waits; median of 3".to_owned(),
        figure: format!("{ours:.2} s"),
        reference: format!("the engine's json-file log {bare:.2} s"),
        ratio: format!("{:.2} ×", ours / bare),
        goal: format!("≤ {FLOOD_GOAL} ×"),
        reached: Some(ours / bare <= FLOOD_GOAL),
        bound: "every line becomes a line of JSON with its time".to_owned(),
    })
}

/// Seconds from the submission of a run, by the facts of its log.
pub struct Times {
    /// Until they were told to start.
    pub started: f64,
    /// Until the result was sealed.
    pub sealed: f64,
}

impl Times {
    /// Reads a log.
    pub fn of(facts: &[Fact]) -> Option<Times> {
        let begun = facts.first()?.at_ms;
        let at = |wanted: fn(&FactKind) -> bool| {
            let fact = facts.iter().rev().find(|fact| wanted(&fact.kind))?;
            Some(fact.at_ms.saturating_sub(begun) as f64 / 1e3)
        };
        Some(Times {
            started: at(|kind| matches!(kind, FactKind::Started {}))?,
            sealed: at(|kind| matches!(kind, FactKind::Sealed { .. }))?,
        })
    }
}
