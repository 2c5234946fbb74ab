// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Tests of the verbs that need no kernel: sizes, checks and their errors, what WQEs look like, what
 * becomes of CQEs. The device is this file: it reads the rings and writes CQEs.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stubs.h"

static struct vrdma_context *ctx;
static struct vrdma_pd pd;

static struct vrdma_cq *cq_of(int entries)
{
	struct ibv_cq *cq = vrdma_create_cq(&ctx->ibv_ctx.context, entries, NULL, 0);

	CHECK(cq);
	return to_vcq(cq);
}

static struct vrdma_qp *qp_of(struct vrdma_cq *cq, struct ibv_qp_cap *cap, int sig_all)
{
	struct ibv_qp_init_attr attr = { .send_cq = &cq->ibv_cq, .recv_cq = &cq->ibv_cq,
					 .cap = *cap, .qp_type = IBV_QPT_RC,
					 .sq_sig_all = sig_all };
	struct ibv_qp *qp = vrdma_create_qp(&pd.ibv_pd, &attr);

	CHECK(qp);
	*cap = attr.cap;
	return to_vqp(qp);
}

static void set_state(struct vrdma_qp *qp, enum ibv_qp_state state)
{
	struct ibv_qp_attr attr = { .qp_state = state };

	CHECK(vrdma_modify_qp(&qp->vqp.qp, &attr, IBV_QP_STATE) == 0);
}

static struct vrdma_qp *ready_qp(struct vrdma_cq *cq, uint32_t wrs)
{
	struct ibv_qp_cap cap = { wrs, wrs, 2, 2, 32 };
	struct vrdma_qp *qp = qp_of(cq, &cap, 0);

	set_state(qp, IBV_QPS_RTS);
	return qp;
}

static struct ibv_send_wr send_wr(struct ibv_sge *sge, int num_sge)
{
	return (struct ibv_send_wr){ .wr_id = 0x1122334455667788, .sg_list = sge,
				     .num_sge = num_sge, .opcode = IBV_WR_SEND,
				     .send_flags = IBV_SEND_SIGNALED };
}

/* As the device: writes CQE number `n` of the CQ. */
static void put_cqe(struct vrdma_cq *cq, uint32_t n, uint32_t qpn, uint64_t wr_id, uint32_t count,
		    uint8_t flags)
{
	stub_put_cqe(&cq->first.ring, n, qpn, wr_id, count, flags);
}

static uint32_t consumer_of(const struct vrdma_cq *cq)
{
	return le32toh(((struct virtio_rdma_cq_guest_line *)cq->first.ring.buf)->consumer);
}

