// SPDX-License-Identifier: GPL-2.0
/*
 * A shared receive queue: end 1 takes its receives from it. What is in the messages is
 * messages.c's.
 */
#include "st.h"

#include <linux/delay.h>

static void st_shared_receives_are_used_up_and_posted_again(struct st *st);
static void st_a_full_srq_refuses(struct st *st);
static void st_the_limit_is_told_once(struct st *st);

void st_shared_receives(struct st *st)
{
	st_sends_arrive_whole(st);
	st_shared_receives_are_used_up_and_posted_again(st);
	st_a_full_srq_refuses(st);
	st_the_limit_is_told_once(st);
	/* Draining waits until the SRQ's last receive is flushed or given up. */
	st_connect_anew(st);
	st_sends_arrive_whole(st);
}

/* `n` messages of 8 bytes, whose receives are operations 0 to n - 1, the last one's send the last. */
static bool st_use_up(struct st *st, u32 n)
{
	struct st_end *from = &st->end[0], *to = &st->end[1];
	u32 i;

	for (i = 0; i < n; i++) {
		bool last = i % 8 == 7 || i == n - 1;
		struct st_op *send = last ? st_op(st, ST_OPS - 1) : NULL;

		ST_CHECK(st, !st_send(st, from, send, IB_WR_SEND, 0, 8, 0), "post_send %u", i);
		if (last && !st_wait(st, from, send, IB_WC_SUCCESS, "SEND to an SRQ"))
			return false;
	}
	for (i = 0; i < n; i++) {
		if (!st_wait(st, to, &st->ops[i], IB_WC_SUCCESS, "receive of an SRQ"))
			return false;
		ST_CHECK(st, st->ops[i].wc.qp == to->qp, "wc.qp");
	}
	return true;
}

static void st_shared_receives_are_used_up_and_posted_again(struct st *st)
{
	u32 round, i;

	for (round = 0; round < 7; round++) {
		for (i = 0; i < ST_DEPTH - 3; i++)
			ST_CHECK(st, !st_recv(st, &st->end[1], st_op(st, i), i * 64, 64),
				 "post_srq_recv %u of round %u", i, round);
		if (!st_use_up(st, ST_DEPTH - 3))
			return;
	}
}

/* At what it holds, be that what was asked for or more. */
static void st_a_full_srq_refuses(struct st *st)
{
	u32 posted = 0;

	while (posted < ST_OPS - 1 && !st_recv(st, &st->end[1], st_op(st, posted), 0, 64))
		posted++;
	ST_CHECK(st, posted >= ST_DEPTH && posted < ST_OPS - 1,
		 "an SRQ of %u took %u requests", ST_DEPTH, posted);
	st_use_up(st, posted);
}

static void st_the_limit_is_told_once(struct st *st)
{
	struct ib_srq_attr attr = { .srq_limit = 4 };
	u32 i;

	for (i = 0; i < 8; i++)
		ST_CHECK(st, !st_recv(st, &st->end[1], st_op(st, i), i * 64, 64), "post_srq_recv");
	ST_CHECK(st, !ib_modify_srq(st->srq, &attr, IB_SRQ_LIMIT), "arming the limit");
	ST_CHECK(st, !ib_query_srq(st->srq, &attr) && attr.srq_limit == 4, "limit %u, not 4",
		 attr.srq_limit);
	ST_CHECK(st, attr.max_wr >= ST_DEPTH && attr.max_sge >= 2, "%u WRs of %u SGEs", attr.max_wr,
		 attr.max_sge);
	if (!st_use_up(st, 8))
		return;
	ST_CHECK(st, wait_for_completion_timeout(&st->srq_limit, ST_TIMEOUT), "no limit event");
	ST_CHECK(st, !ib_query_srq(st->srq, &attr) && !attr.srq_limit, "limit %u after its event",
		 attr.srq_limit);
	attr.srq_limit = 100000;
	ST_CHECK(st, ib_modify_srq(st->srq, &attr, IB_SRQ_LIMIT), "a limit beyond the queue");
	ST_CHECK(st, !try_wait_for_completion(&st->srq_limit), "a second limit event");
}
