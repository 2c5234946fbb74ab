// SPDX-License-Identifier: GPL-2.0
/*
 * Queue pairs: creation for processes and for the kernel, state, destruction. Posting is in
 * post.c. Everything here may sleep.
 */
#include <linux/log2.h>
#include <rdma/uverbs_ioctl.h>

#include "vrdma.h"

/* Attributes that MODIFY_QP takes; they are numbered as in the ib core. */
#define VRDMA_QP_ATTRS                                                                           \
	(IB_QP_STATE | IB_QP_CUR_STATE | IB_QP_EN_SQD_ASYNC_NOTIFY | IB_QP_ACCESS_FLAGS |        \
	 IB_QP_PKEY_INDEX | IB_QP_PORT | IB_QP_QKEY | IB_QP_AV | IB_QP_PATH_MTU |                \
	 IB_QP_TIMEOUT | IB_QP_RETRY_CNT | IB_QP_RNR_RETRY | IB_QP_RQ_PSN |                      \
	 IB_QP_MAX_QP_RD_ATOMIC | IB_QP_MIN_RNR_TIMER | IB_QP_SQ_PSN |                           \
	 IB_QP_MAX_DEST_RD_ATOMIC | IB_QP_DEST_QPN)

static int vrdma_check_init_attr(struct vrdma_hca *hca, const struct ib_qp_init_attr *attr);
static int vrdma_user_rings(struct vrdma_hca *hca, struct vrdma_qp *qp,
			    struct ib_qp_init_attr *attr,
			    struct virtio_rdma_create_qp_request *request,
			    struct vrdma_page_list *list, struct ib_udata *udata);
static int vrdma_kernel_rings(struct vrdma_hca *hca, struct vrdma_qp *qp, struct ib_qp_cap *cap,
			      struct virtio_rdma_create_qp_request *request,
			      struct vrdma_page_list *list);
static bool vrdma_is_xrc(enum ib_qp_type type);
static u32 vrdma_send_stride(enum ib_qp_type type, u32 max_sge, u32 max_inline);
static u8 vrdma_qp_type(enum ib_qp_type type);
static void vrdma_qp_free_memory(struct vrdma_vdev *vd, struct vrdma_qp *qp);
static void vrdma_qp_clean_cqs(struct vrdma_qp *qp);
static int vrdma_attr_to_wire(const struct ib_qp_attr *attr, int mask,
			      struct virtio_rdma_qp_attr *wire);

