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
	size_t shadow_len;
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

static atomic_flag locked = ATOMIC_FLAG_INIT;
static struct key *keys[MAX_KEYS];
static struct qp *qps[MAX_QPS];
static uint32_t next_key = 1, next_qp, handles;
static struct context *contexts;
static atomic_int waiting;
static atomic_uint_fast64_t copied, posts, chains;
/* The next call of this name fails with this errno. */
static char fail_name[32];
static int fail_errno;

static struct device devices[3];

static void lock(void)
{
	for (int tries = 0; atomic_flag_test_and_set_explicit(&locked, memory_order_acquire);)
		if (++tries % 1000 == 0)
			sched_yield();
}

static void unlock(void)
{
	atomic_flag_clear_explicit(&locked, memory_order_release);
}

static void gid_of(uint8_t *gid, const char *prefix, uint8_t last)
{
	memset(gid, 0, 16);
	if (!strcmp(prefix, "fe80")) {
		gid[0] = 0xfe;
		gid[1] = 0x80;
	} else {
		gid[10] = gid[11] = 0xff;
		gid[12] = 10;
	}
	gid[15] = last;
}

__attribute__((constructor)) static void start(void)
{
	static const char *names[3] = { "stub0", "stub1", "slow0" };

	for (int n = 0; n < 3; n++) {
		struct device *d = &devices[n];

		strcpy(d->base.name, names[n]);
		d->base.node_type = 1;
		d->slow = n == 2;
		/* As RoCE has it: the same address once for version 1 and once for version 2. */
		gid_of(d->gids[0], "fe80", n + 1);
		gid_of(d->gids[1], "fe80", n + 1);
		gid_of(d->gids[2], "10", n + 1);
		gid_of(d->gids[3], "10", n + 1);
	}
}

static bool fails(const char *name)
{
	if (fail_errno && !strcmp(name, fail_name)) {
		errno = fail_errno;
		fail_errno = 0;
		return true;
	}
	return false;
}

static struct device *device_of(struct ibv_context *c)
{
	return ((struct context *)c)->device;
}

/* A provider that enters the kernel, or does not. */
static void enter_kernel(struct ibv_context *c)
{
	if (device_of(c)->slow)
		poll(NULL, 0, 0);
}

static bool dead(struct ibv_context *c)
{
	if (device_of(c)->dead)
		errno = EIO;
	return device_of(c)->dead;
}

/* ---- for tests ---- */

uint64_t stub_copied(void) { return copied; }
uint64_t stub_posts(void) { return posts; }
uint64_t stub_chains(void) { return chains; }

void stub_fail(const char *name, int error)
{
	lock();
	strncpy(fail_name, name, sizeof(fail_name) - 1);
	fail_errno = error;
	unlock();
}

static void tell(struct context *c, int type, void *object)
{
	struct ibv_async_event event = { .event_type = type };

	event.element.object = object;
	if (write(c->events[1], &event, sizeof(event)) < 0)
		return;
}

/* An event of port 1, to everybody who has the device open. */
void stub_port_event(const char *name, int type)
{
	lock();
	for (struct context *c = contexts; c; c = c->next)
		if (!strcmp(c->device->base.name, name))
			tell(c, type, (void *)1);
	unlock();
}

/* The device goes, as when its driver is unloaded, or comes back. */
void stub_kill(const char *name, bool gone)
{
	lock();
	for (int n = 0; n < 3; n++)
		if (!strcmp(devices[n].base.name, name))
			devices[n].dead = gone;
	for (struct context *c = contexts; gone && c; c = c->next)
		if (!strcmp(c->device->base.name, name))
			tell(c, EV_DEVICE_FATAL, (void *)1);
	unlock();
}

/* How many objects of the library there are: none when everything was ended. */
static atomic_int objects;
int stub_objects(void) { return objects; }

/* ---- devices ---- */

struct ibv_device **ibv_get_device_list(int *count)
{
	struct ibv_device **list = calloc(4, sizeof(*list));
	int n = 0;

	for (int i = 0; i < 3; i++)
		if (!devices[i].dead)
			list[n++] = &devices[i].base;
	if (count)
		*count = n;
	return list;
}

void ibv_free_device_list(struct ibv_device **list) { free(list); }
const char *ibv_get_device_name(struct ibv_device *d) { return d->name; }

static int poll_cq(struct ibv_cq *base, int num, struct ibv_wc *wc)
{
	struct cq *cq = (struct cq *)base;
	int n = 0;

	if (atomic_load_explicit((_Atomic uint32_t *)&cq->head, memory_order_acquire) == cq->tail)
		return 0;
	lock();
	while (n < num && cq->tail != cq->head)
		wc[n++] = cq->ring[cq->tail++ % (uint32_t)base->cqe];
	unlock();
	return n;
}

static void fire(struct cq *cq)
{
	if (cq->armed && cq->base.channel) {
		cq->armed = false;
		if (write(((struct channel *)cq->base.channel)->write_fd, &cq, sizeof(cq)) < 0)
			abort();
	}
}

static int req_notify_cq(struct ibv_cq *base, int solicited_only)
{
	(void)solicited_only;
	enter_kernel(base->context);
	lock();
	((struct cq *)base)->armed = true;
	unlock();
	return 0;
}

static void push(struct cq *cq, struct ibv_wc *wc)
{
	if (cq->head - cq->tail >= (uint32_t)cq->base.cqe) {
		if (!cq->overflowed)
			tell((struct context *)cq->base.context, EV_CQ_ERR, cq);
		cq->overflowed = true;
		return;
	}
	cq->ring[cq->head % (uint32_t)cq->base.cqe] = *wc;
	atomic_store_explicit((_Atomic uint32_t *)&cq->head, cq->head + 1, memory_order_release);
	fire(cq);
}

