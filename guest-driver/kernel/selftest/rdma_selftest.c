// SPDX-License-Identifier: GPL-2.0
/*
 * Uses an RDMA device as a kernel consumer does: two RC QPs of one device, connected to each
 * other, and every byte of what they exchange compared. Knows nothing of the driver, so it can
 * be run over any RoCE v2 device. Loading succeeds if every check did; the log says which failed.
 *
 *   insmod rdma_selftest.ko [device=virtio_rdma0]
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <rdma/ib_cache.h>
#include <rdma/ib_verbs.h>

#define ST_BUF_BYTES 65536
#define ST_DEPTH 32
#define ST_TIMEOUT (20 * HZ)

static char *device = "virtio_rdma0";
module_param(device, charp, 0444);
MODULE_PARM_DESC(device, "RDMA device to test");

/* One work request and its completion. */
struct st_op {
	struct ib_cqe cqe;
	struct completion done;
	struct ib_wc wc;
};

/* One end of the connection. */
struct st_end {
	struct ib_cq *cq;
	struct ib_qp *qp;
	u8 *buf;
	u64 dma;
};

struct st {
	struct st_op ops[2 * ST_DEPTH]; /* those of a step, from the first */
	struct ib_device *dev;
	enum ib_poll_context context;
	const char *context_name;
	struct ib_pd *pd;
	struct st_end end[2];
	struct rdma_ah_attr ah;
	u32 failed;
	u32 checks;
};

