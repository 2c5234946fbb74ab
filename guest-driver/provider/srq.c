// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Shared receive queues, those of XRC domains too: creating, posting, limit, another size, ending. A slot is free
 * again when the device has taken its WQE, which it counts in the first line of the buffer: CQEs
 * come in another order.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "wqe.h"

struct vrdma_create_srq_cmd {
	struct ibv_create_xsrq ibv_cmd;
	struct virtio_rdma_ureq_create_srq drv;
};
static_assert(offsetof(struct vrdma_create_srq_cmd, drv) == sizeof(struct ibv_create_xsrq),
	      "the driver's part follows the core's without a gap");

struct vrdma_create_srq_resp {
	struct ib_uverbs_create_srq_resp ibv_resp;
	struct virtio_rdma_uresp_create_srq drv;
};
static_assert(offsetof(struct vrdma_create_srq_resp, drv) ==
		      sizeof(struct ib_uverbs_create_srq_resp),
	      "the driver's part follows the core's without a gap");

struct vrdma_modify_srq_cmd {
	struct ibv_modify_srq ibv_cmd;
	struct virtio_rdma_ureq_create_srq drv;
};
static_assert(offsetof(struct vrdma_modify_srq_cmd, drv) == sizeof(struct ibv_modify_srq),
	      "the driver's part follows the core's without a gap");

static struct virtio_rdma_srq_device_line *vrdma_srq_line(const struct vrdma_srq *srq)
{
	return (struct virtio_rdma_srq_device_line *)srq->buf.addr;
}

/*
 * Returns 0, or EINVAL (a request is malformed) or ENOMEM (the queue is full); then `bad_wr` is the
 * request that was refused, and those before it are posted.
 */
int vrdma_post_srq_recv(struct ibv_srq *ibv_srq, struct ibv_recv_wr *wr,
			struct ibv_recv_wr **bad_wr)
{
	struct vrdma_srq *srq = to_vsrq(ibv_srq);
	const _Atomic __le32 *taken;
	int err = 0, vector = VRDMA_NO_RING;
	bool posted = false;

	vrdma_lock(&srq->lock);
	taken = (const _Atomic __le32 *)&vrdma_srq_line(srq)->consumer;
	for (; wr; wr = wr->next) {
		err = vrdma_wq_has_room_behind(&srq->wq, taken) ?
			      vrdma_put_recv(&srq->wq, wr, srq->max_sge) :
			      ENOMEM;
		if (unlikely(err)) {
			*bad_wr = wr;
			break;
		}
		posted = true;
	}
	/* The mode word lies in the buffer, which may be another one without the lock. */
	if (posted)
		vector = vrdma_work_posted(&srq->doorbell);
	vrdma_unlock(&srq->lock);
	if (unlikely(vector != VRDMA_NO_RING))
		vrdma_ring_doorbell(to_vctx(ibv_srq->context), (uint32_t)vector);
	return err;
}

/* 0 if there can be such an SRQ, or an errno. */
static int vrdma_check_srq_attr(const struct vrdma_context *ctx,
				const struct ibv_srq_init_attr_ex *attr)
{
	if (!vrdma_has(ctx, VIRTIO_RDMA_CAP_SRQ) ||
	    (attr->comp_mask & ~(uint32_t)(IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD |
					   IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ)))
		return EOPNOTSUPP;
	if ((attr->comp_mask & IBV_SRQ_INIT_ATTR_TYPE) && attr->srq_type != IBV_SRQT_BASIC &&
	    (attr->srq_type != IBV_SRQT_XRC || !vrdma_has(ctx, VIRTIO_RDMA_CAP_XRC)))
		return EOPNOTSUPP;
	if (!(attr->comp_mask & IBV_SRQ_INIT_ATTR_PD) || !attr->attr.max_wr ||
	    attr->attr.max_wr > ctx->info.max_srq_wr || attr->attr.max_sge > ctx->info.max_srq_sge)
		return EINVAL;
	return 0;
}

/* Counts the SRQs of XRC domains that complete to a CQ up or down. */
static void vrdma_count_xrc_srq(struct vrdma_srq *srq, uint32_t by)
{
	struct vrdma_cq *cq;

	if (srq->vsrq.srq_type != IBV_SRQT_XRC)
		return;
	cq = to_vcq(srq->vsrq.cq);
	vrdma_lock(&cq->lock);
	cq->xrc_srqs += by;
	vrdma_unlock(&cq->lock);
}

struct ibv_srq *vrdma_create_srq_ex(struct ibv_context *context, struct ibv_srq_init_attr_ex *attr)
{
	struct vrdma_context *ctx = to_vctx(context);
	struct ibv_srq_init_attr_ex given = *attr;
	struct vrdma_create_srq_resp resp = {};
	struct vrdma_create_srq_cmd cmd = {};
	uint32_t stride, offset;
	struct vrdma_srq *srq;
	int err;

