//! Peers that leave and come back, each with an empty memory and the same key.

use std::time::Instant;

use futures::FutureExt;
use futures_timer::Delay;
use iptl_sdk::{Env, Json, Pending, Result, Rng, event, metric};
use iptl_stack::churn::Churn;
use iptl_stack::lab;

use crate::ms;
use crate::node::{self, Node};

/// Leaves and comes back until those who stay have looked everything up.
pub async fn come_and_go(
    env: &Env,
    mut node: Node,
    churn: &Churn,
    of_node: node::Settings,
    rng: &mut Rng,
    looked_up: Pending,
) -> Result<Node> {
    let looked_up = lab::answer(looked_up).shared();
    loop {
        if node.serve_for(looked_up.clone(), churn.stay(rng)).await.transpose()?.is_some() {
            return Ok(node);
        }
        drop(node);
        event("left", [("for_ms", Json::from(churn.away.as_millis() as u64))])?;
        Delay::new(churn.away).await;
        let began = Instant::now();
        node = Node::start(env, of_node, false)?;
        node.meet_boots().await?;
        node.join().await?;
        metric("dht.rejoin", ms(began), "ms")?;
    }
}
