// SPDX-License-Identifier: GPL-2.0
/*
 * Completion queues: creation for processes and for the kernel, resizing of a process's,
 * moderation, and polling and arming of the kernel's (a process polls and arms its own).
 */
#include <linux/log2.h>

#include "vrdma.h"

/* What the qpn of a CQE becomes when its QP is destroyed: polling skips it. */
#define VRDMA_NO_QP 0xffffffffU

static int vrdma_create_user_cq(struct vrdma_hca *hca, struct vrdma_cq *cq, u32 cqe,
				struct vrdma_page_list *list, struct ib_udata *udata);
static struct ib_umem *vrdma_user_cq_ring(struct vrdma_hca *hca, struct vrdma_page_list *list,
					  u64 buf_addr, u32 buf_bytes, u32 entries, u32 cqe);
static int vrdma_create_kernel_cq(struct vrdma_hca *hca, struct vrdma_cq *cq, u32 cqe,
				  struct vrdma_page_list *list);
static void vrdma_cq_free_memory(struct vrdma_vdev *vd, struct vrdma_cq *cq);
static struct virtio_rdma_cqe *vrdma_next_cqe(struct vrdma_cq *cq, u32 index);
static void vrdma_cq_give_back(struct vrdma_cq *cq, struct vrdma_ring *ring, u32 freed);
static struct vrdma_ring *vrdma_cqe_to_wc(struct vrdma_vdev *vd, const struct virtio_rdma_cqe *cqe,
					  struct ib_wc *wc);
static enum ib_wc_opcode vrdma_wc_opcode(u8 opcode);

int vrdma_create_cq(struct ib_cq *ibcq, const struct ib_cq_init_attr *attr, VRDMA_CREATE_CQ_ARG)
{
	struct ib_udata *udata = vrdma_create_cq_udata(arg);
	struct vrdma_hca *hca = to_vhca(ibcq->device);
	struct virtio_rdma_create_cq_request request = {};
	struct virtio_rdma_uresp_create_cq resp = {};
	struct virtio_rdma_number_answer answer;
	struct vrdma_cq *cq = to_vcq(ibcq);
	struct vrdma_vdev *vd = hca->vd;
	struct vrdma_page_list list;
	int err;

	if (attr->flags & ~IB_UVERBS_CQ_FLAGS_TIMESTAMP_COMPLETION)
		return -EOPNOTSUPP;
	if (attr->flags) {
		if (!(hca->capabilities & VIRTIO_RDMA_CAP_TIMESTAMP))
			return -EOPNOTSUPP;
		request.flags = cpu_to_le32(VIRTIO_RDMA_CQ_FLAG_TIMESTAMP);
	}
	if (attr->cqe < 1 || attr->cqe > le32_to_cpu(hca->attr.max_cqe) ||
	    attr->comp_vector >= vd->num_vectors)
		return -EINVAL;
	spin_lock_init(&cq->lock);
	mutex_init(&cq->resize_lock);
	refcount_set(&cq->refs, 1);
	init_completion(&cq->unused);

	if (udata)
		err = vrdma_create_user_cq(hca, cq, attr->cqe, &list, udata);
	else
		err = vrdma_create_kernel_cq(hca, cq, attr->cqe, &list);
	if (err)
		return err;

	request.entries = cpu_to_le32(cq->entries);
	request.vector = cpu_to_le32(attr->comp_vector);
	request.pages = list.wire;
	err = vrdma_command(vd, VIRTIO_RDMA_CMD_CREATE_CQ, &request, sizeof(request), &answer,
			    sizeof(answer));
	vrdma_page_list_free(vd, &list);
	if (err)
		goto err_memory;
	cq->cqn = le32_to_cpu(answer.number);
	ibcq->cqe = cq->entries;

	/* In the place of a CQ that is being destroyed and had this number, perhaps. */
	err = xa_err(xa_store_irq(&vd->cqs, cq->cqn, cq, GFP_KERNEL));
	if (err)
		goto err_destroy;
	if (udata) {
		resp.cqn = cq->cqn;
		err = ib_copy_to_udata(udata, &resp, min(sizeof(resp), udata->outlen));
		if (err)
			goto err_erase;
	}
	return 0;

err_erase:
	/* Nothing uses the CQ yet: handlers that run are of events from before its time. */
	vrdma_destroy_cq(ibcq, udata);
	return err;
err_destroy:
	vrdma_destroy(vd, VIRTIO_RDMA_CMD_DESTROY_CQ, cq->cqn);
err_memory:
	vrdma_cq_free_memory(vd, cq);
	return err;
}

