// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Queue pairs: sizes, creating, changing state, ending. Posting is in post.c, finding them by number
 * in qp_table.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "wqe.h"

struct vrdma_create_qp_cmd {
	struct ibv_create_qp_ex ibv_cmd;
	struct virtio_rdma_ureq_create_qp drv;
};
static_assert(offsetof(struct vrdma_create_qp_cmd, drv) == sizeof(struct ibv_create_qp_ex),
	      "the driver's part follows the core's without a gap");

struct vrdma_create_qp_resp {
	struct ib_uverbs_ex_create_qp_resp ibv_resp;
	struct virtio_rdma_uresp_create_qp drv;
};
static_assert(offsetof(struct vrdma_create_qp_resp, drv) ==
		      sizeof(struct ib_uverbs_ex_create_qp_resp),
	      "the driver's part follows the core's without a gap");

/* The CQs of a QP. An XRC initiator has no receive CQ, an XRC target none at all: NULL. */
struct vrdma_qp_cqs {
	struct vrdma_cq *send, *recv;
};

static struct vrdma_qp_cqs vrdma_cqs_of(const struct ibv_qp *qp)
{
	struct vrdma_qp_cqs cqs = {
		.send = qp->send_cq ? to_vcq(qp->send_cq) : NULL,
		.recv = qp->recv_cq ? to_vcq(qp->recv_cq) : NULL,
	};

	if (cqs.recv == cqs.send)
		cqs.recv = NULL;
	return cqs;
}

/* Locks them, always in the same order: two QPs may have them the other way round. */
static void vrdma_lock_cqs(const struct vrdma_qp_cqs *cqs)
{
	struct vrdma_cq *a = cqs->send, *b = cqs->recv;

	if (a && b && b->cqn < a->cqn) {
		a = cqs->recv;
		b = cqs->send;
	}
	if (a)
		vrdma_lock(&a->lock);
	if (b)
		vrdma_lock(&b->lock);
}

static void vrdma_unlock_cqs(const struct vrdma_qp_cqs *cqs)
{
	if (cqs->send)
		vrdma_unlock(&cqs->send->lock);
	if (cqs->recv)
		vrdma_unlock(&cqs->recv->lock);
}

