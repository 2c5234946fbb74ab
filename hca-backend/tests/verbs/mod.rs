// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of the verbs HCA share beside `common`: the stub's devices, and memory in a file.
//! Tests of one file run one after the other: the stub's devices are the process's.
//!
//! With the name of a real device in VERBS_TEST_DEVICE (an address on its network device is needed) the
//! same tests run on that, through the libibverbs of the system.
#![allow(dead_code)]

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hca_backend::verbs::{GidMap, GidMapping, Options, VerbsHca, open, parse_gid};
use rdma_midlayer::MaySleep;
use rdma_midlayer::memory::{Mapping, Run, UserMemory};
use rdma_midlayer::types::{Gid, WcStatus};
use rdma_midlayer::work::WorkCompletion;

use crate::common::{CqSink, End, Lab, gid_entry};

static ONE: Mutex<()> = Mutex::new(());

/// A lab whose HCA is a device of the stub's.
pub struct VerbsLab {
    lab: Lab,
    pub verbs: Arc<VerbsHca>,
    /// Objects of the library when it was opened.
    pub before: i32,
    _one: MutexGuard<'static, ()>,
}

impl Deref for VerbsLab {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

/// A real device that the tests are to run on.
pub fn real_device() -> Option<String> {
    std::env::var("VERBS_TEST_DEVICE").ok()
}

/// The stub, unless the tests run on a real device.
pub fn stub() -> Option<verbs_stub::Stub> {
    real_device().is_none().then(verbs_stub::Stub::load)
}

/// An IPv4 address of a real device.
fn real_gid(device: &str) -> Gid {
    let path = |what: &str, n: i32| format!("/sys/class/infiniband/{device}/ports/1/{what}/{n}");
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    (0..64)
        .filter(|n| read(path("gid_attrs/types", *n)).contains("v2"))
        .filter_map(|n| parse_gid(read(path("gids", n)).trim()))
        .find(|gid| gid.0[..12] == gid_entry(0).gid.0[..12])
        .expect("no IPv4 address on the device")
}

/// Every GID that the tests' tenants have is that of the device.
pub fn gids(device: &str) -> Arc<GidMap> {
    let physical = match device {
        "stub0" => gid_entry(1).gid,
        "stub1" => gid_entry(2).gid,
        "slow0" => gid_entry(3).gid,
        real => real_gid(real),
    };
    let map = GidMap::default();
    for last in 0..=9 {
        let virtual_gid = gid_entry(last).gid;
        map.set(GidMapping { network: 1, virtual_gid, physical });
    }
    Arc::new(map)
}

/// Opens a device of the stub's.
pub fn opened(device: &str) -> VerbsLab {
    opened_with(device, Options { gids: gids(device), ..options() })
}

/// Options that name the stub.
pub fn options() -> Options {
    let library = real_device().is_none().then(|| verbs_stub::PATH.into());
    Options { library, ..Options::default() }
}

pub fn opened_with(device: &str, options: Options) -> VerbsLab {
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cx = MaySleep::claim().unwrap();
    let before = stub().map_or(0, |stub| stub.objects());
    let verbs = open(&cx, device, options).unwrap_or_else(|e| panic!("{e}"));
    VerbsLab { lab: Lab::of(cx, verbs.clone()), verbs, before, _one: one }
}

/// Runs a test with a provider that posts in user space, and with one that enters the kernel.
pub fn both(test: impl Fn(&VerbsLab)) {
    for device in devices() {
        let lab = opened(&device);
        test(&lab);
    }
}

/// Whether a request that failed for a reason of its own side's says so. rxe reports it as flushed.
pub fn local_error(found: WcStatus, expected: WcStatus) -> bool {
    found == expected || (real_device().is_some() && found == WcStatus::WrFlushErr)
}

/// What `both` runs on.
pub fn devices() -> Vec<String> {
    real_device().map_or(vec!["stub0".into(), "slow0".into()], |real| vec![real])
}

impl VerbsLab {
    /// Waits for a completion.
    pub fn next(&self, sink: &CqSink) -> WorkCompletion {
        self.wait("a completion", || sink.take())
    }

    /// Ends everything in order: the library has nothing left then.
    pub fn end(self, ends: impl IntoIterator<Item = End>) {
        let before = self.before;
        for end in ends {
            end.qp.destroy(&self.cx).unwrap();
            end.mr.dereg(&self.cx).unwrap();
            end.cqs.iter().for_each(|cq| cq.destroy(&self.cx).unwrap());
            end.tenant.pd.dealloc(&self.cx).unwrap();
            end.tenant.context.dealloc(&self.cx).unwrap();
        }
        let Self { lab, verbs, _one, .. } = self;
        drop((lab, verbs));
        assert_eq!(stub().map_or(0, |stub| stub.objects()), before);
    }

    /// Waits until there is something.
    pub fn wait<R>(&self, what: &str, look: impl Fn() -> Option<R>) -> R {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            self.run();
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < end, "never: {what}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A file in memory, mapped as a guest's is.
pub struct Memfd {
    file: File,
    base: *mut u8,
    len: usize,
}

// SAFETY: a shared mapping that lives as long as the value.
unsafe impl Send for Memfd {}
// SAFETY: as above.
unsafe impl Sync for Memfd {}
// SAFETY: `mapping` mapped `len` bytes, which `drop` unmaps.
unsafe impl Mapping for Memfd {
    fn base(&self) -> *mut u8 {
        self.base
    }
    fn len(&self) -> usize {
        self.len
    }
    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.file.as_fd(), 0))
    }
}

impl Drop for Memfd {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, which nobody uses any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

impl Memfd {
    pub fn mapping(pages: usize) -> Arc<dyn Mapping> {
        let len = pages * 4096;
        // SAFETY: a new descriptor, and a new mapping of it.
        unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0);
            let file = File::from_raw_fd(fd);
            file.set_len(len as u64).unwrap();
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0);
            assert!(base != libc::MAP_FAILED);
            Arc::new(Self { file, base: base.cast(), len })
        }
    }
}

/// Pages of a file in an order of their own, under an address that need not be a page's first.
pub struct Scattered {
    mapping: Arc<dyn Mapping>,
    order: Vec<usize>,
    start: u64,
    len: u64,
}

pub fn scattered(pages: usize, start: u64, len: u64) -> Scattered {
    // 5 and a power of two have no common divisor: each page once.
    let order = (0..pages).map(|n| n * 5 % pages).collect();
    Scattered { mapping: Memfd::mapping(pages), order, start, len }
}

impl Scattered {
    pub fn user(&self) -> UserMemory {
        let runs = self.order.iter().map(|page| Run {
            mapping: self.mapping.clone(),
            offset: page * 4096,
            len: 4096,
        });
        UserMemory::new(self.start, self.len, self.start % 4096, Some(12), runs).unwrap()
    }
}
