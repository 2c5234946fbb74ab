// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A trap for system calls that may block: a seccomp filter on one thread. Used by the tests of every
//! HCA driver's never-sleep methods.

#[path = "allocator.rs"]
mod allocator;

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};

/// Calls that never block: the allocator's, the ends of signals and threads, the clock; and to let
/// another thread run, which waits for nothing. `futex` is looked at more closely: to wake does not
/// block, to wait does.
const ALLOWED: [libc::c_long; 14] = [
    libc::SYS_sched_yield,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_set_robust_list,
];

const MAX_TRAPPED: usize = 64;
static TRAPPED: [AtomicI64; MAX_TRAPPED] = [const { AtomicI64::new(0) }; MAX_TRAPPED];
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// The record above is the process's: one trapped thread at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Runs `prepare` and then, trapped, `f`, on a thread of their own; answers the numbers of the system
/// calls that `f` made and that may block. None of them is carried out.
pub fn trapped<T>(prepare: impl FnOnce() -> T + Send, f: impl FnOnce(T) + Send) -> Vec<i64> {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    COUNT.store(0, SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let prepared = prepare();
            install();
            f(prepared);
        });
    });
    let count = COUNT.load(SeqCst).min(MAX_TRAPPED);
    TRAPPED[..count].iter().map(|call| call.load(SeqCst)).collect()
}

extern "C" fn note(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo of SIGSYS; its call number lies 8 bytes behind the address.
    let call = unsafe { *info.cast::<u8>().add(16 + 8).cast::<i32>() };
    let n = COUNT.fetch_add(1, SeqCst);
    if n < MAX_TRAPPED {
        TRAPPED[n].store(call.into(), SeqCst);
    }
}

fn install() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let if_equal = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let answer = |what| statement(libc::BPF_RET | libc::BPF_K, what);
    let (allow, trap) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_TRAP);
    // Offsets in struct seccomp_data: the number at 0, the second argument at 24.
    let mut program = vec![load(0)];
    for call in ALLOWED {
        program.extend([if_equal(call as u32, 0, 1), answer(allow)]);
    }
    program.extend([if_equal(libc::SYS_futex as u32, 1, 0), answer(trap), load(24)]);
    for wake in [libc::FUTEX_WAKE, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG] {
        program.extend([if_equal(wake as u32, 0, 1), answer(allow)]);
    }
    program.push(answer(trap));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the handler only touches atomics; the structures live during the calls, and the filter
    // binds this thread alone.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()), 0);
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        assert_eq!(libc::syscall(libc::SYS_seccomp, mode, 0, &filter), 0);
    }
}
