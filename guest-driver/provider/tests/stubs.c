// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * See stubs.h. QPNs count from 0x1001, so that they fill several entries of one table.
 */
#include "stubs.h"

#include <stdlib.h>
#include <string.h>

struct virtio_rdma_ureq_create_qp stub_last_qp;
struct virtio_rdma_ureq_create_cq stub_last_cq;
unsigned int stub_rings;
uint32_t stub_ring_vector;

static uint32_t next_qpn = 0x1001, next_slot, next_cqn = 1;

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

int ibv_cmd_create_cq(struct ibv_context *context, int cqe, struct ibv_comp_channel *channel,
		      int comp_vector, struct ibv_cq *cq, struct ibv_create_cq *cmd,
		      size_t cmd_size, struct ib_uverbs_create_cq_resp *resp, size_t resp_size)
{
	struct virtio_rdma_uresp_create_cq *drv = (void *)(resp + 1);

	(void)channel;
	(void)comp_vector;
	(void)resp_size;
	memcpy(&stub_last_cq, (char *)cmd + cmd_size - sizeof(stub_last_cq), sizeof(stub_last_cq));
	drv->cqn = next_cqn++;
	cq->context = context;
	cq->cqe = cqe;
	return 0;
}

int ibv_cmd_destroy_cq(struct ibv_cq *cq)
{
	(void)cq;
	return 0;
}

int ibv_cmd_create_qp_ex(struct ibv_context *context, struct verbs_qp *vqp,
			 struct ibv_qp_init_attr_ex *attr, struct ibv_create_qp *cmd,
			 size_t cmd_size, struct ib_uverbs_create_qp_resp *resp, size_t resp_size)
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
