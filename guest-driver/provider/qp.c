// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Queue pairs: sizes, creating, changing state, ending, and finding them by number. Posting is in
 * post.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "wqe.h"

struct vrdma_create_qp_cmd {
	struct ibv_create_qp ibv_cmd;
	struct virtio_rdma_ureq_create_qp drv;
};
static_assert(offsetof(struct vrdma_create_qp_cmd, drv) == sizeof(struct ibv_create_qp),
	      "the driver's part follows the core's without a gap");

struct vrdma_create_qp_resp {
	struct ib_uverbs_create_qp_resp ibv_resp;
	struct virtio_rdma_uresp_create_qp drv;
};
static_assert(offsetof(struct vrdma_create_qp_resp, drv) ==
		      sizeof(struct ib_uverbs_create_qp_resp),
	      "the driver's part follows the core's without a gap");

struct vrdma_qp *vrdma_find_qp(struct vrdma_context *ctx, uint32_t qpn)
{
	_Atomic(struct vrdma_qp *) *table;

	if (qpn >> VRDMA_QPN_BITS)
		return NULL;
	table = atomic_load_explicit(&ctx->qp_tables[qpn >> VRDMA_QP_TABLE_SHIFT],
				     memory_order_acquire);
	if (!table)
		return NULL;
	return atomic_load_explicit(&table[qpn % VRDMA_QP_TABLE_SIZE], memory_order_acquire);
}

/* Makes `qp` (or nothing: NULL) what that number names. The caller holds the table's mutex. */
static int vrdma_set_qp(struct vrdma_context *ctx, uint32_t qpn, struct vrdma_qp *qp)
{
	_Atomic(struct vrdma_qp *) *table;

	if (qpn >> VRDMA_QPN_BITS)
		return EPROTO;
	table = atomic_load_explicit(&ctx->qp_tables[qpn >> VRDMA_QP_TABLE_SHIFT],
				     memory_order_relaxed);
	if (!table) {
		table = calloc(VRDMA_QP_TABLE_SIZE, sizeof(*table));
		if (!table)
			return ENOMEM;
		atomic_store_explicit(&ctx->qp_tables[qpn >> VRDMA_QP_TABLE_SHIFT], table,
				      memory_order_release);
	}
	atomic_store_explicit(&table[qpn % VRDMA_QP_TABLE_SIZE], qp, memory_order_release);
	return 0;
}

void vrdma_free_qp_tables(struct vrdma_context *ctx)
{
	for (size_t i = 0; i < sizeof(ctx->qp_tables) / sizeof(ctx->qp_tables[0]); i++)
		free((void *)atomic_load_explicit(&ctx->qp_tables[i], memory_order_relaxed));
}

/* Locks the CQs of a QP, always in the same order: two QPs may have them the other way round. */
static void vrdma_lock_cqs(struct vrdma_cq *a, struct vrdma_cq *b)
{
	if (a == b) {
		vrdma_lock(&a->lock);
	} else if (a->cqn < b->cqn) {
		vrdma_lock(&a->lock);
		vrdma_lock(&b->lock);
	} else {
		vrdma_lock(&b->lock);
		vrdma_lock(&a->lock);
	}
}

static void vrdma_unlock_cqs(struct vrdma_cq *a, struct vrdma_cq *b)
{
	vrdma_unlock(&a->lock);
	if (a != b)
		vrdma_unlock(&b->lock);
}

static void vrdma_clean_cqs(struct vrdma_cq *a, struct vrdma_cq *b, uint32_t qpn)
{
	vrdma_cq_clean(a, qpn);
	if (a != b)
		vrdma_cq_clean(b, qpn);
}

/* The smallest n with 2^n >= value, and n >= min. */
static uint8_t vrdma_shift_for(uint32_t value, uint8_t min)
{
	uint8_t shift = min;

	while (shift < 31 && (UINT32_C(1) << shift) < value)
		shift++;
	return shift;
}

