/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What a WQE looks like, for both ways of posting: lists of requests (post.c) and the calls of
 * ibv_wr_* (wr.c).
 */
#ifndef VRDMA_WQE_H
#define VRDMA_WQE_H

#include <errno.h>
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
static_assert((int)VIRTIO_RDMA_WR_LOCAL_INV == IBV_WR_LOCAL_INV, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_BIND_MW == IBV_WR_BIND_MW, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_SEND_WITH_INV == IBV_WR_SEND_WITH_INV, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_FLUSH == IBV_WR_FLUSH, "opcodes");
static_assert((int)VIRTIO_RDMA_WR_ATOMIC_WRITE == IBV_WR_ATOMIC_WRITE, "opcodes");
static_assert((int)VIRTIO_RDMA_FLUSH_GLOBAL == IBV_FLUSH_GLOBAL, "placement");
static_assert((int)VIRTIO_RDMA_FLUSH_PERSISTENT == IBV_FLUSH_PERSISTENT, "placement");
static_assert((int)VIRTIO_RDMA_FLUSH_RANGE == IBV_FLUSH_RANGE, "selectivity");
static_assert((int)VIRTIO_RDMA_FLUSH_MR == IBV_FLUSH_MR, "selectivity");
static_assert((int)VIRTIO_RDMA_ACCESS_REMOTE_WRITE == IBV_ACCESS_REMOTE_WRITE, "rights");
static_assert((int)VIRTIO_RDMA_ACCESS_REMOTE_READ == IBV_ACCESS_REMOTE_READ, "rights");
static_assert((int)VIRTIO_RDMA_ACCESS_REMOTE_ATOMIC == IBV_ACCESS_REMOTE_ATOMIC, "rights");
static_assert((int)VIRTIO_RDMA_ACCESS_ZERO_BASED == IBV_ACCESS_ZERO_BASED, "rights");
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
	VRDMA_OP_NO_DATA = 128, /* There is nothing to send. */
	VRDMA_OP_KEY = 256, /* It makes or ends a key: of windows, and of fast registration. */
	VRDMA_OP_EX = 512, /* Only ibv_wr_* has a call for it. */
	VRDMA_OP_FLUSH = 1024,
	VRDMA_OP_ATOMIC_WRITE = 2048,
};

/* What a QP's requests must have of VRDMA_OP_*, by its transport. */
static inline uint16_t vrdma_transport_op(const struct vrdma_qp *qp)
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

/* What the device does not do, in terms of VRDMA_OP_*. */
static inline uint16_t vrdma_refused_op(const struct vrdma_context *ctx)
{
	return (uint16_t)((vrdma_has(ctx, VIRTIO_RDMA_CAP_MW | VIRTIO_RDMA_CAP_FAST_REG) ?
				   0 : VRDMA_OP_KEY) |
			  (vrdma_has(ctx, VIRTIO_RDMA_CAP_FLUSH) ? 0 : VRDMA_OP_FLUSH) |
			  (vrdma_has(ctx, VIRTIO_RDMA_CAP_ATOMIC_WRITE) ? 0 :
									  VRDMA_OP_ATOMIC_WRITE));
}

/* The peer of a datagram, as a WQE has it in the place of the remote address. */
static inline uint64_t vrdma_ud_peer(struct ibv_ah *ah, uint32_t qpn)
{
	return (uint64_t)qpn << 32 | to_vah(ah)->index;
}

