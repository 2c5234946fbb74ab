// SPDX-License-Identifier: GPL-2.0
/*
 * Posting work to QPs and SRQs of the kernel. Never sleeps. The provider in user space does the same for
 * those of processes.
 */
#include <linux/bitops.h>
#include <linux/log2.h>

#include "vrdma.h"

static int vrdma_write_send_wqe(struct vrdma_qp *qp, const struct ib_send_wr *wr);
static int vrdma_write_datagram(struct virtio_rdma_send_wqe *wqe, const struct ib_send_wr *wr);
static int vrdma_write_operation(struct virtio_rdma_send_wqe *wqe, u8 *slot,
				 const struct ib_send_wr *wr);
static void vrdma_write_atomic(struct virtio_rdma_send_wqe *wqe, u8 *to,
			       const struct ib_atomic_wr *wr, u64 compare_add, u64 swap);
static void vrdma_write_reg_mr(struct virtio_rdma_send_wqe *wqe, u8 *to,
			       const struct ib_reg_wr *wr);
static int vrdma_post_recvs(struct vrdma_ring *ring, const struct ib_recv_wr *wr,
			    const struct ib_recv_wr **bad_wr);
static int vrdma_write_recv_wqe(struct vrdma_ring *ring, const struct ib_recv_wr *wr);
static int vrdma_write_inline(struct vrdma_qp *qp, u8 *wqe, const struct ib_send_wr *wr);
static void vrdma_write_sges(u8 *to, const struct ib_sge *sges, int num);
static u8 *vrdma_next_slot(struct vrdma_ring *ring, u8 *phase);
static void vrdma_publish(u8 *slot, __le64 first);
static void vrdma_ring_doorbell(struct vrdma_hca *hca, struct vrdma_uar *uar, u32 slot,
				const __le32 *mode_word);

/* The state of a ring whose QP is in RESET. */
void vrdma_ring_reset(struct vrdma_ring *ring)
{
	unsigned long flags;

	spin_lock_irqsave(&ring->lock, flags);
	memset(ring->slots, 0, (size_t)ring->entries << ring->stride_shift);
	ring->posted = 0;
	WRITE_ONCE(ring->freed, 0);
	spin_unlock_irqrestore(&ring->lock, flags);
}

int vrdma_post_send(struct ib_qp *ibqp, const struct ib_send_wr *wr,
		    const struct ib_send_wr **bad_wr)
{
	struct vrdma_qp *qp = to_vqp(ibqp);
	enum ib_qp_state state = READ_ONCE(qp->state);
	unsigned long flags;
	u32 before;
	int err = 0;

	if (vrdma_is_user_qp(qp) || state < IB_QPS_RTS) {
		*bad_wr = wr;
		return -EINVAL;
	}
	spin_lock_irqsave(&qp->sq.lock, flags);
	before = qp->sq.posted;
	for (; wr; wr = wr->next) {
		err = vrdma_write_send_wqe(qp, wr);
		if (err) {
			*bad_wr = wr;
			break;
		}
		qp->sq.posted++;
	}
	if (qp->sq.posted != before)
		vrdma_ring_doorbell(to_vhca(ibqp->device), qp->uar, qp->slot,
				    &qp->line->sq_mode);
	spin_unlock_irqrestore(&qp->sq.lock, flags);
	return err;
}

int vrdma_post_recv(struct ib_qp *ibqp, const struct ib_recv_wr *wr,
		    const struct ib_recv_wr **bad_wr)
{
	struct vrdma_qp *qp = to_vqp(ibqp);
	unsigned long flags;
	u32 before;
	int err;

	if (vrdma_is_user_qp(qp) || ibqp->srq || READ_ONCE(qp->state) == IB_QPS_RESET) {
		*bad_wr = wr;
		return -EINVAL;
	}
	spin_lock_irqsave(&qp->rq.lock, flags);
	before = qp->rq.posted;
	err = vrdma_post_recvs(&qp->rq, wr, bad_wr);
	if (qp->rq.posted != before)
		vrdma_ring_doorbell(to_vhca(ibqp->device), qp->uar, qp->slot,
				    &qp->line->rq_mode);
	spin_unlock_irqrestore(&qp->rq.lock, flags);
	return err;
}

