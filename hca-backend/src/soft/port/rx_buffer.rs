// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory for frames that come in. Those that go out are in a `FrameBatch`.

/// Memory for frames that come in: some slots of equal length.
#[derive(Debug, Default)]
pub struct RxBuffer {
    pub(super) bytes: Vec<u8>,
    pub(super) slot: usize,
}

impl RxBuffer {
    pub(super) fn new(slots: usize, slot: usize) -> Self {
        Self { bytes: vec![0; slots * slot], slot }
    }

    pub(super) fn slots(&mut self) -> std::slice::ChunksExactMut<'_, u8> {
        self.bytes.chunks_exact_mut(self.slot.max(1))
    }
}
