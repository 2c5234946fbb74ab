// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Polling and arming a CQ, by ibv_poll_cq and by ibv_start_poll and its family. How a CQE is
 * recognised is in ring.h, creating and resizing in cq.c.
 */
#include <errno.h>

#include "vrdma.h"

/* The device's numbers are libibverbs's. */
static_assert((int)VIRTIO_RDMA_WC_OP_SEND == IBV_WC_SEND, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_RDMA_WRITE == IBV_WC_RDMA_WRITE, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_RDMA_READ == IBV_WC_RDMA_READ, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_COMP_SWAP == IBV_WC_COMP_SWAP, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_FETCH_ADD == IBV_WC_FETCH_ADD, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_BIND_MW == IBV_WC_BIND_MW, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_LOCAL_INV == IBV_WC_LOCAL_INV, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_FLUSH == IBV_WC_FLUSH, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_ATOMIC_WRITE == IBV_WC_ATOMIC_WRITE, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_RECV == IBV_WC_RECV, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_RECV_RDMA_WITH_IMM == IBV_WC_RECV_RDMA_WITH_IMM, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_MW_BIND_ERR == IBV_WC_MW_BIND_ERR, "status");
static_assert((int)VIRTIO_RDMA_WC_WR_FLUSH_ERR == IBV_WC_WR_FLUSH_ERR, "status");
static_assert((int)VIRTIO_RDMA_WC_RETRY_EXC_ERR == IBV_WC_RETRY_EXC_ERR, "status");
static_assert((int)VIRTIO_RDMA_WC_RNR_RETRY_EXC_ERR == IBV_WC_RNR_RETRY_EXC_ERR, "status");
static_assert((int)VIRTIO_RDMA_WC_FATAL_ERR == IBV_WC_FATAL_ERR, "status");
static_assert((int)VIRTIO_RDMA_WC_GENERAL_ERR == IBV_WC_GENERAL_ERR, "status");
static_assert((int)VIRTIO_RDMA_CQE_WITH_IMM * 2 == IBV_WC_WITH_IMM, "see vrdma_wc_flags()");
static_assert((int)VIRTIO_RDMA_CQE_WITH_INV * 4 == IBV_WC_WITH_INV, "see vrdma_wc_flags()");
static_assert((int)VIRTIO_RDMA_CQE_GRH / 4 == IBV_WC_GRH, "see vrdma_wc_flags()");

static unsigned int vrdma_wc_flags(uint8_t flags)
{
	return (flags & VIRTIO_RDMA_CQE_WITH_IMM) * 2u + (flags & VIRTIO_RDMA_CQE_WITH_INV) * 4u +
	       (flags & VIRTIO_RDMA_CQE_GRH) / 4u;
}

static struct vrdma_qp *vrdma_cq_find_qp(struct vrdma_cq *cq, uint32_t qpn)
{
	struct vrdma_qp *qp = cq->last_qp;

	if (likely(qp && vrdma_ibv_qp(qp)->qp_num == qpn))
		return qp;
	qp = vrdma_find_qp(to_vctx(cq->ibv_cq.context), qpn);
	cq->last_qp = qp;
	return qp;
}

/*
 * Whether there is nothing to poll, seen without the lock. Who spins on an empty CQ does so without
 * a locked operation. That the ring is the current one before and after the look means that it was
 * looked at in time.
 */
static bool vrdma_nothing_to_poll(struct vrdma_cq *cq)
{
	struct vrdma_cq_ring *ring = atomic_load_explicit(&cq->current, memory_order_acquire);

	return vrdma_cq_empty(&ring->ring) &&
	       likely(atomic_load_explicit(&cq->current, memory_order_relaxed) == ring);
}

/* Begins a walk. The caller holds the lock until the walk has ended. */
static void vrdma_poll_begin(struct vrdma_cq *cq, struct vrdma_poll *poll)
{
	poll->ring = atomic_load_explicit(&cq->current, memory_order_relaxed);
	poll->next = vrdma_cq_consumer(&poll->ring->ring);
	poll->told = poll->next;
	poll->give.wq = NULL;
}

/* Ends a walk: stores the consumer index, and gives back what the CQEs polled free. */
static void vrdma_poll_end(struct vrdma_cq *cq, struct vrdma_poll *poll)
{
	if (poll->next == poll->told)
		return;
	vrdma_give_back_now(&poll->give, &poll->ring->ring, poll->next);
	if (unlikely(poll->ring->next))
		vrdma_cq_next_ring(cq);
}

/*
 * The next CQE, whose last word is in `poll->last`; NULL if there is none. Its slot is the caller's
 * until the next call or the end of the walk. The consumer index is stored at the end, or once a run
 * of CQEs of the same queue. A CQE of a QP that is not ours any more is dropped; vrdma_destroy_qp()
 * leaves none behind. That of an XRC target may be of a QP that never was ours.
 */
