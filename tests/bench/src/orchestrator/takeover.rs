//! Two orchestrators of which the one that leads is killed: time until the other leads and has heard every lablet.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use iptl_wire::control::{Reply, Request, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Again, LABLETS, until};
use crate::lab::{Guest, Lab, call, iptl};
use crate::report::{Row, percentile};

/// Deaths of who leads.
const DEATHS: u32 = 20;

/// Length of a lease in seconds, as an orchestrator dictates it in a lab of this size.
const LEASE: f64 = 5.0;

/// Seconds beyond a lease that a takeover may take, in all but one of a hundred.
const MARGIN: f64 = 2.0;

/// What a node that joins is told.
const SECOND: [&str; 6] =
    ["--no-mdns", "--no-docker", "--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"];

/// One of the two orchestrators.
struct One {
    home: PathBuf,
    /// None where the lab itself started it.
    process: Option<Again>,
}

/// Measures it, the two taking turns.
pub async fn measure(guest: &Guest) -> Result<Row> {
    let lab = Lab::start(LABLETS, guest)?;
    let second = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    let ticket = lab.iptl(&["-q", "invite", "--role", "orchestrator"])?;
    let process = Again::start(second.path(), &SECOND)?;
    until(Instant::now(), async || status(second.path()).await.is_ok()).await.context("the second orchestrator")?;
    iptl(second.path(), &["-q", "join", &ticket])?;
    let mut leads = One { home: lab.orchestrator.home.clone(), process: None };
    let mut follows = One { home: second.path().to_owned(), process: Some(process) };
    let mut all = Vec::new();
    for _ in 0..DEATHS {
        until(Instant::now(), async || is_followed(&leads.home).await.is_ok_and(|yes| yes))
            .await
            .context("an orchestrator that follows and has everything")?;
        let begun = Instant::now();
        match leads.process.take() {
            None => kill(Pid::from_raw(lab.orchestrator.pid.try_into()?), Signal::SIGKILL)?,
            Some(process) => drop(process),
        }
        until(begun, async || has_taken_over(&follows.home).await.is_ok_and(|yes| yes)).await.context("a takeover")?;
        all.push(begun.elapsed().as_secs_f64());
        leads.process = Some(Again::start(&leads.home, &[])?);
        std::mem::swap(&mut leads, &mut follows);
    }
    let (p50, p99) = (percentile(&all, 50), percentile(&all, 99));
    Ok(Row {
        measure: format!(
            "kill -9 of the orchestrator that leads → the other leads and has all {LABLETS} lablets, {DEATHS} times"
        ),
        figure: format!("p50 {p50:.2} s, p99 {p99:.2} s"),
        reference: format!("a lease: {LEASE} s"),
        ratio: format!("{:.1} ×", p99 / LEASE),
        goal: format!("p99 ≤ lease + {MARGIN} s"),
        reached: Some(p99 <= LEASE + MARGIN),
        bound: "silence that is long enough to be a death; then promises of lablets, and their leases".to_owned(),
    })
}

async fn status(home: &Path) -> Result<Status> {
    match call(home, &Request::Status {}).await?.next().await? {
        Some(Reply::Status(status)) => Ok(status),
        other => bail!("{other:?} instead of a status"),
    }
}

/// Tells whether a node leads, and another one follows that would miss nothing.
async fn is_followed(home: &Path) -> Result<bool> {
    let status = status(home).await?;
    Ok(status.leads.is_some_and(|leads| {
        let has_all = |follower: &iptl_wire::control::FollowerRow| follower.in_contact && follower.missing == 0;
        leads.leader == status.peer && !leads.followers.is_empty() && leads.followers.iter().all(has_all)
    }))
}

/// Tells whether a node leads, and has heard of every lablet.
async fn has_taken_over(home: &Path) -> Result<bool> {
    let status = status(home).await?;
    Ok(status.leads.is_some_and(|leads| leads.leader == status.peer) && status.lablets_ready == LABLETS)
}