/* ---- keys ---- */

static struct key *key_of(uint32_t k)
{
	struct key *key = keys[(k >> 8) % MAX_KEYS];

	return key && key->used && key->tag == (k & 0xff) ? key : NULL;
}

/* Where a range under a key is; NULL if it may not be touched so. */
static uint8_t *reach(struct ibv_pd *pd, struct qp *qp, uint32_t k, uint64_t addr, uint64_t len, unsigned int need)
{
	struct key *key = key_of(k);
	struct key *mr;

	if (!key || !((key->access & need) == need))
		return NULL;
	if (key->is_window) {
		if (!key->of || key->mw.pd != pd || (key->mw.type == 2 && key->qp != qp))
			return NULL;
		mr = key->of;
		if (key->access & A_ZERO_BASED)
			addr += key->iova;
	} else {
		if (key->mr.pd != pd)
			return NULL;
		mr = key;
	}
	if (addr < key->iova || addr - key->iova > key->len || len > key->len - (addr - key->iova))
		return NULL;
	return mr->base + (addr - mr->iova);
}

static struct key *new_key(void)
{
	for (int tries = 0; tries < MAX_KEYS; tries++) {
		uint32_t n = next_key++ % MAX_KEYS;

		if (n && !keys[n]) {
			keys[n] = calloc(1, sizeof(struct key));
			keys[n]->used = true;
			keys[n]->tag = (uint8_t)(next_key * 7);
			keys[n]->mr.lkey = keys[n]->mr.rkey = n << 8 | keys[n]->tag;
			objects++;
			return keys[n];
		}
	}
	errno = ENOMEM;
	return NULL;
}

static void end_key(struct key *key)
{
	keys[key->mr.lkey >> 8] = NULL;
	if (key->shadow)
		munmap(key->shadow, key->shadow_len);
	free(key);
	objects--;
}

/* Maps what is mapped at `start` once more; 0, or an errno. *shadow is NULL for private memory. */
static int pin(uint8_t *start, size_t len, void **shadow)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long from, to;
	char flags[5], line[512];
	uint8_t *at = start, *end = start + len;
	int error = 0;

	*shadow = NULL;
	if (!maps)
		return ENOMEM;
	while (at < end && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %4s", &from, &to, flags) != 3)
			continue;
		if (to <= (unsigned long)at)
			continue;
		if (from > (unsigned long)at) {
			error = EFAULT;
			break;
		}
		size_t part = (to < (unsigned long)end ? to : (unsigned long)end) - (unsigned long)at;

		if (flags[3] == 's') {
			if (!*shadow) {
				if (at != start) {
					error = EFAULT;
					break;
				}
				*shadow = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			}
			if (mremap(at, 0, part, MREMAP_MAYMOVE | MREMAP_FIXED, (uint8_t *)*shadow + (at - start)) == MAP_FAILED) {
				error = errno;
				break;
			}
		} else if (*shadow) {
			error = EFAULT;
			break;
		}
		at += part;
	}
	fclose(maps);
	if (!error && at < end)
		error = EFAULT;
	if (error && *shadow)
		munmap(*shadow, len);
	return error;
}

struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, int access)
{
	uintptr_t first = (uintptr_t)addr & ~4095ul, last = ((uintptr_t)addr + len + 4095) & ~4095ul;
	struct key *key;
	void *shadow;
	int error;

	if (dead(pd->context))
		return NULL;
	lock();
	if (fails("reg_mr")) {
		unlock();
		return NULL;
	}
	error = ((uintptr_t)addr ^ iova) & 4095 || !len ? EINVAL : pin((uint8_t *)first, last - first, &shadow);
	if (error) {
		unlock();
		errno = error;
		return NULL;
	}
	key = new_key();
	if (key) {
		key->shadow = shadow;
		key->shadow_len = last - first;
		key->base = shadow ? (uint8_t *)shadow + ((uintptr_t)addr - first) : addr;
		key->iova = iova;
		key->len = len;
		key->access = (unsigned int)access;
		key->mr.context = pd->context;
		key->mr.pd = pd;
		key->mr.addr = addr;
		key->mr.length = len;
	}
	unlock();
	return key ? &key->mr : NULL;
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
	int error = 0;

	lock();
	if (((struct key *)mr)->bound)
		error = EBUSY;
	else
		end_key((struct key *)mr);
	unlock();
	return error;
}

static void unbind(struct key *w)
{
	if (w->of)
		w->of->bound--;
	w->of = NULL;
	w->qp = NULL;
}

static int bind(struct qp *qp, struct key *w, uint32_t rkey, const struct ibv_mw_bind_info *b)
{
	struct key *mr = (struct key *)b->mr;
	unsigned int stores = A_REMOTE_WRITE | A_REMOTE_ATOMIC;

	if (w->mw.pd != qp->base.pd)
		return MW_BIND_ERR;
	if (w->mw.type == 2 ? w->of || !b->length : !!(b->mw_access_flags & A_ZERO_BASED))
		return MW_BIND_ERR;
	if (b->length && b->mw_access_flags & stores && !(mr->access & A_LOCAL_WRITE))
		return MW_BIND_ERR;
	if (b->length && (!(mr->access & A_MW_BIND) || mr->mr.pd != w->mw.pd || b->addr < mr->iova ||
			  b->addr - mr->iova > mr->len || b->length > mr->len - (b->addr - mr->iova)))
		return MW_BIND_ERR;
	unbind(w);
	w->tag = (uint8_t)rkey;
	w->mw.rkey = (w->mw.rkey & ~0xffu) | w->tag;
	if (b->length) {
		w->of = mr;
		mr->bound++;
		w->iova = b->addr;
		w->len = b->length;
		w->access = b->mw_access_flags;
		w->qp = w->mw.type == 2 ? qp : NULL;
	}
	return OK;
}