int vrdma_post_srq_recv(struct ib_srq *ibsrq, const struct ib_recv_wr *wr,
			const struct ib_recv_wr **bad_wr)
{
	struct vrdma_srq *srq = to_vsrq(ibsrq);
	unsigned long flags;
	u32 before;
	int err;

	if (srq->umem) {
		*bad_wr = wr;
		return -EINVAL;
	}
	spin_lock_irqsave(&srq->ring.lock, flags);
	before = srq->ring.posted;
	/* The device has copied what it counts here. */
	srq->ring.freed = le32_to_cpu((__force __le32)
			smp_load_acquire((__force u32 *)&srq->line->consumer));
	err = vrdma_post_recvs(&srq->ring, wr, bad_wr);
	if (srq->ring.posted != before)
		vrdma_ring_doorbell(to_vhca(ibsrq->device), srq->uar, srq->slot,
				    &srq->line->mode);
	spin_unlock_irqrestore(&srq->ring.lock, flags);
	return err;
}

/* With the queue's lock held. */
static int vrdma_post_recvs(struct vrdma_ring *ring, const struct ib_recv_wr *wr,
			    const struct ib_recv_wr **bad_wr)
{
	int err;

	for (; wr; wr = wr->next) {
		err = vrdma_write_recv_wqe(ring, wr);
		if (err) {
			*bad_wr = wr;
			return err;
		}
		ring->posted++;
	}
	return 0;
}

/* With the queue's lock held. */
static int vrdma_write_send_wqe(struct vrdma_qp *qp, const struct ib_send_wr *wr)
{
	struct virtio_rdma_send_wqe wqe = {};
	u8 *slot, phase;
	int err;

	slot = vrdma_next_slot(&qp->sq, &phase);
	if (!slot)
		return -ENOMEM;
	if (wr->num_sge < 0 || wr->num_sge > qp->sq.max_sge)
		return -EINVAL;

	if (qp->ibqp.qp_type == IB_QPT_UD || qp->ibqp.qp_type == IB_QPT_GSI)
		err = vrdma_write_datagram(&wqe, wr);
	else
		err = vrdma_write_operation(&wqe, slot, wr);
	if (err)
		return err;
	if (wr->send_flags & IB_SEND_FENCE)
		wqe.flags |= VIRTIO_RDMA_SEND_FENCE;
	if (wr->send_flags & IB_SEND_SIGNALED || qp->sig_type == IB_SIGNAL_ALL_WR)
		wqe.flags |= VIRTIO_RDMA_SEND_SIGNALED;
	if (wr->send_flags & IB_SEND_SOLICITED)
		wqe.flags |= VIRTIO_RDMA_SEND_SOLICITED;
	wqe.wr_id = cpu_to_le64(wr->wr_id);
	wqe.phase = phase;

	if (wr->send_flags & IB_SEND_INLINE) {
		if (wr->opcode == IB_WR_RDMA_READ || wr->opcode == IB_WR_REG_MR ||
		    wr->opcode == IB_WR_LOCAL_INV || wr->opcode == IB_WR_ATOMIC_CMP_AND_SWP ||
		    wr->opcode == IB_WR_ATOMIC_FETCH_AND_ADD)
			return -EINVAL;
		err = vrdma_write_inline(qp, slot + VIRTIO_RDMA_WQE_SEND_DATA, wr);
		if (err < 0)
			return err;
		wqe.flags |= VIRTIO_RDMA_SEND_INLINE;
		wqe.inline_length = cpu_to_le32(err);
	} else if (wr->opcode != IB_WR_REG_MR && wr->opcode != IB_WR_LOCAL_INV) {
		wqe.num_sge = wr->num_sge;
		vrdma_write_sges(slot + VIRTIO_RDMA_WQE_SEND_DATA, wr->sg_list, wr->num_sge);
	}

	memcpy(slot + sizeof(__le64), (u8 *)&wqe + sizeof(__le64), sizeof(wqe) - sizeof(__le64));
	vrdma_publish(slot, *(__le64 *)&wqe);
	return 0;
}

/* What a datagram's WQE says of its destination. */
static int vrdma_write_datagram(struct virtio_rdma_send_wqe *wqe, const struct ib_send_wr *wr)
{
	const struct ib_ud_wr *ud = ud_wr(wr);

	switch (wr->opcode) {
	case IB_WR_SEND:
		wqe->opcode = VIRTIO_RDMA_WR_SEND;
		break;
	case IB_WR_SEND_WITH_IMM:
		wqe->opcode = VIRTIO_RDMA_WR_SEND_WITH_IMM;
		wqe->imm = (__force __le32)wr->ex.imm_data;
		break;
	default:
		return -EINVAL;
	}
	wqe->remote_addr = cpu_to_le64((u64)ud->remote_qpn << 32 | to_vah(ud->ah)->index);
	wqe->rkey = cpu_to_le32(ud->remote_qkey);
	return 0;
}

