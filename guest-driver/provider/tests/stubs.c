// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * See stubs.h. QPNs count from 0x1001, so that they fill several entries of one table.
 */
#include "stubs.h"

#include <stdlib.h>
#include <string.h>

struct virtio_rdma_ureq_create_qp stub_last_qp;
struct virtio_rdma_ureq_create_cq stub_last_cq;
struct virtio_rdma_ureq_create_srq stub_last_srq;
struct virtio_rdma_ureq_resize_cq stub_last_resize;
int stub_resize_error;
uint32_t stub_resize_old_cqes;
unsigned int stub_rings;
uint32_t stub_ring_vector;

static uint32_t next_qpn = 0x1001, next_slot, next_cqn = 1, next_handle = 1;

struct vrdma_context *stub_context(void)
{
	struct vrdma_context *ctx = calloc(1, sizeof(*ctx));

	ctx->info.uar_bytes = 4096;
	ctx->info.num_comp_vectors = 1;
	ctx->info.max_inline = STUB_MAX_INLINE;
	ctx->info.max_send_sge = STUB_MAX_SGE;
	ctx->info.max_recv_sge = STUB_MAX_SGE;
	ctx->info.max_qp_wr = STUB_MAX_WR;
	ctx->info.max_cqe = STUB_MAX_CQE;
	ctx->info.max_srq_wr = STUB_MAX_WR;
	ctx->info.max_srq_sge = STUB_MAX_SGE;
	ctx->info.capabilities = UINT64_MAX;
	ctx->page_size = 4096;
	ctx->uar = vrdma_alloc_pages(4096);
	ctx->status = vrdma_alloc_pages(4096);
	pthread_mutex_init(&ctx->qp_table_mutex, NULL);
	next_slot = 0;
	stub_rings = 0;
	return ctx;
}

void stub_context_free(struct vrdma_context *ctx)
{
	vrdma_free_qp_tables(ctx);
	vrdma_free_pages(ctx->uar, 4096);
	vrdma_free_pages((void *)ctx->status, 4096);
	free(ctx);
}

void vrdma_ring_doorbell(struct vrdma_context *ctx, uint32_t vector)
{
	(void)ctx;
	stub_rings++;
	stub_ring_vector = vector;
}

void stub_put_cqe(struct vrdma_ring_cq *ring, uint32_t n, uint32_t qpn, uint64_t wr_id,
		  uint32_t count, uint8_t flags)
{
	struct virtio_rdma_cqe *cqe = vrdma_cq_slot(ring, n), last = {};
	uint64_t word;

	memset(cqe, 0, VRDMA_CQE_LAST);
	cqe->wr_id = htole64(wr_id);
	cqe->wqe_count = htole32(count);
	cqe->byte_len = htole32(77);
	cqe->imm = htobe32(0xabcdef01);
	cqe->timestamp = htole64(1000 + n);
	cqe->wall_clock = htole64(2000 + n);
	last.qpn = htole32(qpn);
	last.opcode = flags & VIRTIO_RDMA_CQE_SEND_QUEUE ? VIRTIO_RDMA_WC_OP_SEND :
							    VIRTIO_RDMA_WC_OP_RECV;
	last.flags = flags;
	last.phase = (uint8_t)vrdma_phase(n, ring->entries_shift);
	memcpy(&word, (char *)&last + VRDMA_CQE_LAST, sizeof(word));
	atomic_store_explicit((_Atomic uint64_t *)((char *)cqe + VRDMA_CQE_LAST), word,
			      memory_order_release);
}

int ibv_cmd_create_cq_ex(struct ibv_context *context, const struct ibv_cq_init_attr_ex *attr,
			 struct verbs_cq *cq, struct ibv_create_cq_ex *cmd, size_t cmd_size,
			 struct ib_uverbs_ex_create_cq_resp *resp, size_t resp_size,
			 uint32_t cmd_flags)
{
	struct virtio_rdma_uresp_create_cq *drv = (void *)(resp + 1);

	(void)resp_size;
	(void)cmd_flags;
	memcpy(&stub_last_cq, (char *)cmd + cmd_size - sizeof(stub_last_cq), sizeof(stub_last_cq));
	drv->cqn = next_cqn++;
	cq->cq.context = context;
	cq->cq.cqe = (int)attr->cqe;
	return 0;
}

