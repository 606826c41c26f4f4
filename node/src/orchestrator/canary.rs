//! The lab's canary: an execution of one instance that ends at once, made where nobody else executes anything.
//!
//! It goes the way of every other execution, from an offer to a sealed result. It stands in no list, and nothing of it
//! is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use iptl_artifacts::StoreError;
use iptl_dag::model::{
    self, Affinity, BarrierLoss, Case, Count, Engine, Execution, ExecutionId, GroupRun, GroupSpec, LossPolicy, Network,
    Placing, Plan, Requirements, Resources, Run, Workload, WorkloadKind,
};
use iptl_dag::{Block, Cid, Codec};
use iptl_wire::control::{Event, MAX_PRIORITY};
use iptl_wire::session::KnownRun;
use tokio::sync::broadcast::error::RecvError;

use super::driver::Parts;
use super::health::Need;
use super::{Ask, OrchestratorHandle, RunRow, Stopped};

/// The component, 194 bytes; `canary.wat` beside it is its text.
const COMPONENT: &[u8] = include_bytes!("canary.wasm");

/// Name of everything in the plan that has one.
const NAME: &str = "canary";

/// A canary that has not ended by then shows that something does not work.
const LIMIT: Duration = Duration::from_secs(30);

/// Where something does not work, it is tried again after this part of the usual pause.
const SOONER: u32 = 4;

/// The canary of a lab.
pub(super) struct Canary {
    pub(super) lab: OrchestratorHandle,
    pub(super) parts: Arc<Parts>,
    /// Time without a sign of health after which it runs.
    pub(super) pause: Duration,
}

/// Why a canary could not be tried.
#[derive(Debug, thiserror::Error)]
enum Unable {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Canary {
    /// Executes whenever nothing was seen of the lab's health for the pause, until the node stops.
    pub(super) async fn watch(self) {
        loop {
            let pause = if self.parts.health.trouble().is_some() { self.pause / SOONER } else { self.pause };
            tokio::select! {
                () = self.parts.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if self.parts.health.trouble().is_none() && self.parts.health.age().is_some_and(|age| age < self.pause) {
                continue;
            }
            if !self.lab.leads() {
                continue;
            }
            match self.try_once().await {
                Ok(()) => {}
                Err(Unable::Stopped(_)) => tracing::debug!("this orchestrator leads no longer"),
                Err(Unable::Store(error)) => {
                    self.parts.health.fails(Need::Place, format!("the orchestrator's store: {error}"))
                }
            }
        }
    }

    async fn try_once(&self) -> Result<(), Unable> {
        let lablets = self.lab.ask(|answer| Ask::Lablets { answer }).await?;
        if !lablets.iter().any(|lablet| lablet.ready) {
            self.parts.health.fails(Need::Place, "no lablet is here".to_owned());
            return Ok(());
        }
        let runs = self.lab.ask(|answer| Ask::Runs { answer }).await?;
        if runs.iter().any(|run| matches!(run, RunRow::Active { .. })) {
            return Ok(());
        }
        // Until the execution holds it itself.
        let _grace = self.parts.keeper.grace();
        let (run, blocks) = content();
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).expect("the kernel gives random bytes");
        let execution = Execution { run: run.cid, orchestrator: self.parts.links.peer().clone(), nonce };
        self.parts.store.put(blocks).await?;
        self.parts.store.put(vec![model::to_block(execution.clone())]).await?;
        let by = self.parts.links.peer().clone();
        let id = self
            .lab
            .ask(|answer| Ask::Submit { execution, run: Box::new(run), by, priority: -MAX_PRIORITY, answer })
            .await?;
        self.follow(id).await
    }