int vrdma_create_qp(struct ib_qp *ibqp, struct ib_qp_init_attr *attr, struct ib_udata *udata)
{
	struct vrdma_hca *hca = to_vhca(ibqp->device);
	struct virtio_rdma_create_qp_request request = {};
	struct virtio_rdma_uresp_create_qp resp = {};
	struct virtio_rdma_number_answer answer;
	struct vrdma_qp *qp = to_vqp(ibqp);
	struct vrdma_vdev *vd = hca->vd;
	struct vrdma_page_list list;
	int err, slot;

	err = vrdma_check_init_attr(hca, attr);
	if (err)
		return err;
	if (attr->srq || vrdma_is_xrc(attr->qp_type)) {
		attr->cap.max_recv_wr = 0;
		attr->cap.max_recv_sge = 0;
	}
	if (attr->qp_type == IB_QPT_XRC_TGT)
		memset(&attr->cap, 0, sizeof(attr->cap));
	mutex_init(&qp->lock);
	spin_lock_init(&qp->sq.lock);
	spin_lock_init(&qp->rq.lock);
	refcount_set(&qp->refs, 1);
	init_completion(&qp->unused);
	qp->state = IB_QPS_RESET;
	qp->sig_type = attr->sq_sig_type;

	qp->uar = &hca->uar;
	if (udata)
		qp->uar = &rdma_udata_to_drv_context(udata, struct vrdma_ucontext, ibuc)->uar;
	slot = ida_alloc_max(&qp->uar->slots, qp->uar->num_slots - 1, GFP_KERNEL);
	if (slot < 0)
		return -ENOMEM;
	qp->slot = slot;

	if (udata)
		err = vrdma_user_rings(hca, qp, attr, &request, &list, udata);
	else
		err = vrdma_kernel_rings(hca, qp, &attr->cap, &request, &list);
	if (err)
		goto err_slot;

	if (attr->qp_type == IB_QPT_XRC_TGT) {
		request.xrcdn = cpu_to_le32(to_vxrcd(attr->xrcd)->xrcdn);
	} else {
		request.pdn = cpu_to_le32(to_vpd(ibqp->pd)->pdn);
		request.send_cqn = cpu_to_le32(to_vcq(attr->send_cq)->cqn);
	}
	if (!vrdma_is_xrc(attr->qp_type))
		request.recv_cqn = cpu_to_le32(to_vcq(attr->recv_cq)->cqn);
	request.srqn = cpu_to_le32(attr->srq ? to_vsrq(attr->srq)->srqn : VIRTIO_RDMA_NO_SRQ);
	request.uarn = cpu_to_le32(qp->uar->uarn);
	request.slot = cpu_to_le32(qp->slot);
	request.qp_type = vrdma_qp_type(attr->qp_type);
	/*
	 * Which a process can't get: it lets the QP use keys for all of memory. The core creates
	 * XRC targets for processes as if they were its own.
	 */
	if (!udata && attr->qp_type != IB_QPT_XRC_TGT)
		request.flags |= VIRTIO_RDMA_QP_FLAG_KERNEL;
	if (attr->sq_sig_type == IB_SIGNAL_ALL_WR)
		request.flags |= VIRTIO_RDMA_QP_FLAG_SIGNAL_ALL;
	if (attr->create_flags & IB_QP_CREATE_BLOCK_MULTICAST_LOOPBACK)
		request.flags |= VIRTIO_RDMA_QP_FLAG_BLOCK_SELF_MCAST;
	request.pages = list.wire;
	err = vrdma_command(vd, VIRTIO_RDMA_CMD_CREATE_QP, &request, sizeof(request), &answer,
			    sizeof(answer));
	vrdma_page_list_free(vd, &list);
	if (err)
		goto err_memory;
	qp->qpn = le32_to_cpu(answer.number);
	ibqp->qp_num = qp->qpn;
	qp->cap = attr->cap;

	/* In the place of a QP that is being destroyed and had this number, perhaps. */
	err = xa_err(xa_store_irq(&vd->qps, qp->qpn, qp, GFP_KERNEL));
	if (err)
		goto err_destroy;
	if (udata) {
		resp.qpn = qp->qpn;
		resp.slot = qp->slot;
		err = ib_copy_to_udata(udata, &resp, min(sizeof(resp), udata->outlen));
		if (err)
			goto err_erase;
	}
	return 0;

err_erase:
	xa_cmpxchg_irq(&vd->qps, qp->qpn, qp, NULL, 0);
	if (!refcount_dec_and_test(&qp->refs))
		wait_for_completion(&qp->unused);
err_destroy:
	vrdma_destroy(vd, VIRTIO_RDMA_CMD_DESTROY_QP, qp->qpn);
err_memory:
	vrdma_qp_free_memory(vd, qp);
err_slot:
	ida_free(&qp->uar->slots, qp->slot);
	return err;
}

int vrdma_modify_qp(struct ib_qp *ibqp, struct ib_qp_attr *attr, int mask,
		    struct ib_udata *udata)
{
	struct vrdma_vdev *vd = to_vhca(ibqp->device)->vd;
	struct virtio_rdma_modify_qp_request request = {};
	struct vrdma_qp *qp = to_vqp(ibqp);
	enum ib_qp_state from, to;
	int err;

	if (mask & ~VRDMA_QP_ATTRS)
		return -EOPNOTSUPP;

	mutex_lock(&qp->lock);
	from = mask & IB_QP_CUR_STATE ? attr->cur_qp_state : qp->state;
	to = mask & IB_QP_STATE ? attr->qp_state : from;
	err = -EINVAL;
	if (!ib_modify_qp_is_ok(from, to, ibqp->qp_type, mask))
		goto out;
	err = vrdma_attr_to_wire(attr, mask, &request.attr);
	if (err)
		goto out;
	request.qpn = cpu_to_le32(qp->qpn);
	request.attr_mask = cpu_to_le32(mask);
	err = vrdma_command(vd, VIRTIO_RDMA_CMD_MODIFY_QP, &request, sizeof(request), NULL, 0);
	/* What has gone has stopped; flush.c completes the work. */
	if (err == -ENODEV && to == IB_QPS_ERR)
		err = 0;
	if (err)
		goto out;

