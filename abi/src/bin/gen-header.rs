// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes the C header of the guest driver, or checks that it is current.

use std::process::ExitCode;

const USAGE: &str = "\
usage: gen-header [--check] FILE

Writes the C header of the guest driver, generated from the crate virtio-rdma-abi, to FILE.
With --check it writes nothing and fails if FILE differs.
The project's own: cargo run -p virtio-rdma-abi -- guest-driver/include/virtio_rdma_abi.h";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let header = virtio_rdma_abi::c_header();
    match args.as_slice() {
        ["--check", file] => match std::fs::read_to_string(file) {
            Ok(text) if text == header => ExitCode::SUCCESS,
            Ok(_) => fail(&format!(
                "{file} differs from abi/: run `cargo run -p virtio-rdma-abi -- {file}`"
            )),
            Err(e) => fail(&format!("{file}: {e}")),
        },
        ["--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        [file] if !file.starts_with('-') => match std::fs::write(file, header) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(&format!("{file}: {e}")),
        },
        _ => fail(USAGE),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
