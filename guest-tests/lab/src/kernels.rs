// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernels that guests boot: Debian's images of three releases for QEMU, and a User-Mode
//! Linux kernel built from Debian's source. Our own module is not built here.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::command::run_logged;
use crate::roots::{BuildRoot, SOURCE, UML};

const UML_CONFIG: &str = include_str!("../uml.config");

/// A Debian kernel that QEMU guests can boot and our module is compiled against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Release {
    /// Debian 12's
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's
    #[value(name = "6.12")]
    V6_12,
    /// the newest in Debian 13's backports
    Newest,
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        })
    }
}

impl Release {
    /// The build root that has this kernel's headers and image.
    ///
    /// # Errors
    /// When the root has to be made and can't be.
    pub fn build_root(self, cache: &Cache) -> Result<BuildRoot> {
        match self {
            Self::V6_1 => BuildRoot::bookworm(cache),
            Self::V6_12 | Self::Newest => BuildRoot::trixie(cache),
        }
    }

    /// The release string of this kernel in `root`, as `uname -r` says it.
    ///
    /// # Errors
    /// When the root lacks it.
    pub fn version(self, root: &BuildRoot) -> Result<String> {
        root.read(&format!("/srv/kernels/{self}/release"))
    }
}

/// A Debian kernel, unpacked.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    /// An erofs image with `usr/lib/modules/VERSION`.
    pub modules_image: PathBuf,
    /// The directory `usr/lib/modules/VERSION` itself.
    pub modules: PathBuf,
}

/// A kernel's image and modules, as erofs and as files.
///
/// # Errors
/// When they have to be fetched or packed and can't be.
pub fn debian_kernel(cache: &Cache, release: Release) -> Result<Kernel> {
    let root = release.build_root(cache)?;
    let version = release.version(&root)?;
    let key = Key::of("kernel 1").text(&version).text(&root.directory.to_string_lossy());
    let place = cache.entry(&format!("kernel-{release}"), key, |place, log| {
        let unpacked = place.join("unpacked");
        fs::create_dir(&unpacked)?;
        for entry in fs::read_dir(root.directory.join(format!("srv/kernels/{release}")))? {
            let package = entry?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                run_logged(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked), log)?;
            }
        }
        // Newer packages have the image beside the modules.
        let image = [
            unpacked.join(format!("boot/vmlinuz-{version}")),
            unpacked.join(format!("usr/lib/modules/{version}/vmlinuz")),
        ]
        .into_iter()
        .find(|image| image.exists())
        .with_context(|| format!("Debian's packages of kernel {version} have no vmlinuz"))?;
        fs::rename(image, place.join("vmlinuz"))?;
        // Debian moved /lib to /usr/lib between the releases; guests have the new layout.
        let tree = place.join("tree");
        fs::create_dir_all(tree.join("usr/lib"))?;
        let old = unpacked.join("lib/modules");
        let from = if old.is_dir() { old } else { unpacked.join("usr/lib/modules") };
        fs::rename(from, tree.join("usr/lib/modules"))?;
        fs::remove_dir_all(&unpacked)?;
        std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
        run_logged(Command::new("depmod").arg("-b").arg(&tree).arg(&version), log)?;
        fs::remove_file(tree.join("lib"))?;
        run_logged(Command::new("mkfs.erofs").arg(place.join("modules.erofs")).arg(&tree), log)
    })?;
    Ok(Kernel {
        image: place.join("vmlinuz"),
        modules_image: place.join("modules.erofs"),
        modules: place.join("tree/usr/lib/modules").join(version),
    })
}

impl Kernel {
    /// The module files needed for `wanted`, each after those it depends on. Names of what is
    /// built into this kernel are left out.
    ///
    /// # Errors
    /// When the kernel's list of modules can't be read, or a name is neither module nor built-in.
    pub fn modules_in_order(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let depends =
            fs::read_to_string(self.modules.join("modules.dep")).context("reading modules.dep")?;
        // Newer kernels have this list in a package that has nothing else for us. Without it, what
        // is no module is taken for built in; if it isn't, the guest says what it misses.
        let builtin = fs::read_to_string(self.modules.join("modules.builtin")).ok();
        let mut order: Vec<&str> = Vec::new();
        for name in wanted {
            let is_it = |path: &str| module_name(path) == *name;
            let Some((file, needs)) = depends
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(file, _)| is_it(file))
            else {
                if builtin.as_ref().is_none_or(|list| list.lines().any(is_it)) {
                    continue;
                }
                bail!("kernel {} has no module {name}", self.modules.display());
            };
            // modules.dep names the deepest dependency last.
            for file in needs.split_whitespace().rev().chain([file]) {
                if !order.contains(&file) {
                    order.push(file);
                }
            }
        }
        Ok(order.into_iter().map(|file| self.modules.join(file)).collect())
    }
}

/// A module's name from its file's: `kernel/net/virtio-x.ko.xz` is `virtio_x`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Reads a module file, unpacked if it is compressed.
///
/// # Errors
/// When it can't be read or unpacked.
pub fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().context("starting xz")?;
        if !output.status.success() {
            bail!("unpacking {} failed", path.display());
        }
        return Ok(output.stdout);
    }
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// The tree of the UML kernel: `build/linux` is the kernel, and modules can be built against
/// `build` when the tree is bound to [`UML`] in the bookworm root. The kernel is a program of the
/// host, so it is built with the host's C library; its source is that of trixie's backports.
///
/// # Errors
/// When it has to be built and can't be.
pub fn uml_tree(cache: &Cache) -> Result<PathBuf> {
    let root = BuildRoot::bookworm(cache)?;
    let sources = BuildRoot::trixie(cache)?.directory.join("srv/sources");
    let key = Key::of("uml kernel 2")
        .text(UML_CONFIG)
        .text(&root.directory.to_string_lossy())
        .text(&sources.to_string_lossy());
    cache.entry("uml-kernel", key, |place, log| {
        fs::write(place.join("uml.config"), UML_CONFIG)?;
        root.run(
            &[(place, UML), (&sources, SOURCE)],
            "cd /mnt/uml
             dpkg-deb --fsys-tarfile /mnt/source/linux-source.deb > package.tar
             tar -xOf package.tar --wildcards '*/linux-source-*.tar.xz' | tar -xJ
             rm package.tar
             mv linux-source-* source
             make -C source ARCH=um O=/mnt/uml/build KCONFIG_ALLCONFIG=/mnt/uml/uml.config allnoconfig
             nice -n 5 make -C source ARCH=um O=/mnt/uml/build -j2
             # What module builds don't need is most of the tree.
             rm -rf source/Documentation source/drivers source/sound source/fs source/net
             find build -name '*.o' -not -path 'build/scripts/*' -delete
             find build -name '*.a' -delete
             rm -f build/vmlinux build/vmlinux.unstripped
             test -x build/linux",
            log,
        )
    })
}
