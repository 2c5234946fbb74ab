// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compiles the stub library, which is C as the real one is.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    for file in ["stub.c", "verbs.h"] {
        println!("cargo::rerun-if-changed=src/{file}");
    }
    let status = Command::new(&compiler)
        .args([
            "-std=gnu11",
            "-O2",
            "-g",
            "-Wall",
            "-Werror",
            "-shared",
            "-fPIC",
            "src/stub.c",
            "-o",
        ])
        .arg(out.join("libibverbs-stub.so"))
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => println!("cargo::error=the stub library can't be compiled: {other:?}"),
    }
}
