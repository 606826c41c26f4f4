//! The timers of libp2p under the name and with the interface of the crate `futures-timer`, whose own need a thread,
//! which no component has: one heap, which belongs to the thread that runs the plan.
//!
//! [`next`] says when the first timer is due and [`fire`] wakes whoever waits for those that are; the loop of
//! `iptl-stack` calls both. A timer that is polled on another thread is never woken: a plan has one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

thread_local! {
    static HEAP: RefCell<Heap> = RefCell::default();
}

#[derive(Default)]
struct Heap {
    /// By time, and by the order in which they were set where two have one time.
    waiting: BTreeMap<(Instant, u64), Waker>,
    count: u64,
}

/// Returns when the first timer that somebody waits for is due.
pub fn next() -> Option<Instant> {
    HEAP.with_borrow(|heap| heap.waiting.first_key_value().map(|((due, _), _)| *due))
}

/// Wakes whoever waits for a timer that is due.
pub fn fire(now: Instant) {
    // A waker may set a timer, so none is called while the heap is borrowed.
    let woken = HEAP.with_borrow_mut(|heap| {
        let later = heap.waiting.split_off(&(now, u64::MAX));
        std::mem::replace(&mut heap.waiting, later)
    });
    woken.into_values().for_each(Waker::wake);
}

/// Is ready after a while.
pub struct Delay {
    due: Instant,
    /// Its number in the heap, while somebody waits for it.
    number: Option<u64>,
}

impl Delay {
    /// Is ready `after` now.
    pub fn new(after: Duration) -> Delay {
        Delay { due: in_time(after), number: None }
    }

    /// Is ready `after` now instead of when it was.
    pub fn reset(&mut self, after: Duration) {
        self.forget();
        self.due = in_time(after);
    }

    fn forget(&mut self) {
        if let Some(number) = self.number.take() {
            HEAP.with_borrow_mut(|heap| heap.waiting.remove(&(self.due, number)));
        }
    }
}

/// Returns the time that is `after` now; one that no clock can say is in a century.
fn in_time(after: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    Instant::now() + after.min(CENTURY)
}

impl Future for Delay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.forget();
        if Instant::now() >= self.due {
            return Poll::Ready(());
        }
        let due = self.due;
        let number = HEAP.with_borrow_mut(|heap| {
            heap.count += 1;
            heap.waiting.insert((due, heap.count), context.waker().clone());
            heap.count
        });
        self.number = Some(number);
        Poll::Pending
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Default for Delay {
    fn default() -> Delay {
        Delay::new(Duration::ZERO)
    }
}

impl fmt::Debug for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delay").field("due", &self.due).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn timers_are_due_in_their_order_and_forgotten_ones_never() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let begun = Instant::now();
        let mut poll = |delay: &mut Delay| Pin::new(delay).poll(&mut context).is_ready();
        let mut minutes = [3, 1, 2].map(|minutes| Delay::new(Duration::from_secs(60 * minutes)));
        assert!(minutes.iter_mut().all(|delay| !poll(delay) && !poll(delay)));
        assert!(next().is_some_and(|due| due < begun + Duration::from_secs(90)));

        fire(begun + Duration::from_secs(150));
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert!(next().is_some_and(|due| due > begun + Duration::from_secs(150)));
        minutes[0].reset(Duration::ZERO);
        assert!(poll(&mut minutes[0]));
        assert_eq!(next(), None);
        drop(minutes);
        assert!(poll(&mut Delay::default()));
    }
}
