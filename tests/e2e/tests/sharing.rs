//! Who may read what is published in a lab.

use std::path::Path;

use iptl_e2e::{Foreground, Home, Lab, Node, Output, until};

/// Publishes text that only members may read, and returns its CID.
#[track_caller]
fn publish(node: &Node, dir: &Path, text: &str) -> String {
    let file = dir.join("text.txt");
    std::fs::write(&file, text).unwrap();
    node.run(&["publish", "data", &file.display().to_string(), "--private", "-q"]).exits(0).word()
}

/// Asks for something that is there to be had, in the time that a busy machine needs.
fn get(from: &Node, run: impl Fn(&[&str]) -> Output, cid: &str) -> Output {
    run(&["get", cid, "-o", "-", "--peer", &from.addrs[0], "--timeout", "60s"])
}

/// Asks for something that is there for others.
#[track_caller]
fn in_vain(from: &Node, run: impl Fn(&[&str]) -> Output, cid: &str) {
    run(&["get", cid, "-o", "-", "--peer", &from.addrs[0], "--timeout", "2s"]).fails(3, "fetch.no-provider");
}

#[test]
fn what_is_private_is_read_by_members_and_by_strangers_once_it_is_shared() {
    let lab = Lab::start(1);
    let (keeper, member) = (&lab.orchestrator, &lab.lablets[0]);
    let cid = publish(keeper, lab.path(), "for us");
    assert_eq!(get(keeper, |args| member.run(args), &cid).exits(0).stdout, "for us");
    let stranger = Home::new();
    in_vain(keeper, |args| stranger.run(args), &cid);
    let pins = keeper.run(&["ls", "pins"]).exits(0).stdout;
    assert!(pins.lines().any(|line| line.contains(&cid[..12]) && line.contains("members")), "{pins}");

    keeper.run(&["share", &cid]).exits(0);
    let pins = keeper.run(&["ls", "pins"]).exits(0).stdout;
    assert!(pins.lines().any(|line| line.contains(&cid[..12]) && line.contains("everybody")), "{pins}");
    assert_eq!(get(keeper, |args| stranger.run(args), &cid).exits(0).stdout, "for us");

    keeper.run(&["unshare", &cid]).exits(0);
    let late = Home::new();
    in_vain(keeper, |args| late.run(args), &cid);
    let log = std::fs::read_to_string(keeper.home.join("node.log")).unwrap();
    assert!(log.contains("no member of the lab"), "the refusal is not in the log:\n{log}");
    keeper.run(&["unshare", &late_cid()]).fails(3, "share.not-pinned");
    keeper.run(&["share", &late_cid()]).fails(3, "block.missing");

    keeper.run(&["unpin", &cid]).exits(0);
    let pins = keeper.run(&["ls", "pins"]).exits(0).stdout;
    assert!(!pins.contains(&cid[..12]), "{pins}");
    keeper.run(&["unpin", &cid]).fails(3, "pin.unknown");
}

/// A CID that nobody keeps.
fn late_cid() -> String {
    iptl_dag::Block::new(iptl_dag::Codec::Raw, "kept by nobody").cid().to_string()
}

#[test]
fn a_revoked_lablet_gets_no_work_and_reads_no_more_than_strangers() {
    let lab = Lab::start(2);
    let (keeper, revoked, witness) = (&lab.orchestrator, &lab.lablets[0], &lab.lablets[1]);
    keeper.run(&["lab", "revoke", &revoked.peer]).exits(0);
    until("the end of its session", || (lab.run(&["status", "--json"]).json()["lablets_ready"] == 1).then_some(()));
    for holder in [keeper, witness] {
        let cid = publish(holder, lab.path(), &format!("not for all, of {}", holder.peer));
        in_vain(holder, |args| revoked.run(args), &cid);
        holder.run(&["share", &cid]).exits(0);
        get(holder, |args| revoked.run(args), &cid).exits(0);
    }
    let log = std::fs::read_to_string(keeper.home.join("node.log")).unwrap();
    assert!(log.contains("its membership was revoked"), "the refusal is not in the log:\n{log}");
    keeper.run(&["lab", "revoke", &revoked.peer]).fails(3, "revoke.unknown");
    keeper.run(&["lab", "revoke", "not-a-peer"]).fails(2, "peer.garbled");
}

#[test]
fn in_a_private_lab_what_is_published_is_for_members_until_it_is_shared() {
    let home = Home::new();
    let _node = Foreground::start(home.path(), &[]);
    home.run(&["lab", "init", "--name", "secret", "--private"]).exits(0);
    let file = home.path().join("text.txt");
    std::fs::write(&file, "for us").unwrap();
    let cid = home.run(&["publish", "data", &file.display().to_string(), "-q"]).exits(0).word();
    let address = home.run(&["status", "--json"]).json()["addrs"][0].as_str().unwrap().to_owned();
    let stranger = Home::new();
    let get = |within: &str| stranger.run(&["get", &cid, "-o", "-", "--peer", &address, "--timeout", within]);
    get("2s").fails(3, "fetch.no-provider");
    home.run(&["share", &cid]).exits(0);
    assert_eq!(get("60s").exits(0).stdout, "for us");
}
