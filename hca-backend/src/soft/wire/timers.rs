// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long IBA's timer codes are.

use std::time::Duration;

/// The local ACK time-out (IBA 9.7.6.1.3): 4.096 us * 2^code. The caller treats 0 as "never".
pub fn ack_timeout(code: u8) -> Duration {
    Duration::from_nanos(4096 << (code & 31))
}

/// The RNR NAK timer (IBA table 45).
pub fn rnr_delay(code: u8) -> Duration {
    const UNITS_OF_10_US: [u32; 32] = [
        65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
        1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    ];
    Duration::from_micros(10 * u64::from(UNITS_OF_10_US[usize::from(code & 31)]))
}

/// The RNR timer of a responder whose pages are missing: 20.48 ms, or its own if that is longer.
pub fn page_timer(own: u8) -> u8 {
    const PAGES: u8 = 22;
    if rnr_delay(own) > rnr_delay(PAGES) { own } else { PAGES }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_tables() {
        assert_eq!(rnr_delay(0), Duration::from_micros(655_360));
        assert_eq!(rnr_delay(12), Duration::from_micros(640));
        assert_eq!(rnr_delay(31), Duration::from_micros(491_520));
        assert_eq!(ack_timeout(14), Duration::from_nanos(67_108_864));
    }
}
