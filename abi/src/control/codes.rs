// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The numbers of the control virtqueue: commands, status, capabilities, and the codes of members.

use crate::describe::abi_consts;

abi_consts! { COMMAND_CONSTS, "Control commands, and the request and answer of each", u16;
    /// `InitRequest`, `InitAnswer`.
    CMD_INIT = 0x0001;
    /// No request, `DeviceAttr`.
    CMD_QUERY_DEVICE = 0x0002;
    /// `NumberRequest` (the port: 1), `PortAttr`.
    CMD_QUERY_PORT = 0x0003;
    /// No request, `Counters`.
    CMD_QUERY_COUNTERS = 0x0004;
    /// No request, `ClockAnswer`.
    CMD_QUERY_CLOCK = 0x0005;
    /// `AddGidRequest`, no answer.
    CMD_ADD_GID = 0x0010;
    /// `NumberRequest` (the index), no answer.
    CMD_DEL_GID = 0x0011;
    /// `CreateUarRequest`, `NumberAnswer`.
    CMD_CREATE_UAR = 0x0020;
    /// `NumberRequest`, no answer.
    CMD_DESTROY_UAR = 0x0021;
    /// No request, `NumberAnswer`.
    CMD_ALLOC_PD = 0x0030;
    /// `NumberRequest`, no answer.
    CMD_DEALLOC_PD = 0x0031;
    /// No request, `NumberAnswer`.
    CMD_ALLOC_XRCD = 0x0034;
    /// `NumberRequest`, no answer.
    CMD_DEALLOC_XRCD = 0x0035;
    /// `RegMrRequest`, `MrAnswer`.
    CMD_REG_MR = 0x0040;
    /// `NumberRequest`, no answer.
    CMD_DEREG_MR = 0x0041;
    /// `GetDmaMrRequest`, `MrAnswer`.
    CMD_GET_DMA_MR = 0x0042;
    /// `AllocMrRequest`, `MrAnswer`.
    CMD_ALLOC_MR = 0x0043;
    /// `ReregMrRequest`, `MrAnswer`.
    CMD_REREG_MR = 0x0044;
    /// `AllocMwRequest`, `MwAnswer`.
    CMD_ALLOC_MW = 0x0048;
    /// `NumberRequest`, no answer.
    CMD_DEALLOC_MW = 0x0049;
    /// `AllocDmRequest`, `NumberAnswer`.
    CMD_ALLOC_DM = 0x004a;
    /// `NumberRequest`, no answer.
    CMD_FREE_DM = 0x004b;
    /// `CopyDmRequest`, no answer.
    CMD_COPY_DM = 0x004c;
    /// `RegDmMrRequest`, `MrAnswer`.
    CMD_REG_DM_MR = 0x004d;
    /// `CreateCqRequest`, `NumberAnswer`.
    CMD_CREATE_CQ = 0x0050;
    /// `NumberRequest`, no answer.
    CMD_DESTROY_CQ = 0x0051;
    /// `ResizeCqRequest`, `NumberAnswer`.
    CMD_RESIZE_CQ = 0x0052;
    /// `ModifyCqRequest`, no answer.
    CMD_MODIFY_CQ = 0x0053;
    /// `CreateQpRequest`, `NumberAnswer`.
    CMD_CREATE_QP = 0x0060;
    /// `ModifyQpRequest`, no answer.
    CMD_MODIFY_QP = 0x0061;
    /// `NumberRequest`, `QpAttr`.
    CMD_QUERY_QP = 0x0062;
    /// `NumberRequest`, no answer.
    CMD_DESTROY_QP = 0x0063;
    /// `CreateSrqRequest`, `NumberAnswer`.
    CMD_CREATE_SRQ = 0x0070;
    /// `ModifySrqRequest`, no answer.
    CMD_MODIFY_SRQ = 0x0071;
    /// `NumberRequest`, `SrqAttr`.
    CMD_QUERY_SRQ = 0x0072;
    /// `NumberRequest`, no answer.
    CMD_DESTROY_SRQ = 0x0073;
    /// `ResizeSrqRequest` -> nothing.
    CMD_RESIZE_SRQ = 0x0074;
    /// `SetAhTableRequest`, no answer.
    CMD_SET_AH_TABLE = 0x0080;
    /// `McastRequest`, no answer.
    CMD_ATTACH_MCAST = 0x0090;
    /// `McastRequest`, no answer.
    CMD_DETACH_MCAST = 0x0091;
    /// `RegOdpMrRequest`, `MrAnswer`.
    CMD_REG_ODP_MR = 0x00a0;
    /// `MapPagesRequest`, no answer.
    CMD_MAP_PAGES = 0x00a1;
    /// `PagesRequest`, no answer.
    CMD_UNMAP_PAGES = 0x00a2;
    /// `NumberRequest` (the MR), `PageFaultAnswer`.
    CMD_TAKE_PAGE_FAULT = 0x00a3;
    /// `PagesRequest`, no answer.
    CMD_REFUSE_PAGES = 0x00a4;
}

