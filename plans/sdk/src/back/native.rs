//! Natively there is no lab: everything fails with [`Error::Unsupported`], and no handle can exist.

use std::convert::Infallible;
use std::time::Duration;

use crate::{Error, Message, Result};

#[derive(Debug)]
pub(crate) struct Pending(Infallible);

impl Pending {
    pub(crate) fn signal(_state: &str) -> Result<Pending> {
        Err(Error::Unsupported)
    }

    pub(crate) fn barrier(_state: &str, _target: u64) -> Result<Pending> {
        Err(Error::Unsupported)
    }

    pub(crate) fn signal_and_wait(_state: &str, _target: u64) -> Result<Pending> {
        Err(Error::Unsupported)
    }

    pub(crate) fn publish(_topic: &str, _payload: &[u8]) -> Result<Pending> {
        Err(Error::Unsupported)
    }

    pub(crate) fn take(&mut self) -> Option<Result<u64>> {
        match self.0 {}
    }

    pub(crate) fn event(&self) -> Event {
        match self.0 {}
    }
}

#[derive(Debug)]
pub(crate) struct Subscription(Infallible);

impl Subscription {
    pub(crate) fn new(_topic: &str) -> Result<Subscription> {
        Err(Error::Unsupported)
    }

    pub(crate) fn next(&mut self) -> Option<Result<Message>> {
        match self.0 {}
    }

    pub(crate) fn event(&self) -> Event {
        match self.0 {}
    }
}

#[derive(Debug)]
pub struct Event(Infallible);

pub(crate) fn wait(events: Vec<Event>, timeout: Option<Duration>) -> Vec<usize> {
    if let Some(event) = events.first() {
        match event.0 {}
    }
    std::thread::sleep(timeout.unwrap_or_default());
    Vec::new()
}

pub(crate) fn event(_name: &str, _data: &str) -> Result<()> {
    Err(Error::Unsupported)
}

pub(crate) fn metric(_name: &str, _value: f64, _unit: &str) -> Result<()> {
    Err(Error::Unsupported)
}

pub(crate) fn artifact(_path: &str, _data: &[u8]) -> Result<()> {
    Err(Error::Unsupported)
}
