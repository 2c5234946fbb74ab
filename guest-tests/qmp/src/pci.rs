// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What firmware and a PCI driver do, for one function behind one root port: configuration space,
//! the port's windows and hot-plug slot, BARs, capabilities, MSI-X.

use crate::error::ensure;
use crate::{Error, Qtest};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Where the root port's windows are, and so the BARs: below 4 GiB, above the guest's memory.
const PREFETCHABLE_BASE: u64 = 0xc000_0000;
const PREFETCHABLE_END: u64 = 0xc200_0000;
const MEMORY_BASE: u64 = 0xd000_0000;
const MEMORY_END: u64 = 0xd010_0000;

const COMMAND: u8 = 0x04;
const COMMAND_MEMORY: u32 = 0x2;
const COMMAND_MASTER: u32 = 0x4;
const CAPABILITIES: u8 = 0x34;
const BAR0: u8 = 0x10;

const CAP_VENDOR: u8 = 0x09;
const CAP_EXPRESS: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;

/// Slot control, from the start of the PCI Express capability; slot status is its upper half.
const SLOT_CONTROL: u8 = 0x18;
/// Power indicator on; power controller on is 0.
const SLOT_ON: u32 = 0x0100;
/// Power indicator off, power controller off.
const SLOT_OFF: u32 = 0x0700;

/// One PCI function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    bus: u8,
    slot: u8,
}

impl Function {
    pub(crate) const fn new(bus: u8, slot: u8) -> Self {
        Self { bus, slot }
    }

    /// Reads the 32 bits of configuration space that hold `offset`.
    pub(crate) fn read(self, qtest: &mut Qtest, offset: u8) -> Result<u32, Error> {
        self.select(qtest, offset)?;
        qtest.inl(CONFIG_DATA)
    }

    pub(crate) fn write(self, qtest: &mut Qtest, offset: u8, value: u32) -> Result<(), Error> {
        self.select(qtest, offset)?;
        qtest.outl(CONFIG_DATA, value)
    }

    fn select(self, qtest: &mut Qtest, offset: u8) -> Result<(), Error> {
        let address = 1 << 31
            | u32::from(self.bus) << 16
            | u32::from(self.slot) << 11
            | u32::from(offset & !3);
        qtest.outl(CONFIG_ADDRESS, address)
    }

    fn read16(self, qtest: &mut Qtest, offset: u8) -> Result<u16, Error> {
        Ok((self.read(qtest, offset)? >> (8 * (offset & 2))) as u16)
    }

    fn read8(self, qtest: &mut Qtest, offset: u8) -> Result<u8, Error> {
        Ok((self.read(qtest, offset)? >> (8 * (offset & 3))) as u8)
    }

    /// Vendor in the lower half, device in the upper; all ones when there is nothing.
    pub(crate) fn id(self, qtest: &mut Qtest) -> Result<u32, Error> {
        self.read(qtest, 0)
    }

    fn enable(self, qtest: &mut Qtest) -> Result<(), Error> {
        self.write(qtest, COMMAND, COMMAND_MEMORY | COMMAND_MASTER)
    }

    /// Offsets of the capabilities with that ID.
    fn capabilities(self, qtest: &mut Qtest, id: u8) -> Result<Vec<u8>, Error> {
        let mut found = Vec::new();
        let mut at = self.read8(qtest, CAPABILITIES)? & !3;
        // There is room for 48 of them: a longer list goes in circles.
        for _ in 0..48 {
            if at == 0 {
                return Ok(found);
            }
            let header = self.read16(qtest, at)?;
            if header as u8 == id {
                found.push(at);
            }
            at = (header >> 8) as u8 & !3;
        }
        Err(Error::check("the list of PCI capabilities has no end"))
    }
}

/// A root port, which has one slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RootPort {
    port: Function,
}

impl RootPort {
    /// Numbers the bus behind the port, opens its windows, and switches its slot's power on.
    pub(crate) fn set_up(qtest: &mut Qtest, slot: u8) -> Result<Self, Error> {
        let port = Function::new(0, slot);
        // Primary, secondary and subordinate bus: 0, 1, 1.
        port.write(qtest, 0x18, 0x0001_0100)?;
        port.write(qtest, 0x20, window(MEMORY_BASE, MEMORY_END))?;
        port.write(qtest, 0x24, window(PREFETCHABLE_BASE, PREFETCHABLE_END))?;
        port.write(qtest, 0x28, 0)?;
        port.write(qtest, 0x2c, 0)?;
        port.enable(qtest)?;
        let this = Self { port };
        this.power(qtest, true)?;
        Ok(this)
    }

