// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Address handles: a table in guest kernel memory, which a driver fills without telling anybody. A
//! send WQE of a UD QP names an entry; here it becomes the midlayer's handle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::Gid;
use rdma_midlayer::verbs::{Ah, Pd};
use virtio_rdma_abi::control::{AH_VALID, AddressVector, AhEntry};
use zerocopy::FromBytes;

/// VLAN of a path without one.
pub const NO_VLAN: u16 = 0xffff;
/// Handles that a QP remembers; then it begins anew.
const MAX_REMEMBERED: usize = 1024;

/// A driver's table.
#[derive(Clone)]
pub struct AhTable {
    memory: Arc<UserMemory>,
    entries: u32,
}

impl AhTable {
    /// A table of `entries` entries under the addresses from 0.
    pub fn new(memory: UserMemory, entries: u32) -> Self {
        Self { memory: Arc::new(memory), entries }
    }

    /// Its memory.
    pub fn memory(&self) -> &UserMemory {
        &self.memory
    }

    /// A copy of an entry, if it is in use.
    fn entry(&self, index: u32) -> Option<AhEntry> {
        let mut bytes = [0; size_of::<AhEntry>()];
        let at = u64::from(index) * bytes.len() as u64;
        if index >= self.entries || self.memory.read(at, &mut bytes).is_err() {
            return None;
        }
        AhEntry::read_from_bytes(&bytes).ok().filter(|e| e.flags.get() & AH_VALID != 0)
    }
}

/// The handles that one UD QP has used. Looked at by the QP's worker only: the lock is never
/// contended.
pub struct AhCache {
    table: AhTable,
    pd: Arc<Pd>,
    pdn: u32,
    known: Mutex<HashMap<u32, (AhEntry, Arc<Ah>)>>,
}

impl AhCache {
    /// For a QP of a PD.
    pub fn new(table: AhTable, pd: Arc<Pd>, pdn: u32) -> Self {
        Self { table, pd, pdn, known: Mutex::default() }
    }

    /// The handle that a WQE names: none if the entry is not in use, or of another PD, or makes no
    /// sense. Never sleeps.
    pub fn get(&self, index: u32) -> Option<Arc<Ah>> {
        let entry = self.table.entry(index).filter(|e| e.pdn.get() == self.pdn)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, ah)) = known.get(&index)
            && *of == entry
        {
            return Some(ah.clone());
        }
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        let ah = self.pd.create_ah(&path(&entry.av)).ok()?;
        known.insert(index, (entry, ah.clone()));
        Some(ah)
    }

    /// Forgets all handles, so that their PD can end.
    pub fn clear(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A path as the midlayer has it.
pub fn path(av: &AddressVector) -> AhAttr {
    let vlan = av.vlan.get();
    AhAttr {
        dgid: Gid(av.dgid),
        sgid_index: av.sgid_index.get(),
        dmac: av.dmac,
        vlan: (vlan != NO_VLAN).then_some(vlan),
        flow_label: av.flow_label.get(),
        hop_limit: av.hop_limit,
        traffic_class: av.traffic_class,
        sl: av.sl,
        static_rate: av.static_rate,
        port: av.port,
    }
}
