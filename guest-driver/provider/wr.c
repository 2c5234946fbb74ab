// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Posting by the calls of ibv_wr_*: a batch is begun (and the send queue locked), requests are
 * built one by one straight in the ring, and all of them are published at its end, or none.
 *
 * Until then no slot has its phase: the first word of each holds the old one. That of the request
 * being built is not written at all but kept in the QP (wr_low, wr_imm), since its SGEs are still
 * to come, and since the last request of a batch, mostly the only one, is published directly.
 */
#include <errno.h>

#include "wqe.h"

static struct vrdma_qp *to_vqp_ex(struct ibv_qp_ex *qp)
{
	return container_of(qp, struct vrdma_qp, vqp.qp_ex);
}

static void vrdma_wr_start(struct ibv_qp_ex *qp_ex)
{
	struct vrdma_qp *qp = to_vqp_ex(qp_ex);

	vrdma_lock(&qp->sq_lock);
	qp->wr_count = 0;
	qp->wr_err = unlikely(qp_ex->qp_base.state < IBV_QPS_RTS) ? EINVAL : 0;
}

/* Puts the request being built aside: first word with the old phase. */
static void vrdma_wr_put_aside(struct vrdma_qp *qp)
{
	vrdma_wq_set_aside(&qp->sq, qp->wr_count - 1, qp->wr_wqe, qp->wr_low, qp->wr_imm);
}

/* Begins a request. NULL if the batch has failed, or fails now. */
static struct virtio_rdma_send_wqe *vrdma_wr_begin(struct vrdma_qp *qp, unsigned int opcode,
						   uint64_t remote_addr, uint32_t rkey, uint32_t imm)
{
	unsigned int flags = qp->vqp.qp_ex.wr_flags;
	struct virtio_rdma_send_wqe *wqe;

	if (unlikely(qp->wr_err))
		return NULL;
	if (unlikely(flags & ~VRDMA_SEND_FLAGS)) {
		qp->wr_err = EINVAL;
		return NULL;
	}
	if (unlikely(!vrdma_wq_has_room(&qp->sq, qp->wr_count))) {
		qp->wr_err = ENOMEM;
		return NULL;
	}
	if (qp->wr_count)
		vrdma_wr_put_aside(qp);
	if (unlikely(!(vrdma_op(opcode) & qp->transport_op) ||
		     (vrdma_op(opcode) & qp->refused_op))) {
		qp->wr_err = EINVAL;
		return NULL;
	}
	wqe = vrdma_wq_slot(&qp->sq, qp->wr_count);
	qp->wr_count++;
	qp->wr_wqe = wqe;
	qp->wr_op = vrdma_op(opcode);
	/* Inline is what vrdma_wr_set_inline_*() says. */
	flags &= ~(unsigned int)IBV_SEND_INLINE;
	qp->wr_low = vrdma_send_low(opcode, flags | qp->sq_flags, 0);
	qp->wr_imm = imm;
	wqe->wr_id = htole64(qp->vqp.qp_ex.wr_id);
	wqe->remote_addr = htole64(remote_addr);
	wqe->rkey = htole32(rkey);
	wqe->inline_length = 0;
	return wqe;
}

static void vrdma_wr_send(struct ibv_qp_ex *qp_ex)
{
	vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_SEND, 0, 0, 0);
}

static void vrdma_wr_send_imm(struct ibv_qp_ex *qp_ex, __be32 imm)
{
	vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_SEND_WITH_IMM, 0, 0, imm);
}

static void vrdma_wr_rdma_write(struct ibv_qp_ex *qp_ex, uint32_t rkey, uint64_t remote_addr)
{
	vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_RDMA_WRITE, remote_addr, rkey, 0);
}

static void vrdma_wr_rdma_write_imm(struct ibv_qp_ex *qp_ex, uint32_t rkey, uint64_t remote_addr,
				    __be32 imm)
{
	vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_RDMA_WRITE_WITH_IMM, remote_addr, rkey, imm);
}

static void vrdma_wr_rdma_read(struct ibv_qp_ex *qp_ex, uint32_t rkey, uint64_t remote_addr)
{
	vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_RDMA_READ, remote_addr, rkey, 0);
}

static void vrdma_wr_atomic_cmp_swp(struct ibv_qp_ex *qp_ex, uint32_t rkey, uint64_t remote_addr,
				    uint64_t compare, uint64_t swap)
{
	struct virtio_rdma_send_wqe *wqe = vrdma_wr_begin(
		to_vqp_ex(qp_ex), IBV_WR_ATOMIC_CMP_AND_SWP, remote_addr, rkey, 0);

	if (wqe)
		vrdma_put_atomic(wqe, compare, swap);
}

