// SPDX-License-Identifier: GPL-2.0
/*
 * Shared receive queues: creation for processes and for the kernel, limit, other rings for those of
 * processes, destruction. Posting is in post.c. Everything here may sleep.
 */
#include <linux/log2.h>
#include <rdma/uverbs_ioctl.h>

#include "vrdma.h"

static int vrdma_user_srq(struct vrdma_hca *hca, struct vrdma_srq *srq, struct ib_srq_attr *attr,
			  struct virtio_rdma_create_srq_request *request,
			  struct vrdma_page_list *list, struct ib_udata *udata);
static struct ib_umem *vrdma_user_srq_ring(struct vrdma_hca *hca, struct vrdma_page_list *list,
					   const struct virtio_rdma_ureq_create_srq *ureq,
					   u32 max_wr, u32 max_sge);
static int vrdma_resize_srq(struct vrdma_srq *srq, const struct ib_srq_attr *attr,
			    struct ib_udata *udata);
static int vrdma_kernel_srq(struct vrdma_hca *hca, struct vrdma_srq *srq,
			    struct ib_srq_attr *attr,
			    struct virtio_rdma_create_srq_request *request,
			    struct vrdma_page_list *list);
static void vrdma_srq_free_memory(struct vrdma_vdev *vd, struct vrdma_srq *srq);

int vrdma_create_srq(struct ib_srq *ibsrq, struct ib_srq_init_attr *init, struct ib_udata *udata)
{
	struct vrdma_hca *hca = to_vhca(ibsrq->device);
	struct virtio_rdma_create_srq_request request = {};
	struct virtio_rdma_uresp_create_srq resp = {};
	struct ib_srq_attr *attr = &init->attr;
	struct virtio_rdma_number_answer answer;
	struct vrdma_srq *srq = to_vsrq(ibsrq);
	struct vrdma_vdev *vd = hca->vd;
	struct vrdma_page_list list;
	int err, slot;

	if (!(hca->capabilities & VIRTIO_RDMA_CAP_SRQ))
		return -EOPNOTSUPP;
	if (init->srq_type == IB_SRQT_XRC) {
		if (!(hca->capabilities & VIRTIO_RDMA_CAP_XRC))
			return -EOPNOTSUPP;
		request.xrcdn = cpu_to_le32(to_vxrcd(init->ext.xrc.xrcd)->xrcdn);
		request.cqn = cpu_to_le32(to_vcq(init->ext.cq)->cqn);
	} else if (init->srq_type != IB_SRQT_BASIC) {
		return -EOPNOTSUPP;
	}
	if (!attr->max_wr || attr->max_wr > le32_to_cpu(hca->attr.max_srq_wr) ||
	    attr->max_sge > le32_to_cpu(hca->attr.max_srq_sge) ||
	    attr->srq_limit > attr->max_wr)
		return -EINVAL;
	spin_lock_init(&srq->ring.lock);
	mutex_init(&srq->resize_lock);
	refcount_set(&srq->refs, 1);
	init_completion(&srq->unused);

	srq->uar = &hca->uar;
	if (udata)
		srq->uar = &rdma_udata_to_drv_context(udata, struct vrdma_ucontext, ibuc)->uar;
	slot = ida_alloc_max(&srq->uar->slots, srq->uar->num_slots - 1, GFP_KERNEL);
	if (slot < 0)
		return -ENOMEM;
	srq->slot = slot;

	if (udata)
		err = vrdma_user_srq(hca, srq, attr, &request, &list, udata);
	else
		err = vrdma_kernel_srq(hca, srq, attr, &request, &list);
	if (err)
		goto err_slot;

	request.pdn = cpu_to_le32(to_vpd(ibsrq->pd)->pdn);
	request.uarn = cpu_to_le32(srq->uar->uarn);
	request.slot = cpu_to_le32(srq->slot);
	request.entries = cpu_to_le32(srq->entries);
	request.max_sge = cpu_to_le32(attr->max_sge);
	request.limit = cpu_to_le32(attr->srq_limit);
	/* Which a process can't get: it lets WQEs use keys for all of memory. */
	request.flags = udata ? 0 : VIRTIO_RDMA_QP_FLAG_KERNEL;
	request.pages = list.wire;
	err = vrdma_command(vd, VIRTIO_RDMA_CMD_CREATE_SRQ, &request, sizeof(request), &answer,
			    sizeof(answer));
	vrdma_page_list_free(vd, &list);
	if (err)
		goto err_memory;
	srq->srqn = le32_to_cpu(answer.number);
	srq->max_sge = attr->max_sge;
	if (init->srq_type == IB_SRQT_XRC)
		ibsrq->ext.xrc.srq_num = srq->srqn;
	attr->max_wr = srq->entries;

	/* In the place of an SRQ that is being destroyed and had this number, perhaps. */
	err = xa_err(xa_store_irq(&vd->srqs, srq->srqn, srq, GFP_KERNEL));
	if (err)
		goto err_destroy;
	if (udata) {
		resp.srqn = srq->srqn;
		resp.slot = srq->slot;
		err = ib_copy_to_udata(udata, &resp, min(sizeof(resp), udata->outlen));
		if (err)
			goto err_erase;
	}
	return 0;

err_erase:
	/* Nothing uses the SRQ yet: handlers that run are of events from before its time. */
	vrdma_destroy_srq(ibsrq, udata);
	return err;
err_destroy:
	vrdma_destroy(vd, VIRTIO_RDMA_CMD_DESTROY_SRQ, srq->srqn);
err_memory:
	vrdma_srq_free_memory(vd, srq);
err_slot:
	ida_free(&srq->uar->slots, srq->slot);
	return err;
}

