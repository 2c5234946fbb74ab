// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The devices by themselves: what a benchmark of the daemon holds against them. */
#include "stub.h"

#include <time.h>

#define MEASURED 64

/* Two QPs, and memory that both know. */
struct bench {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_mr *mr;
	struct ibv_qp *qps[2];
	uint8_t *page;
};

static int connect_qps(struct bench *b)
{
	struct ibv_qp_init_attr init = { .send_cq = b->cq, .recv_cq = b->cq, .cap = { 16, 16, 1, 1, 0 }, .qp_type = QPT_RC };

	for (int n = 0; n < 2; n++) {
		b->qps[n] = ibv_create_qp(b->pd, &init);
		if (!b->qps[n])
			return -1;
	}
	for (int n = 0; n < 2; n++) {
		struct ibv_qp_attr a = { .dest_qp_num = b->qps[!n]->qp_num, .qp_access_flags = A_REMOTE_WRITE };

		a.ah_attr.is_global = a.ah_attr.port_num = 1;
		ibv_query_gid(b->context, 1, 3, a.ah_attr.grh.dgid);
		for (a.qp_state = INIT; a.qp_state <= RTS; a.qp_state++)
			if (ibv_modify_qp(b->qps[n], &a, 1 | 0x8 | 0x80 | 0x100000))
				return -1;
	}
	return 0;
}

static int run(struct bench *b, uint64_t ops)
{
	struct ibv_sge sge = { (uintptr_t)b->page, MEASURED, b->mr->lkey };

	for (uint64_t n = 0; n < ops; n++) {
		struct ibv_send_wr *bad, wr = { .wr_id = n, .sg_list = &sge, .num_sge = 1, .opcode = WR_WRITE, .send_flags = F_SIGNALED };
		struct ibv_wc wc;

		wr.wr.rdma.remote_addr = (uintptr_t)b->page + 2048;
		wr.wr.rdma.rkey = b->mr->rkey;
		if (b->context->ops.post_send(b->qps[0], &wr, &bad))
			return -1;
		while (!b->context->ops.poll_cq(b->cq, 1, &wc))
			;
		if (wc.status != OK)
			return -1;
	}
	return 0;
}

/* Nanoseconds that so many WRITEs of 64 bytes take on "stub0", each posted and polled before the next; -1: they failed. */
API int64_t stub_post_and_poll(uint64_t ops)
{
	struct bench b = { 0 };
	struct timespec from, to;
	int error = -1;

	b.context = ibv_open_device(&devices[0].base);
	b.pd = b.context ? ibv_alloc_pd(b.context) : NULL;
	b.cq = b.pd ? ibv_create_cq(b.context, 16, NULL, NULL, 0) : NULL;
	b.page = aligned_alloc(4096, 4096);
	if (b.page)
		memset(b.page, 1, 4096);
	b.mr = b.cq && b.page ? ibv_reg_mr_iova(b.pd, b.page, 4096, (uintptr_t)b.page, A_LOCAL_WRITE | A_REMOTE_WRITE) : NULL;
	if (b.mr && !connect_qps(&b) && !run(&b, ops / 8 + 1)) {
		clock_gettime(CLOCK_MONOTONIC, &from);
		error = run(&b, ops);
		clock_gettime(CLOCK_MONOTONIC, &to);
	}
	for (int n = 0; n < 2; n++)
		if (b.qps[n])
			ibv_destroy_qp(b.qps[n]);
	if (b.mr)
		ibv_dereg_mr(b.mr);
	if (b.cq)
		ibv_destroy_cq(b.cq);
	if (b.pd)
		ibv_dealloc_pd(b.pd);
	if (b.context)
		ibv_close_device(b.context);
	free(b.page);
	return error ? -1 : (to.tv_sec - from.tv_sec) * 1000000000 + (to.tv_nsec - from.tv_nsec);
}
