// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of the virtio-rdma device that takes one step at a time: status, queues, control
//! commands, doorbells. It gives each queue a vector, and one command at a time to the device.

use std::time::{Duration, Instant};

use virtio_rdma_abi::config::{ABI_MAJOR, ABI_MINOR, Config, QUEUE_CONTROL, QUEUE_DOORBELL_FIRST};
use virtio_rdma_abi::control::{
    CMD_ALLOC_PD, CMD_DEALLOC_PD, CMD_INIT, CMD_QUERY_COUNTERS, ControlHeader, ControlStatus,
    Counters, InitRequest, NumberAnswer, NumberRequest, STATUS_OK,
};
use virtio_rdma_abi::{Le16, Le32, Le64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::error::{ensure, ensure_eq};
use crate::pci::VirtioFunction;
use crate::{Error, Qtest};

/// How long the daemon may take for a command, on a machine that does other things too.
pub(crate) const COMMAND_TIME: Duration = Duration::from_secs(60);

// Guest memory: interrupt words, status page, one command, rings.
const INTERRUPTS: u64 = 0x10_0000;
const STATUS_PAGE: u64 = 0x10_1000;
const REQUEST: u64 = 0x10_2000;
const ANSWER: u64 = 0x10_3000;
const RINGS: u64 = 0x20_0000;
const RING_BYTES: u64 = 0x4000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;

const ANSWER_BYTES: u32 = 1024;
/// Entries of the driver's rings, if the device has that many: few, so that they are soon used up.
const RING_ENTRIES: u16 = 64;

const STATUS_ACKNOWLEDGE: u8 = 1;
const STATUS_DRIVER: u8 = 2;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;

/// `VIRTIO_F_VERSION_1`, in the upper half of the features.
const VERSION_1: u32 = 1;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;

/// The status and the answer structure of a control command.
pub(crate) struct Answer {
    pub(crate) status: u32,
    pub(crate) bytes: Vec<u8>,
}

/// The driver's side of the device.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) pci: VirtioFunction,
    offered_size: u16,
    queue_size: u16,
    available: u16,
    sequence: u32,
}

impl Driver {
    /// Maps the device and resets it.
    pub(crate) fn probe(qtest: &mut Qtest) -> Result<Self, Error> {
        let driver = Self {
            pci: VirtioFunction::map(qtest)?,
            offered_size: 0,
            queue_size: 0,
            available: 0,
            sequence: 0,
        };
        driver.reset(qtest)?;
        Ok(driver)
    }

    /// Sets the device up as far as DRIVER_OK, with a fresh ring in each queue.
    pub(crate) fn start(&mut self, qtest: &mut Qtest) -> Result<(), Error> {
        self.reset(qtest)?;
        self.prepare(qtest)?;
        self.set_status(
            qtest,
            STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK,
        )
    }

    /// Resets the device and sets everything up but DRIVER_OK.
    pub(crate) fn prepare(&mut self, qtest: &mut Qtest) -> Result<(), Error> {
        self.set_status(qtest, STATUS_ACKNOWLEDGE | STATUS_DRIVER)?;
        self.common_write(qtest, 0x08, 4, 0)?;
        self.common_write(qtest, 0x0c, 4, 0)?;
        self.common_write(qtest, 0x08, 4, 1)?;
        self.common_write(qtest, 0x0c, 4, VERSION_1.into())?;
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.set_status(qtest, status)?;
        ensure_eq("the status after FEATURES_OK", self.status(qtest)?, status)?;

        qtest.write(INTERRUPTS, &[0; 4096])?;
        self.pci.interrupts_to_memory(qtest, INTERRUPTS)?;
        self.common_write(qtest, 0x10, 2, 0)?;
        for queue in 0..self.num_queues(qtest)? {
            self.common_write(qtest, 0x16, 2, queue.into())?;
            self.offered_size = self.common_read(qtest, 0x18, 2)? as u16;
            self.queue_size = self.offered_size.min(RING_ENTRIES);
            ensure(self.queue_size > 0, || format!("queue {queue} has no entries"))?;
            self.common_write(qtest, 0x18, 2, self.queue_size.into())?;
            let ring = RINGS + RING_BYTES * u64::from(queue);
            qtest.write(ring, &[0; RING_BYTES as usize])?;
            let vector = u64::from(queue) + 1;
            self.common_write(qtest, 0x1a, 2, vector)?;
            ensure_eq("a queue's vector", self.common_read(qtest, 0x1a, 2)?, vector)?;
            self.common_write_address(qtest, 0x20, ring)?;
            self.common_write_address(qtest, 0x28, ring + AVAIL)?;
            self.common_write_address(qtest, 0x30, ring + USED)?;
            self.common_write(qtest, 0x1c, 2, 1)?;
        }
        (self.available, self.sequence) = (0, 0);
        Ok(())
    }

