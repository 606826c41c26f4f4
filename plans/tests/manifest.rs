//! What a manifest without mistakes means.

use std::collections::BTreeMap;

use iptl_dag::model::{
    Affinity, BarrierLoss, Comparison, Container, Count, GroupLoss, Health, MaxLost, ParamKind, Placing, Resources,
    Rolling, Statistic, Subject, Value,
};
use iptl_dag::{Block, Codec};
use iptl_plans::{ImageSource, ToPlanError, WorkloadSource, parse};

const FULL: &str = r#"
[plan]
name = "example"
version = "1.2.0-rc1"
description = "Everything that may stand in a manifest."

[workloads.node]
runner = "wasm"
path = "target/wasm32-wasip2/release/node.wasm"
build = ["cargo", "build", "--release", "--target", "wasm32-wasip2"]

[workloads.old]
runner = "wasm"
cid = "bafyr4ifkgnumvzf6goyb2uxa2ge2sq4z6vsa2cpgc5dcq6y4erhs3n44pq"

[cases.mesh]
description = "All with all."
timeout = "60s"
max_lost = "2.5%"
engine = "live"

[cases.mesh.groups.node]
workload = "node"
count = { default = 30, min = 2, max = 1000 }
args = ["--loud", ""]
env = { LEVEL = "3" }
labels = { nat = "none" }
affinity = "spread"
max_per_lablet = 50
resources = { memory = "32MiB", cpu = "10s", wall = "2m", output = "1KiB", records = "2KiB", artifacts = "3KiB", sockets = 9 }

[cases.mesh.groups.peer]
workload = "old"
count = 5
rerun = 2
max_lost = 1
fail_fast = true

[cases.careful]
timeout = "10s"
max_lost = 3
barriers = "release"
dedicated = true
start_within = "90s"
slow_ways = true

[cases.careful.groups.node]
workload = "node"
count = 9
max_lost = "10%"
start = { rolling = 2, every = "500ms" }

[cases.mesh.params.pause]
type = "duration"
default = "5s"
min = "1s"
description = "Between rounds."

[[cases.mesh.thresholds]]
metric = "ping.rtt"
stat = "p95"
below = "50ms"
group = "node"

[[cases.mesh.thresholds]]
success_rate = { at_least = "99.5%" }
"#;

#[test]
fn every_key_ends_up_in_the_plan() {
    let manifest = parse(FULL, "plan.toml").expect("it has no mistakes");
    assert_eq!(manifest.workloads["node"].build.len(), 5);
    let WorkloadSource::Published(old) = manifest.workloads["old"].source else { panic!("it has a CID") };
    let plan = manifest
        .to_plan(&BTreeMap::from([("node".to_owned(), old)]), &BTreeMap::new(), Some(old))
        .expect("CIDs for all");
    assert_eq!(plan.workloads.len(), 2);

    let case = &plan.cases["mesh"];
    assert_eq!((case.timeout_ms, case.max_lost_ppm), (60_000, 25_000));
    let node = &case.groups["node"];
    assert_eq!(node.count, Count { default: 30, min: 2, max: 1000 });
    assert_eq!(node.args, ["--loud", ""]);
    assert_eq!(node.env["LEVEL"], "3");
    assert_eq!(node.requires.labels["nat"], "none");
    assert_eq!((node.requires.affinity, node.requires.max_per_lablet), (Affinity::Spread, 50));
    assert_eq!(
        node.resources,
        Resources {
            memory_bytes: 32 << 20,
            cpu_ms: 10_000,
            wall_ms: 120_000,
            output_bytes: 1 << 10,
            record_bytes: 2 << 10,
            artifact_bytes: 3 << 10,
            sockets: 9
        }
    );
    assert_eq!(case.groups["peer"].count, Count { default: 5, min: 5, max: 5 });
    assert_eq!(case.groups["peer"].resources, Resources::default());
    assert!(matches!(case.params["pause"].kind, ParamKind::Duration { min_ms: 1000, .. }));
    assert_eq!(case.params["pause"].default, Value::Int(5000));

    let [rtt, rate] = case.thresholds.as_slice() else { panic!("two thresholds") };
    assert_eq!(rtt.subject, Subject::Metric { name: "ping.rtt".to_owned(), statistic: Statistic::P95 });
    assert_eq!((rtt.comparison, rtt.value, rtt.unit.as_str()), (Comparison::Less, 50.0, "ms"));
    assert_eq!(rtt.group.as_deref(), Some("node"));
    assert_eq!((rate.comparison, rate.value, rate.group.as_deref()), (Comparison::AtLeast, 0.995, None));
}

