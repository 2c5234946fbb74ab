/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause OR Apache-2.0 OR BSD-3-Clause */
/* Generated from abi/ by `cargo run -p virtio-rdma-abi`: do not edit. */
#ifndef VIRTIO_RDMA_ABI_H
#define VIRTIO_RDMA_ABI_H

#include <linux/types.h>
#ifdef __KERNEL__
#include <linux/build_bug.h>
#include <linux/stddef.h>
#else
#include <assert.h>
#include <stddef.h>
#endif

/* The device. */
/* The virtio device ID of an RDMA device. */
#define VIRTIO_RDMA_DEVICE_ID 0x2au
/* Version of this interface: a driver and a device with different majors do not work together. */
#define VIRTIO_RDMA_ABI_MAJOR 1
/* Minor version: counts additions; a higher one is always usable by a lower one. */
#define VIRTIO_RDMA_ABI_MINOR 0
/* The control virtqueue. */
#define VIRTIO_RDMA_QUEUE_CONTROL 0
/* The event virtqueue: asynchronous events and hot-plug. */
#define VIRTIO_RDMA_QUEUE_EVENT 1
/* Completion virtqueue of vector 0; that of vector `v` is this plus `2 * v`. */
#define VIRTIO_RDMA_QUEUE_COMP_FIRST 2
/*
 * Doorbell virtqueue of vector 0; that of vector `v` is this plus `2 * v`. It never carries a
 * buffer: its notify address is the doorbell of the worker that serves the vector.
 */
#define VIRTIO_RDMA_QUEUE_DOORBELL_FIRST 3
/* Completion vectors at the most (64 virtqueues in all). */
#define VIRTIO_RDMA_MAX_COMP_VECTORS 0x1fu

/* Control commands, and the request and answer of each. */
/* `InitRequest`, `InitAnswer`. */
#define VIRTIO_RDMA_CMD_INIT 1
/* No request, `DeviceAttr`. */
#define VIRTIO_RDMA_CMD_QUERY_DEVICE 2
/* `NumberRequest` (the port: 1), `PortAttr`. */
#define VIRTIO_RDMA_CMD_QUERY_PORT 3
/* No request, `Counters`. */
#define VIRTIO_RDMA_CMD_QUERY_COUNTERS 4
/* No request, `ClockAnswer`. */
#define VIRTIO_RDMA_CMD_QUERY_CLOCK 5
/* `AddGidRequest`, no answer. */
#define VIRTIO_RDMA_CMD_ADD_GID 0x10u
/* `NumberRequest` (the index), no answer. */
#define VIRTIO_RDMA_CMD_DEL_GID 0x11u
/* `CreateUarRequest`, `NumberAnswer`. */
#define VIRTIO_RDMA_CMD_CREATE_UAR 0x20u
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DESTROY_UAR 0x21u
/* No request, `NumberAnswer`. */
#define VIRTIO_RDMA_CMD_ALLOC_PD 0x30u
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DEALLOC_PD 0x31u
/* No request, `NumberAnswer`. */
#define VIRTIO_RDMA_CMD_ALLOC_XRCD 0x34u
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DEALLOC_XRCD 0x35u
/* `RegMrRequest`, `MrAnswer`. */
#define VIRTIO_RDMA_CMD_REG_MR 0x40u
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DEREG_MR 0x41u
/* `GetDmaMrRequest`, `MrAnswer`. */
#define VIRTIO_RDMA_CMD_GET_DMA_MR 0x42u
/* `AllocMrRequest`, `MrAnswer`. */
#define VIRTIO_RDMA_CMD_ALLOC_MR 0x43u
/* `ReregMrRequest`, `MrAnswer`. */
#define VIRTIO_RDMA_CMD_REREG_MR 0x44u
/* `AllocMwRequest`, `MwAnswer`. */
#define VIRTIO_RDMA_CMD_ALLOC_MW 0x48u
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DEALLOC_MW 0x49u
/* `AllocDmRequest`, `NumberAnswer`. */
#define VIRTIO_RDMA_CMD_ALLOC_DM 0x4au
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_FREE_DM 0x4bu
/* `CopyDmRequest`, no answer. */
#define VIRTIO_RDMA_CMD_COPY_DM 0x4cu
/* `RegDmMrRequest`, `MrAnswer`. */
#define VIRTIO_RDMA_CMD_REG_DM_MR 0x4du
/* `CreateCqRequest`, `NumberAnswer`. */
#define VIRTIO_RDMA_CMD_CREATE_CQ 0x50u
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DESTROY_CQ 0x51u
/* `ResizeCqRequest`, `NumberAnswer`. */
#define VIRTIO_RDMA_CMD_RESIZE_CQ 0x52u
/* `ModifyCqRequest`, no answer. */
#define VIRTIO_RDMA_CMD_MODIFY_CQ 0x53u
/* `CreateQpRequest`, `NumberAnswer`. */
#define VIRTIO_RDMA_CMD_CREATE_QP 0x60u
/* `ModifyQpRequest`, no answer. */
#define VIRTIO_RDMA_CMD_MODIFY_QP 0x61u
/* `NumberRequest`, `QpAttr`. */
#define VIRTIO_RDMA_CMD_QUERY_QP 0x62u
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DESTROY_QP 0x63u
/* `CreateSrqRequest`, `NumberAnswer`. */
#define VIRTIO_RDMA_CMD_CREATE_SRQ 0x70u
/* `ModifySrqRequest`, no answer. */
#define VIRTIO_RDMA_CMD_MODIFY_SRQ 0x71u
/* `NumberRequest`, `SrqAttr`. */
#define VIRTIO_RDMA_CMD_QUERY_SRQ 0x72u
/* `NumberRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DESTROY_SRQ 0x73u
/* `ResizeSrqRequest` -> nothing. */
#define VIRTIO_RDMA_CMD_RESIZE_SRQ 0x74u
/* `SetAhTableRequest`, no answer. */
#define VIRTIO_RDMA_CMD_SET_AH_TABLE 0x80u
/* `McastRequest`, no answer. */
#define VIRTIO_RDMA_CMD_ATTACH_MCAST 0x90u
/* `McastRequest`, no answer. */
#define VIRTIO_RDMA_CMD_DETACH_MCAST 0x91u
/* `RegOdpMrRequest`, `MrAnswer`. */
#define VIRTIO_RDMA_CMD_REG_ODP_MR 0xa0u
/* `MapPagesRequest`, no answer. */
#define VIRTIO_RDMA_CMD_MAP_PAGES 0xa1u
/* `PagesRequest`, no answer. */
#define VIRTIO_RDMA_CMD_UNMAP_PAGES 0xa2u
/* `NumberRequest` (the MR), `PageFaultAnswer`. */
#define VIRTIO_RDMA_CMD_TAKE_PAGE_FAULT 0xa3u
/* `PagesRequest`, no answer. */
#define VIRTIO_RDMA_CMD_REFUSE_PAGES 0xa4u

/* Status of a command. */
/* Done. */
#define VIRTIO_RDMA_STATUS_OK 0
/* The command is unknown. */
#define VIRTIO_RDMA_STATUS_UNKNOWN_COMMAND 1
/* The readable or the writable part is too short for the command. */
#define VIRTIO_RDMA_STATUS_BAD_LENGTH 2
/* A field has a value outside its range, or one that does not fit another field. */
#define VIRTIO_RDMA_STATUS_INVALID 3
/* A number names nothing, or something of another kind. */
#define VIRTIO_RDMA_STATUS_NO_OBJECT 4
/* Another object still uses this one, or the slot or index is taken. */
#define VIRTIO_RDMA_STATUS_BUSY 5
/* A limit of the device is reached, or the host is out of memory. */
#define VIRTIO_RDMA_STATUS_NO_RESOURCES 6
/* A page or table lies outside guest memory. */
#define VIRTIO_RDMA_STATUS_BAD_ADDRESS 7
/* The QP's state does not allow it (IBA 10.3.1). */
#define VIRTIO_RDMA_STATUS_BAD_STATE 8
/* The driver may not do this. */
#define VIRTIO_RDMA_STATUS_NOT_PERMITTED 9
/* The HCA is gone. */
#define VIRTIO_RDMA_STATUS_NO_HCA 0xau
/* INIT has not been done. */
#define VIRTIO_RDMA_STATUS_NOT_INITIALIZED 0xbu
/* The device (or its HCA) has no such thing. */
#define VIRTIO_RDMA_STATUS_UNSUPPORTED 0xcu
/* The host failed; the daemon's log says how. */
#define VIRTIO_RDMA_STATUS_DEVICE_ERROR 0xdu

/* Capabilities, agreed in INIT. */
/* QPs of type UC. */
#define VIRTIO_RDMA_CAP_UC 1
/* QPs of type UD and GSI, and the table of address handles. */
#define VIRTIO_RDMA_CAP_UD 2
/* Shared receive queues. */
#define VIRTIO_RDMA_CAP_SRQ 4
/* RESIZE_CQ. */
#define VIRTIO_RDMA_CAP_CQ_RESIZE 8
/* MODIFY_CQ. */
#define VIRTIO_RDMA_CAP_CQ_MODERATION 0x10u
/* `CQ_FLAG_TIMESTAMP`, QUERY_CLOCK. */
#define VIRTIO_RDMA_CAP_TIMESTAMP 0x20u
/* ALLOC_MR, `WR_REG_MR`, `WR_LOCAL_INV`, `WR_SEND_WITH_INV`. */
#define VIRTIO_RDMA_CAP_FAST_REG 0x40u
/* ALLOC_MW, DEALLOC_MW, `WR_BIND_MW`, `WR_LOCAL_INV`, `WR_SEND_WITH_INV`. */
#define VIRTIO_RDMA_CAP_MW 0x80u
/* REREG_MR. */
#define VIRTIO_RDMA_CAP_REREG_MR 0x100u
/* ATTACH_MCAST, DETACH_MCAST, `QP_FLAG_BLOCK_SELF_MCAST`. */
#define VIRTIO_RDMA_CAP_MCAST 0x200u
/* ALLOC_XRCD, DEALLOC_XRCD, SRQs and QPs of an XRC domain. */
#define VIRTIO_RDMA_CAP_XRC 0x400u
/* `WR_ATOMIC_WRITE`. */
#define VIRTIO_RDMA_CAP_ATOMIC_WRITE 0x800u
/* `WR_FLUSH`, `ACCESS_FLUSH_GLOBAL`. */
#define VIRTIO_RDMA_CAP_FLUSH 0x1000u
/* `LOCAL_DMA_LKEY`. */
#define VIRTIO_RDMA_CAP_LOCAL_DMA_LKEY 0x2000u
/* ALLOC_DM, FREE_DM, COPY_DM, REG_DM_MR. */
#define VIRTIO_RDMA_CAP_DEVICE_MEMORY 0x4000u
/* REG_ODP_MR and the commands of its pages. */
#define VIRTIO_RDMA_CAP_ON_DEMAND 0x8000u
/* RESIZE_SRQ. */
#define VIRTIO_RDMA_CAP_SRQ_RESIZE 0x10000u

/* Flags of an `AhEntry`. */
/* The entry is in use. */
#define VIRTIO_RDMA_AH_VALID 1

/* Flags in `DeviceAttr::device_caps`. */
/* The responder of an RC QP sends RNR NAKs. */
#define VIRTIO_RDMA_DEVICE_CAP_RC_RNR_NAK_GEN 1
/* There is a key for all memory, for kernel consumers. */
#define VIRTIO_RDMA_DEVICE_CAP_LOCAL_DMA_LKEY 2

/* Access rights (IBA 10.6.3), numbered as in ib_verbs. */
/* Local write. Local read is always allowed. */
#define VIRTIO_RDMA_ACCESS_LOCAL_WRITE 1
/* Remote write; needs local write. */
#define VIRTIO_RDMA_ACCESS_REMOTE_WRITE 2
/* Remote read. */
#define VIRTIO_RDMA_ACCESS_REMOTE_READ 4
/* Remote atomics; needs local write. */
#define VIRTIO_RDMA_ACCESS_REMOTE_ATOMIC 8
/* Memory windows may be bound. */
#define VIRTIO_RDMA_ACCESS_MW_BIND 0x10u
/* Addresses count from 0. */
#define VIRTIO_RDMA_ACCESS_ZERO_BASED 0x20u
/* FLUSH with global visibility. */
#define VIRTIO_RDMA_ACCESS_FLUSH_GLOBAL 0x100u
/* FLUSH with persistence: of QPs only. */
#define VIRTIO_RDMA_ACCESS_FLUSH_PERSISTENT 0x200u
/* Relaxed ordering: accepted, of no effect. */
#define VIRTIO_RDMA_ACCESS_RELAXED_ORDERING 0x100000u

/* Keys. */
/* Local key of all guest-physical memory, in the WQEs of QPs with `QP_FLAG_KERNEL` only. */
#define VIRTIO_RDMA_LOCAL_DMA_LKEY 1
/* The bits of a key that the driver chooses: of an MR of ALLOC_MR and of a memory window. */
#define VIRTIO_RDMA_KEY_TAG_MASK 0xffu

/* What REREG_MR changes, numbered as in libibverbs. */
/* The memory: `iova`, `length`, `offset`, `pages`. */
#define VIRTIO_RDMA_REREG_TRANSLATION 1
/* `pdn`. */
#define VIRTIO_RDMA_REREG_PD 2
/* `access`. */
#define VIRTIO_RDMA_REREG_ACCESS 4

/* Types of memory windows, numbered as in libibverbs. */
/* Type 1: can be bound again and again, and used through any QP of its PD. */
#define VIRTIO_RDMA_MW_TYPE_1 1
/* Type 2B: bound once and then invalidated, and used through the QP only that bound it. */
#define VIRTIO_RDMA_MW_TYPE_2 2

/* Flags of CREATE_CQ. */
/* CQEs carry `timestamp` and `wall_clock`. */
#define VIRTIO_RDMA_CQ_FLAG_TIMESTAMP 1

/* QP types, numbered as in libibverbs. */
/* GSI (QP1). */
#define VIRTIO_RDMA_QP_TYPE_GSI 1
/* Reliable connection. */
#define VIRTIO_RDMA_QP_TYPE_RC 2
/* Unreliable connection. */
#define VIRTIO_RDMA_QP_TYPE_UC 3
/* Unreliable datagram. */
#define VIRTIO_RDMA_QP_TYPE_UD 4
/* Initiator of an extended reliable connection: sends only. */
#define VIRTIO_RDMA_QP_TYPE_XRC_INI 9
/* Target of an extended reliable connection: receives into the SRQs of its domain only. */
#define VIRTIO_RDMA_QP_TYPE_XRC_TGT 0xau

/* Flags of CREATE_QP. */
/* Of a kernel consumer: `WR_REG_MR`, `LOCAL_DMA_LKEY`, DMA MRs and QP1 are allowed. */
#define VIRTIO_RDMA_QP_FLAG_KERNEL 1
/* Every send WQE makes a completion. */
#define VIRTIO_RDMA_QP_FLAG_SIGNAL_ALL 2
/* UD: what it sends to a multicast group does not come back to itself. */
#define VIRTIO_RDMA_QP_FLAG_BLOCK_SELF_MCAST 4

/* QPs. */
/* `CreateQpRequest::srqn` of a QP with a receive queue of its own. */
#define VIRTIO_RDMA_NO_SRQ 0xffffffffu

