// SPDX-License-Identifier: GPL-2.0
/*
 * What the device tells on its own: completion events (a vector's compq) and asynchronous events
 * (eventq). A CQ, QP or SRQ that is named is held while its handler runs; destroying it waits for that
 * (refs and unused in their structures).
 */
#include "vrdma.h"

/* Buffers in eventq. Events that find none wait in the device. */
#define VRDMA_NUM_EVENTS 64

static bool vrdma_compq_serve(struct vrdma_vector *vec);
static void vrdma_handle_event(struct vrdma_vdev *vd, const struct virtio_rdma_async_event *event);
static void vrdma_qp_event(struct vrdma_vdev *vd, u32 qpn, enum ib_event_type type);
static void vrdma_srq_event(struct vrdma_vdev *vd, u32 srqn, enum ib_event_type type);
static void vrdma_cq_event(struct vrdma_vdev *vd, u32 cqn, enum ib_event_type type);
static int vrdma_post_buffer(struct virtqueue *vq, void *buffer, unsigned int bytes);

/* Fills eventq and the compqs. The device may not be started yet. May sleep. */
int vrdma_events_start(struct vrdma_vdev *vd)
{
	u32 v, i, n;

	vd->events = kcalloc(VRDMA_NUM_EVENTS, sizeof(*vd->events), GFP_KERNEL);
	if (!vd->events)
		return -ENOMEM;
	n = min_t(u32, VRDMA_NUM_EVENTS, vd->eventq->num_free);
	for (i = 0; i < n; i++) {
		int err = vrdma_post_buffer(vd->eventq, &vd->events[i], sizeof(vd->events[i]));

		if (err)
			return err;
	}

	for (v = 0; v < vd->num_vectors; v++) {
		struct vrdma_vector *vec = &vd->vectors[v];

		n = vec->compq->num_free;
		vec->num_events = n;
		vec->events = kcalloc(n, sizeof(*vec->events), GFP_KERNEL);
		if (!vec->events)
			return -ENOMEM;
		for (i = 0; i < n; i++) {
			int err = vrdma_post_buffer(vec->compq, &vec->events[i],
						    sizeof(vec->events[i]));

			if (err)
				return err;
		}
	}
	return 0;
}

/* Nothing runs any more when this returns. The device has been reset. */
void vrdma_events_cancel(struct vrdma_vdev *vd)
{
	u32 v;

	cancel_work_sync(&vd->event_work);
	for (v = 0; v < vd->num_vectors; v++)
		cancel_work_sync(&vd->vectors[v].work);
}

/* Takes the buffers back. The device has been reset. */
void vrdma_events_stop(struct vrdma_vdev *vd)
{
	u32 v;

	while (virtqueue_detach_unused_buf(vd->eventq))
		;
	for (v = 0; v < vd->num_vectors; v++)
		while (virtqueue_detach_unused_buf(vd->vectors[v].compq))
			;
}

/* The queues have been deleted. */
void vrdma_events_free(struct vrdma_vdev *vd)
{
	u32 v;

	for (v = 0; v < vd->num_vectors; v++)
		kfree(vd->vectors[v].events);
	kfree(vd->events);
}

/*
 * The interrupt of a vector's compq. Processes can make events as fast as the device completes
 * their work, so it does a share, and leaves the rest to a thread that can be preempted.
 */
void vrdma_compq_callback(struct virtqueue *vq)
{
	struct vrdma_vdev *vd = vq->vdev->priv;
	struct vrdma_vector *vec =
		&vd->vectors[(vq->index - VIRTIO_RDMA_QUEUE_COMP_FIRST) / 2];

	if (vrdma_compq_serve(vec))
		queue_work(vd->wq, &vec->work);
}

void vrdma_compq_work(struct work_struct *work)
{
	struct vrdma_vector *vec = container_of(work, struct vrdma_vector, work);

	if (vrdma_compq_serve(vec))
		queue_work(vec->vd->wq, &vec->work);
}

void vrdma_eventq_callback(struct virtqueue *vq)
{
	struct vrdma_vdev *vd = vq->vdev->priv;

	queue_work(vd->wq, &vd->event_work);
}

