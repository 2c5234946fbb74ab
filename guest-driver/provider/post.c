// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Posting work: checks, and building WQEs in the ring. When a slot is free and how it is published
 * is in ring.h, who has to be woken in doorbell.h.
 */
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
static_assert((int)VIRTIO_RDMA_SEND_FENCE == IBV_SEND_FENCE, "flags");
static_assert((int)VIRTIO_RDMA_SEND_SIGNALED == IBV_SEND_SIGNALED, "flags");
static_assert((int)VIRTIO_RDMA_SEND_SOLICITED == IBV_SEND_SOLICITED, "flags");
static_assert((int)VIRTIO_RDMA_SEND_INLINE == IBV_SEND_INLINE, "flags");

#define VRDMA_SEND_FLAGS \
	(IBV_SEND_FENCE | IBV_SEND_SIGNALED | IBV_SEND_SOLICITED | IBV_SEND_INLINE)

/* What an opcode needs and allows. */
enum {
	VRDMA_OP_KNOWN = 1,
	VRDMA_OP_IMM = 2, /* imm_data is sent. */
	VRDMA_OP_REMOTE = 4, /* There is an address and a key of the peer. */
	VRDMA_OP_ATOMIC = 8, /* One SGE, two operands. */
	VRDMA_OP_INLINE = 16, /* The data may stand in the WQE. */
};

static const uint8_t vrdma_ops_table[] = {
	[IBV_WR_RDMA_WRITE] = VRDMA_OP_KNOWN | VRDMA_OP_REMOTE | VRDMA_OP_INLINE,
	[IBV_WR_RDMA_WRITE_WITH_IMM] =
		VRDMA_OP_KNOWN | VRDMA_OP_REMOTE | VRDMA_OP_INLINE | VRDMA_OP_IMM,
	[IBV_WR_SEND] = VRDMA_OP_KNOWN | VRDMA_OP_INLINE,
	[IBV_WR_SEND_WITH_IMM] = VRDMA_OP_KNOWN | VRDMA_OP_INLINE | VRDMA_OP_IMM,
	[IBV_WR_RDMA_READ] = VRDMA_OP_KNOWN | VRDMA_OP_REMOTE,
	[IBV_WR_ATOMIC_CMP_AND_SWP] = VRDMA_OP_KNOWN | VRDMA_OP_ATOMIC,
	[IBV_WR_ATOMIC_FETCH_AND_ADD] = VRDMA_OP_KNOWN | VRDMA_OP_ATOMIC,
};

static void vrdma_put_sges(struct virtio_rdma_sge *to, const struct ibv_sge *from, int count)
{
	for (int i = 0; i < count; i++) {
		to[i].addr = htole64(from[i].addr);
		to[i].length = htole32(from[i].length);
		to[i].lkey = htole32(from[i].lkey);
	}
}

/* Copies the data of `wr` to `to`. Returns its length, or UINT32_MAX if it is over `max`. */
static uint32_t vrdma_put_inline(char *to, const struct ibv_send_wr *wr, uint32_t max)
{
	uint32_t total = 0;

	for (int i = 0; i < wr->num_sge; i++) {
		const struct ibv_sge *sge = &wr->sg_list[i];

		if (sge->length > max - total)
			return UINT32_MAX;
		memcpy(to + total, (const void *)(uintptr_t)sge->addr, sge->length);
		total += sge->length;
	}
	return total;
}