static inline const struct virtio_rdma_cqe *vrdma_poll_next(struct vrdma_cq *cq,
							     struct vrdma_poll *poll)
{
	for (;;) {
		struct vrdma_ring_cq *ring = &poll->ring->ring;
		const struct virtio_rdma_cqe *cqe;
		struct vrdma_qp *qp;
		struct vrdma_wq *wq;
		uint32_t n = poll->next;

		if (unlikely(poll->ring->next && n == poll->ring->end)) {
			/* The current ring never is at its end before a walk. */
			vrdma_poll_end(cq, poll);
			vrdma_poll_begin(cq, poll);
			continue;
		}
		if (!vrdma_cqe_valid(ring, n, &poll->last))
			return NULL;
		poll->next = n + 1;
		cqe = vrdma_cq_slot(ring, n);
		qp = vrdma_cq_find_qp(cq, vrdma_cqe_qpn(poll->last));
		if (vrdma_cqe_flags(poll->last) & VIRTIO_RDMA_CQE_SEND_QUEUE) {
			if (unlikely(!qp))
				continue;
			wq = &qp->sq;
		} else {
			if (unlikely(!qp && !cq->xrc_srqs))
				continue;
			/* An SRQ's slots are not freed by CQEs. */
			wq = qp && qp->rq.entries ? &qp->rq : NULL;
		}
		if (wq)
			vrdma_give_back(&poll->give, ring, n, wq, le32toh(cqe->wqe_count));
		return cqe;
	}
}

/* At most `num_entries` completions; returns how many. */
int vrdma_poll_cq(struct ibv_cq *ibv_cq, int num_entries, struct ibv_wc *wc)
{
	struct vrdma_cq *cq = to_vcq(ibv_cq);
	const struct virtio_rdma_cqe *cqe;
	struct vrdma_poll poll;
	int polled = 0;

	if (vrdma_nothing_to_poll(cq))
		return 0;
	vrdma_lock(&cq->lock);
	vrdma_poll_begin(cq, &poll);
	while (polled < num_entries && (cqe = vrdma_poll_next(cq, &poll))) {
		uint8_t flags = vrdma_cqe_flags(poll.last);

		wc->wr_id = le64toh(cqe->wr_id);
		wc->status = (enum ibv_wc_status)vrdma_cqe_status(poll.last);
		wc->opcode = (enum ibv_wc_opcode)vrdma_cqe_opcode(poll.last);
		wc->vendor_err = le32toh(cqe->vendor_err);
		wc->byte_len = le32toh(cqe->byte_len);
		/* Immediate data stays in network order; a key is a number. */
		if (flags & VIRTIO_RDMA_CQE_WITH_INV)
			wc->invalidated_rkey = le32toh(cqe->imm);
		else
			wc->imm_data = (__be32)cqe->imm;
		wc->qp_num = vrdma_cqe_qpn(poll.last);
		wc->src_qp = le32toh(cqe->src_qpn);
		wc->wc_flags = vrdma_wc_flags(flags);
		wc->pkey_index = 0;
		wc->slid = 0;
		wc->sl = cqe->sl;
		wc->dlid_path_bits = 0;
		wc++;
		polled++;
	}
	vrdma_poll_end(cq, &poll);
	vrdma_unlock(&cq->lock);
	return polled;
}

/* No system call: the device looks at the arm word after each burst of CQEs. */
int vrdma_req_notify_cq(struct ibv_cq *ibv_cq, int solicited_only)
{
	struct vrdma_cq *cq = to_vcq(ibv_cq);

	vrdma_lock(&cq->lock);
	vrdma_cq_arm(&cq->newest->ring, solicited_only != 0);
	vrdma_unlock(&cq->lock);
	return 0;
}

/* ---- ibv_start_poll and its family ---- */

static struct vrdma_cq *to_vcq_ex(struct ibv_cq_ex *cq)
{
	return container_of(cq, struct vrdma_cq, vcq.cq_ex);
}

/* Goes to the next CQE. 0, or ENOENT. */
static int vrdma_step(struct vrdma_cq *cq)
{
	cq->cqe = vrdma_poll_next(cq, &cq->poll);
	if (!cq->cqe)
		return ENOENT;
	cq->vcq.cq_ex.wr_id = le64toh(cq->cqe->wr_id);
	cq->vcq.cq_ex.status = (enum ibv_wc_status)vrdma_cqe_status(cq->poll.last);
	return 0;
}

static int vrdma_start_poll(struct ibv_cq_ex *cq_ex, struct ibv_poll_cq_attr *attr)
{
	struct vrdma_cq *cq = to_vcq_ex(cq_ex);

	if (unlikely(attr->comp_mask))
		return EINVAL;
	if (vrdma_nothing_to_poll(cq))
		return ENOENT;
	vrdma_lock(&cq->lock);
	vrdma_poll_begin(cq, &cq->poll);
	if (vrdma_step(cq)) {
		/* The program does not call ibv_end_poll() then. */
		vrdma_poll_end(cq, &cq->poll);
		vrdma_unlock(&cq->lock);
		return ENOENT;
	}
	return 0;
}

