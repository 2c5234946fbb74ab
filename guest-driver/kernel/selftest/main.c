// SPDX-License-Identifier: GPL-2.0
/*
 * Uses an RDMA device as a kernel consumer does: two RC QPs of one device, connected to each
 * other, and every byte of what they exchange compared. Here is what the tests in the other files
 * need: the two ends, posting, waiting, comparing. Knows nothing of the driver, so it can
 * be run over any RoCE v2 device. Loading succeeds if every check did; the log says which failed.
 *
 *   insmod rdma_selftest.ko [device=virtio_rdma0]
 */
#include "st.h"

#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <rdma/ib_cache.h>

static char *device = "virtio_rdma0";
module_param(device, charp, 0444);
MODULE_PARM_DESC(device, "RDMA device to test");

static bool st_found;
static u32 st_total_failed;
static u32 st_total_checks;

static int st_set_up(struct st *st);
static void st_tear_down(struct st *st);
static void st_srq_event(struct ib_event *event, void *context);
static int st_find_path(struct st *st);
static int st_connect(struct st *st);

static int st_add(struct ib_device *dev)
{
	static const struct {
		enum ib_poll_context context;
		const char *name;
		bool shared;
	} contexts[] = {
		{ IB_POLL_WORKQUEUE, "workqueue" },
		{ IB_POLL_SOFTIRQ, "softirq" },
		{ IB_POLL_DIRECT, "direct" },
		{ IB_POLL_WORKQUEUE, "shared", true },
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
		if (contexts[i].shared && !dev->attrs.max_srq) {
			pr_notice("skipped: the device has no SRQs\n");
			kfree(st);
			break;
		}
		st->dev = dev;
		st->context = contexts[i].context;
		st->context_name = contexts[i].name;
		st->shared = contexts[i].shared;
		err = st_set_up(st);
		if (ST_CHECK(st, !err, "set up: %d", err)) {
			if (st->shared)
				st_shared_receives(st);
			else
				st_messages(st);
			st_registration(st);
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
	struct ib_srq_init_attr srq_attr = {
		.event_handler = st_srq_event,
		.srq_context = st,
		.attr = { .max_wr = ST_DEPTH, .max_sge = 2 },
		.srq_type = IB_SRQT_BASIC,
	};
	int i, err;

	st->pd = ib_alloc_pd(st->dev, IB_PD_UNSAFE_GLOBAL_RKEY);
	if (IS_ERR(st->pd)) {
		err = PTR_ERR(st->pd);
		st->pd = NULL;
		return err;
	}
	if (st->shared) {
		init_completion(&st->srq_limit);
		st->srq = ib_create_srq(st->pd, &srq_attr);
		if (IS_ERR(st->srq)) {
			err = PTR_ERR(st->srq);
			st->srq = NULL;
			return err;
		}
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
		attr.srq = i == 1 ? st->srq : NULL;
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
	if (st->srq)
		ib_destroy_srq(st->srq);
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
					   IB_ACCESS_REMOTE_ATOMIC | IB_ACCESS_LOCAL_WRITE,
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

/* Whatever state the QPs are in. */
void st_connect_anew(struct st *st)
{
	struct ib_qp_attr attr;
	int i;

	for (i = 0; i < 2; i++) {
		ib_drain_qp(st->end[i].qp);
		attr.qp_state = IB_QPS_ERR;
		ST_CHECK(st, !ib_modify_qp(st->end[i].qp, &attr, IB_QP_STATE), "to ERR");
		attr.qp_state = IB_QPS_RESET;
		ST_CHECK(st, !ib_modify_qp(st->end[i].qp, &attr, IB_QP_STATE), "to RESET");
	}
	ST_CHECK(st, !st_connect(st), "connecting anew");
}

static void st_srq_event(struct ib_event *event, void *context)
{
	struct st *st = context;

	if (event->event == IB_EVENT_SRQ_LIMIT_REACHED)
		complete(&st->srq_limit);
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
struct st_op *st_op(struct st *st, u32 i)
{
	struct st_op *op = &st->ops[i];

	memset(op, 0, sizeof(*op));
	op->cqe.done = st_done;
	init_completion(&op->done);
	return op;
}

/* True if the operation completes with this status. */
bool st_wait(struct st *st, struct st_end *end, struct st_op *op, enum ib_wc_status status,
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

int st_recv(struct st *st, struct st_end *end, struct st_op *op, u32 offset, u32 bytes)
{
	struct ib_sge sge = {
		.addr = end->dma + offset,
		.length = bytes,
		.lkey = st->pd->local_dma_lkey,
	};
	struct ib_recv_wr wr = { .wr_cqe = &op->cqe, .sg_list = &sge, .num_sge = 1 };

	return end->qp->srq ? ib_post_srq_recv(end->qp->srq, &wr, NULL) :
			      ib_post_recv(end->qp, &wr, NULL);
}

/* `op` is NULL for a request without a signal. */
int st_send(struct st *st, struct st_end *end, struct st_op *op, enum ib_wr_opcode opcode,
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

int st_rdma(struct st *st, struct st_end *end, struct st_op *op, enum ib_wr_opcode opcode,
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
u8 st_byte(u32 seed, u32 i)
{
	return (u8)(seed * 31 + i * 7 + (i >> 8) * 13 + 1);
}

void st_fill(struct st_end *end, u32 offset, u32 bytes, u32 seed)
{
	u32 i;

	for (i = 0; i < bytes; i++)
		end->buf[offset + i] = st_byte(seed, i);
}

/* The bytes are those of the message, and the one behind it is untouched. */
void st_compare(struct st *st, struct st_end *end, u32 offset, u32 bytes, u32 seed,
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

MODULE_DESCRIPTION("Self-test of RDMA devices from within the kernel");
MODULE_AUTHOR("The vhost-rdma authors");
MODULE_LICENSE("GPL");