static struct ibv_mw *alloc_mw(struct ibv_pd *pd, int type)
{
	struct key *key;

	if (dead(pd->context))
		return NULL;
	lock();
	key = new_key();
	if (key) {
		key->is_window = true;
		key->mw = (struct ibv_mw){ pd->context, pd, key->mr.lkey, 0, type };
	}
	unlock();
	return key ? &key->mw : NULL;
}

static int dealloc_mw(struct ibv_mw *mw)
{
	struct key *key = (struct key *)((char *)mw - offsetof(struct key, mw));

	lock();
	unbind(key);
	end_key(key);
	unlock();
	return 0;
}

/* ---- carrying requests out ---- */

static void complete(struct qp *qp, struct send *s, int status)
{
	static const int opcodes[] = { 1, 1, 0, 0, 2, 3, 4, 6, 5, 0 };
	struct ibv_wc wc = { .wr_id = s->wr.wr_id, .status = status, .qp_num = qp->base.qp_num };

	if (status == OK && !qp->sig_all && !(s->wr.send_flags & F_SIGNALED))
		return;
	if (status == OK) {
		wc.opcode = opcodes[s->wr.opcode];
		for (int n = 0; s->wr.opcode == WR_READ && n < s->wr.num_sge; n++)
			wc.byte_len += s->sges[n].length;
		if (s->wr.opcode == WR_CMP_SWP || s->wr.opcode == WR_FETCH_ADD)
			wc.byte_len = 8;
	} else {
		/* As real devices do: nothing else is valid with an error. */
		wc.opcode = 0x55;
		wc.byte_len = 0xdead;
		wc.vendor_err = 0x77;
	}
	push((struct cq *)qp->base.send_cq, &wc);
}

static void complete_recv(struct qp *qp, struct recv *r, struct ibv_wc wc)
{
	wc.wr_id = r->wr_id;
	wc.qp_num = qp->base.qp_num;
	push((struct cq *)qp->base.recv_cq, &wc);
}

static void to_error(struct qp *qp)
{
	if (qp->base.state == ERR)
		return;
	qp->base.state = qp->attr.qp_state = ERR;
	for (; qp->tail != qp->head; qp->tail++)
		complete(qp, &qp->sq[qp->tail % qp->cap.max_send_wr], FLUSH);
	if (qp->waiting)
		waiting--;
	qp->waiting = false;
	for (; qp->rq.tail != qp->rq.head; qp->rq.tail++)
		complete_recv(qp, &qp->rq.ring[qp->rq.tail % qp->rq.size], (struct ibv_wc){ .status = FLUSH });
	if (qp->base.srq)
		tell((struct context *)qp->base.context, EV_LAST_WQE, qp);
}

static struct rq *rq_of(struct qp *qp)
{
	return qp->base.srq ? &((struct srq *)qp->base.srq)->rq : &qp->rq;
}

static struct recv *take(struct qp *qp)
{
	struct rq *rq = rq_of(qp);
	struct srq *srq = (struct srq *)qp->base.srq;
	struct recv *r = rq->head != rq->tail ? &rq->ring[rq->tail++ % rq->size] : NULL;

	if (r && srq && srq->limit && rq->head - rq->tail < srq->limit) {
		srq->limit = 0;
		tell((struct context *)srq->base.context, EV_SRQ_LIMIT, srq);
	}
	return r;
}

/* One piece after the other of two lists. Both were checked. */
struct cursor {
	struct ibv_pd *pd;
	const struct ibv_sge *sges;
	int num;
	unsigned int need;
	uint64_t done;
	const uint8_t *bytes;
};

static uint8_t *piece(struct cursor *c, uint64_t *len)
{
	while (c->num && c->done == c->sges->length) {
		c->sges++;
		c->num--;
		c->done = 0;
	}
	if (!c->num)
		return NULL;
	*len = c->sges->length - c->done;
	return reach(c->pd, NULL, c->sges->lkey, c->sges->addr + c->done, *len, c->need);
}

static int check(struct ibv_pd *pd, const struct ibv_sge *sges, int num, unsigned int need, uint64_t *total)
{
	*total = 0;
	for (int n = 0; n < num; n++)
		*total += sges[n].length;
	if (*total > MAX_MSG)
		return LOC_LEN;
	for (int n = 0; n < num; n++) {
		if (sges[n].length && !reach(pd, NULL, sges[n].lkey, sges[n].addr, sges[n].length, need))
			return LOC_PROT;
	}
	return OK;
}

static void move(struct cursor *to, struct cursor *from, uint64_t total)
{
	while (total) {
		uint64_t a = 0, b = 0, n;
		uint8_t *dst = piece(to, &a);
		uint8_t *src = piece(from, &b);

		if (!dst || !src)
			return;
		n = a < b ? a : b;
		n = n < total ? n : total;
		memmove(dst, src, n);
		atomic_fetch_add_explicit(&copied, n, memory_order_relaxed);
		to->done += n;
		from->done += n;
		total -= n;
	}
}