static void vrdma_wr_atomic_fetch_add(struct ibv_qp_ex *qp_ex, uint32_t rkey,
				      uint64_t remote_addr, uint64_t add)
{
	struct virtio_rdma_send_wqe *wqe = vrdma_wr_begin(
		to_vqp_ex(qp_ex), IBV_WR_ATOMIC_FETCH_AND_ADD, remote_addr, rkey, 0);

	if (wqe)
		vrdma_put_atomic(wqe, add, 0);
}

static void vrdma_wr_send_inv(struct ibv_qp_ex *qp_ex, uint32_t invalidate_rkey)
{
	vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_SEND_WITH_INV, 0, 0, htole32(invalidate_rkey));
}

static void vrdma_wr_local_inv(struct ibv_qp_ex *qp_ex, uint32_t invalidate_rkey)
{
	vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_LOCAL_INV, 0, invalidate_rkey, 0);
}

static void vrdma_wr_bind_mw(struct ibv_qp_ex *qp_ex, struct ibv_mw *mw, uint32_t rkey,
			     const struct ibv_mw_bind_info *info)
{
	struct virtio_rdma_send_wqe *wqe =
		vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_BIND_MW, 0, rkey, 0);

	(void)mw; /* The key names it. */
	if (wqe)
		vrdma_put_bind(wqe, info);
}

static void vrdma_wr_flush(struct ibv_qp_ex *qp_ex, uint32_t rkey, uint64_t remote_addr,
			   size_t length, uint8_t type, uint8_t level)
{
	struct virtio_rdma_send_wqe *wqe =
		vrdma_wr_begin(to_vqp_ex(qp_ex), IBV_WR_FLUSH, remote_addr, rkey, 0);

	if (wqe)
		vrdma_put_flush(wqe, length, type, level);
}

static void vrdma_wr_atomic_write(struct ibv_qp_ex *qp_ex, uint32_t rkey, uint64_t remote_addr,
				  const void *data)
{
	struct vrdma_qp *qp = to_vqp_ex(qp_ex);
	struct virtio_rdma_send_wqe *wqe =
		vrdma_wr_begin(qp, IBV_WR_ATOMIC_WRITE, remote_addr, rkey, 0);

	if (!wqe)
		return;
	memcpy(vrdma_send_data(wqe), data, 8);
	wqe->inline_length = htole32(8);
	qp->wr_low |= VIRTIO_RDMA_SEND_INLINE << 8;
}

static void vrdma_wr_set_xrc_srqn(struct ibv_qp_ex *qp_ex, uint32_t remote_srqn)
{
	struct vrdma_qp *qp = to_vqp_ex(qp_ex);

	if (unlikely(qp->wr_err))
		return;
	if (unlikely(!qp->wr_count || qp_ex->qp_base.qp_type != IBV_QPT_XRC_SEND)) {
		qp->wr_err = EINVAL;
		return;
	}
	vrdma_put_xrc(&qp->sq, qp->wr_wqe, remote_srqn);
}

static void vrdma_wr_set_ud_addr(struct ibv_qp_ex *qp_ex, struct ibv_ah *ah, uint32_t qpn,
				 uint32_t qkey)
{
	struct vrdma_qp *qp = to_vqp_ex(qp_ex);

	if (unlikely(qp->wr_err))
		return;
	if (unlikely(!qp->wr_count || qp->transport_op != VRDMA_OP_UD)) {
		qp->wr_err = EINVAL;
		return;
	}
	qp->wr_wqe->remote_addr = htole64(vrdma_ud_peer(ah, qpn));
	qp->wr_wqe->rkey = htole32(qkey);
}

static void vrdma_wr_set_sge_list(struct ibv_qp_ex *qp_ex, size_t num_sge,
				  const struct ibv_sge *sges)
{
	struct vrdma_qp *qp = to_vqp_ex(qp_ex);

	if (unlikely(qp->wr_err))
		return;
	if (unlikely(!qp->wr_count || num_sge > qp->cap.max_send_sge ||
		     (qp->wr_op & (VRDMA_OP_NO_DATA | VRDMA_OP_ATOMIC_WRITE)) ||
		     ((qp->wr_op & VRDMA_OP_ATOMIC) && num_sge != 1))) {
		qp->wr_err = EINVAL;
		return;
	}
	vrdma_put_sges(vrdma_send_data(qp->wr_wqe), sges, (uint32_t)num_sge);
	qp->wr_low |= (uint32_t)num_sge << 16;
}