int vrdma_modify_srq(struct ib_srq *ibsrq, struct ib_srq_attr *attr, enum ib_srq_attr_mask mask,
		     struct ib_udata *udata)
{
	struct virtio_rdma_modify_srq_request request = {};
	struct vrdma_srq *srq = to_vsrq(ibsrq);
	int err;

	if (mask & ~(IB_SRQ_LIMIT | IB_SRQ_MAX_WR))
		return -EOPNOTSUPP;
	if (mask & IB_SRQ_MAX_WR) {
		err = vrdma_resize_srq(srq, attr, udata);
		if (err)
			return err;
	}
	if (!(mask & IB_SRQ_LIMIT))
		return 0;
	if (attr->srq_limit > srq->entries)
		return -EINVAL;
	request.srqn = cpu_to_le32(srq->srqn);
	request.limit = cpu_to_le32(attr->srq_limit);
	return vrdma_command(to_vhca(ibsrq->device)->vd, VIRTIO_RDMA_CMD_MODIFY_SRQ, &request,
			     sizeof(request), NULL, 0);
}

int vrdma_query_srq(struct ib_srq *ibsrq, struct ib_srq_attr *attr)
{
	struct vrdma_srq *srq = to_vsrq(ibsrq);
	struct virtio_rdma_srq_attr wire;
	int err;

	err = vrdma_command_number(to_vhca(ibsrq->device)->vd, VIRTIO_RDMA_CMD_QUERY_SRQ,
				   srq->srqn, &wire, sizeof(wire));
	if (err)
		return err;
	attr->max_wr = srq->entries;
	attr->max_sge = srq->max_sge;
	attr->srq_limit = le32_to_cpu(wire.limit);
	return 0;
}

int vrdma_destroy_srq(struct ib_srq *ibsrq, struct ib_udata *udata)
{
	struct vrdma_vdev *vd = to_vhca(ibsrq->device)->vd;
	struct vrdma_srq *srq = to_vsrq(ibsrq);
	int err;

	err = vrdma_destroy(vd, VIRTIO_RDMA_CMD_DESTROY_SRQ, srq->srqn);
	if (err)
		return err;
	/* Unless the number is another SRQ's already. */
	xa_cmpxchg_irq(&vd->srqs, srq->srqn, srq, NULL, 0);
	if (refcount_dec_and_test(&srq->refs))
		complete(&srq->unused);
	wait_for_completion(&srq->unused);
	vrdma_srq_free_memory(vd, srq);
	ida_free(&srq->uar->slots, srq->slot);
	return 0;
}

/* On success the list is the caller's to free. */
static int vrdma_user_srq(struct vrdma_hca *hca, struct vrdma_srq *srq, struct ib_srq_attr *attr,
			  struct virtio_rdma_create_srq_request *request,
			  struct vrdma_page_list *list, struct ib_udata *udata)
{
	struct virtio_rdma_ureq_create_srq ureq = {};
	int err;

	if (udata->inlen < sizeof(ureq))
		return -EINVAL;
	err = ib_copy_from_udata(&ureq, udata, sizeof(ureq));
	if (err)
		return err;
	srq->umem = vrdma_user_srq_ring(hca, list, &ureq, attr->max_wr, attr->max_sge);
	if (IS_ERR(srq->umem)) {
		err = PTR_ERR(srq->umem);
		srq->umem = NULL;
		return err;
	}
	srq->entries = ureq.entries;
	request->offset = cpu_to_le32(ureq.offset);
	request->stride_shift = ureq.stride_shift;
	return 0;
}

