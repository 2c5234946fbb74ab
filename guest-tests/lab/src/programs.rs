// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the checkout itself holds and the lab builds: the daemon, the guest's agent and verifier
//! (by cargo), the kernel module and the provider (in build roots), QEMU (by its script).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key, list_files};
use crate::command::{output_of, run_logged};
use crate::kernels::{self, Release};
use crate::progress;
use crate::roots::{BuildRoot, SOURCE, UML, WORK};

/// The checkout that this lab was built from.
pub fn checkout() -> &'static Path {
    // The crate lies two folders deep.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// What scripts in guests share or run.
pub fn shared_scripts() -> Vec<PathBuf> {
    let folder = checkout().join("guest-tests/scripts");
    ["rdma.sh", "nested-host.sh", "loopback.py", "dmabuf.py"].map(|name| folder.join(name)).into()
}

/// Cargo, as the one that runs the lab.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(checkout());
    // Set by the cargo that runs the lab, for the lab's own package only.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            command.env_remove(name);
        }
    }
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
    command
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| checkout().join("target"), |place| checkout().join(place))
}

/// Builds the daemon and returns its path. Cargo itself keeps what is still current.
///
/// # Errors
/// When it doesn't compile.
pub fn daemon() -> Result<PathBuf> {
    build_here("vhost-rdma", "vhost-rdma")
}

/// Builds the program that speaks to a running daemon, and returns its path.
///
/// # Errors
/// When it doesn't compile.
pub fn ctl() -> Result<PathBuf> {
    build_here("vhost-rdma", "vhost-rdma-ctl")
}

/// Builds the guests' verifier, which loads libibverbs when it starts.
///
/// # Errors
/// When it doesn't compile.
pub fn verifier() -> Result<PathBuf> {
    build_here("verifier", "verifier")
}

fn build_here(package: &str, binary: &str) -> Result<PathBuf> {
    progress::say(format_args!("building {package} with cargo …"));
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--package", package, "--bin", binary]);
    output_of(&mut command).with_context(|| format!("building {package}"))?;
    Ok(target_directory().join("release").join(binary))
}

/// Builds an integration test of a package and returns a copy of it that has the test's name.
///
/// # Errors
/// When it doesn't compile.
pub fn test_program(package: &str, test: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--message-format", "json", "--package", package]);
    command.args(["--test", test]);
    let messages = output_of(&mut command).with_context(|| format!("building the test {test}"))?;
    // The last artifact that has an executable is the test.
    let built = messages
        .lines()
        .filter_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next())
        .next_back()
        .with_context(|| format!("cargo names no program for the test {test}"))?;
    let place = target_directory().join("lab-tests");
    fs::create_dir_all(&place)?;
    let copy = place.join(test);
    fs::copy(built, &copy).with_context(|| format!("copying {built}"))?;
    Ok(copy)
}

/// Builds the agent that is a guest's first process. It is linked statically: in the initial RAM
/// disk there is no C library.
///
/// # Errors
/// When it doesn't compile.
pub fn agent() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let target_directory = target_directory().join("guest-agent");
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--package", "guest-agent", "--target", TARGET]);
    command.arg("--target-dir").arg(&target_directory);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=debuginfo");
    output_of(&mut command).context("building the guests' agent")?;
    Ok(target_directory.join(TARGET).join("release/guest-agent"))
}

/// QEMU with our device: `VHOST_RDMA_QEMU` if that names one, else built from Debian's source
/// with the project's patch.
///
/// # Errors
/// When it has to be built and can't be.
pub fn qemu(cache: &Cache) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("VHOST_RDMA_QEMU") {
        return Ok(PathBuf::from(given));
    }
    let script = checkout().join("qemu/build.sh");
    let build = || {
        let mut command = Command::new("nice");
        command.args(["-n", "5"]).arg(&script).env("VHOST_RDMA_CACHE", cache.root());
        command
    };
    let place = output_of(build().arg("--path")).context("asking qemu/build.sh for its place")?;
    let place = Path::new(place.trim());
    cache.made_by_itself("qemu", place, |log| run_logged(build().arg(place), log))?;
    let binary = place.join("bin/qemu-system-x86_64");
    if !binary.exists() {
        bail!("qemu/build.sh left no {}", binary.display());
    }
    Ok(binary)
}

/// What our module is built against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleFor {
    /// A Debian kernel.
    Debian(Release),
    /// The User-Mode Linux kernel.
    Uml,
}

