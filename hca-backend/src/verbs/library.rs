// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! libibverbs, loaded when it is asked for: neither building the daemon nor running it with another
//! HCA needs rdma-core.

use std::ffi::{CStr, CString, c_void};
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::ffi::Functions;

const DEFAULT: &str = "libibverbs.so.1";

/// Why there is no verbs HCA.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The library is not there, or can't be loaded.
    #[error(
        "{0} can't be loaded ({1}): install rdma-core's libibverbs (Debian: libibverbs1 and \
         ibverbs-providers)"
    )]
    Library(PathBuf, String),
    /// It is another library, or much too old.
    #[error("{0} has no {1}: rdma-core 28 or newer is needed")]
    Function(PathBuf, &'static str),
    /// No such device.
    #[error("there is no RDMA device {name}; there is: {present}")]
    NoDevice {
        /// What was asked for.
        name: String,
        /// What there is.
        present: String,
    },
    /// The device has no such port, or the port is not Ethernet.
    #[error("{0} has no RoCE port {1}")]
    Port(String, u8),
    /// The system.
    #[error("{what} of {name}: {error}{remedy}")]
    System {
        /// The device.
        name: String,
        /// What failed.
        what: &'static str,
        /// Why.
        error: std::io::Error,
        /// What to do about it, if that is known.
        remedy: &'static str,
    },
}

/// The loaded library.
pub(crate) struct Library {
    functions: Functions,
}

impl Library {
    /// Loads it by the loader's search path, or from a file.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, OpenError> {
        let path = path.unwrap_or(Path::new(DEFAULT));
        let missing = |why: String| OpenError::Library(path.to_owned(), why);
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| missing("its path has a zero byte".to_owned()))?;
        // It is never unloaded: its providers' threads and handlers may live on.
        // SAFETY: a valid string; the library's initialisers are rdma-core's.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failed dlopen there is a message, valid until the next call of this
            // thread.
            let why = unsafe { libc::dlerror().as_ref().map(|at| CStr::from_ptr(at)) };
            return Err(missing(why.unwrap_or_default().to_string_lossy().into_owned()));
        }
        let symbol = |name: &str, version: &str| find(handle, name, version);
        // SAFETY: the names are libibverbs's, whose interface of version 1 `ffi` declares; the library
        // stays loaded.
        let functions = unsafe { Functions::load(symbol) }
            .map_err(|name| OpenError::Function(path.to_owned(), name))?;
        Ok(Self { functions })
    }
}

/// A function in its current version: the library has older forms of some under the same name.
fn find(handle: *mut c_void, name: &str, version: &str) -> *mut c_void {
    let (Ok(name), Ok(version)) = (CString::new(name), CString::new(version)) else {
        return std::ptr::null_mut();
    };
    // SAFETY: an open handle and valid strings.
    let found = unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) };
    if !found.is_null() {
        return found;
    }
    // SAFETY: as above.
    unsafe { libc::dlsym(handle, name.as_ptr()) }
}

impl Deref for Library {
    type Target = Functions;
    fn deref(&self) -> &Functions {
        &self.functions
    }
}