int ibv_cmd_resize_cq(struct ibv_cq *cq, int cqe, struct ibv_resize_cq *cmd, size_t cmd_size,
		      struct ib_uverbs_resize_cq_resp *resp, size_t resp_size)
{
	struct virtio_rdma_uresp_resize_cq *drv = (void *)(resp + 1);

	(void)resp_size;
	if (stub_resize_error)
		return stub_resize_error;
	memcpy(&stub_last_resize, (char *)cmd + cmd_size - sizeof(stub_last_resize),
	       sizeof(stub_last_resize));
	drv->old_cqes = stub_resize_old_cqes;
	cq->cqe = cqe;
	return 0;
}

int ibv_cmd_destroy_cq(struct ibv_cq *cq)
{
	(void)cq;
	return 0;
}

int ibv_cmd_create_qp_ex2(struct ibv_context *context, struct verbs_qp *vqp,
			  struct ibv_qp_init_attr_ex *attr, struct ibv_create_qp_ex *cmd,
			  size_t cmd_size, struct ib_uverbs_ex_create_qp_resp *resp,
			  size_t resp_size)
{
	struct ibv_qp *qp = &vqp->qp;
	struct virtio_rdma_uresp_create_qp *drv = (void *)(resp + 1);

	(void)resp_size;
	memcpy(&stub_last_qp, (char *)cmd + cmd_size - sizeof(stub_last_qp), sizeof(stub_last_qp));
	qp->context = context;
	qp->pd = attr->pd;
	qp->send_cq = attr->send_cq;
	qp->recv_cq = attr->recv_cq;
	qp->qp_type = attr->qp_type;
	qp->state = IBV_QPS_RESET;
	qp->qp_num = next_qpn++;
	drv->qpn = qp->qp_num;
	drv->slot = next_slot++;
	return 0;
}

int ibv_cmd_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask,
		      struct ibv_modify_qp *cmd, size_t cmd_size)
{
	(void)cmd;
	(void)cmd_size;
	if (attr_mask & IBV_QP_STATE)
		qp->state = attr->qp_state;
	return 0;
}

int ibv_cmd_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask,
		     struct ibv_qp_init_attr *init_attr, struct ibv_query_qp *cmd, size_t cmd_size)
{
	(void)attr_mask;
	(void)cmd;
	(void)cmd_size;
	memset(attr, 0, sizeof(*attr));
	memset(init_attr, 0, sizeof(*init_attr));
	attr->qp_state = qp->state;
	return 0;
}

int ibv_cmd_destroy_qp(struct ibv_qp *qp)
{
	(void)qp;
	return 0;
}

int ibv_cmd_create_srq_ex(struct ibv_context *context, struct verbs_srq *vsrq,
			  struct ibv_srq_init_attr_ex *attr, struct ibv_create_xsrq *cmd,
			  size_t cmd_size, struct ib_uverbs_create_srq_resp *resp,
			  size_t resp_size)
{
	struct virtio_rdma_uresp_create_srq *drv = (void *)(resp + 1);

	(void)resp_size;
	memcpy(&stub_last_srq, (char *)cmd + cmd_size - sizeof(stub_last_srq),
	       sizeof(stub_last_srq));
	vsrq->srq.context = context;
	vsrq->srq_type = attr->srq_type;
	vsrq->cq = attr->cq;
	vsrq->srq_num = 0x55;
	drv->slot = next_slot++;
	return 0;
}

/* As the kernel would, it takes the ring over before it answers. */
int ibv_cmd_modify_srq(struct ibv_srq *srq, struct ibv_srq_attr *attr, int mask,
		       struct ibv_modify_srq *cmd, size_t cmd_size)
{
	struct virtio_rdma_srq_device_line *before, *after;

	(void)attr;
	if (!(mask & IBV_SRQ_MAX_WR))
		return 0;
	if (stub_resize_error)
		return stub_resize_error;
	memcpy(&stub_last_srq, (char *)cmd + cmd_size - sizeof(stub_last_srq),
	       sizeof(stub_last_srq));
	before = (void *)to_vsrq(srq)->buf.addr;
	after = (void *)(uintptr_t)stub_last_srq.buf_addr;
	after->consumer = before->consumer;
	after->mode = before->mode;
	return 0;
}