static bool gid_is(struct ibv_context *c, const uint8_t *gid)
{
	for (int n = 0; n < GIDS; n++)
		if (!memcmp(device_of(c)->gids[n], gid, 16))
			return true;
	return false;
}

static struct qp *qp_of(uint32_t qpn)
{
	struct qp *qp = qpn >= FIRST_QPN && qpn - FIRST_QPN < MAX_QPS ? qps[qpn - FIRST_QPN] : NULL;

	return qp && !device_of(qp->base.context)->dead ? qp : NULL;
}

static bool receives(struct qp *qp)
{
	return qp->base.state >= RTR && qp->base.state <= SQE;
}

/* The inline bytes of a request as a list with a key of their own can't be: they move apart. */
static void scatter_bytes(struct cursor *to, const uint8_t *bytes, uint64_t total)
{
	while (total) {
		uint64_t n = 0;
		uint8_t *dst = piece(to, &n);

		if (!dst)
			return;
		n = n < total ? n : total;
		memcpy(dst, bytes, n);
		to->done += n;
		bytes += n;
		total -= n;
	}
}

static void gather(struct qp *qp, struct send *s, struct cursor *to, uint64_t total)
{
	struct cursor from = { qp->base.pd, s->sges, s->wr.num_sge, 0, 0, NULL };

	if (s->wr.send_flags & F_INLINE)
		scatter_bytes(to, s->data, total);
	else
		move(to, &from, total);
}

/* A message arrives: -1 if nothing is posted for it; else the status for the sender. */
static int deliver(struct qp *qp, struct send *s, struct qp *peer, uint64_t total, const uint8_t *grh)
{
	struct rq *rq = rq_of(peer);
	struct ibv_wc wc = { .opcode = 128, .src_qp = qp->base.qp_num };
	uint64_t room = 0, head = grh ? 40 : 0;
	bool write = s->wr.opcode == WR_WRITE_IMM;
	struct recv *r;
	int status;

	if (rq->head == rq->tail)
		return -1;
	r = take(peer);
	status = check(peer->base.pd, r->sges, r->num_sge, A_LOCAL_WRITE, &room);
	if (status == OK && !write && room < total + head)
		status = LOC_LEN;
	if (status != OK) {
		wc = (struct ibv_wc){ .status = status, .opcode = 0x55 };
		complete_recv(peer, r, wc);
		to_error(peer);
		return grh ? OK : status == LOC_LEN ? REM_INV_REQ : REM_OP;
	}
	struct cursor to = { peer->base.pd, r->sges, r->num_sge, A_LOCAL_WRITE, 0, NULL };

	if (grh) {
		scatter_bytes(&to, grh, 40);
		wc.wc_flags |= 1;
	}
	if (!write)
		gather(qp, s, &to, total);
	wc.byte_len = (uint32_t)(total + head);
	if (s->wr.opcode == WR_SEND_IMM || write) {
		wc.wc_flags |= 2;
		wc.imm_data = s->wr.imm_data;
	}
	if (write)
		wc.opcode = 129;
	if (s->wr.opcode == WR_SEND_INV) {
		struct key *w = key_of(s->wr.imm_data);

		if (!w || !w->is_window || w->mw.type != 2 || w->qp != peer)
			return REM_ACCESS;
		unbind(w);
		wc.wc_flags |= 8;
		wc.imm_data = s->wr.imm_data;
	}
	complete_recv(peer, r, wc);
	return OK;
}

/* A right that the QP does not give, or an atomic operation that is not aligned. */
static int invalid(struct qp *peer)
{
	tell((struct context *)peer->base.context, EV_QP_REQ_ERR, peer);
	to_error(peer);
	return REM_INV_REQ;
}

static int refuse(struct qp *peer)
{
	tell((struct context *)peer->base.context, EV_QP_ACCESS_ERR, peer);
	to_error(peer);
	return REM_ACCESS;
}

/* A message comes to a QP that is not in RTS yet: it is told once in its life. */
static void established(struct qp *peer)
{
	if (peer->base.state == RTR && !peer->established) {
		peer->established = true;
		tell((struct context *)peer->base.context, EV_COMM_EST, peer);
	}
}

