// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Tests of the verbs about other objects than plain QPs and CQs: SRQs, CQs that are resized, extended
 * CQs, domains, windows, XRC. The device is stubs.c and this file. Plain ones are in verbs_test.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stubs.h"
#include "wqe.h"

static struct vrdma_context *ctx;
static struct ibv_context *context;
static struct ibv_pd *pd;

static struct vrdma_cq *cq_of(int entries)
{
	struct ibv_cq *cq = vrdma_create_cq(context, entries, NULL, 0);

	CHECK(cq);
	return to_vcq(cq);
}

static struct ibv_cq_ex *cq_ex_of(uint32_t entries, uint64_t wc_flags)
{
	struct ibv_cq_init_attr_ex attr = { .cqe = entries, .wc_flags = wc_flags };
	struct ibv_cq_ex *cq = vrdma_create_cq_ex(context, &attr);

	CHECK(cq);
	return cq;
}

/* A QP in RTS. */
static struct vrdma_qp *qp_of(struct vrdma_cq *cq, enum ibv_qp_type type, struct ibv_srq *srq)
{
	struct ibv_qp_init_attr attr = { .send_cq = &cq->ibv_cq, .recv_cq = &cq->ibv_cq,
					 .cap = { 4, 4, 2, 2, 32 }, .qp_type = type, .srq = srq };
	struct ibv_qp *qp = vrdma_create_qp(pd, &attr);

	CHECK(qp);
	qp->state = IBV_QPS_RTS;
	return to_vqp(qp);
}

static void an_srq_takes_as_many_as_the_device_has_taken_away(void)
{
	struct ibv_srq_init_attr attr = { .attr = { .max_wr = 3, .max_sge = 2 } };
	struct ibv_sge sges[4] = { { 0x1000, 7, 0x55 } };
	struct ibv_recv_wr wr[5] = {}, *bad;
	struct virtio_rdma_srq_device_line *line;
	const struct virtio_rdma_recv_wqe *wqe;
	struct vrdma_srq *srq;

	srq = to_vsrq(vrdma_create_srq(pd, &attr));
	line = (void *)srq->buf.addr;
	CHECK(attr.attr.max_wr == 4 && attr.attr.max_sge == 3 && stub_last_srq.entries == 4);
	CHECK(stub_last_srq.offset >= 64 && stub_last_srq.offset % 64 == 0);
	CHECK(stub_last_srq.buf_addr % 4096 == 0);
	CHECK(stub_last_srq.buf_bytes >= stub_last_srq.offset + (4u << stub_last_srq.stride_shift));
	for (int i = 0; i < 5; i++) {
		wr[i] = (struct ibv_recv_wr){ .wr_id = (uint64_t)i, .sg_list = sges, .num_sge = 1,
					      .next = i < 4 ? &wr[i + 1] : NULL };
	}
	CHECK(vrdma_post_srq_recv(&srq->vsrq.srq, wr, &bad) == ENOMEM && bad == &wr[4]);
	wqe = (void *)(srq->wq.ring + 64);
	CHECK(wqe->phase == 1 && wqe->num_sge == 1 && le64toh(wqe->wr_id) == 1);
	line->consumer = htole32(1);
	wr[4].num_sge = 4;
	CHECK(vrdma_post_srq_recv(&srq->vsrq.srq, &wr[4], &bad) == EINVAL && bad == &wr[4]);
	wr[4].num_sge = 1;
	CHECK(vrdma_post_srq_recv(&srq->vsrq.srq, &wr[4], &bad) == 0);
	wqe = (void *)srq->wq.ring;
	CHECK(wqe->phase == 0 && le64toh(wqe->wr_id) == 4);
	CHECK(vrdma_post_srq_recv(&srq->vsrq.srq, &wr[4], &bad) == ENOMEM);
	CHECK(vrdma_destroy_srq(&srq->vsrq.srq) == 0);

	attr = (struct ibv_srq_init_attr){ .attr = { .max_wr = STUB_MAX_WR + 1, .max_sge = 1 } };
	CHECK(!vrdma_create_srq(pd, &attr) && errno == EINVAL);
}

