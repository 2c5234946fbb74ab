// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens when a front end makes the file of a VM's memory shorter under us: the kernel answers
//! an access with SIGBUS. Here the page becomes anonymous memory, so only that VM's data is spoilt and
//! the daemon, with all other VMs, goes on. Files that are sealed (QEMU's default) can't shrink.

use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be watched; more than that are mapped, but not saved from a SIGBUS.
const MAX_MAPPINGS: usize = 4096;

struct Entry {
    /// 0: free.
    base: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    broken: AtomicBool,
}

static MAPPINGS: [Entry; MAX_MAPPINGS] = [const {
    Entry {
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; MAX_MAPPINGS];

/// A mapping that is watched while this lives.
pub struct Watch(Option<&'static Entry>);

impl Watch {
    /// Watches a mapping of pages of `page` bytes.
    pub fn new(base: *mut u8, len: usize, page: usize) -> Self {
        install();
        let entry = MAPPINGS.iter().find(|entry| {
            let free =
                entry.base.compare_exchange(0, base as usize, Ordering::AcqRel, Ordering::Relaxed);
            free.is_ok()
        });
        if let Some(entry) = entry {
            entry.page.store(page, Ordering::Relaxed);
            entry.broken.store(false, Ordering::Relaxed);
            // Last: the handler takes an entry without length for none.
            entry.len.store(len, Ordering::Release);
        } else {
            log::warn!(
                "more than {MAX_MAPPINGS} memory regions: this one is not saved from SIGBUS"
            );
        }
        Self(entry)
    }

    /// Whether pages of it were lost.
    pub fn is_broken(&self) -> bool {
        self.0.is_some_and(|entry| entry.broken.load(Ordering::Acquire))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(entry) = self.0 {
            entry.len.store(0, Ordering::Release);
            entry.base.store(0, Ordering::Release);
        }
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one; `handle` has the signature that SA_SIGINFO
        // asks for and does only what is async-signal-safe.
        let set = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &action, null_mut())
        };
        if set != 0 {
            log::warn!("SIGBUS can't be handled: {}", std::io::Error::last_os_error());
        }
    });
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo, whose address is that of the access.
    let at = unsafe { (*info).si_addr() } as usize;
    let hit = MAPPINGS.iter().find(|entry| {
        let (base, len) = (entry.base.load(Ordering::Acquire), entry.len.load(Ordering::Acquire));
        base != 0 && at.wrapping_sub(base) < len
    });
    let Some(entry) = hit else {
        // Not ours: the access is repeated, and ends the process as it would have without us.
        // SAFETY: SIG_DFL is always a valid disposition.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        return;
    };
    let page = entry.page.load(Ordering::Relaxed);
    // SAFETY: the page lies in a mapping that we own (`Watch` lives as long as it); what the file had
    // there is gone already.
    let map = unsafe {
        libc::mmap(
            (at & !(page - 1)) as *mut libc::c_void,
            page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    entry.broken.store(true, Ordering::Release);
    if map == libc::MAP_FAILED {
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}