/* Handlers of asynchronous events may expect to run in a process. */
void vrdma_event_work(struct work_struct *work)
{
	struct vrdma_vdev *vd = container_of(work, struct vrdma_vdev, event_work);
	struct virtio_rdma_async_event *event;
	unsigned int len;

	do {
		virtqueue_disable_cb(vd->eventq);
		while ((event = virtqueue_get_buf(vd->eventq, &len))) {
			struct virtio_rdma_async_event copy = *event;

			vrdma_post_buffer(vd->eventq, event, sizeof(*event));
			if (len >= sizeof(copy))
				vrdma_handle_event(vd, &copy);
			cond_resched();
		}
	} while (!virtqueue_enable_cb(vd->eventq));
	virtqueue_kick(vd->eventq);
}

/*
 * Runs the completion handlers of the CQs that a vector's compq names. True when there may be
 * more; then the device sends no further interrupt. At most one runs for a vector, so the
 * handler of a CQ is never entered twice at a time.
 */
static bool vrdma_compq_serve(struct vrdma_vector *vec)
{
	struct virtqueue *vq = vec->compq;
	struct virtio_rdma_comp_event *event;
	u32 budget = vec->num_events;
	unsigned long flags;
	unsigned int len;

	spin_lock_irqsave(&vec->lock, flags);
	do {
		virtqueue_disable_cb(vq);
		while (budget && (event = virtqueue_get_buf(vq, &len))) {
			struct vrdma_cq *cq = NULL;

			budget--;
			if (len >= sizeof(*event))
				cq = vrdma_cq_get(vec->vd, le32_to_cpu(event->cqn));
			vrdma_post_buffer(vq, event, sizeof(*event));
			/* An event of a CQ destroyed meanwhile is nobody's. */
			if (!cq)
				continue;
			if (cq->ibcq.comp_handler)
				cq->ibcq.comp_handler(&cq->ibcq, cq->ibcq.cq_context);
			vrdma_cq_put(cq);
		}
	} while (budget && !virtqueue_enable_cb(vq));
	/* Without an exit, unless the device had run out of buffers and asked. */
	virtqueue_kick(vq);
	spin_unlock_irqrestore(&vec->lock, flags);
	return !budget;
}

static void vrdma_handle_event(struct vrdma_vdev *vd, const struct virtio_rdma_async_event *event)
{
	u32 number = le32_to_cpu(event->number);

	switch (le32_to_cpu(event->event)) {
	case VIRTIO_RDMA_EVENT_CQ_ERR:
		return vrdma_cq_event(vd, number, IB_EVENT_CQ_ERR);
	case VIRTIO_RDMA_EVENT_QP_FATAL:
		return vrdma_qp_event(vd, number, IB_EVENT_QP_FATAL);
	case VIRTIO_RDMA_EVENT_QP_REQ_ERR:
		return vrdma_qp_event(vd, number, IB_EVENT_QP_REQ_ERR);
	case VIRTIO_RDMA_EVENT_QP_ACCESS_ERR:
		return vrdma_qp_event(vd, number, IB_EVENT_QP_ACCESS_ERR);
	case VIRTIO_RDMA_EVENT_COMM_EST:
		return vrdma_qp_event(vd, number, IB_EVENT_COMM_EST);
	case VIRTIO_RDMA_EVENT_SQ_DRAINED:
		return vrdma_qp_event(vd, number, IB_EVENT_SQ_DRAINED);
	case VIRTIO_RDMA_EVENT_SRQ_ERR:
		return vrdma_srq_event(vd, number, IB_EVENT_SRQ_ERR);
	case VIRTIO_RDMA_EVENT_SRQ_LIMIT_REACHED:
		return vrdma_srq_event(vd, number, IB_EVENT_SRQ_LIMIT_REACHED);
	case VIRTIO_RDMA_EVENT_QP_LAST_WQE_REACHED:
		return vrdma_qp_event(vd, number, IB_EVENT_QP_LAST_WQE_REACHED);
	case VIRTIO_RDMA_EVENT_DEVICE_FATAL:
		dev_err(&vd->vdev->dev, "the device reports a fatal error: see the log of vhost-rdma\n");
		return vrdma_dispatch(vd, IB_EVENT_DEVICE_FATAL);
	case VIRTIO_RDMA_EVENT_PORT_ACTIVE:
		return vrdma_dispatch(vd, IB_EVENT_PORT_ACTIVE);
	case VIRTIO_RDMA_EVENT_PORT_ERR:
		return vrdma_dispatch(vd, IB_EVENT_PORT_ERR);
	case VIRTIO_RDMA_EVENT_GID_CHANGE:
		return vrdma_dispatch(vd, IB_EVENT_GID_CHANGE);
	case VIRTIO_RDMA_EVENT_PAGE_FAULT:
		return vrdma_odp_event(vd, number);
	case VIRTIO_RDMA_EVENT_HCA_ADDED:
	case VIRTIO_RDMA_EVENT_HCA_REMOVED:
		return vrdma_resync(vd, false);
	default:
		/* Of a later version of the interface, and not asked for. */
		dev_dbg(&vd->vdev->dev, "event %#x of %u ignored\n", le32_to_cpu(event->event),
			number);
	}
}

