// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The initial RAM disk of a guest: the agent, the job it has to do, and everything of ours that
//! is laid over the guest's root. The agent's side is `guest-tests/agent`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::kernels::read_module;

/// What a guest's RAM disk holds.
#[derive(Default)]
pub struct Contents {
    /// The job's settings, in the agent's words.
    pub settings: Vec<(String, String)>,
    /// The statically linked agent.
    pub agent: PathBuf,
    /// Modules the kernel needs to find its root, in order.
    pub boot_modules: Vec<PathBuf>,
    /// Our modules, in order.
    pub modules: Vec<PathBuf>,
    /// The script and its arguments; none for a guest with a terminal.
    pub script: Option<(Vec<u8>, Vec<String>)>,
    /// Files for `/root` in the guest: host path, name.
    pub files: Vec<(PathBuf, String)>,
    /// Files for anywhere in the guest: host path, path without leading slash.
    pub overlay: Vec<(PathBuf, String)>,
    /// Commands for the guest's search path: host path, name.
    pub commands: Vec<(PathBuf, String)>,
}

/// Packs a RAM disk.
///
/// # Errors
/// When one of its files can't be read.
pub fn pack(contents: &Contents) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "new", "lower", "modules", "rw"] {
        archive.directory(folder);
    }
    let agent = read(&contents.agent)?;
    archive.file("init", 0o755, &agent);
    archive.file("lab/bin/lab-barrier", 0o755, &agent);
    let job: String =
        contents.settings.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    archive.file("lab/job", 0o644, job.as_bytes());
    for (folder, modules) in
        [("lab/boot-modules", &contents.boot_modules), ("lab/modules", &contents.modules)]
    {
        for (number, module) in modules.iter().enumerate() {
            archive.file(&format!("{folder}/{number:03}.ko"), 0o644, &read_module(module)?);
        }
    }
    if let Some((script, arguments)) = &contents.script {
        archive.file("lab/script", 0o755, script);
        let arguments: String = arguments.iter().map(|text| format!("{text}\n")).collect();
        archive.file("lab/arguments", 0o644, arguments.as_bytes());
    }
    for (folder, files) in [
        ("lab/files", &contents.files),
        ("lab/overlay", &contents.overlay),
        ("lab/bin", &contents.commands),
    ] {
        for (path, name) in files {
            let mode = fs::metadata(path)
                .with_context(|| format!("looking at {}", path.display()))?
                .permissions()
                .mode();
            archive.file(&format!("{folder}/{name}"), mode & 0o777, &read(path)?);
        }
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