int vrdma_destroy_cq(struct ib_cq *ibcq, struct ib_udata *udata)
{
	struct vrdma_vdev *vd = to_vhca(ibcq->device)->vd;
	struct vrdma_cq *cq = to_vcq(ibcq);
	int err;

	err = vrdma_destroy(vd, VIRTIO_RDMA_CMD_DESTROY_CQ, cq->cqn);
	if (err)
		return err;
	/* Unless the number is another CQ's already. */
	xa_cmpxchg_irq(&vd->cqs, cq->cqn, cq, NULL, 0);
	if (refcount_dec_and_test(&cq->refs))
		complete(&cq->unused);
	wait_for_completion(&cq->unused);
	vrdma_cq_free_memory(vd, cq);
	return 0;
}

/*
 * Gives a CQ of a process another ring. When the command has succeeded the device is done with
 * the old memory; the process may go on polling what is in it, for it is the process's.
 */
int vrdma_resize_user_cq(struct ib_cq *ibcq, VRDMA_RESIZE_CQ_CQE cqe, struct ib_udata *udata)
{
	struct vrdma_hca *hca = to_vhca(ibcq->device);
	struct virtio_rdma_resize_cq_request request = {};
	struct virtio_rdma_uresp_resize_cq resp = {};
	struct virtio_rdma_ureq_resize_cq ureq = {};
	struct virtio_rdma_number_answer answer;
	struct vrdma_cq *cq = to_vcq(ibcq);
	struct vrdma_page_list list;
	struct ib_umem *umem;
	int err;

	/* The kernel's consumers know how many completions they will have. */
	if (!udata || !(hca->capabilities & VIRTIO_RDMA_CAP_CQ_RESIZE))
		return -EOPNOTSUPP;
	if (cqe < 1 || udata->inlen < sizeof(ureq))
		return -EINVAL;
	err = ib_copy_from_udata(&ureq, udata, sizeof(ureq));
	if (err)
		return err;
	umem = vrdma_user_cq_ring(hca, &list, ureq.buf_addr, ureq.buf_bytes, ureq.entries, cqe);
	if (IS_ERR(umem))
		return PTR_ERR(umem);

	request.cqn = cpu_to_le32(cq->cqn);
	request.entries = cpu_to_le32(ureq.entries);
	request.pages = list.wire;
	mutex_lock(&cq->resize_lock);
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_RESIZE_CQ, &request, sizeof(request), &answer,
			    sizeof(answer));
	if (!err) {
		swap(umem, cq->umem);
		cq->entries = ureq.entries;
		ibcq->cqe = ureq.entries;
	}
	mutex_unlock(&cq->resize_lock);
	vrdma_page_list_free(hca->vd, &list);
	ib_umem_release(umem);
	if (err)
		return err;
	resp.old_cqes = le32_to_cpu(answer.number);
	return ib_copy_to_udata(udata, &resp, min(sizeof(resp), udata->outlen));
}

/* Moderation, of a process's CQ or by the ib core's DIM of the kernel's. May sleep. */
int vrdma_modify_cq(struct ib_cq *ibcq, u16 count, u16 period)
{
	struct vrdma_hca *hca = to_vhca(ibcq->device);
	struct virtio_rdma_modify_cq_request request = {
		.cqn = cpu_to_le32(to_vcq(ibcq)->cqn),
		.count = cpu_to_le16(min(count, le16_to_cpu(hca->attr.max_cq_count))),
		.period = cpu_to_le16(min(period, le16_to_cpu(hca->attr.max_cq_period))),
	};

	if (!(hca->capabilities & VIRTIO_RDMA_CAP_CQ_MODERATION))
		return -EOPNOTSUPP;
	return vrdma_command(hca->vd, VIRTIO_RDMA_CMD_MODIFY_CQ, &request, sizeof(request), NULL,
			     0);
}

/* Never sleeps. */
int vrdma_poll_cq(struct ib_cq *ibcq, int num, struct ib_wc *wc)
{
	struct vrdma_vdev *vd = to_vhca(ibcq->device)->vd;
	struct vrdma_cq *cq = to_vcq(ibcq);
	struct vrdma_ring *ring = NULL;
	struct virtio_rdma_cqe *cqe;
	unsigned long flags;
	u32 before, freed = 0;
	int n = 0;

	spin_lock_irqsave(&cq->lock, flags);
	before = cq->consumer;
	while (n < num && (cqe = vrdma_next_cqe(cq, cq->consumer))) {
		struct vrdma_ring *of = vrdma_cqe_to_wc(vd, cqe, &wc[n]);

		if (of) {
			/* Once a run of CQEs of one queue, which is mostly once a call. */
			if (ring && ring != of)
				vrdma_cq_give_back(cq, ring, freed);
			ring = of;
			freed = le32_to_cpu(cqe->wqe_count);
			n++;
		}
		cq->consumer++;
	}
	if (cq->consumer != before)
		vrdma_cq_give_back(cq, ring, freed);
	if (n < num && READ_ONCE(to_vhca(ibcq->device)->gone))
		n += vrdma_flush_cq(vd, cq, num - n, wc + n);
	spin_unlock_irqrestore(&cq->lock, flags);
	return n;
}

