// SPDX-License-Identifier: GPL-2.0
/*
 * Messages of an RC connection: SEND, RDMA WRITE and READ of all sizes, inline and scattered data,
 * rings that wrap and fill up, an error and the recovery from it.
 */
#include "st.h"

#include <linux/delay.h>

static void st_inline_sends_arrive_whole(struct st *st);
static void st_scattered_sends_arrive_in_order(struct st *st);
static void st_writes_and_reads_move_every_byte(struct st *st);
static void st_rings_wrap_with_few_signals(struct st *st);
static void st_a_send_waits_for_its_receive(struct st *st);
static void st_a_full_queue_refuses(struct st *st);
static void st_a_bad_key_breaks_the_connection_and_reset_heals_it(struct st *st);

void st_messages(struct st *st)
{
	st_sends_arrive_whole(st);
	st_inline_sends_arrive_whole(st);
	st_scattered_sends_arrive_in_order(st);
	st_writes_and_reads_move_every_byte(st);
	st_rings_wrap_with_few_signals(st);
	st_a_send_waits_for_its_receive(st);
	st_a_full_queue_refuses(st);
	st_a_bad_key_breaks_the_connection_and_reset_heals_it(st);
	st_sends_arrive_whole(st);
}

static const u32 st_sizes[] = { 0, 1, 7, 63, 64, 65, 1023, 1024, 1025, 4095, 4097, 32768 };

void st_sends_arrive_whole(struct st *st)
{
	struct st_end *from = &st->end[0], *to = &st->end[1];
	u32 i;

	for (i = 0; i < ARRAY_SIZE(st_sizes); i++) {
		struct st_op *recv = st_op(st, 0), *send = st_op(st, 1);
		u32 bytes = st_sizes[i], at = 3 * i;

		memset(to->buf, 0, ST_BUF_BYTES);
		st_fill(from, i, bytes, i);
		ST_CHECK(st, !st_recv(st, to, recv, at, bytes + 10), "post_recv");
		ST_CHECK(st, !st_send(st, from, send, IB_WR_SEND_WITH_IMM, i, bytes, 0xabcd0000 + i),
			 "post_send");
		if (!st_wait(st, to, recv, IB_WC_SUCCESS, "receive of a SEND") ||
		    !st_wait(st, from, send, IB_WC_SUCCESS, "SEND"))
			return;
		ST_CHECK(st, recv->wc.byte_len == bytes, "byte_len %u, not %u", recv->wc.byte_len,
			 bytes);
		ST_CHECK(st, recv->wc.opcode == IB_WC_RECV, "opcode %u", recv->wc.opcode);
		ST_CHECK(st, send->wc.opcode == IB_WC_SEND, "opcode %u", send->wc.opcode);
		ST_CHECK(st, recv->wc.qp == to->qp && send->wc.qp == from->qp, "wc.qp");
		ST_CHECK(st,
			 recv->wc.wc_flags & IB_WC_WITH_IMM &&
				 be32_to_cpu(recv->wc.ex.imm_data) == 0xabcd0000 + i,
			 "immediate data %#x", be32_to_cpu(recv->wc.ex.imm_data));
		st_compare(st, to, at, bytes, i, "SEND");
	}
}

static void st_inline_sends_arrive_whole(struct st *st)
{
	struct st_end *from = &st->end[1], *to = &st->end[0];
	u32 bytes;

	for (bytes = 1; bytes <= 100; bytes += 11) {
		struct st_op *recv = st_op(st, 0), *send = st_op(st, 1);
		struct ib_sge sge = { .addr = (uintptr_t)from->buf, .length = bytes };
		struct ib_send_wr wr = {
			.wr_cqe = &send->cqe,
			.sg_list = &sge,
			.num_sge = 1,
			.opcode = IB_WR_SEND,
			.send_flags = IB_SEND_SIGNALED | IB_SEND_INLINE | IB_SEND_SOLICITED,
		};

		memset(to->buf, 0, 4096);
		st_fill(from, 0, bytes, bytes);
		ST_CHECK(st, !st_recv(st, to, recv, 5, 200), "post_recv");
		ST_CHECK(st, !ib_post_send(from->qp, &wr, NULL), "post_send inline");
		/* The data has been taken. */
		memset(from->buf, 0xee, bytes);
		if (!st_wait(st, to, recv, IB_WC_SUCCESS, "receive of an inline SEND") ||
		    !st_wait(st, from, send, IB_WC_SUCCESS, "inline SEND"))
			return;
		st_compare(st, to, 5, bytes, bytes, "inline SEND");
	}
}