    pub(crate) fn reset(&self, qtest: &mut Qtest) -> Result<(), Error> {
        self.set_status(qtest, 0)?;
        ensure_eq("the status after a reset", self.status(qtest)?, 0)
    }

    pub(crate) fn status(&self, qtest: &mut Qtest) -> Result<u8, Error> {
        Ok(self.common_read(qtest, 0x14, 1)? as u8)
    }

    fn set_status(&self, qtest: &mut Qtest, status: u8) -> Result<(), Error> {
        self.common_write(qtest, 0x14, 1, status.into())
    }

    pub(crate) fn num_queues(&self, qtest: &mut Qtest) -> Result<u16, Error> {
        Ok(self.common_read(qtest, 0x12, 2)? as u16)
    }

    /// Entries that the device has for each queue, known after [`Self::start`].
    pub(crate) fn offered_size(&self) -> u16 {
        self.offered_size
    }

    /// Reads the configuration space byte by byte, as a driver may.
    pub(crate) fn config(&self, qtest: &mut Qtest) -> Result<Config, Error> {
        let mut config = Config::new_zeroed();
        for (at, byte) in (0u64..).zip(config.as_mut_bytes()) {
            *byte = qtest.load(self.pci.device_config.address + at, 1)? as u8;
        }
        Ok(config)
    }

    /// Writes a byte of the configuration space, which a driver must not.
    pub(crate) fn write_config(&self, qtest: &mut Qtest, at: u64, byte: u8) -> Result<(), Error> {
        qtest.store(self.pci.device_config.address + at, 1, byte.into())
    }

    /// Puts a command into the control queue, and notifies the device.
    pub(crate) fn submit(
        &mut self,
        qtest: &mut Qtest,
        command: u16,
        request: &[u8],
    ) -> Result<(), Error> {
        self.sequence += 1;
        let header = ControlHeader {
            command: Le16::new(command),
            flags: Le16::new(0),
            sequence: Le32::new(self.sequence),
        };
        qtest.write(REQUEST, &[header.as_bytes(), request].concat())?;
        qtest.write(ANSWER, &[0xff; ANSWER_BYTES as usize])?;

        let ring = RINGS + RING_BYTES * u64::from(QUEUE_CONTROL);
        let request_bytes = (size_of::<ControlHeader>() + request.len()) as u32;
        qtest.write(ring, &descriptor(REQUEST, request_bytes, DESC_NEXT, 1))?;
        qtest.write(ring + 16, &descriptor(ANSWER, ANSWER_BYTES, DESC_WRITE, 0))?;
        let slot = u64::from(self.available % self.queue_size);
        qtest.store(ring + AVAIL + 4 + 2 * slot, 2, 0)?;
        self.available = self.available.wrapping_add(1);
        qtest.store(ring + AVAIL + 2, 2, self.available.into())?;
        self.notify(qtest, QUEUE_CONTROL)
    }

    /// Waits for the answer to what was submitted last.
    pub(crate) fn answer(&self, qtest: &mut Qtest) -> Result<Answer, Error> {
        let used = RINGS + RING_BYTES * u64::from(QUEUE_CONTROL) + USED;
        eventually("answer of the device to a control command", || {
            Ok(qtest.load(used + 2, 2)? as u16 == self.available)
        })?;
        let slot = u64::from(self.available.wrapping_sub(1) % self.queue_size);
        let written = qtest.load(used + 4 + 8 * slot + 4, 4)? as usize;
        ensure(written >= size_of::<ControlStatus>() && written <= ANSWER_BYTES as usize, || {
            format!("the device says that it wrote {written} bytes of answer")
        })?;
        let bytes = qtest.read(ANSWER, written)?;
        let (status, rest) = ControlStatus::read_from_prefix(&bytes)
            .map_err(|_| Error::check("the answer is shorter than its status"))?;
        ensure_eq("the answer's sequence number", status.sequence.get(), self.sequence)?;
        Ok(Answer { status: status.status.get(), bytes: rest.to_vec() })
    }

    /// Executes a command and returns its status and answer.
    pub(crate) fn execute(
        &mut self,
        qtest: &mut Qtest,
        command: u16,
        request: &[u8],
    ) -> Result<Answer, Error> {
        self.submit(qtest, command, request)?;
        self.answer(qtest)
    }

