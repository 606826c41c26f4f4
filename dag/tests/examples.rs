//! One node of every kind, with every variant of every union and every optional field somewhere set and somewhere not.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::{
    AccessClass, Adopted, Affinity, Assignment, Attestation, BarrierLoss, BetweenRegions, CannotStart, Case,
    CellNetworkUse, Comparison, Container, Count, Counts, DependenceModel, Distortion, EgressUse, Engine, Epoch,
    Execution, ExecutionId, Exit, Fact, FactKind, Fault, FaultDone, FaultKind, FaultSchedule, FaultTarget,
    FormerResult, GatewayModel, GroupLoss, GroupNetwork, GroupOutcome, GroupRun, GroupSpec, Health, Image, InstanceId,
    InstanceOutcome, Intervention, IpModel, JitterModel, LabletRecord, Layer, LayerPage, LinkModel, LinkUse,
    LossOutcome, LossPolicy, MaxLost, Network, NetworkModel, NetworkUse, Node, Outcome, OutcomeShard, ParamKind,
    ParamSpec, Placement, Placing, Plan, PortsModel, Receipt, ReceiptShard, Recorded, Refusal, Requirements, Resources,
    ResultNode, ResultVerdict, Rolling, Run, ScheduledFault, Series, SeriesExecution, Signed, SiteShare, Statistic,
    Subject, Termination, Threshold, ThresholdOutcome, Usage, Value, Verdict, Way, Workload, WorkloadKind,
};
use iptl_dag::{Block, Cid, Codec, PeerId};

/// Returns every example under the name of its fixture.
pub(crate) fn nodes() -> Vec<(String, Node)> {
    let mut nodes: Vec<(String, Node)> = vec![
        ("plan".into(), plan().into()),
        ("plan-without-source".into(), Plan { source: None, cases: BTreeMap::new(), ..plan() }.into()),
        ("workload".into(), workload().into()),
        ("run".into(), run().into()),
        (
            "run-with-network".into(),
            Run { network: Network::Model(raw("network")), faults: vec![raw("fault")], ..run() }.into(),
        ),
        ("plan-of-containers".into(), contained_plan().into()),
        ("workload-image".into(), Workload { kind: WorkloadKind::Docker, ..workload() }.into()),
        ("run-of-containers".into(), contained_run().into()),
        ("receipts-of-containers".into(), contained_receipts().into()),
        ("run-with-egress".into(), reaching_run().into()),
        ("receipts-of-containers-with-egress".into(), reaching_receipts().into()),
        ("receipts-of-touched-containers".into(), touched_receipts().into()),
        ("execution".into(), execution().into()),
        ("placement".into(), placement(None).into()),
        ("placement-child".into(), placement(Some(cid(placement(None)))).into()),
        ("receipts".into(), receipts().into()),
        ("receipts-of-networked-containers".into(), networked_receipts().into()),
        ("receipts-of-adopted-containers".into(), adopted_receipts().into()),
        ("receipts-reported".into(), reported().into()),
        ("outcome".into(), outcome(Verdict::Pass).into()),
        ("outcome-failed".into(), outcome(Verdict::Fail).into()),
        ("outcome-shard".into(), outcome_shard().into()),
        ("attestation".into(), sign(attestation(Some(raw("fact")))).into()),
        ("attestation-without-log".into(), sign(attestation(None)).into()),
        ("image".into(), image().into()),
        ("layer".into(), layer().into()),
        ("layer-without-small-files".into(), Layer { small: None, ..layer() }.into()),
        ("layer-page".into(), layer_page().into()),
        ("network".into(), network().into()),
        ("faults".into(), faults().into()),
        ("faults-that-pause".into(), pauses().into()),
        ("faults-of-addresses-and-clocks".into(), moves().into()),
        ("faults-that-leave-nothing".into(), crashes().into()),
        ("network-of-both-families".into(), NetworkModel { ip: IpModel::Both, ..network() }.into()),
        ("network-of-ipv6".into(), NetworkModel { ip: IpModel::Ipv6, ..network() }.into()),
        ("plan-with-faults".into(), plan_with_faults().into()),
        ("receipts-of-networked-components".into(), networked_components().into()),
        ("receipts-of-shaped-components".into(), shaped_components().into()),
        ("network-of-homes".into(), network_of_homes().into()),
        ("run-of-homes".into(), run_of_homes().into()),
        ("receipts-of-components-in-regions".into(), components_in_regions().into()),
        ("plan-with-losses".into(), lossy_plan().into()),
        ("run-with-losses".into(), lossy_run(BarrierLoss::Release).into()),
        ("run-that-waits".into(), lossy_run(BarrierLoss::Wait).into()),
        ("plan-that-rolls".into(), rolling_plan().into()),
        ("run-that-rolls".into(), rolling_run().into()),
        ("outcome-with-losses".into(), lossy_outcome().into()),
        ("attestation-with-attempts".into(), sign(lossy_attestation()).into()),
        ("attestation-of-nothing-started".into(), sign(unstarted_attestation()).into()),
        ("attestation-in-a-term".into(), sign(Attestation { term: Some(term()), ..attestation(None) }).into()),
        ("series".into(), series().into()),
        ("run-that-bears-slow-ways".into(), bearing().into()),
        ("run-with-captures".into(), Run { captures: map([("spread", BTreeSet::from([0, 2]))]), ..run() }.into()),
    ];
    for (name, verdict) in [
        ("result", ResultVerdict::Pass),
        ("result-failed", ResultVerdict::Fail),
        ("result-inconclusive", ResultVerdict::Inconclusive),
    ] {
        nodes.push((name.into(), FormerResult(result(verdict)).into()));
        nodes.push((name.replacen("result", "result-2", 1), result(verdict).into()));
    }
    for (seq, (name, kind)) in fact_kinds().into_iter().enumerate() {
        let prev = (seq > 0).then(|| raw("fact before"));
        let fact =
            Fact { execution: execution_id(), seq: seq as u64, prev, epoch: epoch(), at_ms: 1_790_000_000_000, kind };
        nodes.push((format!("fact-{name}"), sign(fact).into()));
    }
    nodes
}