abi_consts! { STATUS_CONSTS, "Status of a command", u32;
    /// Done.
    STATUS_OK = 0;
    /// The command is unknown.
    STATUS_UNKNOWN_COMMAND = 1;
    /// The readable or the writable part is too short for the command.
    STATUS_BAD_LENGTH = 2;
    /// A field has a value outside its range, or one that does not fit another field.
    STATUS_INVALID = 3;
    /// A number names nothing, or something of another kind.
    STATUS_NO_OBJECT = 4;
    /// Another object still uses this one, or the slot or index is taken.
    STATUS_BUSY = 5;
    /// A limit of the device is reached, or the host is out of memory.
    STATUS_NO_RESOURCES = 6;
    /// A page or table lies outside guest memory.
    STATUS_BAD_ADDRESS = 7;
    /// The QP's state does not allow it (IBA 10.3.1).
    STATUS_BAD_STATE = 8;
    /// The driver may not do this.
    STATUS_NOT_PERMITTED = 9;
    /// The HCA is gone.
    STATUS_NO_HCA = 10;
    /// INIT has not been done.
    STATUS_NOT_INITIALIZED = 11;
    /// The device (or its HCA) has no such thing.
    STATUS_UNSUPPORTED = 12;
    /// The host failed; the daemon's log says how.
    STATUS_DEVICE_ERROR = 13;
}

abi_consts! { CAP_CONSTS, "Capabilities, agreed in INIT", u64;
    /// QPs of type UC.
    CAP_UC = 1;
    /// QPs of type UD and GSI, and the table of address handles.
    CAP_UD = 2;
    /// Shared receive queues.
    CAP_SRQ = 4;
    /// RESIZE_CQ.
    CAP_CQ_RESIZE = 8;
    /// MODIFY_CQ.
    CAP_CQ_MODERATION = 0x10;
    /// `CQ_FLAG_TIMESTAMP`, QUERY_CLOCK.
    CAP_TIMESTAMP = 0x20;
    /// ALLOC_MR, `WR_REG_MR`, `WR_LOCAL_INV`, `WR_SEND_WITH_INV`.
    CAP_FAST_REG = 0x40;
    /// ALLOC_MW, DEALLOC_MW, `WR_BIND_MW`, `WR_LOCAL_INV`, `WR_SEND_WITH_INV`.
    CAP_MW = 0x80;
    /// REREG_MR.
    CAP_REREG_MR = 0x100;
    /// ATTACH_MCAST, DETACH_MCAST, `QP_FLAG_BLOCK_SELF_MCAST`.
    CAP_MCAST = 0x200;
    /// ALLOC_XRCD, DEALLOC_XRCD, SRQs and QPs of an XRC domain.
    CAP_XRC = 0x400;
    /// `WR_ATOMIC_WRITE`.
    CAP_ATOMIC_WRITE = 0x800;
    /// `WR_FLUSH`, `ACCESS_FLUSH_GLOBAL`.
    CAP_FLUSH = 0x1000;
    /// `LOCAL_DMA_LKEY`.
    CAP_LOCAL_DMA_LKEY = 0x2000;
    /// ALLOC_DM, FREE_DM, COPY_DM, REG_DM_MR.
    CAP_DEVICE_MEMORY = 0x4000;
    /// REG_ODP_MR and the commands of its pages.
    CAP_ON_DEMAND = 0x8000;
    /// RESIZE_SRQ.
    CAP_SRQ_RESIZE = 0x1_0000;
}

abi_consts! { AH_CONSTS, "Flags of an `AhEntry`", u32;
    /// The entry is in use.
    AH_VALID = 1;
}

abi_consts! { DEVICE_CAP_CONSTS, "Flags in `DeviceAttr::device_caps`", u64;
    /// The responder of an RC QP sends RNR NAKs.
    DEVICE_CAP_RC_RNR_NAK_GEN = 1;
    /// There is a key for all memory, for kernel consumers.
    DEVICE_CAP_LOCAL_DMA_LKEY = 2;
}

abi_consts! { ACCESS_CONSTS, "Access rights (IBA 10.6.3), numbered as in ib_verbs", u32;
    /// Local write. Local read is always allowed.
    ACCESS_LOCAL_WRITE = 1;
    /// Remote write; needs local write.
    ACCESS_REMOTE_WRITE = 2;
    /// Remote read.
    ACCESS_REMOTE_READ = 4;
    /// Remote atomics; needs local write.
    ACCESS_REMOTE_ATOMIC = 8;
    /// Memory windows may be bound.
    ACCESS_MW_BIND = 16;
    /// Addresses count from 0.
    ACCESS_ZERO_BASED = 32;
    /// FLUSH with global visibility.
    ACCESS_FLUSH_GLOBAL = 256;
    /// FLUSH with persistence: of QPs only.
    ACCESS_FLUSH_PERSISTENT = 512;
    /// Relaxed ordering: accepted, of no effect.
    ACCESS_RELAXED_ORDERING = 1048576;
}

