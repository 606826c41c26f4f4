//! What the worker says: frames queued by guests, written by a thread of their own.
//!
//! A lablet that reads slowly fills the queue; above [`HIGH_WATER`] guests that write output wait for room, and
//! datagrams for other cells are dropped. Calls of the lab and ends of instances are queued always: their number is
//! bounded by other limits.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;

use crate::ipc;

/// Bytes in the queue above which guests wait.
const HIGH_WATER: usize = 4 << 20;

/// Queued frames.
pub(crate) struct Outbox {
    queue: Mutex<Vec<u8>>,
    filled: Condvar,
    size: AtomicUsize,
    room: Notify,
}

impl Outbox {
    /// Starts the thread that writes to `socket`; it ends the process when the lablet is gone.
    pub(crate) fn start(socket: UnixStream) -> io::Result<Arc<Outbox>> {
        let outbox = Arc::new(Outbox {
            queue: Mutex::new(Vec::new()),
            filled: Condvar::new(),
            size: AtomicUsize::new(0),
            room: Notify::new(),
        });
        let writer = Arc::clone(&outbox);
        std::thread::Builder::new().name("iptl-outbox".to_owned()).spawn(move || writer.write(socket))?;
        Ok(outbox)
    }

    /// Queues a message.
    pub(crate) fn push<T: Serialize>(&self, message: &T) {
        let mut frame = Vec::with_capacity(256);
        if let Err(e) = ipc::encode(&mut frame, message) {
            // Every message is made here from bounded parts.
            tracing::error!(error = %e, "a message of the worker cannot be encoded");
            return;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = queue.is_empty();
        queue.extend_from_slice(&frame);
        self.size.store(queue.len(), Ordering::Relaxed);
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Returns whether there is room for what can wait.
    pub(crate) fn has_room(&self) -> bool {
        self.size.load(Ordering::Relaxed) < HIGH_WATER
    }

    /// Waits for room. Safe to drop half-way.
    pub(crate) async fn wait_for_room(&self) {
        loop {
            let notified = self.room.notified();
            if self.has_room() {
                return;
            }
            notified.await;
        }
    }

    fn write(&self, mut socket: UnixStream) {
        let mut batch = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.is_empty() {
                    while queue.is_empty() {
                        queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    }
                    // Guests that are ready to run go first: a crowd that comes to a barrier is one write and one
                    // wake-up of the lablet, and where nobody else wants the processor this costs nothing.
                    drop(queue);
                    std::thread::yield_now();
                    queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                }
                std::mem::swap(&mut *queue, &mut batch);
                self.size.store(0, Ordering::Relaxed);
            }
            self.room.notify_waiters();
            if socket.write_all(&batch).is_err() {
                std::process::exit(0);
            }
            batch.clear();
            // One burst of ends must not hold its memory for the rest of a long run.
            batch.shrink_to(HIGH_WATER);
        }
    }
}