/* Never sleeps. */
int vrdma_req_notify_cq(struct ib_cq *ibcq, enum ib_cq_notify_flags flags)
{
	struct vrdma_cq *cq = to_vcq(ibcq);
	bool solicited = (flags & IB_CQ_SOLICITED_MASK) == IB_CQ_SOLICITED;
	const struct virtio_rdma_cq_device_line *device = (const void *)(cq->guest + 1);
	unsigned long irq_flags;
	int missed = 0;

	spin_lock_irqsave(&cq->lock, irq_flags);
	/* An arm for any CQE that has not had its event is not weakened (IBA 11.4.2.2). */
	if (cq->arm && !(cq->arm & 1) && le32_to_cpu(READ_ONCE(device->fired)) != cq->arm)
		solicited = false;
	cq->arm = ((cq->arm | 1) + 1) | solicited;
	WRITE_ONCE(cq->guest->arm, cpu_to_le32(cq->arm));
	/* Either the device sees the CQ armed, or we see what it wrote before it looked. */
	smp_mb();
	if ((flags & IB_CQ_REPORT_MISSED_EVENTS) && vrdma_next_cqe(cq, cq->consumer))
		missed = 1;
	spin_unlock_irqrestore(&cq->lock, irq_flags);
	return missed;
}

/* Takes the completions of a destroyed or reset QP out of a CQ of the kernel. */
void vrdma_cq_clean(struct vrdma_cq *cq, u32 qpn)
{
	struct virtio_rdma_cqe *cqe;
	unsigned long flags;
	u32 i;

	if (cq->umem)
		return;
	spin_lock_irqsave(&cq->lock, flags);
	for (i = cq->consumer; (cqe = vrdma_next_cqe(cq, i)); i++) {
		if (le32_to_cpu(cqe->qpn) == qpn)
			cqe->qpn = cpu_to_le32(VRDMA_NO_QP);
		if (i - cq->consumer == cq->entries - 1)
			break;
	}
	spin_unlock_irqrestore(&cq->lock, flags);
}

static int vrdma_create_user_cq(struct vrdma_hca *hca, struct vrdma_cq *cq, u32 cqe,
				struct vrdma_page_list *list, struct ib_udata *udata)
{
	struct virtio_rdma_ureq_create_cq ureq = {};
	int err;

	if (udata->inlen < sizeof(ureq))
		return -EINVAL;
	err = ib_copy_from_udata(&ureq, udata, sizeof(ureq));
	if (err)
		return err;
	cq->entries = ureq.entries;
	cq->umem = vrdma_user_cq_ring(hca, list, ureq.buf_addr, ureq.buf_bytes, ureq.entries, cqe);
	err = PTR_ERR_OR_ZERO(cq->umem);
	if (err)
		cq->umem = NULL;
	return err;
}

/* Pins and lists a process's buffer for a ring of at least `cqe` slots. */
static struct ib_umem *vrdma_user_cq_ring(struct vrdma_hca *hca, struct vrdma_page_list *list,
					  u64 buf_addr, u32 buf_bytes, u32 entries, u32 cqe)
{
	if (!is_power_of_2(entries) || entries < cqe || entries > le32_to_cpu(hca->attr.max_cqe))
		return ERR_PTR(-EINVAL);
	return vrdma_ring_umem(hca, list, buf_addr, buf_bytes,
			       VIRTIO_RDMA_CQ_RING_OFFSET + (u64)entries * VIRTIO_RDMA_CQE_BYTES);
}

static int vrdma_create_kernel_cq(struct vrdma_hca *hca, struct vrdma_cq *cq, u32 cqe,
				  struct vrdma_page_list *list)
{
	int err;

	cq->entries = roundup_pow_of_two(cqe);
	if (cq->entries > le32_to_cpu(hca->attr.max_cqe))
		return -EINVAL;
	err = vrdma_buf_alloc(hca->vd, &cq->buf,
			      VIRTIO_RDMA_CQ_RING_OFFSET +
				      (size_t)cq->entries * VIRTIO_RDMA_CQE_BYTES);
	if (err)
		return err;
	err = vrdma_page_list_of_buf(hca->vd, list, &cq->buf);
	if (err) {
		vrdma_buf_free(hca->vd, &cq->buf);
		return err;
	}
	cq->guest = cq->buf.va;
	cq->ring = cq->buf.va + VIRTIO_RDMA_CQ_RING_OFFSET;
	return 0;
}