static void st_scattered_sends_arrive_in_order(struct st *st)
{
	struct st_end *from = &st->end[0], *to = &st->end[1];
	struct st_op *recv = st_op(st, 0), *send = st_op(st, 1);
	u32 lkey = st->pd->local_dma_lkey;
	struct ib_sge out[3] = {
		{ .addr = from->dma, .length = 100, .lkey = lkey },
		{ .addr = from->dma + 5000, .length = 1, .lkey = lkey },
		{ .addr = from->dma + 9001, .length = 3000, .lkey = lkey },
	};
	struct ib_sge in[2] = {
		{ .addr = to->dma + 40000, .length = 1500, .lkey = lkey },
		{ .addr = to->dma + 17, .length = 1601, .lkey = lkey },
	};
	struct ib_recv_wr recv_wr = { .wr_cqe = &recv->cqe, .sg_list = in, .num_sge = 2 };
	struct ib_send_wr send_wr = {
		.wr_cqe = &send->cqe,
		.sg_list = out,
		.num_sge = 3,
		.opcode = IB_WR_SEND,
		.send_flags = IB_SEND_SIGNALED,
	};
	u32 i, wrong = 0;

	memset(to->buf, 0, ST_BUF_BYTES);
	for (i = 0; i < 3101; i++) {
		u32 at = i < 100 ? i : i < 101 ? 5000 : 9001 + i - 101;

		from->buf[at] = st_byte(77, i);
	}
	ST_CHECK(st, !ib_post_recv(to->qp, &recv_wr, NULL), "post_recv");
	ST_CHECK(st, !ib_post_send(from->qp, &send_wr, NULL), "post_send");
	if (!st_wait(st, to, recv, IB_WC_SUCCESS, "receive of a scattered SEND") ||
	    !st_wait(st, from, send, IB_WC_SUCCESS, "scattered SEND"))
		return;
	for (i = 0; i < 3101; i++)
		wrong += to->buf[i < 1500 ? 40000 + i : 17 + i - 1500] != st_byte(77, i);
	ST_CHECK(st, !wrong, "scattered SEND: %u bytes wrong", wrong);
}

static void st_writes_and_reads_move_every_byte(struct st *st)
{
	struct st_end *from = &st->end[0], *to = &st->end[1];
	u32 rkey = st->pd->unsafe_global_rkey;
	u32 i;

	for (i = 0; i < ARRAY_SIZE(st_sizes); i++) {
		struct st_op *recv = st_op(st, 0), *write = st_op(st, 1), *read = st_op(st, 2);
		u32 bytes = st_sizes[i], at = 5 * i;

		memset(to->buf, 0, ST_BUF_BYTES);
		st_fill(from, i, bytes, i + 100);
		ST_CHECK(st, !st_recv(st, to, recv, 0, 0), "post_recv");
		ST_CHECK(st,
			 !st_rdma(st, from, write, IB_WR_RDMA_WRITE_WITH_IMM, i, bytes, to->dma + at,
				  rkey),
			 "post_send");
		if (!st_wait(st, from, write, IB_WC_SUCCESS, "RDMA WRITE") ||
		    !st_wait(st, to, recv, IB_WC_SUCCESS, "receive of a WRITE's immediate"))
			return;
		ST_CHECK(st, recv->wc.opcode == IB_WC_RECV_RDMA_WITH_IMM, "opcode %u",
			 recv->wc.opcode);
		ST_CHECK(st, be32_to_cpu(recv->wc.ex.imm_data) == 0x11223344, "immediate data");
		st_compare(st, to, at, bytes, i + 100, "RDMA WRITE");

		memset(from->buf, 0, ST_BUF_BYTES);
		ST_CHECK(st,
			 !st_rdma(st, from, read, IB_WR_RDMA_READ, 11, bytes, to->dma + at, rkey),
			 "post_send");
		if (!st_wait(st, from, read, IB_WC_SUCCESS, "RDMA READ"))
			return;
		ST_CHECK(st, read->wc.opcode == IB_WC_RDMA_READ, "opcode %u", read->wc.opcode);
		st_compare(st, from, 11, bytes, i + 100, "RDMA READ");
	}
}

