// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Carrying requests out: from one QP into the memory, or a receive request, of another. */
#include "stub.h"

void complete(struct qp *qp, struct send *s, int status)
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

void complete_recv(struct qp *qp, struct recv *r, struct ibv_wc wc)
{
	wc.wr_id = r->wr_id;
	wc.qp_num = qp->base.qp_num;
	push((struct cq *)qp->base.recv_cq, &wc);
}

void to_error(struct qp *qp)
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

static void move_bytes(struct cursor *to, struct cursor *from, uint64_t total)
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
		move_bytes(to, &from, total);
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

		return bind_window(qp, w, s->wr.bind_mw.rkey, &s->wr.bind_mw.bind_info);
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

void progress(struct qp *qp)
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

void progress_waiting(void)
{
	for (uint32_t n = 0; waiting && n < MAX_QPS && n < next_qp; n++)
		if (qps[n] && qps[n]->waiting)
			progress(qps[n]);
}