static void vrdma_clean_cqs(const struct vrdma_qp_cqs *cqs, uint32_t qpn)
{
	if (cqs->send)
		vrdma_cq_clean(cqs->send, qpn);
	if (cqs->recv)
		vrdma_cq_clean(cqs->recv, qpn);
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
 * the user gets: at least what was asked for, rounded up to what fits. Returns the buffer's size.
 */
static size_t vrdma_size_qp(struct vrdma_qp *qp, const struct vrdma_context *ctx,
			    const struct ibv_qp_cap *cap, enum ibv_qp_type type,
			    struct virtio_rdma_ureq_create_qp *req)
{
	const uint32_t sge = sizeof(struct virtio_rdma_sge);
	/* An XRC initiator names the peer's SRQ at the end of each slot; an atomic has operands. */
	const uint32_t tail = type == IBV_QPT_XRC_SEND ? sizeof(struct virtio_rdma_xrc_args) : 0;
	const uint32_t least = VIRTIO_RDMA_WQE_ATOMIC_ARGS + sizeof(struct virtio_rdma_atomic_args);
	uint32_t send_bytes = VIRTIO_RDMA_WQE_SEND_DATA + cap->max_send_sge * sge;
	uint32_t recv_bytes = VIRTIO_RDMA_WQE_RECV_DATA + cap->max_recv_sge * sge;
	uint32_t inline_bytes = VIRTIO_RDMA_WQE_SEND_DATA + cap->max_inline_data;
	size_t sq_offset, rq_offset, end;

	if (inline_bytes > send_bytes)
		send_bytes = inline_bytes;
	if (least > send_bytes)
		send_bytes = least;
	end = vrdma_size_wq(&qp->sq, cap->max_send_wr, send_bytes + tail,
			    VIRTIO_RDMA_QP_RINGS_OFFSET, &sq_offset);
	end = vrdma_size_wq(&qp->rq, cap->max_recv_wr, recv_bytes, end, &rq_offset);

	send_bytes = (UINT32_C(1) << qp->sq.stride_shift) - VIRTIO_RDMA_WQE_SEND_DATA - tail;
	recv_bytes = (UINT32_C(1) << qp->rq.stride_shift) - VIRTIO_RDMA_WQE_RECV_DATA;
	qp->cap.max_send_wr = qp->sq.entries;
	qp->cap.max_recv_wr = qp->rq.entries;
	qp->cap.max_send_sge = vrdma_min(send_bytes / sge, ctx->info.max_send_sge);
	qp->cap.max_recv_sge = vrdma_min(recv_bytes / sge, ctx->info.max_recv_sge);
	qp->cap.max_inline_data = vrdma_min(send_bytes, ctx->info.max_inline);

	req->sq_entries = qp->sq.entries;
	req->rq_entries = qp->rq.entries;
	req->sq_offset = (uint32_t)sq_offset;
	req->rq_offset = (uint32_t)rq_offset;
	req->max_inline = qp->cap.max_inline_data;
	req->sq_stride_shift = qp->sq.stride_shift;
	req->rq_stride_shift = qp->rq.stride_shift;
	return end;
}

/* What ibv_wr_* can post. */
static uint64_t vrdma_send_ops(const struct vrdma_context *ctx)
{
	uint64_t ops = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM |
		       IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM |
		       IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP |
		       IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
	uint16_t refused = vrdma_refused_op(ctx);

	if (!(refused & VRDMA_OP_KEY))
		ops |= IBV_QP_EX_WITH_LOCAL_INV | IBV_QP_EX_WITH_BIND_MW |
		       IBV_QP_EX_WITH_SEND_WITH_INV;
	if (!(refused & VRDMA_OP_FLUSH))
		ops |= IBV_QP_EX_WITH_FLUSH;
	if (!(refused & VRDMA_OP_ATOMIC_WRITE))
		ops |= IBV_QP_EX_WITH_ATOMIC_WRITE;
	return ops;
}

/* What a QP of each type must be made with. 0 or an errno. */
static int vrdma_check_qp_type(const struct vrdma_context *ctx,
			       const struct ibv_qp_init_attr_ex *attr)
{
	switch (attr->qp_type) {
	case IBV_QPT_RC:
	case IBV_QPT_UC:
	case IBV_QPT_UD:
		if (!(attr->comp_mask & IBV_QP_INIT_ATTR_PD) || !attr->send_cq || !attr->recv_cq)
			return EINVAL;
		return 0;
	case IBV_QPT_XRC_SEND:
		if (!vrdma_has(ctx, VIRTIO_RDMA_CAP_XRC))
			return EOPNOTSUPP;
		if (!(attr->comp_mask & IBV_QP_INIT_ATTR_PD) || !attr->send_cq || attr->srq)
			return EINVAL;
		return 0;
	case IBV_QPT_XRC_RECV:
		if (!vrdma_has(ctx, VIRTIO_RDMA_CAP_XRC))
			return EOPNOTSUPP;
		if (!(attr->comp_mask & IBV_QP_INIT_ATTR_XRCD) || attr->srq)
			return EINVAL;
		return 0;
	default:
		return EOPNOTSUPP;
	}
}

/* 0 if there can be such a QP, or an errno. */
static int vrdma_check_init_attr(const struct vrdma_context *ctx,
				 const struct ibv_qp_init_attr_ex *attr)
{
	int err;

	if (attr->comp_mask & ~(uint32_t)(IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_XRCD |
					  IBV_QP_INIT_ATTR_CREATE_FLAGS |
					  IBV_QP_INIT_ATTR_SEND_OPS_FLAGS))
		return EOPNOTSUPP;
	if ((attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) &&
	    (attr->send_ops_flags & ~vrdma_send_ops(ctx)))
		return EOPNOTSUPP;
	if ((attr->comp_mask & IBV_QP_INIT_ATTR_CREATE_FLAGS) &&
	    ((attr->create_flags & ~(uint32_t)IBV_QP_CREATE_BLOCK_SELF_MCAST_LB) ||
	     (attr->create_flags && !vrdma_has(ctx, VIRTIO_RDMA_CAP_MCAST))))
		return EOPNOTSUPP;
	err = vrdma_check_qp_type(ctx, attr);
	if (err)
		return err;
	return vrdma_cap_valid(&ctx->info, &attr->cap) ? 0 : EINVAL;
}

/* The queues that a QP of this type has, out of those that were asked for. */
static struct ibv_qp_cap vrdma_own_queues(const struct ibv_qp_init_attr_ex *attr)
{
	struct ibv_qp_cap cap = attr->cap;

	if (attr->srq || attr->qp_type == IBV_QPT_XRC_SEND || attr->qp_type == IBV_QPT_XRC_RECV) {
		cap.max_recv_wr = 0;
		cap.max_recv_sge = 0;
	}
	if (attr->qp_type == IBV_QPT_XRC_RECV)
		cap = (struct ibv_qp_cap){};
	return cap;
}

/* The QP itself, and the memory of its queues. NULL and errno on failure. */
static struct vrdma_qp *vrdma_alloc_qp(struct vrdma_context *ctx,
				       const struct ibv_qp_init_attr_ex *attr,
				       struct virtio_rdma_ureq_create_qp *req)
{
	struct ibv_pd *pd = attr->comp_mask & IBV_QP_INIT_ATTR_PD ? attr->pd : NULL;
	struct ibv_qp_cap cap = vrdma_own_queues(attr);
	/* The counters of its queues have cache lines of their own. */
	struct vrdma_qp *qp = aligned_alloc(_Alignof(struct vrdma_qp), sizeof(*qp));
	size_t bytes;
	int err;

	if (!qp)
		return NULL;
	memset(qp, 0, sizeof(*qp));
	bytes = vrdma_size_qp(qp, ctx, &cap, attr->qp_type, req);
	err = vrdma_buf_alloc(ctx, &qp->buf, bytes, pd, VRDMA_RESOURCE_QP);
	if (err) {
		free(qp);
		errno = err;
		return NULL;
	}
	qp->sq.ring = qp->buf.addr + req->sq_offset;
	qp->rq.ring = qp->buf.addr + req->rq_offset;
	qp->sq_flags = attr->sq_sig_all ? IBV_SEND_SIGNALED : 0;
	vrdma_lock_init(&qp->sq_lock, vrdma_single_threaded(pd));
	vrdma_lock_init(&qp->rq_lock, vrdma_single_threaded(pd));
	req->buf_addr = (uintptr_t)qp->buf.addr;
	req->buf_bytes = (uint32_t)qp->buf.bytes;
	return qp;
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
	qp = vrdma_alloc_qp(ctx, attr, &cmd.drv);
	if (!qp)
		return NULL;
	given.cap = qp->cap;
	err = ibv_cmd_create_qp_ex2(context, &qp->vqp, &given, &cmd.ibv_cmd, sizeof(cmd),
				    &resp.ibv_resp, sizeof(resp));
	if (err)
		goto free_qp;
	if (!vrdma_slot_valid(ctx, resp.drv.slot)) {
		err = EPROTO;
		goto destroy;
	}
	qp->transport_op = vrdma_transport_op(qp);
	qp->refused_op = vrdma_refused_op(ctx);
	line = (struct virtio_rdma_qp_device_line *)qp->buf.addr;
	vrdma_doorbell_init(&qp->sq_doorbell, ctx->uar, resp.drv.slot, &line->sq_mode, ctx->status,
			    ctx->info.num_comp_vectors);
	vrdma_doorbell_init(&qp->rq_doorbell, ctx->uar, resp.drv.slot, &line->rq_mode, ctx->status,
			    ctx->info.num_comp_vectors);
	if (attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) {
		vrdma_wr_init(&qp->vqp.qp_ex);
		qp->vqp.comp_mask |= VERBS_QP_EX;
	}

	/* Completions of an XRC target are looked at without it: it may be another process's. */
	if (attr->qp_type != IBV_QPT_XRC_RECV) {
		pthread_mutex_lock(&ctx->qp_table_mutex);
		err = vrdma_set_qp(ctx, vrdma_ibv_qp(qp)->qp_num, qp);
		pthread_mutex_unlock(&ctx->qp_table_mutex);
		if (err)
			goto destroy;
	}
	attr->cap = qp->cap;
	return vrdma_ibv_qp(qp);

destroy:
	ibv_cmd_destroy_qp(vrdma_ibv_qp(qp));
free_qp:
	vrdma_buf_free(&qp->buf);
	free(qp);
	errno = err;
	return NULL;
}

/* An XRC target that exists already, perhaps made by another process: to modify and query it. */
struct ibv_qp *vrdma_open_qp(struct ibv_context *context, struct ibv_qp_open_attr *attr)
{
	struct vrdma_qp *qp = aligned_alloc(_Alignof(struct vrdma_qp), sizeof(*qp));
	struct ib_uverbs_create_qp_resp resp = {};
	struct ibv_open_qp cmd = {};
	int err;

	if (!qp)
		return NULL;
	memset(qp, 0, sizeof(*qp));
	vrdma_lock_init(&qp->sq_lock, false);
	vrdma_lock_init(&qp->rq_lock, false);
	err = ibv_cmd_open_qp(context, &qp->vqp, sizeof(qp->vqp), attr, &cmd, sizeof(cmd), &resp,
			      sizeof(resp));
	if (err) {
		free(qp);
		errno = err;
		return NULL;
	}
	return vrdma_ibv_qp(qp);
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

static void vrdma_reset_wq(struct vrdma_wq *wq, struct vrdma_lock *lock)
{
	vrdma_lock(lock);
	if (wq->entries)
		memset(wq->ring, 0, (size_t)wq->entries << wq->stride_shift);
	vrdma_wq_reset(wq);
	vrdma_unlock(lock);
}

/* After RESET the device counts from 0 again, and what the CQs still hold means nothing. */
static void vrdma_reset_qp(struct vrdma_qp *qp)
{
	struct vrdma_qp_cqs cqs = vrdma_cqs_of(vrdma_ibv_qp(qp));

	vrdma_lock_cqs(&cqs);
	vrdma_clean_cqs(&cqs, vrdma_ibv_qp(qp)->qp_num);
	vrdma_reset_wq(&qp->sq, &qp->sq_lock);
	vrdma_reset_wq(&qp->rq, &qp->rq_lock);
	vrdma_unlock_cqs(&cqs);
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
	struct vrdma_qp_cqs cqs = vrdma_cqs_of(ibv_qp);
	struct vrdma_qp *qp = to_vqp(ibv_qp);
	int err;

	pthread_mutex_lock(&ctx->qp_table_mutex);
	err = ibv_cmd_destroy_qp(ibv_qp);
	if (err) {
		pthread_mutex_unlock(&ctx->qp_table_mutex);
		return err;
	}
	if (ibv_qp->qp_type != IBV_QPT_XRC_RECV) {
		vrdma_lock_cqs(&cqs);
		vrdma_clean_cqs(&cqs, ibv_qp->qp_num);
		vrdma_set_qp(ctx, ibv_qp->qp_num, NULL);
		vrdma_unlock_cqs(&cqs);
	}
	pthread_mutex_unlock(&ctx->qp_table_mutex);

	vrdma_buf_free(&qp->buf);
	free(qp);
	return 0;
}
