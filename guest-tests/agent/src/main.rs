// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first process of a lab guest. As `/init` of the initial RAM disk it mounts the root and
//! goes there; as `agent stage2` it sets the guest up and runs the job; as `lab-barrier` it is the
//! command by which scripts wait for each other, as `lab-host` that by which they have the host act. The lab's side of it is `guest-tests/lab`.

mod barrier;
mod channel;
mod host;
mod job;
mod root;
mod setup;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let result = match (name, arguments.next().as_deref()) {
        ("lab-host", first) => {
            let words: Vec<String> =
                first.map(str::to_owned).into_iter().chain(arguments).collect();
            return host::command(&words);
        }
        ("lab-barrier", given) => return barrier::command(given, arguments.next().as_deref()),
        ("init", _) => root::enter(),
        (_, Some("stage2")) => setup::run(),
        _ => Err("this program is a lab guest's first process, nothing to call by hand".into()),
    };
    if let Err(error) = result {
        eprintln!("guest-agent: {error}");
        // The lab shows the console's end when a guest stops before it said that it's ready.
        if std::process::id() == 1 {
            sys::power_off();
        }
    }
    ExitCode::FAILURE
}