/* QP states (IBA 10.3.1). */
/* Reset. */
#define VIRTIO_RDMA_QP_STATE_RESET 0
/* Initialized. */
#define VIRTIO_RDMA_QP_STATE_INIT 1
/* Ready to receive. */
#define VIRTIO_RDMA_QP_STATE_RTR 2
/* Ready to send. */
#define VIRTIO_RDMA_QP_STATE_RTS 3
/* Send queue drained. */
#define VIRTIO_RDMA_QP_STATE_SQD 4
/* Send queue error. */
#define VIRTIO_RDMA_QP_STATE_SQE 5
/* Error. */
#define VIRTIO_RDMA_QP_STATE_ERR 6

/* Mask of QP attributes, numbered as in ib_verbs. */
/* `qp_state`. */
#define VIRTIO_RDMA_QP_ATTR_STATE 1
/* `cur_qp_state`. */
#define VIRTIO_RDMA_QP_ATTR_CUR_STATE 2
/* An event when the send queue is drained. */
#define VIRTIO_RDMA_QP_ATTR_EN_SQD_ASYNC_NOTIFY 4
/* `access`. */
#define VIRTIO_RDMA_QP_ATTR_ACCESS_FLAGS 8
/* `pkey_index`. */
#define VIRTIO_RDMA_QP_ATTR_PKEY_INDEX 0x10u
/* `port`. */
#define VIRTIO_RDMA_QP_ATTR_PORT 0x20u
/* `qkey`. */
#define VIRTIO_RDMA_QP_ATTR_QKEY 0x40u
/* `av`. */
#define VIRTIO_RDMA_QP_ATTR_AV 0x80u
/* `path_mtu`. */
#define VIRTIO_RDMA_QP_ATTR_PATH_MTU 0x100u
/* `timeout`. */
#define VIRTIO_RDMA_QP_ATTR_TIMEOUT 0x200u
/* `retry_cnt`. */
#define VIRTIO_RDMA_QP_ATTR_RETRY_CNT 0x400u
/* `rnr_retry`. */
#define VIRTIO_RDMA_QP_ATTR_RNR_RETRY 0x800u
/* `rq_psn`. */
#define VIRTIO_RDMA_QP_ATTR_RQ_PSN 0x1000u
/* `max_rd_atomic`. */
#define VIRTIO_RDMA_QP_ATTR_MAX_QP_RD_ATOMIC 0x2000u
/* `min_rnr_timer`. */
#define VIRTIO_RDMA_QP_ATTR_MIN_RNR_TIMER 0x8000u
/* `sq_psn`. */
#define VIRTIO_RDMA_QP_ATTR_SQ_PSN 0x10000u
/* `max_dest_rd_atomic`. */
#define VIRTIO_RDMA_QP_ATTR_MAX_DEST_RD_ATOMIC 0x20000u
/* `dest_qpn`. */
#define VIRTIO_RDMA_QP_ATTR_DEST_QPN 0x100000u

/* GID types. */
/* RoCE version 2: the GID is an IPv6 or an IPv4-mapped address. */
#define VIRTIO_RDMA_GID_TYPE_ROCE_V2 2

/* Flags of MAP_PAGES and TAKE_PAGE_FAULT. */
/* The pages may be written, or are to be. */
#define VIRTIO_RDMA_PAGES_WRITABLE 1

/* Memory on demand. */
/* `RegOdpMrRequest::length`: every address. */
#define VIRTIO_RDMA_ODP_ALL 0xffffffffffffffffull

/* What can use memory on demand, numbered as in libibverbs. */
/* In `odp_caps`: MRs of REG_ODP_MR. */
#define VIRTIO_RDMA_ODP_SUPPORT 1
/* In `odp_caps`: of `ODP_ALL`. */
#define VIRTIO_RDMA_ODP_SUPPORT_IMPLICIT 2
/* In those of a transport: data of SENDs. */
#define VIRTIO_RDMA_ODP_SUPPORT_SEND 1
/* Receive buffers. */
#define VIRTIO_RDMA_ODP_SUPPORT_RECV 2
/* Both ends of RDMA WRITE. */
#define VIRTIO_RDMA_ODP_SUPPORT_WRITE 4
/* Both ends of RDMA READ. */
#define VIRTIO_RDMA_ODP_SUPPORT_READ 8
/* Both ends of atomics. */
#define VIRTIO_RDMA_ODP_SUPPORT_ATOMIC 0x10u
/* Receive buffers of SRQs. */
#define VIRTIO_RDMA_ODP_SUPPORT_SRQ_RECV 0x20u

/* The mode word of a send or receive queue. */
/* Set: the device polls the phase of the next WQE by itself. Clear: ring after posting. */
#define VIRTIO_RDMA_MODE_POLLED 1
/* The number of the vector whose doorbell to ring stands in the bits from here up. */
#define VIRTIO_RDMA_MODE_VECTOR_SHIFT 0x10u

/* User access regions. */
/* Bytes from the start of the UAR to the bitmap. */
#define VIRTIO_RDMA_UAR_BITMAP_OFFSET 0x40u
/* Bytes of a UAR at the most: room for 130,560 slots. */
#define VIRTIO_RDMA_UAR_MAX_BYTES 0x4000u

/* Rings. */
/* Bytes from the start of a send WQE to its SGEs or its inline data. */
#define VIRTIO_RDMA_WQE_SEND_DATA 0x20u
/* Bytes from the start of a send WQE to the `AtomicArgs`. */
#define VIRTIO_RDMA_WQE_ATOMIC_ARGS 0x30u
/* Bytes from the start of a receive WQE to its SGEs. */
#define VIRTIO_RDMA_WQE_RECV_DATA 0x10u
/* The smallest stride of a send or receive queue: 2^6 bytes. */
#define VIRTIO_RDMA_WQE_STRIDE_SHIFT_MIN 6
/* The largest: 2^11 bytes. */
#define VIRTIO_RDMA_WQE_STRIDE_SHIFT_MAX 0xbu
/* Bytes of a CQE. */
#define VIRTIO_RDMA_CQE_BYTES 0x40u
/* Bytes from the start of a CQ's buffer to its ring. */
#define VIRTIO_RDMA_CQ_RING_OFFSET 0x80u
/* Bytes from the start of a QP's buffer to the first place where a ring may lie. */
#define VIRTIO_RDMA_QP_RINGS_OFFSET 0x40u

/* Opcodes of send WQEs. */
/* RDMA WRITE. */
#define VIRTIO_RDMA_WR_RDMA_WRITE 0
/* RDMA WRITE with immediate data. */
#define VIRTIO_RDMA_WR_RDMA_WRITE_WITH_IMM 1
/* SEND. */
#define VIRTIO_RDMA_WR_SEND 2
/* SEND with immediate data. */
#define VIRTIO_RDMA_WR_SEND_WITH_IMM 3
/* RDMA READ. */
#define VIRTIO_RDMA_WR_RDMA_READ 4
/* Compare and swap of 64 bits. */
#define VIRTIO_RDMA_WR_ATOMIC_CMP_AND_SWP 5
/* Fetch and add of 64 bits. */
#define VIRTIO_RDMA_WR_ATOMIC_FETCH_AND_ADD 6
/* Local invalidate. */
#define VIRTIO_RDMA_WR_LOCAL_INV 7
/* Bind a memory window. */
#define VIRTIO_RDMA_WR_BIND_MW 8
/* SEND with invalidate. */
#define VIRTIO_RDMA_WR_SEND_WITH_INV 9
/* Waits until what was written is visible at the peer. */
#define VIRTIO_RDMA_WR_FLUSH 0xeu
/* Writes 8 bytes whole. */
#define VIRTIO_RDMA_WR_ATOMIC_WRITE 0xfu
/* Fast registration (kernel QPs only). */
#define VIRTIO_RDMA_WR_REG_MR 0x20u

/* Flags of send WQEs. */
/* Begin only when all READs and atomics before it are done. */
#define VIRTIO_RDMA_SEND_FENCE 1
/* Make a completion also on success. */
#define VIRTIO_RDMA_SEND_SIGNALED 2
/* The completion at the peer is a solicited one. */
#define VIRTIO_RDMA_SEND_SOLICITED 4
/* The data stands in the WQE. */
#define VIRTIO_RDMA_SEND_INLINE 8

/* Members of `FlushArgs`. */
/* Placement: visible to the peer's driver. */
#define VIRTIO_RDMA_FLUSH_GLOBAL 1
/* Placement: outlives a loss of power. */
#define VIRTIO_RDMA_FLUSH_PERSISTENT 2
/* Selectivity: the bytes that are named. */
#define VIRTIO_RDMA_FLUSH_RANGE 0
/* Selectivity: all of the MR. */
#define VIRTIO_RDMA_FLUSH_MR 1

/* Flags of CQEs. */
/* `imm` holds immediate data. */
#define VIRTIO_RDMA_CQE_WITH_IMM 1
/* `imm` holds an rkey that was invalidated. */
#define VIRTIO_RDMA_CQE_WITH_INV 2
/* The first 40 bytes received are a GRH. */
#define VIRTIO_RDMA_CQE_GRH 4
/* `vlan` holds a VLAN. */
#define VIRTIO_RDMA_CQE_WITH_VLAN 8
/* Of the send queue (clear: of the receive queue). Valid in errors too. */
#define VIRTIO_RDMA_CQE_SEND_QUEUE 0x80u

/* State of a CQ. */
/* In use. */
#define VIRTIO_RDMA_CQ_STATE_OK 0
/* It overflowed; no CQE will follow. */
#define VIRTIO_RDMA_CQ_STATE_OVERFLOW 1

/* Opcodes of CQEs. */
/* SEND of any kind. */
#define VIRTIO_RDMA_WC_OP_SEND 0
/* RDMA WRITE of any kind. */
#define VIRTIO_RDMA_WC_OP_RDMA_WRITE 1
/* RDMA READ. */
#define VIRTIO_RDMA_WC_OP_RDMA_READ 2
/* Compare and swap. */
#define VIRTIO_RDMA_WC_OP_COMP_SWAP 3
/* Fetch and add. */
#define VIRTIO_RDMA_WC_OP_FETCH_ADD 4
/* Bind of a memory window. */
#define VIRTIO_RDMA_WC_OP_BIND_MW 5
/* Local invalidate. */
#define VIRTIO_RDMA_WC_OP_LOCAL_INV 6
/* Fast registration. */
#define VIRTIO_RDMA_WC_OP_REG_MR 7
/* Flush. */
#define VIRTIO_RDMA_WC_OP_FLUSH 8
/* Atomic write. */
#define VIRTIO_RDMA_WC_OP_ATOMIC_WRITE 9
/* A message received. */
#define VIRTIO_RDMA_WC_OP_RECV 0x80u
/* Immediate data received after an RDMA WRITE. */
#define VIRTIO_RDMA_WC_OP_RECV_RDMA_WITH_IMM 0x81u
/*
 * No completion: the ring ends here, and the next CQE is in the buffer of RESIZE_CQ. Its other
 * members are zero.
 */
#define VIRTIO_RDMA_WC_OP_RESIZE 0xffu

/* Status of CQEs (IBA 10.10.3, numbered as libibverbs numbers them). */
/* Success. */
#define VIRTIO_RDMA_WC_SUCCESS 0
/* Local length error. */
#define VIRTIO_RDMA_WC_LOC_LEN_ERR 1
/* Local QP operation error: a malformed WQE. */
#define VIRTIO_RDMA_WC_LOC_QP_OP_ERR 2
/* Local protection error: a bad lkey, or bounds, or rights of an SGE. */
#define VIRTIO_RDMA_WC_LOC_PROT_ERR 4
/* The QP went to ERR before this request was carried out. */
#define VIRTIO_RDMA_WC_WR_FLUSH_ERR 5
/* Memory window bind error. */
#define VIRTIO_RDMA_WC_MW_BIND_ERR 6
/* An answer that does not fit. */
#define VIRTIO_RDMA_WC_BAD_RESP_ERR 7
/* Local access error. */
#define VIRTIO_RDMA_WC_LOC_ACCESS_ERR 8
/* The peer found the request invalid. */
#define VIRTIO_RDMA_WC_REM_INV_REQ_ERR 9
/* The peer's memory may not be accessed so. */
#define VIRTIO_RDMA_WC_REM_ACCESS_ERR 0xau
/* The peer could not carry it out. */
#define VIRTIO_RDMA_WC_REM_OP_ERR 0xbu
/* No answer after all retries. */
#define VIRTIO_RDMA_WC_RETRY_EXC_ERR 0xcu
/* The peer had no receive WQE after all retries. */
#define VIRTIO_RDMA_WC_RNR_RETRY_EXC_ERR 0xdu
/* The operation was aborted by the peer. */
#define VIRTIO_RDMA_WC_REM_ABORT_ERR 0x10u
/* An error of the device. */
#define VIRTIO_RDMA_WC_FATAL_ERR 0x13u
/* Another error. */
#define VIRTIO_RDMA_WC_GENERAL_ERR 0x15u

/* Asynchronous events (IBA 11.6.3). */
/* A CQ overflowed or can no longer be written. */
#define VIRTIO_RDMA_EVENT_CQ_ERR 0
/* A QP is in error for a reason of the device's own. */
#define VIRTIO_RDMA_EVENT_QP_FATAL 1
/* The responder of a QP saw an invalid request. */
#define VIRTIO_RDMA_EVENT_QP_REQ_ERR 2
/* The responder of a QP saw an access that is not allowed. */
#define VIRTIO_RDMA_EVENT_QP_ACCESS_ERR 3
/* A QP in RTR received its first message. */
#define VIRTIO_RDMA_EVENT_COMM_EST 4
/* A QP in SQD has completed what it had begun. */
#define VIRTIO_RDMA_EVENT_SQ_DRAINED 5
/* The device is in error: destroy everything. */
#define VIRTIO_RDMA_EVENT_DEVICE_FATAL 8
/* The port became active. */
#define VIRTIO_RDMA_EVENT_PORT_ACTIVE 9
/* The port went down. */
#define VIRTIO_RDMA_EVENT_PORT_ERR 0xau
/* An SRQ is in error. */
#define VIRTIO_RDMA_EVENT_SRQ_ERR 0xeu
/* An SRQ holds fewer WQEs than its limit. */
#define VIRTIO_RDMA_EVENT_SRQ_LIMIT_REACHED 0xfu
/* A QP of an SRQ in ERR has taken its last WQE. */
#define VIRTIO_RDMA_EVENT_QP_LAST_WQE_REACHED 0x10u
/* The GID table changed. */
#define VIRTIO_RDMA_EVENT_GID_CHANGE 0x12u
/* An HCA appeared: the RDMA device can be registered. */
#define VIRTIO_RDMA_EVENT_HCA_ADDED 0x100u
/* The HCA is gone: every object of the driver answers `STATUS_NO_HCA` from here. */
#define VIRTIO_RDMA_EVENT_HCA_REMOVED 0x101u
/* Work waits for pages of an MR of memory on demand; the number is the MR's. */
#define VIRTIO_RDMA_EVENT_PAGE_FAULT 0x102u

