//! An allocator that counts what a test holds at most.

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one passes every call on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Both without a destructor and made at compile time: they may be used while a thread begins and ends.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(change: isize) {
    let held = HELD.get().saturating_add(change);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

fn size(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing and cannot unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-size(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both are there while it copies.
        count(size(new_size));
        count(-size(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

/// Returns what came of some work and how many bytes this thread held at most meanwhile, beyond those that it held before.
///
/// What other threads hold is not seen: the work is to be done on one.
pub(crate) async fn most_held<T>(work: impl Future<Output = T>) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let done = work.await;
    (done, usize::try_from(PEAK.get() - before).expect("the peak is no less than what was held before"))
}
