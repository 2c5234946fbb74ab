// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A writer of the "newc" cpio format, which is what the kernel unpacks as its initial RAM disk
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Only files and directories.

use std::collections::BTreeSet;

/// An archive in the making. Parent directories come by themselves.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

impl Archive {
    /// Adds a directory and its parents; `path` has no leading slash.
    pub fn directory(&mut self, path: &str) {
        let mut end = 0;
        for part in path.split('/') {
            end += part.len();
            let prefix = &path[..end];
            if !prefix.is_empty() && self.directories.insert(prefix.to_owned()) {
                self.record(prefix, DIRECTORY, &[]);
            }
            end += 1;
        }
    }

    /// Adds a file with its parent directories; `path` has no leading slash.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.record(path, FILE | permissions, content);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.record("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn record(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = 1;
        let name_size = name.len() + 1;
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor,
        // rdevminor, namesize, check
        let header = format!(
            "070701{:08X}{mode:08X}{:08X}{:08X}{links:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{name_size:08X}{:08X}",
            self.inode,
            0,
            0,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let missing = self.bytes.len().next_multiple_of(4) - self.bytes.len();
        self.bytes.extend(std::iter::repeat_n(0, missing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_unpacks_what_was_packed() {
        let mut archive = Archive::default();
        archive.file("lab/deep/one", 0o644, b"first\n");
        archive.file("lab/two", 0o755, b"");
        let bytes = archive.finish();
        let folder = tempfile::tempdir().unwrap();
        let Ok(mut child) = Command::new("cpio")
            .args(["-id", "--quiet"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .spawn()
        else {
            // cpio belongs to every Debian; without it there is nobody to ask.
            panic!("no cpio on this host");
        };
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        let first = std::fs::read_to_string(folder.path().join("lab/deep/one")).unwrap();
        assert_eq!(first, "first\n");
        assert!(folder.path().join("lab/two").exists());
    }
}
