// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The few system calls that std has no name for, and the error type of all modules here.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A message for the console or the lab.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What the functions here return.
pub type Result<T> = std::result::Result<T, Error>;

fn c_string(text: impl AsRef<std::ffi::OsStr>) -> Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}

fn check(what: &str, result: libc::c_long) -> Result<()> {
    if result < 0 {
        return Err(format!("{what}: {}", std::io::Error::last_os_error()).into());
    }
    Ok(())
}

/// Mounts `source` at `target`, which is made if it isn't there.
pub fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    data: &str,
) -> Result<()> {
    let _ = std::fs::create_dir_all(target);
    let (source, place, kind, data) =
        (c_string(source)?, c_string(target)?, c_string(kind)?, c_string(data)?);
    // SAFETY: all four are C strings that live across the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), place.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    };
    check(&format!("mounting {target}"), result.into())
}

/// Makes the current directory, a mount point, the root of everything.
pub fn switch_root(new: &str) -> Result<()> {
    std::env::set_current_dir(new)?;
    let (dot, slash) = (c_string(".")?, c_string("/")?);
    // SAFETY: C strings that live across the calls; MS_MOVE needs neither type nor data.
    unsafe {
        check(
            "moving the root",
            libc::mount(
                dot.as_ptr(),
                slash.as_ptr(),
                std::ptr::null(),
                libc::MS_MOVE,
                std::ptr::null(),
            )
            .into(),
        )?;
        check("chroot", libc::chroot(dot.as_ptr()).into())?;
    }
    Ok(std::env::set_current_dir("/")?)
}

/// Loads a kernel module from a file, uncompressed.
pub fn load_module(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let parameters = c_string("")?;
    // SAFETY: an open descriptor and a C string that lives across the call.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EEXIST) {
        return Ok(());
    }
    check(&format!("loading {}", path.display()), result)
}

/// Names this machine.
pub fn set_host_name(name: &str) -> Result<()> {
    // SAFETY: pointer and length of one live string.
    let result = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    check("naming the host", result.into())
}

/// Stops echo and line editing on a serial line, so that bytes pass as they are.
pub fn make_raw(file: &File) {
    // SAFETY: a termios is plain old data, so zeroes are a value of it; the calls get a live
    // descriptor and that structure. On what isn't a terminal they fail and change nothing.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(file.as_raw_fd(), &mut settings) == 0 {
            libc::cfmakeraw(&mut settings);
            libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, &settings);
        }
    }
}

/// Waits for any child to end: its process id and its exit status as a shell would give it
/// (128 + signal for a killed one). None when there are no children.
pub fn wait_any() -> Option<(u32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a live integer for the call to fill.
    let pid = unsafe { libc::wait(&mut status) };
    let code = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    };
    u32::try_from(pid).ok().map(|pid| (pid, code))
}

/// Switches the machine off; only the first process may. Comes back only if that fails.
pub fn power_off() {
    // SAFETY: neither call touches memory of ours.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}
