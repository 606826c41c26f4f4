//! Tests of keys, tickets and memberships.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

use iptl_dag::model::signed::{Signable, Signed};
use iptl_dag::{PeerId, codec};
use iptl_trust::{
    Keypair, MembershipError, RedeemError, Secret, SignatureError, Ticket, TicketBook, TicketError, check_certificate,
    check_revocations, check_role, check_token, issue_certificate, issue_revocations, issue_token, sign, verified,
    verify, verify_by,
};
use iptl_wire::WallTime;
use iptl_wire::lab::{Certificate, MemberToken, Revocations, Revoked, Role};
use iptl_wire::offer::Offer;
use iptl_wire::session::Grant;
use serde::Serialize;

const NOW: WallTime = WallTime(1_000_000);
const LATER: WallTime = WallTime(1_000_001);

fn key(n: u8) -> Keypair {
    Keypair::from_seed(&[n; 32])
}

fn peer(n: u8) -> PeerId {
    key(n).peer().clone()
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Promise(String);

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Threat(String);

impl Signable for Promise {
    const DOMAIN: &'static str = "test/promise/1";
}

impl Signable for Threat {
    const DOMAIN: &'static str = "test/threat/1";
}

#[test]
fn a_signature_holds_for_its_signer_domain_and_body_alone() {
    let signed = sign(&key(1), Promise("I stay".into()));
    assert_eq!(verify(&signed), Ok(()));
    assert_eq!(verify_by(&signed, &peer(1)), Ok(()));
    assert_eq!(verified(signed.clone(), &peer(1)).unwrap().into_inner(), signed.body);
    assert!(matches!(verify_by(&signed, &peer(2)), Err(SignatureError::WrongSigner { .. })));

    let invalid = |result| assert!(matches!(result, Err(SignatureError::Invalid { .. })), "{result:?}");
    invalid(verify(&Signed { body: Promise("I go".into()), ..signed.clone() }));
    invalid(verify(&Signed { signer: peer(2), ..signed.clone() }));
    let Signed { body, signer, signature } = signed.clone();
    invalid(verify(&Signed { body: Threat(body.0), signer, signature }));
    for bit in 0..512 {
        let mut changed = signed.clone();
        changed.signature[bit / 8] ^= 1 << (bit % 8);
        invalid(verify(&changed));
    }
    for size in [0, 63, 65] {
        invalid(verify(&Signed { signature: vec![0; size], ..signed.clone() }));
    }
    let no_key = PeerId::from_bytes(&[1, 2, 3]).unwrap();
    assert!(matches!(verify(&Signed { signer: no_key, ..signed.clone() }), Err(SignatureError::BadKey { .. })));
    // The neutral element of the curve signs everything, unless one is strict.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut signature = vec![0; 64];
    signature[0] = 1;
    invalid(verify(&Signed { body: Promise("all".into()), signer: PeerId::from_ed25519(&neutral), signature }));
}

#[test]
fn every_domain_of_the_lab_is_its_own() {
    use iptl_dag::model::{Attestation, Fact, Receipt};
    let domains = [
        Attestation::DOMAIN,
        Certificate::DOMAIN,
        Fact::DOMAIN,
        Grant::DOMAIN,
        MemberToken::DOMAIN,
        Offer::DOMAIN,
        Receipt::DOMAIN,
        Revocations::DOMAIN,
    ];
    for (n, one) in domains.iter().enumerate() {
        assert!(one.starts_with("iptl/") && one.ends_with("/1") && !one.contains('\0'), "{one}");
        // None is the beginning of another, so that no body can make up for the difference.
        for other in &domains[n + 1..] {
            assert!(!one.starts_with(other) && !other.starts_with(one), "{one} and {other}");
        }
    }
    let token = issue_token(&key(1), peer(2), Role::Lablet, LATER);
    let forged = Signed {
        body: Certificate { lab: peer(1), orchestrator: peer(2), name: String::new(), expires: LATER, private: false },
        signer: token.signer,
        signature: token.signature,
    };
    assert!(check_certificate(&forged, &peer(1), &peer(2), NOW).is_err());
}

#[test]
fn secrets_are_never_printed() {
    let mut book = TicketBook::new(peer(1));
    let ticket = book.mint(Secret::new([0xab; 16]), Role::Lablet, LATER, peer(2), vec![]);
    for text in [format!("{ticket:?}"), format!("{:?}", key(7)), format!("{:?}", ticket.secret)] {
        assert!(text.contains("***"), "{text}");
        assert!(!text.contains("171") && !text.to_lowercase().contains("abab"), "{text}");
        assert!(!text.contains("7, 7"), "{text}");
    }
}

fn ticket() -> Ticket {
    TicketBook::new(peer(1)).mint(
        Secret::new(*b"sixteen secrets!"),
        Role::Lablet,
        LATER,
        peer(2),
        vec!["/ip4/192.0.2.1/udp/4001/quic-v1".into(), "/dns4/lab.example/tcp/4001".into()],
    )
}

#[test]
fn tickets_survive_their_text_form() {
    let text = ticket().text();
    assert!(text.starts_with("lab1") && text.len() < 400, "{} bytes", text.len());
    assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    assert_eq!(text.parse(), Ok(ticket()));
    assert_eq!(format!("  {}\n", text.to_uppercase()).parse(), Ok(ticket()));

    let many = Ticket { addrs: vec!["/ip4/192.0.2.1/udp/4001/quic-v1".into(); 500], ..ticket() };
    let short: Ticket = many.text().parse().unwrap();
    assert!(short.addrs.len() > 20 && short.addrs.len() < 500);
}

#[test]
fn what_is_no_ticket_says_why() {
    let text = ticket().text();
    for (input, error) in [
        ("", TicketError::WrongPrefix),
        ("lab", TicketError::WrongPrefix),
        ("12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5", TicketError::WrongPrefix),
        ("lab1", TicketError::Garbled),
        ("lab1!!!!", TicketError::Garbled),
        (&text[..text.len() - 1], TicketError::Garbled),
        (&text[..text.len() / 2], TicketError::Garbled),
        (&format!("{}a", &*text), TicketError::Garbled),
        (&"lab1".repeat(2000), TicketError::TooLong { size: 8000 }),
        (&format!("{}é", &*text), TicketError::Garbled),
    ] {
        assert_eq!(input.parse::<Ticket>(), Err(error), "{input}");
    }
    for at in 4..text.len() {
        let mut typo = text.to_string().into_bytes();
        typo[at] = if typo[at] == b'a' { b'b' } else { b'a' };
        assert_eq!(String::from_utf8(typo).unwrap().parse::<Ticket>(), Err(TicketError::Garbled), "at {at}");
    }
    assert_eq!(reseal(|bytes| bytes[0] = 2).parse::<Ticket>(), Err(TicketError::Newer { version: 2 }));
    assert_eq!(reseal(|bytes| bytes[0] = 0).parse::<Ticket>(), Err(TicketError::Garbled));
    assert_eq!(reseal(|bytes| bytes[1] ^= 1).parse::<Ticket>(), Err(TicketError::Garbled));
    assert_eq!(reseal(|bytes| bytes.push(0)).parse::<Ticket>(), Err(TicketError::Garbled));
}

/// The ticket with changed content and a right checksum.
fn reseal(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = [&[1][..], &codec::encode(&ticket())].concat();
    change(&mut bytes);
    let sum = blake3::hash(&bytes);
    bytes.extend(&sum.as_bytes()[..4]);
    format!("lab1{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase())
}

#[test]
fn a_ticket_lets_one_peer_in_while_it_is_valid() {
    let mut book = TicketBook::new(peer(1));
    let lablet = book.mint(Secret::new([1; 16]), Role::Lablet, LATER, peer(2), vec![]);
    let developer = book.mint(Secret::new([2; 16]), Role::Developer, LATER, peer(2), vec![]);
    assert_eq!(book.open(NOW), 2);
    let mut redeem = |lab, secret: &[u8], by, now| book.redeem(&peer(lab), secret, &peer(by), now);
    let (one, two) = (lablet.secret.as_bytes(), developer.secret.as_bytes());

    assert_eq!(redeem(9, one, 3, NOW), Err(RedeemError::OtherLab { lab: peer(9) }));
    assert_eq!(redeem(1, &[3; 16], 3, NOW), Err(RedeemError::Unknown));
    assert_eq!(redeem(1, &one[..15], 3, NOW), Err(RedeemError::Unknown));
    assert_eq!(redeem(1, &[], 3, NOW), Err(RedeemError::Unknown));
    assert_eq!(redeem(1, one, 3, NOW), Ok(Role::Lablet));
    assert_eq!(redeem(1, one, 4, NOW), Err(RedeemError::Used { by: peer(3) }));
    // The first answer may have been lost.
    assert_eq!(redeem(1, one, 3, NOW), Ok(Role::Lablet));
    assert_eq!(redeem(1, two, 4, LATER), Err(RedeemError::Expired { at: LATER }));
    assert_eq!(redeem(1, two, 4, NOW), Ok(Role::Developer));
    assert_eq!(book.open(NOW), 0);
}

#[test]
fn a_book_survives_being_written_down_and_holds_no_secret() {
    let mut book = TicketBook::new(peer(1));
    let first = book.mint(Secret::new([0xab; 16]), Role::Lablet, NOW, peer(2), vec![]);
    let second = book.mint(Secret::new([0xcd; 16]), Role::Lablet, LATER, peer(2), vec![]);
    book.redeem(&peer(1), second.secret.as_bytes(), &peer(3), NOW).unwrap();
    let bytes = codec::encode(&book);
    assert!(!bytes.windows(16).any(|w| w == [0xab; 16]));
    let mut read: TicketBook = codec::decode_canonical(&bytes).unwrap();
    assert_eq!(read, book);
    assert_eq!(read.redeem(&peer(1), second.secret.as_bytes(), &peer(4), NOW), Err(RedeemError::Used { by: peer(3) }));
    read.forget(LATER);
    assert_eq!(read.redeem(&peer(1), first.secret.as_bytes(), &peer(4), NOW), Err(RedeemError::Unknown));
}

#[test]
fn tokens_hold_for_their_lab_member_time_and_role() {
    let token = issue_token(&key(1), peer(2), Role::Lablet, LATER);
    assert_eq!(check_token(&token, &peer(1), &peer(2), NOW), Ok(Role::Lablet));
    assert_eq!(check_role(&token, &peer(1), &peer(2), NOW, Role::Lablet), Ok(()));
    assert_eq!(
        check_role(&token, &peer(1), &peer(2), NOW, Role::Developer),
        Err(MembershipError::Role { has: Role::Lablet, needs: Role::Developer })
    );
    assert_eq!(check_token(&token, &peer(1), &peer(3), NOW), Err(MembershipError::OtherPeer { holder: peer(2) }));
    assert_eq!(check_token(&token, &peer(1), &peer(2), LATER), Err(MembershipError::Lapsed { at: LATER }));
    assert!(matches!(
        check_token(&token, &peer(9), &peer(2), NOW),
        Err(MembershipError::Signature(SignatureError::WrongSigner { .. }))
    ));
    // A member that makes itself one.
    let body = MemberToken { lab: peer(1), member: peer(2), role: Role::Orchestrator, expires: LATER };
    let own = sign(&key(2), body.clone());
    assert!(matches!(check_token(&own, &peer(1), &peer(2), NOW), Err(MembershipError::Signature(_))));
    let raised = Signed { body, ..token.clone() };
    assert!(matches!(check_token(&raised, &peer(1), &peer(2), NOW), Err(MembershipError::Signature(_))));
    // A lab that speaks for another.
    let foreign = sign(&key(9), MemberToken { lab: peer(1), ..token.body });
    assert_eq!(check_token(&foreign, &peer(9), &peer(2), NOW), Err(MembershipError::OtherLab { lab: peer(1) }));
}

#[test]
fn certificates_hold_for_their_lab_orchestrator_and_time() {
    let certificate = issue_certificate(&key(1), peer(2), "lab".into(), LATER, false);
    assert_eq!(check_certificate(&certificate, &peer(1), &peer(2), NOW), Ok(()));
    for (lab, orchestrator, now) in [(3, 2, NOW), (1, 3, NOW), (1, 2, LATER)] {
        assert!(check_certificate(&certificate, &peer(lab), &peer(orchestrator), now).is_err());
    }
}

#[test]
fn revocations_hold_for_their_lab() {
    let list = issue_revocations(&key(1), 3, vec![Revoked { peer: peer(2), until: LATER }]);
    assert_eq!(check_revocations(&list, &peer(1)), Ok(()));
    assert!(check_revocations(&list, &peer(9)).is_err());
    let emptied = Signed { body: Revocations { revoked: Vec::new(), ..list.body.clone() }, ..list.clone() };
    assert!(matches!(check_revocations(&emptied, &peer(1)), Err(MembershipError::Signature(_))));
    // A lab that speaks for another.
    let foreign = sign(&key(9), list.body);
    assert_eq!(check_revocations(&foreign, &peer(9)), Err(MembershipError::OtherLab { lab: peer(1) }));
}

#[test]
fn whose_ticket_is_forgotten_cannot_come_back_by_it() {
    let mut book = TicketBook::new(peer(1));
    let [used, other] = [1, 2].map(|n| book.mint(Secret::new([n; 16]), Role::Lablet, LATER, peer(2), vec![]));
    book.redeem(&peer(1), used.secret.as_bytes(), &peer(3), NOW).unwrap();
    book.forget_used_by(&peer(3));
    assert_eq!(book.redeem(&peer(1), used.secret.as_bytes(), &peer(3), NOW), Err(RedeemError::Unknown));
    assert_eq!(book.redeem(&peer(1), other.secret.as_bytes(), &peer(3), NOW), Ok(Role::Lablet));
}

#[test]
fn errors_read_well() {
    let lab = peer(1).to_string();
    for (text, expected) in [
        (TicketError::WrongPrefix.to_string(), "not a ticket: a ticket begins with lab1".to_owned()),
        (TicketError::Garbled.to_string(), "the ticket is damaged: a part is missing or mistyped".to_owned()),
        (TicketError::Newer { version: 2 }.to_string(), "the ticket is of version 2, this software knows 1".to_owned()),
        (
            TicketError::TooLong { size: 9000 }.to_string(),
            "text of 9000 bytes is longer than a ticket can be (4096)".to_owned(),
        ),
        (RedeemError::OtherLab { lab: peer(1) }.to_string(), format!("the ticket is for lab {lab}")),
        (RedeemError::Unknown.to_string(), "no such ticket was given out here".to_owned()),
        (RedeemError::Used { by: peer(1) }.to_string(), format!("the ticket was used by {lab}")),
        (RedeemError::Expired { at: NOW }.to_string(), "the ticket lapsed".to_owned()),
        (
            MembershipError::Role { has: Role::Lablet, needs: Role::Developer }.to_string(),
            "it is for the role of a lablet, needed is that of a developer".to_owned(),
        ),
    ] {
        assert_eq!(text, expected);
    }
}
