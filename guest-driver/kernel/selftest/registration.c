// SPDX-License-Identifier: GPL-2.0
/*
 * Fast registration as NVMe and NFS use it: memory of end 1 is put behind a key by a work request,
 * used by end 0, and taken away by either side. Atomics on such memory.
 */
#include "st.h"

#include <linux/scatterlist.h>

#define ST_MR_PAGES 16

/* Pages of end 1's buffer, out of order, with a part of the first and of the last. */
static const struct {
	u32 at;
	u32 bytes;
} st_parts[] = { { 3 * 4096 + 100, 3996 }, { 7 * 4096, 8192 }, { 4096, 1000 } };
#define ST_MR_BYTES (3996 + 8192 + 1000)

static void st_registered_memory_is_the_peers(struct st *st, struct ib_mr *mr);
static void st_the_peer_takes_the_memory_away(struct st *st, struct ib_mr *mr);
static void st_registration_and_use_in_one_chain(struct st *st, struct ib_mr *mr);
static void st_atomics_change_what_they_should(struct st *st, struct ib_mr *mr);
static void st_an_invalid_key_breaks_the_connection(struct st *st, struct ib_mr *mr);

void st_registration(struct st *st)
{
	struct ib_mr *mr;

	if (!(st->dev->attrs.device_cap_flags & IB_DEVICE_MEM_MGT_EXTENSIONS)) {
		pr_notice("skipped: the device has no fast registration\n");
		return;
	}
	mr = ib_alloc_mr(st->pd, IB_MR_TYPE_MEM_REG, ST_MR_PAGES);
	if (!ST_CHECK(st, !IS_ERR(mr), "alloc_mr: %ld", PTR_ERR(mr)))
		return;
	st_registered_memory_is_the_peers(st, mr);
	st_the_peer_takes_the_memory_away(st, mr);
	st_registration_and_use_in_one_chain(st, mr);
	if (st->dev->attrs.atomic_cap != IB_ATOMIC_NONE)
		st_atomics_change_what_they_should(st, mr);
	else
		pr_notice("skipped: the device has no atomics\n");
	st_an_invalid_key_breaks_the_connection(st, mr);
	ST_CHECK(st, !ib_dereg_mr(mr), "dereg_mr");
	st_sends_arrive_whole(st);
}

/* Maps the parts into the MR, under a key that it has not had before. */
static void st_map(struct st *st, struct ib_mr *mr)
{
	struct scatterlist sg[ARRAY_SIZE(st_parts)];
	unsigned int i;
	int n;

	sg_init_table(sg, ARRAY_SIZE(sg));
	for (i = 0; i < ARRAY_SIZE(sg); i++) {
		sg_set_buf(&sg[i], st->end[1].buf + st_parts[i].at, st_parts[i].bytes);
		sg_dma_address(&sg[i]) = st->end[1].dma + st_parts[i].at;
		sg_dma_len(&sg[i]) = st_parts[i].bytes;
	}
	n = ib_map_mr_sg(mr, sg, ARRAY_SIZE(sg), NULL, 4096);
	ST_CHECK(st, n == ARRAY_SIZE(sg), "map_mr_sg: %d", n);
	ST_CHECK(st, mr->length == ST_MR_BYTES, "the MR has %llu bytes", (u64)mr->length);
	ib_update_fast_reg_key(mr, (mr->rkey + 1) & 0xff);
}

static struct ib_reg_wr st_reg_wr(struct ib_mr *mr, struct st_op *op, int access)
{
	return (struct ib_reg_wr){
		.wr = {
			.wr_cqe = &op->cqe,
			.opcode = IB_WR_REG_MR,
			.send_flags = IB_SEND_SIGNALED,
		},
		.mr = mr,
		.key = mr->rkey,
		.access = access,
	};
}

static bool st_register(struct st *st, struct ib_mr *mr, struct st_op *op, int access)
{
	struct ib_reg_wr wr;

	st_map(st, mr);
	wr = st_reg_wr(mr, op, access);
	ST_CHECK(st, !ib_post_send(st->end[1].qp, &wr.wr, NULL), "post_send of REG_MR");
	if (!st_wait(st, &st->end[1], op, IB_WC_SUCCESS, "REG_MR"))
		return false;
	return ST_CHECK(st, op->wc.opcode == IB_WC_REG_MR, "opcode %u", op->wc.opcode);
}

/* Byte `i` of the memory behind the key. */
static u8 *st_mr_byte(struct st *st, u32 i)
{
	unsigned int part = 0;

	while (i >= st_parts[part].bytes)
		i -= st_parts[part++].bytes;
	return st->end[1].buf + st_parts[part].at + i;
}

