//! Tasks of one thread, and what they wait for: sockets, and the timers of `futures-timer`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use futures::executor::{LocalPool, LocalSpawner};
use futures::task::LocalSpawnExt;
use iptl_sdk::net::{self, Interest};
use iptl_sdk::{Error, Result};

/// Longest time without a look at tasks: a bound for what a lost wake-up costs.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

thread_local! {
    static SPAWNER: RefCell<Option<LocalSpawner>> = const { RefCell::new(None) };
    static SOCKETS: RefCell<BTreeMap<(RawFd, Direction), Waker>> = const { RefCell::new(BTreeMap::new()) };
}

/// What is waited for on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Runs a future, and all tasks that it starts, until it has its value.
///
/// # Errors
///
/// Fails where sockets cannot be waited for.
pub fn run<T: 'static>(main: impl Future<Output = Result<T>> + 'static) -> Result<T> {
    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let answer = Rc::new(RefCell::new(None));
    let place = answer.clone();
    spawner
        .spawn_local(async move {
            let value = main.await;
            place.replace(Some(value));
        })
        .expect("the pool is there");
    SPAWNER.set(Some(spawner));
    loop {
        pool.run_until_stalled();
        if let Some(value) = answer.take() {
            return value;
        }
        wait()?;
    }
}

/// Starts a task: what libp2p calls an executor.
pub fn spawn(task: Pin<Box<dyn Future<Output = ()> + Send>>) {
    SPAWNER.with_borrow(|spawner| {
        // Without one, `run` has ended, and with it whatever the task would be for.
        if let Some(spawner) = spawner {
            let _ended = spawner.spawn_local(task);
        }
    });
}

/// Wakes `waker` once when a socket has something.
pub(crate) fn register(socket: RawFd, direction: Direction, waker: &Waker) {
    SOCKETS.with_borrow_mut(|sockets| sockets.insert((socket, direction), waker.clone()));
}

/// Forgets a socket that is closed now: the next one may have its number.
pub(crate) fn forget(socket: RawFd) {
    // Sockets may be closed after the thread's own memory is gone, when nobody waits any more.
    let _gone = SOCKETS.try_with(|sockets| {
        let mut sockets = sockets.borrow_mut();
        sockets.remove(&(socket, Direction::Read));
        sockets.remove(&(socket, Direction::Write));
    });
}

/// Blocks until a socket has something or a timer is due, and wakes whoever waits for it.
fn wait() -> Result<()> {
    let due = futures_timer::next();
    let time = due.map_or(LONGEST_WAIT, |due| due.saturating_duration_since(Instant::now()).min(LONGEST_WAIT));
    let waiting: Vec<(RawFd, Direction)> = SOCKETS.with_borrow(|sockets| sockets.keys().copied().collect());
    let interests: Vec<Interest> = waiting
        .iter()
        .map(|(socket, direction)| match direction {
            Direction::Read => Interest::read(socket),
            Direction::Write => Interest::write(socket),
        })
        .collect();
    let ready = net::wait(&interests, time).map_err(|error| Error::Refused(format!("waiting for sockets: {error}")))?;
    let woken: Vec<Waker> =
        SOCKETS.with_borrow_mut(|sockets| ready.into_iter().filter_map(|at| sockets.remove(&waiting[at])).collect());
    woken.into_iter().for_each(Waker::wake);
    futures_timer::fire(Instant::now());
    Ok(())
}
