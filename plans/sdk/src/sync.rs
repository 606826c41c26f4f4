//! Signals, barriers and topics: how instances wait for each other.

use std::time::Duration;

use crate::{Result, back};

/// Signals a state; returns the number of signals that the state has had, this one included.
///
/// # Errors
///
/// Fails where the lab refuses, with its reason.
pub fn signal(state: &str) -> Result<u64> {
    pending::signal(state)?.wait()
}

/// Waits until a state has had `target` signals.
///
/// # Errors
///
/// Fails where the barrier cannot be reached any more, with the lab's reason.
pub fn barrier(state: &str, target: u64) -> Result<()> {
    pending::barrier(state, target)?.wait().map(drop)
}

/// Signals a state and waits until it has had `target` signals; returns the number of the signal.
///
/// # Errors
///
/// Fails where the lab refuses or the barrier cannot be reached any more.
pub fn signal_and_wait(state: &str, target: u64) -> Result<u64> {
    pending::signal_and_wait(state, target)?.wait()
}

/// Publishes on a topic; returns the position in the topic, from one.
///
/// # Errors
///
/// Fails where the lab refuses, with its reason.
pub fn publish(topic: &str, payload: &[u8]) -> Result<u64> {
    pending::publish(topic, payload)?.wait()
}

/// Subscribes to a topic: all its messages, from the first, in the one order that every instance sees.
///
/// # Errors
///
/// Fails where there is no lab.
pub fn subscribe(topic: &str) -> Result<Subscription> {
    Ok(Subscription(back::Subscription::new(topic)?))
}

/// The same calls, as handles that can be waited for together.
pub mod pending {
    use super::{Pending, back};
    use crate::Result;

    /// Signals a state; answers with the number of signals that the state has had, this one included.
    ///
    /// # Errors
    ///
    /// Fails where there is no lab.
    pub fn signal(state: &str) -> Result<Pending> {
        Ok(Pending(back::Pending::signal(state)?))
    }

    /// Waits until a state has had `target` signals; answers with the target.
    ///
    /// # Errors
    ///
    /// Fails where there is no lab.
    pub fn barrier(state: &str, target: u64) -> Result<Pending> {
        Ok(Pending(back::Pending::barrier(state, target)?))
    }

    /// Signals a state and waits until it has had `target` signals; answers with the number of the signal.
    ///
    /// # Errors
    ///
    /// Fails where there is no lab.
    pub fn signal_and_wait(state: &str, target: u64) -> Result<Pending> {
        Ok(Pending(back::Pending::signal_and_wait(state, target)?))
    }

    /// Publishes on a topic; answers with the position in the topic, from one.
    ///
    /// # Errors
    ///
    /// Fails where there is no lab.
    pub fn publish(topic: &str, payload: &[u8]) -> Result<Pending> {
        Ok(Pending(back::Pending::publish(topic, payload)?))
    }
}

/// A call that the lab has not answered yet. Dropping it gives the answer up, not the call.
#[derive(Debug)]
pub struct Pending(back::Pending);

impl From<back::Pending> for Pending {
    fn from(pending: back::Pending) -> Pending {
        Pending(pending)
    }
}

impl Pending {
    /// Returns the answer, where it is there and was not taken before.
    pub fn try_take(&mut self) -> Option<Result<u64>> {
        self.0.take()
    }

    /// Blocks until the answer is there.
    ///
    /// # Errors
    ///
    /// Fails as the call does, and where the answer was taken before.
    pub fn wait(mut self) -> Result<u64> {
        loop {
            if let Some(answer) = self.try_take() {
                return answer;
            }
            wait_any(&[&self]);
        }
    }
}

/// A message of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Position in the topic, from one.
    pub position: u64,
    /// What was published.
    pub payload: Vec<u8>,
}

/// The messages of a topic.
#[derive(Debug)]
pub struct Subscription(back::Subscription);

impl Subscription {
    /// Returns the next message, where one is there.
    pub fn try_next(&mut self) -> Option<Result<Message>> {
        self.0.next()
    }

    /// Blocks until the next message is there.
    ///
    /// # Errors
    ///
    /// Fails where there will be no more, with the lab's reason.
    #[expect(clippy::should_implement_trait, reason = "it blocks, and it may fail")]
    pub fn next(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.try_next() {
                return message;
            }
            wait_any(&[self]);
        }
    }
}

/// What [`wait_any`] can wait for: a [`Pending`] or a [`Subscription`].
pub trait Source: sealed::Source {}

impl Source for Pending {}
impl Source for Subscription {}

mod sealed {
    pub trait Source {
        fn event(&self) -> super::back::Event;
    }

    impl Source for super::Pending {
        fn event(&self) -> super::back::Event {
            self.0.event()
        }
    }

    impl Source for super::Subscription {
        fn event(&self) -> super::back::Event {
            self.0.event()
        }
    }
}

/// Blocks until one of the sources has something to take; returns the positions of those that have.
pub fn wait_any(sources: &[&dyn Source]) -> Vec<usize> {
    wait(sources, None)
}

/// Blocks as [`wait_any`] does, but not longer than `timeout`; returns no position where nothing came.
pub fn wait_any_for(sources: &[&dyn Source], timeout: Duration) -> Vec<usize> {
    wait(sources, Some(timeout))
}

fn wait(sources: &[&dyn Source], timeout: Option<Duration>) -> Vec<usize> {
    if sources.is_empty() && timeout.is_none() {
        return Vec::new();
    }
    let events = sources.iter().map(|source| source.event()).collect();
    back::wait(events, timeout).into_iter().filter(|at| *at < sources.len()).collect()
}
