//! Who has joined and provided, and who joins when.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_timer::Delay;
use iptl_sdk::{Env, Error, Result, Rng, Subscription, pending};
use iptl_stack::lab;

use crate::node::Node;
use crate::{Settings, boots};

/// The topic on which each peer says, once each, that it has joined and that it has provided.
const TOPIC: &str = "peers";

/// What peers have said.
pub struct Joined {
    topic: Subscription,
    joined: usize,
    /// Others that can be dialled.
    pub dialable: Vec<u32>,
    /// Those that have provided all that they will.
    pub providers: Vec<u32>,
}

/// What one peer says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Report {
    Joined { ordinal: u32, dialable: bool },
    Provided { ordinal: u32 },
}

impl Joined {
    /// Begins to listen.
    pub fn of() -> Result<Joined> {
        Ok(Joined { topic: iptl_sdk::subscribe(TOPIC)?, joined: 0, dialable: Vec::new(), providers: Vec::new() })
    }

    /// Waits until it is this peer's turn to join: all have one, in an order that the seed gives, and each waits until only
    /// so many others are at it as the run says.
    ///
    /// Who joins is dialled by the boots and asks everybody. Where more do at once than the machine can carry, all take
    /// longer than any is waited for, and nobody comes in.
    pub async fn await_turn(&mut self, env: &Env, settings: &Settings, node: &mut Node) -> Result<()> {
        let turn = turn(env);
        node.serve(Delay::new(Duration::from_secs_f64(f64::from(turn) / settings.joins))).await;
        let others = (turn + 1).saturating_sub(settings.joining) as usize;
        self.hear(env, node, |joined| joined.joined >= others).await
    }

    /// Waits for all to join and to provide.
    pub async fn await_all(&mut self, env: &Env, node: &mut Node) -> Result<()> {
        let all = (env.total - boots(env)) as usize;
        self.hear(env, node, |joined| joined.joined == all && joined.providers.len() == all).await
    }

    /// Takes what has been said meanwhile.
    pub fn look(&mut self, env: &Env) -> Result<()> {
        while let Some(message) = self.topic.try_next() {
            self.take(env, &message?.payload)?;
        }
        Ok(())
    }

    /// Forgets of those who can be dialled whoever will leave.
    pub fn without(&mut self, leavers: &BTreeSet<u32>) {
        self.dialable.retain(|ordinal| !leavers.contains(ordinal));
    }

    async fn hear(&mut self, env: &Env, node: &mut Node, enough: impl Fn(&Joined) -> bool) -> Result<()> {
        while !enough(self) {
            let payload = node.serve(lab::next(&mut self.topic)).await?.payload;
            self.take(env, &payload)?;
        }
        Ok(())
    }

    fn take(&mut self, env: &Env, payload: &[u8]) -> Result<()> {
        match Report::read(payload).ok_or_else(|| Error::Refused("a report that is none".to_owned()))? {
            Report::Joined { ordinal, dialable } => {
                self.joined += 1;
                self.dialable.extend((dialable && ordinal != env.ordinal).then_some(ordinal));
            }
            Report::Provided { ordinal } => self.providers.push(ordinal),
        }
        Ok(())
    }
}

/// Says something of this peer.
pub async fn say(report: Report) -> Result<()> {
    lab::answer(pending::publish(TOPIC, report.write().as_bytes())?).await.map(drop)
}

/// Returns how many peers have their turn before this one.
fn turn(env: &Env) -> u32 {
    let mut order: Vec<u32> = (boots(env)..env.total).collect();
    Rng::new(env.seed).shuffle(&mut order);
    order.iter().take_while(|ordinal| **ordinal != env.ordinal).count() as u32
}

impl Report {
    fn write(self) -> String {
        match self {
            Report::Joined { ordinal, dialable } => format!("joined {ordinal} {dialable}"),
            Report::Provided { ordinal } => format!("provided {ordinal}"),
        }
    }

    fn read(payload: &[u8]) -> Option<Report> {
        let words: Vec<&str> = std::str::from_utf8(payload).ok()?.split(' ').collect();
        match words.as_slice() {
            ["joined", ordinal, dialable] => {
                Some(Report::Joined { ordinal: ordinal.parse().ok()?, dialable: dialable.parse().ok()? })
            }
            ["provided", ordinal] => Some(Report::Provided { ordinal: ordinal.parse().ok()? }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_they_were_written() {
        for report in [Report::Joined { ordinal: 7, dialable: true }, Report::Provided { ordinal: 8 }] {
            assert_eq!(Report::read(report.write().as_bytes()), Some(report));
        }
        assert_eq!(Report::read(b"joined 7"), None);
    }
}
