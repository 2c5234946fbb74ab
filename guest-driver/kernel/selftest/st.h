/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of the self-test share: two ends of a connection, and how a step posts, waits and
 * compares.
 */
#ifndef ST_H
#define ST_H

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/slab.h>
#include <rdma/ib_verbs.h>

#define ST_BUF_BYTES 65536
#define ST_DEPTH 32
#define ST_OPS (4 * ST_DEPTH)
#define ST_TIMEOUT (20 * HZ)

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
	struct st_op ops[ST_OPS]; /* those of a step, from the first */
	struct ib_device *dev;
	enum ib_poll_context context;
	const char *context_name;
	bool shared; /* end 1 receives from the SRQ */
	struct ib_pd *pd;
	struct ib_srq *srq;
	struct completion srq_limit; /* its event */
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

/* main.c */
void st_connect_anew(struct st *st);
struct st_op *st_op(struct st *st, u32 i);
bool st_wait(struct st *st, struct st_end *end, struct st_op *op, enum ib_wc_status status,
	     const char *what);
int st_recv(struct st *st, struct st_end *end, struct st_op *op, u32 offset, u32 bytes);
int st_send(struct st *st, struct st_end *end, struct st_op *op, enum ib_wr_opcode opcode,
	    u32 offset, u32 bytes, u32 imm);
int st_rdma(struct st *st, struct st_end *end, struct st_op *op, enum ib_wr_opcode opcode,
	    u32 offset, u32 bytes, u64 remote, u32 rkey);
u8 st_byte(u32 seed, u32 i);
void st_fill(struct st_end *end, u32 offset, u32 bytes, u32 seed);
void st_compare(struct st *st, struct st_end *end, u32 offset, u32 bytes, u32 seed,
		const char *what);

/* messages.c: what every QP can do. */
void st_messages(struct st *st);
void st_sends_arrive_whole(struct st *st);

/* registration.c: fast registration, invalidation, atomics. */
void st_registration(struct st *st);

/* shared.c: a shared receive queue. */
void st_shared_receives(struct st *st);

#endif
