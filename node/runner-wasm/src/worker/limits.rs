//! Limits of one instance: memory by the engine's limiter, CPU and wall time by metering every poll of its future.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use wasmtime::{ResourceLimiter, Result};

use super::samples::Gauges;

/// Elements of one table: the function table of a large program (libp2p has some 6,000).
pub(crate) const MAX_TABLE_ELEMENTS: usize = 20_000;

/// Memory that all guests of a cell have together.
#[derive(Debug)]
pub(crate) struct MemoryPool {
    used: AtomicU64,
    limit: u64,
}

impl MemoryPool {
    pub(crate) fn new(limit: u64) -> MemoryPool {
        MemoryPool { used: AtomicU64::new(0), limit }
    }

    fn take(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= self.limit)
            })
            .is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Limits the memory of one instance and says whether it was refused some.
#[derive(Debug)]
pub(crate) struct MemoryLimiter {
    pool: Arc<MemoryPool>,
    limit: u64,
    used: u64,
    refused: bool,
    gauges: Arc<Gauges>,
}

impl MemoryLimiter {
    /// Limits an instance that shows what it has in `gauges`.
    pub(crate) fn new(pool: Arc<MemoryPool>, limit: u64, gauges: Arc<Gauges>) -> MemoryLimiter {
        MemoryLimiter { pool, limit, used: 0, refused: false, gauges }
    }

    /// Returns the largest memory that it had; memories never shrink.
    pub(crate) fn peak(&self) -> u64 {
        self.used
    }

    /// Returns whether it was refused memory.
    pub(crate) fn refused(&self) -> bool {
        self.refused
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        self.pool.give_back(self.used);
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let more = desired.saturating_sub(current) as u64;
        let granted = self.used.checked_add(more).is_some_and(|used| used <= self.limit) && self.pool.take(more);
        if granted {
            self.used += more;
            self.gauges.memory_bytes.store(self.used, Ordering::Relaxed);
        } else {
            self.refused = true;
        }
        Ok(granted)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }
}

/// CPU time of one instance.
#[derive(Debug, Default)]
pub(crate) struct CpuMeter {
    used: Duration,
    gauges: Arc<Gauges>,
}

/// The future used more CPU time than it may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfCpu;

impl CpuMeter {
    /// Meters an instance that shows what it has used in `gauges`.
    pub(crate) fn new(gauges: Arc<Gauges>) -> CpuMeter {
        CpuMeter { used: Duration::ZERO, gauges }
    }

    /// Returns what was used so far.
    pub(crate) fn used(&self) -> Duration {
        self.used
    }

    /// Runs a future to its end or until the instance has used `limit` in all.
    ///
    /// CPU time of the thread is counted, not the time of the clock: what other processes take is not the guest's.
    pub(crate) async fn run<F: Future>(&mut self, limit: Duration, future: F) -> Result<F::Output, OutOfCpu> {
        Metered { meter: self, limit, future: Box::pin(future) }.await
    }
}

struct Metered<'a, F> {
    meter: &'a mut CpuMeter,
    limit: Duration,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = Result<F::Output, OutOfCpu>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let before = thread_cpu();
        let polled = self.future.as_mut().poll(cx);
        self.meter.used += thread_cpu().saturating_sub(before);
        let used_us = u64::try_from(self.meter.used.as_micros()).unwrap_or(u64::MAX);
        self.meter.gauges.cpu_us.store(used_us, Ordering::Relaxed);
        match polled {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if self.meter.used >= self.limit => Poll::Ready(Err(OutOfCpu)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Returns the CPU time of this thread.
fn thread_cpu() -> Duration {
    // The clock of the calling thread exists on every kernel that runs this program.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_share_the_memory_of_their_cell() {
        let pool = Arc::new(MemoryPool::new(100));
        let mut a = MemoryLimiter::new(Arc::clone(&pool), 80, Arc::default());
        let mut b = MemoryLimiter::new(Arc::clone(&pool), 80, Arc::default());
        assert!(a.memory_growing(0, 60, None).unwrap());
        assert!(!b.memory_growing(0, 60, None).unwrap());
        assert!(b.refused());
        assert!(!a.memory_growing(60, 81, None).unwrap());
        assert_eq!(a.peak(), 60);
        drop(a);
        assert!(b.memory_growing(0, 60, None).unwrap());
    }

    #[test]
    fn future_that_computes_too_long_is_ended() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut meter = CpuMeter::default();
        let spin = async {
            while std::hint::black_box(true) {
                std::hint::black_box((0..10_000u64).sum::<u64>());
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_millis(5);
        assert_eq!(runtime.block_on(meter.run(limit, spin)), Err(OutOfCpu));
        assert!(meter.used() >= limit);
    }
}