/* Configuration space: read-only for the driver, always current (each read asks the device). */
struct virtio_rdma_config {
	/* `ABI_MAJOR` of the device. */
	__le16 abi_major;
	/* `ABI_MINOR` of the device. */
	__le16 abi_minor;
	/*
	 * MAC address of the paired network device, to which the driver binds its RDMA device.
	 * All zero: no pairing is given, and the driver reports the lack of it.
	 */
	__u8 mac[6];
	/* Completion vectors that the device has: 1 to `MAX_COMP_VECTORS`. */
	__le16 num_comp_vectors;
	/* Counts the HCAs that have come and gone: odd while one is there, even while none is. */
	__le32 hca_generation;
	/* 1 while an HCA is there, else 0; every command but INIT answers `STATUS_NO_HCA` then. */
	__u8 hca_present;
	/* State of port 1 as IBA names it: 1 down, 2 init, 3 armed, 4 active. */
	__u8 port_state;
	/* Largest path MTU: 1 = 256, 2 = 512, 3 = 1024, 4 = 2048, 5 = 4096 bytes. */
	__u8 max_mtu;
	/* Path MTU in force, in the same code. */
	__u8 active_mtu;
	/* Zero. */
	__u8 reserved[44];
};
static_assert(sizeof(struct virtio_rdma_config) == 64, "size of virtio_rdma_config");
static_assert(offsetof(struct virtio_rdma_config, abi_major) == 0, "offset of virtio_rdma_config.abi_major");
static_assert(offsetof(struct virtio_rdma_config, abi_minor) == 2, "offset of virtio_rdma_config.abi_minor");
static_assert(offsetof(struct virtio_rdma_config, mac) == 4, "offset of virtio_rdma_config.mac");
static_assert(offsetof(struct virtio_rdma_config, num_comp_vectors) == 10, "offset of virtio_rdma_config.num_comp_vectors");
static_assert(offsetof(struct virtio_rdma_config, hca_generation) == 12, "offset of virtio_rdma_config.hca_generation");
static_assert(offsetof(struct virtio_rdma_config, hca_present) == 16, "offset of virtio_rdma_config.hca_present");
static_assert(offsetof(struct virtio_rdma_config, port_state) == 17, "offset of virtio_rdma_config.port_state");
static_assert(offsetof(struct virtio_rdma_config, max_mtu) == 18, "offset of virtio_rdma_config.max_mtu");
static_assert(offsetof(struct virtio_rdma_config, active_mtu) == 19, "offset of virtio_rdma_config.active_mtu");
static_assert(offsetof(struct virtio_rdma_config, reserved) == 20, "offset of virtio_rdma_config.reserved");

/* Starts every command. */
struct virtio_rdma_control_header {
	/* `CMD_*`. */
	__le16 command;
	/* Zero. */
	__le16 flags;
	/*
	 * Counts the driver's commands: last plus one. INIT may have any. A command that repeats
	 * the number of the one before is not executed again: it gets that one's answer.
	 */
	__le32 sequence;
};
static_assert(sizeof(struct virtio_rdma_control_header) == 8, "size of virtio_rdma_control_header");
static_assert(offsetof(struct virtio_rdma_control_header, command) == 0, "offset of virtio_rdma_control_header.command");
static_assert(offsetof(struct virtio_rdma_control_header, flags) == 2, "offset of virtio_rdma_control_header.flags");
static_assert(offsetof(struct virtio_rdma_control_header, sequence) == 4, "offset of virtio_rdma_control_header.sequence");

/* Starts every answer. */
struct virtio_rdma_control_status {
	/* `STATUS_*`. */
	__le32 status;
	/* The command's sequence number. */
	__le32 sequence;
};
static_assert(sizeof(struct virtio_rdma_control_status) == 8, "size of virtio_rdma_control_status");
static_assert(offsetof(struct virtio_rdma_control_status, status) == 0, "offset of virtio_rdma_control_status.status");
static_assert(offsetof(struct virtio_rdma_control_status, sequence) == 4, "offset of virtio_rdma_control_status.sequence");

/*
 * Pages of guest memory, as a tree like that of a page table, so that a driver needs no
 * contiguous memory for it. Every table is one 4096-byte page of 512 little-endian addresses,
 * filled from the start.
 */
struct virtio_rdma_page_list {
	/*
	 * Depth 0: guest-physical address of the only page, or of the first of contiguous ones.
	 * Otherwise that of the topmost table.
	 */
	__le64 root;
	/* Pages listed: at least 1. */
	__le32 num_pages;
	/* A page is `2^page_shift` bytes and aligned to that: 12 to 30. */
	__u8 page_shift;
	/*
	 * Levels of tables between `root` and the pages: 0 to 3. `num_pages <= 512^depth` for a
	 * depth over 0.
	 */
	__u8 depth;
	/* Zero. */
	__le16 reserved;
};
static_assert(sizeof(struct virtio_rdma_page_list) == 16, "size of virtio_rdma_page_list");
static_assert(offsetof(struct virtio_rdma_page_list, root) == 0, "offset of virtio_rdma_page_list.root");
static_assert(offsetof(struct virtio_rdma_page_list, num_pages) == 8, "offset of virtio_rdma_page_list.num_pages");
static_assert(offsetof(struct virtio_rdma_page_list, page_shift) == 12, "offset of virtio_rdma_page_list.page_shift");
static_assert(offsetof(struct virtio_rdma_page_list, depth) == 13, "offset of virtio_rdma_page_list.depth");
static_assert(offsetof(struct virtio_rdma_page_list, reserved) == 14, "offset of virtio_rdma_page_list.reserved");

/* INIT: the first command. Destroys whatever an earlier driver left. */
struct virtio_rdma_init_request {
	/* `ABI_MAJOR` of the driver. */
	__le16 abi_major;
	/* `ABI_MINOR` of the driver. */
	__le16 abi_minor;
	/* Completion vectors that the driver will use: 1 to `Config::num_comp_vectors`. */
	__le32 num_comp_vectors;
	/*
	 * Guest-physical address of the status page (4096 bytes, aligned): one `VectorStatus`
	 * a vector.
	 */
	__le64 status_page;
	/* Capabilities (`CAP_*`) that the driver wants to use. */
	__le64 capabilities;
};
static_assert(sizeof(struct virtio_rdma_init_request) == 24, "size of virtio_rdma_init_request");
static_assert(offsetof(struct virtio_rdma_init_request, abi_major) == 0, "offset of virtio_rdma_init_request.abi_major");
static_assert(offsetof(struct virtio_rdma_init_request, abi_minor) == 2, "offset of virtio_rdma_init_request.abi_minor");
static_assert(offsetof(struct virtio_rdma_init_request, num_comp_vectors) == 4, "offset of virtio_rdma_init_request.num_comp_vectors");
static_assert(offsetof(struct virtio_rdma_init_request, status_page) == 8, "offset of virtio_rdma_init_request.status_page");
static_assert(offsetof(struct virtio_rdma_init_request, capabilities) == 16, "offset of virtio_rdma_init_request.capabilities");

/* Answer to INIT. */
struct virtio_rdma_init_answer {
	/* `ABI_MAJOR` of the device. */
	__le16 abi_major;
	/* `ABI_MINOR` of the device. */
	__le16 abi_minor;
	/* Slots of all UARs together that the device accepts. */
	__le32 max_slots;
	/* Capabilities in force: those wanted that the device has. */
	__le64 capabilities;
};
static_assert(sizeof(struct virtio_rdma_init_answer) == 16, "size of virtio_rdma_init_answer");
static_assert(offsetof(struct virtio_rdma_init_answer, abi_major) == 0, "offset of virtio_rdma_init_answer.abi_major");
static_assert(offsetof(struct virtio_rdma_init_answer, abi_minor) == 2, "offset of virtio_rdma_init_answer.abi_minor");
static_assert(offsetof(struct virtio_rdma_init_answer, max_slots) == 4, "offset of virtio_rdma_init_answer.max_slots");
static_assert(offsetof(struct virtio_rdma_init_answer, capabilities) == 8, "offset of virtio_rdma_init_answer.capabilities");

/* Answer to QUERY_DEVICE (IBA 11.2.1.2). It may change when another HCA comes. */
struct virtio_rdma_device_attr {
	/* EUI-64 of the node, big-endian. */
	__u8 node_guid[8];
	/* Of the system. */
	__u8 sys_image_guid[8];
	/* Version of the device's software: major in bits 32 to 47, minor in 16 to 31, patch below. */
	__le64 fw_ver;
	/* Bytes of the largest MR. */
	__le64 max_mr_size;
	/* Bit `n`: pages of `2^n` bytes are accepted in page lists of MRs. */
	__le64 page_size_cap;
	/* `DEVICE_CAP_*`. */
	__le64 device_caps;
	/* IEEE vendor number. */
	__le32 vendor_id;
	/* The vendor's part number. */
	__le32 vendor_part_id;
	/* Hardware version. */
	__le32 hw_ver;
	/* QPs. */
	__le32 max_qp;
	/* WRs in one send or receive queue. */
	__le32 max_qp_wr;
	/* SGEs in a send WQE. */
	__le32 max_send_sge;
	/* SGEs in a receive WQE. */
	__le32 max_recv_sge;
	/* SGEs in an RDMA READ. */
	__le32 max_sge_rd;
	/* Bytes of inline data. */
	__le32 max_inline;
	/* CQs. */
	__le32 max_cq;
	/* CQEs in one CQ. */
	__le32 max_cqe;
	/* MRs. */
	__le32 max_mr;
	/* PDs. */
	__le32 max_pd;
	/* READs and atomics that a QP may have outstanding as responder. */
	__le32 max_qp_rd_atom;
	/* As requester. */
	__le32 max_qp_init_rd_atom;
	/* Of all QPs together. */
	__le32 max_res_rd_atom;
	/* SRQs. */
	__le32 max_srq;
	/* WRs in one SRQ. */
	__le32 max_srq_wr;
	/* SGEs in an SRQ's WQE. */
	__le32 max_srq_sge;
	/* Memory windows. */
	__le32 max_mw;
	/* Address handles. */
	__le32 max_ah;
	/* Multicast groups. */
	__le32 max_mcast_grp;
	/* QPs in one multicast group. */
	__le32 max_mcast_qp_attach;
	/* Pages in one fast registration. */
	__le32 max_fast_reg_page_list_len;
	/* 0: no atomics; 1: atomic within the device; 2: with the whole system. */
	__le32 atomic_cap;
	/* UARs. */
	__le32 max_uar;
	/* P_Keys of the port. */
	__le16 max_pkeys;
	/* 4.096 us * 2^n is the longest that an acknowledgement takes. */
	__u8 local_ca_ack_delay;
	/* Zero. */
	__u8 reserved[5];
	/* kHz of the clock of CQEs' `timestamp`. */
	__le64 hca_core_clock;
	/* XRC domains. */
	__le32 max_xrcd;
	/* Multicast attachments, of all groups together. */
	__le32 max_total_mcast_qp_attach;
	/* Largest `ModifyCqRequest::count`. */
	__le16 max_cq_count;
	/* Largest `ModifyCqRequest::period`. */
	__le16 max_cq_period;
	/* Zero. */
	__le32 reserved1;
	/* Bytes of device memory, of all pieces together. */
	__le64 max_dm_size;
	/* Memory on demand: `ODP_SUPPORT`, `ODP_SUPPORT_IMPLICIT`. */
	__le32 odp_caps;
	/* What RC QPs can use it for (`ODP_SUPPORT_*`). */
	__le32 odp_rc;
	/* UC QPs. */
	__le32 odp_uc;
	/* UD QPs. */
	__le32 odp_ud;
	/* XRC QPs. */
	__le32 odp_xrc;
	/* Zero. */
	__le32 reserved2;
};
static_assert(sizeof(struct virtio_rdma_device_attr) == 216, "size of virtio_rdma_device_attr");
static_assert(offsetof(struct virtio_rdma_device_attr, node_guid) == 0, "offset of virtio_rdma_device_attr.node_guid");
static_assert(offsetof(struct virtio_rdma_device_attr, sys_image_guid) == 8, "offset of virtio_rdma_device_attr.sys_image_guid");
static_assert(offsetof(struct virtio_rdma_device_attr, fw_ver) == 16, "offset of virtio_rdma_device_attr.fw_ver");
static_assert(offsetof(struct virtio_rdma_device_attr, max_mr_size) == 24, "offset of virtio_rdma_device_attr.max_mr_size");
static_assert(offsetof(struct virtio_rdma_device_attr, page_size_cap) == 32, "offset of virtio_rdma_device_attr.page_size_cap");
static_assert(offsetof(struct virtio_rdma_device_attr, device_caps) == 40, "offset of virtio_rdma_device_attr.device_caps");
static_assert(offsetof(struct virtio_rdma_device_attr, vendor_id) == 48, "offset of virtio_rdma_device_attr.vendor_id");
static_assert(offsetof(struct virtio_rdma_device_attr, vendor_part_id) == 52, "offset of virtio_rdma_device_attr.vendor_part_id");
static_assert(offsetof(struct virtio_rdma_device_attr, hw_ver) == 56, "offset of virtio_rdma_device_attr.hw_ver");
static_assert(offsetof(struct virtio_rdma_device_attr, max_qp) == 60, "offset of virtio_rdma_device_attr.max_qp");
static_assert(offsetof(struct virtio_rdma_device_attr, max_qp_wr) == 64, "offset of virtio_rdma_device_attr.max_qp_wr");
static_assert(offsetof(struct virtio_rdma_device_attr, max_send_sge) == 68, "offset of virtio_rdma_device_attr.max_send_sge");
static_assert(offsetof(struct virtio_rdma_device_attr, max_recv_sge) == 72, "offset of virtio_rdma_device_attr.max_recv_sge");
static_assert(offsetof(struct virtio_rdma_device_attr, max_sge_rd) == 76, "offset of virtio_rdma_device_attr.max_sge_rd");
static_assert(offsetof(struct virtio_rdma_device_attr, max_inline) == 80, "offset of virtio_rdma_device_attr.max_inline");
static_assert(offsetof(struct virtio_rdma_device_attr, max_cq) == 84, "offset of virtio_rdma_device_attr.max_cq");
static_assert(offsetof(struct virtio_rdma_device_attr, max_cqe) == 88, "offset of virtio_rdma_device_attr.max_cqe");
static_assert(offsetof(struct virtio_rdma_device_attr, max_mr) == 92, "offset of virtio_rdma_device_attr.max_mr");
static_assert(offsetof(struct virtio_rdma_device_attr, max_pd) == 96, "offset of virtio_rdma_device_attr.max_pd");
static_assert(offsetof(struct virtio_rdma_device_attr, max_qp_rd_atom) == 100, "offset of virtio_rdma_device_attr.max_qp_rd_atom");
static_assert(offsetof(struct virtio_rdma_device_attr, max_qp_init_rd_atom) == 104, "offset of virtio_rdma_device_attr.max_qp_init_rd_atom");
static_assert(offsetof(struct virtio_rdma_device_attr, max_res_rd_atom) == 108, "offset of virtio_rdma_device_attr.max_res_rd_atom");
static_assert(offsetof(struct virtio_rdma_device_attr, max_srq) == 112, "offset of virtio_rdma_device_attr.max_srq");
static_assert(offsetof(struct virtio_rdma_device_attr, max_srq_wr) == 116, "offset of virtio_rdma_device_attr.max_srq_wr");
static_assert(offsetof(struct virtio_rdma_device_attr, max_srq_sge) == 120, "offset of virtio_rdma_device_attr.max_srq_sge");
static_assert(offsetof(struct virtio_rdma_device_attr, max_mw) == 124, "offset of virtio_rdma_device_attr.max_mw");
static_assert(offsetof(struct virtio_rdma_device_attr, max_ah) == 128, "offset of virtio_rdma_device_attr.max_ah");
static_assert(offsetof(struct virtio_rdma_device_attr, max_mcast_grp) == 132, "offset of virtio_rdma_device_attr.max_mcast_grp");
static_assert(offsetof(struct virtio_rdma_device_attr, max_mcast_qp_attach) == 136, "offset of virtio_rdma_device_attr.max_mcast_qp_attach");
static_assert(offsetof(struct virtio_rdma_device_attr, max_fast_reg_page_list_len) == 140, "offset of virtio_rdma_device_attr.max_fast_reg_page_list_len");
static_assert(offsetof(struct virtio_rdma_device_attr, atomic_cap) == 144, "offset of virtio_rdma_device_attr.atomic_cap");
static_assert(offsetof(struct virtio_rdma_device_attr, max_uar) == 148, "offset of virtio_rdma_device_attr.max_uar");
static_assert(offsetof(struct virtio_rdma_device_attr, max_pkeys) == 152, "offset of virtio_rdma_device_attr.max_pkeys");
static_assert(offsetof(struct virtio_rdma_device_attr, local_ca_ack_delay) == 154, "offset of virtio_rdma_device_attr.local_ca_ack_delay");
static_assert(offsetof(struct virtio_rdma_device_attr, reserved) == 155, "offset of virtio_rdma_device_attr.reserved");
static_assert(offsetof(struct virtio_rdma_device_attr, hca_core_clock) == 160, "offset of virtio_rdma_device_attr.hca_core_clock");
static_assert(offsetof(struct virtio_rdma_device_attr, max_xrcd) == 168, "offset of virtio_rdma_device_attr.max_xrcd");
static_assert(offsetof(struct virtio_rdma_device_attr, max_total_mcast_qp_attach) == 172, "offset of virtio_rdma_device_attr.max_total_mcast_qp_attach");
static_assert(offsetof(struct virtio_rdma_device_attr, max_cq_count) == 176, "offset of virtio_rdma_device_attr.max_cq_count");
static_assert(offsetof(struct virtio_rdma_device_attr, max_cq_period) == 178, "offset of virtio_rdma_device_attr.max_cq_period");
static_assert(offsetof(struct virtio_rdma_device_attr, reserved1) == 180, "offset of virtio_rdma_device_attr.reserved1");
static_assert(offsetof(struct virtio_rdma_device_attr, max_dm_size) == 184, "offset of virtio_rdma_device_attr.max_dm_size");
static_assert(offsetof(struct virtio_rdma_device_attr, odp_caps) == 192, "offset of virtio_rdma_device_attr.odp_caps");
static_assert(offsetof(struct virtio_rdma_device_attr, odp_rc) == 196, "offset of virtio_rdma_device_attr.odp_rc");
static_assert(offsetof(struct virtio_rdma_device_attr, odp_uc) == 200, "offset of virtio_rdma_device_attr.odp_uc");
static_assert(offsetof(struct virtio_rdma_device_attr, odp_ud) == 204, "offset of virtio_rdma_device_attr.odp_ud");
static_assert(offsetof(struct virtio_rdma_device_attr, odp_xrc) == 208, "offset of virtio_rdma_device_attr.odp_xrc");
static_assert(offsetof(struct virtio_rdma_device_attr, reserved2) == 212, "offset of virtio_rdma_device_attr.reserved2");

