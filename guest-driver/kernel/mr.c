// SPDX-License-Identifier: GPL-2.0
/*
 * Protection domains and memory regions. Everything here may sleep.
 */
#include "vrdma.h"

/* Rights that memory can be registered with. */
#define VRDMA_MR_ACCESS                                                                          \
	(IB_ACCESS_LOCAL_WRITE | IB_ACCESS_REMOTE_WRITE | IB_ACCESS_REMOTE_READ |                \
	 IB_ACCESS_REMOTE_ATOMIC | IB_ACCESS_RELAXED_ORDERING)

static int vrdma_reg_mr(struct vrdma_pd *pd, struct vrdma_mr *mr, u64 iova, u64 length,
			int access);

int vrdma_alloc_pd(struct ib_pd *ibpd, struct ib_udata *udata)
{
	struct vrdma_vdev *vd = to_vhca(ibpd->device)->vd;
	struct virtio_rdma_uresp_alloc_pd resp = {};
	struct virtio_rdma_number_answer answer;
	struct vrdma_pd *pd = to_vpd(ibpd);
	int err;

	err = vrdma_command(vd, VIRTIO_RDMA_CMD_ALLOC_PD, NULL, 0, &answer, sizeof(answer));
	if (err)
		return err;
	pd->pdn = le32_to_cpu(answer.number);
	if (!udata)
		return 0;

	resp.pdn = pd->pdn;
	err = ib_copy_to_udata(udata, &resp, min(sizeof(resp), udata->outlen));
	if (err)
		vrdma_destroy(vd, VIRTIO_RDMA_CMD_DEALLOC_PD, pd->pdn);
	return err;
}

int vrdma_dealloc_pd(struct ib_pd *ibpd, struct ib_udata *udata)
{
	return vrdma_destroy(to_vhca(ibpd->device)->vd, VIRTIO_RDMA_CMD_DEALLOC_PD,
			     to_vpd(ibpd)->pdn);
}

/* The core calls this for kernel consumers only. */
struct ib_mr *vrdma_get_dma_mr(struct ib_pd *ibpd, int access)
{
	struct vrdma_vdev *vd = to_vhca(ibpd->device)->vd;
	struct virtio_rdma_get_dma_mr_request request = {
		.pdn = cpu_to_le32(to_vpd(ibpd)->pdn),
		.access = cpu_to_le32(vrdma_access_to_wire(access)),
	};
	struct virtio_rdma_mr_answer answer;
	struct vrdma_mr *mr;
	int err;

	mr = kzalloc(sizeof(*mr), GFP_KERNEL);
	if (!mr)
		return ERR_PTR(-ENOMEM);
	err = vrdma_command(vd, VIRTIO_RDMA_CMD_GET_DMA_MR, &request, sizeof(request), &answer,
			    sizeof(answer));
	if (err) {
		kfree(mr);
		return ERR_PTR(err);
	}
	mr->mrn = le32_to_cpu(answer.mrn);
	mr->ibmr.lkey = le32_to_cpu(answer.lkey);
	mr->ibmr.rkey = le32_to_cpu(answer.rkey);
	return &mr->ibmr;
}

#ifdef VRDMA_HAVE_DMAH
struct ib_mr *vrdma_reg_user_mr(struct ib_pd *ibpd, u64 start, u64 length, u64 iova, int access,
				struct ib_dmah *dmah, struct ib_udata *udata)
#else
struct ib_mr *vrdma_reg_user_mr(struct ib_pd *ibpd, u64 start, u64 length, u64 iova, int access,
				struct ib_udata *udata)