static uint32_t vrdma_min(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

/*
 * Sizes a queue of at least `wrs` WQEs with `bytes` bytes each. None of them crosses a page: the
 * stride is a power of two, and the ring is aligned to it. Returns where the next ring may begin.
 */
static size_t vrdma_size_wq(struct vrdma_wq *wq, uint32_t wrs, uint32_t bytes, size_t begin,
			    size_t *offset)
{
	wq->stride_shift = vrdma_shift_for(bytes, VIRTIO_RDMA_WQE_STRIDE_SHIFT_MIN);
	wq->entries_shift = vrdma_shift_for(wrs, 0);
	wq->entries = wrs ? UINT32_C(1) << wq->entries_shift : 0;
	*offset = (begin + (UINT32_C(1) << wq->stride_shift) - 1) &
		  ~(((size_t)1 << wq->stride_shift) - 1);
	return *offset + ((size_t)wq->entries << wq->stride_shift);
}

static bool vrdma_cap_valid(const struct virtio_rdma_uresp_alloc_ucontext *info,
			    const struct ibv_qp_cap *cap)
{
	return cap->max_send_wr <= info->max_qp_wr && cap->max_recv_wr <= info->max_qp_wr &&
	       cap->max_send_sge <= info->max_send_sge && cap->max_recv_sge <= info->max_recv_sge &&
	       cap->max_inline_data <= info->max_inline;
}

/*
 * Decides the sizes of the QP's queues from `cap`, which must be valid, and says in `qp->cap` what
 * the user gets: at least what was asked for, rounded up to what fits.
 */
static void vrdma_size_qp(struct vrdma_qp *qp, const struct vrdma_context *ctx,
			  const struct ibv_qp_cap *cap, struct virtio_rdma_ureq_create_qp *req)
{
	const uint32_t sge = sizeof(struct virtio_rdma_sge);
	uint32_t send_bytes = VIRTIO_RDMA_WQE_SEND_DATA + cap->max_send_sge * sge;
	uint32_t recv_bytes = VIRTIO_RDMA_WQE_RECV_DATA + cap->max_recv_sge * sge;
	uint32_t inline_bytes = VIRTIO_RDMA_WQE_SEND_DATA + cap->max_inline_data;
	size_t sq_offset, rq_offset, end;

	if (inline_bytes > send_bytes)
		send_bytes = inline_bytes;
	end = vrdma_size_wq(&qp->sq, cap->max_send_wr, send_bytes, VIRTIO_RDMA_QP_RINGS_OFFSET,
			    &sq_offset);
	end = vrdma_size_wq(&qp->rq, cap->max_recv_wr, recv_bytes, end, &rq_offset);
	qp->buf_bytes = (end + ctx->page_size - 1) & ~(ctx->page_size - 1);

	send_bytes = (UINT32_C(1) << qp->sq.stride_shift) - VIRTIO_RDMA_WQE_SEND_DATA;
	recv_bytes = (UINT32_C(1) << qp->rq.stride_shift) - VIRTIO_RDMA_WQE_RECV_DATA;
	qp->cap.max_send_wr = qp->sq.entries;
	qp->cap.max_recv_wr = qp->rq.entries;
	qp->cap.max_send_sge = vrdma_min(send_bytes / sge, ctx->info.max_send_sge);
	qp->cap.max_recv_sge = vrdma_min(recv_bytes / sge, ctx->info.max_recv_sge);
	qp->cap.max_inline_data = vrdma_min(send_bytes, ctx->info.max_inline);

	req->buf_bytes = (uint32_t)qp->buf_bytes;
	req->sq_entries = qp->sq.entries;
	req->rq_entries = qp->rq.entries;
	req->sq_offset = (uint32_t)sq_offset;
	req->rq_offset = (uint32_t)rq_offset;
	req->max_inline = qp->cap.max_inline_data;
	req->sq_stride_shift = qp->sq.stride_shift;
	req->rq_stride_shift = qp->rq.stride_shift;
}

/* Whether the UAR has a bit for that slot. */
static bool vrdma_slot_valid(const struct vrdma_context *ctx, uint32_t slot)
{
	return slot / 8 < ctx->info.uar_bytes - VIRTIO_RDMA_UAR_BITMAP_OFFSET;
}

/* What ibv_wr_* can post. */
#define VRDMA_SEND_OPS                                                                \
	(IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM |             \
	 IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM | IBV_QP_EX_WITH_RDMA_READ | \
	 IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD)

/* 0 if there can be such a QP, or an errno. */
static int vrdma_check_init_attr(const struct vrdma_context *ctx,
				 const struct ibv_qp_init_attr_ex *attr)
{
	if (attr->comp_mask & ~(uint32_t)(IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS))
		return EOPNOTSUPP;
	if ((attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) &&
	    (attr->send_ops_flags & ~(uint64_t)VRDMA_SEND_OPS))
		return EOPNOTSUPP;
	if ((attr->qp_type != IBV_QPT_RC && attr->qp_type != IBV_QPT_UC &&
	     attr->qp_type != IBV_QPT_UD) ||
	    attr->srq)
		return EOPNOTSUPP;
	if (!(attr->comp_mask & IBV_QP_INIT_ATTR_PD) || !attr->send_cq || !attr->recv_cq ||
	    !vrdma_cap_valid(&ctx->info, &attr->cap))
		return EINVAL;
	return 0;
}

struct ibv_qp *vrdma_create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr)
{
	struct vrdma_context *ctx = to_vctx(context);
	struct ibv_qp_init_attr_ex given = *attr;
	struct vrdma_create_qp_resp resp = {};
	struct vrdma_create_qp_cmd cmd = {};
	struct virtio_rdma_qp_device_line *line;
	struct vrdma_qp *qp;
	int err;