static void post_to(struct vrdma_srq *srq, uint64_t wr_id, int expected)
{
	struct ibv_recv_wr wr = { .wr_id = wr_id }, *bad;

	CHECK(vrdma_post_srq_recv(&srq->vsrq.srq, &wr, &bad) == expected);
}

static void check_srq_ring(const struct vrdma_srq *srq, uint32_t taken)
{
	for (uint32_t i = 0; i < srq->wq.entries; i++) {
		uint32_t n = taken + i;
		const struct virtio_rdma_recv_wqe *wqe =
			(void *)(srq->wq.ring +
				 ((size_t)(n & (srq->wq.entries - 1)) << srq->wq.stride_shift));
		bool posted = i < srq->wq.posted - taken;

		CHECK((wqe->phase == vrdma_phase(n, srq->wq.entries_shift)) == posted);
		CHECK(!posted || le64toh(wqe->wr_id) == n);
	}
}

static void a_resized_srq_keeps_what_is_posted_and_its_count(void)
{
	struct ibv_srq_init_attr init = { .attr = { .max_wr = 4, .max_sge = 2 } };
	struct vrdma_srq *srq = to_vsrq(vrdma_create_srq(pd, &init));
	struct ibv_srq_attr attr = { .max_wr = 2 };
	struct virtio_rdma_srq_device_line *line;
	uint64_t n = 0;

	while (n < 4)
		post_to(srq, n++, 0);
	post_to(srq, 0, ENOMEM);
	line = (void *)srq->buf.addr;
	line->consumer = htole32(1);
	CHECK(vrdma_modify_srq(&srq->vsrq.srq, &attr, IBV_SRQ_MAX_WR) == EINVAL);
	attr.max_wr = 0;
	CHECK(vrdma_modify_srq(&srq->vsrq.srq, &attr, IBV_SRQ_MAX_WR) == EINVAL);
	attr.max_wr = STUB_MAX_WR + 1;
	CHECK(vrdma_modify_srq(&srq->vsrq.srq, &attr, IBV_SRQ_MAX_WR) == EINVAL);
	attr = (struct ibv_srq_attr){ .max_wr = 8, .srq_limit = 9 };
	CHECK(vrdma_modify_srq(&srq->vsrq.srq, &attr, IBV_SRQ_MAX_WR | IBV_SRQ_LIMIT) == EINVAL);
	stub_resize_error = ENOSPC;
	CHECK(vrdma_modify_srq(&srq->vsrq.srq, &attr, IBV_SRQ_MAX_WR) == ENOSPC);
	stub_resize_error = 0;
	CHECK(srq->wq.entries == 4 && (void *)line == srq->buf.addr);
	attr = (struct ibv_srq_attr){ .max_wr = 7, .srq_limit = 2 };
	CHECK(vrdma_modify_srq(&srq->vsrq.srq, &attr, IBV_SRQ_MAX_WR | IBV_SRQ_LIMIT) == 0);
	CHECK(srq->wq.entries == 8 && stub_last_srq.entries == 8);
	check_srq_ring(srq, 1);
	while (n < 9)
		post_to(srq, n++, 0);
	post_to(srq, 0, ENOMEM);
	line = (void *)srq->buf.addr;
	line->consumer = htole32(8);
	attr.max_wr = 1;
	CHECK(vrdma_modify_srq(&srq->vsrq.srq, &attr, IBV_SRQ_MAX_WR) == 0);
	check_srq_ring(srq, 8);
	post_to(srq, 0, ENOMEM);
	CHECK(vrdma_destroy_srq(&srq->vsrq.srq) == 0);
}