#[test]
fn what_is_said_of_losses_and_machines_ends_up_in_the_plan() {
    let manifest = parse(FULL, "plan.toml").expect("it has no mistakes");
    let cid = "bafyr4ifkgnumvzf6goyb2uxa2ge2sq4z6vsa2cpgc5dcq6y4erhs3n44pq".parse().expect("a CID");
    let plan =
        manifest.to_plan(&BTreeMap::from([("node".to_owned(), cid)]), &BTreeMap::new(), None).expect("CIDs for all");
    let (mesh, careful) = (&plan.cases["mesh"], &plan.cases["careful"]);
    assert_eq!(mesh.groups["node"].loss, None);
    assert_eq!((mesh.max_lost, mesh.barriers, mesh.placing), (None, BarrierLoss::Fail, Placing::default()));
    let loss = GroupLoss { rerun: 2, max_lost: Some(MaxLost::Count(1)), fail_fast: true };
    assert_eq!(mesh.groups["peer"].loss, Some(loss));
    assert_eq!((careful.max_lost, careful.max_lost_ppm), (Some(3), 0));
    assert_eq!(careful.barriers, BarrierLoss::Release);
    assert_eq!(careful.placing, Placing { dedicated: true, within_ms: Some(90_000), slow_ways: true });
    let loss = GroupLoss { max_lost: Some(MaxLost::Share(100_000)), ..GroupLoss::default() };
    assert_eq!(careful.groups["node"].loss, Some(loss));
}

#[test]
fn a_rolling_start_ends_up_in_the_plan_and_its_mistakes_are_named_where_they_stand() {
    let start = |text: &str| {
        let manifest = parse(text, "plan.toml").expect("it has no mistakes");
        let cid = "bafyr4ifkgnumvzf6goyb2uxa2ge2sq4z6vsa2cpgc5dcq6y4erhs3n44pq".parse().expect("a CID");
        let plan = manifest.to_plan(&BTreeMap::from([("node".to_owned(), cid)]), &BTreeMap::new(), None);
        plan.expect("CIDs for all").cases["careful"].groups["node"].start
    };
    let rolling = Rolling { count: 2, every_ms: 500 };
    assert_eq!(start(FULL), Some(rolling));
    assert_eq!([0, 1, 2, 8].map(|index| rolling.delay_ms(index)), [0, 0, 500, 2_000]);
    assert_eq!(start(&FULL.replace(", every = \"500ms\"", "")), Some(Rolling { count: 2, every_ms: 1_000 }));
    assert_eq!(start(&FULL.replace("start = { rolling = 2, every = \"500ms\" }\n", "")), None);

    let at = "`cases.careful.groups.node.start";
    let rows = [
        ("rolling = 2", "rolling = 0", "E0207", format!("{at}.rolling` is out of range")),
        ("rolling = 2, ", "", "E0202", format!("{at}` lacks `rolling`")),
        ("rolling = 2", "roling = 2", "E0201", format!("{at}` has no key `roling`")),
        ("\"500ms\"", "500", "E0203", format!("{at}.every` must be a duration in a string")),
        ("{ rolling = 2, every = \"500ms\" }", "2", "E0203", format!("{at}` must be a table")),
        (
            "{ rolling = 2, every = \"500ms\" }",
            "{ rolling = 2, every = \"3s\" }",
            "E0207",
            format!("{at}` is out of range"),
        ),
    ];
    for (right, wrong, code, message) in rows {
        let found = parse(&FULL.replacen(right, wrong, 1), "plan.toml").expect_err(wrong);
        let found: Vec<_> = found.iter().map(|mistake| (mistake.code, mistake.message.clone())).collect();
        assert!(found.contains(&(code, message.clone())), "{wrong}: {found:?}");
    }
}