int ibv_cmd_alloc_pd(struct ibv_context *context, struct ibv_pd *pd, struct ibv_alloc_pd *cmd,
		     size_t cmd_size, struct ib_uverbs_alloc_pd_resp *resp, size_t resp_size)
{
	(void)cmd;
	(void)cmd_size;
	(void)resp;
	(void)resp_size;
	pd->context = context;
	pd->handle = next_handle++;
	return 0;
}

int ibv_cmd_alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type, struct ibv_mw *mw,
		     struct ibv_alloc_mw *cmd, size_t cmd_size,
		     struct ib_uverbs_alloc_mw_resp *resp, size_t resp_size)
{
	(void)cmd;
	(void)cmd_size;
	(void)resp;
	(void)resp_size;
	mw->pd = pd;
	mw->type = type;
	mw->rkey = 0x1100;
	return 0;
}

/* Of which the tests need only that they work. */
#define STUB_SUCCEEDS(name, ...)                                                           \
	int name(__VA_ARGS__)                                                              \
	{                                                                                  \
		return 0;                                                                  \
	}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
STUB_SUCCEEDS(ibv_cmd_dealloc_pd, struct ibv_pd *pd)
STUB_SUCCEEDS(ibv_cmd_dealloc_mw, struct ibv_mw *mw)
STUB_SUCCEEDS(ibv_cmd_destroy_srq, struct ibv_srq *srq)
STUB_SUCCEEDS(ibv_cmd_query_srq, struct ibv_srq *srq, struct ibv_srq_attr *attr,
	      struct ibv_query_srq *cmd, size_t cmd_size)
STUB_SUCCEEDS(ibv_cmd_modify_cq, struct ibv_cq *cq, struct ibv_modify_cq_attr *attr,
	      struct ibv_modify_cq *cmd, size_t cmd_size)
STUB_SUCCEEDS(ibv_cmd_open_qp, struct ibv_context *context, struct verbs_qp *qp, int vqp_size,
	      struct ibv_qp_open_attr *attr, struct ibv_open_qp *cmd, size_t cmd_size,
	      struct ib_uverbs_create_qp_resp *resp, size_t resp_size)
STUB_SUCCEEDS(ibv_cmd_open_xrcd, struct ibv_context *context, struct verbs_xrcd *xrcd, int size,
	      struct ibv_xrcd_init_attr *attr, struct ibv_open_xrcd *cmd, size_t cmd_size,
	      struct ib_uverbs_open_xrcd_resp *resp, size_t resp_size)
STUB_SUCCEEDS(ibv_cmd_close_xrcd, struct verbs_xrcd *xrcd)
STUB_SUCCEEDS(ibv_cmd_reg_mr, struct ibv_pd *pd, void *addr, size_t length, uint64_t hca_va,
	      int access, struct verbs_mr *mr, struct ibv_reg_mr *cmd, size_t cmd_size,
	      struct ib_uverbs_reg_mr_resp *resp, size_t resp_size)
STUB_SUCCEEDS(ibv_cmd_reg_dmabuf_mr, struct ibv_pd *pd, uint64_t offset, size_t length,
	      uint64_t iova, int fd, int access, struct verbs_mr *mr,
	      struct ibv_command_buffer *driver)
STUB_SUCCEEDS(ibv_cmd_advise_mr, struct ibv_pd *pd, enum ibv_advise_mr_advice advice,
	      uint32_t flags, struct ibv_sge *sg_list, uint32_t num_sge)
STUB_SUCCEEDS(ibv_cmd_rereg_mr, struct verbs_mr *mr, uint32_t flags, void *addr, size_t length,
	      uint64_t hca_va, int access, struct ibv_pd *pd, struct ibv_rereg_mr *cmd,
	      size_t cmd_size, struct ib_uverbs_rereg_mr_resp *resp, size_t resp_size)
STUB_SUCCEEDS(ibv_cmd_dereg_mr, struct verbs_mr *mr)
STUB_SUCCEEDS(ibv_cmd_query_mr, struct ibv_pd *pd, struct verbs_mr *mr, uint32_t handle)
STUB_SUCCEEDS(ibv_dontfork_range, void *base, size_t size)
STUB_SUCCEEDS(ibv_dofork_range, void *base, size_t size)
#pragma GCC diagnostic pop
