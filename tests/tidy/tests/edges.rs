//! Which crate may use which.

use iptl_tidy::workspace;

/// Where a change of these tables is decided.
const DECIDE: &str =
    "an edge is a decision: take it in docs/decisions/ and change the table in tests/tidy/tests/edges.rs";

/// Crates that each crate may use in what it ships, and in its build script. What is not here is not allowed.
const EDGES: &[(&str, &[&str])] = &[
    // The pure half: data, then messages, then what decides.
    ("iptl-dag", &[]),
    ("iptl-result", &["iptl-dag"]),
    ("iptl-wire", &["iptl-dag"]),
    ("iptl-sync", &["iptl-dag", "iptl-wire"]),
    ("iptl-trust", &["iptl-dag", "iptl-wire"]),
    ("iptl-scheduler", &["iptl-dag", "iptl-wire", "iptl-sync", "iptl-trust"]),
    ("iptl-plans", &["iptl-dag"]),
    ("iptl-labnet", &["iptl-dag"]),
    ("iptl-bitswap", &["iptl-dag"]),
    // Storage, swarm and runners know nothing of scheduling, nor of each other.
    ("iptl-artifacts", &["iptl-dag"]),
    ("iptl-artifacts-iroh", &["iptl-dag", "iptl-artifacts"]),
    ("iptl-artifacts-oci", &["iptl-dag", "iptl-artifacts"]),
    ("iptl-artifacts-pack", &["iptl-dag", "iptl-artifacts"]),
    ("iptl-net", &["iptl-dag", "iptl-wire", "iptl-artifacts", "iptl-bitswap"]),
    ("iptl-labnet-tun", &["iptl-labnet"]),
    ("iptl-runner", &["iptl-dag", "iptl-labnet"]),
    ("iptl-runner-wasm", &["iptl-dag", "iptl-labnet", "iptl-runner"]),
    ("iptl-testground", &["iptl-dag", "iptl-labnet", "iptl-runner"]),
    ("iptl-runner-docker", &["iptl-dag", "iptl-labnet", "iptl-labnet-tun", "iptl-runner", "iptl-testground"]),
    // The driver joins them, the command line stands on it.
    (
        "iptl-node",
        &[
            "iptl-artifacts",
            "iptl-artifacts-iroh",
            "iptl-artifacts-oci",
            "iptl-artifacts-pack",
            "iptl-bitswap",
            "iptl-dag",
            "iptl-labnet",
            "iptl-labnet-tun",
            "iptl-net",
            "iptl-result",
            "iptl-runner",
            "iptl-runner-docker",
            "iptl-runner-wasm",
            "iptl-scheduler",
            "iptl-sync",
            "iptl-trust",
            "iptl-wire",
        ],
    ),
    (
        "iptl-cli",
        &[
            "iptl-artifacts",
            "iptl-artifacts-oci",
            "iptl-artifacts-pack",
            "iptl-dag",
            "iptl-node",
            "iptl-plans",
            "iptl-result",
            "iptl-runner",
            "iptl-runner-docker",
            "iptl-runner-wasm",
            // A log is audited where its reader is: `iptl audit` believes nothing that it did not check.
            "iptl-scheduler",
            "iptl-trust",
            "iptl-wire",
        ],
    ),
    // What tests the whole. The end-to-end tests know the binary and the texts it speaks.
    ("iptl-sim", &["iptl-dag", "iptl-labnet", "iptl-result", "iptl-scheduler", "iptl-sync", "iptl-trust", "iptl-wire"]),
    ("iptl-e2e", &["iptl-dag", "iptl-wire"]),
    // One target for each decoder of what strangers send. Of the heavy crates iroh alone, whose messages strangers write.
    (
        "iptl-fuzz",
        &[
            "iptl-artifacts",
            "iptl-artifacts-iroh",
            "iptl-artifacts-oci",
            "iptl-bitswap",
            "iptl-dag",
            "iptl-labnet",
            "iptl-plans",
            "iptl-testground",
            "iptl-trust",
            "iptl-wire",
        ],
    ),
    (
        "iptl-bench",
        &[
            "iptl-artifacts",
            "iptl-artifacts-iroh",
            "iptl-artifacts-oci",
            "iptl-artifacts-pack",
            "iptl-dag",
            "iptl-labnet",
            "iptl-labnet-tun",
            "iptl-net",
            "iptl-node",
            "iptl-runner",
            "iptl-runner-wasm",
            "iptl-scheduler",
            "iptl-sim",
            "iptl-trust",
            "iptl-wire",
        ],
    ),
    ("iptl-tidy", &[]),
    ("iptl-xtask", &[]),
];

/// Groups of packages that take minutes to compile, by prefix, and the one crate that may name each; the benchmarks
/// may too, where they hold a figure against the bare thing.
const HEAVY: &[(&str, &str)] = &[
    ("libp2p", "iptl-net"),
    ("iroh", "iptl-artifacts-iroh"),
    ("bao-tree", "iptl-artifacts-iroh"),
    ("wasmtime", "iptl-runner-wasm"),
    ("cranelift", "iptl-runner-wasm"),
    ("bollard", "iptl-runner-docker"),
];

#[test]
fn crates_use_only_what_the_table_allows() {
    let workspace = workspace();
    let mut wrong = Vec::new();
    for member in workspace.members.values() {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == member.name) else {
            wrong.push(format!("{} is not in the table", member.name));
            continue;
        };
        for (kind, used) in &member.uses {
            if kind != "dev" && workspace.members.contains_key(used) && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", member.name));
            }
        }
    }
    for (name, _) in EDGES {
        if !workspace.members.contains_key(*name) {
            wrong.push(format!("{name} is in the table and not in the workspace"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{DECIDE}", wrong.join("\n"));
}

#[test]
fn heavy_packages_are_named_by_one_crate_each() {
    let mut wrong = Vec::new();
    for member in workspace().members.values() {
        for (kind, used) in &member.uses {
            let owner = HEAVY.iter().find(|(prefix, _)| used.starts_with(prefix)).map(|(_, owner)| *owner);
            if owner.is_some_and(|owner| owner != member.name && member.name != "iptl-bench") {
                wrong.push(format!("{} names {used} ({kind}), which is {}'s", member.name, owner.unwrap_or_default()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{DECIDE}", wrong.join("\n"));
}

/// Only told: two versions of a package cost compile time, and going down to one is often not ours to do.
#[test]
fn packages_with_two_versions_are_listed() {
    let workspace = workspace();
    let twice = workspace.packages.iter().filter(|(_, versions)| versions.len() > 1);
    let rows: Vec<String> = twice.map(|(name, versions)| format!("{name}: {versions:?}")).collect();
    println!("{} of {} packages have several versions", rows.len(), workspace.packages.len());
    println!("{}", rows.join("\n"));
}
