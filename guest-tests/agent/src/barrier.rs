// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Barriers between the guests' scripts. `lab-barrier NAME [VALUE]` tells the agent over a Unix
//! socket, the agent tells the lab, and the lab answers all guests when the last one has come,
//! with everybody's values.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use crate::channel::Sender;
use crate::host;
use crate::sys::Result;

const SOCKET: &str = "/run/lab.sock";

/// The commands that wait, by barrier.
#[derive(Clone, Default)]
pub struct Waiting(Arc<Mutex<HashMap<String, Vec<UnixStream>>>>);

impl Waiting {
    /// Begins to serve `lab-barrier` commands of this guest.
    pub fn serve(&self, lab: Sender) -> Result<()> {
        let listener = UnixListener::bind(SOCKET)?;
        let waiting = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut name = String::new();
                if BufReader::new(&stream).read_line(&mut name).is_err() {
                    continue;
                }
                let said = name.trim().to_owned();
                let name = said.split(' ').next().unwrap_or_default().to_owned();
                let mut all = waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
                all.entry(name).or_default().push(stream);
                drop(all);
                match said.strip_prefix(host::NAME) {
                    Some(words) => lab.send(&format!("host{words}")),
                    None => lab.send(&format!("barrier {said}")),
                }
            }
        });
        Ok(())
    }

    /// Passes the lab's answer (`go` or `broken`) on to the commands that wait at a barrier.
    pub fn answer(&self, name: &str, answer: &str) {
        let waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        for mut stream in waiters.into_iter().flatten() {
            let _ = writeln!(stream, "{answer}");
        }
    }
}

/// The command `lab-barrier NAME [VALUE]`.
pub fn command(name: Option<&str>, value: Option<&str>) -> ExitCode {
    let is_word = |word: &str| !word.is_empty() && !word.contains(char::is_whitespace);
    let Some(name) =
        name.filter(|name| is_word(name) && !name.starts_with('-') && value.is_none_or(is_word))
    else {
        println!(
            "usage: lab-barrier NAME [VALUE]\n\
             Waits until the scripts of all guests have called it with this NAME, then prints the\n\
             VALUEs of all guests in their order, one a line, if this one gave one. No white space\n\
             in either. A NAME may be used again. Fails when another guest's script ended before."
        );
        return ExitCode::from(2);
    };
    match wait(name, value.unwrap_or("-")) {
        Ok(Some(values)) => {
            for value in values.split_whitespace().filter(|_| value.is_some()) {
                println!("{value}");
            }
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("lab-barrier {name}: another guest's script has ended");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("lab-barrier {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All guests' values, or None when the barrier is broken.
fn wait(name: &str, value: &str) -> Result<Option<String>> {
    let answer = ask(&format!("{name} {value}"))?;
    Ok(answer.trim().strip_prefix("go").map(str::to_owned))
}

/// The lab's answer to one line.
pub fn ask(line: &str) -> Result<String> {
    let mut stream = UnixStream::connect(SOCKET)?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end_matches('\n').to_owned())
}
