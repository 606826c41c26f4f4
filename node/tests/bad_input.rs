//! Peers that lie, drip, flood, or claim more than there is: refused within bounds, named in the log, and the honest are
//! served meanwhile. [`answers`] is about what a fetcher is sent, [`claims`] about what it is sent for, [`requests`] about
//! what a provider is asked.

mod answers;
mod claims;
mod requests;

use iptl_dag::{Block, Cid, Codec};

use crate::lab::{Dag, Node, bystander};

/// Long enough for everything that succeeds.
const PATIENT_MS: u64 = 60_000;

/// A block that nobody has.
fn unheard_of(number: usize) -> Cid {
    *Block::new(Codec::Raw, format!("unheard of {number}")).cid()
}

/// Asserts that who asks a node for what it has gets it, whatever else is asked of the node.
async fn is_served_meanwhile(keeper: &Node) {
    let dag = Dag::new(3, 40, 10_000);
    keeper.put(&dag.blocks()).await;
    let report = bystander().await.fetch(dag.cid(), vec![keeper.addr().await], PATIENT_MS).await.0;
    assert_eq!(report.unwrap().bytes_fetched, dag.bytes());
}
