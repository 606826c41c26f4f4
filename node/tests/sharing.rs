//! Who may read what: members, strangers, and those who were members.

use iptl_dag::{Block, Cid};
use iptl_wire::control::{Reply, Request};
use iptl_wire::lab::Role;

use crate::lab::{Dag, Node, bystander, lab, member, node, parent, within};

/// Long enough for everything that succeeds.
const PATIENT_MS: u64 = 60_000;

/// Time after which a fetch that cannot succeed gives up: long enough to be answered, several times over.
const SHORT_MS: u64 = 1_500;

/// A DAG whose blocks are all under SHA2-256, which move by Bitswap alone.
fn foreign(seed: u8) -> (Block, Vec<Block>) {
    let raw = |data: Vec<u8>| Block::hashed(0x12, data).unwrap();
    let leaves: Vec<Block> = (0..20).map(|n| raw(vec![seed, n, 7])).collect();
    let node = parent(&leaves);
    let root = raw(node.data().to_vec());
    let root = root.named(Cid::new_v1(node.cid().codec(), *root.cid().hash())).unwrap();
    (root, leaves)
}

/// What a node keeps for itself: once by iroh-blobs, once by Bitswap.
struct Hidden {
    blake3: Dag,
    foreign: Block,
}

impl Hidden {
    async fn at(keeper: &Node, size: usize) -> Hidden {
        let blake3 = Dag::new(2, 10, size);
        let (foreign, leaves) = foreign(u8::try_from(size % 251).unwrap());
        keeper.put_hidden(&blake3.blocks()).await;
        keeper.put_hidden(&leaves).await;
        keeper.put_hidden(std::slice::from_ref(&foreign)).await;
        Hidden { blake3, foreign }
    }

    fn roots(&self) -> [Cid; 2] {
        [*self.blake3.cid(), *self.foreign.cid()]
    }

    async fn share(&self, keeper: &Node) {
        for root in self.roots() {
            let shared = keeper.ask(Request::Share { root }).await.unwrap();
            let [Reply::Shared { blocks: 21.., missing: 0, .. }] = &shared[..] else { panic!("{shared:?}") };
        }
    }

    async fn unshare(&self, keeper: &Node) {
        for root in self.roots() {
            let replies = keeper.ask(Request::Unshare { root }).await.unwrap();
            assert_eq!(replies, [Reply::Shared { blocks: 0, missing: 0, still_public: false }]);
        }
    }

    async fn is_read(&self, by: &Node, from: &Node) {
        for root in self.roots() {
            by.fetch(&root, vec![from.addr().await], PATIENT_MS).await.0.unwrap();
        }
    }

    async fn is_refused(&self, by: &Node, from: &Node) {
        for root in self.roots() {
            let failed = by.fetch(&root, vec![from.addr().await], SHORT_MS).await.0.unwrap_err();
            assert_eq!(failed.code, "fetch.no-provider", "{root}: {failed:?}");
        }
    }
}