	WRITE_ONCE(qp->state, to);
	/* The device begins again at the first slots; a process sees to its own rings. */
	if (to == IB_QPS_RESET && !vrdma_is_user_qp(qp)) {
		vrdma_qp_clean_cqs(qp);
		vrdma_ring_reset(&qp->sq);
		vrdma_ring_reset(&qp->rq);
	}
out:
	mutex_unlock(&qp->lock);
	return err;
}

int vrdma_query_qp(struct ib_qp *ibqp, struct ib_qp_attr *attr, int mask,
		   struct ib_qp_init_attr *init_attr)
{
	struct vrdma_qp *qp = to_vqp(ibqp);
	struct virtio_rdma_qp_attr wire;
	int err;

	err = vrdma_command_number(to_vhca(ibqp->device)->vd, VIRTIO_RDMA_CMD_QUERY_QP, qp->qpn,
				   &wire, sizeof(wire));
	if (err)
		return err;

	attr->qp_state = wire.qp_state;
	attr->cur_qp_state = wire.qp_state;
	attr->path_mtu = wire.path_mtu;
	attr->path_mig_state = IB_MIG_MIGRATED;
	attr->qkey = le32_to_cpu(wire.qkey);
	attr->rq_psn = le32_to_cpu(wire.rq_psn);
	attr->sq_psn = le32_to_cpu(wire.sq_psn);
	attr->dest_qp_num = le32_to_cpu(wire.dest_qpn);
	attr->qp_access_flags = le32_to_cpu(wire.access);
	attr->cap = qp->cap;
	attr->pkey_index = le16_to_cpu(wire.pkey_index);
	attr->sq_draining = wire.sq_draining;
	attr->max_rd_atomic = wire.max_rd_atomic;
	attr->max_dest_rd_atomic = wire.max_dest_rd_atomic;
	attr->min_rnr_timer = wire.min_rnr_timer;
	attr->port_num = wire.port;
	attr->timeout = wire.timeout;
	attr->retry_cnt = wire.retry_cnt;
	attr->rnr_retry = wire.rnr_retry;
	vrdma_av_from_wire(ibqp->device, &wire.av, &attr->ah_attr);

	/* The device may have gone to ERR by itself, or to SQD. */
	mutex_lock(&qp->lock);
	if (attr->qp_state == IB_QPS_ERR || attr->qp_state == IB_QPS_SQE)
		WRITE_ONCE(qp->state, attr->qp_state);
	mutex_unlock(&qp->lock);

	init_attr->event_handler = ibqp->event_handler;
	init_attr->qp_context = ibqp->qp_context;
	init_attr->send_cq = ibqp->send_cq;
	init_attr->recv_cq = ibqp->recv_cq;
	init_attr->srq = ibqp->srq;
	init_attr->xrcd = ibqp->xrcd;
	init_attr->cap = qp->cap;
	init_attr->sq_sig_type = qp->sig_type;
	init_attr->qp_type = ibqp->qp_type;
	init_attr->port_num = 1;
	return 0;
}

int vrdma_destroy_qp(struct ib_qp *ibqp, struct ib_udata *udata)
{
	struct vrdma_vdev *vd = to_vhca(ibqp->device)->vd;
	struct vrdma_qp *qp = to_vqp(ibqp);
	int err;

	err = vrdma_destroy(vd, VIRTIO_RDMA_CMD_DESTROY_QP, qp->qpn);
	if (err)
		return err;
	vrdma_qp_clean_cqs(qp);
	/* Unless the number is another QP's already. */
	xa_cmpxchg_irq(&vd->qps, qp->qpn, qp, NULL, 0);
	if (refcount_dec_and_test(&qp->refs))
		complete(&qp->unused);
	wait_for_completion(&qp->unused);
	vrdma_qp_free_memory(vd, qp);
	ida_free(&qp->uar->slots, qp->slot);
	return 0;
}

