// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Completion queues: creating, polling, arming. How a CQE is recognised is in ring.h.
 */
#include <errno.h>
#include <stdlib.h>

#include "vrdma.h"

struct vrdma_create_cq_cmd {
	struct ibv_create_cq ibv_cmd;
	struct virtio_rdma_ureq_create_cq drv;
};
static_assert(offsetof(struct vrdma_create_cq_cmd, drv) == sizeof(struct ibv_create_cq),
	      "the driver's part follows the core's without a gap");

struct vrdma_create_cq_resp {
	struct ib_uverbs_create_cq_resp ibv_resp;
	struct virtio_rdma_uresp_create_cq drv;
};
static_assert(offsetof(struct vrdma_create_cq_resp, drv) ==
		      sizeof(struct ib_uverbs_create_cq_resp),
	      "the driver's part follows the core's without a gap");

/* The device's numbers are libibverbs's. */
static_assert((int)VIRTIO_RDMA_WC_OP_SEND == IBV_WC_SEND, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_RDMA_WRITE == IBV_WC_RDMA_WRITE, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_RDMA_READ == IBV_WC_RDMA_READ, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_COMP_SWAP == IBV_WC_COMP_SWAP, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_FETCH_ADD == IBV_WC_FETCH_ADD, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_RECV == IBV_WC_RECV, "opcodes");
static_assert((int)VIRTIO_RDMA_WC_OP_RECV_RDMA_WITH_IMM == IBV_WC_RECV_RDMA_WITH_IMM, "opcodes");
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
 * At most `num_entries` completions; returns how many. The consumer index is stored once, or once
 * a run of CQEs of the same queue. A CQE of a QP that is not ours any more is dropped;
 * vrdma_destroy_qp() leaves none behind.
 */
int vrdma_poll_cq(struct ibv_cq *ibv_cq, int num_entries, struct ibv_wc *wc)
{
	struct vrdma_cq *cq = to_vcq(ibv_cq);
	struct vrdma_give_back give = {};
	uint32_t n, before;
	int polled = 0;

	/* Who spins on an empty CQ does so without a locked operation. */
	if (vrdma_cq_empty(&cq->ring))
		return 0;
	vrdma_lock(&cq->lock);
	before = vrdma_cq_consumer(&cq->ring);
	for (n = before; polled < num_entries; n++) {
		const struct virtio_rdma_cqe *cqe;
		struct vrdma_qp *qp;
		uint64_t last;
		uint8_t flags;

		if (!vrdma_cqe_valid(&cq->ring, n, &last))
			break;
		qp = vrdma_cq_find_qp(cq, vrdma_cqe_qpn(last));
		if (unlikely(!qp))
			continue;

		cqe = vrdma_cq_slot(&cq->ring, n);
		flags = vrdma_cqe_flags(last);
		vrdma_give_back(&give, &cq->ring, n,
				flags & VIRTIO_RDMA_CQE_SEND_QUEUE ? &qp->sq : &qp->rq,
				le32toh(cqe->wqe_count));
		wc->wr_id = le64toh(cqe->wr_id);
		wc->status = (enum ibv_wc_status)vrdma_cqe_status(last);
		wc->opcode = (enum ibv_wc_opcode)vrdma_cqe_opcode(last);
		wc->vendor_err = le32toh(cqe->vendor_err);
		wc->byte_len = le32toh(cqe->byte_len);
		/* Immediate data stays in network order; a key is a number. */
		if (flags & VIRTIO_RDMA_CQE_WITH_INV)
			wc->invalidated_rkey = le32toh(cqe->imm);
		else
			wc->imm_data = (__be32)cqe->imm;
		wc->qp_num = vrdma_cqe_qpn(last);
		wc->src_qp = le32toh(cqe->src_qpn);
		wc->wc_flags = vrdma_wc_flags(flags);
		wc->pkey_index = 0;
		wc->slid = 0;
		wc->sl = 0;
		wc->dlid_path_bits = 0;
		wc++;
		polled++;
	}
	if (n != before)
		vrdma_give_back_now(&give, &cq->ring, n);
	vrdma_unlock(&cq->lock);
	return polled;
}

/* No system call: the device looks at the arm word after each burst of CQEs. */
int vrdma_req_notify_cq(struct ibv_cq *ibv_cq, int solicited_only)
{
	struct vrdma_cq *cq = to_vcq(ibv_cq);

	vrdma_lock(&cq->lock);
	vrdma_cq_arm(&cq->ring, solicited_only != 0);
	vrdma_unlock(&cq->lock);
	return 0;
}

/*
 * The device writes behind the last valid CQE only, so the CQEs that stay can move towards it,
 * over those that go. A CQE that moves to another slot takes on the phase of that slot.
 */
void vrdma_cq_clean(struct vrdma_cq *cq, uint32_t qpn)
{
	struct vrdma_ring_cq *ring = &cq->ring;
	uint32_t begin = vrdma_cq_consumer(ring), end = begin, gone = 0;
	uint64_t last;

	cq->last_qp = NULL;
	while (end - begin < ring->entries && vrdma_cqe_valid(ring, end, &last))
		end++;
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

struct ibv_cq *vrdma_create_cq(struct ibv_context *context, int cqe,
			       struct ibv_comp_channel *channel, int comp_vector)
{
	struct vrdma_context *ctx = to_vctx(context);
	struct vrdma_create_cq_resp resp = {};
	struct vrdma_create_cq_cmd cmd = {};
	struct vrdma_cq *cq;
	uint8_t shift = 0;
	size_t bytes;
	int err;

	if (cqe < 1 || (uint32_t)cqe > ctx->info.max_cqe) {
		errno = EINVAL;
		return NULL;
	}
	while ((UINT32_C(1) << shift) < (uint32_t)cqe)
		shift++;
	cq = calloc(1, sizeof(*cq));
	if (!cq)
		return NULL;
	vrdma_lock_init(&cq->lock);
	cq->ring.entries_shift = shift;
	cq->ring.entries = UINT32_C(1) << shift;
	bytes = VIRTIO_RDMA_CQ_RING_OFFSET + (size_t)cq->ring.entries * VIRTIO_RDMA_CQE_BYTES;
	cq->buf_bytes = (bytes + ctx->page_size - 1) & ~(ctx->page_size - 1);
	cq->ring.buf = vrdma_alloc_pages(cq->buf_bytes);
	if (!cq->ring.buf) {
		err = errno;
		goto free_cq;
	}

	cmd.drv.buf_addr = (uintptr_t)cq->ring.buf;
	cmd.drv.buf_bytes = (uint32_t)cq->buf_bytes;
	cmd.drv.entries = cq->ring.entries;
	err = ibv_cmd_create_cq(context, (int)cq->ring.entries, channel, comp_vector, &cq->ibv_cq,
				&cmd.ibv_cmd, sizeof(cmd), &resp.ibv_resp, sizeof(resp));
	if (err)
		goto free_buf;
	cq->cqn = resp.drv.cqn;
	cq->ibv_cq.cqe = (int)cq->ring.entries;
	return &cq->ibv_cq;

free_buf:
	vrdma_free_pages(cq->ring.buf, cq->buf_bytes);
free_cq:
	free(cq);
	errno = err;
	return NULL;
}

int vrdma_destroy_cq(struct ibv_cq *ibv_cq)
{
	struct vrdma_cq *cq = to_vcq(ibv_cq);
	int err = ibv_cmd_destroy_cq(ibv_cq);

	if (err)
		return err;
	vrdma_free_pages(cq->ring.buf, cq->buf_bytes);
	free(cq);
	return 0;
}
