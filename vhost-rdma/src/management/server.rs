// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sockets of the management interface, as a part of the one control thread: it waits for none of
//! its clients. A request is read and executed only when the answers before it have been taken, so
//! a client that sends without end, or never reads, costs a buffer of `MAX_REQUEST` and its last
//! answer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rdma_midlayer::MaySleep;

use super::{Answer, MAX_CLIENTS, MAX_REQUEST, execute, parse};
use crate::connection::clear_stale;
use crate::daemon::Daemon;

/// The management socket of a daemon, to be given to the control thread's event manager. Dropping it
/// removes the socket.
pub struct Management<'a> {
    cx: &'a MaySleep,
    daemon: Rc<RefCell<Daemon>>,
    path: PathBuf,
    /// Of the socket that we made there.
    inode: u64,
    listener: UnixListener,
    clients: HashMap<RawFd, Client>,
}

impl<'a> Management<'a> {
    /// Listens on `path`, for the daemon's own user only. A socket there that nobody listens on is
    /// taken over.
    ///
    /// # Errors
    /// What keeps the socket from being made, in words for an operator.
    pub fn listen(cx: &'a MaySleep, daemon: Rc<RefCell<Daemon>>, path: &Path) -> io::Result<Self> {
        let explain =
            |e: io::Error| io::Error::other(format!("can't listen on {}: {e}", path.display()));
        clear_stale(path)?;
        let listener = bind_private(path).map_err(explain)?;
        listener.set_nonblocking(true)?;
        let inode = fs::symlink_metadata(path)?.ino();
        let path = path.to_owned();
        Ok(Self { cx, daemon, path, inode, listener, clients: HashMap::new() })
    }

    fn accept(&mut self, ops: &mut EventOps) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return log::warn!("management: {e}"),
            };
            if let Err(e) = stream.set_nonblocking(true) {
                log::warn!("management: {e}");
                continue;
            }
            if self.clients.len() >= MAX_CLIENTS {
                let why = format!("{MAX_CLIENTS} clients are connected: try again later");
                let _ = (&stream).write(&Answer::Error(why).line(None));
                continue;
            }
            match ops.add(Events::new(&stream, EventSet::IN)) {
                Ok(()) => drop(self.clients.insert(stream.as_raw_fd(), Client::new(stream))),
                Err(e) => log::warn!("management: {e}"),
            }
        }
    }

    fn serve(&mut self, fd: RawFd, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let result = client.go_on(|line| {
            let (request, id) = parse(line);
            let answer = match request {
                Ok(request) => execute::execute(self.cx, &mut self.daemon.borrow_mut(), request),
                Err(why) => Answer::Error(why),
            };
            answer.line(id)
        });
        let wait_for = match result {
            Ok(Next::Read) => EventSet::IN,
            Ok(Next::Write) => EventSet::OUT,
            Ok(Next::End) | Err(_) => {
                if let Err(e) = ops.remove(Events::empty(&client.stream)) {
                    log::warn!("management: {e}");
                }
                self.clients.remove(&fd);
                return;
            }
        };
        if client.waits_for != wait_for {
            client.waits_for = wait_for;
            if let Err(e) = ops.modify(Events::new(&client.stream, wait_for)) {
                log::warn!("management: {e}");
            }
        }
    }
}

impl MutEventSubscriber for Management<'_> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.serve(events.fd(), ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            log::error!("the management socket can't be watched: {e}");
        }
    }
}

impl Drop for Management<'_> {
    fn drop(&mut self) {
        // Somebody else's may be there by now.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that nobody but its owner may connect to, at no time: it is made where nobody else can
/// look, and gets its place when it is finished.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A killed daemon may have left one behind.
    let names = (0..16).map(|n| parent.join(format!(".ctl{}-{n}", std::process::id())));
    let mut made = Err(ErrorKind::AlreadyExists.into());
    let folder = names.into_iter().find(|folder| {
        made = DirBuilder::new().mode(0o700).create(folder);
        !made.as_ref().is_err_and(|e| e.kind() == ErrorKind::AlreadyExists)
    });
    made?;
    let folder = folder.ok_or(ErrorKind::AlreadyExists)?;
    let inside = folder.join("s");
    let made = UnixListener::bind(&inside).and_then(|listener| {
        fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        fs::rename(&inside, path)?;
        Ok(listener)
    });
    let _ = fs::remove_file(&inside);
    let _ = fs::remove_dir(&folder);
    made
}

/// What to do next with a client.
enum Next {
    Read,
    Write,
    End,
}

struct Client {
    stream: UnixStream,
    waits_for: EventSet,
    /// Not executed yet.
    input: Vec<u8>,
    /// Not taken yet.
    output: Vec<u8>,
    /// Nothing comes any more.
    ended: bool,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        let (input, output) = (Vec::new(), Vec::new());
        Self { stream, waits_for: EventSet::IN, input, output, ended: false }
    }

    /// Writes, executes, and reads once, as far as that goes without waiting.
    fn go_on(&mut self, mut execute: impl FnMut(&[u8]) -> Vec<u8>) -> io::Result<Next> {
        let mut has_read = false;
        loop {
            if !self.flush()? {
                return Ok(Next::Write);
            }
            if let Some(line) = self.next_line() {
                if !line.trim_ascii().is_empty() {
                    self.output = execute(&line);
                }
            } else if self.input.len() >= MAX_REQUEST {
                let why = format!("a request is {MAX_REQUEST} bytes at the most");
                self.output = Answer::Error(why).line(None);
                // Where the next one begins nobody knows.
                (self.input, self.ended) = (Vec::new(), true);
            } else if self.ended {
                return Ok(Next::End);
            } else if has_read {
                // Others have their turn.
                return Ok(Next::Read);
            } else {
                has_read = true;
                self.read()?;
            }
        }
    }

    /// The next request; at the end also one without an end of line.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            return Some(self.input.drain(..=end).collect());
        }
        (self.ended && !self.input.is_empty()).then(|| std::mem::take(&mut self.input))
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let room = buffer.len().min(MAX_REQUEST - self.input.len());
        match self.stream.read(&mut buffer[..room]) {
            Ok(0) => self.ended = true,
            Ok(n) => self.input.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Whether all of the output has been taken.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}