static void vrdma_qp_event(struct vrdma_vdev *vd, u32 qpn, enum ib_event_type type)
{
	struct ib_event event = { .event = type };
	struct vrdma_qp *qp;

	xa_lock_irq(&vd->qps);
	qp = xa_load(&vd->qps, qpn);
	if (qp && !refcount_inc_not_zero(&qp->refs))
		qp = NULL;
	xa_unlock_irq(&vd->qps);
	if (!qp)
		return;

	event.device = qp->ibqp.device;
	event.element.qp = &qp->ibqp;
	if (qp->ibqp.event_handler)
		qp->ibqp.event_handler(&event, qp->ibqp.qp_context);
	if (refcount_dec_and_test(&qp->refs))
		complete(&qp->unused);
}

static void vrdma_srq_event(struct vrdma_vdev *vd, u32 srqn, enum ib_event_type type)
{
	struct ib_event event = { .event = type };
	struct vrdma_srq *srq;

	xa_lock_irq(&vd->srqs);
	srq = xa_load(&vd->srqs, srqn);
	if (srq && !refcount_inc_not_zero(&srq->refs))
		srq = NULL;
	xa_unlock_irq(&vd->srqs);
	if (!srq)
		return;

	event.device = srq->ibsrq.device;
	event.element.srq = &srq->ibsrq;
	if (srq->ibsrq.event_handler)
		srq->ibsrq.event_handler(&event, srq->ibsrq.srq_context);
	if (refcount_dec_and_test(&srq->refs))
		complete(&srq->unused);
}

static void vrdma_cq_event(struct vrdma_vdev *vd, u32 cqn, enum ib_event_type type)
{
	struct ib_event event = { .event = type };
	struct vrdma_cq *cq = vrdma_cq_get(vd, cqn);

	if (!cq)
		return;
	event.device = cq->ibcq.device;
	event.element.cq = &cq->ibcq;
	if (cq->ibcq.event_handler)
		cq->ibcq.event_handler(&event, cq->ibcq.cq_context);
	vrdma_cq_put(cq);
}

/* The CQ, if it exists and is not being destroyed. Any context. */
struct vrdma_cq *vrdma_cq_get(struct vrdma_vdev *vd, u32 cqn)
{
	struct vrdma_cq *cq;
	unsigned long flags;

	xa_lock_irqsave(&vd->cqs, flags);
	cq = xa_load(&vd->cqs, cqn);
	if (cq && !refcount_inc_not_zero(&cq->refs))
		cq = NULL;
	xa_unlock_irqrestore(&vd->cqs, flags);
	return cq;
}

void vrdma_cq_put(struct vrdma_cq *cq)
{
	if (refcount_dec_and_test(&cq->refs))
		complete(&cq->unused);
}

/* Of memory that kmalloc gave, so no error but a full or broken queue. */
static int vrdma_post_buffer(struct virtqueue *vq, void *buffer, unsigned int bytes)
{
	struct scatterlist sg;

	sg_init_one(&sg, buffer, bytes);
	return virtqueue_add_inbuf(vq, &sg, 1, buffer, GFP_ATOMIC);
}