	err = vrdma_check_init_attr(ctx, attr);
	if (err) {
		errno = err;
		return NULL;
	}
	/* The counters of its queues have cache lines of their own. */
	qp = aligned_alloc(_Alignof(struct vrdma_qp), sizeof(*qp));
	if (!qp)
		return NULL;
	memset(qp, 0, sizeof(*qp));
	vrdma_size_qp(qp, ctx, &attr->cap, &cmd.drv);
	qp->buf = vrdma_alloc_pages(qp->buf_bytes);
	if (!qp->buf) {
		err = errno;
		goto free_qp;
	}
	qp->sq.ring = qp->buf + cmd.drv.sq_offset;
	qp->rq.ring = qp->buf + cmd.drv.rq_offset;
	qp->sq_flags = attr->sq_sig_all ? IBV_SEND_SIGNALED : 0;
	vrdma_lock_init(&qp->sq_lock);
	vrdma_lock_init(&qp->rq_lock);

	cmd.drv.buf_addr = (uintptr_t)qp->buf;
	given.cap = qp->cap;
	err = ibv_cmd_create_qp_ex(context, &qp->vqp, &given, &cmd.ibv_cmd, sizeof(cmd),
				   &resp.ibv_resp, sizeof(resp));
	if (err)
		goto free_buf;
	if (!vrdma_slot_valid(ctx, resp.drv.slot)) {
		err = EPROTO;
		goto destroy;
	}
	qp->transport_op = vrdma_transport_op(qp);
	line = (struct virtio_rdma_qp_device_line *)qp->buf;
	vrdma_doorbell_init(&qp->sq_doorbell, ctx->uar, resp.drv.slot, &line->sq_mode, ctx->status,
			    ctx->info.num_comp_vectors);
	vrdma_doorbell_init(&qp->rq_doorbell, ctx->uar, resp.drv.slot, &line->rq_mode, ctx->status,
			    ctx->info.num_comp_vectors);
	if (attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) {
		vrdma_wr_init(&qp->vqp.qp_ex);
		qp->vqp.comp_mask |= VERBS_QP_EX;
	}

	pthread_mutex_lock(&ctx->qp_table_mutex);
	err = vrdma_set_qp(ctx, vrdma_ibv_qp(qp)->qp_num, qp);
	pthread_mutex_unlock(&ctx->qp_table_mutex);
	if (err)
		goto destroy;
	attr->cap = qp->cap;
	return vrdma_ibv_qp(qp);

destroy:
	ibv_cmd_destroy_qp(vrdma_ibv_qp(qp));
free_buf:
	vrdma_free_pages(qp->buf, qp->buf_bytes);
free_qp:
	free(qp);
	errno = err;
	return NULL;
}

