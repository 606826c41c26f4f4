//! Plans on other people's peer-to-peer software, and those that also run in containers, with few instances: that they
//! run, and that what they look for is found. What many instances show is on the plans' pages.

use iptl_e2e::{Home, docker_is_required, repository};

/// Runs a plan on this machine alone and fails unless its case passes.
#[track_caller]
fn passes(plan: &str, more: &[&str]) {
    let home = Home::new();
    let path = repository().join("plans").join(plan).display().to_string();
    let output = home.run(&[&["run", &path, "--no-build", "--local", "--json"], more].concat());
    let (stderr, last) = (output.stderr.clone(), output.exits(0).last_json());
    assert_eq!(last["verdict"], "pass", "{last}\n{stderr}");
}

const DHT: [&str; 14] = [
    "--network",
    "near",
    "-g",
    "boot=1",
    "-g",
    "peer=5",
    "-p",
    "lookups=2",
    "-p",
    "queries=100",
    "-p",
    "joins=10",
    "-p",
    "dial-timeout=1s",
];

const GOSSIP: [&str; 8] = ["-g", "node=5", "-p", "messages=5", "-p", "warm-up=2s", "-p", "heartbeat=300ms"];

#[test]
fn nodes_on_boxo_fetch_content_from_each_other_over_links_with_a_rate() {
    engine!();
    // Without a DHT they have only whom they are connected to, so the third has it from the second.
    passes("ipfs-exchange", &["--case", "boxo", "-g", "go=3", "-p", "blocks=20", "-p", "connections=1"]);
}

#[test]
fn nodes_on_boxo_helia_and_rust_libp2p_fetch_content_of_each_kind_from_each_kind() {
    engine!();
    // The plan's thresholds ask for bytes of each kind at each kind. All are connected to all, so that who has the content
    // first is asked by all.
    passes("ipfs-exchange", &["-g", "go=2", "-p", "blocks=6", "-p", "connections=5"]);
}

#[test]
fn components_find_peers_and_providers_by_kademlia() {
    passes("dht", &DHT);
}

#[test]
fn containers_find_peers_and_providers_by_kademlia() {
    engine!();
    passes("dht", &[&["--case", "containers"], &DHT[..]].concat());
}

#[test]
fn peers_that_leave_come_back_and_the_others_find_what_is_left() {
    passes("dht", &[&DHT[..], &["-p", "churn=0.4", "-p", "stay=200ms", "-p", "away=200ms"]].concat());
}

#[test]
fn peers_behind_nats_that_map_by_the_inner_end_reach_each_other_and_those_behind_others_do_not() {
    engine!();
    let none = ["ei-ei", "ei-ad", "ad-ei", "ad-ad", "ad-apd", "apd-ei", "apd-ad"].map(|kind| format!("{kind}=0"));
    let none = none.iter().flat_map(|group| ["-g", group]);
    passes("nat", &none.chain(["-g", "ei-apd=2", "-g", "apd-apd=2", "-p", "patience=10s"]).collect::<Vec<&str>>());
}

#[test]
fn containers_lose_each_other_in_a_partition_and_agree_after_it() {
    engine!();
    passes("split", &["--case", "containers", "-g", "node=4", "-p", crate::network::SILENCE]);
}

#[test]
fn messages_reach_all_components_over_links_that_lose_packets() {
    passes("gossip", &GOSSIP);
}

#[test]
fn messages_reach_all_containers_that_stay() {
    engine!();
    let churn = ["--case", "containers", "-p", "churn=0.2", "-p", "stay=1s", "-p", "away=500ms"];
    passes("gossip", &[&churn, &GOSSIP[..]].concat());
}