static int vrdma_check_init_attr(struct vrdma_hca *hca, const struct ib_qp_init_attr *attr)
{
	const struct ib_qp_cap *cap = &attr->cap;
	const u64 caps = hca->capabilities;

	switch (attr->qp_type) {
	case IB_QPT_RC:
		break;
	case IB_QPT_UC:
		if (!(caps & VIRTIO_RDMA_CAP_UC))
			return -EOPNOTSUPP;
		break;
	case IB_QPT_UD:
	case IB_QPT_GSI:
		if (!(caps & VIRTIO_RDMA_CAP_UD))
			return -EOPNOTSUPP;
		break;
	case IB_QPT_XRC_INI:
	case IB_QPT_XRC_TGT:
		if (!(caps & VIRTIO_RDMA_CAP_XRC))
			return -EOPNOTSUPP;
		break;
	default:
		return -EOPNOTSUPP;
	}
	if (attr->create_flags &&
	    (attr->create_flags != IB_QP_CREATE_BLOCK_MULTICAST_LOOPBACK ||
	     attr->qp_type != IB_QPT_UD || !(caps & VIRTIO_RDMA_CAP_MCAST)))
		return -EOPNOTSUPP;
	if (attr->rwq_ind_tbl)
		return -EOPNOTSUPP;
	if (attr->qp_type == IB_QPT_XRC_TGT)
		return attr->xrcd ? 0 : -EINVAL;
	if (attr->srq &&
	    (attr->qp_type == IB_QPT_XRC_INI || attr->srq->srq_type != IB_SRQT_BASIC))
		return -EINVAL;
	if (!attr->send_cq || (!attr->recv_cq && attr->qp_type != IB_QPT_XRC_INI) ||
	    cap->max_send_wr > le32_to_cpu(hca->attr.max_qp_wr) ||
	    cap->max_recv_wr > le32_to_cpu(hca->attr.max_qp_wr) ||
	    cap->max_send_sge > le32_to_cpu(hca->attr.max_send_sge) ||
	    cap->max_recv_sge > le32_to_cpu(hca->attr.max_recv_sge) ||
	    cap->max_inline_data > le32_to_cpu(hca->attr.max_inline))
		return -EINVAL;
	return 0;
}

/* On success the list is the caller's to free, and cap says what the rings can hold. */
static int vrdma_user_rings(struct vrdma_hca *hca, struct vrdma_qp *qp,
			    struct ib_qp_init_attr *attr,
			    struct virtio_rdma_create_qp_request *request,
			    struct vrdma_page_list *list, struct ib_udata *udata)
{
	struct virtio_rdma_ureq_create_qp ureq = {};
	struct ib_qp_cap *cap = &attr->cap;
	const u32 max_qp_wr = le32_to_cpu(hca->attr.max_qp_wr);
	u64 bytes = VIRTIO_RDMA_QP_RINGS_OFFSET;
	int err;

	if (udata->inlen < sizeof(ureq))
		return -EINVAL;
	err = ib_copy_from_udata(&ureq, udata, sizeof(ureq));
	if (err)
		return err;
	if (ureq.sq_entries < cap->max_send_wr || ureq.sq_entries > max_qp_wr ||
	    ureq.rq_entries < cap->max_recv_wr || ureq.rq_entries > max_qp_wr ||
	    ((attr->srq || vrdma_is_xrc(attr->qp_type)) && ureq.rq_entries) ||
	    ureq.max_inline < cap->max_inline_data ||
	    ureq.max_inline > le32_to_cpu(hca->attr.max_inline) ||
	    !vrdma_check_ring(ureq.sq_entries, ureq.sq_stride_shift, ureq.sq_offset,
			      vrdma_send_stride(attr->qp_type, cap->max_send_sge,
						ureq.max_inline),
			      &bytes) ||
	    !vrdma_check_ring(ureq.rq_entries, ureq.rq_stride_shift, ureq.rq_offset,
			      vrdma_recv_stride(cap->max_recv_sge), &bytes))
		return -EINVAL;

	qp->umem = vrdma_ring_umem(hca, list, ureq.buf_addr, ureq.buf_bytes, bytes);
	if (IS_ERR(qp->umem)) {
		err = PTR_ERR(qp->umem);
		qp->umem = NULL;
		return err;
	}
	request->sq_stride_shift = ureq.sq_stride_shift;
	request->rq_stride_shift = ureq.rq_stride_shift;
	request->sq_entries = cpu_to_le32(ureq.sq_entries);
	request->rq_entries = cpu_to_le32(ureq.rq_entries);
	request->sq_offset = cpu_to_le32(ureq.sq_offset);
	request->rq_offset = cpu_to_le32(ureq.rq_offset);
	request->max_send_sge = cpu_to_le32(cap->max_send_sge);
	request->max_recv_sge = cpu_to_le32(cap->max_recv_sge);
	request->max_inline = cpu_to_le32(ureq.max_inline);
	cap->max_send_wr = ureq.sq_entries;
	cap->max_recv_wr = ureq.rq_entries;
	cap->max_inline_data = ureq.max_inline;
	return 0;
}