/* Answer to QUERY_CLOCK: both clocks, read together. */
struct virtio_rdma_clock_answer {
	/* The device's clock, in units of `hca_core_clock`. */
	__le64 timestamp;
	/* Nanoseconds since the beginning of 1970 (UTC) by the host's clock. */
	__le64 wall_clock;
};
static_assert(sizeof(struct virtio_rdma_clock_answer) == 16, "size of virtio_rdma_clock_answer");
static_assert(offsetof(struct virtio_rdma_clock_answer, timestamp) == 0, "offset of virtio_rdma_clock_answer.timestamp");
static_assert(offsetof(struct virtio_rdma_clock_answer, wall_clock) == 8, "offset of virtio_rdma_clock_answer.wall_clock");

/* Answer to QUERY_PORT (IBA 11.2.1.3). */
struct virtio_rdma_port_attr {
	/* Bytes of the largest message. */
	__le32 max_msg_sz;
	/* Entries in the GID table. */
	__le32 gid_tbl_len;
	/* IBA capability mask. */
	__le32 port_cap_flags;
	/* Packets with a bad P_Key. */
	__le32 bad_pkey_cntr;
	/* Packets with a bad Q_Key. */
	__le32 qkey_viol_cntr;
	/* P_Keys: entry 0 is 0xffff. */
	__le16 pkey_tbl_len;
	/* Zero. */
	__le16 reserved0;
	/* IBA port state: 1 down, 4 active. */
	__u8 state;
	/* IBA physical state: 3 disabled, 5 link up. */
	__u8 phys_state;
	/* Path MTU code (see `Config::max_mtu`). */
	__u8 max_mtu;
	/* Path MTU code in force. */
	__u8 active_mtu;
	/* IBA link width code: 1 = 1x, 2 = 4x. */
	__u8 active_width;
	/* Zero. */
	__u8 reserved1[3];
	/* IBA link speed code: 32 = EDR (25 Gb/s a lane). */
	__le32 active_speed;
	/* Zero. */
	__le32 reserved2;
};
static_assert(sizeof(struct virtio_rdma_port_attr) == 40, "size of virtio_rdma_port_attr");
static_assert(offsetof(struct virtio_rdma_port_attr, max_msg_sz) == 0, "offset of virtio_rdma_port_attr.max_msg_sz");
static_assert(offsetof(struct virtio_rdma_port_attr, gid_tbl_len) == 4, "offset of virtio_rdma_port_attr.gid_tbl_len");
static_assert(offsetof(struct virtio_rdma_port_attr, port_cap_flags) == 8, "offset of virtio_rdma_port_attr.port_cap_flags");
static_assert(offsetof(struct virtio_rdma_port_attr, bad_pkey_cntr) == 12, "offset of virtio_rdma_port_attr.bad_pkey_cntr");
static_assert(offsetof(struct virtio_rdma_port_attr, qkey_viol_cntr) == 16, "offset of virtio_rdma_port_attr.qkey_viol_cntr");
static_assert(offsetof(struct virtio_rdma_port_attr, pkey_tbl_len) == 20, "offset of virtio_rdma_port_attr.pkey_tbl_len");
static_assert(offsetof(struct virtio_rdma_port_attr, reserved0) == 22, "offset of virtio_rdma_port_attr.reserved0");
static_assert(offsetof(struct virtio_rdma_port_attr, state) == 24, "offset of virtio_rdma_port_attr.state");
static_assert(offsetof(struct virtio_rdma_port_attr, phys_state) == 25, "offset of virtio_rdma_port_attr.phys_state");
static_assert(offsetof(struct virtio_rdma_port_attr, max_mtu) == 26, "offset of virtio_rdma_port_attr.max_mtu");
static_assert(offsetof(struct virtio_rdma_port_attr, active_mtu) == 27, "offset of virtio_rdma_port_attr.active_mtu");
static_assert(offsetof(struct virtio_rdma_port_attr, active_width) == 28, "offset of virtio_rdma_port_attr.active_width");
static_assert(offsetof(struct virtio_rdma_port_attr, reserved1) == 29, "offset of virtio_rdma_port_attr.reserved1");
static_assert(offsetof(struct virtio_rdma_port_attr, active_speed) == 32, "offset of virtio_rdma_port_attr.active_speed");
static_assert(offsetof(struct virtio_rdma_port_attr, reserved2) == 36, "offset of virtio_rdma_port_attr.reserved2");

/* Answer to QUERY_COUNTERS: counts since the device came to be, wrapping. */
struct virtio_rdma_counters {
	/* Notifications that arrived on doorbell virtqueues. */
	__le64 doorbell_kicks;
	/* Send WQEs taken. */
	__le64 send_wqes;
	/* Receive WQEs taken. */
	__le64 recv_wqes;
	/* CQEs written. */
	__le64 completions;
	/* Events put into completion virtqueues. */
	__le64 cq_events;
	/* Interrupts asked for on completion virtqueues. */
	__le64 cq_interrupts;
	/* Times that a worker went to sleep. */
	__le64 worker_sleeps;
	/* Bytes of messages sent and of READs answered. */
	__le64 tx_bytes;
	/* Bytes of messages received. */
	__le64 rx_bytes;
	/* RNR conditions that this device's responders found. */
	__le64 rnr_naks;
	/* CQEs with an error other than a flush. */
	__le64 error_completions;
	/* Malformed commands, rings and WQEs. */
	__le64 guest_errors;
	/* Requests that came a second time. */
	__le64 duplicate_request;
	/* Requests that came too early: one before was lost. */
	__le64 out_of_seq_request;
	/* NAKs for the sequence that this device's requesters got. */
	__le64 rcvd_seq_err;
	/* RNR NAKs that this device's requesters got. */
	__le64 rcvd_rnr_err;
	/* WQEs that ended with `WC_RETRY_EXC_ERR`. */
	__le64 retry_exceeded_err;
	/* WQEs that ended with `WC_RNR_RETRY_EXC_ERR`. */
	__le64 retry_rnr_exceeded_err;
	/* SENDs that ended well. */
	__le64 rdma_sends;
	/* Messages that a receive WQE was completed for. */
	__le64 rdma_recvs;
	/* Datagrams with a bad P_Key. */
	__le64 bad_pkey;
	/* Datagrams with a bad Q_Key. */
	__le64 qkey_viol;
	/* Times that a busy QP moved from one worker to another. */
	__le64 qp_moves;
};
static_assert(sizeof(struct virtio_rdma_counters) == 184, "size of virtio_rdma_counters");
static_assert(offsetof(struct virtio_rdma_counters, doorbell_kicks) == 0, "offset of virtio_rdma_counters.doorbell_kicks");
static_assert(offsetof(struct virtio_rdma_counters, send_wqes) == 8, "offset of virtio_rdma_counters.send_wqes");
static_assert(offsetof(struct virtio_rdma_counters, recv_wqes) == 16, "offset of virtio_rdma_counters.recv_wqes");
static_assert(offsetof(struct virtio_rdma_counters, completions) == 24, "offset of virtio_rdma_counters.completions");
static_assert(offsetof(struct virtio_rdma_counters, cq_events) == 32, "offset of virtio_rdma_counters.cq_events");
static_assert(offsetof(struct virtio_rdma_counters, cq_interrupts) == 40, "offset of virtio_rdma_counters.cq_interrupts");
static_assert(offsetof(struct virtio_rdma_counters, worker_sleeps) == 48, "offset of virtio_rdma_counters.worker_sleeps");
static_assert(offsetof(struct virtio_rdma_counters, tx_bytes) == 56, "offset of virtio_rdma_counters.tx_bytes");
static_assert(offsetof(struct virtio_rdma_counters, rx_bytes) == 64, "offset of virtio_rdma_counters.rx_bytes");
static_assert(offsetof(struct virtio_rdma_counters, rnr_naks) == 72, "offset of virtio_rdma_counters.rnr_naks");
static_assert(offsetof(struct virtio_rdma_counters, error_completions) == 80, "offset of virtio_rdma_counters.error_completions");
static_assert(offsetof(struct virtio_rdma_counters, guest_errors) == 88, "offset of virtio_rdma_counters.guest_errors");
static_assert(offsetof(struct virtio_rdma_counters, duplicate_request) == 96, "offset of virtio_rdma_counters.duplicate_request");
static_assert(offsetof(struct virtio_rdma_counters, out_of_seq_request) == 104, "offset of virtio_rdma_counters.out_of_seq_request");
static_assert(offsetof(struct virtio_rdma_counters, rcvd_seq_err) == 112, "offset of virtio_rdma_counters.rcvd_seq_err");
static_assert(offsetof(struct virtio_rdma_counters, rcvd_rnr_err) == 120, "offset of virtio_rdma_counters.rcvd_rnr_err");
static_assert(offsetof(struct virtio_rdma_counters, retry_exceeded_err) == 128, "offset of virtio_rdma_counters.retry_exceeded_err");
static_assert(offsetof(struct virtio_rdma_counters, retry_rnr_exceeded_err) == 136, "offset of virtio_rdma_counters.retry_rnr_exceeded_err");
static_assert(offsetof(struct virtio_rdma_counters, rdma_sends) == 144, "offset of virtio_rdma_counters.rdma_sends");
static_assert(offsetof(struct virtio_rdma_counters, rdma_recvs) == 152, "offset of virtio_rdma_counters.rdma_recvs");
static_assert(offsetof(struct virtio_rdma_counters, bad_pkey) == 160, "offset of virtio_rdma_counters.bad_pkey");
static_assert(offsetof(struct virtio_rdma_counters, qkey_viol) == 168, "offset of virtio_rdma_counters.qkey_viol");
static_assert(offsetof(struct virtio_rdma_counters, qp_moves) == 176, "offset of virtio_rdma_counters.qp_moves");

/* ADD_GID: the guest's network device has a new address. */
struct virtio_rdma_add_gid_request {
	/* Entry of the GID table. */
	__le32 index;
	/* `GID_TYPE_*`. */
	__u8 gid_type;
	/* Zero. */
	__u8 reserved;
	/* VLAN, or 0xffff for none. */
	__le16 vlan;
	/* The GID, big-endian. */
	__u8 gid[16];
	/* MAC of the network device that has the address. */
	__u8 mac[6];
	/* Zero. */
	__le16 reserved1;
};
static_assert(sizeof(struct virtio_rdma_add_gid_request) == 32, "size of virtio_rdma_add_gid_request");
static_assert(offsetof(struct virtio_rdma_add_gid_request, index) == 0, "offset of virtio_rdma_add_gid_request.index");
static_assert(offsetof(struct virtio_rdma_add_gid_request, gid_type) == 4, "offset of virtio_rdma_add_gid_request.gid_type");
static_assert(offsetof(struct virtio_rdma_add_gid_request, reserved) == 5, "offset of virtio_rdma_add_gid_request.reserved");
static_assert(offsetof(struct virtio_rdma_add_gid_request, vlan) == 6, "offset of virtio_rdma_add_gid_request.vlan");
static_assert(offsetof(struct virtio_rdma_add_gid_request, gid) == 8, "offset of virtio_rdma_add_gid_request.gid");
static_assert(offsetof(struct virtio_rdma_add_gid_request, mac) == 24, "offset of virtio_rdma_add_gid_request.mac");
static_assert(offsetof(struct virtio_rdma_add_gid_request, reserved1) == 30, "offset of virtio_rdma_add_gid_request.reserved1");

/* DEL_GID, and every other command whose request is one number. */
struct virtio_rdma_number_request {
	/* What to destroy or query. */
	__le32 number;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_number_request) == 8, "size of virtio_rdma_number_request");
static_assert(offsetof(struct virtio_rdma_number_request, number) == 0, "offset of virtio_rdma_number_request.number");
static_assert(offsetof(struct virtio_rdma_number_request, reserved) == 4, "offset of virtio_rdma_number_request.reserved");

/* Answer of every command that creates something and answers with its number only. */
struct virtio_rdma_number_answer {
	/* The object's number. */
	__le32 number;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_number_answer) == 8, "size of virtio_rdma_number_answer");
static_assert(offsetof(struct virtio_rdma_number_answer, number) == 0, "offset of virtio_rdma_number_answer.number");
static_assert(offsetof(struct virtio_rdma_number_answer, reserved) == 4, "offset of virtio_rdma_number_answer.reserved");

/* CREATE_UAR. */
struct virtio_rdma_create_uar_request {
	/* The region: zeroed; at most `UAR_MAX_BYTES`. */
	struct virtio_rdma_page_list pages;
};
static_assert(sizeof(struct virtio_rdma_create_uar_request) == 16, "size of virtio_rdma_create_uar_request");
static_assert(offsetof(struct virtio_rdma_create_uar_request, pages) == 0, "offset of virtio_rdma_create_uar_request.pages");

