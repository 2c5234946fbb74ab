// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands of memory on demand: MRs whose pages the driver puts there and takes away.

use super::PageList;
use crate::describe::{abi_consts, abi_structs};
use crate::le::{Le32, Le64};

abi_structs! {
    /// REG_ODP_MR: an MR without pages, which MAP_PAGES puts there.
    pub struct RegOdpMrRequest {
        /// The PD.
        pub pdn: Le32,
        /// `ACCESS_*`.
        pub access: Le32,
        /// Address by which work requests name the first byte.
        pub iova: Le64,
        /// Bytes: 1 to `max_mr_size`; or `ODP_ALL`, with `iova` and `offset` 0.
        pub length: Le64,
        /// Bytes from the start of page 0 to the first byte.
        pub offset: Le64,
        /// A page is `2^page_shift` bytes: 12 to 30.
        pub page_shift: u8,
        /// Zero.
        pub reserved: [u8; 7],
    }

    /// MAP_PAGES: pages are there from now on.
    pub struct MapPagesRequest {
        /// The MR.
        pub mrn: Le32,
        /// `PAGES_*`.
        pub flags: Le32,
        /// The first page.
        pub first: Le64,
        /// Where they lie, in pages of the MR's size.
        pub pages: PageList,
    }

    /// UNMAP_PAGES and REFUSE_PAGES.
    pub struct PagesRequest {
        /// The MR.
        pub mrn: Le32,
        /// Zero.
        pub reserved: Le32,
        /// The first page.
        pub first: Le64,
        /// How many.
        pub count: Le64,
    }

    /// Answer to TAKE_PAGE_FAULT.
    pub struct PageFaultAnswer {
        /// The first page that is wanted.
        pub first: Le64,
        /// How many; 0: none.
        pub count: Le64,
        /// `PAGES_*`: what they are wanted for.
        pub flags: Le32,
        /// Zero.
        pub reserved: Le32,
    }
}

abi_consts! { PAGES_CONSTS, "Flags of MAP_PAGES and TAKE_PAGE_FAULT", u32;
    /// The pages may be written, or are to be.
    PAGES_WRITABLE = 1;
}

abi_consts! { ODP_CONSTS, "Memory on demand", u64;
    /// `RegOdpMrRequest::length`: every address.
    ODP_ALL = 0xffff_ffff_ffff_ffff;
}

abi_consts! { ODP_CAP_CONSTS, "What can use memory on demand, numbered as in libibverbs", u32;
    /// In `odp_caps`: MRs of REG_ODP_MR.
    ODP_SUPPORT = 1;
    /// In `odp_caps`: of `ODP_ALL`.
    ODP_SUPPORT_IMPLICIT = 2;
    /// In those of a transport: data of SENDs.
    ODP_SUPPORT_SEND = 1;
    /// Receive buffers.
    ODP_SUPPORT_RECV = 2;
    /// Both ends of RDMA WRITE.
    ODP_SUPPORT_WRITE = 4;
    /// Both ends of RDMA READ.
    ODP_SUPPORT_READ = 8;
    /// Both ends of atomics.
    ODP_SUPPORT_ATOMIC = 16;
    /// Receive buffers of SRQs.
    ODP_SUPPORT_SRQ_RECV = 32;
}
