// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests share: the example HCA, and clients that write down what happens to them.
#![allow(dead_code, reason = "each test uses a part")]

#[path = "../../examples/loopback_hca.rs"]
mod loopback_hca;

pub use loopback_hca::Loopback;

use std::sync::{Arc, Mutex};

use rdma_midlayer::{Client, Device, MaySleep};

pub type Log = Arc<Mutex<Vec<String>>>;

pub struct Recorder {
    name: String,
    log: Log,
}

impl Client for Recorder {
    fn name(&self) -> &str {
        &self.name
    }

    fn add(&self, _cx: &MaySleep, device: &Device) {
        self.log.lock().unwrap().push(format!("+{}:{}", self.name, device.name()));
    }

    fn remove(&self, _cx: &MaySleep, device: &Device) {
        self.log.lock().unwrap().push(format!("-{}:{}", self.name, device.name()));
    }
}

/// A log, and a maker of clients that write into it.
pub fn recorder() -> (Log, impl Fn(&str) -> Arc<Recorder>) {
    let log = Log::default();
    let make = {
        let log = log.clone();
        move |name: &str| Arc::new(Recorder { name: name.to_owned(), log: log.clone() })
    };
    (log, make)
}