/* The status of a request; -1 if it has to wait. */
static int execute(struct qp *qp, struct send *s)
{
	bool inl = s->wr.send_flags & F_INLINE;
	bool reads = s->wr.opcode == WR_READ || s->wr.opcode == WR_CMP_SWP || s->wr.opcode == WR_FETCH_ADD;
	struct qp *peer;
	uint64_t total = 0;
	int status;

	if (s->wr.opcode == WR_LOCAL_INV) {
		struct key *w = key_of(s->wr.imm_data);

		if (!w || !w->is_window || w->mw.type != 2 || w->mw.pd != qp->base.pd)
			return LOC_QP_OP;
		unbind(w);
		return OK;
	}
	if (s->wr.opcode == WR_BIND_MW) {
		struct key *w = (struct key *)((char *)s->wr.bind_mw.mw - offsetof(struct key, mw));

		return bind(qp, w, s->wr.bind_mw.rkey, &s->wr.bind_mw.bind_info);
	}
	if (inl) {
		total = s->sges[0].length;
	} else {
		status = check(qp->base.pd, s->sges, s->wr.num_sge, reads ? A_LOCAL_WRITE : 0, &total);
		if (status != OK)
			return status;
	}
	if (qp->base.qp_type == QPT_UD) {
		struct ah *ah = (struct ah *)s->wr.wr.ud.ah;
		uint8_t grh[40] = { 0x60 };

		if (s->wr.opcode != WR_SEND && s->wr.opcode != WR_SEND_IMM)
			return LOC_QP_OP;
		memcpy(grh + 8, device_of(qp->base.context)->gids[ah->attr.grh.sgid_index % GIDS], 16);
		memcpy(grh + 24, ah->attr.grh.dgid, 16);
		peer = qp_of(s->wr.wr.ud.remote_qpn);
		uint32_t qkey = s->wr.wr.ud.remote_qkey & 0x80000000 ? qp->attr.qkey : s->wr.wr.ud.remote_qkey;

		if (peer && peer->base.qp_type == QPT_UD && receives(peer) && peer->attr.qkey == qkey &&
		    gid_is(peer->base.context, ah->attr.grh.dgid))
			deliver(qp, s, peer, total, grh);
		return OK;
	}
	bool reliable = qp->base.qp_type == QPT_RC;

	peer = qp_of(qp->attr.dest_qp_num);
	if (!peer || !receives(peer) || peer->attr.dest_qp_num != qp->base.qp_num ||
	    peer->base.qp_type != qp->base.qp_type || !gid_is(peer->base.context, qp->attr.ah_attr.grh.dgid))
		return reliable ? RETRY_EXC : OK;
	if (!reliable && reads)
		return LOC_QP_OP;
	established(peer);
	if (s->wr.opcode == WR_WRITE || s->wr.opcode == WR_WRITE_IMM || s->wr.opcode == WR_READ) {
		bool write = s->wr.opcode != WR_READ;
		unsigned int need = write ? A_REMOTE_WRITE : A_REMOTE_READ;
		struct rq *rq = rq_of(peer);
		uint8_t *there = NULL;

		if (s->wr.opcode == WR_WRITE_IMM && rq->head == rq->tail)
			return reliable ? (qp->attr.rnr_retry ? -1 : RNR_EXC) : OK;
		if (total) {
			if ((peer->attr.qp_access_flags & need) != need)
				return reliable ? invalid(peer) : OK;
			there = reach(peer->base.pd, peer, s->wr.wr.rdma.rkey, s->wr.wr.rdma.remote_addr, total, need);
			if (!there)
				return reliable ? refuse(peer) : OK;
		}
		for (int n = 0; n < s->wr.num_sge || (inl && n == 0); n++) {
			uint8_t *here = inl ? s->data : reach(qp->base.pd, NULL, s->sges[n].lkey, s->sges[n].addr, s->sges[n].length, 0);
			size_t len = s->sges[n].length;

			if (!len)
				continue;
			memmove(write ? there : here, write ? here : there, len);
			atomic_fetch_add_explicit(&copied, len, memory_order_relaxed);
			there += len;
		}
		if (s->wr.opcode == WR_WRITE_IMM)
			return deliver(qp, s, peer, total, NULL);
		return OK;
	}
	if (reads) {
		uint64_t old, *there = NULL;

		if (total != 8)
			return LOC_LEN;
		if (!(peer->attr.qp_access_flags & A_REMOTE_ATOMIC) || s->wr.wr.atomic.remote_addr & 7)
			return invalid(peer);
		there = (uint64_t *)reach(peer->base.pd, peer, s->wr.wr.atomic.rkey, s->wr.wr.atomic.remote_addr, 8, A_REMOTE_ATOMIC);
		if (!there)
			return refuse(peer);
		old = s->wr.wr.atomic.compare_add;
		if (s->wr.opcode == WR_FETCH_ADD)
			old = __atomic_fetch_add(there, old, __ATOMIC_SEQ_CST);
		else
			__atomic_compare_exchange_n(there, &old, s->wr.wr.atomic.swap, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		struct cursor to = { qp->base.pd, s->sges, s->wr.num_sge, A_LOCAL_WRITE, 0, NULL };

		scatter_bytes(&to, (uint8_t *)&old, 8);
		return OK;
	}
	status = deliver(qp, s, peer, total, NULL);
	if (status < 0)
		return reliable ? (qp->attr.rnr_retry ? -1 : RNR_EXC) : OK;
	return reliable ? status : OK;
}

static void progress(struct qp *qp)
{
	if (qp->waiting)
		waiting--;
	qp->waiting = false;
	while (qp->tail != qp->head && qp->base.state == RTS) {
		struct send *s = &qp->sq[qp->tail % qp->cap.max_send_wr];
		int status = execute(qp, s);

		if (status < 0) {
			qp->waiting = true;
			waiting++;
			return;
		}
		if (qp->base.state == ERR)
			return;
		qp->tail++;
		complete(qp, s, status);
		if (status != OK)
			to_error(qp);
	}
}

static void progress_waiting(void)
{
	for (uint32_t n = 0; waiting && n < MAX_QPS && n < next_qp; n++)
		if (qps[n] && qps[n]->waiting)
			progress(qps[n]);
}

static int post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct qp *qp = (struct qp *)base;
	int error = 0;

	enter_kernel(base->context);
	atomic_fetch_add_explicit(&chains, 1, memory_order_relaxed);
	lock();
	for (; wr && !error; wr = wr->next) {
		struct send *s = &qp->sq[qp->head % qp->cap.max_send_wr];

		*bad = wr;
		atomic_fetch_add_explicit(&posts, 1, memory_order_relaxed);
		if (dead(base->context))
			error = EIO;
		else if (fails("post_send"))
			error = errno;
		else if (qp->base.state < RTS)
			error = EINVAL;
		else if (qp->head - qp->tail >= qp->cap.max_send_wr)
			error = ENOMEM;
		else if ((uint32_t)wr->num_sge > qp->cap.max_send_sge || wr->opcode < 0 || wr->opcode > WR_SEND_INV)
			error = EINVAL;
		else if (wr->send_flags & F_INLINE && wr->sg_list[0].length > qp->cap.max_inline_data)
			error = EINVAL;
		if (error)
			break;
		s->wr = *wr;
		memcpy(s->sges, wr->sg_list, (size_t)wr->num_sge * sizeof(struct ibv_sge));
		if (wr->send_flags & F_INLINE)
			memcpy(s->data, (void *)wr->sg_list[0].addr, wr->sg_list[0].length);
		qp->head++;
		if (qp->base.state == ERR) {
			qp->tail++;
			complete(qp, s, FLUSH);
		} else if (!qp->waiting) {
			progress(qp);
		}
	}
	unlock();
	return error;
}

