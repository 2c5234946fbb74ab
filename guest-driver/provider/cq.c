// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Completion queues: creating, resizing, moderating, ending, and taking out CQEs of QPs that go.
 * Polling and arming are in poll.c.
 */
#include <errno.h>
#include <stdlib.h>

#include "vrdma.h"

struct vrdma_create_cq_cmd {
	struct ibv_create_cq_ex ibv_cmd;
	struct virtio_rdma_ureq_create_cq drv;
};
static_assert(offsetof(struct vrdma_create_cq_cmd, drv) == sizeof(struct ibv_create_cq_ex),
	      "the driver's part follows the core's without a gap");

struct vrdma_create_cq_resp {
	struct ib_uverbs_ex_create_cq_resp ibv_resp;
	struct virtio_rdma_uresp_create_cq drv;
};
static_assert(offsetof(struct vrdma_create_cq_resp, drv) ==
		      sizeof(struct ib_uverbs_ex_create_cq_resp),
	      "the driver's part follows the core's without a gap");

struct vrdma_resize_cq_cmd {
	struct ibv_resize_cq ibv_cmd;
	struct virtio_rdma_ureq_resize_cq drv;
};
static_assert(offsetof(struct vrdma_resize_cq_cmd, drv) == sizeof(struct ibv_resize_cq),
	      "the driver's part follows the core's without a gap");

struct vrdma_resize_cq_resp {
	struct ib_uverbs_resize_cq_resp ibv_resp;
	struct virtio_rdma_uresp_resize_cq drv;
};
static_assert(offsetof(struct vrdma_resize_cq_resp, drv) ==
		      sizeof(struct ib_uverbs_resize_cq_resp),
	      "the driver's part follows the core's without a gap");

#define VRDMA_WC_FLAGS                                                               \
	((uint64_t)IBV_WC_STANDARD_FLAGS | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP |     \
	 IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK)
#define VRDMA_WC_TIMESTAMPS                                 \
	((uint64_t)IBV_WC_EX_WITH_COMPLETION_TIMESTAMP |    \
	 IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK)

/* Makes a ring of at least `cqe` slots. 0 or an errno. */
static int vrdma_cq_ring_init(struct vrdma_context *ctx, struct vrdma_cq_ring *ring, uint32_t cqe,
			      struct ibv_pd *pd)
{
	uint8_t shift = vrdma_shift_for(cqe, 0);
	int err;

	ring->ring.entries_shift = shift;
	ring->ring.entries = UINT32_C(1) << shift;
	err = vrdma_buf_alloc(ctx, &ring->buf,
			      VIRTIO_RDMA_CQ_RING_OFFSET +
				      (size_t)ring->ring.entries * VIRTIO_RDMA_CQE_BYTES,
			      pd, VRDMA_RESOURCE_CQ);
	ring->ring.buf = ring->buf.addr;
	return err;
}

/* 0 if there can be such a CQ, or an errno. */
static int vrdma_check_cq_attr(const struct vrdma_context *ctx,
			       const struct ibv_cq_init_attr_ex *attr)
{
	if (attr->comp_mask & ~(uint32_t)(IBV_CQ_INIT_ATTR_MASK_FLAGS | IBV_CQ_INIT_ATTR_MASK_PD))
		return EOPNOTSUPP;
	/* An overrun is never ignored here: the device stops writing. */
	if ((attr->comp_mask & IBV_CQ_INIT_ATTR_MASK_FLAGS) &&
	    (attr->flags & ~(uint32_t)IBV_CREATE_CQ_ATTR_SINGLE_THREADED))
		return EOPNOTSUPP;
	if ((attr->wc_flags & ~VRDMA_WC_FLAGS) ||
	    ((attr->wc_flags & VRDMA_WC_TIMESTAMPS) && !vrdma_has(ctx, VIRTIO_RDMA_CAP_TIMESTAMP)))
		return EOPNOTSUPP;
	if (attr->cqe < 1 || attr->cqe > ctx->info.max_cqe)
		return EINVAL;
	if ((attr->comp_mask & IBV_CQ_INIT_ATTR_MASK_PD) &&
	    (!attr->parent_domain || !to_vpd(attr->parent_domain)->protection_domain))
		return EINVAL;
	return 0;
}

