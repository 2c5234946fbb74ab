// SPDX-License-Identifier: GPL-2.0
/*
 * Keys behind which work requests put memory: MRs for fast registration, which the kernel's
 * consumers have, and the memory windows of processes. The requests themselves are in post.c, and
 * those of processes in the provider.
 */
#include "vrdma.h"

static int vrdma_set_page(struct ib_mr *ibmr, u64 page);

/* May sleep. */
struct ib_mr *vrdma_alloc_mr(struct ib_pd *ibpd, enum ib_mr_type type, u32 max_num_sg)
{
	struct vrdma_hca *hca = to_vhca(ibpd->device);
	struct virtio_rdma_alloc_mr_request request = {
		.pdn = cpu_to_le32(to_vpd(ibpd)->pdn),
		.max_pages = cpu_to_le32(max_num_sg),
	};
	struct virtio_rdma_mr_answer answer;
	struct vrdma_page_list list;
	struct vrdma_mr *mr;
	int err;

	if (type != IB_MR_TYPE_MEM_REG || !(hca->capabilities & VIRTIO_RDMA_CAP_FAST_REG))
		return ERR_PTR(-EOPNOTSUPP);
	if (!max_num_sg || max_num_sg > le32_to_cpu(hca->attr.max_fast_reg_page_list_len))
		return ERR_PTR(-EINVAL);

	mr = kzalloc(sizeof(*mr), GFP_KERNEL);
	if (!mr)
		return ERR_PTR(-ENOMEM);
	mr->max_pages = max_num_sg;
	err = vrdma_buf_alloc(hca->vd, &mr->list, (size_t)max_num_sg * sizeof(__le64));
	if (err)
		goto err_free;
	err = vrdma_page_list_of_buf(hca->vd, &list, &mr->list);
	if (err)
		goto err_list;
	request.list = list.wire;
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_ALLOC_MR, &request, sizeof(request), &answer,
			    sizeof(answer));
	vrdma_page_list_free(hca->vd, &list);
	if (err)
		goto err_list;
	mr->mrn = le32_to_cpu(answer.mrn);
	mr->ibmr.lkey = le32_to_cpu(answer.lkey);
	mr->ibmr.rkey = le32_to_cpu(answer.rkey);
	return &mr->ibmr;

err_list:
	vrdma_buf_free(hca->vd, &mr->list);
err_free:
	kfree(mr);
	return ERR_PTR(err);
}

/*
 * Never sleeps. Writes the list that the device reads when it carries out the next registration:
 * until then, or until the invalidation after it, the caller does not come again.
 */
int vrdma_map_mr_sg(struct ib_mr *ibmr, struct scatterlist *sg, int sg_nents,
		    unsigned int *sg_offset)
{
	struct vrdma_mr *mr = to_vmr(ibmr);
	int n;

	mr->num_pages = 0;
	n = ib_sg_to_pages(ibmr, sg, sg_nents, sg_offset, vrdma_set_page);
	/* The caller may give it another address, which says nothing of the first page. */
	mr->offset = ibmr->iova & (ibmr->page_size - 1);
	return n;
}

static int vrdma_set_page(struct ib_mr *ibmr, u64 page)
{
	struct vrdma_mr *mr = to_vmr(ibmr);
	__le64 *pages = mr->list.va;

	if (mr->num_pages == mr->max_pages)
		return -ENOMEM;
	pages[mr->num_pages++] = cpu_to_le64(page);
	return 0;
}

/* May sleep. */
int vrdma_alloc_mw(struct ib_mw *ibmw, struct ib_udata *udata)
{
	struct vrdma_hca *hca = to_vhca(ibmw->device);
	struct virtio_rdma_alloc_mw_request request = {
		.pdn = cpu_to_le32(to_vpd(ibmw->pd)->pdn),
		.mw_type = cpu_to_le32(ibmw->type),
	};
	struct virtio_rdma_mw_answer answer;
	int err;

	BUILD_BUG_ON(IB_MW_TYPE_1 != VIRTIO_RDMA_MW_TYPE_1);
	BUILD_BUG_ON(IB_MW_TYPE_2 != VIRTIO_RDMA_MW_TYPE_2);
	if (!(hca->capabilities & VIRTIO_RDMA_CAP_MW))
		return -EOPNOTSUPP;
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_ALLOC_MW, &request, sizeof(request), &answer,
			    sizeof(answer));
	if (err)
		return err;
	to_vmw(ibmw)->mwn = le32_to_cpu(answer.mwn);
	ibmw->rkey = le32_to_cpu(answer.rkey);
	return 0;
}

/* May sleep. */
int vrdma_dealloc_mw(struct ib_mw *ibmw)
{
	return vrdma_destroy(to_vhca(ibmw->device)->vd, VIRTIO_RDMA_CMD_DEALLOC_MW,
			     to_vmw(ibmw)->mwn);
}
