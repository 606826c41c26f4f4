//! Who fetches from whom: one round for each pair of kinds, and one of all.

use iptl_sdk::{Env, Peer};

/// One content, fetched by some kinds of nodes while the others look on.
pub struct Round {
    /// Its name, which its content follows from.
    pub name: String,
    /// Kinds whose seeds have the content from the start.
    pub from: Vec<String>,
    /// Kinds that fetch it.
    pub to: Vec<String>,
}

/// Returns the rounds in the order in which they come.
pub fn all(env: &Env) -> Vec<Round> {
    let kinds: Vec<String> = env.groups.iter().filter(|(_, size)| *size > 0).map(|(name, _)| name.clone()).collect();
    let mut rounds = Vec::new();
    for from in &kinds {
        for to in &kinds {
            rounds.push(Round { name: format!("{from}-to-{to}"), from: vec![from.clone()], to: vec![to.clone()] });
        }
    }
    if kinds.len() > 1 {
        rounds.push(Round { name: "all".to_owned(), from: kinds.clone(), to: kinds });
    }
    rounds
}

impl Round {
    /// Returns the name of a metric: of a pair, and where all exchange with all, of what this kind of nodes got of another.
    pub fn metric(&self, what: &str, from: Option<&str>, env: &Env) -> String {
        match (self.name.as_str(), from) {
            ("all", Some(from)) => format!("exchange.all.{what}.{from}-to-{}", env.group),
            ("all", None) => format!("exchange.all.{what}.to-{}", env.group),
            (name, _) => format!("exchange.{what}.{name}"),
        }
    }
}

/// Returns whom an instance connects to: the next of its group, so that what one of a group has reaches all of it, one of
/// each other group, and others at random until there are so many.
pub fn neighbours(env: &Env, connections: usize) -> Vec<Peer> {
    let mut others: Vec<Peer> = env.instances().filter(|peer| peer.ordinal != env.ordinal).collect();
    env.rng().shuffle(&mut others);
    let is_asked_for = |peer: &Peer| {
        let size = env.groups.iter().find(|(name, _)| *name == peer.group).map_or(1, |(_, size)| *size);
        let index = env.index + u32::from(peer.group == env.group);
        peer.index == index % size
    };
    // Those that are asked for come first, the others as they lie.
    others.sort_by_key(|peer| !is_asked_for(peer));
    let asked_for = others.iter().filter(|peer| is_asked_for(peer)).count();
    others.truncate(connections.max(asked_for));
    others
}