static struct vrdma_cq *vrdma_make_cq(struct ibv_context *context,
				      const struct ibv_cq_init_attr_ex *attr)
{
	struct vrdma_context *ctx = to_vctx(context);
	struct ibv_cq_init_attr_ex given = *attr;
	struct vrdma_create_cq_resp resp = {};
	struct vrdma_create_cq_cmd cmd = {};
	struct ibv_pd *parent = NULL;
	bool single_threaded = false;
	struct vrdma_cq *cq;
	int err;

	err = vrdma_check_cq_attr(ctx, attr);
	if (err) {
		errno = err;
		return NULL;
	}
	if (attr->comp_mask & IBV_CQ_INIT_ATTR_MASK_FLAGS)
		single_threaded = attr->flags & IBV_CREATE_CQ_ATTR_SINGLE_THREADED;
	if (attr->comp_mask & IBV_CQ_INIT_ATTR_MASK_PD)
		parent = attr->parent_domain;
	cq = calloc(1, sizeof(*cq));
	if (!cq)
		return NULL;
	vrdma_lock_init(&cq->lock, single_threaded || vrdma_single_threaded(parent));
	atomic_init(&cq->current, &cq->first);
	cq->newest = &cq->first;
	err = vrdma_cq_ring_init(ctx, &cq->first, attr->cqe, parent);
	if (err)
		goto free_cq;

	cmd.drv.buf_addr = (uintptr_t)cq->first.buf.addr;
	cmd.drv.buf_bytes = (uint32_t)cq->first.buf.bytes;
	cmd.drv.entries = cq->first.ring.entries;
	given.cqe = cq->first.ring.entries;
	err = ibv_cmd_create_cq_ex(context, &given, &cq->vcq, &cmd.ibv_cmd, sizeof(cmd),
				   &resp.ibv_resp, sizeof(resp), 0);
	if (err)
		goto free_buf;
	cq->cqn = resp.drv.cqn;
	cq->ibv_cq.cqe = (int)cq->first.ring.entries;
	return cq;

free_buf:
	vrdma_buf_free(&cq->first.buf);
free_cq:
	free(cq);
	errno = err;
	return NULL;
}

struct ibv_cq *vrdma_create_cq(struct ibv_context *context, int cqe,
			       struct ibv_comp_channel *channel, int comp_vector)
{
	struct ibv_cq_init_attr_ex attr = {
		.cqe = cqe < 0 ? 0 : (uint32_t)cqe,
		.channel = channel,
		.comp_vector = (uint32_t)comp_vector,
	};
	struct vrdma_cq *cq = vrdma_make_cq(context, &attr);

	return cq ? &cq->ibv_cq : NULL;
}

struct ibv_cq_ex *vrdma_create_cq_ex(struct ibv_context *context, struct ibv_cq_init_attr_ex *attr)
{
	struct vrdma_cq *cq = vrdma_make_cq(context, attr);

	if (!cq)
		return NULL;
	vrdma_cq_ex_init(&cq->vcq.cq_ex, attr->wc_flags);
	return &cq->vcq.cq_ex;
}

/* CQEs of a ring that have not been polled. The caller holds the CQ's lock. */
static uint32_t vrdma_cq_ring_unpolled(const struct vrdma_cq_ring *ring)
{
	uint32_t begin = vrdma_cq_consumer(&ring->ring), end = begin;
	uint64_t last;

	if (ring->next)
		return ring->end - begin;
	while (end - begin < ring->ring.entries && vrdma_cqe_valid(&ring->ring, end, &last))
		end++;
	return end - begin;
}

void vrdma_cq_next_ring(struct vrdma_cq *cq)
{
	struct vrdma_cq_ring *ring = atomic_load_explicit(&cq->current, memory_order_relaxed);
	struct vrdma_cq_ring *old = ring;

	while (ring->next && vrdma_cq_consumer(&ring->ring) == ring->end)
		ring = ring->next;
	if (ring == old)
		return;
	/* Release: the new ring's members, for who looks without the lock. */
	atomic_store_explicit(&cq->current, ring, memory_order_release);
	for (; old != ring; old = old->next)
		vrdma_buf_forget(&old->buf);
}

/*
 * Gives the CQ another ring. The CQEs of the old one are polled first, as many as the kernel says:
 * until it has, nobody may poll or arm, so the lock is held meanwhile.
 */
