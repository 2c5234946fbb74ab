// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cache outside the checkout: each thing that is expensive to build lives in a directory
//! named after what it is and a hash of all its inputs. An entry is made in a temporary directory
//! and renamed, so one that exists is whole; a lock file keeps two labs from making the same one.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::progress;

/// Where entries are kept if `VHOST_RDMA_CACHE` doesn't say otherwise.
const DEFAULT_ROOT: &str = "/var/cache/vhost-rdma";

/// The cache's directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A hash over the inputs of a cache entry: strings, files and whole trees.
#[derive(Default)]
pub struct Key(Sha256);

impl Key {
    /// Starts a key from one text, which should hold a version of the recipe.
    pub fn of(text: &str) -> Self {
        Self::default().text(text)
    }

    /// Adds a text.
    pub fn text(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
        self
    }

    /// Adds a file's content, or every file below a directory with its name.
    ///
    /// # Errors
    /// When something there can't be read.
    pub fn path(mut self, path: &Path) -> Result<Self> {
        let mut files = Vec::new();
        list_files(path, &mut files)?;
        files.sort();
        for file in files {
            let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
            let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            self = self.text(&name);
            self.0.update((content.len() as u64).to_le_bytes());
            self.0.update(&content);
        }
        Ok(self)
    }

    /// The first 64 bits of the hash, as 16 hexadecimal digits.
    pub fn hex(self) -> String {
        self.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Adds the files at and below `path` to a list.
///
/// # Errors
/// When something there can't be read.
pub fn list_files(path: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let kind =
        fs::symlink_metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            list_files(&entry?.path(), into)?;
        }
    } else if kind.is_file() {
        into.push(path.to_owned());
    }
    Ok(())
}

impl Cache {
    /// Opens the cache that the environment names, making its directory if need be.
    ///
    /// # Errors
    /// When the directory can't be made.
    pub fn open() -> Result<Self> {
        let root = std::env::var_os("VHOST_RDMA_CACHE")
            .map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from);
        for folder in ["", "locks", "logs"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("making the cache directory {}", folder.display()))?;
        }
        Ok(Self { root })
    }

    /// The entry `name` for `key`: found, or made by `build` in a directory handed to it. `build`
    /// gets that directory and the path of a log file for the programs it runs.
    ///
    /// Sleeps while another lab makes the same entry.
    ///
    /// # Errors
    /// Those of `build`, and failures of the file system. A failed build leaves no entry.
    pub fn entry(
        &self,
        name: &str,
        key: Key,
        build: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let full_name = format!("{name}-{}", key.hex());
        let place = self.root.join(&full_name);
        if place.is_dir() {
            return Ok(place);
        }
        let _lock = self.lock(&full_name)?;
        if place.is_dir() {
            return Ok(place);
        }
        let unfinished = self.root.join(format!("{full_name}.unfinished"));
        remove_tree(&unfinished)?;
        fs::create_dir(&unfinished)?;
        let log = self.root.join("logs").join(format!("{full_name}.log"));
        let _ = fs::remove_file(&log);
        progress::step(format_args!("building {name} (log: {})", log.display()), || {
            build(&unfinished, &log)
        })?;
        fs::rename(&unfinished, &place)
            .with_context(|| format!("putting {} in place", place.display()))?;
        Ok(place)
    }

    /// Like [`Cache::entry`] for what a script of its own puts in place, whole or not at all.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn made_by_itself(
        &self,
        name: &str,
        place: &Path,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        if place.is_dir() {
            return Ok(());
        }
        let _lock = self.lock(name)?;
        if place.is_dir() {
            return Ok(());
        }
        let log = self.root.join("logs").join(format!("{name}.log"));
        let _ = fs::remove_file(&log);
        progress::step(format_args!("building {name} (log: {})", log.display()), || build(&log))
    }

    /// The cache's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join("locks").join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        // SAFETY: flock takes a descriptor, which `file` keeps open, and no memory.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            progress::say(format_args!("waiting for another lab that builds {name}"));
            // SAFETY: as above.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
                return Err(std::io::Error::last_os_error())
                    .with_context(|| format!("locking {}", path.display()));
            }
        }
        Ok(file)
    }
}

/// Removes a directory tree if it is there. A tree below `/proc`-like mounts is never one of ours:
/// build roots are entered in mount namespaces of their own.
///
/// # Errors
/// When something in it can't be removed.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_changes_with_a_files_content_and_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "one").unwrap();
        let first = Key::of("v1").path(folder.path()).unwrap().hex();
        fs::write(folder.path().join("a"), "two").unwrap();
        let second = Key::of("v1").path(folder.path()).unwrap().hex();
        fs::rename(folder.path().join("a"), folder.path().join("b")).unwrap();
        let third = Key::of("v1").path(folder.path()).unwrap().hex();
        assert_ne!(first, second);
        assert_ne!(second, third);
    }

    #[test]
    fn an_entry_is_built_once_and_a_failed_build_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["locks", "logs"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let cache = Cache { root: folder.path().to_owned() };
        let failed = cache.entry("thing", Key::of("k"), |place, _| {
            fs::write(place.join("half"), "")?;
            anyhow::bail!("no luck")
        });
        assert!(failed.is_err());
        let made = cache
            .entry("thing", Key::of("k"), |place, _| Ok(fs::write(place.join("whole"), "")?))
            .unwrap();
        assert!(made.join("whole").exists() && !made.join("half").exists());
        let again = cache.entry("thing", Key::of("k"), |_, _| anyhow::bail!("built twice"));
        assert_eq!(again.unwrap(), made);
    }
}