static int put(struct rq *rq, struct ibv_recv_wr *wr, uint32_t max_sge)
{
	struct recv *r = &rq->ring[rq->head % rq->size];

	if (rq->head - rq->tail >= rq->size)
		return ENOMEM;
	if ((uint32_t)wr->num_sge > max_sge)
		return EINVAL;
	r->wr_id = wr->wr_id;
	r->num_sge = wr->num_sge;
	memcpy(r->sges, wr->sg_list, (size_t)wr->num_sge * sizeof(struct ibv_sge));
	rq->head++;
	return 0;
}

static int post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct qp *qp = (struct qp *)base;
	int error = 0;

	enter_kernel(base->context);
	lock();
	for (; wr; wr = wr->next) {
		*bad = wr;
		error = dead(base->context) ? EIO : qp->base.state == RESET || qp->base.srq ? EINVAL : 0;
		if (!error && fails("post_recv"))
			error = errno;
		if (!error)
			error = put(&qp->rq, wr, qp->cap.max_recv_sge);
		if (error)
			break;
		if (qp->base.state == ERR) {
			struct recv *r = &qp->rq.ring[qp->rq.tail++ % qp->rq.size];

			complete_recv(qp, r, (struct ibv_wc){ .status = FLUSH });
		}
	}
	progress_waiting();
	unlock();
	return error;
}

static int post_srq_recv(struct ibv_srq *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct srq *srq = (struct srq *)base;
	int error = 0;

	enter_kernel(base->context);
	lock();
	for (; wr && !error; wr = wr->next) {
		*bad = wr;
		error = dead(base->context) ? EIO : put(&srq->rq, wr, srq->max_sge);
	}
	progress_waiting();
	unlock();
	return error;
}

static int bind_mw(struct ibv_qp *base, struct ibv_mw *mw, struct ibv_mw_bind *b)
{
	struct ibv_send_wr *bad, wr = { .wr_id = b->wr_id, .opcode = WR_BIND_MW, .send_flags = b->send_flags };

	if (mw->type != 1)
		return EINVAL;
	wr.bind_mw.mw = mw;
	wr.bind_mw.rkey = (mw->rkey & ~0xffu) | ((mw->rkey + 1) & 0xff);
	wr.bind_mw.bind_info = b->bind_info;
	return post_send(base, &wr, &bad);
}

/* ---- objects ---- */

struct ibv_context *ibv_open_device(struct ibv_device *base)
{
	struct context *c = calloc(1, sizeof(*c));

	c->device = (struct device *)base;
	if (c->device->dead || pipe2(c->events, O_CLOEXEC)) {
		free(c);
		errno = ENODEV;
		return NULL;
	}
	c->base.device = base;
	c->base.cmd_fd = -1;
	c->base.async_fd = c->events[0];
	c->base.num_comp_vectors = 2;
	c->base.ops.alloc_mw = alloc_mw;
	c->base.ops.bind_mw = bind_mw;
	c->base.ops.dealloc_mw = dealloc_mw;
	c->base.ops.poll_cq = poll_cq;
	c->base.ops.req_notify_cq = req_notify_cq;
	c->base.ops.post_srq_recv = post_srq_recv;
	c->base.ops.post_send = post_send;
	c->base.ops.post_recv = post_recv;
	lock();
	c->next = contexts;
	contexts = c;
	objects++;
	unlock();
	return &c->base;
}

int ibv_close_device(struct ibv_context *base)
{
	struct context *c = (struct context *)base;

	lock();
	for (struct context **at = &contexts; *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	objects--;
	unlock();
	close(c->events[0]);
	close(c->events[1]);
	free(c);
	return 0;
}

int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *a)
{
	memset(a, 0, sizeof(*a));
	strcpy(a->fw_ver, "12.34.56");
	memcpy(a->node_guid, "\x02\x01\x02\x03\x04\x05\x06\x07", 8);
	a->max_mr_size = 1ull << 40;
	a->page_size_cap = ~0xfffull;
	a->vendor_id = device_of(c)->slow ? 0xffffff : 0x02c9;
	a->vendor_part_id = 0x1017;
	a->max_qp = 4096;
	a->max_qp_wr = MAX_WR;
	a->device_cap_flags = 1 << 17 | 1 << 24;
	a->max_sge = a->max_sge_rd = a->max_srq_sge = MAX_SGE;
	a->max_cq = 4096;
	a->max_cqe = MAX_CQE;
	a->max_mr = a->max_mw = MAX_KEYS;
	a->max_pd = 4096;
	a->max_qp_rd_atom = a->max_qp_init_rd_atom = 16;
	a->atomic_cap = 1;
	a->max_ah = 4096;
	a->max_srq = 4096;
	a->max_srq_wr = MAX_WR;
	a->max_pkeys = 1;
	a->local_ca_ack_delay = 15;
	a->phys_port_cnt = 1;
	return 0;
}