/* REG_MR: registers guest memory (IBA 11.2.8.2). */
struct virtio_rdma_reg_mr_request {
	/* The PD. */
	__le32 pdn;
	/* `ACCESS_*`. */
	__le32 access;
	/* Address by which work requests name the first byte. */
	__le64 iova;
	/* Bytes: 1 to `max_mr_size`. */
	__le64 length;
	/* Bytes from the start of the first page to the first byte. */
	__le64 offset;
	/* The memory. */
	struct virtio_rdma_page_list pages;
};
static_assert(sizeof(struct virtio_rdma_reg_mr_request) == 48, "size of virtio_rdma_reg_mr_request");
static_assert(offsetof(struct virtio_rdma_reg_mr_request, pdn) == 0, "offset of virtio_rdma_reg_mr_request.pdn");
static_assert(offsetof(struct virtio_rdma_reg_mr_request, access) == 4, "offset of virtio_rdma_reg_mr_request.access");
static_assert(offsetof(struct virtio_rdma_reg_mr_request, iova) == 8, "offset of virtio_rdma_reg_mr_request.iova");
static_assert(offsetof(struct virtio_rdma_reg_mr_request, length) == 16, "offset of virtio_rdma_reg_mr_request.length");
static_assert(offsetof(struct virtio_rdma_reg_mr_request, offset) == 24, "offset of virtio_rdma_reg_mr_request.offset");
static_assert(offsetof(struct virtio_rdma_reg_mr_request, pages) == 32, "offset of virtio_rdma_reg_mr_request.pages");

/*
 * GET_DMA_MR: an MR that covers all guest-physical memory; for the driver's own kernel
 * consumers only, never for a process.
 */
struct virtio_rdma_get_dma_mr_request {
	/* The PD. */
	__le32 pdn;
	/* `ACCESS_*`. */
	__le32 access;
};
static_assert(sizeof(struct virtio_rdma_get_dma_mr_request) == 8, "size of virtio_rdma_get_dma_mr_request");
static_assert(offsetof(struct virtio_rdma_get_dma_mr_request, pdn) == 0, "offset of virtio_rdma_get_dma_mr_request.pdn");
static_assert(offsetof(struct virtio_rdma_get_dma_mr_request, access) == 4, "offset of virtio_rdma_get_dma_mr_request.access");

/* ALLOC_MR: an MR without memory, for `WR_REG_MR`. Only for the driver's own kernel consumers. */
struct virtio_rdma_alloc_mr_request {
	/* The PD. */
	__le32 pdn;
	/* Addresses that the list holds: 1 to `max_fast_reg_page_list_len`. */
	__le32 max_pages;
	/*
	 * The memory of the list: `max_pages` addresses (le64). Shared with the device, which reads
	 * it when it carries out a `WR_REG_MR`.
	 */
	struct virtio_rdma_page_list list;
};
static_assert(sizeof(struct virtio_rdma_alloc_mr_request) == 24, "size of virtio_rdma_alloc_mr_request");
static_assert(offsetof(struct virtio_rdma_alloc_mr_request, pdn) == 0, "offset of virtio_rdma_alloc_mr_request.pdn");
static_assert(offsetof(struct virtio_rdma_alloc_mr_request, max_pages) == 4, "offset of virtio_rdma_alloc_mr_request.max_pages");
static_assert(offsetof(struct virtio_rdma_alloc_mr_request, list) == 8, "offset of virtio_rdma_alloc_mr_request.list");

/* REREG_MR: changes an MR of REG_MR. */
struct virtio_rdma_rereg_mr_request {
	/* The MR. */
	__le32 mrn;
	/* `REREG_*`: which of the members below count. */
	__le32 flags;
	/* The new PD. */
	__le32 pdn;
	/* The new rights. */
	__le32 access;
	/* As in REG_MR. */
	__le64 iova;
	/* As in REG_MR. */
	__le64 length;
	/* As in REG_MR. */
	__le64 offset;
	/* As in REG_MR. */
	struct virtio_rdma_page_list pages;
};
static_assert(sizeof(struct virtio_rdma_rereg_mr_request) == 56, "size of virtio_rdma_rereg_mr_request");
static_assert(offsetof(struct virtio_rdma_rereg_mr_request, mrn) == 0, "offset of virtio_rdma_rereg_mr_request.mrn");
static_assert(offsetof(struct virtio_rdma_rereg_mr_request, flags) == 4, "offset of virtio_rdma_rereg_mr_request.flags");
static_assert(offsetof(struct virtio_rdma_rereg_mr_request, pdn) == 8, "offset of virtio_rdma_rereg_mr_request.pdn");
static_assert(offsetof(struct virtio_rdma_rereg_mr_request, access) == 12, "offset of virtio_rdma_rereg_mr_request.access");
static_assert(offsetof(struct virtio_rdma_rereg_mr_request, iova) == 16, "offset of virtio_rdma_rereg_mr_request.iova");
static_assert(offsetof(struct virtio_rdma_rereg_mr_request, length) == 24, "offset of virtio_rdma_rereg_mr_request.length");
static_assert(offsetof(struct virtio_rdma_rereg_mr_request, offset) == 32, "offset of virtio_rdma_rereg_mr_request.offset");
static_assert(offsetof(struct virtio_rdma_rereg_mr_request, pages) == 40, "offset of virtio_rdma_rereg_mr_request.pages");

/* ALLOC_MW. */
struct virtio_rdma_alloc_mw_request {
	/* The PD. */
	__le32 pdn;
	/* `MW_TYPE_*`. */
	__le32 mw_type;
};
static_assert(sizeof(struct virtio_rdma_alloc_mw_request) == 8, "size of virtio_rdma_alloc_mw_request");
static_assert(offsetof(struct virtio_rdma_alloc_mw_request, pdn) == 0, "offset of virtio_rdma_alloc_mw_request.pdn");
static_assert(offsetof(struct virtio_rdma_alloc_mw_request, mw_type) == 4, "offset of virtio_rdma_alloc_mw_request.mw_type");

/* ALLOC_DM: memory of the device's own. */
struct virtio_rdma_alloc_dm_request {
	/* Bytes: 1 to `max_dm_size`. */
	__le64 length;
};
static_assert(sizeof(struct virtio_rdma_alloc_dm_request) == 8, "size of virtio_rdma_alloc_dm_request");
static_assert(offsetof(struct virtio_rdma_alloc_dm_request, length) == 0, "offset of virtio_rdma_alloc_dm_request.length");

/* COPY_DM: between device memory and memory of the driver. */
struct virtio_rdma_copy_dm_request {
	/* The device memory. */
	__le32 dmn;
	/* 0: out of the device memory; 1: into it. */
	__u8 write;
	/* Zero. */
	__u8 reserved[3];
	/* Of the first byte in the device memory. */
	__le64 dm_offset;
	/* Bytes: 1 to `max_dm_size`. */
	__le64 length;
	/* The driver's memory, in which the bytes begin with the first page. */
	struct virtio_rdma_page_list pages;
};
static_assert(sizeof(struct virtio_rdma_copy_dm_request) == 40, "size of virtio_rdma_copy_dm_request");
static_assert(offsetof(struct virtio_rdma_copy_dm_request, dmn) == 0, "offset of virtio_rdma_copy_dm_request.dmn");
static_assert(offsetof(struct virtio_rdma_copy_dm_request, write) == 4, "offset of virtio_rdma_copy_dm_request.write");
static_assert(offsetof(struct virtio_rdma_copy_dm_request, reserved) == 5, "offset of virtio_rdma_copy_dm_request.reserved");
static_assert(offsetof(struct virtio_rdma_copy_dm_request, dm_offset) == 8, "offset of virtio_rdma_copy_dm_request.dm_offset");
static_assert(offsetof(struct virtio_rdma_copy_dm_request, length) == 16, "offset of virtio_rdma_copy_dm_request.length");
static_assert(offsetof(struct virtio_rdma_copy_dm_request, pages) == 24, "offset of virtio_rdma_copy_dm_request.pages");

/* REG_DM_MR: an MR of device memory, whose first byte has the address 0. */
struct virtio_rdma_reg_dm_mr_request {
	/* The PD. */
	__le32 pdn;
	/* `ACCESS_*`. */
	__le32 access;
	/* The device memory. */
	__le32 dmn;
	/* Zero. */
	__le32 reserved;
	/* Of the first byte in the device memory. */
	__le64 offset;
	/* Bytes: 0 to the end of the device memory. */
	__le64 length;
};
static_assert(sizeof(struct virtio_rdma_reg_dm_mr_request) == 32, "size of virtio_rdma_reg_dm_mr_request");
static_assert(offsetof(struct virtio_rdma_reg_dm_mr_request, pdn) == 0, "offset of virtio_rdma_reg_dm_mr_request.pdn");
static_assert(offsetof(struct virtio_rdma_reg_dm_mr_request, access) == 4, "offset of virtio_rdma_reg_dm_mr_request.access");
static_assert(offsetof(struct virtio_rdma_reg_dm_mr_request, dmn) == 8, "offset of virtio_rdma_reg_dm_mr_request.dmn");
static_assert(offsetof(struct virtio_rdma_reg_dm_mr_request, reserved) == 12, "offset of virtio_rdma_reg_dm_mr_request.reserved");
static_assert(offsetof(struct virtio_rdma_reg_dm_mr_request, offset) == 16, "offset of virtio_rdma_reg_dm_mr_request.offset");
static_assert(offsetof(struct virtio_rdma_reg_dm_mr_request, length) == 24, "offset of virtio_rdma_reg_dm_mr_request.length");

/* Answer to ALLOC_MW. */
struct virtio_rdma_mw_answer {
	/* The window's number, for DEALLOC_MW. */
	__le32 mwn;
	/* Its key; no memory is behind it before the first bind. */
	__le32 rkey;
};
static_assert(sizeof(struct virtio_rdma_mw_answer) == 8, "size of virtio_rdma_mw_answer");
static_assert(offsetof(struct virtio_rdma_mw_answer, mwn) == 0, "offset of virtio_rdma_mw_answer.mwn");
static_assert(offsetof(struct virtio_rdma_mw_answer, rkey) == 4, "offset of virtio_rdma_mw_answer.rkey");

/* Answer to REG_MR, GET_DMA_MR, ALLOC_MR and REREG_MR. */
struct virtio_rdma_mr_answer {
	/* The MR's number, for DEREG_MR. */
	__le32 mrn;
	/* Local key. */
	__le32 lkey;
	/* Remote key; also where no remote access is allowed, for REREG_MR may allow it. */
	__le32 rkey;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_mr_answer) == 16, "size of virtio_rdma_mr_answer");
static_assert(offsetof(struct virtio_rdma_mr_answer, mrn) == 0, "offset of virtio_rdma_mr_answer.mrn");
static_assert(offsetof(struct virtio_rdma_mr_answer, lkey) == 4, "offset of virtio_rdma_mr_answer.lkey");
static_assert(offsetof(struct virtio_rdma_mr_answer, rkey) == 8, "offset of virtio_rdma_mr_answer.rkey");
static_assert(offsetof(struct virtio_rdma_mr_answer, reserved) == 12, "offset of virtio_rdma_mr_answer.reserved");

/* CREATE_CQ. */
struct virtio_rdma_create_cq_request {
	/* Slots of the ring: a power of two, up to `max_cqe`. */
	__le32 entries;
	/* The vector whose completion virtqueue gets its events. */
	__le32 vector;
	/* The buffer: `CqGuestLine`, `CqDeviceLine`, and the ring at `CQ_RING_OFFSET`; zeroed. */
	struct virtio_rdma_page_list pages;
	/* `CQ_FLAG_*`. */
	__le32 flags;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_create_cq_request) == 32, "size of virtio_rdma_create_cq_request");
static_assert(offsetof(struct virtio_rdma_create_cq_request, entries) == 0, "offset of virtio_rdma_create_cq_request.entries");
static_assert(offsetof(struct virtio_rdma_create_cq_request, vector) == 4, "offset of virtio_rdma_create_cq_request.vector");
static_assert(offsetof(struct virtio_rdma_create_cq_request, pages) == 8, "offset of virtio_rdma_create_cq_request.pages");
static_assert(offsetof(struct virtio_rdma_create_cq_request, flags) == 24, "offset of virtio_rdma_create_cq_request.flags");
static_assert(offsetof(struct virtio_rdma_create_cq_request, reserved) == 28, "offset of virtio_rdma_create_cq_request.reserved");

/*
 * RESIZE_CQ: gives the CQ another buffer. The answer's number is the free-running count of the
 * CQEs in the old ring, without the RESIZE CQE.
 */
struct virtio_rdma_resize_cq_request {
	/* The CQ. */
	__le32 cqn;
	/* Slots of the new ring: a power of two, up to `max_cqe`. */
	__le32 entries;
	/* The new buffer, as in CREATE_CQ. */
	struct virtio_rdma_page_list pages;
};
static_assert(sizeof(struct virtio_rdma_resize_cq_request) == 24, "size of virtio_rdma_resize_cq_request");
static_assert(offsetof(struct virtio_rdma_resize_cq_request, cqn) == 0, "offset of virtio_rdma_resize_cq_request.cqn");
static_assert(offsetof(struct virtio_rdma_resize_cq_request, entries) == 4, "offset of virtio_rdma_resize_cq_request.entries");
static_assert(offsetof(struct virtio_rdma_resize_cq_request, pages) == 8, "offset of virtio_rdma_resize_cq_request.pages");

/* MODIFY_CQ: when an armed CQ gets its event (moderation). */
struct virtio_rdma_modify_cq_request {
	/* The CQ. */
	__le32 cqn;
	/* After this many CQEs since the last event; 0 and 1: at once. */
	__le16 count;
	/* Or this many microseconds after the first of them; 0: at once. */
	__le16 period;
};
static_assert(sizeof(struct virtio_rdma_modify_cq_request) == 8, "size of virtio_rdma_modify_cq_request");
static_assert(offsetof(struct virtio_rdma_modify_cq_request, cqn) == 0, "offset of virtio_rdma_modify_cq_request.cqn");
static_assert(offsetof(struct virtio_rdma_modify_cq_request, count) == 4, "offset of virtio_rdma_modify_cq_request.count");
static_assert(offsetof(struct virtio_rdma_modify_cq_request, period) == 6, "offset of virtio_rdma_modify_cq_request.period");

/* CREATE_QP. */
struct virtio_rdma_create_qp_request {
	/* The PD. */
	__le32 pdn;
	/* CQ of the send queue. */
	__le32 send_cqn;
	/* CQ of the receive queue. */
	__le32 recv_cqn;
	/* SRQ, or `NO_SRQ`. */
	__le32 srqn;
	/* UAR in which pending work of this QP is shown. */
	__le32 uarn;
	/* Bit in that UAR: no other QP may use it. */
	__le32 slot;
	/* `QP_TYPE_*`. */
	__u8 qp_type;
	/* `QP_FLAG_*`. */
	__u8 flags;
	/* Stride of the send queue: `2^n` bytes, `WQE_STRIDE_SHIFT_MIN` to `WQE_STRIDE_SHIFT_MAX`. */
	__u8 sq_stride_shift;
	/* Stride of the receive queue. */
	__u8 rq_stride_shift;
	/* Slots of the send queue: a power of two, up to `max_qp_wr`; 0 for none. */
	__le32 sq_entries;
	/* Slots of the receive queue; 0 for none. */
	__le32 rq_entries;
	/* Bytes from the start of the buffer to the send queue: a multiple of 64. */
	__le32 sq_offset;
	/* Bytes from the start of the buffer to the receive queue. */
	__le32 rq_offset;
	/* Most SGEs of a send WQE; they fit in the stride. */
	__le32 max_send_sge;
	/* Most SGEs of a receive WQE; they fit in the stride. */
	__le32 max_recv_sge;
	/* Most bytes of inline data; they fit in the stride. */
	__le32 max_inline;
	/* The buffer: `QpDeviceLine` first; zeroed. */
	struct virtio_rdma_page_list pages;
	/* The XRC domain of an XRC target; 0 for other types. */
	__le32 xrcdn;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_create_qp_request) == 80, "size of virtio_rdma_create_qp_request");
