// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's clock, which counts nanoseconds and never goes back, and the host's wall clock.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// kHz of the device's clock.
pub const KHZ: u64 = 1_000_000;

/// When the clock was 1: it is never 0, which stands for "no timestamp".
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The device's clock and the wall clock, read together. No system call.
pub fn both() -> (u64, u64) {
    let now = START.elapsed().as_nanos() as u64 + 1;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    (now, wall)
}