/* Pins and lists a process's buffer for a ring of at least `max_wr` slots. */
static struct ib_umem *vrdma_user_srq_ring(struct vrdma_hca *hca, struct vrdma_page_list *list,
					   const struct virtio_rdma_ureq_create_srq *ureq,
					   u32 max_wr, u32 max_sge)
{
	u64 bytes = VIRTIO_RDMA_QP_RINGS_OFFSET;

	if (!max_wr || ureq->entries < max_wr ||
	    ureq->entries > le32_to_cpu(hca->attr.max_srq_wr) ||
	    !vrdma_check_ring(ureq->entries, ureq->stride_shift, ureq->offset,
			      vrdma_recv_stride(max_sge), &bytes))
		return ERR_PTR(-EINVAL);
	return vrdma_ring_umem(hca, list, ureq->buf_addr, ureq->buf_bytes, bytes);
}

/*
 * Gives an SRQ of a process another ring, into which the provider has put what is posted. Kernel
 * consumers have no use for it.
 */
static int vrdma_resize_srq(struct vrdma_srq *srq, const struct ib_srq_attr *attr,
			    struct ib_udata *udata)
{
	struct vrdma_hca *hca = to_vhca(srq->ibsrq.device);
	struct virtio_rdma_resize_srq_request request = {};
	struct virtio_rdma_ureq_create_srq ureq = {};
	struct vrdma_page_list list;
	struct ib_umem *umem;
	int err;

	if (!udata || !(hca->capabilities & VIRTIO_RDMA_CAP_SRQ_RESIZE))
		return -EOPNOTSUPP;
	if (udata->inlen < sizeof(ureq))
		return -EINVAL;
	err = ib_copy_from_udata(&ureq, udata, sizeof(ureq));
	if (err)
		return err;
	umem = vrdma_user_srq_ring(hca, &list, &ureq, attr->max_wr, srq->max_sge);
	if (IS_ERR(umem))
		return PTR_ERR(umem);

	request.srqn = cpu_to_le32(srq->srqn);
	request.entries = cpu_to_le32(ureq.entries);
	request.offset = cpu_to_le32(ureq.offset);
	request.stride_shift = ureq.stride_shift;
	request.pages = list.wire;
	mutex_lock(&srq->resize_lock);
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_RESIZE_SRQ, &request, sizeof(request), NULL,
			    0);
	if (!err) {
		swap(umem, srq->umem);
		srq->entries = ureq.entries;
	}
	mutex_unlock(&srq->resize_lock);
	vrdma_page_list_free(hca->vd, &list);
	ib_umem_release(umem);
	return err;
}

/* Likewise, in kernel memory. */
static int vrdma_kernel_srq(struct vrdma_hca *hca, struct vrdma_srq *srq,
			    struct ib_srq_attr *attr,
			    struct virtio_rdma_create_srq_request *request,
			    struct vrdma_page_list *list)
{
	u32 stride = vrdma_recv_stride(attr->max_sge);
	/* So that no WQE lies across pages. */
	size_t offset = ALIGN(VIRTIO_RDMA_QP_RINGS_OFFSET, stride), bytes;
	int err;

	srq->entries = roundup_pow_of_two(attr->max_wr);
	if (srq->entries > le32_to_cpu(hca->attr.max_srq_wr))
		return -EINVAL;
	bytes = offset + (size_t)srq->entries * stride;
	err = vrdma_buf_alloc(hca->vd, &srq->buf, bytes);
	if (err)
		return err;
	err = vrdma_page_list_of_buf(hca->vd, list, &srq->buf);
	if (err) {
		vrdma_buf_free(hca->vd, &srq->buf);
		return err;
	}
	srq->line = srq->buf.va;
	srq->ring.slots = srq->buf.va + offset;
	srq->ring.entries = srq->entries;
	srq->ring.stride_shift = ilog2(stride);
	srq->ring.max_sge = attr->max_sge;
	request->offset = cpu_to_le32(offset);
	request->stride_shift = srq->ring.stride_shift;
	return 0;
}

static void vrdma_srq_free_memory(struct vrdma_vdev *vd, struct vrdma_srq *srq)
{
	if (srq->umem)
		ib_umem_release(srq->umem);
	else
		vrdma_buf_free(vd, &srq->buf);
}
