//! What generated bindings ask of a runtime. Allocation by the host goes through the `cabi_realloc` of wasi-libc.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Memory that holds the arguments of one call.
pub(crate) struct Cleanup {
    at: NonNull<u8>,
    layout: Layout,
}

impl Cleanup {
    /// Allocates; a layout of no bytes gives a null pointer and nothing to free.
    pub(crate) fn new(layout: Layout) -> (*mut u8, Option<Cleanup>) {
        if layout.size() == 0 {
            return (std::ptr::null_mut(), None);
        }
        // SAFETY: the layout has a size.
        let Some(at) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        (at.as_ptr(), Some(Cleanup { at, layout }))
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this layout, and nobody else frees it.
        unsafe { dealloc(self.at.as_ptr(), self.layout) }
    }
}

/// Nothing to do: std for this target links wasi-libc's.
pub(crate) fn maybe_link_cabi_realloc() {}
