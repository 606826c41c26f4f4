//! The lab through the sync service of Testground, for programs compiled natively: in a container, or as a process.
//!
//! [`client`] is the connection with its thread that reads, [`websocket`] and [`json`] what it speaks, [`records`] the
//! files in which events, metrics and artifacts are left. All of it is written on std alone, so that a plan needs no
//! registry.

mod base64;
mod client;
mod json;
mod records;
mod websocket;

use std::time::Duration;

use client::{Ask, lab};
pub(crate) use records::{artifact, event, metric};

use crate::network::{Config, Filter, Shape};
use crate::{Error, Json, Message, Result};

/// Calls that are answered together: one, or a signal and the barrier behind it.
#[derive(Debug)]
pub(crate) struct Pending {
    calls: Vec<u64>,
    /// What the answer is where the lab answers without a number.
    target: Option<u64>,
    taken: bool,
}

impl Pending {
    fn new(calls: Vec<u64>, target: Option<u64>) -> Pending {
        Pending { calls, target, taken: false }
    }

    pub(crate) fn signal(state: &str) -> Result<Pending> {
        Ok(Pending::new(vec![lab()?.ask(Ask::Signal { state })?], None))
    }

    pub(crate) fn barrier(state: &str, target: u64) -> Result<Pending> {
        Ok(Pending::new(vec![lab()?.ask(Ask::Barrier { state, target })?], Some(target)))
    }

    pub(crate) fn signal_and_wait(state: &str, target: u64) -> Result<Pending> {
        let lab = lab()?;
        let signal = lab.ask(Ask::Signal { state })?;
        // Held at once, so that the signal is given up where the barrier cannot be asked for.
        let mut pending = Pending::new(vec![signal], None);
        pending.calls.push(lab.ask(Ask::Barrier { state, target })?);
        Ok(pending)
    }

    pub(crate) fn publish(topic: &str, payload: &[u8]) -> Result<Pending> {
        Ok(Pending::new(vec![lab()?.ask(Ask::Publish { topic, payload })?], None))
    }

    /// Takes the answer. Asking again after it was taken would wait for ever, so that is an error.
    pub(crate) fn take(&mut self) -> Option<Result<u64>> {
        if self.taken {
            return Some(Err(Error::Refused("the answer was taken before".to_owned())));
        }
        let answer = lab().ok()?.take_answers(&self.calls)?;
        self.taken = true;
        Some(answer.map(|number| self.target.unwrap_or(number)))
    }

    pub(crate) fn event(&self) -> Event {
        Event { calls: self.calls.clone() }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Ok(lab) = lab() {
            lab.forget(&self.calls);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Subscription {
    call: u64,
}

impl Subscription {
    pub(crate) fn new(topic: &str) -> Result<Subscription> {
        Ok(Subscription { call: lab()?.ask(Ask::Subscribe { topic })? })
    }

    pub(crate) fn next(&mut self) -> Option<Result<Message>> {
        lab().ok()?.take_message(self.call)
    }

    pub(crate) fn event(&self) -> Event {
        Event { calls: vec![self.call] }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Ok(lab) = lab() {
            lab.forget(&[self.call]);
        }
    }
}

/// Publishes what Testground's SDKs do. The lab answers once it is in force.
pub(crate) fn configure(config: &Config) -> Result<()> {
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let percent = |ppm: u32| f64::from(ppm) / 10_000.0;
    let field = |name: &str, value: Json| (name.to_owned(), value);
    let shape = |shape: &Shape| {
        let filter: u32 = match shape.filter {
            Filter::Accept => 0,
            Filter::Reject => 1,
            Filter::Drop => 2,
        };
        vec![
            field("filter", filter.into()),
            field("latency", nanos(shape.latency).into()),
            field("jitter", nanos(shape.jitter).into()),
            field("bandwidth", i64::try_from(shape.bandwidth_bps).unwrap_or(i64::MAX).into()),
            field("loss", percent(shape.loss_ppm).into()),
            field("corrupt", percent(shape.corrupt_ppm).into()),
            field("reorder", percent(shape.reorder_ppm).into()),
            field("duplicate", percent(shape.duplicate_ppm).into()),
        ]
    };
    let rule = |(subnet, rule): &(String, Shape)| {
        Json::Object([shape(rule), vec![field("subnet", Json::Text(subnet.clone()))]].concat())
    };
    let host = std::env::var("HOSTNAME").map_err(|_| Error::NotInLab { variable: "HOSTNAME".to_owned() })?;
    let wanted = Json::Object(vec![
        field("network", Json::Text("default".to_owned())),
        field("enable", config.enabled.into()),
        field("default", Json::Object(shape(&config.shape))),
        field("rules", Json::List(config.rules.iter().map(rule).collect())),
        field("routing_policy", Json::Text("deny_all".to_owned())),
        field("callback_state", Json::Text(format!("network:{host}"))),
    ]);
    let topic = format!("network:{host}");
    let asked = lab()?.ask(Ask::Publish { topic: &topic, payload: wanted.to_string().as_bytes() })?;
    crate::Pending::from(Pending::new(vec![asked], None)).wait().map(drop)
}

/// Something that is waited for: there once all its calls are answered, or one of them in vain.
#[derive(Debug)]
pub struct Event {
    calls: Vec<u64>,
}

/// Blocks until an event is ready or the time is over; returns the positions of those that are.
pub(crate) fn wait(events: Vec<Event>, timeout: Option<Duration>) -> Vec<usize> {
    match lab() {
        Ok(lab) if !events.is_empty() => lab.wait(&events, timeout),
        Ok(_) | Err(_) => {
            std::thread::sleep(timeout.unwrap_or_default());
            Vec::new()
        }
    }
}