struct ibv_qp *vrdma_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct ibv_qp_init_attr_ex attr_ex = {
		.qp_context = attr->qp_context,
		.send_cq = attr->send_cq,
		.recv_cq = attr->recv_cq,
		.srq = attr->srq,
		.cap = attr->cap,
		.qp_type = attr->qp_type,
		.sq_sig_all = attr->sq_sig_all,
		.comp_mask = IBV_QP_INIT_ATTR_PD,
		.pd = pd,
	};
	struct ibv_qp *qp = vrdma_create_qp_ex(pd->context, &attr_ex);

	if (qp)
		attr->cap = attr_ex.cap;
	return qp;
}

/* After RESET the device counts from 0 again, and what the CQs still hold means nothing. */
static void vrdma_reset_qp(struct vrdma_qp *qp)
{
	struct vrdma_cq *send_cq = to_vcq(vrdma_ibv_qp(qp)->send_cq);
	struct vrdma_cq *recv_cq = to_vcq(vrdma_ibv_qp(qp)->recv_cq);

	vrdma_lock_cqs(send_cq, recv_cq);
	vrdma_clean_cqs(send_cq, recv_cq, vrdma_ibv_qp(qp)->qp_num);
	vrdma_lock(&qp->sq_lock);
	memset(qp->sq.ring, 0, (size_t)qp->sq.entries << qp->sq.stride_shift);
	vrdma_wq_reset(&qp->sq);
	vrdma_unlock(&qp->sq_lock);
	vrdma_lock(&qp->rq_lock);
	memset(qp->rq.ring, 0, (size_t)qp->rq.entries << qp->rq.stride_shift);
	vrdma_wq_reset(&qp->rq);
	vrdma_unlock(&qp->rq_lock);
	vrdma_unlock_cqs(send_cq, recv_cq);
}

int vrdma_modify_qp(struct ibv_qp *ibv_qp, struct ibv_qp_attr *attr, int attr_mask)
{
	struct ibv_modify_qp cmd = {};
	int err;

	err = ibv_cmd_modify_qp(ibv_qp, attr, attr_mask, &cmd, sizeof(cmd));
	if (err)
		return err;
	if ((attr_mask & IBV_QP_STATE) && attr->qp_state == IBV_QPS_RESET)
		vrdma_reset_qp(to_vqp(ibv_qp));
	return 0;
}

int vrdma_query_qp(struct ibv_qp *ibv_qp, struct ibv_qp_attr *attr, int attr_mask,
		   struct ibv_qp_init_attr *init_attr)
{
	struct vrdma_qp *qp = to_vqp(ibv_qp);
	struct ibv_query_qp cmd = {};
	int err;

	err = ibv_cmd_query_qp(ibv_qp, attr, attr_mask, init_attr, &cmd, sizeof(cmd));
	if (err)
		return err;
	attr->cap = qp->cap;
	init_attr->cap = qp->cap;
	init_attr->sq_sig_all = qp->sq_flags != 0;
	return 0;
}

/*
 * The number is free for another QP as soon as the kernel has answered, so the table's mutex is
 * held until the old entry and the old CQEs are gone; vrdma_create_qp() enters the new one after.
 */
int vrdma_destroy_qp(struct ibv_qp *ibv_qp)
{
	struct vrdma_context *ctx = to_vctx(ibv_qp->context);
	struct vrdma_cq *send_cq = to_vcq(ibv_qp->send_cq);
	struct vrdma_cq *recv_cq = to_vcq(ibv_qp->recv_cq);
	struct vrdma_qp *qp = to_vqp(ibv_qp);
	int err;

	pthread_mutex_lock(&ctx->qp_table_mutex);
	err = ibv_cmd_destroy_qp(ibv_qp);
	if (err) {
		pthread_mutex_unlock(&ctx->qp_table_mutex);
		return err;
	}
	vrdma_lock_cqs(send_cq, recv_cq);
	vrdma_clean_cqs(send_cq, recv_cq, ibv_qp->qp_num);
	vrdma_set_qp(ctx, ibv_qp->qp_num, NULL);
	vrdma_unlock_cqs(send_cq, recv_cq);
	pthread_mutex_unlock(&ctx->qp_table_mutex);

	vrdma_free_pages(qp->buf, qp->buf_bytes);
	free(qp);
	return 0;
}
