// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An allocator without locks, for the tests that trap system calls. The C library's takes a lock when
//! a thread frees what another allocated, and sleeps if the other was preempted inside: a call that the
//! trap would see now and then, and that says nothing about the code under test.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

/// Address space for all that the process allocates; memory is taken as it is touched.
const SPACE: usize = 1 << 36;
/// Blocks of 2^n bytes; what a thread frees it keeps for itself.
const CLASSES: usize = 31;
const SMALLEST: u32 = 4;

static BASE: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static USED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static FREE: [Cell<*mut u8>; CLASSES] = const { [const { Cell::new(null_mut()) }; CLASSES] };
}

/// Never blocks, and never gives memory back to the system.
pub struct NeverBlocks;

#[global_allocator]
static ALLOCATOR: NeverBlocks = NeverBlocks;

fn class(layout: Layout) -> usize {
    let bytes = layout.size().max(layout.align()).max(1 << SMALLEST);
    bytes.next_power_of_two().ilog2() as usize
}

fn base() -> *mut u8 {
    let base = BASE.load(SeqCst);
    if !base.is_null() {
        return base;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a mapping of its own, at an address of the kernel's choice.
    let new =
        unsafe { libc::mmap(null_mut(), SPACE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if new == libc::MAP_FAILED {
        return null_mut();
    }
    // Of two threads that come first, one wins; the other's address space stays unused.
    match BASE.compare_exchange(null_mut(), new.cast(), SeqCst, SeqCst) {
        Ok(_) => new.cast(),
        Err(other) => other,
    }
}

// SAFETY: a block of a class is as large as any that the class is for, and lies at a multiple of the largest
// alignment it can be asked for (up to a page, as the base does); it belongs to one owner from alloc to
// dealloc, and to the list of one thread from there.
unsafe impl GlobalAlloc for NeverBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let class = class(layout);
        if class >= CLASSES || layout.align() > 4096 {
            return null_mut();
        }
        FREE.with(|free| {
            let block = free[class].get();
            if !block.is_null() {
                // SAFETY: a free block holds the address of the next one in its first bytes.
                free[class].set(unsafe { block.cast::<*mut u8>().read() });
                return block;
            }
            let (base, bytes) = (base(), 1_usize << class);
            // A block may come back for another layout of its class, so it gets the alignment of them all.
            let align = bytes.min(4096);
            let at = USED.fetch_add(bytes + align, SeqCst).next_multiple_of(align);
            if base.is_null() || at + bytes > SPACE { null_mut() } else { base.wrapping_add(at) }
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let class = class(layout);
        FREE.with(|free| {
            // SAFETY: the block is the caller's to give up, and holds at least 16 bytes.
            unsafe { block.cast::<*mut u8>().write(free[class].get()) };
            free[class].set(block);
        });
    }
}