#endif
{
	struct vrdma_hca *hca = to_vhca(ibpd->device);
	struct vrdma_mr *mr;
	int err;

#ifdef VRDMA_HAVE_DMAH
	if (dmah)
		return ERR_PTR(-EOPNOTSUPP);
#endif
	if (access & ~(VRDMA_MR_ACCESS | IB_ACCESS_OPTIONAL))
		return ERR_PTR(-EOPNOTSUPP);
	if (!length || length > le64_to_cpu(hca->attr.max_mr_size))
		return ERR_PTR(-EINVAL);

	mr = kzalloc(sizeof(*mr), GFP_KERNEL);
	if (!mr)
		return ERR_PTR(-ENOMEM);
	mr->umem = ib_umem_get_va(&hca->ibdev, start, length, access);
	if (IS_ERR(mr->umem)) {
		err = PTR_ERR(mr->umem);
		goto err_free;
	}
	err = vrdma_reg_mr(to_vpd(ibpd), mr, iova, length, access);
	if (err)
		goto err_umem;
	mr->ibmr.length = length;
	mr->ibmr.iova = iova;
	return &mr->ibmr;

err_umem:
	ib_umem_release(mr->umem);
err_free:
	kfree(mr);
	return ERR_PTR(err);
}

int vrdma_dereg_mr(struct ib_mr *ibmr, struct ib_udata *udata)
{
	struct vrdma_mr *mr = to_vmr(ibmr);
	int err;

	err = vrdma_destroy(to_vhca(ibmr->device)->vd, VIRTIO_RDMA_CMD_DEREG_MR, mr->mrn);
	if (err)
		return err;
	ib_umem_release(mr->umem);
	kfree(mr);
	return 0;
}

/* Rights without a counterpart are optional ones, which may be dropped. */
u32 vrdma_access_to_wire(int access)
{
	BUILD_BUG_ON(IB_ACCESS_LOCAL_WRITE != VIRTIO_RDMA_ACCESS_LOCAL_WRITE);
	BUILD_BUG_ON(IB_ACCESS_REMOTE_WRITE != VIRTIO_RDMA_ACCESS_REMOTE_WRITE);
	BUILD_BUG_ON(IB_ACCESS_REMOTE_READ != VIRTIO_RDMA_ACCESS_REMOTE_READ);
	BUILD_BUG_ON(IB_ACCESS_REMOTE_ATOMIC != VIRTIO_RDMA_ACCESS_REMOTE_ATOMIC);
	BUILD_BUG_ON(IB_ACCESS_RELAXED_ORDERING != VIRTIO_RDMA_ACCESS_RELAXED_ORDERING);
	return access & VRDMA_MR_ACCESS;
}

static int vrdma_reg_mr(struct vrdma_pd *pd, struct vrdma_mr *mr, u64 iova, u64 length,
			int access)
{
	struct vrdma_hca *hca = to_vhca(pd->ibpd.device);
	struct virtio_rdma_reg_mr_request request = {
		.pdn = cpu_to_le32(pd->pdn),
		.access = cpu_to_le32(vrdma_access_to_wire(access)),
		.iova = cpu_to_le64(iova),
		.length = cpu_to_le64(length),
	};
	struct virtio_rdma_mr_answer answer;
	struct vrdma_page_list list;
	unsigned long page_size;
	int err;

	page_size = ib_umem_find_best_pgsz(mr->umem,
					   le64_to_cpu(hca->attr.page_size_cap) &
						   GENMASK(30, VRDMA_PAGE_SHIFT),
					   iova);
	if (!page_size)
		return -EINVAL;
	err = vrdma_page_list_of_umem(hca->vd, &list, mr->umem, page_size);
	if (err)
		return err;
	request.offset = cpu_to_le64(ib_umem_dma_offset(mr->umem, page_size));
	request.pages = list.wire;
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_REG_MR, &request, sizeof(request), &answer,
			    sizeof(answer));
	vrdma_page_list_free(hca->vd, &list);
	if (err)
		return err;

	mr->mrn = le32_to_cpu(answer.mrn);
	mr->ibmr.lkey = le32_to_cpu(answer.lkey);
	mr->ibmr.rkey = le32_to_cpu(answer.rkey);
	return 0;
}