/* The VRDMA_OP_* of an opcode; 0 if there is no such. */
static inline uint16_t vrdma_op(unsigned int opcode)
{
	static const uint16_t ops[] = {
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
		[IBV_WR_LOCAL_INV] =
			VRDMA_OP_KNOWN | VRDMA_OP_UC | VRDMA_OP_KEY | VRDMA_OP_NO_DATA,
		[IBV_WR_BIND_MW] = VRDMA_OP_KNOWN | VRDMA_OP_UC | VRDMA_OP_KEY | VRDMA_OP_NO_DATA,
		[IBV_WR_SEND_WITH_INV] = VRDMA_OP_KNOWN | VRDMA_OP_KEY | VRDMA_OP_INLINE,
		[IBV_WR_FLUSH] = VRDMA_OP_KNOWN | VRDMA_OP_FLUSH | VRDMA_OP_EX | VRDMA_OP_NO_DATA,
		[IBV_WR_ATOMIC_WRITE] = VRDMA_OP_KNOWN | VRDMA_OP_ATOMIC_WRITE | VRDMA_OP_EX |
					VRDMA_OP_INLINE,
	};

	return opcode < sizeof(ops) / sizeof(ops[0]) ? ops[opcode] : 0;
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

/* The rights that a window can give. Others that a program names (local write) change nothing. */
#define VRDMA_MW_ACCESS                                                                    \
	((unsigned int)(IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |                 \
			IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_ZERO_BASED))

static inline void vrdma_put_bind(void *wqe, const struct ibv_mw_bind_info *info)
{
	struct virtio_rdma_bind_mw_args *args =
		(struct virtio_rdma_bind_mw_args *)vrdma_send_data(wqe);

	args->addr = htole64(info->length ? info->addr : 0);
	args->length = htole64(info->length);
	args->lkey = htole32(info->mr ? info->mr->lkey : 0);
	args->access = htole32(info->mw_access_flags & VRDMA_MW_ACCESS);
	args->reserved = 0;
}

static inline void vrdma_put_flush(void *wqe, uint64_t length, uint8_t placement,
				   uint8_t selectivity)
{
	struct virtio_rdma_flush_args *args =
		(struct virtio_rdma_flush_args *)vrdma_send_data(wqe);

	memset(args, 0, sizeof(*args));
	args->length = htole64(length);
	args->placement = placement;
	args->selectivity = selectivity;
}

/* Of an XRC initiator: names the SRQ at the peer, at the end of the slot. */
static inline void vrdma_put_xrc(const struct vrdma_wq *sq, void *wqe, uint32_t remote_srqn)
{
	struct virtio_rdma_xrc_args *args =
		(struct virtio_rdma_xrc_args *)((char *)wqe + (UINT32_C(1) << sq->stride_shift) -
						sizeof(struct virtio_rdma_xrc_args));

	args->remote_srqn = htole32(remote_srqn);
	args->reserved = 0;
}

/* The first 4 bytes of a send WQE without the phase, as vrdma_wq_publish() wants them. */
static inline uint32_t vrdma_send_low(unsigned int opcode, unsigned int flags, uint32_t num_sge)
{
	return opcode | flags << 8 | num_sge << 16;
}

/* Builds a receive WQE in the next slot, which must be free, and publishes it. 0 or EINVAL. */
static inline int vrdma_put_recv(struct vrdma_wq *wq, const struct ibv_recv_wr *wr,
				 uint32_t max_sge)
{
	struct virtio_rdma_recv_wqe *wqe;

	if (unlikely(wr->num_sge < 0 || (uint32_t)wr->num_sge > max_sge))
		return EINVAL;
	wqe = vrdma_wq_slot(wq, 0);
	vrdma_put_sges((char *)wqe + VIRTIO_RDMA_WQE_RECV_DATA, wr->sg_list,
		       (uint32_t)wr->num_sge);
	wqe->wr_id = htole64(wr->wr_id);
	vrdma_wq_publish(wq, wqe, (uint32_t)wr->num_sge << 16, 0);
	return 0;
}

/* Tells the device of new work, unless it sees it by itself. Not under a lock: see the callee. */
static inline void vrdma_notify(struct ibv_context *context, const struct vrdma_doorbell *doorbell)
{
	int vector = vrdma_work_posted(doorbell);

	if (unlikely(vector != VRDMA_NO_RING))
		vrdma_ring_doorbell(to_vctx(context), (uint32_t)vector);
}

#endif