static void a_qp_gets_at_least_what_it_asks_for_and_no_wqe_crosses_a_page(void)
{
	struct vrdma_cq *cq = cq_of(10);
	struct ibv_qp_cap cap = { 10, 3, 3, 5, 200 };
	struct vrdma_qp *qp = qp_of(cq, &cap, 0);

	CHECK(cq->ibv_cq.cqe == 16 && stub_last_cq.entries == 16);
	CHECK(stub_last_cq.buf_bytes >= 128 + 16 * 64);
	CHECK(cap.max_send_wr == 16 && cap.max_recv_wr == 4);
	CHECK(stub_last_qp.sq_stride_shift == 8 && stub_last_qp.rq_stride_shift == 7);
	CHECK(cap.max_inline_data == 224 && cap.max_send_sge == 14 && cap.max_recv_sge == 7);
	CHECK(stub_last_qp.sq_offset >= 64 && stub_last_qp.sq_offset % 256 == 0);
	CHECK(stub_last_qp.rq_offset >= stub_last_qp.sq_offset + 16 * 256);
	CHECK(stub_last_qp.rq_offset % 128 == 0);
	CHECK(stub_last_qp.buf_bytes >= stub_last_qp.rq_offset + 4 * 128);
	CHECK(stub_last_qp.buf_bytes % 4096 == 0 && stub_last_qp.buf_addr % 4096 == 0);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_datagram_names_its_handle_and_its_peer_in_the_place_of_the_remote_address(void)
{
	struct vrdma_cq *cq = cq_of(4);
	struct ibv_qp_init_attr attr = { .send_cq = &cq->ibv_cq, .recv_cq = &cq->ibv_cq,
					 .qp_type = IBV_QPT_UD, .cap = { .max_send_wr = 4 } };
	struct vrdma_ah ah = { .index = 77 };
	struct ibv_send_wr wr = { .opcode = IBV_WR_SEND, .wr.ud = { .ah = &ah.ibv_ah,
				  .remote_qpn = 0x123456, .remote_qkey = 0x11 } };
	struct ibv_send_wr *bad;
	struct ibv_qp *qp = vrdma_create_qp(&pd.ibv_pd, &attr);
	struct virtio_rdma_send_wqe *wqe;

	CHECK(qp);
	qp->state = IBV_QPS_RTS;
	CHECK(vrdma_post_send(qp, &wr, &bad) == 0);
	wqe = (struct virtio_rdma_send_wqe *)to_vqp(qp)->sq.ring;
	CHECK(le64toh(wqe->remote_addr) == (0x123456ull << 32 | 77));
	CHECK(le32toh(wqe->rkey) == 0x11);
	wr.opcode = IBV_WR_RDMA_WRITE;
	CHECK(vrdma_post_send(qp, &wr, &bad) == EINVAL && bad == &wr);
	CHECK(vrdma_destroy_qp(qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void what_the_device_cannot_do_is_refused_at_creation(void)
{
	struct vrdma_cq *cq = cq_of(1);
	struct ibv_qp_init_attr attr = { .send_cq = &cq->ibv_cq, .recv_cq = &cq->ibv_cq,
					 .qp_type = IBV_QPT_RAW_PACKET };

	errno = 0;
	CHECK(!vrdma_create_qp(&pd.ibv_pd, &attr) && errno == EOPNOTSUPP);
	attr.qp_type = IBV_QPT_RC;
	attr.cap.max_send_wr = STUB_MAX_WR + 1;
	CHECK(!vrdma_create_qp(&pd.ibv_pd, &attr) && errno == EINVAL);
	attr.cap.max_send_wr = 1;
	attr.cap.max_inline_data = STUB_MAX_INLINE + 1;
	CHECK(!vrdma_create_qp(&pd.ibv_pd, &attr) && errno == EINVAL);
	errno = 0;
	CHECK(!vrdma_create_cq(&ctx->ibv_ctx.context, 0, NULL, 0) && errno == EINVAL);
	CHECK(!vrdma_create_cq(&ctx->ibv_ctx.context, STUB_MAX_CQE + 1, NULL, 0));
	CHECK(vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void posting_needs_a_state_that_allows_it(void)
{
	struct vrdma_cq *cq = cq_of(4);
	struct ibv_qp_cap cap = { 1, 1, 1, 1, 0 };
	struct vrdma_qp *qp = qp_of(cq, &cap, 0);
	struct ibv_send_wr wr = send_wr(NULL, 0), *bad = NULL;
	struct ibv_recv_wr recv = {}, *bad_recv = NULL;

	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == EINVAL && bad == &wr);
	CHECK(vrdma_post_recv(&qp->vqp.qp, &recv, &bad_recv) == EINVAL && bad_recv == &recv);
	set_state(qp, IBV_QPS_INIT);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == EINVAL);
	CHECK(vrdma_post_recv(&qp->vqp.qp, &recv, &bad_recv) == 0);
	set_state(qp, IBV_QPS_ERR);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_malformed_request_is_refused_and_those_before_it_are_posted(void)
{
	struct vrdma_cq *cq = cq_of(16);
	struct vrdma_qp *qp = ready_qp(cq, 16);
	struct ibv_sge sges[8] = { { .length = 20 }, { .length = 20 } };
	char data[128] = {};
	struct ibv_send_wr good = send_wr(sges, 1), wr, *bad;
	uint32_t before;

	CHECK(qp->cap.max_send_sge == 2 && qp->cap.max_inline_data == 32);
	for (int fault = 0; fault < 7; fault++) {
		wr = send_wr(sges, 1);
		sges[0].addr = sges[1].addr = (uintptr_t)data;
		switch (fault) {
		case 0:
			wr.opcode = IBV_WR_ATOMIC_WRITE;
			break;
		case 1:
			wr.opcode = (enum ibv_wr_opcode)200;
			break;
		case 2:
			wr.send_flags |= IBV_SEND_IP_CSUM;
			break;
		case 3:
			wr.num_sge = 3;
			break;
		case 4: /* 40 bytes inline, where 32 fit. */
			wr.num_sge = 2;
			wr.send_flags |= IBV_SEND_INLINE;
			break;
		case 5:
			wr.opcode = IBV_WR_RDMA_READ;
			wr.send_flags |= IBV_SEND_INLINE;
			break;
		case 6:
			wr.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
			wr.num_sge = 2;
			break;
		}
		good.next = &wr;
		bad = NULL;
		before = qp->sq.posted;
		CHECK(vrdma_post_send(&qp->vqp.qp, &good, &bad) == EINVAL);
		CHECK(bad == &wr && qp->sq.posted == before + 1);
	}
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_full_queue_says_so_until_a_completion_is_polled(void)
{
	struct vrdma_cq *cq = cq_of(4);
	struct vrdma_qp *qp = ready_qp(cq, 2);
	struct ibv_send_wr wr[3], *bad;
	struct ibv_wc wc[4];

	for (int i = 0; i < 3; i++) {
		wr[i] = send_wr(NULL, 0);
		wr[i].next = i < 2 ? &wr[i + 1] : NULL;
	}
	CHECK(vrdma_post_send(&qp->vqp.qp, wr, &bad) == ENOMEM && bad == &wr[2]);
	put_cqe(cq, 0, qp->vqp.qp.qp_num, 5, 2, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr[2], &bad) == ENOMEM);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 4, wc) == 1 && wc[0].wr_id == 5);
	CHECK(consumer_of(cq) == 1);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr[1], &bad) == 0);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr[2], &bad) == ENOMEM);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void wqes_are_laid_out_as_the_device_expects(void)
{
	struct vrdma_cq *cq = cq_of(4);
	struct ibv_qp_cap cap = { 4, 4, 2, 2, 32 };
	struct vrdma_qp *qp = qp_of(cq, &cap, 1);
	struct ibv_sge sges[2] = { { 0x1000, 7, 0x55 }, { 0x2000, 9, 0x66 } };
	struct ibv_send_wr wr = send_wr(sges, 2), *bad;
	struct ibv_recv_wr recv = { .wr_id = 9, .sg_list = sges, .num_sge = 2 }, *bad_recv;
	const struct virtio_rdma_send_wqe *wqe = (void *)qp->sq.ring;
	const struct virtio_rdma_sge *sge = (void *)(qp->sq.ring + 32);
	const struct virtio_rdma_atomic_args *args = (void *)(qp->sq.ring + 2 * 64 + 48);
	const struct virtio_rdma_recv_wqe *recv_wqe = (void *)qp->rq.ring;

	set_state(qp, IBV_QPS_RTS);
	wr.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
	wr.send_flags = IBV_SEND_SOLICITED;
	wr.imm_data = htobe32(0x01020304);
	wr.wr.rdma.remote_addr = 0x123456789a;
	wr.wr.rdma.rkey = 0x77;
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(wqe->opcode == VIRTIO_RDMA_WR_RDMA_WRITE_WITH_IMM && wqe->num_sge == 2);
	/* Signalled, because the QP signals all. */
	CHECK(wqe->flags == (VIRTIO_RDMA_SEND_SOLICITED | VIRTIO_RDMA_SEND_SIGNALED));
	CHECK(wqe->phase == 1 && memcmp(&wqe->imm, "\1\2\3\4", 4) == 0);
	CHECK(le64toh(wqe->wr_id) == 0x1122334455667788);
	CHECK(le64toh(wqe->remote_addr) == 0x123456789a && le32toh(wqe->rkey) == 0x77);
	CHECK(wqe->inline_length == 0);
	CHECK(le64toh(sge[1].addr) == 0x2000 && le32toh(sge[1].length) == 9 &&
	      le32toh(sge[1].lkey) == 0x66);

	wqe = (void *)(qp->sq.ring + 64);
	wr = send_wr((struct ibv_sge[]){ { (uintptr_t)"abc", 3, 0 }, { (uintptr_t)"defg", 4, 0 } }, 2);
	wr.send_flags |= IBV_SEND_INLINE;
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(wqe->num_sge == 0 && le32toh(wqe->inline_length) == 7 && wqe->imm == 0);
	CHECK(memcmp((char *)wqe + 32, "abcdefg", 7) == 0);

	wr = send_wr(sges, 1);
	wr.opcode = IBV_WR_ATOMIC_CMP_AND_SWP;
	wr.wr.atomic.remote_addr = 8;
	wr.wr.atomic.rkey = 9;
	wr.wr.atomic.compare_add = 10;
	wr.wr.atomic.swap = 11;
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(le64toh(args->compare_add) == 10 && le64toh(args->swap) == 11);

	CHECK(vrdma_post_recv(&qp->vqp.qp, &recv, &bad_recv) == 0);
	CHECK(recv_wqe->num_sge == 2 && recv_wqe->phase == 1 && le64toh(recv_wqe->wr_id) == 9);
	CHECK(le32toh(((const struct virtio_rdma_sge *)(qp->rq.ring + 16))[1].lkey) == 0x66);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void the_doorbell_rings_only_for_a_worker_that_sleeps(void)
{
	struct vrdma_cq *cq = cq_of(8);
	struct vrdma_qp *qp = ready_qp(cq, 8);
	struct virtio_rdma_qp_device_line *line = (void *)qp->buf.addr;
	_Atomic uint64_t *uar = ctx->uar;
	uint32_t *sleeping = (uint32_t *)&ctx->status[0].sleeping;
	struct ibv_send_wr wr = send_wr(NULL, 0), *bad;

	stub_rings = 0;
	uar[0] = 0;
	uar[8] = 0;
	line->sq_mode = htole32(VIRTIO_RDMA_MODE_POLLED);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(uar[0] == 0 && uar[8] == 0 && stub_rings == 0);
	line->sq_mode = 0;
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(uar[0] == htole64(1) && uar[8] != 0 && stub_rings == 0);
	*sleeping = htole32(1);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(stub_rings == 1 && stub_ring_vector == 0);
	/* A vector that there is not. */
	line->sq_mode = htole32(5u << VIRTIO_RDMA_MODE_VECTOR_SHIFT);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0 && stub_rings == 1);
	*sleeping = 0;
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_completion_is_reported_as_the_device_wrote_it(void)
{
	struct vrdma_cq *cq = cq_of(2);
	struct vrdma_qp *qp = ready_qp(cq, 2);
	struct ibv_wc wc[2];

	/* The first is nobody's and is dropped. */
	put_cqe(cq, 0, 0xffffff, 1, 1, 0);
	put_cqe(cq, 1, qp->vqp.qp.qp_num, 42, 1, VIRTIO_RDMA_CQE_WITH_IMM);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 2, wc) == 1);
	CHECK(wc[0].wr_id == 42 && wc[0].opcode == IBV_WC_RECV && wc[0].byte_len == 77);
	CHECK(wc[0].status == IBV_WC_SUCCESS && wc[0].wc_flags == IBV_WC_WITH_IMM);
	CHECK(wc[0].imm_data == htobe32(0xabcdef01) && wc[0].qp_num == qp->vqp.qp.qp_num);
	CHECK(qp->rq.freed == 1 && qp->sq.freed == 0 && consumer_of(cq) == 2);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 2, wc) == 0);
	/* The second lap has the other phase. */
	put_cqe(cq, 2, qp->vqp.qp.qp_num, 43, 2, 0);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 2, wc) == 1 && wc[0].wr_id == 43);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_qp_that_goes_takes_its_completions_and_no_others(void)
{
	struct vrdma_cq *cq = cq_of(8);
	struct vrdma_qp *stays = ready_qp(cq, 8), *goes = ready_qp(cq, 8);
	uint32_t a = stays->vqp.qp.qp_num, b = goes->vqp.qp.qp_num;
	const uint32_t order[8] = { b, a, b, b, a, a, b, a };
	struct ibv_wc wc[8];

	/* From the middle of the ring, so that what stays moves over its end. */
	for (uint32_t n = 0; n < 5; n++)
		put_cqe(cq, n, a, n, n + 1, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 8, wc) == 5);
	for (uint32_t n = 5; n < 13; n++)
		put_cqe(cq, n, order[n - 5], n, n + 1, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(vrdma_destroy_qp(&goes->vqp.qp) == 0);
	CHECK(consumer_of(cq) == 9);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 8, wc) == 4);
	CHECK(wc[0].wr_id == 6 && wc[1].wr_id == 9 && wc[2].wr_id == 10 && wc[3].wr_id == 12);
	CHECK(wc[3].qp_num == a && consumer_of(cq) == 13);
	put_cqe(cq, 13, a, 13, 14, VIRTIO_RDMA_CQE_SEND_QUEUE);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 8, wc) == 1 && wc[0].wr_id == 13);
	CHECK(vrdma_destroy_qp(&stays->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_qp_that_was_reset_begins_again(void)
{
	struct vrdma_cq *cq = cq_of(8);
	struct vrdma_qp *qp = ready_qp(cq, 2);
	struct ibv_send_wr wr = send_wr(NULL, 0), *bad;
	struct ibv_recv_wr recv = {}, *bad_recv;
	struct ibv_wc wc;

	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0);
	CHECK(vrdma_post_recv(&qp->vqp.qp, &recv, &bad_recv) == 0);
	put_cqe(cq, 0, qp->vqp.qp.qp_num, 1, 1, VIRTIO_RDMA_CQE_SEND_QUEUE);
	set_state(qp, IBV_QPS_RESET);
	CHECK(vrdma_poll_cq(&cq->ibv_cq, 1, &wc) == 0 && consumer_of(cq) == 1);
	CHECK(qp->sq.posted == 0 && qp->sq.freed == 0 && qp->rq.posted == 0);
	for (uint32_t i = 0; i < 2u << qp->sq.stride_shift; i++)
		CHECK(qp->sq.ring[i] == 0);
	set_state(qp, IBV_QPS_RTS);
	CHECK(vrdma_post_send(&qp->vqp.qp, &wr, &bad) == 0 && qp->sq.ring[3] == 1);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void an_arm_for_any_completion_is_not_weakened(void)
{
	struct vrdma_cq *cq = cq_of(2);
	struct virtio_rdma_cq_guest_line *guest = (void *)cq->first.ring.buf;
	struct virtio_rdma_cq_device_line *device = (void *)(cq->first.ring.buf + 64);

	CHECK(vrdma_req_notify_cq(&cq->ibv_cq, 1) == 0 && le32toh(guest->arm) == 3);
	CHECK(vrdma_req_notify_cq(&cq->ibv_cq, 0) == 0 && le32toh(guest->arm) == 4);
	CHECK(vrdma_req_notify_cq(&cq->ibv_cq, 1) == 0 && le32toh(guest->arm) == 6);
	device->fired = htole32(6);
	CHECK(vrdma_req_notify_cq(&cq->ibv_cq, 1) == 0 && le32toh(guest->arm) == 9);
	cq->first.ring.arm = UINT32_MAX - 1;
	device->fired = htole32(UINT32_MAX - 1);
	CHECK(vrdma_req_notify_cq(&cq->ibv_cq, 0) == 0 && le32toh(guest->arm) == 2);
	CHECK(vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static struct vrdma_qp *ready_qp_ex(struct vrdma_cq *cq, uint32_t wrs)
{
	struct ibv_qp_init_attr_ex attr = {
		.send_cq = &cq->ibv_cq, .recv_cq = &cq->ibv_cq, .cap = { wrs, wrs, 2, 2, 32 },
		.qp_type = IBV_QPT_RC, .pd = &pd.ibv_pd,
		.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
		.send_ops_flags = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_WRITE,
	};
	struct ibv_qp *qp = vrdma_create_qp_ex(&ctx->ibv_ctx.context, &attr);

	CHECK(qp && (to_vqp(qp)->vqp.comp_mask & VERBS_QP_EX));
	set_state(to_vqp(qp), IBV_QPS_RTS);
	return to_vqp(qp);
}

static void a_batch_of_requests_shows_at_its_end(void)
{
	struct vrdma_cq *cq = cq_of(8);
	struct vrdma_qp *qp = ready_qp_ex(cq, 4);
	struct ibv_qp_ex *ex = &qp->vqp.qp_ex;
	const struct virtio_rdma_send_wqe *wqe[2] = { (void *)qp->sq.ring,
						      (void *)(qp->sq.ring + 64) };

	ibv_wr_start(ex);
	ex->wr_id = 1;
	ex->wr_flags = IBV_SEND_SIGNALED;
	ibv_wr_rdma_write(ex, 0x77, 0x1000);
	ibv_wr_set_sge(ex, 0x55, 0x2000, 9);
	ex->wr_id = 2;
	ex->wr_flags = 0;
	ibv_wr_send(ex);
	ibv_wr_set_inline_data(ex, (void *)"xyz", 3);
	CHECK(wqe[0]->phase == 0 && wqe[1]->phase == 0);
	CHECK(ibv_wr_complete(ex) == 0 && qp->sq.posted == 2);
	CHECK(wqe[0]->phase == 1 && wqe[0]->opcode == VIRTIO_RDMA_WR_RDMA_WRITE);
	CHECK(wqe[0]->flags == VIRTIO_RDMA_SEND_SIGNALED && wqe[0]->num_sge == 1);
	CHECK(le64toh(wqe[0]->wr_id) == 1 && le64toh(wqe[0]->remote_addr) == 0x1000);
	CHECK(wqe[1]->phase == 1 && wqe[1]->opcode == VIRTIO_RDMA_WR_SEND);
	CHECK(wqe[1]->flags == VIRTIO_RDMA_SEND_INLINE && wqe[1]->num_sge == 0);
	CHECK(le64toh(wqe[1]->wr_id) == 2 && le32toh(wqe[1]->inline_length) == 3);
	CHECK(memcmp((char *)wqe[1] + 32, "xyz", 3) == 0);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

static void a_batch_that_fails_or_is_aborted_posts_nothing(void)
{
	struct vrdma_cq *cq = cq_of(8);
	struct vrdma_qp *qp = ready_qp_ex(cq, 2);
	struct ibv_qp_ex *ex = &qp->vqp.qp_ex;
	char data[40] = {};

	ex->wr_flags = 0;
	ibv_wr_start(ex);
	for (int i = 0; i < 3; i++)
		ibv_wr_send(ex);
	CHECK(ibv_wr_complete(ex) == ENOMEM && qp->sq.posted == 0);
	ibv_wr_start(ex);
	ibv_wr_send(ex);
	ibv_wr_set_inline_data(ex, data, sizeof(data));
	ibv_wr_send(ex);
	CHECK(ibv_wr_complete(ex) == EINVAL && qp->sq.posted == 0);
	ibv_wr_start(ex);
	ibv_wr_rdma_read(ex, 1, 1);
	ibv_wr_set_inline_data(ex, data, 1);
	CHECK(ibv_wr_complete(ex) == EINVAL && qp->sq.posted == 0);
	ibv_wr_start(ex);
	ibv_wr_send(ex);
	ibv_wr_send(ex);
	ibv_wr_abort(ex);
	CHECK(qp->sq.posted == 0 && qp->sq.ring[3] == 0 && qp->sq.ring[64 + 3] == 0);
	ibv_wr_start(ex);
	ibv_wr_send(ex);
	CHECK(ibv_wr_complete(ex) == 0 && qp->sq.posted == 1);
	CHECK(qp->sq.ring[3] == 1 && qp->sq.ring[64 + 3] == 0);
	set_state(qp, IBV_QPS_RESET);
	ibv_wr_start(ex);
	ibv_wr_send(ex);
	CHECK(ibv_wr_complete(ex) == EINVAL && qp->sq.posted == 0);
	CHECK(vrdma_destroy_qp(&qp->vqp.qp) == 0 && vrdma_destroy_cq(&cq->ibv_cq) == 0);
}

int main(void)
{
	ctx = stub_context();
	pd.ibv_pd.context = &ctx->ibv_ctx.context;
	a_qp_gets_at_least_what_it_asks_for_and_no_wqe_crosses_a_page();
	a_datagram_names_its_handle_and_its_peer_in_the_place_of_the_remote_address();
	what_the_device_cannot_do_is_refused_at_creation();
	posting_needs_a_state_that_allows_it();
	a_malformed_request_is_refused_and_those_before_it_are_posted();
	a_full_queue_says_so_until_a_completion_is_polled();
	wqes_are_laid_out_as_the_device_expects();
	the_doorbell_rings_only_for_a_worker_that_sleeps();
	a_completion_is_reported_as_the_device_wrote_it();
	a_qp_that_goes_takes_its_completions_and_no_others();
	a_qp_that_was_reset_begins_again();
	an_arm_for_any_completion_is_not_weakened();
	a_batch_of_requests_shows_at_its_end();
	a_batch_that_fails_or_is_aborted_posts_nothing();
	stub_context_free(ctx);
	puts("14 tests of posting and polling passed");
	return 0;
}
