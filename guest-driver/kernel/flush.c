// SPDX-License-Identifier: GPL-2.0
/*
 * Work of the kernel's QPs when the HCA has gone: nobody is left to complete it, so polling the CQ does,
 * with a flush, as a QP in ERR would. Consumers that drain their queues, as they do when they are
 * told to let go of the device, come to an end. Processes are disassociated instead (uctx.c).
 */
#include "vrdma.h"

static int vrdma_flush_ring(struct vrdma_qp *qp, struct vrdma_ring *ring, bool send, int num,
			    struct ib_wc *wc);

/*
 * From now on posted work is completed here. May sleep: the command returns when the device has ended
 * all objects, so no work is completed by both.
 */
void vrdma_flush_start(struct vrdma_hca *hca)
{
	struct virtio_rdma_device_attr attr;

	vrdma_command(hca->vd, VIRTIO_RDMA_CMD_QUERY_DEVICE, NULL, 0, &attr, sizeof(attr));
	WRITE_ONCE(hca->gone, true);
	queue_work(hca->vd->wq, &hca->vd->flush_work);
}

/* Runs the handler of every kernel CQ that was ever armed: there may be work to flush. */
void vrdma_flush_work(struct work_struct *work)
{
	struct vrdma_vdev *vd = container_of(work, struct vrdma_vdev, flush_work);
	struct vrdma_cq *cq;
	unsigned long cqn;

	xa_for_each(&vd->cqs, cqn, cq) {
		struct vrdma_vector *vec;
		unsigned long flags;

		/* What was found may be destroyed by now. */
		cq = vrdma_cq_get(vd, cqn);
		if (!cq)
			continue;
		vec = &vd->vectors[cq->ibcq.comp_vector % vd->num_vectors];
		/* As for events of the device: a CQ's handler is never entered twice at a time. */
		spin_lock_irqsave(&vec->lock, flags);
		if (!cq->umem && READ_ONCE(cq->arm) && cq->ibcq.comp_handler)
			cq->ibcq.comp_handler(&cq->ibcq, cq->ibcq.cq_context);
		spin_unlock_irqrestore(&vec->lock, flags);
		vrdma_cq_put(cq);
	}
}

/*
 * Up to `num` completions of what has been posted to the CQ's QPs and is not completed. With the CQ's
 * lock held and interrupts off; what the device completed has been polled before.
 */
int vrdma_flush_cq(struct vrdma_vdev *vd, struct vrdma_cq *cq, int num, struct ib_wc *wc)
{
	struct vrdma_qp *qp;
	unsigned long qpn;
	int n = 0;

	/* A QP is taken out of the table before it is freed. */
	xa_lock(&vd->qps);
	xa_for_each(&vd->qps, qpn, qp) {
		if (n == num)
			break;
		if (vrdma_is_user_qp(qp))
			continue;
		if (qp->ibqp.send_cq == &cq->ibcq)
			n += vrdma_flush_ring(qp, &qp->sq, true, num - n, wc + n);
		if (qp->ibqp.recv_cq == &cq->ibcq && !qp->ibqp.srq)
			n += vrdma_flush_ring(qp, &qp->rq, false, num - n, wc + n);
	}
	xa_unlock(&vd->qps);
	return n;
}

static int vrdma_flush_ring(struct vrdma_qp *qp, struct vrdma_ring *ring, bool send, int num,
			    struct ib_wc *wc)
{
	int n = 0;

	spin_lock(&ring->lock);
	for (; n < num && ring->freed != ring->posted; n++) {
		u32 index = ring->freed & (ring->entries - 1);
		const void *slot = ring->slots + ((size_t)index << ring->stride_shift);
		const struct virtio_rdma_send_wqe *send_wqe = slot;
		const struct virtio_rdma_recv_wqe *recv_wqe = slot;

		memset(&wc[n], 0, sizeof(wc[n]));
		wc[n].wr_id = le64_to_cpu(send ? send_wqe->wr_id : recv_wqe->wr_id);
		wc[n].status = IB_WC_WR_FLUSH_ERR;
		wc[n].qp = &qp->ibqp;
		WRITE_ONCE(ring->freed, ring->freed + 1);
	}
	spin_unlock(&ring->lock);
	return n;
}
