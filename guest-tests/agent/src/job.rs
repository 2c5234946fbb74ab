// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The job: what the lab wants of this guest, a file of `key=value` lines in the initial RAM disk.

use std::collections::BTreeMap;

use crate::sys::Result;

/// Where the lab's files are, in the initial RAM disk and in the guest's root.
pub const FOLDER: &str = "/lab";

/// The job's settings by name.
pub struct Job(BTreeMap<String, String>);

impl Job {
    /// Reads the job.
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string(format!("{FOLDER}/job"))?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Ok(Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()))
    }

    /// A setting that must be there.
    pub fn get(&self, key: &str) -> Result<&str> {
        self.find(key).ok_or_else(|| format!("the job doesn't say {key}").into())
    }

    /// A setting that may be there.
    pub fn find(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The environment for the script: all settings named `env.NAME`.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(key, value)| Some((key.strip_prefix("env.")?, value.as_str())))
    }
}
