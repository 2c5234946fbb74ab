// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes into each guest's RAM disk: settings, modules, programs, the script.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Engine, Job, Parts};
use crate::guest::{Kind, qemu, ramdisk, uml};
use crate::{nested, network};

impl Parts {
    /// Packs the RAM disk of a guest, with those of the guests inside of it, and returns its place.
    pub(super) fn write_ramdisk(
        &self,
        folder: &Path,
        index: usize,
        job: Option<&Job>,
        terminal: bool,
        inner: &[PathBuf],
    ) -> Result<PathBuf> {
        let image = folder.join(format!("ramdisk{index}"));
        let mut contents = self.ramdisk(index, job, terminal)?;
        contents.files.extend(named(inner));
        fs::write(&image, ramdisk::pack(&contents)?)?;
        Ok(image)
    }

    fn ramdisk(
        &self,
        index: usize,
        job: Option<&Job>,
        terminal: bool,
    ) -> Result<ramdisk::Contents> {
        let count = self.shape.guests;
        let mut settings: Vec<(String, String)> = Vec::new();
        let mut set = |key: &str, value: String| settings.push((key.to_owned(), value));
        set("index", index.to_string());
        set("address", network::address(index));
        set("mtu", network::MTU.to_string());
        // Hosts of guests give them the device, and have none.
        let has_device = self.shape.rdma
            && index >= self.shape.outside
            && (self.shape.hosts == 0 || self.shape.is_inner(index));
        set("rdma", if has_device { "yes" } else { "no" }.to_owned());
        set("env.GUEST_INDEX", index.to_string());
        set("env.GUEST_COUNT", count.to_string());
        let kernel = match (&self.engine, &self.inner) {
            (_, Some((kernel, _))) if self.shape.is_inner(index) => Some(kernel),
            (Engine::Qemu { kernel, .. }, _) => Some(kernel),
            (Engine::Uml { .. }, _) => None,
        };
        let kind = if kernel.is_some() { Kind::Qemu } else { Kind::Uml };
        set("env.GUEST_KIND", kind.to_string());
        set("env.ADDR", network::address(index));
        let others = (1..count).map(|step| network::address((index + step) % count));
        set("env.PEER_ADDRS", others.collect::<Vec<_>>().join(" "));
        set("env.PEER_ADDR", network::address((index + 1) % count));
        for other in 0..count {
            set(&format!("env.ADDR_{other}"), network::address(other));
        }
        if let Some((kernel, nested)) = &self.inner {
            set("env.HOST_COUNT", self.shape.hosts.to_string());
            set("env.GUEST_LEVEL", if self.shape.is_inner(index) { "2" } else { "1" }.to_owned());
            set("env.INNER_MEMORY_MIB", nested::INNER_MEMORY_MIB.to_string());
            set("env.INNER_KERNEL_ARGUMENTS", qemu::kernel_arguments(false));
            // On this host; a host that can mount parts of it needs no disks.
            set("env.NESTED_TREE", nested.tree.display().to_string());
            set("env.INNER_ROOT", self.root.image.display().to_string());
            set("env.INNER_MODULES", kernel.modules_image.display().to_string());
            for other in self.shape.hosts..count {
                set(&format!("env.MAC_{other}"), network::mac_text(network::mac(other)));
            }
        }
        let mut boot_modules = Vec::new();
        match kernel {
            Some(kernel) => {
                for optional in qemu::OPTIONAL_BOOT_MODULES {
                    boot_modules.extend(kernel.modules_in_order(&[optional]).unwrap_or_default());
                }
                boot_modules.extend(kernel.modules_in_order(qemu::BOOT_MODULES)?);
                set("channel", format!("virtio:{}", qemu::LINE));
                set("netdev", "eth0".to_owned());
                if terminal {
                    set("terminal", "/dev/ttyS0".to_owned());
                }
            }
            None => {
                set("root.directory", self.root.directory.display().to_string());
                set("channel", uml::LINE.to_owned());
                set("netdev", uml::NETDEV.to_owned());
                // perftest wants a "cpu MHz" line, which UML's own file lacks.
                set("cpuinfo", "/lab/files/cpuinfo".to_owned());
                if terminal {
                    set("terminal", "/dev/tty0".to_owned());
                }
            }
        }
        if terminal {
            set("env.TERM", std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned()));
        }
        let mut files = named(job.map_or(&[][..], |job| &job.files));
        files.push((PathBuf::from("/proc/cpuinfo"), "cpuinfo".to_owned()));
        if let Some(module) = self.module.as_ref().filter(|_| index >= self.shape.hosts) {
            files.push((module.self_test.clone(), "rdma_selftest.ko".to_owned()));
            files.push((module.hold.clone(), "rdma_hold.ko".to_owned()));
            files.push((module.hostile.clone(), "uverbs_hostile".to_owned()));
        }
        let mut commands = vec![(self.verifier.clone(), "verifier".to_owned())];
        if index < self.shape.hosts {
            commands.extend(self.daemon.clone().map(|it| (it, "vhost-rdma".to_owned())));
            commands.extend(self.ctl.clone().map(|it| (it, "vhost-rdma-ctl".to_owned())));
        }
        let script = match job {
            Some(job) if !terminal => Some((job.script.clone(), job.arguments.clone())),
            _ if !terminal => Some((b"#!/bin/sh\nexec sleep infinity\n".to_vec(), Vec::new())),
            _ => None,
        };
        Ok(ramdisk::Contents {
            settings,
            agent: self.agent.clone(),
            boot_modules,
            modules: self
                .module
                .iter()
                .filter(|_| has_device)
                .map(|module| module.driver.clone())
                .collect(),
            script,
            files,
            overlay: self.provider.clone(),
            commands,
        })
    }
}

/// Host paths with their file names.
fn named(paths: &[PathBuf]) -> Vec<(PathBuf, String)> {
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(|path| (path.clone(), name(path))).collect()
}
