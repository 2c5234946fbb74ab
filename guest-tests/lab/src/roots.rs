// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Build roots: Debian trees with compilers and kernel headers, in which the guest's kernel
//! module, its provider and the UML kernel are built. Guests do not run from them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::command::run_logged;
use crate::host;

/// Where a build root sees the directory that a build writes to.
pub const WORK: &str = "/mnt/work";
/// Where a build root sees the sources of a build.
pub const SOURCE: &str = "/mnt/source";
/// Where the bookworm root sees the UML kernel's tree.
pub const UML: &str = "/mnt/uml";

/// A Debian tree that builds are run in.
#[derive(Debug, Clone)]
pub struct BuildRoot {
    /// The tree's place on the host.
    pub directory: PathBuf,
}

struct Recipe {
    name: &'static str,
    suite: &'static str,
    packages: &'static str,
    /// `apt` source lines without the mirror: type, suites.
    sources: &'static [(&'static str, &'static str)],
    hook: &'static str,
}

const TRIXIE: Recipe = Recipe {
    name: "build-root-trixie",
    suite: "trixie",
    packages: "gcc,make,libc6-dev,dpkg-dev,libibverbs-dev,python3-minimal,kmod",
    sources: &[("deb", "trixie"), ("deb", "trixie-backports"), ("deb-src", "trixie")],
    hook: include_str!("../recipes/trixie.sh"),
};

const BOOKWORM: Recipe = Recipe {
    name: "build-root-bookworm",
    suite: "bookworm",
    packages: "gcc,make,libc6-dev,flex,bison,bc,libelf-dev,libssl-dev,xz-utils,kmod",
    sources: &[("deb", "bookworm")],
    hook: include_str!("../recipes/bookworm.sh"),
};

impl BuildRoot {
    /// The root with the guests' user space headers, kernel headers 6.12 and newest, and sources.
    ///
    /// # Errors
    /// When it has to be made and can't be.
    pub fn trixie(cache: &Cache) -> Result<Self> {
        make(cache, &TRIXIE)
    }

    /// The root with kernel headers 6.1, and the C library that the host has: the UML kernel is
    /// built here, because it runs on the host.
    ///
    /// # Errors
    /// When it has to be made and can't be.
    pub fn bookworm(cache: &Cache) -> Result<Self> {
        make(cache, &BOOKWORM)
    }

    /// Runs a shell script inside the root, with `binds` (host directory, place inside) mounted in
    /// a mount namespace of its own: they are gone with the script, however it ends.
    ///
    /// # Errors
    /// When the script fails; the message carries the end of its output.
    pub fn run(&self, binds: &[(&Path, &str)], script: &str, log: &Path) -> Result<()> {
        let mut shell = String::from("set -eu\nroot=$1\nscript=$2\nshift 2\n");
        shell.push_str("while [ $# -gt 0 ]; do mount --bind \"$1\" \"$root$2\"; shift 2; done\n");
        shell.push_str("mount -t proc proc \"$root/proc\"\n");
        shell.push_str("exec chroot \"$root\" /bin/sh -euxc \"$script\"\n");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(shell).arg("lab").arg(&self.directory).arg(script);
        for (host, inside) in binds {
            command.arg(host).arg(inside);
        }
        // A build in the root must not be led astray by the host's environment.
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        run_logged(&mut command, log)
    }

    /// A file of the root as text, without surrounding white space.
    ///
    /// # Errors
    /// When it isn't there.
    pub fn read(&self, inside: &str) -> Result<String> {
        let path = self.directory.join(inside.trim_start_matches('/'));
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

fn make(cache: &Cache, recipe: &Recipe) -> Result<BuildRoot> {
    let mut key =
        Key::of("build root 1").text(recipe.suite).text(recipe.packages).text(recipe.hook);
    for (kind, suite) in recipe.sources {
        key = key.text(kind).text(suite);
    }
    let directory = cache.entry(recipe.name, key, |place, log| {
        let mirror = host::debian_mirror()?;
        let hook = place.with_extension("hook");
        std::fs::write(&hook, recipe.hook)?;
        let mut command = mmdebstrap(recipe.packages);
        command.arg(format!("--customize-hook=chroot \"$1\" sh -eux < '{}'", hook.display()));
        command.arg(recipe.suite).arg(place);
        for (kind, suite) in recipe.sources {
            command.arg(format!("{kind} {mirror} {suite} main"));
        }
        let made = run_logged(&mut command, log);
        std::fs::remove_file(&hook)?;
        made
    })?;
    Ok(BuildRoot { directory })
}

/// mmdebstrap as the lab always calls it: a minimal system plus `packages` (with commas).
pub fn mmdebstrap(packages: &str) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--format=directory"]);
    command.args(["--variant=minbase", "--aptopt=APT::Install-Recommends \"false\""]);
    command.arg(format!("--include={packages}"));
    command
}