async fn revoke(lab: &Node, member: &Node) {
    lab.ask(Request::Revoke { peer: member.peer() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_read_what_is_shared_for_as_long_as_it_is() {
    let keeper = node().await;
    let hidden = Hidden::at(&keeper, 1000).await;
    hidden.is_refused(&bystander().await, &keeper).await;
    hidden.share(&keeper).await;
    hidden.is_read(&bystander().await, &keeper).await;
    hidden.unshare(&keeper).await;
    hidden.is_refused(&bystander().await, &keeper).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_is_so_after_a_restart() {
    let keeper = node().await;
    let (shared, hidden) = (Hidden::at(&keeper, 900).await, Hidden::at(&keeper, 950).await);
    shared.share(&keeper).await;
    hidden.share(&keeper).await;
    hidden.unshare(&keeper).await;
    let keeper = keeper.restarted().await;
    let stranger = bystander().await;
    hidden.is_refused(&stranger, &keeper).await;
    shared.is_read(&stranger, &keeper).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_read_what_is_not_shared_until_they_are_revoked() {
    let lab = lab(false).await;
    let (first, second) = (Hidden::at(&lab, 800).await, Hidden::at(&lab, 850).await);
    let member = member(&lab, Role::Developer).await;
    first.is_read(&member, &lab).await;
    first.is_refused(&bystander().await, &lab).await;
    revoke(&lab, &member).await;
    second.is_refused(&member, &lab).await;
    // What everybody may read is for everybody.
    second.share(&lab).await;
    second.is_read(&member, &lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_know_one_another_and_hear_of_revocations() {
    let lab = lab(false).await;
    let (keeper, reader) = (member(&lab, Role::Lablet).await, member(&lab, Role::Lablet).await);
    let (first, second) = (Hidden::at(&keeper, 700).await, Hidden::at(&keeper, 750).await);
    first.is_read(&reader, &keeper).await;
    // The one that keeps hears of it on its connection with the lab.
    keeper.fetch(Hidden::at(&lab, 760).await.blake3.cid(), vec![lab.addr().await], PATIENT_MS).await.0.unwrap();
    revoke(&lab, &reader).await;
    second.is_refused(&reader, &keeper).await;
    revoke_fails(&lab, &reader).await;
}

async fn revoke_fails(lab: &Node, member: &Node) {
    assert_eq!(lab.denied(Request::Revoke { peer: member.peer() }).await, "revoke.unknown");
    assert_eq!(lab.denied(Request::Revoke { peer: lab.peer() }).await, "revoke.orchestrator");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_member_comes_back_by_a_new_ticket_and_not_by_the_old_one() {
    let lab = lab(false).await;
    let ticket = lab.invite(Role::Developer, 60_000).await;
    let member = bystander().await;
    member.join(&ticket, Role::Developer).await.unwrap();
    revoke(&lab, &member).await;
    // Its home is as it was: it takes its own word for being a member.
    member.ask(Request::Leave {}).await.unwrap();
    let member = member.restarted().await;
    assert_eq!(member.join(&ticket, Role::Developer).await.unwrap_err().code, "ticket.unknown");
    let fresh = lab.invite(Role::Developer, 60_000).await;
    member.join(&fresh, Role::Developer).await.unwrap();
    Hidden::at(&lab, 600).await.is_read(&member, &lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_for_everybody_but_in_a_private_lab() {
    for private in [false, true] {
        let keeper = node().await;
        keeper.ask(Request::LabInit { name: "lab".to_owned(), open: false, private }).await.unwrap();
        let dag = Dag::new(1, 3, 500);
        keeper.put_hidden(&dag.blocks()).await;
        let publish = |public| Request::Publish { root: *dag.cid(), kind: "data".into(), name: "x".into(), public };
        keeper.ask(publish(None)).await.unwrap();
        assert_eq!(readable(&keeper, &dag).await, !private);
        // Said once, it stays so.
        for public in [private, !private] {
            keeper.ask(publish(Some(public))).await.unwrap();
            keeper.ask(publish(None)).await.unwrap();
            assert_eq!(readable(&keeper, &dag).await, public);
        }
    }
}

async fn readable(keeper: &Node, dag: &Dag) -> bool {
    bystander().await.fetch(dag.cid(), vec![keeper.addr().await], SHORT_MS).await.0.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn sharing_what_is_not_there_says_so() {
    let keeper = node().await;
    let dag = Dag::new(1, 3, 400);
    let root = *dag.cid();
    assert_eq!(keeper.denied(Request::Share { root }).await, "block.missing");
    assert_eq!(keeper.denied(Request::Unshare { root }).await, "share.not-pinned");
    // The root alone: what is below it is missing.
    keeper.put_hidden(std::slice::from_ref(&dag.root)).await;
    let shared = within("an answer", keeper.ask(Request::Share { root })).await.unwrap();
    assert_eq!(shared, [Reply::Shared { blocks: 2, missing: 1, still_public: true }]);
    keeper.put_hidden(&dag.blocks()).await;
    let shared = keeper.ask(Request::Share { root }).await.unwrap();
    assert_eq!(shared, [Reply::Shared { blocks: 3, missing: 0, still_public: true }]);
    // Another root leads to it.
    let above = parent(std::slice::from_ref(&dag.root));
    keeper.put(std::slice::from_ref(&above)).await;
    let unshared = keeper.ask(Request::Unshare { root }).await.unwrap();
    assert_eq!(unshared, [Reply::Shared { blocks: 0, missing: 0, still_public: true }]);
}