pub(crate) fn raw(text: &'static str) -> Cid {
    *Block::new(Codec::Raw, text).cid()
}

pub(crate) fn cid(node: impl Into<Node>) -> Cid {
    *node.into().to_block().cid()
}

fn peer(number: u8) -> PeerId {
    PeerId::from_ed25519(&[number; 32])
}

fn sign<T>(body: T) -> Signed<T> {
    Signed { body, signer: peer(1), signature: vec![0x5a; 64] }
}

fn map<T>(entries: impl IntoIterator<Item = (&'static str, T)>) -> BTreeMap<String, T> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn workload() -> Workload {
    Workload { name: "pinger".into(), kind: WorkloadKind::Wasm, content: raw("component"), size: 9 }
}

fn image() -> Image {
    Image {
        config: raw("config"),
        config_digest: [1; 32],
        architecture: "amd64".into(),
        os: "linux".into(),
        layers: vec![cid(layer()), cid(layer())],
        size: 20_480,
        entries: 6,
    }
}

fn layer() -> Layer {
    Layer {
        diff_id: [2; 32],
        size: 10_240,
        entries: 3,
        small: Some(raw("small files")),
        pages: vec![cid(layer_page())],
    }
}

fn layer_page() -> LayerPage {
    LayerPage { tar: vec![0, 1, 2, 3], files: vec![raw("a file")] }
}

fn container() -> Container {
    Container {
        entrypoint: vec!["/app/node".into()],
        workdir: Some("/data".into()),
        user: Some("1000:1000".into()),
        files: map([("/etc/node.toml", raw("settings"))]),
        tmpfs: map([("/tmp", 1 << 20)]),
        writable: true,
        cpu_milli: 500,
        stop_signal: Some("SIGINT".into()),
        health: Some(Health {
            command: vec!["/app/node".into(), "health".into()],
            interval_ms: 1000,
            timeout_ms: 500,
            start_ms: 2000,
            retries: 3,
        }),
        exec: true,
        ..Container::usual()
    }
}

fn plan() -> Plan {
    let groups = [("balanced", Affinity::Balance), ("spread", Affinity::Spread), ("packed", Affinity::Pack)];
    let group = |affinity| GroupSpec {
        workload: "pinger".into(),
        count: Count { default: 2, min: 1, max: 10_000 },
        args: vec!["--verbose".into()],
        env: map([("RUST_LOG", "info".to_owned())]),
        resources: Resources::default(),
        requires: Requirements {
            labels: map([("zone", "home".to_owned())]),
            affinity,
            max_per_lablet: 5,
            together: None,
        },
        container: None,
        loss: None,
        start: None,
    };
    let param = |kind, default| ParamSpec { kind, default, description: "what it does".into() };
    let params = [
        ("bool", param(ParamKind::Bool {}, Value::Bool(true))),
        ("int", param(ParamKind::Int { min: i64::MIN, max: i64::MAX }, Value::Int(-5))),
        ("float", param(ParamKind::Float { min: -1.5, max: 2.0 }, Value::Float(2.0))),
        ("text", param(ParamKind::Text { choices: vec!["tcp".into(), "udp".into()] }, Value::Text("tcp".into()))),
        ("duration", param(ParamKind::Duration { min_ms: 0, max_ms: 60_000 }, Value::Int(250))),
        ("size", param(ParamKind::Size { min_bytes: 1, max_bytes: 1 << 40 }, Value::Int(1 << 20))),
    ];
    let case = Case {
        description: "everyone reaches everyone".into(),
        groups: groups.into_iter().map(|(name, affinity)| (name.to_owned(), group(affinity))).collect(),
        params: map(params),
        thresholds: thresholds(),
        timeout_ms: 60_000,
        max_lost_ppm: 10_000,
        engine: Engine::Live,
        network: Network::Clean,
        faults: Vec::new(),
        max_lost: None,
        barriers: BarrierLoss::Fail,
        placing: Placing::default(),
    };
    Plan {
        name: "ping".into(),
        version: "1.0.0".into(),
        description: "measures round trips".into(),
        source: Some(raw("source")),
        workloads: map([("pinger", cid(workload()))]),
        cases: map([("all", case)]),
    }
}

fn thresholds() -> Vec<Threshold> {
    let metric = |statistic| Subject::Metric { name: "ping.rtt".into(), statistic };
    let rows = [
        (Subject::SuccessRate {}, Comparison::AtLeast),
        (metric(Statistic::Count), Comparison::More),
        (metric(Statistic::Sum), Comparison::Less),
        (metric(Statistic::Mean), Comparison::AtMost),
        (metric(Statistic::Min), Comparison::Equal),
        (metric(Statistic::Max), Comparison::AtMost),
        (metric(Statistic::P50), Comparison::AtMost),
        (metric(Statistic::P90), Comparison::AtMost),
        (metric(Statistic::P95), Comparison::AtMost),
        (metric(Statistic::P99), Comparison::AtMost),
    ];
    let threshold = |(i, (subject, comparison))| Threshold {
        subject,
        group: (i % 2 == 0).then(|| "spread".to_owned()),
        comparison,
        value: 0.5 * i as f64,
        unit: "ms".into(),
    };
    rows.into_iter().enumerate().map(threshold).collect()
}

fn run() -> Run {
    let group = GroupRun {
        workload: cid(workload()),
        kind: WorkloadKind::Wasm,
        count: 30,
        args: Vec::new(),
        env: BTreeMap::new(),
        resources: Resources::default(),
        requires: Requirements::default(),
        container: None,
        loss: None,
        start: None,
    };
    Run {
        plan: cid(plan()),
        case: "all".into(),
        groups: map([("spread", group)]),
        params: map([
            ("bool", Value::Bool(false)),
            ("int", Value::Int(i64::MIN)),
            ("float", Value::Float(2.0)),
            ("text", Value::Text(String::new())),
        ]),
        seed: u64::MAX,
        engine: Engine::Live,
        network: Network::Clean,
        faults: Vec::new(),
        loss: LossPolicy::default(),
        thresholds: thresholds(),
        timeout_ms: 60_000,
        placing: Placing::default(),
        captures: BTreeMap::new(),
    }
}

fn bearing() -> Run {
    let mut run = run();
    run.placing.slow_ways = true;
    run
}

fn policies() -> [GroupLoss; 2] {
    [
        GroupLoss { rerun: 2, max_lost: Some(MaxLost::Count(1)), fail_fast: true },
        GroupLoss { rerun: 0, max_lost: Some(MaxLost::Share(50_000)), fail_fast: false },
    ]
}

/// A plan that says what is to happen to what is lost.
fn lossy_plan() -> Plan {
    let mut plan = plan();
    for case in plan.cases.values_mut() {
        case.max_lost = Some(3);
        case.barriers = BarrierLoss::Release;
        case.placing = Placing { dedicated: true, within_ms: Some(60_000), ..Placing::default() };
        for (group, loss) in case.groups.values_mut().zip(policies()) {
            group.loss = Some(loss);
        }
    }
    plan
}

fn lossy_run(barriers: BarrierLoss) -> Run {
    let mut run = run();
    run.loss = LossPolicy { max_lost: Some(3), barriers, ..LossPolicy::default() };
    run.placing.dedicated = barriers == BarrierLoss::Wait;
    run.placing.within_ms = (barriers == BarrierLoss::Release).then_some(60_000);
    for group in run.groups.values_mut() {
        group.loss = Some(GroupLoss::default());
    }
    run
}

/// A plan whose groups do not start together.
fn rolling_plan() -> Plan {
    let mut plan = plan();
    for group in plan.cases.values_mut().flat_map(|case| case.groups.values_mut()) {
        group.start = Some(Rolling { count: 10, every_ms: 1_000 });
    }
    plan
}

fn rolling_run() -> Run {
    let mut run = run();
    for group in run.groups.values_mut() {
        group.start = Some(Rolling { count: 1, every_ms: 250 });
    }
    run
}

fn lossy_outcome() -> Outcome {
    let loss = LossOutcome { lost: 1, max_lost: MaxLost::Count(1), accepted: true };
    let too_much = LossOutcome { lost: 2, max_lost: MaxLost::Share(50_000), accepted: false };
    let losses = map([("spread", loss), ("packed", too_much)]);
    Outcome { losses, fail_fast: Some("spread".into()), ..outcome(Verdict::Fail) }
}

fn cannot_start() -> CannotStart {
    CannotStart {
        code: "lab.no-capacity".into(),
        reason: "no lablets to run this".into(),
        help: "let another machine join".into(),
    }
}

fn unstarted_attestation() -> Attestation {
    Attestation { started_ms: 0, cannot_start: Some(Box::new(cannot_start())), ..attestation(None) }
}

fn lossy_attestation() -> Attestation {
    Attestation {
        attempts: map([("spread/3-4", 2)]),
        ended_early: Some("spread/7 failed: exit 1".into()),
        ..attestation(None)
    }
}

fn series() -> Series {
    let execution = |repetition, result: Option<ResultVerdict>| SeriesExecution {
        execution: execution_id().0,
        run: cid(run()),
        choices: map([("rounds", "5".to_owned())]),
        repetition,
        result: result.map(|verdict| cid(FormerResult(self::result(verdict)))),
        verdict: result,
        failure: result.is_none().then(|| "no lablets to run this".to_owned()),
    };
    Series { executions: vec![execution(1, Some(ResultVerdict::Pass)), execution(2, None)] }
}

fn execution() -> Execution {
    Execution { run: cid(run()), orchestrator: peer(1), nonce: *b"sixteen bytes ok" }
}

fn execution_id() -> ExecutionId {
    execution().id()
}

fn epoch() -> Epoch {
    Epoch { counter: 1, peer: peer(1) }
}

fn term() -> Epoch {
    Epoch { counter: 2, peer: peer(1) }
}

fn instance(index: u32) -> InstanceId {
    InstanceId { group: "spread".into(), index }
}

fn assignments() -> Vec<Assignment> {
    vec![Assignment { group: "spread".into(), start: 0, count: 30, lablet: peer(2) }]
}

fn placement(parent: Option<Cid>) -> Placement {
    let refused = vec![Refusal { lablet: peer(3), reason: "no room".into() }];
    Placement { execution: execution_id(), parent, assignments: assignments(), refused }
}

fn fact_kinds() -> Vec<(&'static str, FactKind)> {
    let lablet = peer(2);
    let reason = || "why".to_owned();
    vec![
        (
            "submitted",
            FactKind::Submitted { execution: execution_id().0, run: cid(run()), by: peer(4), priority: 0, order: 0 },
        ),
        ("placed", FactKind::Placed { placement: cid(placement(None)) }),
        ("granted", FactKind::Granted { lablet: lablet.clone(), assignments: assignments(), attempt: 1 }),
        ("accepted", FactKind::Accepted { lablet: lablet.clone() }),
        ("refused", FactKind::Refused { lablet: lablet.clone(), reason: reason() }),
        ("started", FactKind::Started {}),
        ("received", FactKind::Received { lablet: lablet.clone(), shard: cid(receipts()), count: 10 }),
        ("lost", FactKind::Lost { lablet: Some(lablet), instances: vec![instance(4)], reason: reason() }),
        ("lost-by-nobody", FactKind::Lost { lablet: None, instances: vec![instance(5)], reason: reason() }),
        ("cancelled", FactKind::Cancelled { by: peer(4) }),
        ("timed-out", FactKind::TimedOut {}),
        ("sealed", FactKind::Sealed { result: cid(FormerResult(result(ResultVerdict::Pass))), term: None }),
        ("failed", FactKind::Failed { reason: reason(), term: None }),
        ("taken-over", FactKind::TakenOver { from: epoch() }),
        (
            "recovered",
            FactKind::Recovered { lablet: peer(2), granted: epoch(), assignments: assignments(), attempt: 2 },
        ),
        (
            "snapshot",
            FactKind::Snapshot {
                part: 1,
                last: true,
                facts: vec![Recorded { epoch: epoch(), at_ms: 1, kind: FactKind::Started {} }],
            },
        ),
        (
            "submitted-before-others",
            FactKind::Submitted { execution: execution_id().0, run: cid(run()), by: peer(4), priority: -3, order: 0 },
        ),
        ("ended-early", FactKind::EndedEarly { reason: reason() }),
        ("measured", FactKind::Measured { lablet: peer(2), ways: ways() }),
        ("faulted", FactKind::Faulted { lablet: peer(2), faults: faults_done() }),
        (
            "faulted-by-moves",
            FactKind::Faulted { lablet: peer(2), faults: done_of(&[FaultKind::Address, FaultKind::Clock]) },
        ),
        ("sealed-in-a-term", FactKind::Sealed { result: cid(result(ResultVerdict::Pass)), term: Some(term()) }),
        ("failed-in-a-term", FactKind::Failed { reason: reason(), term: Some(term()) }),
        (
            "submitted-behind-others",
            FactKind::Submitted { execution: execution_id().0, run: cid(run()), by: peer(4), priority: 0, order: 7 },
        ),
        ("cannot-start", FactKind::CannotStart(cannot_start())),
    ]
}

fn ways() -> Vec<Way> {
    let way = |n, measured_us, relayed| Way {
        to: peer(n),
        from_region: "east".into(),
        to_region: "west".into(),
        asked_us: 50_000,
        measured_us,
        relayed,
    };
    vec![way(3, Some(230), false), way(4, None, true)]
}

fn faults_done() -> Vec<FaultDone> {
    use FaultKind::{Crash, Delay, Heal, Link, Partition, Pause, Rebind, Restart, Resume};
    done_of(&[Partition, Heal, Link, Delay, Rebind, Crash, Restart, Pause, Resume])
}

fn done_of(kinds: &[FaultKind]) -> Vec<FaultDone> {
    let done = |(n, kind): (u64, &FaultKind)| FaultDone {
        due_us: n * 1_000_000,
        kind: *kind,
        done_us: n * 1_000_000 + 30,
        instances: 2,
    };
    (0..).zip(kinds).map(done).collect()
}

fn receipts() -> ReceiptShard {
    let reason = || "signal 9".to_owned();
    receipts_of(vec![
        Exit::Exited { code: 0 },
        Exit::Exited { code: -1 },
        Exit::Trapped { trap: "unreachable".into() },
        Exit::StackOverflow {},
        Exit::OutOfMemory {},
        Exit::OutOfCpu {},
        Exit::OutOfTime {},
        Exit::TooMuchOutput { what: "output".into() },
        Exit::Stopped { reason: reason() },
        Exit::WorkerDied { reason: reason() },
        Exit::NotStarted { reason: reason() },
    ])
}

fn reported() -> ReceiptShard {
    let failure = || Some("no peers".to_owned());
    receipts_of(vec![Exit::Reported { code: 2, failure: None }, Exit::Reported { code: 0, failure: failure() }])
}

fn receipts_of(exits: Vec<Exit>) -> ReceiptShard {
    let receipt = |(index, exit)| {
        let file = |text| (index == 0).then(|| raw(text));
        sign(Receipt {
            execution: execution_id(),
            instance: instance(index),
            attempt: 1,
            epoch: epoch(),
            workload: cid(workload()),
            lablet: peer(2),
            runner: "wasm wasmtime-48.0.8".into(),
            started_ms: 1_790_000_000_000,
            ended_ms: 1_790_000_001_000,
            exit,
            usage: Usage {
                cpu_us: 1000,
                memory_bytes: 1 << 20,
                sent_bytes: 64,
                received_bytes: 65,
                read_bytes: 0,
                written_bytes: 0,
            },
            logs: file("logs"),
            events: file("events"),
            metrics: file("metrics"),
            artifacts: file("artifacts"),
            samples: None,
            limits_met: Vec::new(),
            interventions: Vec::new(),
            network: None,
            adopted: None,
        })
    };
    ReceiptShard { receipts: (0..).zip(exits).map(receipt).collect() }
}

fn contained_plan() -> Plan {
    let mut plan = plan();
    let groups = plan.cases.values_mut().flat_map(|case| case.groups.values_mut());
    for (group, settings) in groups.zip([container(), Container::usual()]) {
        group.container = Some(settings);
    }
    plan
}

fn contained_run() -> Run {
    let mut run = run();
    for group in run.groups.values_mut() {
        group.kind = WorkloadKind::Docker;
        group.container = Some(container());
    }
    run
}

/// Containers that are to reach places outside of the lab.
fn reaching_run() -> Run {
    let mut run = contained_run();
    let places = ["bootstrap.example:4001/udp", "192.0.2.7:443/tcp", "[2001:db8::7]:443/tcp"];
    for container in run.groups.values_mut().filter_map(|group| group.container.as_mut()) {
        container.egress = places.into_iter().map(|place| place.parse().expect("it is a destination")).collect();
    }
    run
}

/// Containers that did so.
fn reaching_receipts() -> ReceiptShard {
    let mut shard = networked_receipts();
    let used = EgressUse { connections: 3, failed: 1, sent_bytes: 700, received_bytes: 90_000 };
    for network in shard.receipts.iter_mut().filter_map(|signed| signed.body.network.as_mut()) {
        network.egress = [("192.0.2.7:443/tcp".parse().expect("it is a destination"), used)].into();
    }
    shard
}

fn contained_receipts() -> ReceiptShard {
    let ends = [Exit::Signalled { signal: "SIGSEGV".into() }, Exit::Unwell { reason: "exit 1".into() }];
    let receipts = receipts().receipts.into_iter().zip(ends).map(|(mut signed, exit)| {
        signed.body.exit = exit;
        signed.body.usage.read_bytes = 66;
        signed.body.usage.written_bytes = 67;
        signed.body.samples = Some(raw("samples"));
        signed.body.limits_met = vec!["processes".into()];
        signed.body.interventions =
            vec![Intervention { by: peer(3), at_ms: 1_790_000_000_500, command: vec!["sh".into()], exit: None }];
        signed
    });
    ReceiptShard { receipts: receipts.collect() }
}

/// Commands in instances whose end is known.
fn touched_receipts() -> ReceiptShard {
    let mut shard = contained_receipts();
    for intervention in shard.receipts.iter_mut().flat_map(|signed| &mut signed.body.interventions) {
        intervention.exit = Some(137);
    }
    shard
}

/// Containers whose lablet was started again while they ran.
fn adopted_receipts() -> ReceiptShard {
    let mut shard = contained_receipts();
    for (signed, sync_lost) in shard.receipts.iter_mut().zip([false, true]) {
        signed.body.adopted = Some(Adopted { at_ms: vec![1_790_000_000_600, 1_790_000_000_900], sync_lost });
    }
    shard
}

/// Containers with what the lab network did to their packets.
fn networked_receipts() -> ReceiptShard {
    let mut shard = contained_receipts();
    let link = |offered| LinkUse {
        offered,
        offered_bytes: offered * 1000,
        delivered: offered - 2,
        delivered_bytes: (offered - 2) * 1000,
        lost: 3,
        overflowed: 0,
        duplicated: 1,
        corrupted: 1,
        asked_ns: offered * 50_000_000,
        measured_ns: offered * 50_020_000,
    };
    for signed in &mut shard.receipts {
        signed.body.network = Some(NetworkUse {
            up: vec![link(100), link(98)],
            down: vec![link(80)],
            own: None,
            spoofed: 4,
            lost_by_lab: 5,
            crashes: 0,
            egress: BTreeMap::new(),
            cell: CellNetworkUse {
                lateness: vec![0, 0, 7, 300, 20],
                max_late_ns: 15,
                relayed: 6,
                overdue: 2,
                max_overdue_ns: 1_000_000,
                cpu_us: Some(30_000),
                wall_us: 1_000_000,
                realtime: true,
                ..CellNetworkUse::default()
            },
        });
    }
    shard
}

/// Components that have had their network shaped.
fn shaped_components() -> ReceiptShard {
    let mut shard = networked_components();
    for signed in &mut shard.receipts {
        if let Some(network) = &mut signed.body.network {
            network.own = Some(LinkUse { lost: 7, ..network.up[0] });
        }
    }
    shard
}

/// Components with what the lab network did to their packets, and what was done to them on purpose.
fn networked_components() -> ReceiptShard {
    let mut shard = receipts_of(vec![Exit::Exited { code: 0 }]);
    let up = LinkUse {
        offered: 100,
        offered_bytes: 6_000,
        delivered: 97,
        delivered_bytes: 5_820,
        lost: 2,
        overflowed: 1,
        asked_ns: 97_000_000,
        measured_ns: 97_310_000,
        ..LinkUse::default()
    };
    for signed in &mut shard.receipts {
        signed.body.network = Some(NetworkUse {
            up: vec![up],
            down: vec![LinkUse::default()],
            crashes: 2,
            cell: CellNetworkUse {
                lateness: vec![0, 0, 3, 94],
                max_late_ns: 7,
                lost_by_lab: 1,
                across: up,
                cpu_us: None,
                wall_us: 1_000_000,
                ..CellNetworkUse::default()
            },
            ..NetworkUse::default()
        });
    }
    shard
}

/// Components of a network with several regions: what each link between two of them did.
fn components_in_regions() -> ReceiptShard {
    let mut shard = networked_components();
    for network in shard.receipts.iter_mut().filter_map(|signed| signed.body.network.as_mut()) {
        let did = LinkUse { lost: 0, overflowed: 0, ..network.cell.across };
        network.cell.between = vec![
            BetweenRegions { from: 0, to: 2, did, lost_by_lab: 0 },
            BetweenRegions { from: 2, to: 2, did, lost_by_lab: 1 },
        ];
    }
    shard
}

/// A network in which three of a group are in each place.
fn network_of_homes() -> NetworkModel {
    let mut network = network();
    network.groups.values_mut().for_each(|group| group.per = 3);
    network
}

/// A run of it.
fn run_of_homes() -> Run {
    let mut run = Run { network: Network::Model(cid(network_of_homes())), ..run() };
    run.groups.values_mut().for_each(|group| group.requires.together = Some(3));
    run
}

fn outcome(verdict: Verdict) -> Outcome {
    let group = GroupOutcome {
        counts: Counts { ok: 1, failed: 2, lost: 3 },
        instances: vec![cid(outcome_shard())],
        histograms: map([("ping.rtt", raw("histogram"))]),
    };
    let thresholds = thresholds()
        .into_iter()
        .enumerate()
        .map(|(i, threshold)| ThresholdOutcome { threshold, measured: (i > 0).then_some(1.25), holds: i > 0 })
        .collect();
    Outcome {
        run: cid(run()),
        groups: map([("spread", group)]),
        thresholds,
        verdict,
        losses: BTreeMap::new(),
        fail_fast: None,
    }
}

fn outcome_shard() -> OutcomeShard {
    let instance = |(index, termination): (u32, Termination)| InstanceOutcome {
        index,
        events: (index == 0).then(|| raw("events")),
        metrics: (index == 0).then(|| raw("metrics")),
        termination,
    };
    let terminations = [Termination::Ok {}, Termination::Failed { cause: "exit 3".into() }, Termination::Lost {}];
    OutcomeShard { instances: (0..).zip(terminations).map(instance).collect() }
}

fn attestation(log: Option<Cid>) -> Attestation {
    Attestation {
        execution: execution_id(),
        lab: peer(5),
        outcome: cid(outcome(Verdict::Pass)),
        files: raw("files"),
        receipts: vec![cid(receipts())],
        placements: vec![cid(placement(None))],
        log,
        lablets: vec![LabletRecord {
            peer: peer(2),
            name: "attic".into(),
            version: "0.1.0".into(),
            cpus: 2,
            memory_bytes: 1 << 33,
            clock_offset_us: -1500,
            clock_error_us: 200,
        }],
        submitted_ms: 1_790_000_000_000,
        started_ms: 1_790_000_000_100,
        ended_ms: 1_790_000_002_000,
        missing: map([("spread/20-29", "lablet lost".to_owned())]),
        distortions: vec![Distortion { place: "attic".into(), what: "overloaded for 2 s".into() }],
        inconclusive: vec!["the run was cancelled".into()],
        attempts: BTreeMap::new(),
        ended_early: None,
        cannot_start: None,
        term: None,
    }
}

fn result(verdict: ResultVerdict) -> ResultNode {
    ResultNode {
        run: cid(run()),
        execution: execution_id(),
        outcome: cid(outcome(Verdict::Pass)),
        attestation: cid(sign(attestation(None))),
        files: raw("files"),
        verdict,
        counts: Counts { ok: 1, failed: 2, lost: 3 },
    }
}

fn plan_with_faults() -> Plan {
    let mut plan = plan();
    for case in plan.cases.values_mut() {
        case.network = Network::Model(raw("network"));
        case.faults = vec![raw("fault")];
    }
    plan
}

fn faults() -> FaultSchedule {
    let target = |group: Option<&str>, region: Option<&str>, share_ppm| FaultTarget {
        group: group.map(str::to_owned),
        region: region.map(str::to_owned),
        share_ppm,
    };
    let east = || target(None, Some("east"), 1_000_000);
    let link = LinkModel { loss_ppm: 50_000, ..LinkModel::default() };
    let fault = |at_ms, every_ms, fault| ScheduledFault { at_ms, every_ms, fault };
    let sides = vec![vec![east()], vec![target(Some("peers"), Some("west"), 500_000)]];
    FaultSchedule {
        faults: vec![
            fault(10_000, 0, Fault::Partition { sides }),
            fault(20_000, 0, Fault::Heal {}),
            fault(5_000, 60_000, Fault::Link { access: "dsl".into(), up: link, down: LinkModel::default() }),
            fault(6_000, 0, Fault::Delay { from: "east".into(), to: "west".into(), delay_us: 90_000 }),
            fault(7_000, 0, Fault::Rebind { who: east() }),
            fault(30_000, 30_000, crash(target(Some("peers"), None, 100_000), false)),
        ],
    }
}

fn crash(who: FaultTarget, anew: bool) -> Fault {
    Fault::Crash { who, restart_ms: 1_000, files_lost: anew, new_address: anew }
}

fn crashes() -> FaultSchedule {
    let who = || FaultTarget { group: Some("peers".into()), region: None, share_ppm: 100_000 };
    let fault = |at_ms, fault| ScheduledFault { at_ms, every_ms: 30_000, fault };
    FaultSchedule { faults: vec![fault(1_000, crash(who(), true)), fault(2_000, crash(who(), false))] }
}

fn moves() -> FaultSchedule {
    let who = || FaultTarget { group: Some("peers".into()), region: None, share_ppm: 200_000 };
    let fault = |at_ms, fault| ScheduledFault { at_ms, every_ms: 0, fault };
    FaultSchedule {
        faults: vec![
            fault(1_000, Fault::Address { who: who() }),
            fault(2_000, Fault::Clock { who: who(), by_ms: 3_600_000 }),
            fault(3_000, Fault::Clock { who: who(), by_ms: -1_500 }),
        ],
    }
}

fn pauses() -> FaultSchedule {
    let who = FaultTarget { group: Some("peers".into()), region: None, share_ppm: 500_000 };
    FaultSchedule {
        faults: vec![ScheduledFault { at_ms: 4_000, every_ms: 8_000, fault: Fault::Pause { who, for_ms: 2_500 } }],
    }
}

fn network() -> NetworkModel {
    let link = |jitter, rate_bps| LinkModel {
        delay_us: 4_000,
        jitter_us: 1_500,
        jitter,
        rate_bps,
        queue_bytes: 64_000,
        loss_ppm: 500,
        duplicate_ppm: 10,
        reorder_ppm: 20,
        corrupt_ppm: 1,
    };
    let class = |up, down| AccessClass { up, down, mtu: 1492 };
    let cone = GatewayModel { inbound_refresh: true, udp_timeout_ms: 120_000, ..GatewayModel::default() };
    let restricted = GatewayModel { filtering: DependenceModel::Address, ports: PortsModel::Sequential, ..cone };
    let symmetric = GatewayModel { mapping: DependenceModel::AddressPort, ports: PortsModel::Random, ..cone };
    let firewall = GatewayModel { translates: false, hairpin: false, ..cone };
    let site = |weight, gateways| SiteShare { weight, gateways };
    let group = GroupNetwork {
        regions: map([("east", 1), ("west", 2)]),
        access: map([("dsl", 3), ("mobile", 1)]),
        sites: vec![
            site(60, vec![cone]),
            site(15, vec![restricted]),
            site(10, vec![symmetric, cone]),
            site(5, vec![firewall]),
            site(10, vec![]),
        ],
        per: 1,
    };
    NetworkModel {
        ip: IpModel::default(),
        regions: vec!["east".into(), "west".into()],
        delays_us: vec![vec![1_000, 35_000], vec![36_000, 1_000]],
        access: map([
            ("dsl", class(link(JitterModel::Uniform, 10_000_000), link(JitterModel::Normal, 50_000_000))),
            ("mobile", class(link(JitterModel::Exponential, 20_000_000), LinkModel::default())),
        ]),
        groups: map([("peers", group)]),
    }
}
