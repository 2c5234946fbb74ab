/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What a WQE looks like, for both ways of posting: lists of requests (post.c) and the calls of
 * ibv_wr_* (wr.c).
 */
#ifndef VRDMA_WQE_H
#define VRDMA_WQE_H

#include <string.h>

#include "vrdma.h"

/* The device's numbers are libibverbs's. */
static_assert((int)VIRTIO_RDMA_WR_RDMA_WRITE == IBV_WR_RDMA_WRITE, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_RDMA_WRITE_WITH_IMM == IBV_WR_RDMA_WRITE_WITH_IMM, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_SEND == IBV_WR_SEND, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_SEND_WITH_IMM == IBV_WR_SEND_WITH_IMM, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_RDMA_READ == IBV_WR_RDMA_READ, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_ATOMIC_CMP_AND_SWP == IBV_WR_ATOMIC_CMP_AND_SWP, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_ATOMIC_FETCH_AND_ADD == IBV_WR_ATOMIC_FETCH_AND_ADD, "opcodes");
static_assert((int)VIRTIO_RDMA_SEND_FENCE == IBV_SEND_FENCE, "flags");
static_assert((int)VIRTIO_RDMA_SEND_SIGNALED == IBV_SEND_SIGNALED, "flags");
static_assert((int)VIRTIO_RDMA_SEND_SOLICITED == IBV_SEND_SOLICITED, "flags");
static_assert((int)VIRTIO_RDMA_SEND_INLINE == IBV_SEND_INLINE, "flags");

#define VRDMA_SEND_FLAGS \
	((unsigned int)(IBV_SEND_FENCE | IBV_SEND_SIGNALED | IBV_SEND_SOLICITED | IBV_SEND_INLINE))

/* What an opcode needs and allows. */
enum {
	VRDMA_OP_KNOWN = 1,
	VRDMA_OP_IMM = 2, /* imm_data is sent. */
	VRDMA_OP_REMOTE = 4, /* There is an address and a key of the peer. */
	VRDMA_OP_ATOMIC = 8, /* Likewise; one SGE, two operands. */
	VRDMA_OP_INLINE = 16, /* The data may stand in the WQE. */
	VRDMA_OP_UC = 32, /* Unreliable connections have it too. */
	VRDMA_OP_UD = 64, /* Datagrams too. */
};

/* What a QP's requests must have of VRDMA_OP_*, by its transport. */
static inline uint8_t vrdma_transport_op(const struct vrdma_qp *qp)
{
	switch (qp->vqp.qp.qp_type) {
	case IBV_QPT_UC:
		return VRDMA_OP_UC;
	case IBV_QPT_UD:
		return VRDMA_OP_UD;
	default:
		return VRDMA_OP_KNOWN;
	}
}

/* The peer of a datagram, as a WQE has it in the place of the remote address. */
static inline uint64_t vrdma_ud_peer(struct ibv_ah *ah, uint32_t qpn)
{
	return (uint64_t)qpn << 32 | to_vah(ah)->index;
}

/* The VRDMA_OP_* of an opcode; 0 if there is no such. */
static inline uint8_t vrdma_op(unsigned int opcode)
{
	static const uint8_t ops[] = {
		[IBV_WR_RDMA_WRITE] =
			VRDMA_OP_KNOWN | VRDMA_OP_UC | VRDMA_OP_REMOTE | VRDMA_OP_INLINE,
		[IBV_WR_RDMA_WRITE_WITH_IMM] = VRDMA_OP_KNOWN | VRDMA_OP_UC | VRDMA_OP_REMOTE |
					       VRDMA_OP_INLINE | VRDMA_OP_IMM,
		[IBV_WR_SEND] = VRDMA_OP_KNOWN | VRDMA_OP_UC | VRDMA_OP_UD | VRDMA_OP_INLINE,
		[IBV_WR_SEND_WITH_IMM] = VRDMA_OP_KNOWN | VRDMA_OP_UC | VRDMA_OP_UD |
					 VRDMA_OP_INLINE | VRDMA_OP_IMM,
		[IBV_WR_RDMA_READ] = VRDMA_OP_KNOWN | VRDMA_OP_REMOTE,
		[IBV_WR_ATOMIC_CMP_AND_SWP] = VRDMA_OP_KNOWN | VRDMA_OP_ATOMIC,
		[IBV_WR_ATOMIC_FETCH_AND_ADD] = VRDMA_OP_KNOWN | VRDMA_OP_ATOMIC,
	};

	return opcode < sizeof(ops) ? ops[opcode] : 0;
}

/* The SGEs, or the inline data, of a send WQE. */
static inline char *vrdma_send_data(void *wqe)
{
	return (char *)wqe + VIRTIO_RDMA_WQE_SEND_DATA;
}

static inline void vrdma_put_sges(char *to, const struct ibv_sge *from, uint32_t count)
{
	struct virtio_rdma_sge *sges = (struct virtio_rdma_sge *)to;

	for (uint32_t i = 0; i < count; i++) {
		sges[i].addr = htole64(from[i].addr);
		sges[i].length = htole32(from[i].length);
		sges[i].lkey = htole32(from[i].lkey);
	}
}

static inline void vrdma_put_atomic(void *wqe, uint64_t compare_add, uint64_t swap)
{
	struct virtio_rdma_atomic_args *args =
		(struct virtio_rdma_atomic_args *)((char *)wqe + VIRTIO_RDMA_WQE_ATOMIC_ARGS);

	args->compare_add = htole64(compare_add);
	args->swap = htole64(swap);
}

/* The first 4 bytes of a send WQE without the phase, as vrdma_wq_publish() wants them. */
static inline uint32_t vrdma_send_low(unsigned int opcode, unsigned int flags, uint32_t num_sge)
{
	return opcode | flags << 8 | num_sge << 16;
}

/* Tells the device of new work, unless it sees it by itself. Not under a lock: see the callee. */
static inline void vrdma_notify(struct vrdma_qp *qp, const struct vrdma_doorbell *doorbell)
{
	int vector = vrdma_work_posted(doorbell);

	if (unlikely(vector != VRDMA_NO_RING))
		vrdma_ring_doorbell(to_vctx(vrdma_ibv_qp(qp)->context), (uint32_t)vector);
}

#endif
