//! Which machines there are, and what is submitted to them.

use std::collections::BTreeMap;

use iptl_dag::model::{
    Affinity, BarrierLoss, Engine, Execution, GroupLoss, GroupRun, LossPolicy, MaxLost, Network, Placing, Requirements,
    Resources, Run, WorkloadKind,
};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::{Input, Submission};
use iptl_wire::session::{Inventory, KnownRun, Slots};

use super::{MILLI, SECOND, World};
use crate::clock::Clock;
use crate::event::Event;
use crate::lablet::LabletNode;
use crate::network::Draws;
use crate::schedule::Schedule;

/// Names a node.
pub(crate) fn peer(n: u16) -> PeerId {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    PeerId::from_ed25519(&key)
}

fn cid(bytes: &[u8]) -> Cid {
    codec::cid_of(&bytes)
}

/// The clocks of a node.
pub(super) fn clock(schedule: &Schedule, node: u32) -> Clock {
    let mut draws = Draws::new(schedule.seed, 30_000 + u64::from(node));
    let drift = u64::from(schedule.profile.drift_ppm);
    Clock {
        base: draws.between(0, 1_000_000) * SECOND,
        drift_ppm: draws.between(0, 2 * drift) as i64 - drift as i64,
        skew_us: draws.between(0, 10_000_000) as i64 - 5_000_000,
    }
}

/// A machine with a lablet.
pub(super) fn machine(schedule: &Schedule, n: u32) -> LabletNode {
    let mut draws = Draws::new(schedule.seed, 10_000 + u64::from(n));
    let mut slots = BTreeMap::from([(WorkloadKind::Wasm, Slots::of(draws.between(2, 12) as u32))]);
    // Half of the lablets run containers too, some of them nothing else.
    if draws.chance(500_000) {
        slots.insert(WorkloadKind::Docker, Slots::of(draws.between(1, 3) as u32));
        if draws.chance(200_000) {
            slots.remove(&WorkloadKind::Wasm);
        }
    }
    let machine = Inventory {
        name: format!("l{n}"),
        cpus: 4,
        memory_bytes: 8 << 30,
        free_memory_bytes: 8 << 30,
        slots,
        ..Inventory::default()
    };
    LabletNode::new(peer(n as u16 + 1000), machine, clock(schedule, n))
}

pub(crate) fn group(count: u32) -> GroupRun {
    GroupRun {
        workload: cid(b"workload"),
        kind: WorkloadKind::Wasm,
        count,
        args: Vec::new(),
        env: BTreeMap::new(),
        resources: Resources::default(),
        requires: Requirements::default(),
        container: None,
        loss: None,
        start: None,
    }
}

/// A run of so many instances, and a lab of so many machines that just holds it, for each way to distribute instances.
///
/// A tenth of the machines cannot take any; they are in three regions.
pub fn crowd(lablets: u32, instances: u32) -> Vec<(&'static str, Run, BTreeMap<PeerId, Inventory>)> {
    let name = |n: u32| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        PeerId::from_ed25519(&key)
    };
    let each = instances / lablets.max(1);
    let machine = |n: u32| {
        let mut slots = Slots::of(each + each / 2 + n % 17);
        if n.is_multiple_of(10) {
            slots.free = 0;
        }
        let region = ["eu", "us", "asia"][(n % 3) as usize].to_owned();
        Inventory {
            labels: BTreeMap::from([("region".to_owned(), region)]),
            free_memory_bytes: 1 << 40,
            slots: BTreeMap::from([(WorkloadKind::Wasm, slots)]),
            ..Inventory::default()
        }
    };
    let inventory: BTreeMap<PeerId, Inventory> = (0..lablets).map(|n| (name(n), machine(n))).collect();
    [("balance", Affinity::Balance), ("spread", Affinity::Spread), ("pack", Affinity::Pack)]
        .into_iter()
        .map(|(name, affinity)| {
            let mut groups = BTreeMap::from([
                ("a".to_owned(), group(instances / 2)),
                ("b".to_owned(), group(instances - instances / 2)),
            ]);
            for group in groups.values_mut() {
                group.requires.affinity = affinity;
                group.resources.memory_bytes = 1 << 20;
            }
            (name, run(groups, 0, 1, 60_000), inventory.clone())
        })
        .collect()
}

