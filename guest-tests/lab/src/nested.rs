// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests inside of guests: the outer one (L1) is a host to the inner ones (L2), with a daemon and a
//! QEMU of its own. An outer one under QEMU has KVM for them, on the SVM that QEMU's TCG emulates; one of
//! User-Mode Linux has no KVM, but runs programs at native speed, and so QEMU's TCG. Here: what the outer
//! one needs. Its script starts daemon and inner guests (`guest-tests/scripts/nested-host.sh`).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::command::{output_of, run_logged};
use crate::kernels::Kernel;

/// Memory of an inner guest in MiB.
pub const INNER_MEMORY_MIB: u32 = 384;
/// Memory of an outer guest in MiB, without that of the inner ones.
pub const OUTER_MEMORY_MIB: u32 = 1400;

/// QEMU, the libraries it needs, and the kernel as an ELF file, which starts without unpacking itself.
pub struct Nested {
    /// A tree with them.
    pub tree: PathBuf,
    /// The same as an erofs image.
    pub image: PathBuf,
}

impl Nested {
    /// Finds it in the cache, or makes it.
    ///
    /// # Errors
    /// When it has to be made and can't be.
    pub fn make(cache: &Cache, qemu: &Path, kernel: &Kernel) -> Result<Self> {
        let key =
            Key::of("nested 2").text(&qemu.to_string_lossy()).text(&kernel.image.to_string_lossy());
        let place = cache.entry("nested", key, |place, log| {
            let tree = place.join("tree");
            for folder in ["bin", "lib", "share"] {
                fs::create_dir_all(tree.join(folder))?;
            }
            fs::copy(qemu, tree.join("bin/qemu-system-x86_64"))?;
            for library in libraries(qemu)? {
                let name = library.file_name().unwrap_or_default();
                fs::copy(&library, tree.join("lib").join(name))?;
            }
            let firmware = qemu.ancestors().nth(2).unwrap_or(qemu).join("share/qemu");
            run_logged(Command::new("cp").arg("-rL").arg(&firmware).arg(tree.join("share")), log)?;
            let packed = fs::read(&kernel.image).context("reading the kernel")?;
            fs::write(tree.join("vmlinux"), unpack_kernel(&packed)?)?;
            run_logged(Command::new("mkfs.erofs").arg(place.join("nested.erofs")).arg(&tree), log)
        })?;
        Ok(Self { tree: place.join("tree"), image: place.join("nested.erofs") })
    }
}

/// What a program is linked with, but for the C library, which the guest has, and newer.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = output_of(Command::new("ldd").arg(program))?;
    let of_libc = ["libc.so", "libm.so", "libpthread.so", "libdl.so", "librt.so", "ld-linux"];
    Ok(text
        .lines()
        .filter_map(|line| line.split_once("=>")?.1.split_whitespace().next())
        .filter(|path| path.starts_with('/') && !of_libc.iter().any(|name| path.contains(name)))
        .map(PathBuf::from)
        .collect())
}

/// The ELF file inside a bzImage. Where it lies, the header says (the kernel's
/// `Documentation/arch/x86/boot.rst`, `payload_offset` and `payload_length`).
fn unpack_kernel(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4).context("the kernel's image is too short")?;
        Ok::<usize, anyhow::Error>(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let sectors = image.get(0x1f1).map_or(4, |sectors| usize::from((*sectors).max(1)));
    let start = (sectors + 1) * 512 + word(0x248)?;
    let payload = start
        .checked_add(word(0x24c)?)
        .and_then(|end| image.get(start..end))
        .context("the kernel's image ends before what is packed in it")?;
    let program = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        [0x7f, b'E', b'L', b'F', ..] => return Ok(payload.to_vec()),
        _ => bail!("the kernel is packed in an unknown way"),
    };
    // The size of the unpacked kernel follows what is packed; gzip's own end says it already.
    let trailer = if program == "gzip" { 0 } else { 4 };
    let packed = &payload[..payload.len() - trailer];
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut input = child.stdin.take().context("no way into the program")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(packed));
        child.wait_with_output()
    })?;
    if !output.stdout.starts_with(b"\x7fELF") {
        bail!("{program} does not find the kernel: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_found_in_its_image_and_a_bad_image_is_no_panic() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x248] = 8;
        image[0x24c] = 6;
        image[1032..1038].copy_from_slice(b"\x7fELFok");
        assert_eq!(unpack_kernel(&image).unwrap(), b"\x7fELFok");
        image[1032] = 0;
        assert!(unpack_kernel(&image).is_err());
        image[0x24e] = 0xff;
        assert!(unpack_kernel(&image).is_err());
        assert!(unpack_kernel(&[0; 100]).is_err());
        assert!(unpack_kernel(&[]).is_err());
    }
}