	err = vrdma_check_srq_attr(ctx, attr);
	if (err) {
		errno = err;
		return NULL;
	}
	/* The counters of its queue have cache lines of their own. */
	srq = aligned_alloc(_Alignof(struct vrdma_srq), sizeof(*srq));
	if (!srq)
		return NULL;
	memset(srq, 0, sizeof(*srq));
	srq->wq.stride_shift =
		vrdma_shift_for(VIRTIO_RDMA_WQE_RECV_DATA +
					attr->attr.max_sge * (uint32_t)sizeof(struct virtio_rdma_sge),
				VIRTIO_RDMA_WQE_STRIDE_SHIFT_MIN);
	srq->wq.entries_shift = vrdma_shift_for(attr->attr.max_wr, 0);
	srq->wq.entries = UINT32_C(1) << srq->wq.entries_shift;
	stride = UINT32_C(1) << srq->wq.stride_shift;
	/* Behind the device's line, and aligned, so that no WQE lies across pages. */
	offset = stride;
	srq->max_sge = (stride - VIRTIO_RDMA_WQE_RECV_DATA) / (uint32_t)sizeof(struct virtio_rdma_sge);
	if (srq->max_sge > ctx->info.max_srq_sge)
		srq->max_sge = ctx->info.max_srq_sge;
	vrdma_lock_init(&srq->lock, vrdma_single_threaded(attr->pd));
	err = vrdma_buf_alloc(ctx, &srq->buf, offset + (size_t)srq->wq.entries * stride, attr->pd,
			      VRDMA_RESOURCE_SRQ);
	if (err)
		goto free_srq;
	srq->wq.ring = srq->buf.addr + offset;

	cmd.drv.buf_addr = (uintptr_t)srq->buf.addr;
	cmd.drv.buf_bytes = (uint32_t)srq->buf.bytes;
	cmd.drv.entries = srq->wq.entries;
	cmd.drv.offset = offset;
	cmd.drv.stride_shift = srq->wq.stride_shift;
	given.attr.max_wr = srq->wq.entries;
	given.attr.max_sge = srq->max_sge;
	err = ibv_cmd_create_srq_ex(context, &srq->vsrq, &given, &cmd.ibv_cmd, sizeof(cmd),
				    &resp.ibv_resp, sizeof(resp));
	if (err)
		goto free_buf;
	if (!vrdma_slot_valid(ctx, resp.drv.slot)) {
		err = EPROTO;
		goto destroy;
	}
	vrdma_doorbell_init(&srq->doorbell, ctx->uar, resp.drv.slot,
			    (const _Atomic __le32 *)&vrdma_srq_line(srq)->mode, ctx->status,
			    ctx->info.num_comp_vectors);
	vrdma_count_xrc_srq(srq, 1);
	attr->attr.max_wr = srq->wq.entries;
	attr->attr.max_sge = srq->max_sge;
	return &srq->vsrq.srq;

destroy:
	ibv_cmd_destroy_srq(&srq->vsrq.srq);
free_buf:
	vrdma_buf_free(&srq->buf);
free_srq:
	free(srq);
	errno = err;
	return NULL;
}

struct ibv_srq *vrdma_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr)
{
	struct ibv_srq_init_attr_ex attr_ex = {
		.srq_context = attr->srq_context,
		.attr = attr->attr,
		.comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD,
		.srq_type = IBV_SRQT_BASIC,
		.pd = pd,
	};
	struct ibv_srq *srq = vrdma_create_srq_ex(pd->context, &attr_ex);

	if (srq)
		attr->attr = attr_ex.attr;
	return srq;
}

/*
 * Fills another ring: the WQEs from number `taken` on at the places of their counts there, and slots
 * that look as if nothing were posted in them yet.
 */
static void vrdma_srq_copy(const struct vrdma_wq *from, struct vrdma_wq *to, uint32_t taken)
{
	size_t stride = (size_t)1 << to->stride_shift;
	uint32_t left = from->posted - taken;

	to->posted = from->posted;
	to->freed_seen = taken;
	for (uint32_t i = 0; i < to->entries; i++) {
		uint32_t n = taken + i, phase = vrdma_phase(n, to->entries_shift);
		char *slot = to->ring + (n & (to->entries - 1)) * stride;

		if (i < left)
			memcpy(slot, from->ring + (n & (from->entries - 1)) * stride, stride);
		else
			phase ^= 1;
		((struct virtio_rdma_recv_wqe *)slot)->phase = (uint8_t)phase;
	}
}