abi_consts! { KEY_CONSTS, "Keys", u32;
    /// Local key of all guest-physical memory, in the WQEs of QPs with `QP_FLAG_KERNEL` only.
    LOCAL_DMA_LKEY = 1;
    /// The bits of a key that the driver chooses: of an MR of ALLOC_MR and of a memory window.
    KEY_TAG_MASK = 0xff;
}

abi_consts! { REREG_CONSTS, "What REREG_MR changes, numbered as in libibverbs", u32;
    /// The memory: `iova`, `length`, `offset`, `pages`.
    REREG_TRANSLATION = 1;
    /// `pdn`.
    REREG_PD = 2;
    /// `access`.
    REREG_ACCESS = 4;
}

abi_consts! { MW_TYPE_CONSTS, "Types of memory windows, numbered as in libibverbs", u32;
    /// Type 1: can be bound again and again, and used through any QP of its PD.
    MW_TYPE_1 = 1;
    /// Type 2B: bound once and then invalidated, and used through the QP only that bound it.
    MW_TYPE_2 = 2;
}

abi_consts! { CQ_FLAG_CONSTS, "Flags of CREATE_CQ", u32;
    /// CQEs carry `timestamp` and `wall_clock`.
    CQ_FLAG_TIMESTAMP = 1;
}

abi_consts! { QP_TYPE_CONSTS, "QP types, numbered as in libibverbs", u8;
    /// GSI (QP1).
    QP_TYPE_GSI = 1;
    /// Reliable connection.
    QP_TYPE_RC = 2;
    /// Unreliable connection.
    QP_TYPE_UC = 3;
    /// Unreliable datagram.
    QP_TYPE_UD = 4;
    /// Initiator of an extended reliable connection: sends only.
    QP_TYPE_XRC_INI = 9;
    /// Target of an extended reliable connection: receives into the SRQs of its domain only.
    QP_TYPE_XRC_TGT = 10;
}

abi_consts! { QP_FLAG_CONSTS, "Flags of CREATE_QP", u8;
    /// Of a kernel consumer: `WR_REG_MR`, `LOCAL_DMA_LKEY`, DMA MRs and QP1 are allowed.
    QP_FLAG_KERNEL = 1;
    /// Every send WQE makes a completion.
    QP_FLAG_SIGNAL_ALL = 2;
    /// UD: what it sends to a multicast group does not come back to itself.
    QP_FLAG_BLOCK_SELF_MCAST = 4;
}

abi_consts! { QP_CONSTS, "QPs", u32;
    /// `CreateQpRequest::srqn` of a QP with a receive queue of its own.
    NO_SRQ = 0xffff_ffff;
}

abi_consts! { QP_STATE_CONSTS, "QP states (IBA 10.3.1)", u8;
    /// Reset.
    QP_STATE_RESET = 0;
    /// Initialized.
    QP_STATE_INIT = 1;
    /// Ready to receive.
    QP_STATE_RTR = 2;
    /// Ready to send.
    QP_STATE_RTS = 3;
    /// Send queue drained.
    QP_STATE_SQD = 4;
    /// Send queue error.
    QP_STATE_SQE = 5;
    /// Error.
    QP_STATE_ERR = 6;
}

abi_consts! { QP_ATTR_CONSTS, "Mask of QP attributes, numbered as in ib_verbs", u32;
    /// `qp_state`.
    QP_ATTR_STATE = 0x1;
    /// `cur_qp_state`.
    QP_ATTR_CUR_STATE = 0x2;
    /// An event when the send queue is drained.
    QP_ATTR_EN_SQD_ASYNC_NOTIFY = 0x4;
    /// `access`.
    QP_ATTR_ACCESS_FLAGS = 0x8;
    /// `pkey_index`.
    QP_ATTR_PKEY_INDEX = 0x10;
    /// `port`.
    QP_ATTR_PORT = 0x20;
    /// `qkey`.
    QP_ATTR_QKEY = 0x40;
    /// `av`.
    QP_ATTR_AV = 0x80;
    /// `path_mtu`.
    QP_ATTR_PATH_MTU = 0x100;
    /// `timeout`.
    QP_ATTR_TIMEOUT = 0x200;
    /// `retry_cnt`.
    QP_ATTR_RETRY_CNT = 0x400;
    /// `rnr_retry`.
    QP_ATTR_RNR_RETRY = 0x800;
    /// `rq_psn`.
    QP_ATTR_RQ_PSN = 0x1000;
    /// `max_rd_atomic`.
    QP_ATTR_MAX_QP_RD_ATOMIC = 0x2000;
    /// `min_rnr_timer`.
    QP_ATTR_MIN_RNR_TIMER = 0x8000;
    /// `sq_psn`.
    QP_ATTR_SQ_PSN = 0x10000;
    /// `max_dest_rd_atomic`.
    QP_ATTR_MAX_DEST_RD_ATOMIC = 0x20000;
    /// `dest_qpn`.
    QP_ATTR_DEST_QPN = 0x100000;
}

abi_consts! { GID_TYPE_CONSTS, "GID types", u8;
    /// RoCE version 2: the GID is an IPv6 or an IPv4-mapped address.
    GID_TYPE_ROCE_V2 = 2;
}