static_assert(offsetof(struct virtio_rdma_create_qp_request, pdn) == 0, "offset of virtio_rdma_create_qp_request.pdn");
static_assert(offsetof(struct virtio_rdma_create_qp_request, send_cqn) == 4, "offset of virtio_rdma_create_qp_request.send_cqn");
static_assert(offsetof(struct virtio_rdma_create_qp_request, recv_cqn) == 8, "offset of virtio_rdma_create_qp_request.recv_cqn");
static_assert(offsetof(struct virtio_rdma_create_qp_request, srqn) == 12, "offset of virtio_rdma_create_qp_request.srqn");
static_assert(offsetof(struct virtio_rdma_create_qp_request, uarn) == 16, "offset of virtio_rdma_create_qp_request.uarn");
static_assert(offsetof(struct virtio_rdma_create_qp_request, slot) == 20, "offset of virtio_rdma_create_qp_request.slot");
static_assert(offsetof(struct virtio_rdma_create_qp_request, qp_type) == 24, "offset of virtio_rdma_create_qp_request.qp_type");
static_assert(offsetof(struct virtio_rdma_create_qp_request, flags) == 25, "offset of virtio_rdma_create_qp_request.flags");
static_assert(offsetof(struct virtio_rdma_create_qp_request, sq_stride_shift) == 26, "offset of virtio_rdma_create_qp_request.sq_stride_shift");
static_assert(offsetof(struct virtio_rdma_create_qp_request, rq_stride_shift) == 27, "offset of virtio_rdma_create_qp_request.rq_stride_shift");
static_assert(offsetof(struct virtio_rdma_create_qp_request, sq_entries) == 28, "offset of virtio_rdma_create_qp_request.sq_entries");
static_assert(offsetof(struct virtio_rdma_create_qp_request, rq_entries) == 32, "offset of virtio_rdma_create_qp_request.rq_entries");
static_assert(offsetof(struct virtio_rdma_create_qp_request, sq_offset) == 36, "offset of virtio_rdma_create_qp_request.sq_offset");
static_assert(offsetof(struct virtio_rdma_create_qp_request, rq_offset) == 40, "offset of virtio_rdma_create_qp_request.rq_offset");
static_assert(offsetof(struct virtio_rdma_create_qp_request, max_send_sge) == 44, "offset of virtio_rdma_create_qp_request.max_send_sge");
static_assert(offsetof(struct virtio_rdma_create_qp_request, max_recv_sge) == 48, "offset of virtio_rdma_create_qp_request.max_recv_sge");
static_assert(offsetof(struct virtio_rdma_create_qp_request, max_inline) == 52, "offset of virtio_rdma_create_qp_request.max_inline");
static_assert(offsetof(struct virtio_rdma_create_qp_request, pages) == 56, "offset of virtio_rdma_create_qp_request.pages");
static_assert(offsetof(struct virtio_rdma_create_qp_request, xrcdn) == 72, "offset of virtio_rdma_create_qp_request.xrcdn");
static_assert(offsetof(struct virtio_rdma_create_qp_request, reserved) == 76, "offset of virtio_rdma_create_qp_request.reserved");

/* The path of a QP or of an address handle (IBA address vector). */
struct virtio_rdma_address_vector {
	/* GID of the peer, big-endian. */
	__u8 dgid[16];
	/* Entry of the own GID table. */
	__le32 sgid_index;
	/* IPv6 flow label, 20 bits. */
	__le32 flow_label;
	/* MAC of the next hop. */
	__u8 dmac[6];
	/* VLAN, or 0xffff for none. */
	__le16 vlan;
	/* IPv6 hop limit. */
	__u8 hop_limit;
	/* IPv6 traffic class. */
	__u8 traffic_class;
	/* Service level. */
	__u8 sl;
	/* IBA static rate code; 0 is the port's. */
	__u8 static_rate;
	/* The port: 1. */
	__u8 port;
	/* Zero. */
	__u8 reserved[3];
};
static_assert(sizeof(struct virtio_rdma_address_vector) == 40, "size of virtio_rdma_address_vector");
static_assert(offsetof(struct virtio_rdma_address_vector, dgid) == 0, "offset of virtio_rdma_address_vector.dgid");
static_assert(offsetof(struct virtio_rdma_address_vector, sgid_index) == 16, "offset of virtio_rdma_address_vector.sgid_index");
static_assert(offsetof(struct virtio_rdma_address_vector, flow_label) == 20, "offset of virtio_rdma_address_vector.flow_label");
static_assert(offsetof(struct virtio_rdma_address_vector, dmac) == 24, "offset of virtio_rdma_address_vector.dmac");
static_assert(offsetof(struct virtio_rdma_address_vector, vlan) == 30, "offset of virtio_rdma_address_vector.vlan");
static_assert(offsetof(struct virtio_rdma_address_vector, hop_limit) == 32, "offset of virtio_rdma_address_vector.hop_limit");
static_assert(offsetof(struct virtio_rdma_address_vector, traffic_class) == 33, "offset of virtio_rdma_address_vector.traffic_class");
static_assert(offsetof(struct virtio_rdma_address_vector, sl) == 34, "offset of virtio_rdma_address_vector.sl");
static_assert(offsetof(struct virtio_rdma_address_vector, static_rate) == 35, "offset of virtio_rdma_address_vector.static_rate");
static_assert(offsetof(struct virtio_rdma_address_vector, port) == 36, "offset of virtio_rdma_address_vector.port");
static_assert(offsetof(struct virtio_rdma_address_vector, reserved) == 37, "offset of virtio_rdma_address_vector.reserved");

/* SET_AH_TABLE: where the driver keeps its address handles. Once after INIT. */
struct virtio_rdma_set_ah_table_request {
	/* Entries: 1 to `max_ah`. */
	__le32 entries;
	/* Zero. */
	__le32 reserved;
	/* The table, an `AhEntry` each; zeroed. */
	struct virtio_rdma_page_list pages;
};
static_assert(sizeof(struct virtio_rdma_set_ah_table_request) == 24, "size of virtio_rdma_set_ah_table_request");
static_assert(offsetof(struct virtio_rdma_set_ah_table_request, entries) == 0, "offset of virtio_rdma_set_ah_table_request.entries");
static_assert(offsetof(struct virtio_rdma_set_ah_table_request, reserved) == 4, "offset of virtio_rdma_set_ah_table_request.reserved");
static_assert(offsetof(struct virtio_rdma_set_ah_table_request, pages) == 8, "offset of virtio_rdma_set_ah_table_request.pages");

/* One address handle. The driver fills it in, `flags` last; user space can't write it. */
struct virtio_rdma_ah_entry {
	/* `AH_VALID`, or 0. */
	__le32 flags;
	/* The PD; a QP of another one may not use the handle. */
	__le32 pdn;
	/* The path. */
	struct virtio_rdma_address_vector av;
	/* Zero. */
	__u8 reserved[16];
};
static_assert(sizeof(struct virtio_rdma_ah_entry) == 64, "size of virtio_rdma_ah_entry");
static_assert(offsetof(struct virtio_rdma_ah_entry, flags) == 0, "offset of virtio_rdma_ah_entry.flags");
static_assert(offsetof(struct virtio_rdma_ah_entry, pdn) == 4, "offset of virtio_rdma_ah_entry.pdn");
static_assert(offsetof(struct virtio_rdma_ah_entry, av) == 8, "offset of virtio_rdma_ah_entry.av");
static_assert(offsetof(struct virtio_rdma_ah_entry, reserved) == 48, "offset of virtio_rdma_ah_entry.reserved");

/* CREATE_SRQ. */
struct virtio_rdma_create_srq_request {
	/* The PD. */
	__le32 pdn;
	/* UAR in which pending work is shown while the device asks for it. */
	__le32 uarn;
	/* Bit in that UAR: nothing else may use it. */
	__le32 slot;
	/* Slots of the ring: a power of two, up to `max_srq_wr`. */
	__le32 entries;
	/* Bytes from the start of the buffer to the ring: a multiple of 64, at least 64. */
	__le32 offset;
	/* Most SGEs of a WQE; they fit in the stride. */
	__le32 max_sge;
	/* Event when fewer WQEs than this are left; 0 for none. */
	__le32 limit;
	/* A WQE takes `2^n` bytes. */
	__u8 stride_shift;
	/* `QP_FLAG_KERNEL`, or 0. */
	__u8 flags;
	/* Zero. */
	__le16 reserved;
	/* The buffer: `SrqDeviceLine` first; zeroed. */
	struct virtio_rdma_page_list pages;
	/* The XRC domain of an XRC SRQ; 0 for another. */
	__le32 xrcdn;
	/* XRC: the CQ of the messages that come by this SRQ. */
	__le32 cqn;
};
static_assert(sizeof(struct virtio_rdma_create_srq_request) == 56, "size of virtio_rdma_create_srq_request");
static_assert(offsetof(struct virtio_rdma_create_srq_request, pdn) == 0, "offset of virtio_rdma_create_srq_request.pdn");
static_assert(offsetof(struct virtio_rdma_create_srq_request, uarn) == 4, "offset of virtio_rdma_create_srq_request.uarn");
static_assert(offsetof(struct virtio_rdma_create_srq_request, slot) == 8, "offset of virtio_rdma_create_srq_request.slot");
static_assert(offsetof(struct virtio_rdma_create_srq_request, entries) == 12, "offset of virtio_rdma_create_srq_request.entries");
static_assert(offsetof(struct virtio_rdma_create_srq_request, offset) == 16, "offset of virtio_rdma_create_srq_request.offset");
static_assert(offsetof(struct virtio_rdma_create_srq_request, max_sge) == 20, "offset of virtio_rdma_create_srq_request.max_sge");
static_assert(offsetof(struct virtio_rdma_create_srq_request, limit) == 24, "offset of virtio_rdma_create_srq_request.limit");
static_assert(offsetof(struct virtio_rdma_create_srq_request, stride_shift) == 28, "offset of virtio_rdma_create_srq_request.stride_shift");
static_assert(offsetof(struct virtio_rdma_create_srq_request, flags) == 29, "offset of virtio_rdma_create_srq_request.flags");
static_assert(offsetof(struct virtio_rdma_create_srq_request, reserved) == 30, "offset of virtio_rdma_create_srq_request.reserved");
static_assert(offsetof(struct virtio_rdma_create_srq_request, pages) == 32, "offset of virtio_rdma_create_srq_request.pages");
static_assert(offsetof(struct virtio_rdma_create_srq_request, xrcdn) == 48, "offset of virtio_rdma_create_srq_request.xrcdn");
static_assert(offsetof(struct virtio_rdma_create_srq_request, cqn) == 52, "offset of virtio_rdma_create_srq_request.cqn");

/* MODIFY_SRQ: arms the limit. */
struct virtio_rdma_modify_srq_request {
	/* The SRQ. */
	__le32 srqn;
	/* Event when fewer WQEs than this are left; 0 for none. */
	__le32 limit;
};
static_assert(sizeof(struct virtio_rdma_modify_srq_request) == 8, "size of virtio_rdma_modify_srq_request");
static_assert(offsetof(struct virtio_rdma_modify_srq_request, srqn) == 0, "offset of virtio_rdma_modify_srq_request.srqn");
static_assert(offsetof(struct virtio_rdma_modify_srq_request, limit) == 4, "offset of virtio_rdma_modify_srq_request.limit");

/* RESIZE_SRQ: another ring, which holds the WQEs that are posted. */
struct virtio_rdma_resize_srq_request {
	/* The SRQ. */
	__le32 srqn;
	/* Slots of the new ring: a power of two, up to `max_srq_wr`. */
	__le32 entries;
	/* Bytes from the start of the buffer to the ring: a multiple of 64, at least 64. */
	__le32 offset;
	/* A WQE takes `2^n` bytes. */
	__u8 stride_shift;
	/* Zero. */
	__u8 reserved[3];
	/* The new buffer: `SrqDeviceLine` first, zeroed. */
	struct virtio_rdma_page_list pages;
};
static_assert(sizeof(struct virtio_rdma_resize_srq_request) == 32, "size of virtio_rdma_resize_srq_request");
static_assert(offsetof(struct virtio_rdma_resize_srq_request, srqn) == 0, "offset of virtio_rdma_resize_srq_request.srqn");
static_assert(offsetof(struct virtio_rdma_resize_srq_request, entries) == 4, "offset of virtio_rdma_resize_srq_request.entries");
static_assert(offsetof(struct virtio_rdma_resize_srq_request, offset) == 8, "offset of virtio_rdma_resize_srq_request.offset");
static_assert(offsetof(struct virtio_rdma_resize_srq_request, stride_shift) == 12, "offset of virtio_rdma_resize_srq_request.stride_shift");
static_assert(offsetof(struct virtio_rdma_resize_srq_request, reserved) == 13, "offset of virtio_rdma_resize_srq_request.reserved");
static_assert(offsetof(struct virtio_rdma_resize_srq_request, pages) == 16, "offset of virtio_rdma_resize_srq_request.pages");

/* Answer to QUERY_SRQ. */
struct virtio_rdma_srq_attr {
	/* Slots of the ring. */
	__le32 entries;
	/* Most SGEs of a WQE. */
	__le32 max_sge;
	/* The limit that is armed; 0 for none. */
	__le32 limit;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_srq_attr) == 16, "size of virtio_rdma_srq_attr");
static_assert(offsetof(struct virtio_rdma_srq_attr, entries) == 0, "offset of virtio_rdma_srq_attr.entries");
static_assert(offsetof(struct virtio_rdma_srq_attr, max_sge) == 4, "offset of virtio_rdma_srq_attr.max_sge");
static_assert(offsetof(struct virtio_rdma_srq_attr, limit) == 8, "offset of virtio_rdma_srq_attr.limit");
static_assert(offsetof(struct virtio_rdma_srq_attr, reserved) == 12, "offset of virtio_rdma_srq_attr.reserved");