/// A run of these groups.
pub(crate) fn run(groups: BTreeMap<String, GroupRun>, seed: u64, max_attempts: u32, timeout_ms: u64) -> Run {
    Run {
        plan: cid(b"plan"),
        case: "case".into(),
        groups,
        params: BTreeMap::new(),
        seed,
        engine: Engine::Live,
        network: Network::Clean,
        faults: Vec::new(),
        loss: LossPolicy { max_attempts, ..LossPolicy::default() },
        thresholds: Vec::new(),
        timeout_ms,
        placing: Placing::default(),
        captures: BTreeMap::new(),
    }
}

/// Draws what a run and its groups say of losses, failures, machines and the start.
pub(crate) fn policies(run: &mut Run, draws: &mut Draws) {
    for group in run.groups.values_mut() {
        let max_lost = match draws.between(0, 3) {
            0 => Some(MaxLost::Count(draws.between(0, 2) as u32)),
            1 => Some(MaxLost::Share(draws.between(0, 500_000) as u32)),
            _ => None,
        };
        let rerun = if draws.chance(500_000) { draws.between(1, 3) as u32 } else { 0 };
        group.loss = Some(GroupLoss { rerun, max_lost, fail_fast: draws.chance(250_000) });
    }
    run.placing.dedicated = draws.chance(200_000);
    run.placing.within_ms = draws.chance(200_000).then(|| draws.between(3_000, 60_000));
    run.loss.barriers = [BarrierLoss::Fail, BarrierLoss::Release, BarrierLoss::Wait][draws.between(0, 2) as usize];
}

/// Draws which of the submissions that wait goes first.
fn priority(schedule: &Schedule, number: u32) -> i32 {
    let mut draws = Draws::new(schedule.seed, 60_000 + u64::from(number));
    if schedule.profile.policies { draws.between(0, 4) as i32 - 2 } else { 0 }
}

impl World {
    /// Returns what is submitted as the n-th of the schedule.
    pub(super) fn submission(&self, n: u32) -> Submission {
        let number = self.schedule.submissions[n as usize].number;
        let profile = &self.schedule.profile;
        let mut draws = Draws::new(self.schedule.seed, 100 + u64::from(number));
        let mut groups = (0..draws.between(1, 3))
            .map(|g| (format!("g{g}"), group(draws.between(1, u64::from(profile.group_size)) as u32)))
            .collect::<BTreeMap<_, _>>();
        // Half of the runs have containers, alone or beside components.
        if draws.chance(500_000) {
            for group in groups.values_mut() {
                if draws.chance(500_000) {
                    group.kind = WorkloadKind::Docker;
                    group.count = group.count.div_ceil(2);
                }
            }
        }
        let timeout_ms = draws.between(5_000, 30_000);
        let mut run = run(groups, u64::from(number), profile.max_attempts, timeout_ms);
        if profile.policies {
            policies(&mut run, &mut Draws::new(self.schedule.seed, 50_000 + u64::from(number)));
        }
        let cid = codec::cid_of(&run);
        let execution = Execution { run: cid, orchestrator: self.orchestrator.peer.clone(), nonce: draws.bytes() };
        Submission { execution, run: KnownRun { cid, run } }
    }

    pub(super) fn submit(&mut self, n: u32) {
        if self.orchestrator.core.is_none() {
            // Whoever submits tries again.
            self.after(SECOND, Event::Submit(n));
            return;
        }
        let submission = self.submission(n);
        let id = submission.execution.id();
        if self.orchestrator.log.contains_key(&id) {
            return;
        }
        self.orchestrator.submissions.insert(id, submission.clone());
        if self.model.submitted(id, submission.run.run.clone())
            && let Some(after_ms) = self.schedule.submissions[n as usize].cancel_after_ms
        {
            self.after(after_ms * MILLI, Event::Cancel(id));
        }
        // A submission whose fact was lost in a crash never happened: the submitter finds out and tries again.
        self.after(3 * SECOND, Event::Submit(n));
        let Submission { execution, run } = submission;
        let priority = priority(&self.schedule, self.schedule.submissions[n as usize].number);
        self.tell_orchestrator(Input::Submit { execution, run, by: peer(250 + (n % 3) as u16), priority });
    }
}