#[test]
fn mistakes_in_what_is_said_of_losses_are_named_where_they_stand() {
    let rows = [
        ("fail_fast = true", "fail_fast = 1", "E0203", "`cases.mesh.groups.peer.fail_fast` must be true or false"),
        ("rerun = 2", "rerun = 21", "E0207", "`cases.mesh.groups.peer.rerun` is out of range"),
        ("rerun = 2", "rerun = -1", "E0207", "`cases.mesh.groups.peer.rerun` is out of range"),
        ("max_lost = 1", "max_lost = -1", "E0207", "`cases.mesh.groups.peer.max_lost` is out of range"),
        ("max_lost = 1", "max_lost = 1.5", "E0203", "`cases.mesh.groups.peer.max_lost` must be a number or a share"),
        ("max_lost = 1", "max_lost = \"101%\"", "E0206", "`cases.mesh.groups.peer.max_lost` is not a share"),
        ("\"release\"", "\"releases\"", "E0205", "`cases.careful.barriers` cannot be `releases`"),
        ("dedicated = true", "dedicated = \"yes\"", "E0203", "`cases.careful.dedicated` must be true or false"),
        ("\"90s\"", "90", "E0203", "`cases.careful.start_within` must be a duration in a string"),
        ("\"90s\"", "\"8d\"", "E0207", "`cases.careful.start_within` is out of range"),
        ("dedicated = true", "dedicate = true", "E0201", "`cases.careful` has no key `dedicate`"),
    ];
    for (right, wrong, code, message) in rows {
        let text = FULL.replacen(right, wrong, 1);
        let found = parse(&text, "plan.toml").expect_err(wrong);
        assert_eq!((found.len(), found[0].code, found[0].message.as_str()), (1, code, message), "{wrong}");
        assert!(wrong.contains(&text[found[0].span.clone()]), "{wrong}: {:?}", &text[found[0].span.clone()]);
    }
}

#[test]
fn a_workload_without_a_cid_is_no_plan() {
    let manifest = parse(FULL, "plan.toml").expect("it has no mistakes");
    let error = manifest.to_plan(&BTreeMap::new(), &BTreeMap::new(), None).expect_err("`node` has no CID");
    assert_eq!(error, ToPlanError::MissingWorkload { name: "node".to_owned() });
    assert_eq!(error.to_string(), "workload `node` has no CID yet");
}

/// A cheap fuzzer: every manifest with some bytes cut out, doubled or replaced parses or has mistakes, but never panics.
#[test]
fn damaged_manifests_do_not_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound.max(1) as u64) as usize
    };
    let pieces =
        ["[", "]]", "\"", "=", "\n", "a.b", "{", "}", "\u{0}", "é", "1e999", "[[cases]]\n", "cases=1\n", "'''"];
    for _ in 0..3_000 {
        let mut text: String = FULL.to_owned();
        for _ in 0..=next(3) {
            let start = next(text.len());
            let end = (start + next(40)).min(text.len());
            let (Some(head), Some(tail)) = (text.get(..start), text.get(end..)) else { continue };
            text = format!("{head}{}{tail}", pieces[next(pieces.len())]);
        }
        if let Err(mistakes) = parse(&text, "plan.toml") {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                let _ = mistake.render("plan.toml", &text);
            }
        }
    }
}

/// A plan of containers with every key that such a plan may have.
const CONTAINERS: &str = r#"
[plan]
name = "contained"
version = "0.1.0"

[workloads.program]
runner = "docker"
binary = "target/release/node"
with_libs = true
build = ["cargo", "build", "--release"]

[workloads.tree]
runner = "docker"
rootfs = "rootfs"

[workloads.layout]
runner = "docker"
oci = "image.tar"

[workloads.local]
runner = "docker"
image = "example/node:1.2"

[workloads.made]
runner = "docker"
dockerfile = "docker"

[cases.all.groups.usual]
workload = "tree"
count = 1

[cases.all.groups.set]
workload = "program"
count = 2
resources = { memory = "8GiB" }

[cases.all.groups.set.container]
entrypoint = ["/app/node", "--serve"]
workdir = "/data"
user = "1000:1000"
files = { "/etc/node.toml" = "settings/node.toml" }
tmpfs = { "/tmp" = "16MiB" }
writable = true
cpu = 0.5
pids = 32
open_files = 512
disk = "1GiB"
stop_signal = "SIGINT"
stop_grace = "2s"
health = { command = ["/app/node", "health"], interval = "1s", timeout = "500ms", start = "3s", retries = 5 }
exec = true
egress = ["bootstrap.example:4001/udp", "192.0.2.7:443/tcp"]
"#;