static void vrdma_wr_set_sge(struct ibv_qp_ex *qp_ex, uint32_t lkey, uint64_t addr,
			     uint32_t length)
{
	struct ibv_sge sge = { .addr = addr, .length = length, .lkey = lkey };

	vrdma_wr_set_sge_list(qp_ex, 1, &sge);
}

static void vrdma_wr_set_inline_data_list(struct ibv_qp_ex *qp_ex, size_t num_buf,
					  const struct ibv_data_buf *bufs)
{
	struct vrdma_qp *qp = to_vqp_ex(qp_ex);
	size_t total = 0;

	if (unlikely(qp->wr_err))
		return;
	if (unlikely(!qp->wr_count || !(qp->wr_op & VRDMA_OP_INLINE))) {
		qp->wr_err = EINVAL;
		return;
	}
	for (size_t i = 0; i < num_buf; i++) {
		if (unlikely(bufs[i].length > qp->cap.max_inline_data - total)) {
			qp->wr_err = EINVAL;
			return;
		}
		memcpy(vrdma_send_data(qp->wr_wqe) + total, bufs[i].addr, bufs[i].length);
		total += bufs[i].length;
	}
	qp->wr_wqe->inline_length = htole32((uint32_t)total);
	qp->wr_low |= VIRTIO_RDMA_SEND_INLINE << 8;
}

static void vrdma_wr_set_inline_data(struct ibv_qp_ex *qp_ex, void *addr, size_t length)
{
	struct ibv_data_buf buf = { .addr = addr, .length = length };

	vrdma_wr_set_inline_data_list(qp_ex, 1, &buf);
}

/* Publishes the batch, in order. On an error nothing of it has been. */
static int vrdma_wr_complete(struct ibv_qp_ex *qp_ex)
{
	struct vrdma_qp *qp = to_vqp_ex(qp_ex);
	uint32_t count = qp->wr_count;
	int err = qp->wr_err;

	if (unlikely(err || !count)) {
		vrdma_unlock(&qp->sq_lock);
		return err;
	}
	for (uint32_t i = 1; i < count; i++)
		vrdma_wq_publish_aside(&qp->sq);
	vrdma_wq_publish(&qp->sq, qp->wr_wqe, qp->wr_low, qp->wr_imm);
	vrdma_unlock(&qp->sq_lock);
	vrdma_notify(qp_ex->qp_base.context, &qp->sq_doorbell);
	return 0;
}

/* What was built is overwritten by what comes next. */
static void vrdma_wr_abort(struct ibv_qp_ex *qp_ex)
{
	vrdma_unlock(&to_vqp_ex(qp_ex)->sq_lock);
}

void vrdma_wr_init(struct ibv_qp_ex *qp_ex)
{
	qp_ex->wr_start = vrdma_wr_start;
	qp_ex->wr_complete = vrdma_wr_complete;
	qp_ex->wr_abort = vrdma_wr_abort;
	qp_ex->wr_send = vrdma_wr_send;
	qp_ex->wr_send_imm = vrdma_wr_send_imm;
	qp_ex->wr_rdma_write = vrdma_wr_rdma_write;
	qp_ex->wr_rdma_write_imm = vrdma_wr_rdma_write_imm;
	qp_ex->wr_rdma_read = vrdma_wr_rdma_read;
	qp_ex->wr_atomic_cmp_swp = vrdma_wr_atomic_cmp_swp;
	qp_ex->wr_atomic_fetch_add = vrdma_wr_atomic_fetch_add;
	qp_ex->wr_send_inv = vrdma_wr_send_inv;
	qp_ex->wr_local_inv = vrdma_wr_local_inv;
	qp_ex->wr_bind_mw = vrdma_wr_bind_mw;
	qp_ex->wr_flush = vrdma_wr_flush;
	qp_ex->wr_atomic_write = vrdma_wr_atomic_write;
	qp_ex->wr_set_xrc_srqn = vrdma_wr_set_xrc_srqn;
	qp_ex->wr_set_ud_addr = vrdma_wr_set_ud_addr;
	qp_ex->wr_set_sge = vrdma_wr_set_sge;
	qp_ex->wr_set_sge_list = vrdma_wr_set_sge_list;
	qp_ex->wr_set_inline_data = vrdma_wr_set_inline_data;
	qp_ex->wr_set_inline_data_list = vrdma_wr_set_inline_data_list;
}