static void vrdma_cq_free_memory(struct vrdma_vdev *vd, struct vrdma_cq *cq)
{
	if (cq->umem)
		ib_umem_release(cq->umem);
	else
		vrdma_buf_free(vd, &cq->buf);
}

/* The CQE with this free-running index, if the device has written it. */
static struct virtio_rdma_cqe *vrdma_next_cqe(struct vrdma_cq *cq, u32 index)
{
	struct virtio_rdma_cqe *cqe = &cq->ring[index & (cq->entries - 1)];
	u8 expected = index & cq->entries ? 0 : 1;

	/* The rest of the CQE was written before its last byte. */
	return (smp_load_acquire(&cqe->phase) & 1) == expected ? cqe : NULL;
}

/*
 * Tells the device how far the CQ has been polled, and then whoever posts that slots of `ring` are
 * free: in a CQ that is just large enough, the completion of what is posted there has no room
 * before the device knows.
 */
static void vrdma_cq_give_back(struct vrdma_cq *cq, struct vrdma_ring *ring, u32 freed)
{
	smp_store_release((__force u32 *)&cq->guest->consumer,
			  (__force u32)cpu_to_le32(cq->consumer));
	if (ring)
		smp_store_release(&ring->freed, freed);
}

/* The queue that the completion is of, or NULL if it is nobody's. With the CQ's lock held. */
static struct vrdma_ring *vrdma_cqe_to_wc(struct vrdma_vdev *vd, const struct virtio_rdma_cqe *cqe,
					  struct ib_wc *wc)
{
	struct vrdma_qp *qp;

	qp = xa_load(&vd->qps, le32_to_cpu(cqe->qpn));
	if (!qp || vrdma_is_user_qp(qp))
		return NULL;

	memset(wc, 0, sizeof(*wc));
	wc->wr_id = le64_to_cpu(cqe->wr_id);
	wc->status = cqe->status;
	wc->opcode = vrdma_wc_opcode(cqe->opcode);
	wc->vendor_err = le32_to_cpu(cqe->vendor_err);
	wc->byte_len = le32_to_cpu(cqe->byte_len);
	wc->qp = &qp->ibqp;
	wc->src_qp = le32_to_cpu(cqe->src_qpn);
	wc->port_num = 1;
	if (cqe->flags & VIRTIO_RDMA_CQE_WITH_IMM) {
		wc->wc_flags |= IB_WC_WITH_IMM;
		/* As it stood in the packet. */
		wc->ex.imm_data = (__force __be32)cqe->imm;
	} else if (cqe->flags & VIRTIO_RDMA_CQE_WITH_INV) {
		wc->wc_flags |= IB_WC_WITH_INVALIDATE;
		wc->ex.invalidate_rkey = le32_to_cpu(cqe->imm);
	}
	if (cqe->flags & VIRTIO_RDMA_CQE_GRH)
		wc->wc_flags |= IB_WC_GRH;
	if (cqe->flags & VIRTIO_RDMA_CQE_WITH_VLAN) {
		wc->wc_flags |= IB_WC_WITH_VLAN;
		wc->vlan_id = le16_to_cpu(cqe->vlan);
	}
	wc->sl = cqe->sl;
	return cqe->flags & VIRTIO_RDMA_CQE_SEND_QUEUE ? &qp->sq : &qp->rq;
}

static enum ib_wc_opcode vrdma_wc_opcode(u8 opcode)
{
	switch (opcode) {
	case VIRTIO_RDMA_WC_OP_RDMA_WRITE:
		return IB_WC_RDMA_WRITE;
	case VIRTIO_RDMA_WC_OP_RDMA_READ:
		return IB_WC_RDMA_READ;
	case VIRTIO_RDMA_WC_OP_COMP_SWAP:
		return IB_WC_COMP_SWAP;
	case VIRTIO_RDMA_WC_OP_FETCH_ADD:
		return IB_WC_FETCH_ADD;
	case VIRTIO_RDMA_WC_OP_BIND_MW:
	case VIRTIO_RDMA_WC_OP_LOCAL_INV:
		return IB_WC_LOCAL_INV;
	case VIRTIO_RDMA_WC_OP_REG_MR:
		return IB_WC_REG_MR;
	case VIRTIO_RDMA_WC_OP_RECV:
		return IB_WC_RECV;
	case VIRTIO_RDMA_WC_OP_RECV_RDMA_WITH_IMM:
		return IB_WC_RECV_RDMA_WITH_IMM;
	default:
		return IB_WC_SEND;
	}
}
