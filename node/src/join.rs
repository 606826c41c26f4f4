//! Joining a lab: the asker's side. The lab's side is [`admission`](crate::admission).

use std::time::Duration;

use iptl_dag::PeerId;
use iptl_trust::{Ticket, TicketError};
use iptl_wire::control::{Failure, FailureKind};
use iptl_wire::lab::{JOIN_PROTOCOL, JoinAnswer, JoinRequest, MAX_JOIN_SIZE, Role};
use iptl_wire::takeover::Orchestrators;

use crate::clock;
use crate::framed;
use crate::home::Membership;
use crate::links::{Links, Stream};

/// Longest wait for a peer that is looked for by mDNS and through known nodes.
const FIND_TIMEOUT: Duration = Duration::from_secs(20);

/// Whom to join.
#[derive(Debug)]
pub enum Target {
    /// By ticket, at once.
    Ticket(Ticket),
    /// By peer ID, with addresses where they are known; waits for approval.
    Peer {
        /// The orchestrator.
        peer: PeerId,
        /// Where to dial it.
        addrs: Vec<String>,
    },
}

impl Target {
    /// Reads a ticket, a peer ID, or a multiaddr that ends in one.
    pub fn parse(text: &str) -> Result<Target, Failure> {
        let text = text.trim();
        if text.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("lab")) {
            let ticket = text.parse::<Ticket>().map_err(|e| {
                let (code, help) = match e {
                    TicketError::Newer { .. } => ("ticket.newer", "update this tool"),
                    TicketError::WrongPrefix | TicketError::Garbled | TicketError::TooLong { .. } => {
                        ("ticket.garbled", "ask the lab's owner for a new ticket (`iptl invite`) and paste all of it")
                    }
                };
                failure(FailureKind::Denied, code, e.to_string(), help)
            })?;
            if ticket.expires < clock::wall() {
                let help = "ask the lab's owner for a new ticket: `iptl invite`";
                return Err(failure(FailureKind::Denied, "ticket.expired", "the ticket has expired".into(), help));
            }
            return Ok(Target::Ticket(ticket));
        }
        let (addrs, id) = match text.rsplit_once("/p2p/") {
            Some((_, id)) => (vec![text.to_owned()], id),
            None => (Vec::new(), text),
        };
        // Any word of base58 parses as a peer ID; only those with a key of ours can be answered for.
        let peer = id.parse::<PeerId>().ok().filter(|peer| peer.ed25519().is_some()).ok_or_else(|| {
            let help = "give a ticket (lab1…), a peer ID (12D3Koo…) or an address that ends in /p2p/<peer ID>";
            failure(FailureKind::Usage, "join.target", format!("{text:?} names no lab"), help)
        })?;
        Ok(Target::Peer { peer, addrs })
    }
}

/// Asks to be let in and waits for the answer, with the orchestrators that were named; `note` tells what it waits for.
///
/// Cancel safe: the lab keeps the question, and asking again goes on with it.
pub async fn join(
    links: &Links,
    target: Target,
    name: &str,
    role: Role,
    mut note: impl FnMut(String),
) -> Result<(Membership, Orchestrators), Failure> {
    let (peer, addrs, lab, request) = match target {
        Target::Ticket(ticket) => {
            let request = JoinRequest::Ticket {
                lab: ticket.lab.clone(),
                secret: ticket.secret.as_bytes().to_vec(),
                name: name.to_owned(),
            };
            (ticket.orchestrator, ticket.addrs, Some(ticket.lab), request)
        }
        Target::Peer { peer, addrs } => (peer, addrs, None, JoinRequest::Ask { role, name: name.to_owned() }),
    };
    let mut stream = find(links, &peer, &addrs, &mut note).await?;
    let broke = |e: std::io::Error| {
        let help = "see whether the lab is online, and try again; a ticket is used up only by an answer";
        failure(FailureKind::LabUnable, "join.broken", format!("the lab broke off: {e}"), help)
    };
    framed::write(&mut stream, &request).await.map_err(broke)?;
    loop {
        match framed::expect::<JoinAnswer>(&mut stream, MAX_JOIN_SIZE).await.map_err(broke)? {
            JoinAnswer::Waiting { certificate } => {
                check_lab(links, &certificate, &peer, lab.as_ref())?;
                note(format!(
                    "waits for approval by the owner of lab {:?}: `iptl lab approve {}`",
                    certificate.body.name,
                    links.peer()
                ));
            }
            JoinAnswer::Joined { certificate, token, addrs, own, orchestrators } => {
                check_lab(links, &certificate, &peer, lab.as_ref())?;
                iptl_trust::check_token(&token, &certificate.body.lab, links.peer(), clock::wall()).map_err(|e| {
                    let help = "the lab answered with a membership that does not hold; tell its owner";
                    failure(FailureKind::Denied, "join.bad-token", e.to_string(), help)
                })?;
                if let Some(own) = &own {
                    check_lab(links, own, links.peer(), Some(&certificate.body.lab))?;
                }
                return Ok((Membership { certificate, token, addrs, own }, orchestrators));
            }
            JoinAnswer::Refused { code, reason } => {
                let help = match code.as_str() {
                    "ticket-used" => "each ticket works once: ask the lab's owner for a new one (`iptl invite`)",
                    "ticket-expired" => "ask the lab's owner for a new ticket: `iptl invite`",
                    "ticket-other-lab" => "the ticket is for another lab than the one at this address",
                    _ => "ask the lab's owner",
                };
                return Err(failure(FailureKind::Denied, &code.replacen('-', ".", 1), reason, help));
            }
        }
    }
}

fn check_lab(
    links: &Links,
    certificate: &iptl_dag::model::Signed<iptl_wire::lab::Certificate>,
    peer: &PeerId,
    lab: Option<&PeerId>,
) -> Result<(), Failure> {
    let help = "whoever answers there is not the lab that you were invited to";
    let denied = |message: String| failure(FailureKind::Denied, "join.not-the-lab", message, help);
    iptl_trust::check_certificate(certificate, &certificate.body.lab, peer, clock::wall())
        .map_err(|e| denied(e.to_string()))?;
    match lab {
        Some(lab) if *lab != certificate.body.lab => {
            Err(denied(format!("{} belongs to another lab than {}", links.peer().short(), lab.short())))
        }
        _ => Ok(()),
    }
}

/// Opens a stream to a peer, looking for it for some time.
async fn find(
    links: &Links,
    peer: &PeerId,
    addrs: &[String],
    note: &mut impl FnMut(String),
) -> Result<Stream, Failure> {
    let until = tokio::time::Instant::now() + FIND_TIMEOUT;
    loop {
        match links.open(peer, addrs, JOIN_PROTOCOL).await {
            Ok(stream) => return Ok(stream),
            Err(error) if tokio::time::Instant::now() >= until => {
                let help = "see whether the lab's node runs, and give an address: /ip4/…/tcp/…/p2p/<peer ID>";
                return Err(failure(FailureKind::NotFound, "join.unreachable", error.to_string(), help));
            }
            Err(error) => {
                note(format!("looks for {}: {error}", peer.short()));
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

fn failure(kind: FailureKind, code: &str, message: String, help: &str) -> Failure {
    Failure { kind, code: code.to_owned(), message, help: help.to_owned() }
}
