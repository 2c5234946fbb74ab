// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the stub library is, and how a test makes its devices fail. The library itself is
//! C, as the real one is: `stub.h` and the files beside it.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::time::Duration;

/// The library's file.
pub const PATH: &str = concat!(env!("OUT_DIR"), "/libibverbs-stub.so");

/// The library, loaded: the same copy that the driver of this process has.
pub struct Stub {
    handle: *mut c_void,
}

// SAFETY: a handle may be used by any thread, and the library's functions are written for it.
unsafe impl Send for Stub {}
// SAFETY: as above.
unsafe impl Sync for Stub {}

/// An asynchronous event of the port (`enum ibv_event_type`).
#[derive(Clone, Copy, Debug)]
pub enum PortEvent {
    /// IBV_EVENT_PORT_ACTIVE
    Active = 9,
    /// IBV_EVENT_PORT_ERR
    Err = 10,
}

impl Default for Stub {
    fn default() -> Self {
        Self::load()
    }
}

impl Stub {
    /// Loads it.
    ///
    /// # Panics
    /// If it can't be loaded: then the build is broken.
    pub fn load() -> Self {
        let path = CString::new(PATH).unwrap_or_default();
        // SAFETY: a valid string; the library's initialiser only fills a table.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{PATH} can't be loaded");
        Self { handle }
    }

    /// The library's file.
    pub fn path() -> &'static Path {
        Path::new(PATH)
    }

    fn symbol(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: an open handle and a valid string.
        let at = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        assert!(!at.is_null(), "the stub has no {name:?}");
        at
    }

    fn number<T>(&self, name: &str) -> T {
        // SAFETY: the callers name functions without arguments that answer a `T`.
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> T>(self.symbol(name))() }
    }

    /// Bytes that the devices have moved between MRs.
    pub fn copied(&self) -> u64 {
        self.number("stub_copied")
    }

    /// Bytes of the pages of MRs.
    pub fn pinned(&self) -> u64 {
        self.number("stub_pinned")
    }

    /// How many there may be, as with a limit of locked memory; 0 for any number.
    pub fn limit_pinned(&self, bytes: u64) {
        // SAFETY: the function's type is this one.
        let limit = unsafe {
            std::mem::transmute::<*mut c_void, extern "C" fn(u64)>(self.symbol("stub_limit_pinned"))
        };
        limit(bytes);
    }

    /// Send requests posted.
    pub fn posts(&self) -> u64 {
        self.number("stub_posts")
    }

    /// Calls that posted them.
    pub fn chains(&self) -> u64 {
        self.number("stub_chains")
    }

    /// Objects of the library that have not been ended.
    pub fn objects(&self) -> i32 {
        self.number("stub_objects")
    }

    /// How long so many WRITEs of 64 bytes take on "stub0" by itself, each posted and polled before the
    /// next; none if they failed.
    pub fn post_and_poll(&self, ops: u64) -> Option<Duration> {
        // SAFETY: the function's type is this one.
        let run = unsafe {
            std::mem::transmute::<*mut c_void, extern "C" fn(u64) -> i64>(
                self.symbol("stub_post_and_poll"),
            )
        };
        u64::try_from(run(ops)).ok().map(Duration::from_nanos)
    }

    /// The next call of a function fails: "reg_mr", "create_qp", "modify_qp", "post_send", "post_recv".
    pub fn fail(&self, function: &str, errno: i32) {
        let name = CString::new(function).unwrap_or_default();
        // SAFETY: the function's type is this one.
        let fail = unsafe {
            std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char, c_int)>(
                self.symbol("stub_fail"),
            )
        };
        fail(name.as_ptr(), errno);
    }

    /// A device goes, or is back.
    pub fn kill(&self, device: &str, gone: bool) {
        let name = CString::new(device).unwrap_or_default();
        // SAFETY: the function's type is this one.
        let kill = unsafe {
            std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char, bool)>(
                self.symbol("stub_kill"),
            )
        };
        kill(name.as_ptr(), gone);
    }

    /// A port's event.
    pub fn port_event(&self, device: &str, event: PortEvent) {
        let name = CString::new(device).unwrap_or_default();
        // SAFETY: the function's type is this one.
        let tell = unsafe {
            std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char, c_int)>(
                self.symbol("stub_port_event"),
            )
        };
        tell(name.as_ptr(), event as c_int);
    }
}
