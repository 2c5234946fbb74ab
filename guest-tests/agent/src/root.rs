// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the initial RAM disk to the guest's root: a read-only tree shared by all guests (erofs
//! images, or the host's directory in UML) with a RAM disk laid over it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::job::{FOLDER, Job};
use crate::sys::{self, Result};

/// Mounts the root and continues there as `agent stage2`. Returns only on failure.
pub fn enter() -> Result<()> {
    sys::mount("dev", "/dev", "devtmpfs", 0, "")?;
    sys::mount("proc", "/proc", "proc", 0, "")?;
    let job = Job::read()?;
    for module in sorted_files(&format!("{FOLDER}/boot-modules")) {
        sys::load_module(&module)?;
    }
    let lower = match job.find("root.directory") {
        Some(directory) => {
            sys::mount("none", "/lower", "hostfs", libc::MS_RDONLY, directory)?;
            "/lower"
        }
        None => {
            mount_image("/dev/vda", "/lower")?;
            mount_image("/dev/vdb", "/modules")?;
            "/modules:/lower"
        }
    };
    sys::mount("rw", "/rw", "tmpfs", 0, "size=75%")?;
    for folder in ["/rw/upper", "/rw/work"] {
        fs::create_dir(folder)?;
    }
    let layers = format!("lowerdir={lower},upperdir=/rw/upper,workdir=/rw/work");
    sys::mount("root", "/new", "overlay", 0, &layers)?;
    copy_tree(Path::new(FOLDER), Path::new("/new/lab"))?;
    for kind in ["dev", "proc"] {
        sys::mount(&format!("/{kind}"), &format!("/new/{kind}"), "", libc::MS_MOVE, "")?;
    }
    sys::switch_root("/new")?;
    Err(Command::new("/lab/bin/lab-barrier").arg0("agent").arg("stage2").exec().into())
}

/// Mounts a read-only disk, for which the kernel may still be looking.
fn mount_image(device: &str, place: &str) -> Result<()> {
    let begun = Instant::now();
    while !Path::new(device).exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    sys::mount(device, place, "erofs", libc::MS_RDONLY, "")
}

/// The files of a folder by name; none if the folder isn't there.
pub fn sorted_files(folder: &str) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Copies a tree of files and directories, with permissions.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
