// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Completion queues and their channels. */
#include "stub.h"

int poll_cq(struct ibv_cq *base, int num, struct ibv_wc *wc)
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

int req_notify_cq(struct ibv_cq *base, int solicited_only)
{
	(void)solicited_only;
	enter_kernel(base->context);
	lock();
	((struct cq *)base)->armed = true;
	unlock();
	return 0;
}

void push(struct cq *cq, struct ibv_wc *wc)
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

API struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c)
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

API int ibv_destroy_comp_channel(struct ibv_comp_channel *base)
{
	close(base->fd);
	close(((struct channel *)base)->write_fd);
	free(base);
	objects--;
	return 0;
}

API struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *context, struct ibv_comp_channel *ch, int vector)
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

API int ibv_resize_cq(struct ibv_cq *base, int cqe)
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

API int ibv_destroy_cq(struct ibv_cq *base)
{
	free(((struct cq *)base)->ring);
	free(base);
	objects--;
	return 0;
}

API int ibv_get_cq_event(struct ibv_comp_channel *ch, struct ibv_cq **cq, void **context)
{
	struct ibv_cq *found;

	if (read(ch->fd, &found, sizeof(found)) != sizeof(found))
		return -1;
	*cq = found;
	*context = found->cq_context;
	return 0;
}

API void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int count)
{
	(void)cq;
	(void)count;
}