static void st_compare_mr(struct st *st, u32 seed, const char *what)
{
	u32 i, wrong = 0;

	for (i = 0; i < ST_MR_BYTES; i++)
		wrong += *st_mr_byte(st, i) != st_byte(seed, i);
	ST_CHECK(st, !wrong, "%s: %u bytes wrong", what, wrong);
	ST_CHECK(st, !st->end[1].buf[3 * 4096 + 99] && !st->end[1].buf[4096 + 1000],
		 "%s: bytes beside the MR are changed", what);
}

static void st_registered_memory_is_the_peers(struct st *st, struct ib_mr *mr)
{
	struct st_end *from = &st->end[0], *to = &st->end[1];
	struct st_op *reg = st_op(st, 0), *write = st_op(st, 1), *read = st_op(st, 2);

	memset(to->buf, 0, ST_BUF_BYTES);
	if (!st_register(st, mr, reg,
			 IB_ACCESS_LOCAL_WRITE | IB_ACCESS_REMOTE_WRITE | IB_ACCESS_REMOTE_READ))
		return;
	st_fill(from, 0, ST_MR_BYTES, 5);
	ST_CHECK(st,
		 !st_rdma(st, from, write, IB_WR_RDMA_WRITE, 0, ST_MR_BYTES, mr->iova, mr->rkey),
		 "post_send");
	if (!st_wait(st, from, write, IB_WC_SUCCESS, "WRITE to registered memory"))
		return;
	st_compare_mr(st, 5, "WRITE to registered memory");

	memset(from->buf, 0, ST_BUF_BYTES);
	ST_CHECK(st,
		 !st_rdma(st, from, read, IB_WR_RDMA_READ, 7, ST_MR_BYTES, mr->iova, mr->rkey),
		 "post_send");
	if (!st_wait(st, from, read, IB_WC_SUCCESS, "READ of registered memory"))
		return;
	st_compare(st, from, 7, ST_MR_BYTES, 5, "READ of registered memory");
}

static void st_the_peer_takes_the_memory_away(struct st *st, struct ib_mr *mr)
{
	struct st_end *from = &st->end[0], *to = &st->end[1];
	struct st_op *recv = st_op(st, 0), *send = st_op(st, 1), *reg = st_op(st, 2);
	struct st_op *inv = st_op(st, 3);
	struct ib_sge sge = { .addr = from->dma, .length = 8, .lkey = st->pd->local_dma_lkey };
	struct ib_send_wr wr = {
		.wr_cqe = &send->cqe,
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = IB_WR_SEND_WITH_INV,
		.send_flags = IB_SEND_SIGNALED,
		.ex.invalidate_rkey = mr->rkey,
	};

	ST_CHECK(st, !st_recv(st, to, recv, 60000, 64), "post_recv");
	ST_CHECK(st, !ib_post_send(from->qp, &wr, NULL), "post_send of SEND_WITH_INV");
	if (!st_wait(st, to, recv, IB_WC_SUCCESS, "receive of SEND_WITH_INV") ||
	    !st_wait(st, from, send, IB_WC_SUCCESS, "SEND_WITH_INV"))
		return;
	ST_CHECK(st,
		 recv->wc.wc_flags & IB_WC_WITH_INVALIDATE &&
			 recv->wc.ex.invalidate_rkey == mr->rkey,
		 "flags %#x, key %#x", recv->wc.wc_flags, recv->wc.ex.invalidate_rkey);

	/* It is free for the next registration, and to be taken away at this end. */
	if (!st_register(st, mr, reg, IB_ACCESS_LOCAL_WRITE | IB_ACCESS_REMOTE_WRITE))
		return;
	wr = (struct ib_send_wr){
		.wr_cqe = &inv->cqe,
		.opcode = IB_WR_LOCAL_INV,
		.send_flags = IB_SEND_SIGNALED,
		.ex.invalidate_rkey = mr->rkey,
	};
	ST_CHECK(st, !ib_post_send(to->qp, &wr, NULL), "post_send of LOCAL_INV");
	if (!st_wait(st, to, inv, IB_WC_SUCCESS, "LOCAL_INV"))
		return;
	ST_CHECK(st, inv->wc.opcode == IB_WC_LOCAL_INV, "opcode %u", inv->wc.opcode);
}