static int vrdma_next_poll(struct ibv_cq_ex *cq)
{
	return vrdma_step(to_vcq_ex(cq));
}

static void vrdma_end_poll(struct ibv_cq_ex *cq_ex)
{
	struct vrdma_cq *cq = to_vcq_ex(cq_ex);

	vrdma_poll_end(cq, &cq->poll);
	vrdma_unlock(&cq->lock);
}

static enum ibv_wc_opcode vrdma_read_opcode(struct ibv_cq_ex *cq)
{
	return (enum ibv_wc_opcode)vrdma_cqe_opcode(to_vcq_ex(cq)->poll.last);
}

static uint32_t vrdma_read_vendor_err(struct ibv_cq_ex *cq)
{
	return le32toh(to_vcq_ex(cq)->cqe->vendor_err);
}

static unsigned int vrdma_read_wc_flags(struct ibv_cq_ex *cq)
{
	return vrdma_wc_flags(vrdma_cqe_flags(to_vcq_ex(cq)->poll.last));
}

static uint32_t vrdma_read_byte_len(struct ibv_cq_ex *cq)
{
	return le32toh(to_vcq_ex(cq)->cqe->byte_len);
}

/* Also reads the key that was invalidated, which a program takes for a number of the host's order. */
static __be32 vrdma_read_imm_data(struct ibv_cq_ex *cq)
{
	const struct virtio_rdma_cqe *cqe = to_vcq_ex(cq)->cqe;

	if (vrdma_cqe_flags(to_vcq_ex(cq)->poll.last) & VIRTIO_RDMA_CQE_WITH_INV)
		return (__be32)le32toh(cqe->imm);
	return (__be32)cqe->imm;
}

static uint32_t vrdma_read_qp_num(struct ibv_cq_ex *cq)
{
	return vrdma_cqe_qpn(to_vcq_ex(cq)->poll.last);
}

static uint32_t vrdma_read_src_qp(struct ibv_cq_ex *cq)
{
	return le32toh(to_vcq_ex(cq)->cqe->src_qpn);
}

/* RoCE has no local identifiers (IBA annex A17). */
static uint32_t vrdma_read_slid(struct ibv_cq_ex *cq)
{
	(void)cq;
	return 0;
}

static uint8_t vrdma_read_sl(struct ibv_cq_ex *cq)
{
	return to_vcq_ex(cq)->cqe->sl;
}

static uint8_t vrdma_read_dlid_path_bits(struct ibv_cq_ex *cq)
{
	(void)cq;
	return 0;
}

static uint64_t vrdma_read_completion_ts(struct ibv_cq_ex *cq)
{
	return le64toh(to_vcq_ex(cq)->cqe->timestamp);
}

static uint64_t vrdma_read_completion_wallclock_ns(struct ibv_cq_ex *cq)
{
	return le64toh(to_vcq_ex(cq)->cqe->wall_clock);
}

void vrdma_cq_ex_init(struct ibv_cq_ex *cq, uint64_t wc_flags)
{
	cq->start_poll = vrdma_start_poll;
	cq->next_poll = vrdma_next_poll;
	cq->end_poll = vrdma_end_poll;
	cq->read_opcode = vrdma_read_opcode;
	cq->read_vendor_err = vrdma_read_vendor_err;
	cq->read_wc_flags = vrdma_read_wc_flags;
	if (wc_flags & IBV_WC_EX_WITH_BYTE_LEN)
		cq->read_byte_len = vrdma_read_byte_len;
	if (wc_flags & IBV_WC_EX_WITH_IMM)
		cq->read_imm_data = vrdma_read_imm_data;
	if (wc_flags & IBV_WC_EX_WITH_QP_NUM)
		cq->read_qp_num = vrdma_read_qp_num;
	if (wc_flags & IBV_WC_EX_WITH_SRC_QP)
		cq->read_src_qp = vrdma_read_src_qp;
	if (wc_flags & IBV_WC_EX_WITH_SLID)
		cq->read_slid = vrdma_read_slid;
	if (wc_flags & IBV_WC_EX_WITH_SL)
		cq->read_sl = vrdma_read_sl;
	if (wc_flags & IBV_WC_EX_WITH_DLID_PATH_BITS)
		cq->read_dlid_path_bits = vrdma_read_dlid_path_bits;
	if (wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP)
		cq->read_completion_ts = vrdma_read_completion_ts;
	if (wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK)
		cq->read_completion_wallclock_ns = vrdma_read_completion_wallclock_ns;
}
