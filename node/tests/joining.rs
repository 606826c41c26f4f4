//! The door of a lab: tickets that work and tickets that do not, and peers that ask.

use iptl_node::framed;
use iptl_trust::{Secret, Ticket};
use iptl_wire::control::{FailureKind, MAX_FRAME_SIZE, Reply, Request};
use iptl_wire::lab::Role;

use crate::lab::{bystander, join_request, lab, replies, within};

const HOUR_MS: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_lets_one_machine_in_and_no_second() {
    let (lab, first, second) = (lab(false).await, bystander().await, bystander().await);
    let ticket = lab.invite(Role::Developer, HOUR_MS).await;
    // The role is the ticket's, whatever is asked for; letters may be large.
    let joined = first.join(&ticket.to_ascii_uppercase(), Role::Lablet).await.unwrap();
    assert!(matches!(&joined[..], [Reply::Joined { role: Role::Developer, name, .. }] if name == "lab"), "{joined:?}");
    let refused = second.join(&ticket, Role::Lablet).await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_str()), (FailureKind::Denied, "ticket.used"));
    assert!(refused.help.contains("iptl invite"), "{}", refused.help);
    assert_eq!(first.join(&ticket, Role::Lablet).await.unwrap_err().code, "lab.member");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_is_no_good_says_why() {
    let (lab, other, asker) = (lab(false).await, lab(false).await, bystander().await);
    let good = lab.invite(Role::Lablet, HOUR_MS).await;
    let ticket: Ticket = good.parse().unwrap();
    let elsewhere: Ticket = other.invite(Role::Lablet, HOUR_MS).await.parse().unwrap();
    let mistyped = format!("{}{}{}", &good[..40], if &good[40..41] == "a" { "b" } else { "a" }, &good[41..]);
    let rows = [
        (lab.invite(Role::Lablet, 0).await, FailureKind::Denied, "ticket.expired"),
        (good[..good.len() - 3].to_owned(), FailureKind::Denied, "ticket.garbled"),
        (mistyped, FailureKind::Denied, "ticket.garbled"),
        (text(&Ticket { lab: elsewhere.lab, ..ticket.clone() }), FailureKind::Denied, "ticket.other-lab"),
        (text(&Ticket { secret: Secret::new([0; 16]), ..ticket }), FailureKind::Denied, "ticket.unknown"),
        ("nonsense".to_owned(), FailureKind::Usage, "join.target"),
    ];
    for (ticket, kind, code) in rows {
        let failure = asker.join(&ticket, Role::Lablet).await.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (kind, code), "{}", failure.message);
        assert!(!failure.help.is_empty(), "{code}");
    }
    // Nothing was used up or left behind by all that.
    asker.join(&good, Role::Lablet).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_waits_until_the_owner_approves() {
    let (lab, asker) = (lab(false).await, bystander().await);
    let mut asking = asker.running.connect();
    framed::write(&mut asking, &join_request(&lab.addr().await, Role::Lablet)).await.unwrap();
    let told = async {
        loop {
            match framed::expect::<Reply>(&mut asking, MAX_FRAME_SIZE).await.unwrap() {
                Reply::Note { text } if text.contains("waits for approval") => return text,
                Reply::Note { .. } => {}
                other => panic!("answered by {other:?}"),
            }
        }
    };
    let told = within("the lab's answer", told).await;
    assert!(told.contains(&format!("iptl lab approve {}", asker.peer())), "{told}");
    let status = lab.ask(Request::Status {}).await.unwrap();
    let asks = |reply: &Reply| matches!(reply, Reply::Status(s) if s.asking.iter().any(|(p, _)| *p == asker.peer()));
    assert!(status.iter().any(asks), "{status:?}");

    lab.ask(Request::Approve { peer: asker.peer() }).await.unwrap();
    let (joined, end) = replies(&mut asking).await;
    end.unwrap();
    assert!(joined.iter().any(|reply| matches!(reply, Reply::Joined { role: Role::Lablet, .. })), "{joined:?}");
    let failure = lab.ask(Request::Approve { peer: asker.peer() }).await.unwrap_err();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::NotFound, "approve.unknown"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_lab_lets_everybody_in_who_asks_but_no_second_orchestrator() {
    let (lab, asker) = (lab(true).await, bystander().await);
    let failure = asker.join(&lab.addr().await, Role::Orchestrator).await.unwrap_err();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Denied, "denied"));
    asker.join(&lab.addr().await, Role::Developer).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_made_no_lab_has_no_door() {
    let node = bystander().await;
    assert_eq!(node.denied(Request::Invite { role: Role::Lablet, ttl_ms: HOUR_MS }).await, "lab.not-owner");
    assert_eq!(node.denied(Request::Approve { peer: node.peer() }).await, "lab.not-owner");
    assert_eq!(node.denied(Request::Leave {}).await, "lab.none");
}

fn text(ticket: &Ticket) -> String {
    ticket.text().to_string()
}
