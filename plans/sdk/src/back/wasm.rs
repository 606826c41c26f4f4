//! The lab through its WIT world.

use std::time::Duration;

use super::bindings::iptl::lab::{artifacts, network, records, sync};
use super::bindings::wasi::clocks::monotonic_clock;
use super::bindings::wasi::io::poll;
use crate::network::{Config, Filter, Shape};
use crate::{Error, Message, Result};

pub type Event = poll::Pollable;

#[derive(Debug)]
pub(crate) struct Pending {
    call: sync::Pending,
    taken: bool,
}

impl Pending {
    fn new(call: sync::Pending) -> Pending {
        Pending { call, taken: false }
    }

    pub(crate) fn signal(state: &str) -> Result<Pending> {
        Ok(Pending::new(sync::signal(state)))
    }

    pub(crate) fn barrier(state: &str, target: u64) -> Result<Pending> {
        Ok(Pending::new(sync::barrier(state, target)))
    }

    pub(crate) fn signal_and_wait(state: &str, target: u64) -> Result<Pending> {
        Ok(Pending::new(sync::signal_and_wait(state, target)))
    }

    pub(crate) fn publish(topic: &str, payload: &[u8]) -> Result<Pending> {
        Ok(Pending::new(sync::publish(topic, payload)))
    }

    /// Takes the answer. Asking again after it was taken would wait for ever, so that is an error.
    pub(crate) fn take(&mut self) -> Option<Result<u64>> {
        if self.taken {
            return Some(Err(Error::Refused("the answer was taken before".to_owned())));
        }
        let answer = self.call.take()?;
        self.taken = true;
        Some(answer.map_err(Error::Refused))
    }

    pub(crate) fn event(&self) -> Event {
        self.call.subscribe()
    }
}

#[derive(Debug)]
pub(crate) struct Subscription {
    topic: sync::Subscription,
    ended: Option<Error>,
}

impl Subscription {
    pub(crate) fn new(topic: &str) -> Result<Subscription> {
        Ok(Subscription { topic: sync::subscribe(topic), ended: None })
    }

    pub(crate) fn next(&mut self) -> Option<Result<Message>> {
        if let Some(error) = &self.ended {
            return Some(Err(error.clone()));
        }
        match self.topic.next()? {
            Ok(sync::Message { position, payload }) => Some(Ok(Message { position, payload })),
            Err(reason) => {
                let error = Error::Refused(reason);
                self.ended = Some(error.clone());
                Some(Err(error))
            }
        }
    }

    pub(crate) fn event(&self) -> Event {
        self.topic.subscribe()
    }
}

/// Blocks until an event is ready or the time is over; the position after the last event is the time's.
pub(crate) fn wait(mut events: Vec<Event>, timeout: Option<Duration>) -> Vec<usize> {
    if let Some(timeout) = timeout {
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        events.push(monotonic_clock::subscribe_duration(nanos));
    }
    let borrowed: Vec<&Event> = events.iter().collect();
    poll::poll(&borrowed).into_iter().map(|at| at as usize).collect()
}

pub(crate) fn event(name: &str, data: &str) -> Result<()> {
    records::event(name, data).map_err(Error::Refused)
}

pub(crate) fn metric(name: &str, value: f64, unit: &str) -> Result<()> {
    records::metric(name, value, unit).map_err(Error::Refused)
}

pub(crate) fn configure(config: &Config) -> Result<()> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let shape = |shape: &Shape| network::Shape {
        filter: match shape.filter {
            Filter::Accept => network::Filter::Accept,
            Filter::Reject => network::Filter::Reject,
            Filter::Drop => network::Filter::Drop,
        },
        latency: nanos(shape.latency),
        jitter: nanos(shape.jitter),
        bandwidth: shape.bandwidth_bps,
        loss: shape.loss_ppm,
        corrupt: shape.corrupt_ppm,
        reorder: shape.reorder_ppm,
        duplicate: shape.duplicate_ppm,
    };
    let rule = |(subnet, rule): &(String, Shape)| network::Rule { subnet: subnet.clone(), shape: shape(rule) };
    let rules: Vec<network::Rule> = config.rules.iter().map(rule).collect();
    network::configure(config.enabled, shape(&config.shape), &rules).map_err(Error::Refused)
}

pub(crate) fn artifact(path: &str, data: &[u8]) -> Result<()> {
    artifacts::append(path, data).map_err(Error::Refused)
}