/* Likewise, in kernel memory. */
static int vrdma_kernel_rings(struct vrdma_hca *hca, struct vrdma_qp *qp, struct ib_qp_cap *cap,
			      struct virtio_rdma_create_qp_request *request,
			      struct vrdma_page_list *list)
{
	u32 sq_stride = vrdma_send_stride(qp->ibqp.qp_type, cap->max_send_sge,
					  cap->max_inline_data);
	u32 rq_stride = vrdma_recv_stride(cap->max_recv_sge);
	size_t sq_offset, rq_offset, bytes;
	int err;

	qp->sq.entries = cap->max_send_wr ? roundup_pow_of_two(cap->max_send_wr) : 0;
	qp->rq.entries = cap->max_recv_wr ? roundup_pow_of_two(cap->max_recv_wr) : 0;
	if (qp->sq.entries > le32_to_cpu(hca->attr.max_qp_wr) ||
	    qp->rq.entries > le32_to_cpu(hca->attr.max_qp_wr))
		return -EINVAL;
	qp->sq.stride_shift = ilog2(sq_stride);
	qp->rq.stride_shift = ilog2(rq_stride);
	/* So that no WQE lies across pages. */
	sq_offset = ALIGN(VIRTIO_RDMA_QP_RINGS_OFFSET, sq_stride);
	rq_offset = ALIGN(sq_offset + (size_t)qp->sq.entries * sq_stride, rq_stride);
	bytes = rq_offset + (size_t)qp->rq.entries * rq_stride;
	if (bytes > U32_MAX)
		return -EINVAL;

	err = vrdma_buf_alloc(hca->vd, &qp->buf, bytes);
	if (err)
		return err;
	err = vrdma_page_list_of_buf(hca->vd, list, &qp->buf);
	if (err) {
		vrdma_buf_free(hca->vd, &qp->buf);
		return err;
	}
	qp->line = qp->buf.va;
	qp->sq.slots = qp->buf.va + sq_offset;
	qp->rq.slots = qp->buf.va + rq_offset;
	qp->sq.max_sge = cap->max_send_sge;
	qp->rq.max_sge = cap->max_recv_sge;
	qp->max_inline = cap->max_inline_data;

	request->sq_stride_shift = qp->sq.stride_shift;
	request->rq_stride_shift = qp->rq.stride_shift;
	request->sq_entries = cpu_to_le32(qp->sq.entries);
	request->rq_entries = cpu_to_le32(qp->rq.entries);
	request->sq_offset = cpu_to_le32(sq_offset);
	request->rq_offset = cpu_to_le32(rq_offset);
	request->max_send_sge = cpu_to_le32(cap->max_send_sge);
	request->max_recv_sge = cpu_to_le32(cap->max_recv_sge);
	request->max_inline = cpu_to_le32(cap->max_inline_data);
	cap->max_send_wr = qp->sq.entries;
	cap->max_recv_wr = qp->rq.entries;
	return 0;
}

/*
 * The ring lies behind the first line of the buffer, and its slots are large enough. Enlarges
 * *buf_bytes to the end of the ring.
 */
bool vrdma_check_ring(u32 entries, u8 stride_shift, u32 offset, u32 least_stride,
		      u64 *buf_bytes)
{
	if (!entries)
		return true;
	if (!is_power_of_2(entries) || stride_shift < VIRTIO_RDMA_WQE_STRIDE_SHIFT_MIN ||
	    stride_shift > VIRTIO_RDMA_WQE_STRIDE_SHIFT_MAX ||
	    least_stride > 1U << stride_shift || offset < VIRTIO_RDMA_QP_RINGS_OFFSET ||
	    !IS_ALIGNED(offset, 64))
		return false;
	*buf_bytes = max(*buf_bytes, offset + ((u64)entries << stride_shift));
	return true;
}

static bool vrdma_is_xrc(enum ib_qp_type type)
{
	return type == IB_QPT_XRC_INI || type == IB_QPT_XRC_TGT;
}

static u32 vrdma_send_stride(enum ib_qp_type type, u32 max_sge, u32 max_inline)
{
	u32 bytes = VIRTIO_RDMA_WQE_SEND_DATA +
		    max_t(u32, max_sge * sizeof(struct virtio_rdma_sge), max_inline);

	if (type == IB_QPT_XRC_INI)
		bytes += sizeof(struct virtio_rdma_xrc_args);
	return max(roundup_pow_of_two(bytes), 1UL << VIRTIO_RDMA_WQE_STRIDE_SHIFT_MIN);
}

