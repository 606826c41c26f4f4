//! The keys that clients put into requests, and the names of states and topics behind them.
//!
//! Every SDK writes run, plan and case in front of a name. The lab has one namespace for each run, in which other
//! runners' groups take part too, so a key of this run becomes the bare name and any other is refused.

use std::fmt;

/// Topic on which programs publish their own events. The prefix keeps it apart from what plans call their topics.
pub const RUN_EVENTS: &str = "testground:run_events";

/// State in which the network of every instance is ready. It is before the first program of a run starts.
pub const NETWORK_INITIALIZED: &str = "network-initialized";

/// Longest name of a state or a topic in bytes; the lab takes no longer ones from anybody.
pub const MAX_NAME: usize = 256;

/// Which run an instance belongs to, and what it is called there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    prefix: String,
    hostname: String,
}

/// A topic of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic<'a> {
    /// One that the plan named.
    Named(&'a str),
    /// The events of the run, [`RUN_EVENTS`].
    RunEvents,
}

/// Why a key is none of this run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is of another run, or of none.
    #[error("the key {key:?} is not of this run, whose keys begin with {prefix:?}")]
    OtherRun {
        /// The key, shortened.
        key: String,
        /// How keys of this run begin.
        prefix: String,
    },
    /// It names nothing that this request takes.
    #[error("the key {key:?} names no {what}")]
    NoName {
        /// The key, shortened.
        key: String,
        /// `state`, `topic`.
        what: &'static str,
    },
    /// The name in it is too long.
    #[error("a {what} whose name has {size} bytes; {MAX_NAME} are allowed")]
    TooLong {
        /// `state`, `topic`.
        what: &'static str,
        /// Its length in bytes.
        size: usize,
    },
}

impl Identity {
    /// Names an instance by what its environment says: `TEST_RUN`, `TEST_PLAN`, `TEST_CASE` and `HOSTNAME`.
    pub fn new(run: &str, plan: &str, case: &str, hostname: &str) -> Identity {
        let prefix = format!("run:{run}:plan:{}:case:{}:", without_slashes(plan), without_slashes(case));
        Identity { prefix, hostname: hostname.to_owned() }
    }

    /// Returns the state that a key names.
    pub fn state<'a>(&self, key: &'a str) -> Result<&'a str, KeyError> {
        name(self.strip(key)?.strip_prefix("states:"), key, "state")
    }

    /// Returns the topic that a key names.
    pub fn topic<'a>(&self, key: &'a str) -> Result<Topic<'a>, KeyError> {
        match self.strip(key)? {
            "run_events" => Ok(Topic::RunEvents),
            rest => name(rest.strip_prefix("topics:"), key, "topic").map(Topic::Named),
        }
    }

    /// Returns whether a topic is the one on which this instance asks for a network.
    pub fn is_network(&self, topic: &str) -> bool {
        topic.strip_prefix("network:") == Some(&self.hostname)
    }

    fn strip<'a>(&self, key: &'a str) -> Result<&'a str, KeyError> {
        let other = || KeyError::OtherRun { key: short(key), prefix: self.prefix.clone() };
        key.strip_prefix(self.prefix.as_str()).ok_or_else(other)
    }
}

impl Topic<'_> {
    /// Returns its name in the lab.
    pub fn name(&self) -> &str {
        match self {
            Topic::Named(name) => name,
            Topic::RunEvents => RUN_EVENTS,
        }
    }
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Plans and cases have no slashes in keys, nor in the variables that the keys are made of.
pub(crate) fn without_slashes(name: &str) -> String {
    name.replace('/', "-")
}

fn name<'a>(found: Option<&'a str>, key: &str, what: &'static str) -> Result<&'a str, KeyError> {
    match found {
        None | Some("") => Err(KeyError::NoName { key: short(key), what }),
        Some(name) if name.len() > MAX_NAME => Err(KeyError::TooLong { what, size: name.len() }),
        Some(name) => Ok(name),
    }
}

fn short(key: &str) -> String {
    key.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity::new("r1", "bench/mark", "barrier", "node-3")
    }

    #[test]
    fn keys_of_the_run_become_bare_names() {
        let identity = identity();
        let key = |rest: &str| format!("run:r1:plan:bench-mark:case:barrier:{rest}");
        assert_eq!(identity.state(&key("states:ready")), Ok("ready"));
        assert_eq!(identity.state(&key("states:a:b")), Ok("a:b"));
        assert_eq!(identity.topic(&key("topics:times")), Ok(Topic::Named("times")));
        assert_eq!(identity.topic(&key("topics:run_events")), Ok(Topic::Named("run_events")));
        assert_eq!(identity.topic(&key("run_events")), Ok(Topic::RunEvents));
        assert!(identity.is_network("network:node-3"));
        assert!(!identity.is_network("network:node-4"));
    }

    #[test]
    fn keys_of_other_runs_are_refused() {
        let identity = identity();
        for key in ["", "ready", "run:r2:plan:bench-mark:case:barrier:states:ready", "run:r1:plan:x:case:y:states:z"] {
            assert!(matches!(identity.state(key), Err(KeyError::OtherRun { .. })), "{key}");
            assert!(matches!(identity.topic(key), Err(KeyError::OtherRun { .. })), "{key}");
        }
    }

    #[test]
    fn keys_without_a_name_and_endless_ones_are_refused() {
        let identity = identity();
        let key = |rest: &str| format!("run:r1:plan:bench-mark:case:barrier:{rest}");
        for rest in ["states:", "topics:x", "", "run_events"] {
            assert!(matches!(identity.state(&key(rest)), Err(KeyError::NoName { what: "state", .. })), "{rest}");
        }
        for rest in ["topics:", "states:x", ""] {
            assert!(matches!(identity.topic(&key(rest)), Err(KeyError::NoName { what: "topic", .. })), "{rest}");
        }
        let long = key(&format!("states:{}", "x".repeat(300)));
        assert_eq!(identity.state(&long), Err(KeyError::TooLong { what: "state", size: 300 }));
        let endless = KeyError::OtherRun { key: short(&"é".repeat(100_000)), prefix: String::new() };
        assert!(endless.to_string().len() < 400);
    }
}
