/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Between virtio_rdma.ko and the rdma-core provider of one guest: the driver-specific parts of
 * uverbs commands, the mmap offsets, and the doorbell method. Native byte order. What goes to the
 * device is in virtio_rdma_abi.h.
 */
#ifndef VIRTIO_RDMA_UAPI_H
#define VIRTIO_RDMA_UAPI_H

#include <linux/types.h>

/* uverbs ABI version of the driver (ib_device_ops.uverbs_abi_ver). */
#define VIRTIO_RDMA_UVERBS_ABI_VERSION 1

/* Answer to alloc_ucontext. Offsets are for mmap(2) of the uverbs file. */
struct virtio_rdma_uresp_alloc_ucontext {
	/* The process's UAR: read and write, uar_bytes long. */
	__aligned_u64 uar_offset;
	/* The status page: read only, 4096 bytes. */
	__aligned_u64 status_offset;
	/*
	 * Doorbell page of vector 0; vector v's is v * 4096 further. Write only in spirit: a 16-bit
	 * store of the virtqueue's number at doorbell_in_page rings. 0: doorbells cannot be mapped
	 * here, use the method VIRTIO_RDMA_METHOD_RING.
	 */
	__aligned_u64 doorbell_offset;
	__u32 doorbell_in_page;
	__u32 uar_bytes;
	__u32 num_comp_vectors;
	__u32 max_inline;
	__u32 max_send_sge;
	__u32 max_recv_sge;
	__u32 max_qp_wr;
	__u32 max_cqe;
	__u32 max_srq_wr; /* 0: no SRQs */
	__u32 max_srq_sge;
	/* VIRTIO_RDMA_CAP_*, as agreed between driver and device. */
	__aligned_u64 capabilities;
};

struct virtio_rdma_uresp_alloc_pd {
	__u32 pdn;
	__u32 reserved;
};

struct virtio_rdma_uresp_create_ah {
	__u32 ah; /* what a WQE names */
	__u32 reserved;
};

/* The provider lays out the CQ's buffer (page aligned) as virtio_rdma_abi.h says. */
struct virtio_rdma_ureq_create_cq {
	__aligned_u64 buf_addr;
	__u32 buf_bytes;
	__u32 entries; /* slots of the ring: a power of two */
};

struct virtio_rdma_uresp_create_cq {
	__u32 cqn;
	__u32 reserved;
};

/* Resizing: the new buffer, laid out and zeroed like that of a new CQ. */
struct virtio_rdma_ureq_resize_cq {
	__aligned_u64 buf_addr;
	__u32 buf_bytes;
	__u32 entries;
};

struct virtio_rdma_uresp_resize_cq {
	__u32 old_cqes; /* the device's answer: when the provider goes to the new ring */
	__u32 reserved;
};

/* SRQs, those for XRC too; and resizing them: the new buffer, with what is posted in its ring. */
struct virtio_rdma_ureq_create_srq {
	__aligned_u64 buf_addr; /* page aligned */
	__u32 buf_bytes;
	__u32 entries; /* power of two */
	__u32 offset; /* of the ring in the buffer */
	__u8 stride_shift;
	__u8 reserved[3];
};

struct virtio_rdma_uresp_create_srq {
	__u32 srqn;
	__u32 slot; /* the SRQ's bit in the UAR */
};

/*
 * With an SRQ rq_entries is 0, and for an XRC initiator; the buffer always has its first line. An
 * XRC target has no rings and no buffer: the driver's part is empty, to and fro.
 */
struct virtio_rdma_ureq_create_qp {
	__aligned_u64 buf_addr; /* page aligned */
	__u32 buf_bytes;
	__u32 sq_entries; /* power of two, or 0 */
	__u32 rq_entries;
	__u32 sq_offset;
	__u32 rq_offset;
	__u32 max_inline;
	__u8 sq_stride_shift;
	__u8 rq_stride_shift;
	__u8 reserved[6];
};

struct virtio_rdma_uresp_create_qp {
	__u32 qpn;
	__u32 slot; /* the QP's bit in the UAR */
};

/* Both clocks of the device, read together: QUERY_CLOCK. */
struct virtio_rdma_uresp_clock {
	__aligned_u64 timestamp; /* in units of hca_core_clock */
	__aligned_u64 wall_clock; /* ns since 1970 */
};

/* A copy between device memory and memory of the process: COPY_DM. */
struct virtio_rdma_ureq_copy_dm {
	__aligned_u64 addr; /* of the process's memory */
	__aligned_u64 offset; /* in the device memory; this and the length are multiples of 4 */
	__aligned_u64 length;
	__u32 write; /* 0: out of the device memory, 1: into it */
	__u32 reserved;
};

/* The driver's own uverbs object, its methods, and the attributes of those. */
#define VIRTIO_RDMA_UAPI_NS_SHIFT 12 /* UVERBS_ID_NS_SHIFT */
enum virtio_rdma_uapi_objects {
	VIRTIO_RDMA_OBJECT_DOORBELL = (1U << VIRTIO_RDMA_UAPI_NS_SHIFT),
};

enum virtio_rdma_uapi_methods {
	/* Notifies the doorbell virtqueue of a vector on the caller's behalf. */
	VIRTIO_RDMA_METHOD_RING = (1U << VIRTIO_RDMA_UAPI_NS_SHIFT),
	/* With VIRTIO_RDMA_CAP_TIMESTAMP: reads the device's clocks. */
	VIRTIO_RDMA_METHOD_QUERY_CLOCK,
	/* Of the core's object for device memory. */
	VIRTIO_RDMA_METHOD_COPY_DM,
};

enum virtio_rdma_uapi_ring_attrs {
	VIRTIO_RDMA_ATTR_RING_VECTOR = (1U << VIRTIO_RDMA_UAPI_NS_SHIFT), /* __u32, in */
};

enum virtio_rdma_uapi_query_clock_attrs {
	/* struct virtio_rdma_uresp_clock, out */
	VIRTIO_RDMA_ATTR_CLOCK_ANSWER = (1U << VIRTIO_RDMA_UAPI_NS_SHIFT),
};

/* Of the core's method that tells what a context is. */
enum virtio_rdma_uapi_query_context_attrs {
	/* struct virtio_rdma_uresp_alloc_ucontext, out */
	VIRTIO_RDMA_ATTR_CONTEXT_ANSWER = (1U << VIRTIO_RDMA_UAPI_NS_SHIFT),
};

enum virtio_rdma_uapi_copy_dm_attrs {
	/* The device memory. */
	VIRTIO_RDMA_ATTR_COPY_DM_HANDLE = (1U << VIRTIO_RDMA_UAPI_NS_SHIFT),
	/* struct virtio_rdma_ureq_copy_dm, in */
	VIRTIO_RDMA_ATTR_COPY_DM_REQUEST,
};

#endif
