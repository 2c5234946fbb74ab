// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lab-host WORD…`: a guest's script has the host do something (the lab's `host_side.rs` says what
//! there is), and gets its output and exit status. It goes the way of the barriers.

use std::process::ExitCode;

use crate::barrier;

/// The name under which the command waits; no barrier can have it.
pub const NAME: &str = "@host";

/// The command `lab-host WORD…`.
pub fn command(words: &[String]) -> ExitCode {
    if words.is_empty() || words.iter().any(|word| word.is_empty() || word.contains('\n')) {
        println!(
            "usage: lab-host WORD…\n\
             Has the lab do something on the host, one thing at a time for each guest:\n\
             ctl WORD…      vhost-rdma-ctl with these words, on the daemon that serves the guests\n\
             unplug, plug   this guest's RDMA device, by QEMU"
        );
        return ExitCode::from(2);
    }
    match barrier::ask(&format!("{NAME} {}", words.join(" "))) {
        Ok(answer) => {
            let (status, text) = answer.split_once(' ').unwrap_or((&answer, ""));
            print!("{}", text.replace("\\n", "\n"));
            ExitCode::from(status.parse().unwrap_or(125))
        }
        Err(error) => {
            eprintln!("lab-host: {error}");
            ExitCode::from(125)
        }
    }
}