#[test]
fn every_key_of_a_container_ends_up_in_the_plan() {
    let manifest = parse(CONTAINERS, "plan.toml").expect("it has no mistakes");
    let sources: Vec<&WorkloadSource> = manifest.workloads.values().map(|def| &def.source).collect();
    assert_eq!(
        sources,
        [
            &WorkloadSource::Image(ImageSource::Oci("image.tar".into())),
            &WorkloadSource::Image(ImageSource::Engine("example/node:1.2".into())),
            &WorkloadSource::Image(ImageSource::Dockerfile("docker".into())),
            &WorkloadSource::Image(ImageSource::Binary { path: "target/release/node".into(), with_libs: true }),
            &WorkloadSource::Image(ImageSource::Rootfs("rootfs".into())),
        ]
    );
    assert_eq!(manifest.paths().into_iter().collect::<Vec<_>>(), ["settings/node.toml"]);

    let cid = *Block::new(Codec::DagCbor, vec![0xa0]).cid();
    let workloads = manifest.workloads.keys().map(|name| (name.clone(), cid)).collect();
    let missing = manifest.to_plan(&workloads, &BTreeMap::new(), None);
    assert_eq!(missing, Err(ToPlanError::MissingFile { path: "settings/node.toml".into() }));
    let files = BTreeMap::from([("settings/node.toml".to_owned(), cid)]);
    let plan = manifest.to_plan(&workloads, &files, None).expect("CIDs for all");
    let groups = &plan.cases["all"].groups;
    assert_eq!(groups["usual"].container, Some(Container::usual()));
    assert_eq!(groups["set"].resources.memory_bytes, 8 << 30);
    assert_eq!(
        groups["set"].container,
        Some(Container {
            entrypoint: vec!["/app/node".into(), "--serve".into()],
            workdir: Some("/data".into()),
            user: Some("1000:1000".into()),
            files: BTreeMap::from([("/etc/node.toml".into(), cid)]),
            tmpfs: BTreeMap::from([("/tmp".into(), 16 << 20)]),
            writable: true,
            cpu_milli: 500,
            pids: 32,
            open_files: 512,
            disk_bytes: 1 << 30,
            stop_signal: Some("SIGINT".into()),
            stop_grace_ms: 2000,
            health: Some(Health {
                command: vec!["/app/node".into(), "health".into()],
                interval_ms: 1000,
                timeout_ms: 500,
                start_ms: 3000,
                retries: 5,
            }),
            exec: true,
            egress: ["192.0.2.7:443/tcp", "bootstrap.example:4001/udp"].map(|place| place.parse().expect(place)).into(),
        })
    );
}

#[test]
fn mistakes_in_the_settings_of_containers_are_found() {
    let cases = [
        ("\"/tmp\" = \"16MiB\"", "\"tmp\" = \"16MiB\"", "E0306"),
        ("cpu = 0.5", "cpu = 0", "E0207"),
        ("cpu = 0.5", "cpu = \"half\"", "E0203"),
        ("workdir = \"/data\"", "workdir = \"/data/../etc\"", "E0306"),
        ("settings/node.toml", "../node.toml", "E0306"),
        ("writable = true", "writable = 1", "E0203"),
        ("with_libs = true", "with_libs = \"yes\"", "E0203"),
        ("rootfs = \"rootfs\"", "rootfs = \"rootfs\"\noci = \"a.tar\"", "E0305"),
        ("rootfs = \"rootfs\"", "rootfs = \"rootfs\"\nwith_libs = true", "E0305"),
        ("rootfs = \"rootfs\"", "path = \"node.wasm\"", "E0201"),
        ("192.0.2.7:443/tcp", "192.0.2.7:443", "E0324"),
        ("192.0.2.7:443/tcp", "bootstrap.example:4001/udp", "E0324"),
        ("\"192.0.2.7:443/tcp\"", "1", "E0203"),
    ];
    for (from, to, code) in cases {
        let mistakes = parse(&CONTAINERS.replacen(from, to, 1), "plan.toml").expect_err(to);
        assert!(mistakes.iter().any(|mistake| mistake.code == code), "{to}: {mistakes:?}");
    }
}

/// An excerpt of what is not there, or of half a letter, cannot be shown.
#[test]
fn mistakes_stand_at_places_in_the_text() {
    for text in ["", "ä", "ä = [", "plan", "[plan]\nname = \"ä\"", "\u{feff}", "é=1\né=2"] {
        let mistakes = parse(text, "plan.toml").expect_err(text);
        for mistake in mistakes {
            let spans = mistake.related.iter().map(|related| &related.span).chain([&mistake.span]);
            for span in spans {
                assert!(text.get(span.clone()).is_some(), "{span:?} of {text:?}");
            }
            assert!(mistake.render("plan.toml", text).contains(mistake.code));
        }
    }
}
