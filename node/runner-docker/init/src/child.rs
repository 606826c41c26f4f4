//! The workload's process, and the looks of its health check.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::protocol::{End, HealthOrder, Order};
use crate::sys;

/// Bytes of what a look says that are kept.
const MAX_REASON: usize = 200;

/// The workload, running.
pub(crate) struct Running {
    pid: i32,
    health: Option<Health>,
}

/// What the health check says.
pub(crate) enum Look {
    Well,
    Unwell(String),
}

struct Health {
    order: HealthOrder,
    /// Failures before this do not count.
    grace_until: Instant,
    next: Instant,
    failures: u32,
    reason: String,
    looking: Option<Looking>,
}

struct Looking {
    pid: i32,
    deadline: Instant,
    said: OwnedFd,
    text: Vec<u8>,
}

impl Running {
    /// Starts the program of the order; fails with the error of the system.
    pub(crate) fn start(order: &Order, out: &OwnedFd, err: &OwnedFd, now: Instant) -> Result<Running, i32> {
        let pid = sys::spawn(&order.argv, out.as_fd(), err.as_fd())?;
        let health = order.health.clone().map(|order| Health {
            grace_until: now + Duration::from_millis(order.start_ms),
            next: now + Duration::from_millis(order.interval_ms.max(1)),
            order,
            failures: 0,
            reason: String::new(),
            looking: None,
        });
        Ok(Running { pid, health })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn signal(&self, signal: i32) {
        sys::signal(self.pid, signal);
    }

    /// When the health check next needs something.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.health.as_ref().map(|health| health.looking.as_ref().map_or(health.next, |looking| looking.deadline))
    }

    /// What a look writes, where one is under way.
    pub(crate) fn look_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.health.as_ref()?.looking.as_ref()?.said.as_fd())
    }

    /// Does what is due of the health check.
    pub(crate) fn look(&mut self, now: Instant) -> Look {
        let Some(health) = &mut self.health else { return Look::Well };
        match &mut health.looking {
            Some(looking) if now >= looking.deadline => {
                sys::signal(looking.pid, libc::SIGKILL);
                health.looking = None;
                health.failed(now, "it did not answer in time".to_owned());
            }
            Some(looking) => looking.hear(),
            None if now >= health.next => health.begin(now),
            None => {}
        }
        if health.failures > 0 && health.failures >= health.order.retries.max(1) {
            Look::Unwell(health.reason.clone())
        } else {
            Look::Well
        }
    }

    /// Begins anew with looking, after a time in which nothing could answer.
    pub(crate) fn rest(&mut self, now: Instant) {
        let Some(health) = &mut self.health else { return };
        if let Some(looking) = health.looking.take() {
            sys::signal(looking.pid, libc::SIGKILL);
        }
        health.next = now + Duration::from_millis(health.order.interval_ms.max(1));
    }

    /// Takes note that a process ended which may have been a look.
    pub(crate) fn look_ended(&mut self, pid: i32, end: End) {
        let Some(health) = &mut self.health else { return };
        let Some(mut looking) = health.looking.take_if(|looking| looking.pid == pid) else { return };
        looking.hear();
        let now = Instant::now();
        match end {
            End::Exited(0) => {
                health.failures = 0;
                health.next = now + Duration::from_millis(health.order.interval_ms.max(1));
            }
            End::Exited(code) => health.failed(now, looking.said(&format!("it ended with {code}"))),
            End::Signalled(signal) => health.failed(now, looking.said(&format!("it ended by signal {signal}"))),
        }
    }
}

impl Health {
    fn begin(&mut self, now: Instant) {
        let started = sys::pipe().map_err(|e| e.raw_os_error().unwrap_or(0)).and_then(|(said, writer)| {
            let pid = sys::spawn(&self.order.argv, writer.as_fd(), writer.as_fd())?;
            Ok(Looking {
                pid,
                deadline: now + Duration::from_millis(self.order.timeout_ms.max(1)),
                said,
                text: Vec::new(),
            })
        });
        match started {
            Ok(looking) => self.looking = Some(looking),
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.failed(now, format!("it cannot be started: {error}"));
            }
        }
    }

    fn failed(&mut self, now: Instant, reason: String) {
        self.next = now + Duration::from_millis(self.order.interval_ms.max(1));
        if now >= self.grace_until {
            self.failures += 1;
            self.reason = reason;
        }
    }
}

impl Looking {
    /// Takes what the look has written so far; more than is kept is thrown away.
    fn hear(&mut self) {
        let mut bytes = [0; 1024];
        while let Some(size) = sys::read_if_ready(self.said.as_raw_fd(), &mut bytes) {
            let room = MAX_REASON.saturating_sub(self.text.len()).min(size);
            self.text.extend_from_slice(&bytes[..room]);
            if size == 0 {
                break;
            }
        }
    }

    fn said(&self, otherwise: &str) -> String {
        let text = String::from_utf8_lossy(&self.text);
        match text.lines().map(str::trim).find(|line| !line.is_empty()) {
            Some(line) => line.to_owned(),
            None => otherwise.to_owned(),
        }
    }
}