    /// Executes a command that must succeed, and returns its answer.
    pub(crate) fn must(
        &mut self,
        qtest: &mut Qtest,
        what: &str,
        command: u16,
        request: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let answer = self.execute(qtest, command, request)?;
        ensure_eq(&format!("the status of {what}"), answer.status, STATUS_OK)?;
        Ok(answer.bytes)
    }

    /// INIT, with one completion vector.
    pub(crate) fn init(&mut self, qtest: &mut Qtest) -> Result<(), Error> {
        let request = InitRequest {
            abi_major: Le16::new(ABI_MAJOR as u16),
            abi_minor: Le16::new(ABI_MINOR as u16),
            num_comp_vectors: Le32::new(1),
            status_page: Le64::new(STATUS_PAGE),
            capabilities: Le64::new(0),
        };
        self.must(qtest, "INIT", CMD_INIT, request.as_bytes()).map(drop)
    }

    /// ALLOC_PD: an object whose life shows whether the device kept its state.
    pub(crate) fn alloc_pd(&mut self, qtest: &mut Qtest) -> Result<u32, Error> {
        let bytes = self.must(qtest, "ALLOC_PD", CMD_ALLOC_PD, &[])?;
        let (answer, _) = NumberAnswer::read_from_prefix(&bytes)
            .map_err(|_| Error::check("ALLOC_PD's answer is short"))?;
        Ok(answer.number.get())
    }

    pub(crate) fn dealloc_pd(&mut self, qtest: &mut Qtest, pdn: u32) -> Result<u32, Error> {
        let request = NumberRequest { number: Le32::new(pdn), reserved: Le32::new(0) };
        Ok(self.execute(qtest, CMD_DEALLOC_PD, request.as_bytes())?.status)
    }

    pub(crate) fn doorbell_kicks(&mut self, qtest: &mut Qtest) -> Result<u64, Error> {
        let bytes = self.must(qtest, "QUERY_COUNTERS", CMD_QUERY_COUNTERS, &[])?;
        let (counters, _) = Counters::read_from_prefix(&bytes)
            .map_err(|_| Error::check("QUERY_COUNTERS' answer is short"))?;
        Ok(counters.doorbell_kicks.get())
    }

    /// Writes the notify address of vector 0's doorbell queue.
    pub(crate) fn ring_doorbell(&self, qtest: &mut Qtest) -> Result<(), Error> {
        self.notify(qtest, QUEUE_DOORBELL_FIRST)
    }

    /// How far the notify address of a queue is from the start of the notify region.
    pub(crate) fn notify_offset(&self, qtest: &mut Qtest, queue: u32) -> Result<u64, Error> {
        self.common_write(qtest, 0x16, 2, queue.into())?;
        let offset = self.common_read(qtest, 0x1e, 2)?;
        Ok(offset * u64::from(self.pci.notify_multiplier))
    }

    fn notify(&self, qtest: &mut Qtest, queue: u32) -> Result<(), Error> {
        let offset = self.notify_offset(qtest, queue)?;
        qtest.store(self.pci.notify.address + offset, 2, queue.into())
    }

    /// Clears the word of a vector, and says whether an interrupt had set it.
    pub(crate) fn take_interrupt(&self, qtest: &mut Qtest, vector: u16) -> Result<bool, Error> {
        let word = INTERRUPTS + 4 * u64::from(vector);
        let value = qtest.load(word, 4)?;
        qtest.store(word, 4, 0)?;
        ensure(value == 0 || value == u64::from(vector) + 1, || {
            format!("vector {vector} stored {value:#x}")
        })?;
        Ok(value != 0)
    }

    fn common_read(&self, qtest: &mut Qtest, at: u64, size: u8) -> Result<u64, Error> {
        qtest.load(self.pci.common.address + at, size)
    }

    fn common_write(&self, qtest: &mut Qtest, at: u64, size: u8, value: u64) -> Result<(), Error> {
        qtest.store(self.pci.common.address + at, size, value)
    }

    fn common_write_address(&self, qtest: &mut Qtest, at: u64, value: u64) -> Result<(), Error> {
        self.common_write(qtest, at, 4, value & 0xffff_ffff)?;
        self.common_write(qtest, at + 4, 4, value >> 32)
    }
}

/// Waits until `condition` holds.
pub(crate) fn eventually(
    what: &str,
    mut condition: impl FnMut() -> Result<bool, Error>,
) -> Result<(), Error> {
    let deadline = Instant::now() + COMMAND_TIME;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(Error::TimedOut { what: what.to_owned(), after: COMMAND_TIME });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