/* Builds one WQE in the next slot and publishes it. Returns 0 or an errno. */
static int vrdma_put_send(struct vrdma_qp *qp, const struct ibv_send_wr *wr)
{
	unsigned int opcode = wr->opcode;
	unsigned int flags = wr->send_flags;
	uint32_t inline_length = 0, rkey = 0, imm = 0;
	uint64_t remote_addr = 0;
	uint8_t op, num_sge;
	struct virtio_rdma_send_wqe *wqe;
	char *data;

	if (unlikely(!vrdma_wq_has_room(&qp->sq)))
		return ENOMEM;
	op = opcode < sizeof(vrdma_ops_table) ? vrdma_ops_table[opcode] : 0;
	if (unlikely(!op || (flags & ~VRDMA_SEND_FLAGS) || wr->num_sge < 0))
		return EINVAL;

	wqe = vrdma_wq_slot(&qp->sq);
	data = (char *)wqe + VIRTIO_RDMA_WQE_SEND_DATA;
	if (flags & IBV_SEND_INLINE) {
		if (unlikely(!(op & VRDMA_OP_INLINE)))
			return EINVAL;
		num_sge = 0;
		inline_length = vrdma_put_inline(data, wr, qp->cap.max_inline_data);
		if (unlikely(inline_length == UINT32_MAX))
			return EINVAL;
	} else {
		if (unlikely((uint32_t)wr->num_sge > qp->cap.max_send_sge))
			return EINVAL;
		num_sge = (uint8_t)wr->num_sge;
		vrdma_put_sges((struct virtio_rdma_sge *)data, wr->sg_list, num_sge);
	}

	if (op & VRDMA_OP_REMOTE) {
		remote_addr = wr->wr.rdma.remote_addr;
		rkey = wr->wr.rdma.rkey;
	} else if (op & VRDMA_OP_ATOMIC) {
		struct virtio_rdma_atomic_args *args =
			(struct virtio_rdma_atomic_args *)((char *)wqe + VIRTIO_RDMA_WQE_ATOMIC_ARGS);

		if (unlikely(num_sge != 1))
			return EINVAL;
		remote_addr = wr->wr.atomic.remote_addr;
		rkey = wr->wr.atomic.rkey;
		args->compare_add = htole64(wr->wr.atomic.compare_add);
		args->swap = htole64(wr->wr.atomic.swap);
	}
	if (op & VRDMA_OP_IMM)
		imm = wr->imm_data; /* In network order here and in the WQE. */

	wqe->wr_id = htole64(wr->wr_id);
	wqe->remote_addr = htole64(remote_addr);
	wqe->rkey = htole32(rkey);
	wqe->inline_length = htole32(inline_length);
	flags |= qp->sq_flags;
	vrdma_wq_publish(&qp->sq, wqe, opcode | flags << 8 | (uint32_t)num_sge << 16, imm);
	return 0;
}

/* Tells the device of new work, unless it sees it by itself. */
static void vrdma_notify(struct vrdma_qp *qp, const struct vrdma_doorbell *doorbell)
{
	int vector = vrdma_work_posted(doorbell);

	if (vector != VRDMA_NO_RING)
		vrdma_ring_doorbell(to_vctx(qp->ibv_qp.context), (uint32_t)vector);
}

/*
 * Returns 0, or EINVAL (the state does not allow it, or the request is malformed) or ENOMEM (the
 * queue is full); then `bad_wr` is the request that was refused, and those before it are posted.
 */
int vrdma_post_send(struct ibv_qp *ibv_qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr)
{
	struct vrdma_qp *qp = to_vqp(ibv_qp);
	bool posted = false;
	int err = 0;

	if (unlikely(ibv_qp->state < IBV_QPS_RTS)) {
		*bad_wr = wr;
		return EINVAL;
	}
	vrdma_lock(&qp->sq_lock);
	for (; wr; wr = wr->next) {
		err = vrdma_put_send(qp, wr);
		if (unlikely(err)) {
			*bad_wr = wr;
			break;
		}
		posted = true;
	}
	vrdma_unlock(&qp->sq_lock);
	if (posted)
		vrdma_notify(qp, &qp->sq_doorbell);
	return err;
}

/* Builds one receive WQE in the next slot and publishes it. Returns 0 or an errno. */
static int vrdma_put_recv(struct vrdma_qp *qp, const struct ibv_recv_wr *wr)
{
	struct virtio_rdma_recv_wqe *wqe;

	if (unlikely(!vrdma_wq_has_room(&qp->rq)))
		return ENOMEM;
	if (unlikely(wr->num_sge < 0 || (uint32_t)wr->num_sge > qp->cap.max_recv_sge))
		return EINVAL;
	wqe = vrdma_wq_slot(&qp->rq);
	vrdma_put_sges((struct virtio_rdma_sge *)((char *)wqe + VIRTIO_RDMA_WQE_RECV_DATA),
		       wr->sg_list, wr->num_sge);
	wqe->wr_id = htole64(wr->wr_id);
	vrdma_wq_publish(&qp->rq, wqe, (uint32_t)wr->num_sge << 16, 0);
	return 0;
}

/* As vrdma_post_send(); allowed in every state but RESET. */
int vrdma_post_recv(struct ibv_qp *ibv_qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr)
{
	struct vrdma_qp *qp = to_vqp(ibv_qp);
	bool posted = false;
	int err = 0;

	if (unlikely(ibv_qp->state == IBV_QPS_RESET)) {
		*bad_wr = wr;
		return EINVAL;
	}
	vrdma_lock(&qp->rq_lock);
	for (; wr; wr = wr->next) {
		err = vrdma_put_recv(qp, wr);
		if (unlikely(err)) {
			*bad_wr = wr;
			break;
		}
		posted = true;
	}
	vrdma_unlock(&qp->rq_lock);
	if (posted)
		vrdma_notify(qp, &qp->rq_doorbell);
	return err;
}