/* The attributes of a QP (IBA 11.2.4.2). Which ones count says a mask of `QP_ATTR_*`. */
struct virtio_rdma_qp_attr {
	/* `QP_STATE_*`. */
	__u8 qp_state;
	/* The state that the driver believes the QP to be in. */
	__u8 cur_qp_state;
	/* Path MTU code. */
	__u8 path_mtu;
	/* Port: 1. */
	__u8 port;
	/* Q_Key of a UD QP. */
	__le32 qkey;
	/* PSN of the first packet received, 24 bits. */
	__le32 rq_psn;
	/* PSN of the first packet sent, 24 bits. */
	__le32 sq_psn;
	/* The peer's QPN. */
	__le32 dest_qpn;
	/* What the peer may do (`ACCESS_*`). */
	__le32 access;
	/* The path to the peer. */
	struct virtio_rdma_address_vector av;
	/* Entry of the P_Key table. */
	__le16 pkey_index;
	/* READs and atomics outstanding as requester. */
	__u8 max_rd_atomic;
	/* As responder. */
	__u8 max_dest_rd_atomic;
	/* IBA RNR timer code, 5 bits: how long a peer waits after an RNR NAK from this QP. */
	__u8 min_rnr_timer;
	/* 4.096 us * 2^n until a retry; 0 for never. */
	__u8 timeout;
	/* Retries after a time-out or a NAK, 0 to 7. */
	__u8 retry_cnt;
	/* Retries after an RNR NAK, 0 to 6; 7 for no end. */
	__u8 rnr_retry;
	/* QUERY_QP: 1 while an SQD drain goes on. MODIFY_QP to SQD: 1 for an event when drained. */
	__u8 sq_draining;
	/* Zero. */
	__u8 reserved[7];
};
static_assert(sizeof(struct virtio_rdma_qp_attr) == 80, "size of virtio_rdma_qp_attr");
static_assert(offsetof(struct virtio_rdma_qp_attr, qp_state) == 0, "offset of virtio_rdma_qp_attr.qp_state");
static_assert(offsetof(struct virtio_rdma_qp_attr, cur_qp_state) == 1, "offset of virtio_rdma_qp_attr.cur_qp_state");
static_assert(offsetof(struct virtio_rdma_qp_attr, path_mtu) == 2, "offset of virtio_rdma_qp_attr.path_mtu");
static_assert(offsetof(struct virtio_rdma_qp_attr, port) == 3, "offset of virtio_rdma_qp_attr.port");
static_assert(offsetof(struct virtio_rdma_qp_attr, qkey) == 4, "offset of virtio_rdma_qp_attr.qkey");
static_assert(offsetof(struct virtio_rdma_qp_attr, rq_psn) == 8, "offset of virtio_rdma_qp_attr.rq_psn");
static_assert(offsetof(struct virtio_rdma_qp_attr, sq_psn) == 12, "offset of virtio_rdma_qp_attr.sq_psn");
static_assert(offsetof(struct virtio_rdma_qp_attr, dest_qpn) == 16, "offset of virtio_rdma_qp_attr.dest_qpn");
static_assert(offsetof(struct virtio_rdma_qp_attr, access) == 20, "offset of virtio_rdma_qp_attr.access");
static_assert(offsetof(struct virtio_rdma_qp_attr, av) == 24, "offset of virtio_rdma_qp_attr.av");
static_assert(offsetof(struct virtio_rdma_qp_attr, pkey_index) == 64, "offset of virtio_rdma_qp_attr.pkey_index");
static_assert(offsetof(struct virtio_rdma_qp_attr, max_rd_atomic) == 66, "offset of virtio_rdma_qp_attr.max_rd_atomic");
static_assert(offsetof(struct virtio_rdma_qp_attr, max_dest_rd_atomic) == 67, "offset of virtio_rdma_qp_attr.max_dest_rd_atomic");
static_assert(offsetof(struct virtio_rdma_qp_attr, min_rnr_timer) == 68, "offset of virtio_rdma_qp_attr.min_rnr_timer");
static_assert(offsetof(struct virtio_rdma_qp_attr, timeout) == 69, "offset of virtio_rdma_qp_attr.timeout");
static_assert(offsetof(struct virtio_rdma_qp_attr, retry_cnt) == 70, "offset of virtio_rdma_qp_attr.retry_cnt");
static_assert(offsetof(struct virtio_rdma_qp_attr, rnr_retry) == 71, "offset of virtio_rdma_qp_attr.rnr_retry");
static_assert(offsetof(struct virtio_rdma_qp_attr, sq_draining) == 72, "offset of virtio_rdma_qp_attr.sq_draining");
static_assert(offsetof(struct virtio_rdma_qp_attr, reserved) == 73, "offset of virtio_rdma_qp_attr.reserved");

/* ATTACH_MCAST and DETACH_MCAST. */
struct virtio_rdma_mcast_request {
	/* The QP, of type UD. */
	__le32 qpn;
	/* Zero. */
	__le32 reserved;
	/* The group, big-endian: ff00::/8, or an IPv4 multicast address as a mapped one. */
	__u8 gid[16];
};
static_assert(sizeof(struct virtio_rdma_mcast_request) == 24, "size of virtio_rdma_mcast_request");
static_assert(offsetof(struct virtio_rdma_mcast_request, qpn) == 0, "offset of virtio_rdma_mcast_request.qpn");
static_assert(offsetof(struct virtio_rdma_mcast_request, reserved) == 4, "offset of virtio_rdma_mcast_request.reserved");
static_assert(offsetof(struct virtio_rdma_mcast_request, gid) == 8, "offset of virtio_rdma_mcast_request.gid");

/* MODIFY_QP. */
struct virtio_rdma_modify_qp_request {
	/* The QP. */
	__le32 qpn;
	/* Which of the attributes count (`QP_ATTR_*`). */
	__le32 attr_mask;
	/* The attributes. */
	struct virtio_rdma_qp_attr attr;
};
static_assert(sizeof(struct virtio_rdma_modify_qp_request) == 88, "size of virtio_rdma_modify_qp_request");
static_assert(offsetof(struct virtio_rdma_modify_qp_request, qpn) == 0, "offset of virtio_rdma_modify_qp_request.qpn");
static_assert(offsetof(struct virtio_rdma_modify_qp_request, attr_mask) == 4, "offset of virtio_rdma_modify_qp_request.attr_mask");
static_assert(offsetof(struct virtio_rdma_modify_qp_request, attr) == 8, "offset of virtio_rdma_modify_qp_request.attr");

/* REG_ODP_MR: an MR without pages, which MAP_PAGES puts there. */
struct virtio_rdma_reg_odp_mr_request {
	/* The PD. */
	__le32 pdn;
	/* `ACCESS_*`. */
	__le32 access;
	/* Address by which work requests name the first byte. */
	__le64 iova;
	/* Bytes: 1 to `max_mr_size`; or `ODP_ALL`, with `iova` and `offset` 0. */
	__le64 length;
	/* Bytes from the start of page 0 to the first byte. */
	__le64 offset;
	/* A page is `2^page_shift` bytes: 12 to 30. */
	__u8 page_shift;
	/* Zero. */
	__u8 reserved[7];
};
static_assert(sizeof(struct virtio_rdma_reg_odp_mr_request) == 40, "size of virtio_rdma_reg_odp_mr_request");
static_assert(offsetof(struct virtio_rdma_reg_odp_mr_request, pdn) == 0, "offset of virtio_rdma_reg_odp_mr_request.pdn");
static_assert(offsetof(struct virtio_rdma_reg_odp_mr_request, access) == 4, "offset of virtio_rdma_reg_odp_mr_request.access");
static_assert(offsetof(struct virtio_rdma_reg_odp_mr_request, iova) == 8, "offset of virtio_rdma_reg_odp_mr_request.iova");
static_assert(offsetof(struct virtio_rdma_reg_odp_mr_request, length) == 16, "offset of virtio_rdma_reg_odp_mr_request.length");
static_assert(offsetof(struct virtio_rdma_reg_odp_mr_request, offset) == 24, "offset of virtio_rdma_reg_odp_mr_request.offset");
static_assert(offsetof(struct virtio_rdma_reg_odp_mr_request, page_shift) == 32, "offset of virtio_rdma_reg_odp_mr_request.page_shift");
static_assert(offsetof(struct virtio_rdma_reg_odp_mr_request, reserved) == 33, "offset of virtio_rdma_reg_odp_mr_request.reserved");

/* MAP_PAGES: pages are there from now on. */
struct virtio_rdma_map_pages_request {
	/* The MR. */
	__le32 mrn;
	/* `PAGES_*`. */
	__le32 flags;
	/* The first page. */
	__le64 first;
	/* Where they lie, in pages of the MR's size. */
	struct virtio_rdma_page_list pages;
};
static_assert(sizeof(struct virtio_rdma_map_pages_request) == 32, "size of virtio_rdma_map_pages_request");
static_assert(offsetof(struct virtio_rdma_map_pages_request, mrn) == 0, "offset of virtio_rdma_map_pages_request.mrn");
static_assert(offsetof(struct virtio_rdma_map_pages_request, flags) == 4, "offset of virtio_rdma_map_pages_request.flags");
static_assert(offsetof(struct virtio_rdma_map_pages_request, first) == 8, "offset of virtio_rdma_map_pages_request.first");
static_assert(offsetof(struct virtio_rdma_map_pages_request, pages) == 16, "offset of virtio_rdma_map_pages_request.pages");

/* UNMAP_PAGES and REFUSE_PAGES. */
struct virtio_rdma_pages_request {
	/* The MR. */
	__le32 mrn;
	/* Zero. */
	__le32 reserved;
	/* The first page. */
	__le64 first;
	/* How many. */
	__le64 count;
};
static_assert(sizeof(struct virtio_rdma_pages_request) == 24, "size of virtio_rdma_pages_request");
static_assert(offsetof(struct virtio_rdma_pages_request, mrn) == 0, "offset of virtio_rdma_pages_request.mrn");
static_assert(offsetof(struct virtio_rdma_pages_request, reserved) == 4, "offset of virtio_rdma_pages_request.reserved");
static_assert(offsetof(struct virtio_rdma_pages_request, first) == 8, "offset of virtio_rdma_pages_request.first");
static_assert(offsetof(struct virtio_rdma_pages_request, count) == 16, "offset of virtio_rdma_pages_request.count");

/* Answer to TAKE_PAGE_FAULT. */
struct virtio_rdma_page_fault_answer {
	/* The first page that is wanted. */
	__le64 first;
	/* How many; 0: none. */
	__le64 count;
	/* `PAGES_*`: what they are wanted for. */
	__le32 flags;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_page_fault_answer) == 24, "size of virtio_rdma_page_fault_answer");
static_assert(offsetof(struct virtio_rdma_page_fault_answer, first) == 0, "offset of virtio_rdma_page_fault_answer.first");
static_assert(offsetof(struct virtio_rdma_page_fault_answer, count) == 8, "offset of virtio_rdma_page_fault_answer.count");
static_assert(offsetof(struct virtio_rdma_page_fault_answer, flags) == 16, "offset of virtio_rdma_page_fault_answer.flags");
static_assert(offsetof(struct virtio_rdma_page_fault_answer, reserved) == 20, "offset of virtio_rdma_page_fault_answer.reserved");

/*
 * First line of a user access region (UAR); the bitmap of pending slots follows it, a
 * little-endian 64-bit word for 64 slots, up to the end of the region. Written by driver
 * (sets bits) and device (clears them), with atomic read-modify-write operations only.
 */
struct virtio_rdma_uar_header {
	/* Bit `(slot / 64) % 64` is set after the bit of the slot. */
	__le64 summary;
	/* Zero. */
	__u8 reserved[56];
};
static_assert(sizeof(struct virtio_rdma_uar_header) == 64, "size of virtio_rdma_uar_header");
static_assert(offsetof(struct virtio_rdma_uar_header, summary) == 0, "offset of virtio_rdma_uar_header.summary");
static_assert(offsetof(struct virtio_rdma_uar_header, reserved) == 8, "offset of virtio_rdma_uar_header.reserved");

/*
 * One line of the status page, for one vector. Written by the device only; the driver maps the
 * page read-only into processes.
 */
struct virtio_rdma_vector_status {
	/*
	 * 0 while the worker that serves this vector looks at the summaries by itself, 1 while it
	 * sleeps and must be notified.
	 */
	__le32 sleeping;
	/* Zero. */
	__u8 reserved[60];
};
static_assert(sizeof(struct virtio_rdma_vector_status) == 64, "size of virtio_rdma_vector_status");
static_assert(offsetof(struct virtio_rdma_vector_status, sleeping) == 0, "offset of virtio_rdma_vector_status.sleeping");
static_assert(offsetof(struct virtio_rdma_vector_status, reserved) == 4, "offset of virtio_rdma_vector_status.reserved");

/* A scatter/gather element. */
struct virtio_rdma_sge {
	/* Address in the address space of the MR that `lkey` names. */
	__le64 addr;
	/* Bytes. */
	__le32 length;
	/* The local key. */
	__le32 lkey;
};
static_assert(sizeof(struct virtio_rdma_sge) == 16, "size of virtio_rdma_sge");
static_assert(offsetof(struct virtio_rdma_sge, addr) == 0, "offset of virtio_rdma_sge.addr");
static_assert(offsetof(struct virtio_rdma_sge, length) == 8, "offset of virtio_rdma_sge.length");
static_assert(offsetof(struct virtio_rdma_sge, lkey) == 12, "offset of virtio_rdma_sge.lkey");

/*
 * The first 32 bytes of a send WQE. At `WQE_SEND_DATA` follow the SGEs, or the inline data, up
 * to the stride of the queue. An atomic has one SGE, and its operands after that (`AtomicArgs`
 * at `WQE_ATOMIC_ARGS`).
 */
struct virtio_rdma_send_wqe {
	/* `WR_*`. */
	__u8 opcode;
	/* `SEND_*` flags. */
	__u8 flags;
	/* SGEs that follow; 0 with `SEND_INLINE`. */
	__u8 num_sge;
	/* Bit 0 is the phase; the rest is zero. */
	__u8 phase;
	/* Immediate data, as it stands in the packet (big-endian), or the rkey to invalidate. */
	__le32 imm;
	/* Comes back in the CQE. */
	__le64 wr_id;
	/*
	 * RDMA and atomics: address at the peer. UD: the number of the address handle in the low
	 * half, the peer's QPN in the high half.
	 */
	__le64 remote_addr;
	/* RDMA and atomics: the peer's key. UD: the Q_Key. Local invalidate: the key. */
	__le32 rkey;
	/* Bytes of inline data; 0 without `SEND_INLINE`. */
	__le32 inline_length;
};
static_assert(sizeof(struct virtio_rdma_send_wqe) == 32, "size of virtio_rdma_send_wqe");
static_assert(offsetof(struct virtio_rdma_send_wqe, opcode) == 0, "offset of virtio_rdma_send_wqe.opcode");
static_assert(offsetof(struct virtio_rdma_send_wqe, flags) == 1, "offset of virtio_rdma_send_wqe.flags");
static_assert(offsetof(struct virtio_rdma_send_wqe, num_sge) == 2, "offset of virtio_rdma_send_wqe.num_sge");
static_assert(offsetof(struct virtio_rdma_send_wqe, phase) == 3, "offset of virtio_rdma_send_wqe.phase");
static_assert(offsetof(struct virtio_rdma_send_wqe, imm) == 4, "offset of virtio_rdma_send_wqe.imm");
static_assert(offsetof(struct virtio_rdma_send_wqe, wr_id) == 8, "offset of virtio_rdma_send_wqe.wr_id");
static_assert(offsetof(struct virtio_rdma_send_wqe, remote_addr) == 16, "offset of virtio_rdma_send_wqe.remote_addr");
static_assert(offsetof(struct virtio_rdma_send_wqe, rkey) == 24, "offset of virtio_rdma_send_wqe.rkey");
static_assert(offsetof(struct virtio_rdma_send_wqe, inline_length) == 28, "offset of virtio_rdma_send_wqe.inline_length");

/* The operands of an atomic. */
struct virtio_rdma_atomic_args {
	/* COMPARE_SWAP: the value to compare. FETCH_ADD: the value to add. */
	__le64 compare_add;
	/* COMPARE_SWAP: the value to store. */
	__le64 swap;
};
static_assert(sizeof(struct virtio_rdma_atomic_args) == 16, "size of virtio_rdma_atomic_args");
static_assert(offsetof(struct virtio_rdma_atomic_args, compare_add) == 0, "offset of virtio_rdma_atomic_args.compare_add");
static_assert(offsetof(struct virtio_rdma_atomic_args, swap) == 8, "offset of virtio_rdma_atomic_args.swap");

