// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * ibv_post_send and ibv_post_recv: checks, and building WQEs in the ring. When a slot is free and
 * how it is published is in ring.h, who has to be woken in doorbell.h.
 */
#include <errno.h>

#include "wqe.h"

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

/* The data of `wr`: SGEs or inline. Says how many of which. 0 or EINVAL. */
static int vrdma_put_data(const struct vrdma_qp *qp, void *wqe, const struct ibv_send_wr *wr,
			  uint16_t op, uint32_t *num_sge, uint32_t *inline_length)
{
	if (wr->send_flags & IBV_SEND_INLINE) {
		if (unlikely(!(op & VRDMA_OP_INLINE)))
			return EINVAL;
		*inline_length =
			vrdma_put_inline(vrdma_send_data(wqe), wr, qp->cap.max_inline_data);
		return unlikely(*inline_length == UINT32_MAX) ? EINVAL : 0;
	}
	*num_sge = (uint32_t)wr->num_sge;
	if (unlikely(*num_sge > qp->cap.max_send_sge))
		return EINVAL;
	vrdma_put_sges(vrdma_send_data(wqe), wr->sg_list, *num_sge);
	return 0;
}

/* Builds one WQE in the next slot and publishes it. Returns 0 or an errno. */
static int vrdma_put_send(struct vrdma_qp *qp, const struct ibv_send_wr *wr)
{
	unsigned int opcode = wr->opcode;
	unsigned int flags = wr->send_flags;
	uint32_t inline_length = 0, num_sge = 0, rkey = 0, imm = 0;
	uint64_t remote_addr = 0;
	struct virtio_rdma_send_wqe *wqe;
	uint16_t op = vrdma_op(opcode);

	if (unlikely(!vrdma_wq_has_room(&qp->sq, 0)))
		return ENOMEM;
	if (unlikely(!(op & qp->transport_op) || (op & (qp->refused_op | VRDMA_OP_EX)) ||
		     (flags & ~VRDMA_SEND_FLAGS) || wr->num_sge < 0))
		return EINVAL;

	wqe = vrdma_wq_slot(&qp->sq, 0);
	if (unlikely(op & VRDMA_OP_NO_DATA)) {
		if (flags & IBV_SEND_INLINE)
			return EINVAL;
	} else if (unlikely(vrdma_put_data(qp, wqe, wr, op, &num_sge, &inline_length))) {
		return EINVAL;
	}

	if (qp->transport_op == VRDMA_OP_UD) {
		remote_addr = vrdma_ud_peer(wr->wr.ud.ah, wr->wr.ud.remote_qpn);
		rkey = wr->wr.ud.remote_qkey;
	} else if (op & VRDMA_OP_REMOTE) {
		remote_addr = wr->wr.rdma.remote_addr;
		rkey = wr->wr.rdma.rkey;
	} else if (op & VRDMA_OP_ATOMIC) {
		if (unlikely(num_sge != 1))
			return EINVAL;
		remote_addr = wr->wr.atomic.remote_addr;
		rkey = wr->wr.atomic.rkey;
		vrdma_put_atomic(wqe, wr->wr.atomic.compare_add, wr->wr.atomic.swap);
	} else if (opcode == IBV_WR_BIND_MW) {
		rkey = wr->bind_mw.rkey;
		vrdma_put_bind(wqe, &wr->bind_mw.bind_info);
	} else if (opcode == IBV_WR_LOCAL_INV) {
		rkey = wr->invalidate_rkey;
	}
	if (op & VRDMA_OP_IMM)
		imm = wr->imm_data; /* In network order here and in the WQE. */
	else if (opcode == IBV_WR_SEND_WITH_INV)
		imm = htole32(wr->invalidate_rkey);
	if (unlikely(qp->vqp.qp.qp_type == IBV_QPT_XRC_SEND))
		vrdma_put_xrc(&qp->sq, wqe, wr->qp_type.xrc.remote_srqn);

	wqe->wr_id = htole64(wr->wr_id);
	wqe->remote_addr = htole64(remote_addr);
	wqe->rkey = htole32(rkey);
	wqe->inline_length = htole32(inline_length);
	vrdma_wq_publish(&qp->sq, wqe, vrdma_send_low(opcode, flags | qp->sq_flags, num_sge), imm);
	return 0;
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
		vrdma_notify(ibv_qp->context, &qp->sq_doorbell);
	return err;
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
		err = vrdma_wq_has_room(&qp->rq, 0) ?
			      vrdma_put_recv(&qp->rq, wr, qp->cap.max_recv_sge) :
			      ENOMEM;
		if (unlikely(err)) {
			*bad_wr = wr;
			break;
		}
		posted = true;
	}
	vrdma_unlock(&qp->rq_lock);
	if (posted)
		vrdma_notify(ibv_qp->context, &qp->rq_doorbell);
	return err;
}