/* The operation of a WQE of a connection; what is not data, in the slot too. */
static int vrdma_write_operation(struct virtio_rdma_send_wqe *wqe, u8 *slot,
				 const struct ib_send_wr *wr)
{
	switch (wr->opcode) {
	case IB_WR_SEND:
		wqe->opcode = VIRTIO_RDMA_WR_SEND;
		return 0;
	case IB_WR_SEND_WITH_IMM:
		wqe->opcode = VIRTIO_RDMA_WR_SEND_WITH_IMM;
		wqe->imm = (__force __le32)wr->ex.imm_data;
		return 0;
	case IB_WR_SEND_WITH_INV:
		wqe->opcode = VIRTIO_RDMA_WR_SEND_WITH_INV;
		wqe->imm = cpu_to_le32(wr->ex.invalidate_rkey);
		return 0;
	case IB_WR_LOCAL_INV:
		wqe->opcode = VIRTIO_RDMA_WR_LOCAL_INV;
		wqe->rkey = cpu_to_le32(wr->ex.invalidate_rkey);
		return 0;
	case IB_WR_REG_MR:
		wqe->opcode = VIRTIO_RDMA_WR_REG_MR;
		vrdma_write_reg_mr(wqe, slot + VIRTIO_RDMA_WQE_SEND_DATA, reg_wr(wr));
		return 0;
	case IB_WR_RDMA_WRITE:
		wqe->opcode = VIRTIO_RDMA_WR_RDMA_WRITE;
		break;
	case IB_WR_RDMA_WRITE_WITH_IMM:
		wqe->opcode = VIRTIO_RDMA_WR_RDMA_WRITE_WITH_IMM;
		wqe->imm = (__force __le32)wr->ex.imm_data;
		break;
	case IB_WR_RDMA_READ:
		wqe->opcode = VIRTIO_RDMA_WR_RDMA_READ;
		break;
	case IB_WR_ATOMIC_CMP_AND_SWP:
		wqe->opcode = VIRTIO_RDMA_WR_ATOMIC_CMP_AND_SWP;
		vrdma_write_atomic(wqe, slot + VIRTIO_RDMA_WQE_ATOMIC_ARGS, atomic_wr(wr),
				   atomic_wr(wr)->compare_add, atomic_wr(wr)->swap);
		return wr->num_sge == 1 ? 0 : -EINVAL;
	case IB_WR_ATOMIC_FETCH_AND_ADD:
		wqe->opcode = VIRTIO_RDMA_WR_ATOMIC_FETCH_AND_ADD;
		vrdma_write_atomic(wqe, slot + VIRTIO_RDMA_WQE_ATOMIC_ARGS, atomic_wr(wr),
				   atomic_wr(wr)->compare_add, 0);
		return wr->num_sge == 1 ? 0 : -EINVAL;
	default:
		/* Not among what query_device says that the device can do. */
		return -EOPNOTSUPP;
	}
	wqe->remote_addr = cpu_to_le64(rdma_wr(wr)->remote_addr);
	wqe->rkey = cpu_to_le32(rdma_wr(wr)->rkey);
	return 0;
}

static void vrdma_write_atomic(struct virtio_rdma_send_wqe *wqe, u8 *to,
			       const struct ib_atomic_wr *wr, u64 compare_add, u64 swap)
{
	struct virtio_rdma_atomic_args *args = (struct virtio_rdma_atomic_args *)to;

	wqe->remote_addr = cpu_to_le64(wr->remote_addr);
	wqe->rkey = cpu_to_le32(wr->rkey);
	args->compare_add = cpu_to_le64(compare_add);
	args->swap = cpu_to_le64(swap);
}

/* The memory is what map_mr_sg has put into the MR's list. */
static void vrdma_write_reg_mr(struct virtio_rdma_send_wqe *wqe, u8 *to,
			       const struct ib_reg_wr *wr)
{
	struct virtio_rdma_reg_mr_args *args = (struct virtio_rdma_reg_mr_args *)to;
	const struct vrdma_mr *mr = to_vmr(wr->mr);

	wqe->remote_addr = cpu_to_le64(mr->ibmr.iova);
	wqe->rkey = cpu_to_le32(wr->key);
	memset(args, 0, sizeof(*args));
	args->length = cpu_to_le64(mr->ibmr.length);
	args->access = cpu_to_le32(vrdma_access_to_wire(wr->access));
	args->num_pages = cpu_to_le32(mr->num_pages);
	args->offset = cpu_to_le32(mr->offset);
	args->page_shift = ilog2(mr->ibmr.page_size);
}

