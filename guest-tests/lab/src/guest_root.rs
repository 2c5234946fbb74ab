// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guests' user space: a Debian trixie tree, as a directory (UML) and as an erofs image
//! (QEMU). Kernels, our driver and a run's files are laid over it when a guest boots.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache::{Cache, Key};
use crate::command::run_logged;
use crate::host;
use crate::roots::mmdebstrap;

/// What every guest has.
const PACKAGES: &[&str] = &[
    "bash",
    "rdma-core",
    "ibverbs-utils",
    "rdmacm-utils",
    "perftest",
    "python3-pyverbs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "procps",
];

/// A guest's user space, read-only.
#[derive(Debug, Clone)]
pub struct GuestRoot {
    /// The tree.
    pub directory: PathBuf,
    /// The same as an erofs image.
    pub image: PathBuf,
}

/// The guest's user space with `extra` Debian packages on top of the usual ones.
///
/// # Errors
/// When it has to be made and can't be, for example because a package doesn't exist.
pub fn guest_root(cache: &Cache, extra: &[String]) -> Result<GuestRoot> {
    let mut packages: Vec<&str> = PACKAGES.to_vec();
    packages.extend(extra.iter().map(String::as_str));
    packages.sort_unstable();
    packages.dedup();
    let packages = packages.join(",");
    let name = if extra.is_empty() { "guest-root" } else { "guest-root-extra" };
    let place = cache.entry(name, Key::of("guest root 1").text(&packages), |place, log| {
        let mirror = host::debian_mirror()?;
        let tree = place.join("tree");
        let mut command = mmdebstrap(&packages);
        command.args(["--dpkgopt=path-exclude=/usr/share/man/*"]);
        command.args(["--dpkgopt=path-exclude=/usr/share/locale/*"]);
        command.arg("--customize-hook=rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\"");
        command.arg("trixie").arg(&tree);
        for suite in ["trixie", "trixie-backports"] {
            command.arg(format!("deb {mirror} {suite} main"));
        }
        run_logged(&mut command, log)?;
        run_logged(Command::new("mkfs.erofs").arg(place.join("root.erofs")).arg(&tree), log)
    })?;
    Ok(GuestRoot { directory: place.join("tree"), image: place.join("root.erofs") })
}
