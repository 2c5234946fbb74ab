// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * A libibverbs whose devices are memory. All of them are on one fabric; a post carries a request out
 * before it returns. "stub0" and "stub1" work in user space; "slow0" makes a system call to post, to arm
 * and to make an address handle, as rxe's provider does. Not here: time (what
 * is tried again waits until it can be done, and a peer that is missing is given up at once).
 *
 * An MR keeps the pages that it was registered with, as a real one does, wherever its creator maps or
 * unmaps them afterwards: shared mappings are mapped once more; private ones are used where they are.
 */
#pragma once
#define _GNU_SOURCE
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RESET, INIT, RTR, RTS, SQD, SQE, ERR };
enum { QPT_RC = 2, QPT_UC = 3, QPT_UD = 4 };
enum { WR_WRITE, WR_WRITE_IMM, WR_SEND, WR_SEND_IMM, WR_READ, WR_CMP_SWP, WR_FETCH_ADD, WR_LOCAL_INV, WR_BIND_MW, WR_SEND_INV };
enum { OK = 0, LOC_LEN = 1, LOC_QP_OP = 2, LOC_PROT = 4, FLUSH = 5, MW_BIND_ERR = 6, REM_INV_REQ = 9, REM_ACCESS = 10, REM_OP = 11, RETRY_EXC = 12, RNR_EXC = 13 };
enum { F_FENCE = 1, F_SIGNALED = 2, F_SOLICITED = 4, F_INLINE = 8 };
enum { A_LOCAL_WRITE = 1, A_REMOTE_WRITE = 2, A_REMOTE_READ = 4, A_REMOTE_ATOMIC = 8, A_MW_BIND = 16, A_ZERO_BASED = 32 };
enum { EV_CQ_ERR = 0, EV_QP_REQ_ERR = 2, EV_QP_ACCESS_ERR = 3, EV_COMM_EST = 4, EV_SQ_DRAINED = 5, EV_DEVICE_FATAL = 8, EV_SRQ_LIMIT = 15, EV_LAST_WQE = 16 };

#define MAX_KEYS 65536
#define MAX_QPS 65536
#define FIRST_QPN 0x100
#define MAX_SGE 32
#define MAX_INLINE 1024
#define MAX_MSG (1u << 31)
#define MAX_WR 16384
#define MAX_CQE 32767
#define GIDS 4

struct device {
	struct ibv_device base;
	bool slow;
	bool dead;
	uint8_t gids[GIDS][16];
};

struct context {
	struct ibv_context base;
	struct device *device;
	int events[2];
	struct context *next;
};

struct key {
	struct ibv_mr mr;
	struct ibv_mw mw;
	bool is_window, used;
	uint8_t *base;
	void *shadow;
	size_t shadow_len, pinned;
	uint64_t iova, len;
	unsigned int access;
	/* A window's: the MR, and the QP of type 2. */
	struct key *of;
	struct qp *qp;
	uint8_t tag;
	unsigned int bound;
};

struct cq {
	struct ibv_cq base;
	struct ibv_wc *ring;
	uint32_t head, tail;
	bool armed, overflowed;
};

struct channel {
	struct ibv_comp_channel base;
	int write_fd;
};

struct recv {
	uint64_t wr_id;
	int num_sge;
	struct ibv_sge sges[MAX_SGE];
};

struct rq {
	struct recv *ring;
	uint32_t head, tail, size;
};

struct srq {
	struct ibv_srq base;
	struct rq rq;
	uint32_t limit, max_sge;
};

struct send {
	struct ibv_send_wr wr;
	struct ibv_sge sges[MAX_SGE];
	uint8_t data[MAX_INLINE];
};

struct qp {
	struct ibv_qp base;
	struct ibv_qp_attr attr;
	struct ibv_qp_cap cap;
	bool sig_all, waiting, established;
	struct send *sq;
	uint32_t head, tail;
	struct rq rq;
};

struct ah {
	struct ibv_ah base;
	struct ibv_ah_attr attr;
};

/* What libibverbs exports, and what tests call. */
#define API __attribute__((visibility("default")))

/* State: touched under the lock, or atomic. */
extern struct key *keys[MAX_KEYS];
extern struct qp *qps[MAX_QPS];
extern uint32_t next_key, next_qp, handles;
extern struct context *contexts;
extern struct device devices[3];
/* Bytes of MRs, and how many there may be (0: any number). */
extern uint64_t pinned, pinned_limit;
extern atomic_int waiting;
extern atomic_uint_fast64_t copied, posts, chains;
extern atomic_int objects;

/* device.c */
bool dead(struct ibv_context *c);
struct device *device_of(struct ibv_context *c);
void enter_kernel(struct ibv_context *c);
bool fails(const char *name);
void lock(void);
void tell(struct context *c, int type, void *object);
void unlock(void);

/* cq.c */
int poll_cq(struct ibv_cq *base, int num, struct ibv_wc *wc);
void push(struct cq *cq, struct ibv_wc *wc);
int req_notify_cq(struct ibv_cq *base, int solicited_only);

/* keys.c */
struct ibv_mw *alloc_mw(struct ibv_pd *pd, int type);
int bind_window(struct qp *qp, struct key *w, uint32_t rkey, const struct ibv_mw_bind_info *b);
int dealloc_mw(struct ibv_mw *mw);
struct key *key_of(uint32_t k);
uint8_t *reach(struct ibv_pd *pd, struct qp *qp, uint32_t k, uint64_t addr, uint64_t len, unsigned int need);
void unbind(struct key *w);

/* carry.c */
void complete(struct qp *qp, struct send *s, int status);
void complete_recv(struct qp *qp, struct recv *r, struct ibv_wc wc);
void progress(struct qp *qp);
void progress_waiting(void);
void to_error(struct qp *qp);

/* post.c */
int bind_mw(struct ibv_qp *base, struct ibv_mw *mw, struct ibv_mw_bind *b);
int post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
int post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int post_srq_recv(struct ibv_srq *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);

/* Of the library, for measure.c */
struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *context, struct ibv_comp_channel *ch, int vector);
int ibv_destroy_cq(struct ibv_cq *base);
struct ibv_context *ibv_open_device(struct ibv_device *base);
int ibv_close_device(struct ibv_context *base);
int ibv_query_gid(struct ibv_context *c, uint8_t port, int index, uint8_t *gid);
struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, int access);
int ibv_dereg_mr(struct ibv_mr *mr);
struct ibv_pd *ibv_alloc_pd(struct ibv_context *c);
int ibv_dealloc_pd(struct ibv_pd *pd);
struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a);
int ibv_modify_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask);
int ibv_destroy_qp(struct ibv_qp *base);