/* With the queue's lock held. */
static int vrdma_write_recv_wqe(struct vrdma_ring *ring, const struct ib_recv_wr *wr)
{
	struct virtio_rdma_recv_wqe wqe = {};
	u8 *slot, phase;

	slot = vrdma_next_slot(ring, &phase);
	if (!slot)
		return -ENOMEM;
	if (wr->num_sge < 0 || wr->num_sge > ring->max_sge)
		return -EINVAL;

	wqe.num_sge = wr->num_sge;
	wqe.phase = phase;
	wqe.wr_id = cpu_to_le64(wr->wr_id);
	vrdma_write_sges(slot + VIRTIO_RDMA_WQE_RECV_DATA, wr->sg_list, wr->num_sge);
	memcpy(slot + sizeof(__le64), (u8 *)&wqe + sizeof(__le64), sizeof(wqe) - sizeof(__le64));
	vrdma_publish(slot, *(__le64 *)&wqe);
	return 0;
}

/* The number of bytes, or an error. Inline data of the kernel is named by virtual addresses. */
static int vrdma_write_inline(struct vrdma_qp *qp, u8 *to, const struct ib_send_wr *wr)
{
	u32 bytes = 0;
	int i;

	for (i = 0; i < wr->num_sge; i++) {
		const struct ib_sge *sge = &wr->sg_list[i];

		if (sge->length > qp->max_inline - bytes)
			return -EINVAL;
		memcpy(to + bytes, (void *)(uintptr_t)sge->addr, sge->length);
		bytes += sge->length;
	}
	return bytes;
}

static void vrdma_write_sges(u8 *to, const struct ib_sge *sges, int num)
{
	struct virtio_rdma_sge *sge = (struct virtio_rdma_sge *)to;
	int i;

	for (i = 0; i < num; i++) {
		sge[i].addr = cpu_to_le64(sges[i].addr);
		sge[i].length = cpu_to_le32(sges[i].length);
		sge[i].lkey = cpu_to_le32(sges[i].lkey);
	}
}

/* NULL when the queue is full. */
static u8 *vrdma_next_slot(struct vrdma_ring *ring, u8 *phase)
{
	u32 n = ring->posted;

	if (n - READ_ONCE(ring->freed) >= ring->entries)
		return NULL;
	*phase = n & ring->entries ? 0 : 1;
	return ring->slots + ((size_t)(n & (ring->entries - 1)) << ring->stride_shift);
}

/* Stores the first eight bytes, which hold the phase, after all others. */
static void vrdma_publish(u8 *slot, __le64 first)
{
	/* Pairs with the device's load of the phase. */
	smp_store_release((u64 *)slot, (__force u64)first);
}

/*
 * Shows the device the new work, unless it polls the queue anyway. Every step is ordered after
 * the one before by a full fence, since the device does the same in the other order: it cannot
 * both fall asleep and miss the work.
 */
static void vrdma_ring_doorbell(struct vrdma_hca *hca, struct vrdma_uar *uar, u32 slot,
				const __le32 *mode_word)
{
	struct vrdma_vdev *vd = hca->vd;
	void *at = page_address(uar->pages);
	u32 mode, vector;

	if (unlikely(READ_ONCE(hca->gone))) {
		queue_work(vd->wq, &vd->flush_work);
		return;
	}
	smp_mb(); /* after the phase; pairs with the device's after it arms the queue */
	mode = le32_to_cpu(READ_ONCE(*mode_word));
	if (mode & VIRTIO_RDMA_MODE_POLLED)
		return;

	set_bit_le(slot, at + VIRTIO_RDMA_UAR_BITMAP_OFFSET);
	smp_mb__after_atomic(); /* before the summary that announces it */
	set_bit_le(slot / 64 % 64, at + offsetof(struct virtio_rdma_uar_header, summary));
	smp_mb__after_atomic(); /* pairs with the device's after it says that it sleeps */
	vector = mode >> VIRTIO_RDMA_MODE_VECTOR_SHIFT;
	if (vector < vd->num_vectors && READ_ONCE(vd->status[vector].sleeping))
		virtqueue_notify(vd->vectors[vector].doorbellq);
}