/* Gives the SRQ another ring. Until the device uses it, nobody may post, so the lock is held. */
static int vrdma_resize_srq(struct vrdma_srq *srq, struct ibv_srq_attr *attr)
{
	struct ibv_srq *ibv_srq = &srq->vsrq.srq;
	struct vrdma_context *ctx = to_vctx(ibv_srq->context);
	uint32_t offset = UINT32_C(1) << srq->wq.stride_shift, taken;
	struct vrdma_modify_srq_cmd cmd = {};
	struct vrdma_wq wq = {};
	struct vrdma_buf buf = {}, old;
	int err, vector = VRDMA_NO_RING;

	if (!vrdma_has(ctx, VIRTIO_RDMA_CAP_SRQ_RESIZE))
		return EOPNOTSUPP;
	if (!attr->max_wr || attr->max_wr > ctx->info.max_srq_wr)
		return EINVAL;
	wq.stride_shift = srq->wq.stride_shift;
	wq.entries_shift = vrdma_shift_for(attr->max_wr, 0);
	wq.entries = UINT32_C(1) << wq.entries_shift;
	err = vrdma_buf_alloc(ctx, &buf, offset + ((size_t)wq.entries << wq.stride_shift),
			      srq->buf.parent ? &srq->buf.parent->ibv_pd : NULL,
			      VRDMA_RESOURCE_SRQ);
	if (err)
		return err;
	wq.ring = buf.addr + offset;

	vrdma_lock(&srq->lock);
	taken = le32toh(atomic_load_explicit(
		(const _Atomic __le32 *)&vrdma_srq_line(srq)->consumer, memory_order_acquire));
	if (srq->wq.posted - taken > wq.entries) {
		err = EINVAL;
		goto unlock;
	}
	vrdma_srq_copy(&srq->wq, &wq, taken);
	cmd.drv.buf_addr = (uintptr_t)buf.addr;
	cmd.drv.buf_bytes = (uint32_t)buf.bytes;
	cmd.drv.entries = wq.entries;
	cmd.drv.offset = offset;
	cmd.drv.stride_shift = wq.stride_shift;
	err = ibv_cmd_modify_srq(ibv_srq, attr, IBV_SRQ_MAX_WR, &cmd.ibv_cmd, sizeof(cmd));
	if (err)
		goto unlock;
	old = srq->buf;
	srq->buf = buf;
	buf = old;
	srq->wq.ring = wq.ring;
	srq->wq.entries = wq.entries;
	srq->wq.entries_shift = wq.entries_shift;
	srq->wq.freed_seen = taken;
	srq->doorbell.mode = (const _Atomic __le32 *)&vrdma_srq_line(srq)->mode;
	vector = vrdma_work_posted(&srq->doorbell);
unlock:
	vrdma_unlock(&srq->lock);
	vrdma_buf_free(&buf);
	if (vector != VRDMA_NO_RING)
		vrdma_ring_doorbell(ctx, (uint32_t)vector);
	return err;
}

int vrdma_modify_srq(struct ibv_srq *srq, struct ibv_srq_attr *attr, int attr_mask)
{
	struct ibv_modify_srq cmd = {};
	int err;

	if (attr_mask & IBV_SRQ_MAX_WR) {
		/* Apart, so that an error always means that the ring is the old one. */
		if ((attr_mask & IBV_SRQ_LIMIT) && attr->srq_limit > attr->max_wr)
			return EINVAL;
		err = vrdma_resize_srq(to_vsrq(srq), attr);
		attr_mask &= ~IBV_SRQ_MAX_WR;
		if (err || !attr_mask)
			return err;
	}
	return ibv_cmd_modify_srq(srq, attr, attr_mask, &cmd, sizeof(cmd));
}

int vrdma_query_srq(struct ibv_srq *srq, struct ibv_srq_attr *attr)
{
	struct ibv_query_srq cmd = {};

	return ibv_cmd_query_srq(srq, attr, &cmd, sizeof(cmd));
}

int vrdma_get_srq_num(struct ibv_srq *srq, uint32_t *number)
{
	if (to_vsrq(srq)->vsrq.srq_type != IBV_SRQT_XRC)
		return EOPNOTSUPP;
	*number = to_vsrq(srq)->vsrq.srq_num;
	return 0;
}

int vrdma_destroy_srq(struct ibv_srq *ibv_srq)
{
	struct vrdma_srq *srq = to_vsrq(ibv_srq);
	int err = ibv_cmd_destroy_srq(ibv_srq);

	if (err)
		return err;
	vrdma_count_xrc_srq(srq, UINT32_MAX);
	vrdma_buf_free(&srq->buf);
	free(srq);
	return 0;
}