int ibv_query_port(struct ibv_context *c, uint8_t port, struct ibv_port_attr *a)
{
	if (port != 1)
		return EINVAL;
	a->state = device_of(c)->dead ? 1 : 4;
	a->max_mtu = 5;
	a->active_mtu = 5;
	a->gid_tbl_len = GIDS;
	a->max_msg_sz = MAX_MSG;
	a->pkey_tbl_len = 1;
	a->active_width = 2;
	a->active_speed = 32;
	a->link_layer = 2;
	return 0;
}

int ibv_query_gid(struct ibv_context *c, uint8_t port, int index, uint8_t *gid)
{
	if (port != 1 || index < 0 || index >= GIDS)
		return EINVAL;
	memcpy(gid, device_of(c)->gids[index], 16);
	return 0;
}

ssize_t _ibv_query_gid_table(struct ibv_context *c, struct ibv_gid_entry *e, size_t max, uint32_t flags, size_t size)
{
	if (flags || size != sizeof(*e) || max < GIDS)
		return -EINVAL;
	for (uint32_t n = 0; n < GIDS; n++) {
		memcpy(e[n].gid, device_of(c)->gids[n], 16);
		e[n].gid_index = n;
		e[n].port_num = 1;
		e[n].gid_type = n & 1 ? 2 : 1;
		e[n].ndev_ifindex = 1;
	}
	return GIDS;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *c)
{
	struct ibv_pd *pd;

	if (dead(c))
		return NULL;
	pd = calloc(1, sizeof(*pd));
	*pd = (struct ibv_pd){ c, ++handles };
	objects++;
	return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
	objects--;
	free(pd);
	return 0;
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c)
{
	struct channel *ch = calloc(1, sizeof(*ch));
	int fds[2];

	if (dead(c) || pipe2(fds, O_CLOEXEC)) {
		free(ch);
		return NULL;
	}
	ch->base.context = c;
	ch->base.fd = fds[0];
	ch->write_fd = fds[1];
	objects++;
	return &ch->base;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *base)
{
	close(base->fd);
	close(((struct channel *)base)->write_fd);
	free(base);
	objects--;
	return 0;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *context, struct ibv_comp_channel *ch, int vector)
{
	struct cq *cq;

	if (dead(c))
		return NULL;
	if (cqe < 1 || cqe > MAX_CQE || vector < 0 || vector >= c->num_comp_vectors) {
		errno = EINVAL;
		return NULL;
	}
	cq = calloc(1, sizeof(*cq));
	cq->base = (struct ibv_cq){ c, ch, context, ++handles, cqe };
	cq->ring = calloc((size_t)cqe, sizeof(*cq->ring));
	objects++;
	return &cq->base;
}

int ibv_resize_cq(struct ibv_cq *base, int cqe)
{
	struct cq *cq = (struct cq *)base;
	struct ibv_wc *ring;
	uint32_t n = 0;

	if (cqe < 1 || cqe > MAX_CQE)
		return EINVAL;
	ring = calloc((size_t)cqe, sizeof(*ring));
	lock();
	for (; cq->tail != cq->head && n < (uint32_t)cqe; n++)
		ring[n] = cq->ring[cq->tail++ % (uint32_t)base->cqe];
	free(cq->ring);
	cq->ring = ring;
	cq->tail = 0;
	cq->head = n;
	base->cqe = cqe;
	unlock();
	return 0;
}

int ibv_destroy_cq(struct ibv_cq *base)
{
	free(((struct cq *)base)->ring);
	free(base);
	objects--;
	return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *ch, struct ibv_cq **cq, void **context)
{
	struct ibv_cq *found;

	if (read(ch->fd, &found, sizeof(found)) != sizeof(found))
		return -1;
	*cq = found;
	*context = found->cq_context;
	return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int count)
{
	(void)cq;
	(void)count;
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *a)
{
	struct srq *srq;

	if (dead(pd->context))
		return NULL;
	if (a->attr.max_wr > MAX_WR || a->attr.max_sge > MAX_SGE) {
		errno = EINVAL;
		return NULL;
	}
	srq = calloc(1, sizeof(*srq));
	srq->base = (struct ibv_srq){ pd->context, a->srq_context, pd, ++handles };
	srq->rq.size = a->attr.max_wr ? a->attr.max_wr : 1;
	srq->rq.ring = calloc(srq->rq.size, sizeof(struct recv));
	srq->max_sge = a->attr.max_sge;
	objects++;
	return &srq->base;
}

int ibv_modify_srq(struct ibv_srq *base, struct ibv_srq_attr *a, int mask)
{
	struct srq *srq = (struct srq *)base;

	if (mask != 2)
		return EINVAL;
	lock();
	srq->limit = a->srq_limit;
	if (srq->limit && srq->rq.head - srq->rq.tail < srq->limit) {
		srq->limit = 0;
		tell((struct context *)base->context, EV_SRQ_LIMIT, srq);
	}
	unlock();
	return 0;
}

int ibv_query_srq(struct ibv_srq *base, struct ibv_srq_attr *a)
{
	struct srq *srq = (struct srq *)base;

	*a = (struct ibv_srq_attr){ srq->rq.size, srq->max_sge, srq->limit };
	return 0;
}

