//! Offers and claims that are heard, by gossip or from an orchestrator on the same node.

use std::sync::Arc;

use iptl_dag::PeerId;
use iptl_dag::model::Signed;
use iptl_wire::offer::{self, MAX_OFFER_SIZE, Offer};
use iptl_wire::takeover::{Claim, MAX_CLAIM_SIZE, Orchestrators};
use tokio::sync::{broadcast, mpsc};

use super::Command;
use super::driver::Parts;
use crate::clock;
use crate::members::Members;

/// Passes offers on that are heard by gossip or from an orchestrator on the same node.
pub(super) async fn hear(parts: &Parts, commands: mpsc::Sender<Command>) {
    let mut local = parts.offers.subscribe();
    let own = commands.clone();
    tokio::spawn(async move {
        loop {
            match local.recv().await {
                Ok(offer) => {
                    if own.send(Command::Offer(offer)).await.is_err() {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    let Some(net) = parts.links.net() else { return };
    let (members, lab) = (parts.members.clone(), parts.membership.lab().clone());
    let validate = {
        let (members, lab) = (members.clone(), lab.clone());
        Arc::new(move |signer: &PeerId, data: &[u8]| judge(&members, &lab, signer, data))
    };
    match net.subscribe(&offer::topic(&lab), validate).await {
        Ok(mut heard) => {
            tokio::spawn(async move {
                while let Some(message) = heard.recv().await {
                    if let Ok(claim) = iptl_dag::decode::<Signed<Claim>>(&message.data) {
                        members.learn_orchestrators(Orchestrators { claim: Some(claim), seats: Vec::new() });
                    } else if let Ok(offer) = iptl_dag::decode::<Signed<Offer>>(&message.data)
                        && commands.send(Command::Offer(offer)).await.is_err()
                    {
                        return;
                    }
                }
            });
        }
        Err(error) => tracing::error!(%error, "cannot hear offers by gossip"),
    }
}

/// Decides whether gossip is passed on, cheapest checks first.
fn judge(members: &Members, lab: &PeerId, signer: &PeerId, data: &[u8]) -> iptl_net::GossipVerdict {
    use iptl_net::GossipVerdict::{Accept, Ignore, Reject};
    if data.len() > MAX_OFFER_SIZE.max(MAX_CLAIM_SIZE) {
        return Reject;
    }
    let now = clock::wall();
    if let Ok(claim) = iptl_dag::codec::decode_canonical::<Signed<Claim>>(data) {
        // Whoever claims proves by its certificate that it may; it need not be known yet.
        let holds = data.len() <= MAX_CLAIM_SIZE && claim.signer == *signer;
        return match holds && iptl_trust::check_claim(&claim, lab, now).is_ok() {
            true if members.is_revoked(signer) => Reject,
            true => Accept,
            false => Reject,
        };
    }
    if data.len() > MAX_OFFER_SIZE || !members.is_orchestrator(signer) {
        return Reject;
    }
    match iptl_dag::codec::decode_canonical::<Signed<Offer>>(data) {
        Ok(offer) if offer.body.lab != *lab => Reject,
        Ok(offer) if offer.body.expires < now => Ignore,
        Ok(offer) if iptl_trust::verify_by(&offer, signer).is_ok() => Accept,
        Ok(_) | Err(_) => Reject,
    }
}
