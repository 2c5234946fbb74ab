// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket of one device: waits for a front end, serves it until it leaves, waits for the next.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rdma_midlayer::MaySleep;
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::backend::Backend;
use crate::device::Device;
use crate::vring::{self, Memory, RingHooks};

/// A device's socket and the thread that serves it. Dropping it ends the connection, if there is
/// one, and removes the socket.
pub struct Connection {
    path: PathBuf,
    /// Of the socket that we made there.
    inode: u64,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    /// Wakes the thread while it waits for a front end.
    wake: EventFd,
    serving: Mutex<Option<ShutdownHandle>>,
}

impl Connection {
    /// Listens on `path` for front ends of `device`. A socket there that nobody listens on is taken
    /// over; a live one, or another kind of file, is not.
    ///
    /// # Errors
    /// What keeps the socket from being made, in words for an operator.
    pub fn listen(path: &Path, device: Arc<Device>) -> io::Result<Self> {
        clear_stale(path)?;
        let listener = UnixListener::bind(path)
            .map_err(|e| io::Error::other(format!("can't listen on {}: {e}", path.display())))?;
        // One that knows its path would remove whatever is there when it ends.
        let listener = Listener::from(listener);
        // A connection that comes is found by waiting, which can be ended; accepting can't.
        listener.set_nonblocking(true).map_err(io::Error::other)?;
        let inode = std::fs::symlink_metadata(path)?.ino();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
            serving: Mutex::default(),
        });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("vhost-{}", device.name())).spawn(
                move || {
                    let Some(cx) = MaySleep::claim() else { return };
                    serve(&cx, listener, &device, &shared);
                },
            )?
        };
        Ok(Self { path: path.to_owned(), inode, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a front end is connected.
    pub fn is_connected(&self) -> bool {
        self.shared.serving.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Removes a socket that nobody listens on.
///
/// # Errors
/// When something else is there, in words for an operator.
pub(crate) fn clear_stale(path: &Path) -> io::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let refuse = |why: &str| {
        let text = format!("{}: {why}", path.display());
        Err(io::Error::new(io::ErrorKind::AddrInUse, text))
    };
    if !meta.file_type().is_socket() {
        return refuse("there is a file that is not a socket; choose another path or remove it");
    }
    if UnixStream::connect(path).is_ok() {
        return refuse("another program listens there; stop it or choose another path");
    }
    std::fs::remove_file(path)
}

fn serve(cx: &MaySleep, mut listener: Listener, device: &Arc<Device>, shared: &Shared) {
    loop {
        if let Err(e) = wait_for_front_end(&listener, shared) {
            return log::error!("{}: {e}", device.name());
        }
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let memory = Memory::new(GuestMemoryMmap::new());
        let backend = Arc::new(Backend::new(device.clone(), memory.clone()));
        let hooks: Arc<dyn RingHooks> = device.clone();
        let (made, vrings) = vring::with_hooks(hooks, || {
            VhostUserDaemon::new(
                format!("front-{}", device.name()),
                backend.clone(),
                memory.clone(),
            )
        });
        device.set_vrings(&vrings, &memory);
        let mut daemon = match made {
            Ok(daemon) => daemon,
            Err(e) => return log::error!("{}: {e}", device.name()),
        };
        if let Err(e) = daemon.start(&mut listener) {
            if !shared.stop.load(Ordering::Acquire) {
                log::error!("{}: {e}", device.name());
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            drop(daemon);
            backend.close_exit_event();
            continue;
        }
        *shared.serving.lock().unwrap_or_else(PoisonError::into_inner) = daemon.shutdown_handle();
        if shared.stop.load(Ordering::Acquire) {
            daemon.request_shutdown();
        }
        log::info!("{}: a front end has connected", device.name());
        let end = daemon.wait();
        shared.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        device.disconnected(cx);
        drop(daemon);
        backend.close_exit_event();
        match end {
            Ok(()) => log::info!("{}: the front end has left", device.name()),
            Err(e) => log::info!("{}: the front end has left: {e}", device.name()),
        }
    }
}

/// Returns when a front end connects, or the device is to end.
fn wait_for_front_end(listener: &Listener, shared: &Shared) -> io::Result<()> {
    let epoll = Epoll::new()?;
    for fd in [listener.as_raw_fd(), shared.wake.as_raw_fd()] {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
    }
    loop {
        match epoll.wait(-1, &mut [EpollEvent::default()]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
        let serving = self.shared.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(serving) = serving {
            serving.shutdown();
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of {} panicked", self.path.display());
        }
        // Somebody else's may be there by now.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
