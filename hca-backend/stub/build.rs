// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compiles the stub library, which is C as the real one is.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    println!("cargo::rerun-if-changed=src");
    let sources = ["device", "cq", "keys", "carry", "post", "qp", "measure"];
    let sources = sources.map(|name| format!("src/{name}.c"));
    let status = Command::new(&compiler)
        .args([
            "-std=gnu11",
            "-O2",
            "-g",
            "-Wall",
            "-Werror",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-o",
        ])
        .arg(out.join("libibverbs-stub.so"))
        .args(&sources)
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => println!("cargo::error=the stub library can't be compiled: {other:?}"),
    }
}
