// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control virtqueue: takes a driver's commands apart, sees to their order and repetition, and
//! hands each to its own function. What the commands mean is docs/virtio-rdma.md, "Control commands".

mod cq;
mod dm;
mod init;
mod mcast;
mod memory;
mod on_demand;
mod qp;
mod query;
mod srq;
mod window;
mod xrc;

pub(crate) use dm::DmObject;
pub(crate) use memory::access;

use rdma_midlayer::{Error, MaySleep};
use virtio_rdma_abi::control::{self as abi, ControlHeader, ControlStatus};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::device::Device;
use crate::memory::PageListError;
use crate::session::Session;

/// Bytes of the longest request that the device reads; what a driver sends beyond is of later
/// versions and not looked at.
pub const MAX_REQUEST: usize = 4096;

/// `STATUS_*` other than OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self(match error {
            Error::Invalid(_) => abi::STATUS_INVALID,
            Error::BadState(_) => abi::STATUS_BAD_STATE,
            Error::Busy(_) => abi::STATUS_BUSY,
            Error::NotPermitted(_) => abi::STATUS_NOT_PERMITTED,
            Error::QueueFull | Error::Limit(_) => abi::STATUS_NO_RESOURCES,
            Error::Unsupported(_) => abi::STATUS_UNSUPPORTED,
            Error::Gone => abi::STATUS_NO_HCA,
            _ => abi::STATUS_DEVICE_ERROR,
        })
    }
}

impl From<PageListError> for Status {
    fn from(error: PageListError) -> Self {
        Self(match error {
            PageListError::Malformed => abi::STATUS_INVALID,
            PageListError::BadAddress(_) => abi::STATUS_BAD_ADDRESS,
        })
    }
}

/// Answer of a command: its structure's bytes, or why not.
type Answer = Result<Vec<u8>, Status>;

pub(crate) const INVALID: Status = Status(abi::STATUS_INVALID);
pub(crate) const NO_OBJECT: Status = Status(abi::STATUS_NO_OBJECT);
const NO_RESOURCES: Status = Status(abi::STATUS_NO_RESOURCES);
const NOT_PERMITTED: Status = Status(abi::STATUS_NOT_PERMITTED);
pub(crate) const BUSY: Status = Status(abi::STATUS_BUSY);
const UNSUPPORTED: Status = Status(abi::STATUS_UNSUPPORTED);

/// What the control virtqueue remembers between commands.
#[derive(Default)]
pub struct ControlState {
    last: Option<(u32, Vec<u8>)>,
    /// The driver's objects.
    pub session: Option<Session>,
}

/// Executes one command and returns the bytes to put into the writable part, of which there are
/// `room`. `None` if not even a status fits. May sleep.
pub fn execute(
    cx: &MaySleep,
    device: &Device,
    state: &mut ControlState,
    request: &[u8],
    room: usize,
) -> Option<Vec<u8>> {
    if room < size_of::<ControlStatus>() {
        log::warn!("{}: a control command without room for its status", device.name());
        return None;
    }
    let Ok((header, body)) = ControlHeader::read_from_prefix(request) else {
        return Some(answer(0, Err(Status(abi::STATUS_BAD_LENGTH))));
    };
    let (command, sequence) = (header.command.get(), header.sequence.get());
    if command != abi::CMD_INIT
        && let Some((last, stored)) = &state.last
        && *last == sequence
    {
        return Some(stored[..stored.len().min(room)].to_vec());
    }
    let call = Call { cx, device, session: &mut state.session, body };
    let result = call.dispatch(command, room - size_of::<ControlStatus>());
    if let Err(status) = result {
        use std::sync::atomic::Ordering::Relaxed;
        device.gate().counters().guest_errors.fetch_add(1, Relaxed);
        log::debug!("{}: command {command:#06x} answers status {}", device.name(), status.0);
    }
    let answer = answer(sequence, result);
    state.last = Some((sequence, answer.clone()));
    Some(answer)
}

fn answer(sequence: u32, result: Answer) -> Vec<u8> {
    let status = result.as_ref().map_or_else(|s| s.0, |_| abi::STATUS_OK);
    let status = ControlStatus { status: status.into(), sequence: sequence.into() };
    let mut bytes = status.as_bytes().to_vec();
    bytes.extend(result.unwrap_or_default());
    bytes
}

/// One command being executed.
struct Call<'c> {
    cx: &'c MaySleep,
    device: &'c Device,
    session: &'c mut Option<Session>,
    body: &'c [u8],
}