/* One call posts the registration, a SEND out of the memory under its key, and the end of it. */
static void st_registration_and_use_in_one_chain(struct st *st, struct ib_mr *mr)
{
	struct st_end *from = &st->end[1], *to = &st->end[0];
	struct st_op *reg = st_op(st, 0), *send = st_op(st, 1), *inv = st_op(st, 2);
	struct st_op *recv = st_op(st, 3);
	struct ib_sge sge;
	struct ib_send_wr send_wr = {
		.wr_cqe = &send->cqe,
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = IB_WR_SEND,
	};
	struct ib_send_wr inv_wr = {
		.wr_cqe = &inv->cqe,
		.opcode = IB_WR_LOCAL_INV,
		.send_flags = IB_SEND_SIGNALED,
	};
	struct ib_reg_wr reg_wr;
	u32 i;

	memset(to->buf, 0, ST_BUF_BYTES);
	for (i = 0; i < ST_MR_BYTES; i++)
		*st_mr_byte(st, i) = st_byte(9, i);
	st_map(st, mr);
	reg_wr = st_reg_wr(mr, reg, IB_ACCESS_LOCAL_WRITE);
	reg_wr.wr.send_flags = 0;
	reg_wr.wr.next = &send_wr;
	sge = (struct ib_sge){ .addr = mr->iova, .length = ST_MR_BYTES, .lkey = mr->lkey };
	send_wr.next = &inv_wr;
	inv_wr.ex.invalidate_rkey = mr->rkey;
	ST_CHECK(st, !st_recv(st, to, recv, 0, ST_MR_BYTES), "post_recv");
	ST_CHECK(st, !ib_post_send(from->qp, &reg_wr.wr, NULL), "post_send of a chain");
	if (!st_wait(st, to, recv, IB_WC_SUCCESS, "receive of what was registered") ||
	    !st_wait(st, from, inv, IB_WC_SUCCESS, "LOCAL_INV at the end of a chain"))
		return;
	ST_CHECK(st, !completion_done(&reg->done) && !completion_done(&send->done),
		 "a completion that nobody asked for");
	st_compare(st, to, 0, ST_MR_BYTES, 9, "SEND of what was registered");
}

static bool st_atomic(struct st *st, struct ib_mr *mr, enum ib_wr_opcode opcode, u64 compare_add,
		      u64 swap, u64 before, u64 after)
{
	/* Where the second part begins, aligned to 8: iova is 100 into a page. */
	const u32 at = 3996;
	struct st_end *from = &st->end[0];
	struct st_op *op = st_op(st, 1);
	struct ib_sge sge = { .addr = from->dma, .length = 8, .lkey = st->pd->local_dma_lkey };
	struct ib_atomic_wr wr = {
		.wr = {
			.wr_cqe = &op->cqe,
			.sg_list = &sge,
			.num_sge = 1,
			.opcode = opcode,
			.send_flags = IB_SEND_SIGNALED,
		},
		.remote_addr = mr->iova + at,
		.compare_add = compare_add,
		.swap = swap,
		.rkey = mr->rkey,
	};

	ST_CHECK(st, !ib_post_send(from->qp, &wr.wr, NULL), "post_send of an atomic");
	if (!st_wait(st, from, op, IB_WC_SUCCESS, "atomic"))
		return false;
	ST_CHECK(st, *(u64 *)from->buf == before, "what was there: %#llx, not %#llx",
		 *(u64 *)from->buf, before);
	return ST_CHECK(st, *(u64 *)st_mr_byte(st, at) == after, "what is there: %#llx, not %#llx",
			*(u64 *)st_mr_byte(st, at), after);
}

static void st_atomics_change_what_they_should(struct st *st, struct ib_mr *mr)
{
	struct st_op *inv = st_op(st, 2);
	struct ib_send_wr wr = {
		.wr_cqe = &inv->cqe,
		.opcode = IB_WR_LOCAL_INV,
		.send_flags = IB_SEND_SIGNALED,
	};

	if (!st_register(st, mr, st_op(st, 0), IB_ACCESS_LOCAL_WRITE | IB_ACCESS_REMOTE_ATOMIC))
		return;
	*(u64 *)st_mr_byte(st, 3996) = 0x1122334455667788;
	if (!st_atomic(st, mr, IB_WR_ATOMIC_FETCH_AND_ADD, 0x100000000, 0, 0x1122334455667788,
		       0x1122334555667788) ||
	    !st_atomic(st, mr, IB_WR_ATOMIC_CMP_AND_SWP, 7, 8, 0x1122334555667788,
		       0x1122334555667788) ||
	    !st_atomic(st, mr, IB_WR_ATOMIC_CMP_AND_SWP, 0x1122334555667788, 9, 0x1122334555667788,
		       9))
		return;
	wr.ex.invalidate_rkey = mr->rkey;
	ST_CHECK(st, !ib_post_send(st->end[1].qp, &wr, NULL), "post_send of LOCAL_INV");
	st_wait(st, &st->end[1], inv, IB_WC_SUCCESS, "LOCAL_INV");
}

static void st_an_invalid_key_breaks_the_connection(struct st *st, struct ib_mr *mr)
{
	struct st_end *from = &st->end[0];
	struct st_op *write = st_op(st, 0);

	memset(st->end[1].buf, 0, ST_BUF_BYTES);
	ST_CHECK(st, !st_rdma(st, from, write, IB_WR_RDMA_WRITE, 0, 64, mr->iova, mr->rkey),
		 "post_send");
	st_wait(st, from, write, IB_WC_REM_ACCESS_ERR, "WRITE with a key that was taken away");
	ST_CHECK(st, !*st_mr_byte(st, 0), "the WRITE has changed something");
	st_connect_anew(st);
}
