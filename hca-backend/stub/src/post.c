// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* How requests come in. */
#include "stub.h"

int post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
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

int post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
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

int post_srq_recv(struct ibv_srq *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
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

int bind_mw(struct ibv_qp *base, struct ibv_mw *mw, struct ibv_mw_bind *b)
{
	struct ibv_send_wr *bad, wr = { .wr_id = b->wr_id, .opcode = WR_BIND_MW, .send_flags = b->send_flags };

	if (mw->type != 1)
		return EINVAL;
	wr.bind_mw.mw = mw;
	wr.bind_mw.rkey = (mw->rkey & ~0xffu) | ((mw->rkey + 1) & 0xff);
	wr.bind_mw.bind_info = b->bind_info;
	return post_send(base, &wr, &bad);
}