static void a_qp_with_an_srq_has_no_receive_queue(void)
{
	struct ibv_srq_init_attr attr = { .attr = { .max_wr = 4, .max_sge = 1 } };
	struct ibv_srq *srq = vrdma_create_srq(pd, &attr);
	struct vrdma_cq *cq = cq_of(4);
	struct vrdma_qp *qp = qp_of(cq, IBV_QPT_RC, srq);
	struct ibv_wc wc;

	CHECK(stub_last_qp.rq_entries == 0 && stub_last_qp.sq_entries == 4);
	CHECK(qp->cap.max_recv_wr == 0);
	/* What a CQE of an SRQ says of free slots means nothing. */
	stub_put_cqe(&cq->first.ring, 0, qp->vqp.qp.qp_num, 7, 99, 0);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 1, &wc) == 1 && wc.wr_id == 7);
	CHECK(qp->rq.freed == 0 && qp->sq.freed == 0);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_srq(srq) == 0);
	CHECK(vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_resized_cq_is_polled_to_its_old_end_and_then_anew(void)
{
	struct vrdma_cq *cq = cq_of(4);
	struct vrdma_qp *qp = qp_of(cq, IBV_QPT_RC, NULL);
	uint32_t qpn = qp->vqp.qp.qp_num;
	struct vrdma_ring_cq *second, *third;
	struct virtio_rdma_cq_guest_line *guest;
	struct ibv_wc wc[8];

	stub_put_cqe(&cq->first.ring, 0, qpn, 0, 1, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 1, wc) == 1);
	/* Full: there is no place for a RESIZE CQE. */
	for (uint32_t n = 1; n < 5; n++)
		stub_put_cqe(&cq->first.ring, n, qpn, n, n + 1, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(vrdma_resize_cq(&cq->ibv_cq, 2) == EINVAL);
	stub_resize_error = ENOSPC;
	CHECK(vrdma_resize_cq(&cq->ibv_cq, 8) == ENOSPC && cq->newest == &cq->first);
	stub_resize_error = 0;
	stub_resize_old_cqes = 5;
	CHECK(vrdma_resize_cq(&cq->ibv_cq, 7) == 0 && cq->ibv_cq.cqe == 8);
	CHECK(stub_last_resize.entries == 8 && stub_last_resize.buf_addr % 4096 == 0);
	second = &cq->newest->ring;
	stub_put_cqe(second, 0, qpn, 5, 6, VIRTIO_RDMA_CQE_SEND_QUEUE);
	/* And again, before the first one's CQEs are polled. */
	stub_resize_old_cqes = 1;
	CHECK(vrdma_resize_cq(&cq->ibv_cq, 16) == 0 && cq->ibv_cq.cqe == 16);
	third = &cq->newest->ring;
	stub_put_cqe(third, 0, qpn, 6, 7, VIRTIO_RDMA_CQE_SEND_QUEUE);
	/* Arming is the newest ring's. */
	guest = (void *)third->buf;
	CHECK(vrdma_req_notify_cq(&cq->ibv_cq, 0) == 0 && le32toh(guest->arm) == 2);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 3, wc) == 3 && wc[2].wr_id == 3);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 8, wc) == 3);
	CHECK(wc[0].wr_id == 4 && wc[1].wr_id == 5 && wc[2].wr_id == 6);
	CHECK(le32toh(guest->consumer) == 1 && qp->sq.freed == 7);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 8, wc) == 0);
	stub_put_cqe(third, 1, qpn, 7, 8, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 8, wc) == 1 && wc[0].wr_id == 7);
	/* One that is empty goes over at once. */
	stub_resize_old_cqes = 2;
	CHECK(vrdma_resize_cq(&cq->ibv_cq, 1) == 0 && cq->current == cq->newest);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_qp_that_goes_takes_its_completions_out_of_all_rings(void)
{
	struct vrdma_cq *cq = cq_of(4);
	struct vrdma_qp *stays = qp_of(cq, IBV_QPT_RC, NULL), *goes = qp_of(cq, IBV_QPT_RC, NULL);
	uint32_t a = stays->vqp.qp.qp_num, b = goes->vqp.qp.qp_num;
	struct ibv_wc wc[8];

	stub_put_cqe(&cq->first.ring, 0, b, 0, 1, VIRTIO_RDMA_CQE_SEND_QUEUE);
	stub_put_cqe(&cq->first.ring, 1, b, 1, 2, VIRTIO_RDMA_CQE_SEND_QUEUE);
	stub_resize_old_cqes = 2;
	CHECK(vrdma_resize_cq(&cq->ibv_cq, 8) == 0);
	stub_put_cqe(&cq->newest->ring, 0, a, 2, 1, VIRTIO_RDMA_CQE_SEND_QUEUE);
	stub_put_cqe(&cq->newest->ring, 1, b, 3, 3, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(vrdma_destroy_qp(&goes->vqp.qp) == 0);
	CHECK(cq->current == cq->newest);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 8, wc) == 1 && wc[0].wr_id == 2);
	CHECK(vrdma_destroy_qp(&stays->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

#define RESIZINGS 300

/* Polls until it has seen the last one, in order. */
static void *poll_across_rings(void *arg)
{
	struct vrdma_cq *cq = arg;
	uint64_t expected = 0;
	struct ibv_wc wc[4];

	while (expected != UINT64_MAX) {
		int polled = vrdma_poll_cq(&cq->ibv_cq, 4, wc);

		for (int i = 0; i < polled; i++) {
			if (wc[i].wr_id == UINT64_MAX) {
				expected = UINT64_MAX;
			} else {
				CHECK(wc[i].wr_id == expected);
				expected++;
			}
		}
		if (!polled)
			sched_yield();
	}
	return NULL;
}

static void a_cq_that_is_resized_while_another_thread_polls_loses_nothing(void)
{
	struct vrdma_cq *cq = cq_of(4);
	struct vrdma_qp *qp = qp_of(cq, IBV_QPT_RC, NULL);
	uint32_t qpn = qp->vqp.qp.qp_num;
	uint64_t sent = 0;
	pthread_t poller;

	CHECK(pthread_create(&poller, NULL, poll_across_rings, cq) == 0);
	for (uint32_t round = 0; round < RESIZINGS; round++) {
		/* From none to as many as there is room for. */
		uint32_t count = round % (cq->newest->ring.entries + 1);

		for (uint32_t n = 0; n < count; n++, sent++)
			stub_put_cqe(&cq->newest->ring, n, qpn, sent, 1, 0);
		stub_resize_old_cqes = count;
		/* Too many are left for the new ring: the other thread goes on. */
		while (vrdma_resize_cq(&cq->ibv_cq, 1 << (round % 4)) == EINVAL)
			sched_yield();
	}
	stub_put_cqe(&cq->newest->ring, 0, qpn, UINT64_MAX, 1, 0);
	CHECK(pthread_join(poller, NULL) == 0);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void an_extended_cq_reads_what_was_asked_for(void)
{
	struct ibv_cq_ex *ex = cq_ex_of(4, IBV_WC_STANDARD_FLAGS |
						   IBV_WC_EX_WITH_COMPLETION_TIMESTAMP |
						   IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK);
	struct vrdma_cq *cq = to_vcq(ibv_cq_ex_to_cq(ex));
	struct vrdma_qp *qp = qp_of(cq, IBV_QPT_RC, NULL);
	uint32_t qpn = qp->vqp.qp.qp_num;
	struct virtio_rdma_cq_guest_line *guest = (void *)cq->first.ring.buf;
	struct ibv_poll_cq_attr attr = {};

	CHECK(ibv_start_poll(ex, &attr) == ENOENT);
	/* The first is nobody's. */
	stub_put_cqe(&cq->first.ring, 0, 0xffffff, 1, 1, 0);
	CHECK(ibv_start_poll(ex, &attr) == ENOENT && le32toh(guest->consumer) == 1);
	stub_put_cqe(&cq->first.ring, 1, qpn, 42, 1, VIRTIO_RDMA_CQE_WITH_IMM);
	stub_put_cqe(&cq->first.ring, 2, qpn, 43, 1, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(ibv_start_poll(ex, &attr) == 0);
	CHECK(ex->wr_id == 42 && ex->status == IBV_WC_SUCCESS);
	CHECK(ibv_wc_read_opcode(ex) == IBV_WC_RECV && ibv_wc_read_byte_len(ex) == 77);
	CHECK(ibv_wc_read_imm_data(ex) == htobe32(0xabcdef01));
	CHECK(ibv_wc_read_wc_flags(ex) == IBV_WC_WITH_IMM && ibv_wc_read_qp_num(ex) == qpn);
	CHECK(ibv_wc_read_completion_ts(ex) == 1001);
	CHECK(ibv_wc_read_completion_wallclock_ns(ex) == 2001);
	CHECK(le32toh(guest->consumer) == 1 && qp->rq.freed == 0);
	CHECK(ibv_next_poll(ex) == 0 && ex->wr_id == 43);
	/* Other queue: the first one's slot had to be given back. */
	CHECK(le32toh(guest->consumer) == 2 && qp->rq.freed == 1 && qp->sq.freed == 0);
	CHECK(ibv_next_poll(ex) == ENOENT);
	ibv_end_poll(ex);
	CHECK(le32toh(guest->consumer) == 3 && qp->sq.freed == 1);
	attr.comp_mask = 1;
	CHECK(ibv_start_poll(ex, &attr) == EINVAL);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void an_extended_cq_that_there_cannot_be_is_refused(void)
{
	struct ibv_cq_init_attr_ex attr = { .cqe = 4, .wc_flags = IBV_WC_EX_WITH_CVLAN };

	CHECK(!vrdma_create_cq_ex(context, &attr) && errno == EOPNOTSUPP);
	attr.wc_flags = 0;
	attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS;
	attr.flags = IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN;
	CHECK(!vrdma_create_cq_ex(context, &attr) && errno == EOPNOTSUPP);
	attr.flags = 0;
	attr.cqe = STUB_MAX_CQE + 1;
	CHECK(!vrdma_create_cq_ex(context, &attr) && errno == EINVAL);
	attr.cqe = 4;
	attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_PD;
	attr.parent_domain = pd;
	CHECK(!vrdma_create_cq_ex(context, &attr) && errno == EINVAL);
	ctx->info.capabilities = 0;
	attr = (struct ibv_cq_init_attr_ex){ .cqe = 4,
					     .wc_flags = IBV_WC_EX_WITH_COMPLETION_TIMESTAMP };
	CHECK(!vrdma_create_cq_ex(context, &attr) && errno == EOPNOTSUPP);
	ctx->info.capabilities = UINT64_MAX;
}

static unsigned int allocated, freed;

static void *parent_alloc(struct ibv_pd *parent, void *pd_context, size_t size, size_t alignment,
			  uint64_t resource)
{
	void *memory = aligned_alloc(alignment, size);

	CHECK(parent && pd_context == &allocated && alignment == 4096 && resource >= 1);
	memset(memory, 0xff, size);
	allocated++;
	return memory;
}

static void parent_free(struct ibv_pd *parent, void *pd_context, void *memory, uint64_t resource)
{
	CHECK(parent && pd_context == &allocated && resource >= 1);
	free(memory);
	freed++;
}

static void a_parent_domain_gives_the_memory_and_elides_the_locks(void)
{
	struct ibv_td_init_attr td_attr = {};
	struct ibv_td *td = vrdma_alloc_td(context, &td_attr);
	struct ibv_parent_domain_init_attr attr = {
		.pd = pd, .td = td, .alloc = parent_alloc, .free = parent_free,
		.pd_context = &allocated,
		.comp_mask = IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS |
			     IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT,
	};
	struct ibv_pd *parent = vrdma_alloc_parent_domain(context, &attr), *plain = pd;
	struct ibv_cq_init_attr_ex cq_attr = { .cqe = 4, .parent_domain = parent,
					       .comp_mask = IBV_CQ_INIT_ATTR_MASK_PD };
	struct ibv_cq_ex *ex;
	struct vrdma_qp *qp;

	CHECK(parent && parent->handle == pd->handle);
	CHECK(vrdma_dealloc_pd(pd) == EBUSY && vrdma_dealloc_td(td) == EBUSY);
	ex = vrdma_create_cq_ex(context, &cq_attr);
	CHECK(ex && allocated == 1);
	pd = parent;
	qp = qp_of(to_vcq(ibv_cq_ex_to_cq(ex)), IBV_QPT_RC, NULL);
	pd = plain;
	CHECK(allocated == 2 && qp->sq_lock.single_threaded && qp->rq_lock.single_threaded);
	CHECK(qp->sq.ring[0] == 0 && (uintptr_t)qp->buf.addr % 4096 == 0);
	CHECK(vrdma_dealloc_pd(parent) == EBUSY);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0);
	CHECK(vrdma_destroy_cq(ibv_cq_ex_to_cq(ex)) == 0 && freed == 2);
	CHECK(vrdma_dealloc_pd(parent) == 0 && vrdma_dealloc_td(td) == 0);
	attr.pd = NULL;
	CHECK(!vrdma_alloc_parent_domain(context, &attr) && errno == EINVAL);
}

static void windows_are_bound_by_work_requests(void)
{
	struct vrdma_cq *cq = cq_of(8);
	struct vrdma_qp *qp = qp_of(cq, IBV_QPT_RC, NULL);
	struct ibv_mw *mw = vrdma_alloc_mw(pd, IBV_MW_TYPE_1);
	struct ibv_mr mr = { .lkey = 0x77 };
	struct ibv_mw_bind bind = {
		.wr_id = 3, .send_flags = IBV_SEND_SIGNALED,
		.bind_info = { .mr = &mr, .addr = 0x1000, .length = 10,
			       .mw_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_LOCAL_WRITE },
	};
	const struct virtio_rdma_send_wqe *wqe = (void *)qp->sq.ring;
	const struct virtio_rdma_bind_mw_args *args = (void *)(qp->sq.ring + 32);
	struct ibv_send_wr wr = { .opcode = IBV_WR_LOCAL_INV, .invalidate_rkey = 0x1101 }, *bad;

	CHECK(vrdma_bind_mw(&qp->vqp.qp, mw, &bind) == 0 && mw->rkey == 0x1101);
	CHECK(wqe->opcode == VIRTIO_RDMA_WR_BIND_MW && le32toh(wqe->rkey) == 0x1101);
	CHECK(wqe->num_sge == 0 && wqe->inline_length == 0 && le64toh(wqe->wr_id) == 3);
	CHECK(le64toh(args->addr) == 0x1000 && le64toh(args->length) == 10);
	CHECK(le32toh(args->lkey) == 0x77);
	CHECK(le32toh(args->access) == VIRTIO_RDMA_ACCESS_REMOTE_WRITE);
	bind.bind_info.mw_access_flags = IBV_ACCESS_ZERO_BASED;
	CHECK(vrdma_bind_mw(&qp->vqp.qp, mw, &bind) == EINVAL && mw->rkey == 0x1101);

	wqe = (void *)(qp->sq.ring + 64);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(wqe->opcode == VIRTIO_RDMA_WR_LOCAL_INV && le32toh(wqe->rkey) == 0x1101);
	wqe = (void *)(qp->sq.ring + 2 * 64);
	wr.opcode = IBV_WR_SEND_WITH_INV;
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(le32toh(wqe->imm) == 0x1101 && wqe->rkey == 0);
	qp->refused_op = VRDMA_OP_KEY;
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == EINVAL);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_dealloc_mw(mw) == 0);
	CHECK(vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void an_xrc_initiator_names_the_srq_at_the_end_of_each_slot(void)
{
	struct vrdma_cq *cq = cq_of(8);
	struct vrdma_qp *qp = qp_of(cq, IBV_QPT_XRC_SEND, NULL);
	struct ibv_send_wr wr = { .opcode = IBV_WR_SEND, .qp_type.xrc.remote_srqn = 0x1234 }, *bad;
	const struct virtio_rdma_xrc_args *args = (void *)(qp->sq.ring + 128 - 8);

	CHECK(stub_last_qp.rq_entries == 0 && stub_last_qp.sq_stride_shift == 7);
	/* Data never lies over it. */
	CHECK(qp->cap.max_inline_data <= 128 - 32 - 8 && 32 + 16 * qp->cap.max_send_sge <= 120);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(le32toh(args->remote_srqn) == 0x1234);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void what_came_by_an_xrc_srq_is_reported_whoever_has_the_qp(void)
{
	struct vrdma_cq *cq = cq_of(8);
	struct verbs_xrcd xrcd = {};
	struct ibv_srq_init_attr_ex attr = {
		.attr = { .max_wr = 4, .max_sge = 1 }, .srq_type = IBV_SRQT_XRC, .pd = pd,
		.cq = &cq->ibv_cq, .xrcd = &xrcd.xrcd,
		.comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD |
			     IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ,
	};
	struct ibv_srq *srq = vrdma_create_srq_ex(context, &attr);
	struct ibv_qp_init_attr_ex qp_attr = { .qp_type = IBV_QPT_XRC_RECV, .xrcd = &xrcd.xrcd,
					       .comp_mask = IBV_QP_INIT_ATTR_XRCD };
	struct ibv_qp *target = vrdma_create_qp_ex(context, &qp_attr);
	uint32_t number = 0;
	struct ibv_wc wc[2];

	CHECK(srq && vrdma_get_srq_num(srq, &number) == 0 && number == 0x55);
	CHECK(target && stub_last_qp.sq_entries == 0 && stub_last_qp.rq_entries == 0);
	CHECK(stub_last_qp.buf_bytes >= 64);
	stub_put_cqe(&cq->first.ring, 0, 0x999, 5, 1, 0);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 2, wc) == 1 && wc[0].wr_id == 5 && wc[0].qp_num == 0x999);
	CHECK(vrdma_destroy_qp(target) == 0 && vrdma_destroy_srq(srq) == 0);
	stub_put_cqe(&cq->first.ring, 1, 0x999, 6, 1, 0);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 2, wc) == 0);
	CHECK(vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

int main(void)
{
	/* What is lost would be waited for without end. */
	alarm(300);
	ctx = stub_context();
	context = &ctx->ibv_ctx.context;
	pd = vrdma_alloc_pd(context);
	an_srq_takes_as_many_as_the_device_has_taken_away();
	a_resized_srq_keeps_what_is_posted_and_its_count();
	a_qp_with_an_srq_has_no_receive_queue();
	a_resized_cq_is_polled_to_its_old_end_and_then_anew();
	a_qp_that_goes_takes_its_completions_out_of_all_rings();
	a_cq_that_is_resized_while_another_thread_polls_loses_nothing();
	an_extended_cq_reads_what_was_asked_for();
	an_extended_cq_that_there_cannot_be_is_refused();
	a_parent_domain_gives_the_memory_and_elides_the_locks();
	windows_are_bound_by_work_requests();
	an_xrc_initiator_names_the_srq_at_the_end_of_each_slot();
	what_came_by_an_xrc_srq_is_reported_whoever_has_the_qp();
	CHECK(vrdma_dealloc_pd(pd) == 0);
	stub_context_free(ctx);
	puts("12 tests of the other objects passed");
	return 0;
}
