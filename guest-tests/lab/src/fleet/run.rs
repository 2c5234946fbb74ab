// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run from the boot to the last script's end: who is up, who waits at which barrier, who failed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command::{TAIL_LINES, tail};
use crate::daemon::Daemon;
use crate::guest::{Guest, Said};
use crate::host_side::HostSide;
use crate::progress;

/// How long the others may go on when a guest's script has failed.
const GRACE: Duration = Duration::from_secs(15);
/// How often a wait for guests looks whether the daemon still runs.
const LOOK: Duration = Duration::from_millis(500);

/// A boot that did not come to its end: worth one more try under emulation.
#[derive(Debug)]
pub(super) struct BootFailed(pub(super) String);

impl std::fmt::Display for BootFailed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BootFailed {}

/// How far a guest's script is.
pub(super) enum State {
    Booting,
    Ready,
    Running,
    Ended(i32),
}

impl State {
    pub(super) fn status(&self) -> i32 {
        match self {
            Self::Ended(status) => *status,
            _ => -1,
        }
    }

    fn is_ended(&self) -> bool {
        matches!(self, Self::Ended(_))
    }
}

/// The guests of one run with what is known of them.
pub(super) struct Run<'run> {
    /// How many are hosts to the others: their scripts start first, and boot the others.
    pub(super) hosts: usize,
    pub(super) guests: Vec<Guest>,
    pub(super) states: Vec<State>,
    pub(super) lines: Vec<Vec<String>>,
    /// Which guests wait where, and the value that each gave.
    pub(super) barriers: BTreeMap<String, BTreeMap<usize, String>>,
    pub(super) host: HostSide,
    pub(super) daemon: Option<&'run mut Daemon>,
    pub(super) consoles: &'run [PathBuf],
    pub(super) on_line: &'run mut dyn FnMut(usize, &str),
}

impl Run<'_> {
    pub(super) fn boot_and_finish(
        &mut self,
        events: &Receiver<(usize, Said)>,
        boot_patience: Duration,
        limit: Duration,
    ) -> Result<()> {
        let begun = Instant::now();
        let boot_until = begun + boot_patience;
        while self.states.iter().any(|state| matches!(state, State::Booting)) {
            if let Some(host) = (0..self.hosts).find(|host| self.states[*host].is_ended()) {
                return Err(self.boot_failed(host, "its script ended before all others were up"));
            }
            if !self.next(events, boot_until)? {
                let slow: Vec<usize> = (0..self.guests.len())
                    .filter(|index| matches!(self.states[*index], State::Booting))
                    .collect();
                let what = format!("not up after {} s", boot_patience.as_secs());
                return Err(self.boot_failed(slow[0], &what));
            }
        }
        progress::say(format_args!(
            "{} guests are up after {:.1} s",
            self.guests.len(),
            begun.elapsed().as_secs_f64()
        ));
        for (guest, state) in self.guests.iter_mut().zip(&mut self.states) {
            if matches!(state, State::Ready) {
                *state = State::Running;
                guest.tell("start")?;
            }
        }
        let mut until = Instant::now() + limit;
        let mut failed = None;
        while !self.states.iter().all(State::is_ended) {
            if failed.is_none()
                && let Some(index) =
                    self.states.iter().position(|state| !matches!(state.status(), 0 | -1))
            {
                failed = Some(index);
                until = until.min(Instant::now() + GRACE);
            }
            if self.next(events, until)? {
                continue;
            }
            let running: Vec<String> = (0..self.guests.len())
                .filter(|index| !self.states[*index].is_ended())
                .map(|index| format!("guest{index}"))
                .collect();
            let running = running.join(", ");
            if let Some(index) = failed {
                progress::say(format_args!(
                    "guest{index}'s script failed ({}); stopping {running}",
                    self.states[index].status()
                ));
                return Ok(());
            }
            bail!("time-out after {} s; still running: {running}", limit.as_secs());
        }
        for guest in &mut self.guests {
            guest.wait_off(Duration::from_secs(5));
        }
        Ok(())
    }

    /// Handles one event; false when `until` passes without one.
    fn next(&mut self, events: &Receiver<(usize, Said)>, until: Instant) -> Result<bool> {
        let (index, said) = loop {
            let left = until.saturating_duration_since(Instant::now());
            match events.recv_timeout(left.min(LOOK)) {
                Ok(event) => break event,
                Err(RecvTimeoutError::Timeout) if left > LOOK => {
                    if let Some(daemon) = &mut self.daemon {
                        daemon.check()?;
                    }
                }
                Err(_) => return Ok(false),
            }
        };
        match said {
            Said::Ready if index < self.hosts => {
                self.states[index] = State::Running;
                self.guests[index].tell("start")?;
            }
            Said::Ready => self.states[index] = State::Ready,
            Said::Output(line) => {
                (self.on_line)(index, &line);
                self.lines[index].push(line);
            }
            Said::Barrier(said) => self.arrive(index, &said),
            Said::Host(words) => {
                let answer = self.host.act(index, &words);
                let _ = self.guests[index].tell(&format!("did {answer}"));
            }
            Said::Exit(status) => self.end(index, status),
            Said::Gone => match self.states[index] {
                State::Booting => return Err(self.boot_failed(index, "stopped while it booted")),
                State::Ended(_) => {}
                _ => bail!("guest{index} stopped; its console ends:\n{}", self.console(index)),
            },
        }
        Ok(true)
    }

    /// A guest has come to a barrier: `said` is its name and the guest's value.
    fn arrive(&mut self, index: usize, said: &str) {
        let (name, value) = said.split_once(' ').unwrap_or((said, "-"));
        if self.states.iter().any(State::is_ended) {
            let _ = self.guests[index].tell(&format!("broken {name}"));
            return;
        }
        let waiting = self.barriers.entry(name.to_owned()).or_default();
        waiting.insert(index, value.to_owned());
        if waiting.len() == self.guests.len() {
            let values: Vec<String> = std::mem::take(waiting).into_values().collect();
            self.barriers.remove(name);
            for guest in &mut self.guests {
                let _ = guest.tell(&format!("go {name} {}", values.join(" ")));
            }
        }
    }

    fn end(&mut self, index: usize, status: i32) {
        // A guest that could not be set up ends without having run.
        self.states[index] = State::Ended(status);
        for (name, waiting) in std::mem::take(&mut self.barriers) {
            for other in waiting.into_keys() {
                let _ = self.guests[other].tell(&format!("broken {name}"));
            }
        }
    }

    fn boot_failed(&self, index: usize, what: &str) -> anyhow::Error {
        BootFailed(format!("guest{index}: {what}; its console ends:\n{}", self.console(index)))
            .into()
    }

    fn console(&self, index: usize) -> String {
        self.consoles.get(index).map_or_else(String::new, |console| tail(console, TAIL_LINES))
    }
}