/// Our modules for a kernel.
#[derive(Debug, Clone)]
pub struct Module {
    /// `virtio_rdma.ko`.
    pub driver: PathBuf,
    /// `rdma_selftest.ko`, which uses any RDMA device as a kernel consumer does.
    pub self_test: PathBuf,
    /// `rdma_hold.ko`, which holds RDMA devices until they go.
    pub hold: PathBuf,
    /// `uverbs_hostile`, a program that tries what a process may not do to the driver.
    pub hostile: PathBuf,
}

/// Our modules, built for a kernel.
///
/// # Errors
/// When it doesn't compile.
pub fn module(cache: &Cache, kernel: ModuleFor) -> Result<Module> {
    let driver = checkout().join("guest-driver");
    let uml;
    let (name, root, make_arguments, mut key) = match kernel {
        ModuleFor::Debian(release) => {
            uml = None;
            let root = release.build_root(cache)?;
            let version = release.version(&root)?;
            let key = Key::of("module 3").text(&version).text(&root.directory.to_string_lossy());
            (format!("module-{release}"), root, format!("KDIR=/lib/modules/{version}/build"), key)
        }
        ModuleFor::Uml => {
            let tree = kernels::uml_tree(cache)?;
            let key = Key::of("module 3").text(&tree.to_string_lossy());
            uml = Some(tree);
            let arguments = format!("ARCH=um KDIR={UML}/build");
            ("module-uml".to_owned(), BuildRoot::bookworm(cache)?, arguments, key)
        }
    };
    for folder in ["kernel", "include"] {
        key = key.path(&driver.join(folder))?;
    }
    let place = cache.entry(&name, key, |place, log| {
        let mut binds = vec![(place, WORK), (driver.as_path(), SOURCE)];
        if let Some(tree) = &uml {
            binds.push((tree, UML));
        }
        // Built in a copy, so that the checkout stays clean and builds don't meet.
        let script = format!(
            "mkdir {WORK}/driver
             cp -r {SOURCE}/kernel {SOURCE}/include {WORK}/driver/
             for folder in kernel kernel/selftest; do
                 make -C {WORK}/driver/$folder {make_arguments} clean || true
                 make -C {WORK}/driver/$folder -j2 {make_arguments}
             done
             # Guests unpack them from their RAM disks.
             strip --strip-debug {WORK}/driver/kernel/*.ko {WORK}/driver/kernel/selftest/*.ko
             cp {WORK}/driver/kernel/virtio_rdma.ko {WORK}/driver/kernel/selftest/*.ko {WORK}/
             cp {WORK}/driver/kernel/selftest/uverbs_hostile {WORK}/
             rm -r {WORK}/driver"
        );
        root.run(&binds, &script, log)
    })?;
    Ok(Module {
        driver: place.join("virtio_rdma.ko"),
        self_test: place.join("rdma_selftest.ko"),
        hold: place.join("rdma_hold.ko"),
        hostile: place.join("uverbs_hostile"),
    })
}

/// The directory with the provider: `libvirtio_rdma-rdmavNN.so` and `virtio_rdma.driver`.
///
/// # Errors
/// When it doesn't compile.
pub fn provider(cache: &Cache) -> Result<PathBuf> {
    let driver = checkout().join("guest-driver");
    let root = BuildRoot::trixie(cache)?;
    let mut key = Key::of("provider 1").text(&root.directory.to_string_lossy());
    for folder in ["provider", "include"] {
        key = key.path(&driver.join(folder))?;
    }
    cache.entry("provider", key, |place, log| {
        let script = format!(
            "mkdir {WORK}/driver
             cp -r {SOURCE}/provider {SOURCE}/include {WORK}/driver/
             RDMA_CORE_TARBALL=/srv/sources/rdma-core.orig.tar.gz \
                 sh {WORK}/driver/provider/build.sh {WORK}
             rm -r {WORK}/driver"
        );
        root.run(&[(place, WORK), (&driver, SOURCE)], &script, log)
    })
}

/// The files of the provider in `place`, with where a guest wants each (no leading slash).
///
/// # Errors
/// When the directory can't be read, or lacks one of the two.
pub fn provider_files(place: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    list_files(place, &mut files)?;
    let wanted = |file: PathBuf| {
        let name = file.file_name()?.to_string_lossy().into_owned();
        let folder = match name.rsplit_once('.')?.1 {
            "so" => "usr/lib/x86_64-linux-gnu/libibverbs",
            "driver" => "etc/libibverbs.d",
            _ => return None,
        };
        Some((file, format!("{folder}/{name}")))
    };
    let files: Vec<_> = files.into_iter().filter_map(wanted).collect();
    if files.len() < 2 {
        bail!("the provider's build left {} of its files in {}", files.len(), place.display());
    }
    Ok(files)
}
