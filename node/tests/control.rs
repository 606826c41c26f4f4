//! What a node answers, and to whom.

use iptl_dag::{Block, Codec, PeerId};
use iptl_node::home::Membership;
use iptl_node::join::{Target, join};
use iptl_node::{framed, links::Stream};
use iptl_wire::control::{Failure, FailureKind, ListKind, PROTOCOL, Reply, Request, Upload};
use iptl_wire::lab::Role;
use tokio::io::AsyncWriteExt;

use crate::lab::{Dag, Node, Stranger, ask, bystander, join_request, lab, replies};

const HOUR_MS: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn members_may_not_ask_what_is_the_owners() {
    let lab = lab(false).await;
    let (developer, membership) = member(&lab, 51, Role::Developer).await;
    let dag = Dag::new(1, 1, 100);
    let requests = [
        Request::Put {},
        Request::Publish { root: *dag.cid(), kind: "data".to_owned(), name: String::new(), public: None },
        Request::Fetch { root: *dag.cid(), peers: vec![], timeout_ms: 0, shallow: true },
        Request::Blocks { cids: vec![*dag.cid()] },
        Request::LabInit { name: "mine".to_owned(), open: true, private: false },
        Request::Invite { role: Role::Lablet, ttl_ms: HOUR_MS },
        join_request("nowhere", Role::Lablet),
        Request::Approve { peer: lab.peer() },
        Request::Leave {},
        Request::Shutdown { finish: false },
    ];
    for request in requests {
        let failure = asked(&developer, &lab, &membership, request.clone()).await.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Denied, "control.denied"), "{request:?}");
    }
    let status = asked(&developer, &lab, &membership, Request::Status {}).await.unwrap();
    assert!(matches!(&status[..], [Reply::Status(_)]), "the lab goes on: {status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lends_a_machine_may_look_but_not_run() {
    let lab = lab(false).await;
    let (lablet, membership) = member(&lab, 52, Role::Lablet).await;
    let run = *Dag::new(1, 1, 100).cid();
    let submit = Request::Submit { run, source: None, source_addrs: vec![], priority: 0 };
    for request in [submit.clone(), Request::Cancel { execution: "last".to_owned() }] {
        let failure = asked(&lablet, &lab, &membership, request).await.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Denied, "control.denied"));
    }
    asked(&lablet, &lab, &membership, Request::List { what: ListKind::Lablets }).await.unwrap();

    // Nor does it by way of its node, which passes the request on.
    let node = bystander().await;
    node.join(&lab.invite(Role::Lablet, HOUR_MS).await, Role::Lablet).await.unwrap();
    assert_eq!(node.denied(submit).await, "control.denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_whatever_they_show() {
    let (lab, other) = (lab(false).await, lab(false).await);
    let (stranger, of_other) = member(&other, 53, Role::Developer).await;
    let (_, stolen) = member(&lab, 54, Role::Developer).await;
    for (what, shown) in [("another lab's", &of_other), ("another peer's", &stolen)] {
        let failure = asked(&stranger, &lab, shown, Request::Status {}).await.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Denied, "control.stranger"), "{what}");
    }
    let mut garbage = stranger.open(&lab, PROTOCOL).await;
    garbage.write_all(&[0, 0, 0, 4, 1, 2, 3, 4]).await.unwrap();
    assert_eq!(replies(&mut garbage).await.1.unwrap_err().code, "control.stranger");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_executions_are_not_found() {
    let lab = lab(false).await;
    let nowhere = Dag::new(1, 1, 100).cid().to_string();
    for execution in ["last", "x-nobody", &nowhere] {
        let execution = || execution.to_owned();
        let logs = Request::Logs { execution: execution(), group: None, index: None, follow: true };
        let requests = [Request::Watch { execution: execution() }, Request::Cancel { execution: execution() }, logs];
        for request in requests {
            let failure = lab.ask(request.clone()).await.unwrap_err();
            let got = (failure.kind, failure.code.as_str());
            assert_eq!(got, (FailureKind::NotFound, "execution.unknown"), "{request:?}");
        }
    }
    assert_eq!(lab.denied(Request::Resolve { name: "x-nobody".to_owned() }).await, "execution.unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_lab_runs_nothing() {
    let node = bystander().await;
    let run = *Dag::new(1, 1, 100).cid();
    let requests = [
        Request::Submit { run, source: None, source_addrs: vec![], priority: 0 },
        Request::DryRun { run },
        Request::Watch { execution: "last".to_owned() },
        Request::List { what: ListKind::Runs },
    ];
    for request in requests {
        let failure = node.ask(request.clone()).await.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::LabUnable, "lab.none"), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_submitted_must_be_a_run() {
    let lab = lab(false).await;
    let block = Block::new(Codec::Raw, "no run");
    lab.put(std::slice::from_ref(&block)).await;
    let submit = Request::Submit { run: *block.cid(), source: None, source_addrs: vec![], priority: 0 };
    let failure = lab.ask(submit).await.unwrap_err();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Usage, "node.kind"));
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_are_not_what_their_cid_says_are_refused() {
    let node = bystander().await;
    let mut stream = node.running.connect();
    framed::write(&mut stream, &Request::Put {}).await.unwrap();
    let block = Block::new(Codec::Raw, "truth");
    framed::write(&mut stream, &Upload::Block { cid: *block.cid(), data: b"lie".to_vec() }).await.unwrap();
    assert_eq!(replies(&mut stream).await.1.unwrap_err().code, "block.bad");
    assert_eq!(node.denied(Request::Blocks { cids: vec![*block.cid()] }).await, "block.missing");
    let publish = Request::Publish { root: *block.cid(), kind: "thing".to_owned(), name: String::new(), public: None };
    assert_eq!(node.denied(publish).await, "publish.kind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_understood_is_answered() {
    let node = bystander().await;
    for bytes in [&[0, 0, 0, 3, 0xff, 0xff, 0xff][..], &[0xff; 4]] {
        let mut stream = node.running.connect();
        stream.write_all(bytes).await.unwrap();
        assert_eq!(replies(&mut stream).await.1.unwrap_err().code, "control.request");
    }
}

/// Joins a lab by ticket, as a peer that is no node.
async fn member(lab: &Node, seed: u8, role: Role) -> (Stranger, Membership) {
    let stranger = Stranger::new(seed).await;
    let target = Target::parse(&lab.invite(role, HOUR_MS).await).unwrap();
    let (membership, _) = join(&stranger.links, target, "stranger", role, |_| {}).await.unwrap();
    assert_eq!((membership.role(), membership.orchestrator()), (role, &lab.peer()));
    let peer: &PeerId = stranger.net.peer();
    assert_eq!(membership.token.body.member, *peer);
    (stranger, membership)
}

/// Shows a membership over the swarm and asks.
async fn asked(who: &Stranger, node: &Node, membership: &Membership, request: Request) -> Result<Vec<Reply>, Failure> {
    let mut stream: Stream = who.open(node, PROTOCOL).await;
    framed::write(&mut stream, &membership.token).await.unwrap();
    let (replies, end) = ask(stream, request).await;
    end.map(|()| replies)
}