    /// What a guest does after the attention button was pushed (off), or after something was
    /// plugged in (on).
    pub(crate) fn power(self, qtest: &mut Qtest, on: bool) -> Result<(), Error> {
        let express = self.port.capabilities(qtest, CAP_EXPRESS)?;
        let control = express
            .first()
            .ok_or_else(|| Error::check("the root port has no PCI Express capability"))?
            + SLOT_CONTROL;
        let value = if on { SLOT_ON } else { SLOT_OFF };
        // The status half's bits are cleared by writing ones.
        self.port.write(qtest, control, value | 0xffff_0000)
    }
}

/// Base and limit registers of a bridge's window.
fn window(base: u64, end: u64) -> u32 {
    let bits = |address: u64| (address >> 16) as u32 & 0xfff0;
    bits(end - 1) << 16 | bits(base)
}

/// A structure that a virtio capability names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) address: u64,
    pub(crate) length: u32,
}

/// A virtio function with its BARs mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VirtioFunction {
    function: Function,
    pub(crate) common: Region,
    pub(crate) notify: Region,
    /// Bytes between the notify addresses of two queues.
    pub(crate) notify_multiplier: u32,
    pub(crate) device_config: Region,
    msix: u8,
    msix_table: u64,
    /// Interrupt vectors of the function.
    pub(crate) vectors: u16,
}

impl VirtioFunction {
    /// Gives the function behind the root port addresses and reads where its structures are.
    pub(crate) fn map(qtest: &mut Qtest) -> Result<Self, Error> {
        let function = Function::new(1, 0);
        let bars = map_bars(qtest, function)?;
        let mut regions = [None; 6];
        let mut notify_multiplier = 0;
        for at in function.capabilities(qtest, CAP_VENDOR)? {
            let kind = usize::from(function.read8(qtest, at + 3)?);
            let bar = usize::from(function.read8(qtest, at + 4)?);
            let offset = function.read(qtest, at + 8)?;
            let length = function.read(qtest, at + 12)?;
            if let (Some(region), Some(&Some(base))) = (regions.get_mut(kind), bars.get(bar)) {
                *region = Some(Region { address: base + u64::from(offset), length });
                if kind == 2 {
                    notify_multiplier = function.read(qtest, at + 16)?;
                }
            }
        }
        let region = |kind: usize, name: &str| {
            regions[kind].ok_or_else(|| Error::check(format!("no virtio capability for {name}")))
        };
        let msix = *function
            .capabilities(qtest, CAP_MSIX)?
            .first()
            .ok_or_else(|| Error::check("the device has no MSI-X"))?;
        let vectors = (function.read(qtest, msix)? >> 16) as u16 & 0x7ff;
        let table = function.read(qtest, msix + 4)?;
        let table_bar = bars
            .get((table & 7) as usize)
            .copied()
            .flatten()
            .ok_or_else(|| Error::check("the MSI-X table is in no BAR"))?;
        Ok(Self {
            function,
            common: region(1, "the common configuration")?,
            notify: region(2, "notifications")?,
            notify_multiplier,
            device_config: region(4, "the device configuration")?,
            msix,
            msix_table: table_bar + u64::from(table & !7),
            vectors: vectors + 1,
        })
    }

    /// Has vector `n` store `n + 1` at `page + 4 * n` in guest memory: an interrupt that a test can
    /// read.
    pub(crate) fn interrupts_to_memory(self, qtest: &mut Qtest, page: u64) -> Result<(), Error> {
        for vector in 0..u64::from(self.vectors) {
            let entry = self.msix_table + 16 * vector;
            qtest.store(entry, 4, page + 4 * vector)?;
            qtest.store(entry + 4, 4, 0)?;
            qtest.store(entry + 8, 4, vector + 1)?;
            qtest.store(entry + 12, 4, 0)?;
        }
        self.function.write(qtest, self.msix, 1 << 31)
    }
}

/// Sizes the BARs and maps each into the window of its kind.
fn map_bars(qtest: &mut Qtest, function: Function) -> Result<[Option<u64>; 6], Error> {
    let mut bars = [None; 6];
    let (mut prefetchable, mut memory) = (PREFETCHABLE_BASE, MEMORY_BASE);
    let mut number = 0;
    while number < 6 {
        let at = BAR0 + 4 * number as u8;
        function.write(qtest, at, u32::MAX)?;
        let mask = function.read(qtest, at)?;
        let wide = mask & 0x6 == 0x4;
        if mask != 0 && mask & 1 == 0 {
            let size = u64::from(!(mask & !0xf)) + 1;
            let (next, end) = if mask & 0x8 != 0 {
                (&mut prefetchable, PREFETCHABLE_END)
            } else {
                (&mut memory, MEMORY_END)
            };
            let base = next.next_multiple_of(size);
            ensure(base + size <= end, || format!("BAR {number} of {size:#x} bytes has no room"))?;
            function.write(qtest, at, base as u32)?;
            if wide {
                function.write(qtest, at + 4, 0)?;
            }
            bars[number] = Some(base);
            *next = base + size;
        }
        number += if wide { 2 } else { 1 };
    }
    function.enable(qtest)?;
    Ok(bars)
}