static void st_rings_wrap_with_few_signals(struct st *st)
{
	struct st_end *from = &st->end[0], *to = &st->end[1];
	u32 round, i;

	for (round = 0; round < 20; round++) {
		for (i = 0; i < 7; i++) {
			st_fill(from, i * 64, 64, round * 7 + i);
			ST_CHECK(st, !st_recv(st, to, st_op(st, i), i * 64, 64), "post_recv");
		}
		for (i = 0; i < 7; i++)
			ST_CHECK(st,
				 !st_send(st, from, i == 6 ? st_op(st, 7) : NULL,
					  IB_WR_SEND, i * 64, 64, 0),
				 "post_send in round %u", round);
		for (i = 0; i < 7; i++)
			if (!st_wait(st, to, &st->ops[i], IB_WC_SUCCESS, "receive"))
				return;
		if (!st_wait(st, from, &st->ops[7], IB_WC_SUCCESS, "last SEND of a round"))
			return;
		for (i = 0; i < 7; i++)
			ST_CHECK(st, to->buf[i * 64 + 63] == st_byte(round * 7 + i, 63),
				 "message %u of round %u", i, round);
	}
}

static void st_a_send_waits_for_its_receive(struct st *st)
{
	struct st_end *from = &st->end[1], *to = &st->end[0];
	struct st_op *recv = st_op(st, 0), *send = st_op(st, 1);

	memset(to->buf, 0, 4096);
	st_fill(from, 0, 500, 9);
	ST_CHECK(st, !st_send(st, from, send, IB_WR_SEND, 0, 500, 0), "post_send");
	msleep(20);
	ST_CHECK(st, !completion_done(&send->done), "a SEND without a receive is complete");
	ST_CHECK(st, !st_recv(st, to, recv, 0, 500), "post_recv");
	if (!st_wait(st, to, recv, IB_WC_SUCCESS, "late receive") ||
	    !st_wait(st, from, send, IB_WC_SUCCESS, "early SEND"))
		return;
	st_compare(st, to, 0, 500, 9, "early SEND");
}

/* No more than the queue holds, be that what was asked for or a little more. */
static void st_a_full_queue_refuses(struct st *st)
{
	struct st_end *end = &st->end[0];
	u32 posted = 0, i;

	while (posted < 2 * ST_DEPTH && !st_recv(st, end, st_op(st, posted), 0, 64))
		posted++;
	ST_CHECK(st, posted >= ST_DEPTH && posted < 2 * ST_DEPTH,
		 "a receive queue of %u took %u requests", ST_DEPTH, posted);
	/* Uses them up. */
	for (i = 0; i < posted; i++) {
		struct st_op *last = &st->ops[2 * ST_DEPTH - 1];

		if (i % 8 == 7 || i == posted - 1)
			st_op(st, 2 * ST_DEPTH - 1);
		else
			last = NULL;
		ST_CHECK(st, !st_send(st, &st->end[1], last, IB_WR_SEND, 0, 8, 0), "post_send");
		if (last && !st_wait(st, &st->end[1], last, IB_WC_SUCCESS, "SEND"))
			return;
	}
	for (i = 0; i < posted; i++)
		if (!st_wait(st, end, &st->ops[i], IB_WC_SUCCESS, "receive"))
			return;
}

static void st_a_bad_key_breaks_the_connection_and_reset_heals_it(struct st *st)
{
	struct st_end *from = &st->end[0], *to = &st->end[1];
	struct st_op *bad = st_op(st, 0), *later = st_op(st, 1), *recv = st_op(st, 2);

	ST_CHECK(st, !st_recv(st, from, recv, 0, 64), "post_recv");
	ST_CHECK(st,
		 !st_rdma(st, from, bad, IB_WR_RDMA_WRITE, 0, 64, to->dma,
			  st->pd->unsafe_global_rkey ^ 0x5a5a5a00),
		 "post_send");
	ST_CHECK(st, !st_send(st, from, later, IB_WR_SEND, 0, 64, 0), "post_send");
	if (!st_wait(st, from, bad, IB_WC_REM_ACCESS_ERR, "WRITE with a bad key") ||
	    !st_wait(st, from, later, IB_WC_WR_FLUSH_ERR, "SEND behind it") ||
	    !st_wait(st, from, recv, IB_WC_WR_FLUSH_ERR, "receive of the broken QP"))
		return;
	st_connect_anew(st);
}
