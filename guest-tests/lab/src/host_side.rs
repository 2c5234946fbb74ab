// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's script has the lab do on the host (`lab-host WORD…`): vhost-rdma-ctl on the daemon of
//! the run, and plugging and unplugging of the guest's own device by QMP.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use qmp::Qmp;
use serde_json::json;

use crate::guest::qemu::{RDMA_ID, device_to_plug};

/// How long a guest may take to let go of its device.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host as the guests of one run may use it.
pub struct HostSide {
    /// vhost-rdma-ctl, and the daemon's management socket.
    pub ctl: Option<(PathBuf, PathBuf)>,
    /// Where the guests' QMP sockets are.
    pub folder: PathBuf,
    /// Completion vectors of a device.
    pub vectors: u32,
}

/// Where QEMU takes commands for guest `index`.
pub fn qmp_socket(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("qmp{index}.sock"))
}

impl HostSide {
    /// Does what guest `index` asks for. The answer is an exit status and output, in one line.
    pub fn act(&self, index: usize, words: &str) -> String {
        let (status, text) = match self.try_act(index, words) {
            Ok((status, text)) => (status, text),
            Err(error) => (125, format!("lab-host {words}: {error:#}\n")),
        };
        format!("{status} {}", text.replace('\n', "\\n"))
    }

    fn try_act(&self, index: usize, words: &str) -> Result<(i32, String)> {
        let (what, rest) = words.split_once(' ').unwrap_or((words, ""));
        match what {
            "ctl" => {
                let (ctl, socket) = self.ctl.as_ref().context("there is no daemon")?;
                let mut command = Command::new(ctl);
                command.arg("--control").arg(socket).args(rest.split_whitespace());
                let output = command.output().context("starting vhost-rdma-ctl")?;
                let text = [&output.stdout[..], &output.stderr].concat();
                let text = String::from_utf8_lossy(&text).into_owned();
                Ok((output.status.code().unwrap_or(125), text))
            }
            "unplug" => {
                let mut qmp = self.qmp(index)?;
                qmp.execute("device_del", json!({"id": RDMA_ID}))?;
                qmp.wait_event("DEVICE_DELETED", PATIENCE)?;
                Ok((0, String::new()))
            }
            "plug" => {
                self.qmp(index)?.execute("device_add", device_to_plug(self.vectors, index))?;
                Ok((0, String::new()))
            }
            other => bail!("the host knows no {other:?}: ctl, unplug, plug"),
        }
    }

    fn qmp(&self, index: usize) -> Result<Qmp> {
        Ok(Qmp::connect(&qmp_socket(&self.folder, index), PATIENCE)?)
    }
}