impl Call<'_> {
    fn dispatch(self, command: u16, room: usize) -> Answer {
        // Before anything is done: an answer that does not fit would leave an object without a name.
        if room < answer_bytes(command) {
            return Err(Status(abi::STATUS_BAD_LENGTH));
        }
        match command {
            abi::CMD_INIT => self.init(),
            abi::CMD_QUERY_DEVICE => self.query_device(),
            abi::CMD_QUERY_PORT => self.query_port(),
            abi::CMD_QUERY_COUNTERS => self.query_counters(),
            abi::CMD_QUERY_CLOCK => self.query_clock(),
            abi::CMD_ADD_GID => self.add_gid(),
            abi::CMD_DEL_GID => self.del_gid(),
            abi::CMD_CREATE_UAR => self.create_uar(),
            abi::CMD_DESTROY_UAR => self.destroy_uar(),
            abi::CMD_ALLOC_PD => self.alloc_pd(),
            abi::CMD_DEALLOC_PD => self.dealloc_pd(),
            abi::CMD_ALLOC_XRCD => self.alloc_xrcd(),
            abi::CMD_DEALLOC_XRCD => self.dealloc_xrcd(),
            abi::CMD_REG_MR => self.reg_mr(),
            abi::CMD_DEREG_MR => self.dereg_mr(),
            abi::CMD_GET_DMA_MR => self.get_dma_mr(),
            abi::CMD_ALLOC_MR => self.alloc_mr(),
            abi::CMD_REREG_MR => self.rereg_mr(),
            abi::CMD_ALLOC_MW => self.alloc_mw(),
            abi::CMD_DEALLOC_MW => self.dealloc_mw(),
            abi::CMD_ALLOC_DM => self.alloc_dm(),
            abi::CMD_FREE_DM => self.free_dm(),
            abi::CMD_COPY_DM => self.copy_dm(),
            abi::CMD_REG_DM_MR => self.reg_dm_mr(),
            abi::CMD_CREATE_CQ => self.create_cq(),
            abi::CMD_DESTROY_CQ => self.destroy_cq(),
            abi::CMD_RESIZE_CQ => self.resize_cq(),
            abi::CMD_MODIFY_CQ => self.modify_cq(),
            abi::CMD_CREATE_QP => self.create_qp(),
            abi::CMD_MODIFY_QP => self.modify_qp(),
            abi::CMD_QUERY_QP => self.query_qp(),
            abi::CMD_DESTROY_QP => self.destroy_qp(),
            abi::CMD_CREATE_SRQ => self.create_srq(),
            abi::CMD_MODIFY_SRQ => self.modify_srq(),
            abi::CMD_QUERY_SRQ => self.query_srq(),
            abi::CMD_DESTROY_SRQ => self.destroy_srq(),
            abi::CMD_RESIZE_SRQ => self.resize_srq(),
            abi::CMD_SET_AH_TABLE => self.set_ah_table(),
            abi::CMD_REG_ODP_MR => self.reg_odp_mr(),
            abi::CMD_MAP_PAGES => self.map_pages(),
            abi::CMD_UNMAP_PAGES => self.unmap_pages(),
            abi::CMD_TAKE_PAGE_FAULT => self.take_page_fault(),
            abi::CMD_REFUSE_PAGES => self.refuse_pages(),
            abi::CMD_ATTACH_MCAST => self.change_group(true),
            abi::CMD_DETACH_MCAST => self.change_group(false),
            _ => Err(Status(abi::STATUS_UNKNOWN_COMMAND)),
        }
    }

    /// The request's structure.
    fn request<T: FromBytes>(&self) -> Result<T, Status> {
        T::read_from_prefix(self.body).map(|(r, _)| r).map_err(|_| Status(abi::STATUS_BAD_LENGTH))
    }

    /// The request's number.
    fn number(&self) -> Result<u32, Status> {
        Ok(self.request::<abi::NumberRequest>()?.number.get())
    }

    /// What the driver has made since INIT.
    fn session(&mut self) -> Result<&mut Session, Status> {
        let device = self.device;
        self.session.as_mut().ok_or_else(|| {
            Status(if device.hca().is_none() {
                abi::STATUS_NO_HCA
            } else {
                abi::STATUS_NOT_INITIALIZED
            })
        })
    }
}

/// Bytes of a command's answer structure.
fn answer_bytes(command: u16) -> usize {
    match command {
        abi::CMD_INIT => size_of::<abi::InitAnswer>(),
        abi::CMD_QUERY_DEVICE => size_of::<abi::DeviceAttr>(),
        abi::CMD_QUERY_PORT => size_of::<abi::PortAttr>(),
        abi::CMD_QUERY_COUNTERS => size_of::<abi::Counters>(),
        abi::CMD_REG_MR
        | abi::CMD_GET_DMA_MR
        | abi::CMD_ALLOC_MR
        | abi::CMD_REREG_MR
        | abi::CMD_REG_DM_MR
        | abi::CMD_REG_ODP_MR => size_of::<abi::MrAnswer>(),
        abi::CMD_TAKE_PAGE_FAULT => size_of::<abi::on_demand::PageFaultAnswer>(),
        abi::CMD_ALLOC_MW => size_of::<abi::MwAnswer>(),
        abi::CMD_QUERY_CLOCK => size_of::<abi::ClockAnswer>(),
        abi::CMD_QUERY_QP => size_of::<abi::QpAttr>(),
        abi::CMD_QUERY_SRQ => size_of::<abi::SrqAttr>(),
        abi::CMD_CREATE_UAR
        | abi::CMD_ALLOC_DM
        | abi::CMD_ALLOC_PD
        | abi::CMD_ALLOC_XRCD
        | abi::CMD_CREATE_CQ
        | abi::CMD_RESIZE_CQ
        | abi::CMD_CREATE_SRQ
        | abi::CMD_CREATE_QP => size_of::<abi::NumberAnswer>(),
        _ => 0,
    }
}

fn number_answer(number: u32) -> Answer {
    Ok(bytes(&abi::NumberAnswer { number: number.into(), reserved: 0.into() }))
}

fn bytes<T: IntoBytes + Immutable>(answer: &T) -> Vec<u8> {
    answer.as_bytes().to_vec()
}
