// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of QMP, QEMU's management protocol, over a Unix socket. It knows no command by name.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;

/// How long QEMU may take to answer a command: a TCG guest on a loaded machine is slow.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// One QMP session.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<UnixStream>,
    partial: String,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects to the socket of `-qmp unix:PATH,server=on,wait=off` and leaves the negotiation
    /// mode. Waits up to `patience` for QEMU to make the socket.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there is no such socket by then, [`Error::Io`] when QEMU goes away.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, Error> {
        let stream = connect(path, patience)?;
        let mut qmp =
            Self { lines: BufReader::new(stream), partial: String::new(), events: VecDeque::new() };
        let greeting = qmp.message("greeting", ANSWER_TIME)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Protocol(greeting.to_string()));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns what it returned. Events that come meanwhile are kept for
    /// [`Self::wait_event`].
    ///
    /// # Errors
    /// [`Error::Refused`] with QEMU's own words, [`Error::Io`] when QEMU goes away,
    /// [`Error::TimedOut`] when it doesn't answer for a minute.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        let what = format!("answer to {command}");
        self.lines.get_mut().write_all(line.as_bytes()).map_err(Error::io(command))?;
        let deadline = Instant::now() + ANSWER_TIME;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut message = self.message(&what, left)?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(error) = message.get("error") {
                return Err(Error::Refused {
                    command: command.to_owned(),
                    description: error["desc"].as_str().unwrap_or_default().to_owned(),
                });
            } else if message.get("return").is_some() {
                return Ok(message["return"].take());
            } else {
                return Err(Error::Protocol(message.to_string()));
            }
        }
    }

    /// Waits for the next event of that name and returns its data; drops other events before it.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when it doesn't come in time, [`Error::Io`] when QEMU goes away.
    pub fn wait_event(&mut self, name: &str, patience: Duration) -> Result<Value, Error> {
        let what = format!("event {name}");
        let deadline = Instant::now() + patience;
        loop {
            let mut event = match self.events.pop_front() {
                Some(event) => event,
                None => self
                    .message(&what, deadline.saturating_duration_since(Instant::now()))
                    .map_err(|error| match error {
                        Error::TimedOut { what, .. } => Error::TimedOut { what, after: patience },
                        other => other,
                    })?,
            };
            if event["event"] == name {
                return Ok(event["data"].take());
            }
        }
    }

    /// Reads one line, of which a part may have come before an earlier time-out.
    fn message(&mut self, what: &str, patience: Duration) -> Result<Value, Error> {
        let timed_out = || Error::TimedOut { what: what.to_owned(), after: patience };
        // A time-out of zero would mean none.
        let socket_time = patience.max(Duration::from_millis(1));
        self.lines.get_ref().set_read_timeout(Some(socket_time)).map_err(Error::io(what))?;
        match self.lines.read_line(&mut self.partial) {
            Ok(_) if self.partial.ends_with('\n') => {
                let line = std::mem::take(&mut self.partial);
                serde_json::from_str(&line).map_err(|_| Error::Protocol(line))
            }
            Ok(_) => Err(Error::io(what)(std::io::ErrorKind::UnexpectedEof.into())),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                Err(timed_out())
            }
            Err(error) => Err(Error::io(what)(error)),
        }
    }
}

/// Connects to a socket that may not be there yet.
pub(crate) fn connect(path: &Path, patience: Duration) -> Result<UnixStream, Error> {
    let deadline = Instant::now() + patience;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(source) => {
                return Err(Error::Io {
                    what: format!("connecting to {}", path.display()),
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A QEMU that says each of `lines` after one command (or at once, for the greeting).
    fn scripted(lines: &'static [&'static str]) -> (tempfile::TempDir, Result<Qmp, Error>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut commands = BufReader::new(stream.try_clone().expect("a second handle"));
            let mut stream = stream;
            for (number, said) in lines.iter().enumerate() {
                if number > 0 {
                    commands.read_line(&mut String::new()).expect("a command");
                }
                stream.write_all(said.as_bytes()).expect("a listener");
            }
        });
        let qmp = Qmp::connect(&path, Duration::from_secs(5));
        (dir, qmp)
    }

    const GREETING: &str = "{\"QMP\":{}}\n";
    const OK: &str = "{\"return\":{}}\n";

    #[test]
    fn an_event_before_the_answer_is_kept() {
        let (_dir, qmp) = scripted(&[
            GREETING,
            OK,
            "{\"event\":\"STOP\",\"data\":{\"n\":1}}\n{\"return\":{\"status\":\"paused\"}}\n",
        ]);
        let mut qmp = qmp.expect("a session");
        assert_eq!(qmp.execute("stop", json!({})).expect("an answer")["status"], "paused");
        assert_eq!(qmp.wait_event("STOP", Duration::from_secs(1)).expect("the event")["n"], 1);
    }

    #[test]
    fn a_refusal_carries_qemus_words() {
        let (_dir, qmp) = scripted(&[
            GREETING,
            OK,
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such bus\"}}\n",
        ]);
        let refused = qmp.expect("a session").execute("device_add", json!({}));
        assert_eq!(
            refused.expect_err("a refusal").to_string(),
            "QEMU refuses device_add: no such bus"
        );
    }

    #[test]
    fn an_event_that_does_not_come_times_out() {
        let (_dir, qmp) = scripted(&[GREETING, OK, OK]);
        let mut qmp = qmp.expect("a session");
        assert!(matches!(
            qmp.wait_event("DEVICE_DELETED", Duration::from_millis(30)),
            Err(Error::TimedOut { .. })
        ));
        qmp.execute("cont", json!({})).expect("a session that still works");
    }

    #[test]
    fn a_qemu_that_dies_is_an_error() {
        let (_dir, qmp) = scripted(&[GREETING]);
        assert!(matches!(qmp, Err(Error::Io { .. })));
    }
}
