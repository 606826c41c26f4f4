//! An orchestrator by itself: many small executions at once, its death and the return of its lablets, its death and who takes
//! over ([`takeover`]), a large placement ([`placing`]), long logs, its core in the simulator ([`simulating`]).

pub mod placing;
pub mod simulating;
pub mod takeover;

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use iptl_dag::{Block, Cid};
use iptl_node::facts::Logs;
use iptl_wire::control::{Event, ListKind, Reply, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::crowd;
use crate::lab::{self, Guest, Lab};
use crate::process::own_cpu;
use crate::reference::fdatasync;
use crate::report::{Row, percentile};

/// Executions of one instance each.
const EXECUTIONS: u32 = 400;

/// How many of them are under way at a time.
const AT_ONCE: usize = 16;

/// Executions one after another, before those.
const ALONE: u32 = 30;

/// Deaths of the orchestrator.
const DEATHS: u32 = 20;

/// Lablets that come back to it.
const LABLETS: u32 = 3;

/// Seconds from its start to the last lablet's return, in all but one of a hundred.
const RETURN_GOAL: f64 = 3.0;

/// Time after which lablets that have not come back fail the measure.
const RETURN_LIMIT: Duration = Duration::from_secs(60);

/// Facts of the logs that are opened.
const FACTS: u32 = 1_000_000;

/// Time between two looks for a node or its lablets.
const LOOK: Duration = Duration::from_millis(5);

/// Measures all of it.
pub async fn measure(guest: &Guest) -> Result<Vec<Row>> {
    let lab = Arc::new(Lab::start(LABLETS, guest)?);
    let mut rows = vec![throughput(&lab).await?, returns(&lab).await?];
    drop(lab);
    rows.push(takeover::measure(guest).await?);
    rows.extend(tokio::task::spawn_blocking(placing::measure).await??);
    rows.extend(tokio::task::spawn_blocking(openings).await??);
    rows.extend(tokio::task::spawn_blocking(simulating::measure).await??);
    rows.extend(tokio::task::spawn_blocking(crowd::measure).await??);
    Ok(rows)
}

/// Executions of one instance each, several at once, until all are sealed.
async fn throughput(lab: &Arc<Lab>) -> Result<Row> {
    let first = lab.submit("trivial", &["--group", "node=1"])?;
    lab.watch(first.execution, |_| {}).await?;
    let run = first.run;
    let block = lab.block(run).await?;
    let begun = Instant::now();
    for _ in 0..ALONE {
        execute(lab, run, &block).await?;
    }
    let alone = f64::from(ALONE) / begun.elapsed().as_secs_f64();

    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut going = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..EXECUTIONS {
        let (lab, places, block) = (lab.clone(), places.clone(), block.clone());
        going.spawn(async move {
            let _place = places.acquire().await?;
            execute(&lab, run, &block).await
        });
    }
    while let Some(ended) = going.join_next().await {
        ended??;
    }
    let rate = f64::from(EXECUTIONS) / begun.elapsed().as_secs_f64();
    Ok(Row {
        measure: format!("executions of one instance, {AT_ONCE} at a time, {EXECUTIONS} in all, {LABLETS} lablets"),
        figure: format!("{rate:.0}/s"),
        reference: format!("one after another: {alone:.0}/s"),
        ratio: format!("{:.1} ×", rate / alone),
        goal: "report".to_owned(),
        reached: None,
        bound: "processor time of five processes on this machine; facts of executions that come together share a sync"
            .to_owned(),
    })
}

async fn execute(lab: &Lab, run: Cid, block: &Block) -> Result<()> {
    lab.put(block).await?;
    let request = Request::Submit { run, source: None, source_addrs: Vec::new(), priority: 0 };
    let reply = lab.call(&request).await?.next().await?;
    let Some(Reply::Submitted { execution, .. }) = reply else { bail!("{reply:?} instead of a name") };
    let ended = lab.watch(execution, |_: &Event| {}).await?;
    anyhow::ensure!(ended.counts.ok == 1, "a trivial execution failed");
    Ok(())
}

/// The orchestrator is killed and started again: time until all its lablets are back.
async fn returns(lab: &Lab) -> Result<Row> {
    let mut again: Option<Again> = None;
    let (mut answers, mut all) = (Vec::new(), Vec::new());
    for _ in 0..DEATHS {
        match again.take() {
            None => kill(Pid::from_raw(lab.orchestrator.pid.try_into()?), Signal::SIGKILL)?,
            Some(node) => drop(node),
        }
        let begun = Instant::now();
        again = Some(Again::start(&lab.orchestrator.home, &["--detached"])?);
        until(begun, async || lab.call(&Request::Status {}).await.is_ok()).await.context("the orchestrator")?;
        answers.push(begun.elapsed().as_secs_f64());
        until(begun, async || online(lab).await.is_ok_and(|n| n == LABLETS)).await.context("its lablets")?;
        all.push(begun.elapsed().as_secs_f64());
    }
    let (answer, p50, worst) = (percentile(&answers, 50), percentile(&all, 50), percentile(&all, 99));
    let sync = fdatasync(&lab.orchestrator.home)?;
    Ok(Row {
        measure: format!("kill -9 and start of the orchestrator → all {LABLETS} lablets are back, {DEATHS} times"),
        figure: format!("p50 {p50:.2} s, p99 {worst:.2} s"),
        reference: format!("start → it answers: p50 {answer:.2} s; fdatasync {sync:.2} ms"),
        ratio: format!("{:.1} ×", p50 / answer),
        goal: format!("p99 ≤ {RETURN_GOAL} s"),
        reached: Some(worst <= RETURN_GOAL),
        bound: "lablets dial again after they saw the connection go, at least twice a second at first".to_owned(),
    })
}

/// An orchestrator of a lab, started beside it; killed with the value.
struct Again(Child);

impl Again {
    fn start(home: &Path, args: &[&str]) -> Result<Again> {
        let log = std::fs::File::options().append(true).create(true).open(home.join("node.log"))?;
        let mut command = lab::program(home, &[&["up"], args].concat())?;
        Ok(Again(command.stdout(log.try_clone()?).stderr(log).stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("cannot end an orchestrator: {error}");
        }
    }
}

async fn until(begun: Instant, mut holds: impl AsyncFnMut() -> bool) -> Result<()> {
    while !holds().await {
        anyhow::ensure!(begun.elapsed() < RETURN_LIMIT, "not back after {} s", RETURN_LIMIT.as_secs());
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn online(lab: &Lab) -> Result<u32> {
    let mut replies = lab.call(&Request::List { what: ListKind::Lablets }).await?;
    let mut count = 0;
    while let Some(reply) = replies.next().await? {
        if let Reply::Row(row) = reply
            && row.get("state").is_some_and(|state| state != "offline")
        {
            count += 1;
        }
    }
    Ok(count)
}

/// Logs of a million facts: what an orchestrator does with one at its start.
fn openings() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, snapshot) in [("as it was written", false), ("behind a snapshot", true)] {
        let log = iptl_sim::long_log(FACTS, snapshot);
        let dir = tempfile::tempdir()?;
        let from = if snapshot { format!(".{FACTS}") } else { String::new() };
        std::fs::write(dir.path().join(format!("{}{from}.log", log.execution)), &log.bytes)?;
        let begun = Instant::now();
        let _hashes = blake3::hash(&log.bytes);
        let hashed = begun.elapsed().as_secs_f64();
        let (begun, cpu) = (Instant::now(), own_cpu());
        let mut logs = Logs::new(dir.path().to_owned(), Arc::new(log.key()));
        let mut replay = log.replay();
        logs.replay(|facts| replay.take(facts))?;
        let (replayed, recalled) = replay.end();
        let (took, cpu) = (begun.elapsed().as_secs_f64(), (own_cpu() - cpu).as_secs_f64());
        rows.push(Row {
            measure: format!("opening a log of {FACTS} facts of one execution, {name}"),
            figure: format!(
                "{took:.2} s, {cpu:.2} s of the processors; {replayed} facts replayed, {recalled} receipts to read again"
            ),
            reference: format!("hashing its {} MiB in one piece: {hashed:.2} s", log.bytes.len() >> 20),
            ratio: format!("{:.0} ×", took / hashed),
            goal: "≤ 1 s".to_owned(),
            reached: Some(took <= 1.0),
            bound: "decoding and hashing each fact, on all processors, while the core replays those before".to_owned(),
        });
    }
    Ok(rows)
}