/*
 * `WR_REG_MR`, at `WQE_SEND_DATA`. The header's `rkey` is the MR's key with its new tag, the
 * header's `remote_addr` the address of the first byte under that key.
 */
struct virtio_rdma_reg_mr_args {
	/* Bytes: at least 1. */
	__le64 length;
	/* `ACCESS_*`. */
	__le32 access;
	/* Addresses in the MR's list that count: exactly what offset and length need. */
	__le32 num_pages;
	/* Bytes from the start of the first page to the first byte. */
	__le32 offset;
	/* A page is `2^page_shift` bytes and aligned to that: 12 to 30. */
	__u8 page_shift;
	/* Zero. */
	__u8 reserved[11];
};
static_assert(sizeof(struct virtio_rdma_reg_mr_args) == 32, "size of virtio_rdma_reg_mr_args");
static_assert(offsetof(struct virtio_rdma_reg_mr_args, length) == 0, "offset of virtio_rdma_reg_mr_args.length");
static_assert(offsetof(struct virtio_rdma_reg_mr_args, access) == 8, "offset of virtio_rdma_reg_mr_args.access");
static_assert(offsetof(struct virtio_rdma_reg_mr_args, num_pages) == 12, "offset of virtio_rdma_reg_mr_args.num_pages");
static_assert(offsetof(struct virtio_rdma_reg_mr_args, offset) == 16, "offset of virtio_rdma_reg_mr_args.offset");
static_assert(offsetof(struct virtio_rdma_reg_mr_args, page_shift) == 20, "offset of virtio_rdma_reg_mr_args.page_shift");
static_assert(offsetof(struct virtio_rdma_reg_mr_args, reserved) == 21, "offset of virtio_rdma_reg_mr_args.reserved");

/* `WR_BIND_MW`, at `WQE_SEND_DATA`. The header's `rkey` is the window's key with its new tag. */
struct virtio_rdma_bind_mw_args {
	/* First byte, in the MR's addresses; 0 with `length` 0. */
	__le64 addr;
	/* Bytes; 0 takes everything away (type 1 only). */
	__le64 length;
	/* The MR. */
	__le32 lkey;
	/* Remote rights, and `ACCESS_ZERO_BASED` (type 2 only). */
	__le32 access;
	/* Zero. */
	__le64 reserved;
};
static_assert(sizeof(struct virtio_rdma_bind_mw_args) == 32, "size of virtio_rdma_bind_mw_args");
static_assert(offsetof(struct virtio_rdma_bind_mw_args, addr) == 0, "offset of virtio_rdma_bind_mw_args.addr");
static_assert(offsetof(struct virtio_rdma_bind_mw_args, length) == 8, "offset of virtio_rdma_bind_mw_args.length");
static_assert(offsetof(struct virtio_rdma_bind_mw_args, lkey) == 16, "offset of virtio_rdma_bind_mw_args.lkey");
static_assert(offsetof(struct virtio_rdma_bind_mw_args, access) == 20, "offset of virtio_rdma_bind_mw_args.access");
static_assert(offsetof(struct virtio_rdma_bind_mw_args, reserved) == 24, "offset of virtio_rdma_bind_mw_args.reserved");

/* `WR_FLUSH`, at `WQE_SEND_DATA`. */
struct virtio_rdma_flush_args {
	/* Bytes from `remote_addr` on; of no meaning with `FLUSH_MR`. */
	__le64 length;
	/* `FLUSH_GLOBAL`, `FLUSH_PERSISTENT`, or both. */
	__u8 placement;
	/* `FLUSH_RANGE` or `FLUSH_MR`. */
	__u8 selectivity;
	/* Zero. */
	__u8 reserved[6];
};
static_assert(sizeof(struct virtio_rdma_flush_args) == 16, "size of virtio_rdma_flush_args");
static_assert(offsetof(struct virtio_rdma_flush_args, length) == 0, "offset of virtio_rdma_flush_args.length");
static_assert(offsetof(struct virtio_rdma_flush_args, placement) == 8, "offset of virtio_rdma_flush_args.placement");
static_assert(offsetof(struct virtio_rdma_flush_args, selectivity) == 9, "offset of virtio_rdma_flush_args.selectivity");
static_assert(offsetof(struct virtio_rdma_flush_args, reserved) == 10, "offset of virtio_rdma_flush_args.reserved");

/* The last 8 bytes of each slot in the send queue of an XRC initiator. */
struct virtio_rdma_xrc_args {
	/* The SRQ at the peer. */
	__le32 remote_srqn;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_xrc_args) == 8, "size of virtio_rdma_xrc_args");
static_assert(offsetof(struct virtio_rdma_xrc_args, remote_srqn) == 0, "offset of virtio_rdma_xrc_args.remote_srqn");
static_assert(offsetof(struct virtio_rdma_xrc_args, reserved) == 4, "offset of virtio_rdma_xrc_args.reserved");

/* The first 16 bytes of a receive WQE; the SGEs follow it. */
struct virtio_rdma_recv_wqe {
	/* Zero. */
	__u8 reserved0;
	/* Zero. */
	__u8 flags;
	/* SGEs that follow. */
	__u8 num_sge;
	/* Bit 0 is the phase; the rest is zero. */
	__u8 phase;
	/* Zero. */
	__le32 reserved1;
	/* Comes back in the CQE. */
	__le64 wr_id;
};
static_assert(sizeof(struct virtio_rdma_recv_wqe) == 16, "size of virtio_rdma_recv_wqe");
static_assert(offsetof(struct virtio_rdma_recv_wqe, reserved0) == 0, "offset of virtio_rdma_recv_wqe.reserved0");
static_assert(offsetof(struct virtio_rdma_recv_wqe, flags) == 1, "offset of virtio_rdma_recv_wqe.flags");
static_assert(offsetof(struct virtio_rdma_recv_wqe, num_sge) == 2, "offset of virtio_rdma_recv_wqe.num_sge");
static_assert(offsetof(struct virtio_rdma_recv_wqe, phase) == 3, "offset of virtio_rdma_recv_wqe.phase");
static_assert(offsetof(struct virtio_rdma_recv_wqe, reserved1) == 4, "offset of virtio_rdma_recv_wqe.reserved1");
static_assert(offsetof(struct virtio_rdma_recv_wqe, wr_id) == 8, "offset of virtio_rdma_recv_wqe.wr_id");

/* A completion: one slot of a CQ's ring. */
struct virtio_rdma_cqe {
	/* Of the work request. */
	__le64 wr_id;
	/*
	 * Free-running count of the WQEs of that send or receive queue which are free when this
	 * completion has been polled (this one and all before it).
	 */
	__le32 wqe_count;
	/* Bytes of the message received, or read. */
	__le32 byte_len;
	/* Immediate data (big-endian), or the rkey that was invalidated. */
	__le32 imm;
	/* UD: the sender's QPN. */
	__le32 src_qpn;
	/* The device's clock (see `DeviceAttr::hca_core_clock`), or 0 when the CQ has no timestamps. */
	__le64 timestamp;
	/* More about an error, for people; 0 otherwise. */
	__le32 vendor_err;
	/* UD, with `CQE_WITH_VLAN`: the VLAN of the datagram. */
	__le16 vlan;
	/* UD: service level of the datagram. */
	__u8 sl;
	/* Zero. */
	__u8 reserved0;
	/*
	 * Nanoseconds since the beginning of 1970 (UTC) by the host's clock, or 0 when the CQ has no
	 * timestamps.
	 */
	__le64 wall_clock;
	/* Zero. */
	__le64 reserved;
	/* The QP of the work request. */
	__le32 qpn;
	/* `WC_*` status. */
	__u8 status;
	/* `WC_OP_*`. */
	__u8 opcode;
	/* `CQE_*` flags. */
	__u8 flags;
	/* Bit 0 is the phase; the rest is zero. */
	__u8 phase;
};
static_assert(sizeof(struct virtio_rdma_cqe) == 64, "size of virtio_rdma_cqe");
static_assert(offsetof(struct virtio_rdma_cqe, wr_id) == 0, "offset of virtio_rdma_cqe.wr_id");
static_assert(offsetof(struct virtio_rdma_cqe, wqe_count) == 8, "offset of virtio_rdma_cqe.wqe_count");
static_assert(offsetof(struct virtio_rdma_cqe, byte_len) == 12, "offset of virtio_rdma_cqe.byte_len");
static_assert(offsetof(struct virtio_rdma_cqe, imm) == 16, "offset of virtio_rdma_cqe.imm");
static_assert(offsetof(struct virtio_rdma_cqe, src_qpn) == 20, "offset of virtio_rdma_cqe.src_qpn");
static_assert(offsetof(struct virtio_rdma_cqe, timestamp) == 24, "offset of virtio_rdma_cqe.timestamp");
static_assert(offsetof(struct virtio_rdma_cqe, vendor_err) == 32, "offset of virtio_rdma_cqe.vendor_err");
static_assert(offsetof(struct virtio_rdma_cqe, vlan) == 36, "offset of virtio_rdma_cqe.vlan");
static_assert(offsetof(struct virtio_rdma_cqe, sl) == 38, "offset of virtio_rdma_cqe.sl");
static_assert(offsetof(struct virtio_rdma_cqe, reserved0) == 39, "offset of virtio_rdma_cqe.reserved0");
static_assert(offsetof(struct virtio_rdma_cqe, wall_clock) == 40, "offset of virtio_rdma_cqe.wall_clock");
static_assert(offsetof(struct virtio_rdma_cqe, reserved) == 48, "offset of virtio_rdma_cqe.reserved");
static_assert(offsetof(struct virtio_rdma_cqe, qpn) == 56, "offset of virtio_rdma_cqe.qpn");
static_assert(offsetof(struct virtio_rdma_cqe, status) == 60, "offset of virtio_rdma_cqe.status");
static_assert(offsetof(struct virtio_rdma_cqe, opcode) == 61, "offset of virtio_rdma_cqe.opcode");
static_assert(offsetof(struct virtio_rdma_cqe, flags) == 62, "offset of virtio_rdma_cqe.flags");
static_assert(offsetof(struct virtio_rdma_cqe, phase) == 63, "offset of virtio_rdma_cqe.phase");

/* First line of a CQ's buffer: written by the driver only. */
struct virtio_rdma_cq_guest_line {
	/* Free-running count of the CQEs polled. Stored at least once a call of poll. */
	__le32 consumer;
	/*
	 * `2 * sequence + solicited_only`. The driver arms the CQ by storing a new sequence (last
	 * plus one), executes a full fence, and polls once more. Zero at first: not armed.
	 */
	__le32 arm;
	/* Zero. */
	__u8 reserved[56];
};
static_assert(sizeof(struct virtio_rdma_cq_guest_line) == 64, "size of virtio_rdma_cq_guest_line");
static_assert(offsetof(struct virtio_rdma_cq_guest_line, consumer) == 0, "offset of virtio_rdma_cq_guest_line.consumer");
static_assert(offsetof(struct virtio_rdma_cq_guest_line, arm) == 4, "offset of virtio_rdma_cq_guest_line.arm");
static_assert(offsetof(struct virtio_rdma_cq_guest_line, reserved) == 8, "offset of virtio_rdma_cq_guest_line.reserved");

/* Second line of a CQ's buffer: written by the device only. The ring follows it. */
struct virtio_rdma_cq_device_line {
	/* The last value of `arm` that got its event. */
	__le32 fired;
	/* `CQ_STATE_*`. */
	__le32 state;
	/* Zero. */
	__u8 reserved[56];
};
static_assert(sizeof(struct virtio_rdma_cq_device_line) == 64, "size of virtio_rdma_cq_device_line");
static_assert(offsetof(struct virtio_rdma_cq_device_line, fired) == 0, "offset of virtio_rdma_cq_device_line.fired");
static_assert(offsetof(struct virtio_rdma_cq_device_line, state) == 4, "offset of virtio_rdma_cq_device_line.state");
static_assert(offsetof(struct virtio_rdma_cq_device_line, reserved) == 8, "offset of virtio_rdma_cq_device_line.reserved");

/*
 * First line of an SRQ's buffer: written by the device only. Its WQEs are receive WQEs; one is
 * free as soon as the device has taken it.
 */
struct virtio_rdma_srq_device_line {
	/* Mode word (`MODE_*`). */
	__le32 mode;
	/* Free-running count of the WQEs taken. */
	__le32 consumer;
	/* Zero. */
	__u8 reserved[56];
};
static_assert(sizeof(struct virtio_rdma_srq_device_line) == 64, "size of virtio_rdma_srq_device_line");
static_assert(offsetof(struct virtio_rdma_srq_device_line, mode) == 0, "offset of virtio_rdma_srq_device_line.mode");
static_assert(offsetof(struct virtio_rdma_srq_device_line, consumer) == 4, "offset of virtio_rdma_srq_device_line.consumer");
static_assert(offsetof(struct virtio_rdma_srq_device_line, reserved) == 8, "offset of virtio_rdma_srq_device_line.reserved");

/*
 * First line of a QP's buffer: written by the device only. The rings lie behind it, where the
 * driver said at CREATE_QP.
 */
struct virtio_rdma_qp_device_line {
	/* Mode word of the send queue (`MODE_*`). */
	__le32 sq_mode;
	/* Mode word of the receive queue. */
	__le32 rq_mode;
	/* Zero. */
	__u8 reserved[56];
};
static_assert(sizeof(struct virtio_rdma_qp_device_line) == 64, "size of virtio_rdma_qp_device_line");
static_assert(offsetof(struct virtio_rdma_qp_device_line, sq_mode) == 0, "offset of virtio_rdma_qp_device_line.sq_mode");
static_assert(offsetof(struct virtio_rdma_qp_device_line, rq_mode) == 4, "offset of virtio_rdma_qp_device_line.rq_mode");
static_assert(offsetof(struct virtio_rdma_qp_device_line, reserved) == 8, "offset of virtio_rdma_qp_device_line.reserved");

/*
 * A buffer of a completion virtqueue: "this CQ was armed and has an event". One entry an
 * event. Without a buffer the event waits in the device and is not lost.
 */
struct virtio_rdma_comp_event {
	/* The CQ. */
	__le32 cqn;
	/* The arm sequence that this event answers (see `CqGuestLine::arm`). */
	__le32 arm;
};
static_assert(sizeof(struct virtio_rdma_comp_event) == 8, "size of virtio_rdma_comp_event");
static_assert(offsetof(struct virtio_rdma_comp_event, cqn) == 0, "offset of virtio_rdma_comp_event.cqn");
static_assert(offsetof(struct virtio_rdma_comp_event, arm) == 4, "offset of virtio_rdma_comp_event.arm");

/* A buffer of the event virtqueue. */
struct virtio_rdma_async_event {
	/* `EVENT_*`. */
	__le32 event;
	/* What it is about: a QPN, CQN, SRQN, or port number; 0 for the device itself. */
	__le32 number;
	/* `Config::hca_generation` at the event. */
	__le32 hca_generation;
	/* Zero. */
	__le32 reserved;
};
static_assert(sizeof(struct virtio_rdma_async_event) == 16, "size of virtio_rdma_async_event");
static_assert(offsetof(struct virtio_rdma_async_event, event) == 0, "offset of virtio_rdma_async_event.event");
static_assert(offsetof(struct virtio_rdma_async_event, number) == 4, "offset of virtio_rdma_async_event.number");
static_assert(offsetof(struct virtio_rdma_async_event, hca_generation) == 8, "offset of virtio_rdma_async_event.hca_generation");
static_assert(offsetof(struct virtio_rdma_async_event, reserved) == 12, "offset of virtio_rdma_async_event.reserved");

#endif