#define ST_CHECK(st, condition, fmt, ...)                                                        \
	({                                                                                       \
		bool ok_ = (condition);                                                          \
		(st)->checks++;                                                                  \
		if (!ok_) {                                                                      \
			(st)->failed++;                                                          \
			pr_err("%s: FAILED: " fmt "\n", (st)->context_name, ##__VA_ARGS__);      \
		}                                                                                \
		ok_;                                                                             \
	})

static bool st_found;
static u32 st_total_failed;
static u32 st_total_checks;

static int st_set_up(struct st *st);
static void st_tear_down(struct st *st);
static int st_find_path(struct st *st);
static int st_connect(struct st *st);
static void st_sends_arrive_whole(struct st *st);
static void st_inline_sends_arrive_whole(struct st *st);
static void st_scattered_sends_arrive_in_order(struct st *st);
static void st_writes_and_reads_move_every_byte(struct st *st);
static void st_rings_wrap_with_few_signals(struct st *st);
static void st_a_send_waits_for_its_receive(struct st *st);
static void st_a_full_queue_refuses(struct st *st);
static void st_a_bad_key_breaks_the_connection_and_reset_heals_it(struct st *st);

static int st_add(struct ib_device *dev)
{
	static const struct {
		enum ib_poll_context context;
		const char *name;
	} contexts[] = {
		{ IB_POLL_WORKQUEUE, "workqueue" },
		{ IB_POLL_SOFTIRQ, "softirq" },
		{ IB_POLL_DIRECT, "direct" },
	};
	unsigned int i;

	if (strcmp(dev_name(&dev->dev), device))
		return -EOPNOTSUPP;
	st_found = true;
	for (i = 0; i < ARRAY_SIZE(contexts); i++) {
		struct st *st = kzalloc(sizeof(*st), GFP_KERNEL);
		int err;

		if (!st)
			return -ENOMEM;
		st->dev = dev;
		st->context = contexts[i].context;
		st->context_name = contexts[i].name;
		err = st_set_up(st);
		if (ST_CHECK(st, !err, "set up: %d", err)) {
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
		st_tear_down(st);
		pr_info("%s: %u checks, %u failed\n", st->context_name, st->checks, st->failed);
		st_total_failed += st->failed;
		st_total_checks += st->checks;
		kfree(st);
	}
	return 0;
}

static void st_remove(struct ib_device *dev, void *data)
{
}

static struct ib_client st_client = {
	.name = "rdma_selftest",
	.add = st_add,
	.remove = st_remove,
};

static int __init st_init(void)
{
	int err;

	err = ib_register_client(&st_client);
	if (err)
		return err;
	if (!st_found) {
		pr_err("there is no RDMA device %s\n", device);
		err = -ENODEV;
	} else if (st_total_failed) {
		err = -EIO;
	} else {
		pr_info("%s: PASS, %u checks\n", device, st_total_checks);
	}
	if (err)
		ib_unregister_client(&st_client);
	return err;
}
module_init(st_init);

static void __exit st_exit(void)
{
	ib_unregister_client(&st_client);
}
module_exit(st_exit);

static int st_set_up(struct st *st)
{
	struct ib_qp_init_attr attr = {
		.cap = {
			.max_send_wr = ST_DEPTH,
			.max_recv_wr = ST_DEPTH,
			.max_send_sge = 3,
			.max_recv_sge = 2,
			.max_inline_data = 100,
		},
		.sq_sig_type = IB_SIGNAL_REQ_WR,
		.qp_type = IB_QPT_RC,
	};
	int i, err;

	st->pd = ib_alloc_pd(st->dev, IB_PD_UNSAFE_GLOBAL_RKEY);
	if (IS_ERR(st->pd)) {
		err = PTR_ERR(st->pd);
		st->pd = NULL;
		return err;
	}
	for (i = 0; i < 2; i++) {
		struct st_end *end = &st->end[i];

		end->buf = kzalloc(ST_BUF_BYTES, GFP_KERNEL);
		if (!end->buf)
			return -ENOMEM;
		end->dma = ib_dma_map_single(st->dev, end->buf, ST_BUF_BYTES, DMA_BIDIRECTIONAL);
		if (ib_dma_mapping_error(st->dev, end->dma)) {
			kfree(end->buf);
			end->buf = NULL;
			return -EIO;
		}
		end->cq = ib_alloc_cq(st->dev, NULL, 4 * ST_DEPTH,
				      i % st->dev->num_comp_vectors, st->context);
		if (IS_ERR(end->cq)) {
			err = PTR_ERR(end->cq);
			end->cq = NULL;
			return err;
		}
		attr.send_cq = end->cq;
		attr.recv_cq = end->cq;
		end->qp = ib_create_qp(st->pd, &attr);
		if (IS_ERR(end->qp)) {
			err = PTR_ERR(end->qp);
			end->qp = NULL;
			return err;
		}
	}
	err = st_find_path(st);
	if (err)
		return err;
	return st_connect(st);
}

static void st_tear_down(struct st *st)
{
	int i;

	for (i = 0; i < 2; i++) {
		struct st_end *end = &st->end[i];

		if (end->qp) {
			/* Waits for the flush of all that is posted, and so proves it. */
			ib_drain_qp(end->qp);
			ib_destroy_qp(end->qp);
		}
		if (end->cq)
			ib_free_cq(end->cq);
		if (end->buf) {
			ib_dma_unmap_single(st->dev, end->dma, ST_BUF_BYTES, DMA_BIDIRECTIONAL);
			kfree(end->buf);
		}
	}
	if (st->pd)
		ib_dealloc_pd(st->pd);
	rdma_destroy_ah_attr(&st->ah);
}

/* From the first RoCE v2 GID to itself. */
static int st_find_path(struct st *st)
{
	struct ib_port_attr port;
	int err, i;

	err = ib_query_port(st->dev, 1, &port);
	if (err)
		return err;
	for (i = 0; i < port.gid_tbl_len; i++) {
		const struct ib_gid_attr *gid = rdma_get_gid_attr(st->dev, 1, i);
		union ib_gid dgid;

		if (IS_ERR(gid))
			continue;
		if (gid->gid_type == IB_GID_TYPE_ROCE_UDP_ENCAP) {
			dgid = gid->gid;
			st->ah.type = RDMA_AH_ATTR_TYPE_ROCE;
			rdma_ah_set_port_num(&st->ah, 1);
			rdma_ah_set_grh(&st->ah, &dgid, 0, i, 64, 0);
			err = rdma_read_gid_l2_fields(gid, NULL, st->ah.roce.dmac);
			rdma_put_gid_attr(gid);
			return err;
		}
		rdma_put_gid_attr(gid);
	}
	return -EADDRNOTAVAIL;
}

static int st_connect(struct st *st)
{
	int i, err;

	for (i = 0; i < 2; i++) {
		struct ib_qp_attr attr = {
			.qp_state = IB_QPS_INIT,
			.port_num = 1,
			.qp_access_flags = IB_ACCESS_REMOTE_READ | IB_ACCESS_REMOTE_WRITE |
					   IB_ACCESS_LOCAL_WRITE,
		};

		err = ib_modify_qp(st->end[i].qp, &attr,
				   IB_QP_STATE | IB_QP_PKEY_INDEX | IB_QP_PORT |
					   IB_QP_ACCESS_FLAGS);
		if (err)
			return err;
	}
	for (i = 0; i < 2; i++) {
		struct ib_qp_attr attr = {
			.qp_state = IB_QPS_RTR,
			.path_mtu = IB_MTU_1024,
			.dest_qp_num = st->end[!i].qp->qp_num,
			.rq_psn = 0xfffff0 + i,
			.max_dest_rd_atomic = 4,
			.min_rnr_timer = 1,
			.ah_attr = st->ah,
		};

		err = ib_modify_qp(st->end[i].qp, &attr,
				   IB_QP_STATE | IB_QP_AV | IB_QP_PATH_MTU | IB_QP_DEST_QPN |
					   IB_QP_RQ_PSN | IB_QP_MAX_DEST_RD_ATOMIC |
					   IB_QP_MIN_RNR_TIMER);
		if (err)
			return err;
	}
	for (i = 0; i < 2; i++) {
		struct ib_qp_attr attr = {
			.qp_state = IB_QPS_RTS,
			.sq_psn = 0xfffff0 + !i,
			.max_rd_atomic = 4,
			.timeout = 14,
			.retry_cnt = 7,
			.rnr_retry = 7,
		};

		err = ib_modify_qp(st->end[i].qp, &attr,
				   IB_QP_STATE | IB_QP_SQ_PSN | IB_QP_MAX_QP_RD_ATOMIC |
					   IB_QP_TIMEOUT | IB_QP_RETRY_CNT | IB_QP_RNR_RETRY);
		if (err)
			return err;
	}
	return 0;
}

static void st_done(struct ib_cq *cq, struct ib_wc *wc)
{
	struct st_op *op = container_of(wc->wr_cqe, struct st_op, cqe);

	op->wc = *wc;
	complete(&op->done);
}

/* Comes only when the QP is flushed. */
static void st_unsignalled_done(struct ib_cq *cq, struct ib_wc *wc)
{
}

/* Operation `i` of this step; whatever it was before is complete. */
static struct st_op *st_op(struct st *st, u32 i)
{
	struct st_op *op = &st->ops[i];

	memset(op, 0, sizeof(*op));
	op->cqe.done = st_done;
	init_completion(&op->done);
	return op;
}

/* True if the operation completes with this status. */
static bool st_wait(struct st *st, struct st_end *end, struct st_op *op, enum ib_wc_status status,
		    const char *what)
{
	unsigned long deadline = jiffies + ST_TIMEOUT;
	bool done;

	while (!(done = try_wait_for_completion(&op->done)) && time_before(jiffies, deadline)) {
		if (st->context == IB_POLL_DIRECT)
			ib_process_cq_direct(end->cq, -1);
		else
			usleep_range(20, 100);
	}
	if (!ST_CHECK(st, done, "%s: no completion", what))
		return false;
	return ST_CHECK(st, op->wc.status == status, "%s: status %s, not %s", what,
			ib_wc_status_msg(op->wc.status), ib_wc_status_msg(status));
}

static int st_recv(struct st *st, struct st_end *end, struct st_op *op, u32 offset, u32 bytes)
{
	struct ib_sge sge = {
		.addr = end->dma + offset,
		.length = bytes,
		.lkey = st->pd->local_dma_lkey,
	};
	struct ib_recv_wr wr = { .wr_cqe = &op->cqe, .sg_list = &sge, .num_sge = 1 };

	return ib_post_recv(end->qp, &wr, NULL);
}

/* `op` is NULL for a request without a signal. */
static int st_send(struct st *st, struct st_end *end, struct st_op *op, enum ib_wr_opcode opcode,
		   u32 offset, u32 bytes, u32 imm)
{
	static struct ib_cqe unsignalled = { .done = st_unsignalled_done };
	struct ib_sge sge = {
		.addr = end->dma + offset,
		.length = bytes,
		.lkey = st->pd->local_dma_lkey,
	};
	struct ib_send_wr wr = {
		.wr_cqe = op ? &op->cqe : &unsignalled,
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = opcode,
		.send_flags = op ? IB_SEND_SIGNALED : 0,
		.ex.imm_data = cpu_to_be32(imm),
	};

	return ib_post_send(end->qp, &wr, NULL);
}

static int st_rdma(struct st *st, struct st_end *end, struct st_op *op, enum ib_wr_opcode opcode,
		   u32 offset, u32 bytes, u64 remote, u32 rkey)
{
	struct ib_sge sge = {
		.addr = end->dma + offset,
		.length = bytes,
		.lkey = st->pd->local_dma_lkey,
	};
	struct ib_rdma_wr wr = {
		.wr = {
			.wr_cqe = &op->cqe,
			.sg_list = &sge,
			.num_sge = 1,
			.opcode = opcode,
			.send_flags = IB_SEND_SIGNALED,
			.ex.imm_data = cpu_to_be32(0x11223344),
		},
		.remote_addr = remote,
		.rkey = rkey,
	};

	return ib_post_send(end->qp, &wr.wr, NULL);
}

/* What byte `i` of a message with this seed is. */
static u8 st_byte(u32 seed, u32 i)
{
	return (u8)(seed * 31 + i * 7 + (i >> 8) * 13 + 1);
}

static void st_fill(struct st_end *end, u32 offset, u32 bytes, u32 seed)
{
	u32 i;

	for (i = 0; i < bytes; i++)
		end->buf[offset + i] = st_byte(seed, i);
}

/* The bytes are those of the message, and the one behind it is untouched. */
static void st_compare(struct st *st, struct st_end *end, u32 offset, u32 bytes, u32 seed,
		       const char *what)
{
	u32 i = 0;

	while (i < bytes && end->buf[offset + i] == st_byte(seed, i))
		i++;
	ST_CHECK(st, i == bytes, "%s: byte %u of %u is wrong", what, i, bytes);
	if (offset + bytes < ST_BUF_BYTES)
		ST_CHECK(st, !end->buf[offset + bytes], "%s: the byte behind %u is changed", what,
			 bytes);
}

static const u32 st_sizes[] = { 0, 1, 7, 63, 64, 65, 1023, 1024, 1025, 4095, 4097, 32768 };

static void st_sends_arrive_whole(struct st *st)
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
	struct ib_qp_attr attr = { .qp_state = IB_QPS_ERR };
	int i;

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

	for (i = 0; i < 2; i++) {
		ib_drain_qp(st->end[i].qp);
		attr.qp_state = IB_QPS_ERR;
		ST_CHECK(st, !ib_modify_qp(st->end[i].qp, &attr, IB_QP_STATE), "to ERR");
		attr.qp_state = IB_QPS_RESET;
		ST_CHECK(st, !ib_modify_qp(st->end[i].qp, &attr, IB_QP_STATE), "to RESET");
	}
	ST_CHECK(st, !st_connect(st), "connecting anew");
}

MODULE_DESCRIPTION("Self-test of RDMA devices from within the kernel");
MODULE_AUTHOR("The vhost-rdma authors");
MODULE_LICENSE("GPL");
