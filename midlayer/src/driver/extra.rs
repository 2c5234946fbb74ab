// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kinds of objects that an HCA may have and may lack: SRQ, AH, memory window, FMR, XRC domain.
//! The same rules as for the rest of `driver` hold.

use std::any::Any;
use std::sync::Arc;

use crate::attr::AhAttr;
use crate::context::MaySleep;
use crate::error::{Error, Result};
use crate::memory::UserMemory;
use crate::types::{LKey, RKey, Srqn};
use crate::work::RecvWr;

use super::{CqDriver, RecvSource};

/// How to make an SRQ (IBA 10.2.9).
pub struct SrqInit {
    /// Receive WRs it must hold.
    pub max_wr: u32,
    /// SGEs in a WR.
    pub max_sge: u32,
    /// Event `SrqLimitReached` when fewer WRs than this are left; 0 for none.
    pub limit: u32,
    /// The receive WQEs. Without it they come by `post_recv`. The driver may take WQEs for several
    /// QPs; still no two calls at once.
    pub recv_source: Option<Arc<dyn RecvSource>>,
    /// For an SRQ of an XRC domain: the domain, and the CQ of its messages.
    pub xrc: Option<XrcTarget>,
}

/// Where the messages of an XRC domain meet their SRQ.
#[derive(Clone)]
pub struct XrcTarget {
    /// The domain.
    pub domain: Arc<dyn XrcdDriver>,
    /// The CQ of the messages.
    pub cq: Arc<dyn CqDriver>,
}

/// Attributes of an SRQ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SrqAttr {
    /// Receive WRs it holds at the most.
    pub max_wr: u32,
    /// SGEs in a WR.
    pub max_sge: u32,
    /// The limit that is armed; 0 for none.
    pub limit: u32,
}

/// A shared receive queue.
pub trait SrqDriver: Any + Send + Sync {
    /// Its number.
    fn srqn(&self) -> Srqn;

    /// Whether the driver takes receive WQEs before messages come: then only it knows how many are
    /// left, and the limit is for `arm_limit`, not for who keeps the ring.
    fn takes_ahead(&self) -> bool {
        false
    }

    /// Arms the limit, or disarms it with 0. May sleep.
    fn arm_limit(&self, cx: &MaySleep, limit: u32) -> Result<()>;

    /// Changes how many WRs it holds at the most. A consumer that keeps the WQEs moves them itself. May
    /// sleep.
    ///
    /// # Errors
    /// `Invalid` if more are posted, or the limit is larger.
    fn resize(&self, _cx: &MaySleep, _max_wr: u32) -> Result<()> {
        Err(Error::Unsupported("SRQ resize"))
    }

    /// The attributes as they are. May sleep.
    fn query(&self, cx: &MaySleep) -> Result<SrqAttr>;

    /// Posts a receive WR. Never sleeps.
    ///
    /// # Errors
    /// `QueueFull`; `Unsupported` with a `RecvSource`.
    fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()>;

    /// The `RecvSource` has new WQEs. Never sleeps.
    fn recv_posted(&self);

    /// Ends the SRQ. Returns when the driver no longer touches it. May sleep.
    fn destroy(&self, cx: &MaySleep) -> Result<()>;
}

/// An address handle. None of its methods ever sleeps.
pub trait AhDriver: Any + Send + Sync {
    /// Changes the path. Never sleeps.
    fn modify(&self, attr: &AhAttr) -> Result<()>;

    /// The path. Never sleeps.
    fn query(&self) -> Result<AhAttr>;

    /// Ends the AH. Datagrams already posted may still use the path. Never sleeps. Not called for an AH
    /// that is left when its device goes: that one is dropped.
    fn destroy(&self) -> Result<()>;
}

/// A memory window.
pub trait MwDriver: Any + Send + Sync {
    /// Its key as it is now.
    fn rkey(&self) -> RKey;

    /// Ends the window. Returns when nothing reaches memory through it any more. May sleep.
    fn dealloc(&self, cx: &MaySleep) -> Result<()>;
}

/// Limits of an FMR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FmrAttr {
    /// Pages that one mapping may have.
    pub max_pages: u32,
    /// Mappings between two calls of `unmap`.
    pub max_maps: u32,
    /// Pages are of `1 << page_shift` bytes.
    pub page_shift: u8,
}

/// A fast memory region: an MR whose memory can be changed without sleeping.
pub trait FmrDriver: Any + Send + Sync {
    /// Local key as it is now.
    fn lkey(&self) -> LKey;

    /// Remote key as it is now.
    fn rkey(&self) -> RKey;

    /// Puts memory behind new keys; `memory.start()` is the address of its first byte. The keys
    /// before may go on working until `unmap`. Never sleeps.
    ///
    /// # Errors
    /// `Limit` after `max_maps` mappings.
    fn map_phys_fmr(&self, memory: Arc<UserMemory>) -> Result<()>;

    /// Takes all mappings away. Returns when nothing touches their memory any more. May sleep.
    fn unmap(&self, cx: &MaySleep) -> Result<()>;

    /// Ends the FMR. May sleep.
    fn dealloc(&self, cx: &MaySleep) -> Result<()>;
}

/// An XRC domain (IBA 10.2.12): SRQs and XRC targets meet in it.
pub trait XrcdDriver: Any + Send + Sync {
    /// Ends the domain. May sleep.
    fn dealloc(&self, cx: &MaySleep) -> Result<()>;
}

/// The driver's own form of an object that a consumer hands back to it: `own_any::<MySrq>(srq)`.
///
/// # Errors
/// `Invalid` if it belongs to another driver.
pub fn own_any<T: Any + Send + Sync>(object: Arc<dyn Any + Send + Sync>) -> Result<Arc<T>> {
    object.downcast().map_err(|_| crate::Error::Invalid("an object of another driver"))
}
