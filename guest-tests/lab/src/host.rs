// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab needs of the Debian host: packages installed by name, the mirror that the host's
//! own apt uses, the clock rate of its processor. Nothing here is about guests.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::output_of;
use crate::progress;

/// Host packages for making roots, images and kernels. QEMU's own build dependencies are
/// installed by its build script.
const PACKAGES: &[&str] = &[
    "mmdebstrap",
    "erofs-utils",
    "kmod",
    "xz-utils",
    "zstd",
    "util-linux",
    "dpkg",
    "cpio",
    "valgrind",
];

/// Installs those of the lab's host packages that are missing.
///
/// # Errors
/// When packages are missing and can't be installed (no root, no mirror, not a Debian).
pub fn ensure_packages() -> Result<()> {
    install(PACKAGES)
}

/// Installs packages that something is better with. Says so if that fails.
pub fn try_packages(packages: &[&str]) {
    if let Err(error) = install(packages) {
        progress::say(format_args!("without {}: {error:#}", packages.join(" ")));
    }
}

fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // SAFETY: geteuid touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        bail!(
            "these Debian packages are missing: {}; run the lab as root, or install them",
            missing.join(" ")
        );
    }
    progress::step(format_args!("installing host packages: {}", missing.join(" ")), || {
        apt_get(&["update"])?;
        let mut arguments = vec!["install", "-y", "--no-install-recommends"];
        arguments.extend(&missing);
        // Another installation at the same time can make dpkg fail in the middle.
        apt_get(&arguments).or_else(|_| {
            std::thread::sleep(std::time::Duration::from_secs(10));
            apt_get(&arguments)
        })
    })
}

fn is_installed(package: &str) -> bool {
    output_of(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status.trim() == "installed")
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    output_of(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-o", "DPkg::Lock::Timeout=600"])
            .args(arguments),
    )?;
    Ok(())
}

/// The address of the Debian archive that this host's apt uses for its own release; the guests'
/// releases come from the same place.
///
/// # Errors
/// When apt knows no such source, even after an update.
pub fn debian_mirror() -> Result<String> {
    if let Some(found) = mirror_in_apts_lists()? {
        return Ok(found);
    }
    apt_get(&["update"]).context("asking apt for its sources")?;
    mirror_in_apts_lists()?.context("apt has no Debian source to take the guests' packages from")
}

fn mirror_in_apts_lists() -> Result<Option<String>> {
    let targets = output_of(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(CODENAME)|$(REPO_URI)",
    ]))?;
    Ok(targets.lines().find_map(|line| {
        let mut fields = line.split('|');
        let (origin, codename, uri) = (fields.next()?, fields.next()?, fields.next()?);
        // "bookworm-updates" and "bookworm-security" may live elsewhere.
        (origin == "Debian" && !codename.contains('-'))
            .then(|| uri.trim_end_matches('/').to_owned())
    }))
}

/// The rate of the host's time stamp counter in kHz, as well as /proc/cpuinfo tells it. TCG
/// passes the counter on, and a guest that is told its rate needs no calibration loop.
pub fn tsc_khz() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let mhz: f64 = line.split(':').nth(1)?.trim().parse().ok()?;
    // A rate is a few million kHz: far inside both types.
    Some((mhz * 1000.0) as u64)
}
