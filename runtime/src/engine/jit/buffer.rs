//! Memory for numbers, as kernels want it.

use std::alloc::Layout;
use std::ptr::NonNull;

/// Zeroed memory. A large one begins a page, so that the places of its matrices within a page are
/// those of the program.
pub(in crate::engine) struct Buffer {
    start: NonNull<f32>,
    len: usize,
}

// SAFETY: a buffer owns its memory, like a vector.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of a page.
const PAGE: usize = 4096;

impl Default for Buffer {
    fn default() -> Self {
        Buffer::new(0)
    }
}

impl Buffer {
    pub(in crate::engine) fn new(len: usize) -> Self {
        let Some(layout) = Self::layout(len) else { return Buffer { start: NonNull::dangling(), len } };
        // SAFETY: the layout is not empty.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast::<f32>()) else { std::alloc::handle_alloc_error(layout) };
        Buffer { start, len }
    }

    /// `None` for no memory at all.
    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.saturating_mul(4).next_multiple_of(LINE);
        let align = if bytes < 4 * PAGE { LINE } else { PAGE };
        if len == 0 { None } else { Layout::from_size_align(bytes, align).ok() }
    }

    /// Makes it longer, keeping what it holds.
    pub(super) fn grow(&mut self, len: usize) {
        if self.len < len {
            let mut longer = Buffer::new(len);
            longer.as_mut_slice()[..self.len].copy_from_slice(self.as_slice());
            *self = longer;
        }
    }

    pub(super) fn pointer(&self) -> *mut f32 {
        self.start.as_ptr()
    }

    pub(in crate::engine) fn as_slice(&self) -> &[f32] {
        // SAFETY: `len` numbers lie behind the pointer, initialised to zero; an empty slice may dangle.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: the memory was allocated with this layout.
            unsafe { std::alloc::dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}
