//! What the driver says to those who follow, and to everybody of who leads.

use iptl_artifacts::read_block;
use iptl_dag::model::fact::FactLink;
use iptl_dag::model::{self, ExecutionId, Fact, Signed};
use iptl_dag::{Block, Cid, PeerId};
use iptl_wire::offer;
use iptl_wire::session::ToLablet;
use iptl_wire::takeover::{Finished, MAX_FINISHED, MAX_NAMED, ToFollower};
use tokio::sync::mpsc;

use super::driver::{Driver, OrchestratorError};
use super::records::RunRecord;
use super::{Number, driver};
use crate::clock;

/// An orchestrator that follows from now on.
#[derive(Debug)]
pub(crate) struct Newcomer {
    /// Who.
    pub(super) peer: PeerId,
    /// Number of its stream.
    pub(super) number: Number,
    /// Last fact that it has of each execution that goes on, by its position.
    pub(super) heads: Vec<(ExecutionId, u64, Cid)>,
    /// Ends that it knows of.
    pub(super) over: Vec<Finished>,
    /// The way to it.
    pub(super) outbox: mpsc::Sender<ToFollower>,
}

/// Beats between two questions to those who do not follow.
const ASK_EVERY: u64 = 5;

impl Driver {
    /// Takes in an orchestrator that follows: says all that it lacks, before anything else.
    pub(super) async fn admit(&mut self, newcomer: Newcomer) -> Result<(), OrchestratorError> {
        let Newcomer { peer, number, heads, over, outbox } = newcomer;
        self.followers.admit(peer.clone(), number, outbox);
        let mut executions = self.logs.executions();
        executions.extend(heads.iter().map(|(execution, ..)| *execution));
        executions.sort();
        executions.dedup();
        for execution in executions {
            let blocks = tokio::task::block_in_place(|| self.logs.blocks(&execution))?;
            let head = heads.iter().find(|(id, ..)| *id == execution);
            // What it has is named again by its last fact; where the logs differ, all is said.
            let from = head.and_then(|(_, seq, cid)| {
                let seq = usize::try_from(*seq).ok()?;
                blocks.get(seq).is_some_and(|block| block.cid() == cid).then_some(seq)
            });
            for (n, block) in blocks.iter().enumerate().skip(from.unwrap_or(0)) {
                if Some(n) != from {
                    self.say_named(block, Some(&peer)).await?;
                }
                self.followers.say(&peer, ToFollower::Fact { block: block.data().to_vec() });
            }
        }
        for end in over.into_iter().take(MAX_FINISHED) {
            let Some(known) = self.registry.ended(&end.execution).map(RunRecord::end) else { continue };
            if known.outdoes(&end) {
                self.followers.say(&peer, ToFollower::Ended(known));
            } else if end.outdoes(&known) {
                self.await_end(end);
            }
        }
        self.beat();
        Ok(())
    }

    /// Says facts that were just written to all who follow.
    pub(super) async fn tell_followers(&mut self, facts: &[Block]) -> Result<(), OrchestratorError> {
        if self.followers.is_empty() {
            return Ok(());
        }
        for block in facts {
            self.say_named(block, None).await?;
            self.followers.say_all(&ToFollower::Fact { block: block.data().to_vec() });
        }
        Ok(())
    }

    /// Says the small blocks that a fact names, so that nothing need be fetched before it counts.
    async fn say_named(&mut self, fact: &Block, to: Option<&PeerId>) -> Result<(), OrchestratorError> {
        let Ok(signed) = model::from_bytes::<Signed<Fact>>(fact.data()) else { return Ok(()) };
        for cid in signed.body.kind.links().filter_map(small) {
            // One that is gone is of no use to anybody.
            let Some(block) = read_block(&*self.parts.store, &cid).await? else { continue };
            let message = ToFollower::Block { cid, data: block.data().to_vec() };
            match to {
                Some(peer) => self.followers.say(peer, message),
                None => self.followers.say_all(&message),
            }
        }
        Ok(())
    }

    /// Says to all who follow that this one leads and what it knows, and looks who is silent.
    pub(super) fn beat(&mut self) {
        let ticks = self.ticks;
        self.ticks += 1;
        self.followers.look(ticks.is_multiple_of(ASK_EVERY));
        if !self.followers.is_empty() {
            let known = self.known_lablets();
            self.followers.beat(Some(known.into_iter().take(MAX_NAMED).collect()));
        }
    }

    /// Publishes the claim to lead, as often as offers.
    pub(super) fn publish_claim(&self) {
        let (Some(claim), Some(net)) = (&self.post.claim, self.parts.links.net().cloned()) else { return };
        let topic = offer::topic(&claim.body.lab);
        let bytes = iptl_dag::encode(claim);
        tokio::spawn(async move {
            // Nobody listening is no failure: it is repeated, and said in every session.
            if let Err(error) = net.publish(&topic, bytes).await {
                tracing::debug!(%error, "a claim found nobody");
            }
        });
    }

    /// Tells everybody here of the lab's orchestrators, when something was learned of them.
    pub(super) fn name_orchestrators(&mut self) {
        self.logs.add_writers(self.parts.members.writers());
        let known = self.parts.members.orchestrators();
        if known.is_empty() {
            return;
        }
        self.followers.say_all(&ToFollower::Orchestrators(known.clone()));
        self.say_to_lablets(&ToLablet::Orchestrators(known));
    }

    fn known_lablets(&self) -> Vec<PeerId> {
        self.core.lablets(clock::now()).into_iter().map(|view| view.peer).collect()
    }

    fn say_to_lablets(&mut self, message: &ToLablet) {
        for lablet in self.sessions.keys().cloned().collect::<Vec<_>>() {
            driver::send(&mut self.sessions, &lablet, message.clone());
        }
    }
}

/// Returns the CID of a block that is said with the fact that links it; a follower fetches the others beside that.
fn small(link: FactLink) -> Option<Cid> {
    match link {
        FactLink::Execution(cid) | FactLink::Run(cid) | FactLink::Placement(cid) => Some(cid),
        FactLink::Receipts(_) | FactLink::Result(_) => None,
    }
}