u32 vrdma_recv_stride(u32 max_sge)
{
	u32 bytes = VIRTIO_RDMA_WQE_RECV_DATA + max_sge * sizeof(struct virtio_rdma_sge);

	return max(roundup_pow_of_two(bytes), 1UL << VIRTIO_RDMA_WQE_STRIDE_SHIFT_MIN);
}

static u8 vrdma_qp_type(enum ib_qp_type type)
{
	switch (type) {
	case IB_QPT_UC:
		return VIRTIO_RDMA_QP_TYPE_UC;
	case IB_QPT_UD:
		return VIRTIO_RDMA_QP_TYPE_UD;
	case IB_QPT_GSI:
		return VIRTIO_RDMA_QP_TYPE_GSI;
	case IB_QPT_XRC_INI:
		return VIRTIO_RDMA_QP_TYPE_XRC_INI;
	case IB_QPT_XRC_TGT:
		return VIRTIO_RDMA_QP_TYPE_XRC_TGT;
	default:
		return VIRTIO_RDMA_QP_TYPE_RC;
	}
}

static void vrdma_qp_free_memory(struct vrdma_vdev *vd, struct vrdma_qp *qp)
{
	if (qp->umem)
		ib_umem_release(qp->umem);
	else
		vrdma_buf_free(vd, &qp->buf);
}

static void vrdma_qp_clean_cqs(struct vrdma_qp *qp)
{
	/* XRC QPs lack one or both. */
	if (qp->ibqp.send_cq)
		vrdma_cq_clean(to_vcq(qp->ibqp.send_cq), qp->qpn);
	if (qp->ibqp.recv_cq && qp->ibqp.recv_cq != qp->ibqp.send_cq)
		vrdma_cq_clean(to_vcq(qp->ibqp.recv_cq), qp->qpn);
}

/* Only what the mask names: the rest of attr may not be initialised. */
static int vrdma_attr_to_wire(const struct ib_qp_attr *attr, int mask,
			      struct virtio_rdma_qp_attr *wire)
{
	if (mask & IB_QP_STATE)
		wire->qp_state = attr->qp_state;
	if (mask & IB_QP_CUR_STATE)
		wire->cur_qp_state = attr->cur_qp_state;
	if (mask & IB_QP_PATH_MTU)
		wire->path_mtu = attr->path_mtu;
	if (mask & IB_QP_PORT)
		wire->port = attr->port_num;
	if (mask & IB_QP_QKEY)
		wire->qkey = cpu_to_le32(attr->qkey);
	if (mask & IB_QP_RQ_PSN)
		wire->rq_psn = cpu_to_le32(attr->rq_psn & 0xffffff);
	if (mask & IB_QP_SQ_PSN)
		wire->sq_psn = cpu_to_le32(attr->sq_psn & 0xffffff);
	if (mask & IB_QP_DEST_QPN)
		wire->dest_qpn = cpu_to_le32(attr->dest_qp_num);
	if (mask & IB_QP_ACCESS_FLAGS)
		wire->access = cpu_to_le32(vrdma_access_to_wire(attr->qp_access_flags));
	if (mask & IB_QP_PKEY_INDEX)
		wire->pkey_index = cpu_to_le16(attr->pkey_index);
	if (mask & IB_QP_MAX_QP_RD_ATOMIC)
		wire->max_rd_atomic = attr->max_rd_atomic;
	if (mask & IB_QP_MAX_DEST_RD_ATOMIC)
		wire->max_dest_rd_atomic = attr->max_dest_rd_atomic;
	if (mask & IB_QP_MIN_RNR_TIMER)
		wire->min_rnr_timer = attr->min_rnr_timer;
	if (mask & IB_QP_TIMEOUT)
		wire->timeout = attr->timeout;
	if (mask & IB_QP_RETRY_CNT)
		wire->retry_cnt = attr->retry_cnt;
	if (mask & IB_QP_RNR_RETRY)
		wire->rnr_retry = attr->rnr_retry;
	if (mask & IB_QP_EN_SQD_ASYNC_NOTIFY)
		wire->sq_draining = attr->en_sqd_async_notify;
	if (mask & IB_QP_AV)
		return vrdma_av_to_wire(&attr->ah_attr, &wire->av);
	return 0;
}
