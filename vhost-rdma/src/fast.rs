// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MRs for fast registration: the page arrays that a driver shares, and how a WR_REG_MR becomes the
//! midlayer's request. Who looks here is a worker that carries out WQEs of a kernel's QP.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::{Access, LKey, RKey};
use rdma_midlayer::work::{MwBind, RegMr};
use virtio_rdma_abi::control::{ACCESS_ZERO_BASED, KEY_TAG_MASK};
use virtio_rdma_abi::ring::{BindMwArgs, RegMrArgs};
use zerocopy::FromBytes;

use crate::control;
use crate::mapping::Identity;
use crate::memory::GuestMemory;

/// What `WR_REG_MR` puts behind an MR comes from here.
pub struct FastMr {
    /// The driver's array of addresses.
    list: UserMemory,
    max_pages: u32,
    /// Where the memory lies that was registered last.
    regions: Mutex<Option<Box<[Identity]>>>,
}

impl FastMr {
    /// Of an array that has room for `max_pages` addresses.
    pub fn new(list: UserMemory, max_pages: u32) -> Self {
        Self { list, max_pages, regions: Mutex::new(None) }
    }

    /// The array.
    pub fn list(&self) -> &UserMemory {
        &self.list
    }

    /// Whether all that was registered last is still there.
    pub fn is_held_by(&self, memory: &GuestMemory) -> bool {
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.as_ref().is_none_or(|regions| memory.holds(regions))
    }
}

/// The fast MRs of a driver by their key without its tag, and the memory that addresses are in.
pub struct FastMrs {
    memory: Arc<RwLock<GuestMemory>>,
    by_key: Mutex<HashMap<u32, Arc<FastMr>>>,
}

impl FastMrs {
    /// None yet. `memory` is the VM's as it is at any time.
    pub fn new(memory: Arc<RwLock<GuestMemory>>) -> Arc<Self> {
        Arc::new(Self { memory, by_key: Mutex::default() })
    }

    fn by_key(&self) -> MutexGuard<'_, HashMap<u32, Arc<FastMr>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An MR that work requests may name from now on.
    pub fn insert(&self, key: u32, mr: Arc<FastMr>) {
        self.by_key().insert(key & !KEY_TAG_MASK, mr);
    }

    /// No longer. Turns that have begun may still use it.
    pub fn remove(&self, key: u32) {
        self.by_key().remove(&(key & !KEY_TAG_MASK));
    }

    /// What a WR_REG_MR asks for; `None` if it makes no sense. Never sleeps: takes time in proportion
    /// to the pages, of which there are no more than the MR was made for.
    pub fn request(&self, key: u32, iova: u64, args: &[u8]) -> Option<RegMr> {
        let args = RegMrArgs::read_from_prefix(args).ok()?.0;
        let mr = self.by_key().get(&(key & !KEY_TAG_MASK))?.clone();
        let access = control::access(args.access.get()).ok()?;
        let count = args.num_pages.get();
        if count > mr.max_pages {
            return None;
        }
        let mut entries = vec![0; count as usize * 8];
        mr.list.read(0, &mut entries).ok()?;
        let start = if access.0 & ACCESS_ZERO_BASED != 0 { 0 } else { iova };
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner).clone();
        let pages = entries.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
        let (offset, length) = (u64::from(args.offset.get()), args.length.get());
        let user = memory.resolve_array(pages, args.page_shift, start, offset, length).ok()?;
        let regions = memory.regions_of(&user);
        *mr.regions.lock().unwrap_or_else(PoisonError::into_inner) = Some(regions);
        Some(RegMr { key: LKey(key), access: Access(access.0), memory: Arc::new(user) })
    }
}

/// What a WR_BIND_MW asks for; `None` if it makes no sense.
pub fn bind_request(rkey: u32, args: &[u8]) -> Option<MwBind> {
    let args = BindMwArgs::read_from_prefix(args).ok()?.0;
    Some(MwBind {
        rkey: RKey(rkey),
        lkey: LKey(args.lkey.get()),
        addr: args.addr.get(),
        length: args.length.get(),
        access: Access(args.access.get()),
    })
}
