// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* PDs, SRQs, QPs and address handles: making, changing and ending them. */
#include "stub.h"

API struct ibv_pd *ibv_alloc_pd(struct ibv_context *c)
{
	struct ibv_pd *pd;

	if (dead(c))
		return NULL;
	pd = calloc(1, sizeof(*pd));
	*pd = (struct ibv_pd){ c, ++handles };
	objects++;
	return pd;
}

API int ibv_dealloc_pd(struct ibv_pd *pd)
{
	objects--;
	free(pd);
	return 0;
}

API struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *a)
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

API int ibv_modify_srq(struct ibv_srq *base, struct ibv_srq_attr *a, int mask)
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

API int ibv_query_srq(struct ibv_srq *base, struct ibv_srq_attr *a)
{
	struct srq *srq = (struct srq *)base;

	*a = (struct ibv_srq_attr){ srq->rq.size, srq->max_sge, srq->limit };
	return 0;
}

API int ibv_destroy_srq(struct ibv_srq *base)
{
	free(((struct srq *)base)->rq.ring);
	free(base);
	objects--;
	return 0;
}

API struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a)
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

API int ibv_modify_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask)
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

API int ibv_query_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask, struct ibv_qp_init_attr *init)
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

API int ibv_destroy_qp(struct ibv_qp *base)
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

API struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *a)
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

API int ibv_destroy_ah(struct ibv_ah *ah)
{
	free(ah);
	objects--;
	return 0;
}

API int ibv_attach_mcast(struct ibv_qp *qp, const uint8_t *gid, uint16_t lid)
{
	(void)qp;
	(void)lid;
	return gid[0] == 0xff ? EOPNOTSUPP : EINVAL;
}

API int ibv_detach_mcast(struct ibv_qp *qp, const uint8_t *gid, uint16_t lid)
{
	return ibv_attach_mcast(qp, gid, lid);
}