int vrdma_resize_cq(struct ibv_cq *ibv_cq, int cqe)
{
	struct vrdma_context *ctx = to_vctx(ibv_cq->context);
	struct vrdma_cq *cq = to_vcq(ibv_cq);
	struct vrdma_resize_cq_resp resp = {};
	struct vrdma_resize_cq_cmd cmd = {};
	struct vrdma_cq_ring *ring;
	uint32_t unpolled = 0;
	int err;

	if (!vrdma_has(ctx, VIRTIO_RDMA_CAP_CQ_RESIZE))
		return EOPNOTSUPP;
	if (cqe < 1 || (uint32_t)cqe > ctx->info.max_cqe)
		return EINVAL;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return ENOMEM;
	err = vrdma_cq_ring_init(ctx, ring, (uint32_t)cqe,
				 cq->first.buf.parent ? &cq->first.buf.parent->ibv_pd : NULL);
	if (err)
		goto free_ring;

	vrdma_lock(&cq->lock);
	for (struct vrdma_cq_ring *each = atomic_load(&cq->current); each; each = each->next)
		unpolled += vrdma_cq_ring_unpolled(each);
	if (unpolled > ring->ring.entries) {
		err = EINVAL;
		goto unlock;
	}
	cmd.drv.buf_addr = (uintptr_t)ring->buf.addr;
	cmd.drv.buf_bytes = (uint32_t)ring->buf.bytes;
	cmd.drv.entries = ring->ring.entries;
	err = ibv_cmd_resize_cq(ibv_cq, (int)ring->ring.entries, &cmd.ibv_cmd, sizeof(cmd),
				&resp.ibv_resp, sizeof(resp));
	if (err)
		goto unlock;
	ibv_cq->cqe = (int)ring->ring.entries;
	cq->newest->end = resp.drv.old_cqes;
	cq->newest->next = ring;
	cq->newest = ring;
	vrdma_cq_next_ring(cq);
	vrdma_unlock(&cq->lock);
	return 0;

unlock:
	vrdma_unlock(&cq->lock);
	vrdma_buf_free(&ring->buf);
free_ring:
	free(ring);
	return err;
}

int vrdma_modify_cq(struct ibv_cq *cq, struct ibv_modify_cq_attr *attr)
{
	struct ibv_modify_cq cmd = {};

	return ibv_cmd_modify_cq(cq, attr, &cmd, sizeof(cmd));
}

/*
 * The device writes behind the last valid CQE only, so the CQEs that stay can move towards it,
 * over those that go. A CQE that moves to another slot takes on the phase of that slot.
 */
static void vrdma_cq_ring_clean(struct vrdma_cq_ring *cq_ring, uint32_t qpn)
{
	struct vrdma_ring_cq *ring = &cq_ring->ring;
	uint32_t begin = vrdma_cq_consumer(ring), gone = 0;
	uint32_t end = begin + vrdma_cq_ring_unpolled(cq_ring);

	for (uint32_t n = end; n-- != begin;) {
		struct virtio_rdma_cqe *cqe = vrdma_cq_slot(ring, n);

		if (le32toh(cqe->qpn) == qpn) {
			gone++;
		} else if (gone) {
			struct virtio_rdma_cqe *to = vrdma_cq_slot(ring, n + gone);

			*to = *cqe;
			to->phase = (uint8_t)vrdma_phase(n + gone, ring->entries_shift);
		}
	}
	if (gone)
		vrdma_cq_store_consumer(ring, begin + gone);
}

void vrdma_cq_clean(struct vrdma_cq *cq, uint32_t qpn)
{
	struct vrdma_cq_ring *ring = atomic_load_explicit(&cq->current, memory_order_relaxed);

	cq->last_qp = NULL;
	for (; ring; ring = ring->next)
		vrdma_cq_ring_clean(ring, qpn);
	vrdma_cq_next_ring(cq);
}

int vrdma_destroy_cq(struct ibv_cq *ibv_cq)
{
	struct vrdma_cq *cq = to_vcq(ibv_cq);
	struct vrdma_cq_ring *ring = cq->first.next, *next;
	int err = ibv_cmd_destroy_cq(ibv_cq);

	if (err)
		return err;
	vrdma_buf_free(&cq->first.buf);
	for (; ring; ring = next) {
		next = ring->next;
		vrdma_buf_free(&ring->buf);
		free(ring);
	}
	free(cq);
	return 0;
}