    /// Follows the execution to its end; what does not come in time does not work.
    async fn follow(&self, id: ExecutionId) -> Result<(), Unable> {
        let name = id.to_string();
        let Ok((_, watching)) = self.lab.ask(|answer| Ask::Watch { name, answer }).await? else { return Ok(()) };
        let mut past = watching.history.into_iter();
        let mut coming = watching.events;
        let mut stage = (Need::Place, "no lablet takes an instance".to_owned());
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let event = match (past.next(), &mut coming) {
                (Some(event), _) => event,
                (None, None) => return Ok(()),
                (None, Some(coming)) => match tokio::time::timeout_at(deadline, coming.recv()).await {
                    Ok(Ok(event)) => event,
                    Ok(Err(RecvError::Lagged(_))) => continue,
                    Ok(Err(RecvError::Closed)) => return Ok(()),
                    Err(_) => {
                        self.parts.health.fails(stage.0, format!("{} within {} s", stage.1, LIMIT.as_secs()));
                        let (name, by) = (id.to_string(), self.parts.links.peer().clone());
                        let _gone_meanwhile = self.lab.ask(|answer| Ask::Cancel { name, by, answer }).await?;
                        return Ok(());
                    }
                },
            };
            match event {
                Event::Waiting { reason } => stage.1 = reason,
                Event::Started { .. } => stage = (Need::Run, "an instance did not end".to_owned()),
                Event::Progress { ended, .. } if ended.values().any(|count| *count > 0) => {
                    stage = (Need::Seal, "no result was sealed".to_owned());
                }
                Event::Finished { failure: Some(failure), .. } => {
                    self.parts.health.fails(stage.0, failure.message);
                    return Ok(());
                }
                Event::Failed { failure, .. } => {
                    self.parts.health.fails(stage.0, failure.message);
                    return Ok(());
                }
                Event::Finished { counts, failures, .. } => {
                    if counts.ok == 0 {
                        let why = failures.into_iter().next().map_or_else(|| "it did not end well".to_owned(), |f| f.1);
                        self.parts.health.fails(Need::Run, format!("an instance that ends at once: {why}"));
                    }
                    return Ok(());
                }
                Event::Submitted { .. }
                | Event::Placed { .. }
                | Event::Preparing { .. }
                | Event::Fetching { .. }
                | Event::Progress { .. }
                | Event::Barrier { .. }
                | Event::Fault { .. }
                | Event::Lablet { .. } => {}
            }
        }
    }
}

/// Tells whether a run is the canary's.
pub(super) fn is_canary(run: &Cid) -> bool {
    static RUN: LazyLock<Cid> = LazyLock::new(|| content().0.cid);
    *run == *RUN
}

/// Returns the run with all that it leads to.
fn content() -> (KnownRun, Vec<Block>) {
    let component = Block::new(Codec::Raw, COMPONENT.to_vec());
    let workload = model::to_block(Workload {
        name: NAME.into(),
        kind: WorkloadKind::Wasm,
        content: *component.cid(),
        size: COMPONENT.len() as u64,
    });
    let resources = Resources { memory_bytes: 1 << 20, cpu_ms: 1_000, wall_ms: 10_000, ..Resources::default() };
    let requires = Requirements { affinity: Affinity::Balance, ..Requirements::default() };
    let group = GroupSpec {
        workload: NAME.into(),
        count: Count { default: 1, min: 1, max: 1 },
        args: Vec::new(),
        env: BTreeMap::new(),
        resources,
        requires: requires.clone(),
        container: None,
        loss: None,
        start: None,
    };
    let timeout_ms = 20_000;
    let case = Case {
        description: "One instance that ends at once.".into(),
        groups: [(NAME.to_owned(), group)].into(),
        params: BTreeMap::new(),
        thresholds: Vec::new(),
        timeout_ms,
        max_lost_ppm: 0,
        engine: Engine::Live,
        network: Network::Clean,
        faults: Vec::new(),
        max_lost: None,
        barriers: BarrierLoss::default(),
        placing: Placing::default(),
    };
    let plan = model::to_block(Plan {
        name: NAME.into(),
        version: "1".into(),
        description: "Shows that the lab places, runs and seals.".into(),
        source: None,
        workloads: [(NAME.to_owned(), *workload.cid())].into(),
        cases: [(NAME.to_owned(), case)].into(),
    });
    let group = GroupRun {
        workload: *workload.cid(),
        kind: WorkloadKind::Wasm,
        count: 1,
        args: Vec::new(),
        env: BTreeMap::new(),
        resources,
        requires,
        container: None,
        loss: None,
        start: None,
    };
    let run = Run {
        plan: *plan.cid(),
        case: NAME.into(),
        groups: [(NAME.to_owned(), group)].into(),
        params: BTreeMap::new(),
        seed: 0,
        engine: Engine::Live,
        network: Network::Clean,
        faults: Vec::new(),
        loss: LossPolicy { max_attempts: 1, max_lost_ppm: 0, max_lost: None, barriers: BarrierLoss::default() },
        placing: Placing::default(),
        captures: BTreeMap::new(),
        thresholds: Vec::new(),
        timeout_ms,
    };
    let block = model::to_block(run.clone());
    let known = KnownRun { cid: *block.cid(), run };
    (known, vec![component, workload, plan, block])
}
