//! An allocator that counts, so that a target can say how much memory an input may take.
//!
//! The engine only watches the whole process: a decoder that reserves a gigabyte because twelve bytes say so would pass,
//! since pages that nobody touches are not there.

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

/// What every decoder may take whatever the input: errors with their texts, first sizes of buffers.
const BASE: usize = 16 << 10;

/// What lists of known types may take besides: serde reserves room for as many entries as a list says that it has, up to
/// a megabyte each, and they stand in one another.
const LISTS: usize = 4 << 20;

/// Factor of what is read into known types: a record of a few bytes has room for all that it could hold.
const TYPED: usize = 256;

/// Runs `decode`, which makes a value of a known type, within what [`bounded`] allows and the reserves of its lists.
pub fn typed<T>(input: &[u8], decode: impl FnOnce() -> T) -> T {
    within(LISTS + TYPED * input.len(), input, decode)
}

/// Runs `decode` and demands that it holds at no moment more than `factor` times `input` bytes, and a little.
///
/// What other threads hold on its behalf is not seen.
pub fn bounded<T>(factor: usize, input: &[u8], decode: impl FnOnce() -> T) -> T {
    within(BASE + factor * input.len(), input, decode)
}

fn within<T>(limit: usize, input: &[u8], decode: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    PEAK.set(before);
    let value = decode();
    let took = PEAK.get().saturating_sub(before);
    assert!(took <= size(limit), "{took} bytes of memory for an input of {}, allowed are {limit}", input.len());
    value
}