int ibv_destroy_srq(struct ibv_srq *base)
{
	free(((struct srq *)base)->rq.ring);
	free(base);
	objects--;
	return 0;
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a)
{
	struct qp *qp;
	uint32_t n;

	if (dead(pd->context))
		return NULL;
	if (a->cap.max_send_wr > MAX_WR || a->cap.max_recv_wr > MAX_WR || a->cap.max_send_sge > MAX_SGE ||
	    a->cap.max_recv_sge > MAX_SGE || a->cap.max_inline_data > MAX_INLINE || a->qp_type < QPT_RC || a->qp_type > QPT_UD) {
		errno = EINVAL;
		return NULL;
	}
	lock();
	for (n = 0; n < MAX_QPS && qps[n]; n++)
		;
	if (n == MAX_QPS || fails("create_qp")) {
		unlock();
		errno = ENOMEM;
		return NULL;
	}
	qp = calloc(1, sizeof(*qp));
	qp->base.context = pd->context;
	qp->base.qp_context = a->qp_context;
	qp->base.pd = pd;
	qp->base.send_cq = a->send_cq;
	qp->base.recv_cq = a->recv_cq;
	qp->base.srq = a->srq;
	qp->base.qp_num = FIRST_QPN + n;
	qp->base.qp_type = a->qp_type;
	qp->cap = a->cap;
	qp->sig_all = a->sq_sig_all;
	qp->sq = calloc(qp->cap.max_send_wr ? qp->cap.max_send_wr : 1, sizeof(*qp->sq));
	qp->rq.size = qp->cap.max_recv_wr ? qp->cap.max_recv_wr : 1;
	qp->rq.ring = calloc(qp->rq.size, sizeof(struct recv));
	qps[n] = qp;
	if (n >= next_qp)
		next_qp = n + 1;
	objects++;
	unlock();
	return &qp->base;
}

int ibv_modify_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask)
{
	struct qp *qp = (struct qp *)base;
	int error = 0;

	lock();
	if (dead(base->context))
		error = EIO;
	else if (fails("modify_qp"))
		error = errno;
	else if (mask & 0x80 && (!a->ah_attr.is_global || a->ah_attr.grh.sgid_index >= GIDS || a->ah_attr.port_num != 1))
		error = EINVAL;
	if (error) {
		unlock();
		return error;
	}
#define TAKE(bit, member)                         \
	do {                                      \
		if (mask & (bit))                 \
			qp->attr.member = a->member; \
	} while (0)
	TAKE(0x8, qp_access_flags);
	TAKE(0x40, qkey);
	TAKE(0x80, ah_attr);
	TAKE(0x100, path_mtu);
	TAKE(0x400, retry_cnt);
	TAKE(0x800, rnr_retry);
	TAKE(0x1000, rq_psn);
	TAKE(0x10000, sq_psn);
	TAKE(0x100000, dest_qp_num);
	if (mask & 1 && a->qp_state == ERR) {
		to_error(qp);
	} else if (mask & 1) {
		qp->base.state = qp->attr.qp_state = a->qp_state;
		if (a->qp_state == RESET) {
			qp->established = false;
			if (qp->waiting)
				waiting--;
			qp->waiting = false;
			qp->head = qp->tail = qp->rq.head = qp->rq.tail = 0;
		}
		if (a->qp_state == SQD && a->en_sqd_async_notify)
			tell((struct context *)base->context, EV_SQ_DRAINED, qp);
		progress(qp);
		progress_waiting();
	}
	unlock();
	return 0;
}

int ibv_query_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask, struct ibv_qp_init_attr *init)
{
	struct qp *qp = (struct qp *)base;

	(void)mask;
	lock();
	*a = qp->attr;
	a->qp_state = a->cur_qp_state = base->state;
	init->cap = qp->cap;
	unlock();
	return dead(base->context) ? EIO : 0;
}

int ibv_destroy_qp(struct ibv_qp *base)
{
	struct qp *qp = (struct qp *)base;

	lock();
	if (qp->waiting)
		waiting--;
	qps[base->qp_num - FIRST_QPN] = NULL;
	objects--;
	unlock();
	free(qp->sq);
	free(qp->rq.ring);
	free(qp);
	return 0;
}

struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *a)
{
	struct ah *ah;

	enter_kernel(pd->context);
	if (dead(pd->context))
		return NULL;
	if (!a->is_global || a->grh.sgid_index >= GIDS || a->port_num != 1) {
		errno = EINVAL;
		return NULL;
	}
	ah = calloc(1, sizeof(*ah));
	ah->base = (struct ibv_ah){ pd->context, pd, ++handles };
	ah->attr = *a;
	objects++;
	return &ah->base;
}

int ibv_destroy_ah(struct ibv_ah *ah)
{
	free(ah);
	objects--;
	return 0;
}

int ibv_attach_mcast(struct ibv_qp *qp, const uint8_t *gid, uint16_t lid)
{
	(void)qp;
	(void)lid;
	return gid[0] == 0xff ? EOPNOTSUPP : EINVAL;
}

int ibv_detach_mcast(struct ibv_qp *qp, const uint8_t *gid, uint16_t lid)
{
	return ibv_attach_mcast(qp, gid, lid);
}

int ibv_get_async_event(struct ibv_context *base, struct ibv_async_event *event)
{
	return read(((struct context *)base)->events[0], event, sizeof(*event)) == sizeof(*event) ? 0 : -1;
}

void ibv_ack_async_event(struct ibv_async_event *event)
{
	(void)event;
}
