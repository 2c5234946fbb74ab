// SPDX-License-Identifier: GPL-2.0
/*
 * Protection domains, XRC domains, and memory regions of user memory, dma-bufs or all memory (those
 * for fast registration are in fastreg.c). Everything here may sleep.
 */
#include "vrdma.h"

/* Rights that memory can be registered with. */
#define VRDMA_MR_ACCESS                                                                          \
	(IB_ACCESS_LOCAL_WRITE | IB_ACCESS_REMOTE_WRITE | IB_ACCESS_REMOTE_READ |                \
	 IB_ACCESS_REMOTE_ATOMIC | IB_ACCESS_MW_BIND | IB_ZERO_BASED |                           \
	 IB_ACCESS_RELAXED_ORDERING | VRDMA_ACCESS_FLUSH)
#ifdef VRDMA_HAVE_FLUSH
#define VRDMA_ACCESS_FLUSH IB_ACCESS_FLUSH_GLOBAL
#define VRDMA_ACCESS_PERSIST IB_ACCESS_FLUSH_PERSISTENT
#else
#define VRDMA_ACCESS_FLUSH 0
#define VRDMA_ACCESS_PERSIST 0
#endif
/* Rights that a QP's peer can have: what memory then allows is checked at each access. */
#define VRDMA_QP_ACCESS (VRDMA_MR_ACCESS | VRDMA_ACCESS_PERSIST)

static struct ib_mr *vrdma_reg_umem(struct ib_pd *ibpd, struct ib_umem *umem, u64 iova, int access);
static int vrdma_list_umem(struct vrdma_hca *hca, struct vrdma_page_list *list,
			   struct ib_umem *umem, __le64 *offset);
static int vrdma_reg_mr(struct vrdma_pd *pd, struct vrdma_mr *mr, u64 iova, u64 length,
			int access);
static int vrdma_rereg_mr(struct vrdma_hca *hca, struct vrdma_mr *mr,
			  struct virtio_rdma_rereg_mr_request *request, struct ib_umem *umem);

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

	/* The core leaves it out where there is a local_dma_lkey; IBA 10.6.3.1 wants it. */
	if (ib_access_writable(access))
		request.access |= cpu_to_le32(VIRTIO_RDMA_ACCESS_LOCAL_WRITE);
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
	int err;

#ifdef VRDMA_HAVE_DMAH
	if (dmah)
		return ERR_PTR(-EOPNOTSUPP);
#endif
	/* Pages of memory on demand are the kernel's, whatever the mapping has. */
	err = vrdma_check_access(hca, access & IB_ACCESS_ON_DEMAND ?
					      access & ~(IB_ACCESS_ON_DEMAND | IB_ACCESS_HUGETLB) :
					      access);
	if (err)
		return ERR_PTR(err);
	if (access & IB_ZERO_BASED)
		iova = 0;
	if (access & IB_ACCESS_ON_DEMAND && !start && length == U64_MAX)
		return vrdma_odp_reg_mr(ibpd, start, length, iova, access);
	if (!length || length > le64_to_cpu(hca->attr.max_mr_size))
		return ERR_PTR(-EINVAL);
	if (access & IB_ACCESS_ON_DEMAND)
		return vrdma_odp_reg_mr(ibpd, start, length, iova, access);
	return vrdma_reg_umem(ibpd, ib_umem_get_va(&hca->ibdev, start, length, access), iova,
			      access);
}

/*
 * Pinned, for the device can't be told that an exporter moves its memory. Memory of another device
 * rather than of the guest is refused by ours: -EFAULT. A kernel that can't do this at all says
 * -EOPNOTSUPP (see ib_umem.h).
 */
struct ib_mr *vrdma_reg_user_mr_dmabuf(struct ib_pd *ibpd, u64 offset, u64 length, u64 iova, int fd,
				       int access, VRDMA_REG_DMABUF_ARGS)
{
	struct vrdma_hca *hca = to_vhca(ibpd->device);
	struct ib_umem_dmabuf *dmabuf;
	int err;

#ifdef VRDMA_HAVE_DMAH
	if (dmah)
		return ERR_PTR(-EOPNOTSUPP);
#endif
	err = vrdma_check_access(hca, access);
	if (err)
		return ERR_PTR(err);
	if (access & IB_ZERO_BASED)
		iova = 0;
	if (!length || length > le64_to_cpu(hca->attr.max_mr_size))
		return ERR_PTR(-EINVAL);
	dmabuf = ib_umem_dmabuf_get_pinned(&hca->ibdev, offset, length, fd, access);
	return vrdma_reg_umem(ibpd, IS_ERR(dmabuf) ? ERR_CAST(dmabuf) : &dmabuf->umem, iova,
			      access);
}

int vrdma_dereg_mr(struct ib_mr *ibmr, struct ib_udata *udata)
{
	struct vrdma_mr *mr = to_vmr(ibmr);
	int err;

	if (mr->odp)
		vrdma_odp_ending(mr, true);
	err = vrdma_destroy(to_vhca(ibmr->device)->vd, VIRTIO_RDMA_CMD_DEREG_MR, mr->mrn);
	if (err) {
		if (mr->odp)
			vrdma_odp_ending(mr, false);
		return err;
	}
	if (mr->odp)
		vrdma_odp_release(mr);
	kfree(mr->odp);
	ib_umem_release(mr->umem);
	vrdma_buf_free(to_vhca(ibmr->device)->vd, &mr->list);
	kfree(mr);
	return 0;
}

/*
 * In place: what the core knows of the MR it changes itself when this has succeeded; with an
 * error the MR stays as it was. Processes may do this to one MR at the same time.
 */
struct ib_mr *vrdma_rereg_user_mr(struct ib_mr *ibmr, int flags, u64 start, u64 length, u64 iova,
				  int access, struct ib_pd *ibpd, struct ib_udata *udata)
{
	struct vrdma_hca *hca = to_vhca(ibmr->device);
	struct virtio_rdma_rereg_mr_request request = {};
	struct vrdma_mr *mr = to_vmr(ibmr);
	struct ib_umem *umem = NULL;
	int err;

	BUILD_BUG_ON(IB_MR_REREG_TRANS != VIRTIO_RDMA_REREG_TRANSLATION);
	BUILD_BUG_ON(IB_MR_REREG_PD != VIRTIO_RDMA_REREG_PD);
	BUILD_BUG_ON(IB_MR_REREG_ACCESS != VIRTIO_RDMA_REREG_ACCESS);
	if (!(hca->capabilities & VIRTIO_RDMA_CAP_REREG_MR) ||
	    flags & ~(IB_MR_REREG_TRANS | IB_MR_REREG_PD | IB_MR_REREG_ACCESS))
		return ERR_PTR(-EOPNOTSUPP);

	mutex_lock(&mr->lock);
	err = -EINVAL;
	/* As libibverbs has it, a dma-buf's MR stays what it is. */
	if (!mr->umem || mr->umem->is_dmabuf)
		goto out;
	if (flags & IB_MR_REREG_ACCESS) {
		err = vrdma_check_access(hca, access);
		if (err)
			goto out;
	} else {
		access = mr->access;
	}
	if (flags & IB_MR_REREG_TRANS) {
		err = -EINVAL;
		if (!length || length > le64_to_cpu(hca->attr.max_mr_size))
			goto out;
	} else {
		start = mr->umem->address;
		length = mr->umem->length;
		iova = ibmr->iova;
	}
	if (access & IB_ZERO_BASED)
		iova = 0;
	/* Memory that was pinned for reading is pinned anew to be written. */
	if (ib_access_writable(access) && !mr->umem->writable) {
		err = -EPERM;
		if (!(flags & IB_MR_REREG_TRANS) && mr->umem->owning_mm != current->mm)
			goto out;
		flags |= IB_MR_REREG_TRANS;
	}
	if (flags & IB_MR_REREG_TRANS) {
		umem = ib_umem_get_va(&hca->ibdev, start, length, access);
		if (IS_ERR(umem)) {
			err = PTR_ERR(umem);
			goto out;
		}
	}
	request.flags = cpu_to_le32(flags);
	if (flags & IB_MR_REREG_PD)
		request.pdn = cpu_to_le32(to_vpd(ibpd)->pdn);
	request.access = cpu_to_le32(vrdma_access_to_wire(access));
	request.iova = cpu_to_le64(iova);
	request.length = cpu_to_le64(length);
	err = vrdma_rereg_mr(hca, mr, &request, umem);
	if (!err)
		mr->access = access;
out:
	mutex_unlock(&mr->lock);
	return ERR_PTR(err);
}

int vrdma_alloc_xrcd(struct ib_xrcd *ibxrcd, struct ib_udata *udata)
{
	struct vrdma_hca *hca = to_vhca(ibxrcd->device);
	struct virtio_rdma_number_answer answer;
	int err;

	if (!(hca->capabilities & VIRTIO_RDMA_CAP_XRC))
		return -EOPNOTSUPP;
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_ALLOC_XRCD, NULL, 0, &answer, sizeof(answer));
	if (err)
		return err;
	to_vxrcd(ibxrcd)->xrcdn = le32_to_cpu(answer.number);
	return 0;
}

int vrdma_dealloc_xrcd(struct ib_xrcd *ibxrcd, struct ib_udata *udata)
{
	return vrdma_destroy(to_vhca(ibxrcd->device)->vd, VIRTIO_RDMA_CMD_DEALLOC_XRCD,
			     to_vxrcd(ibxrcd)->xrcdn);
}

/* Rights without a counterpart are optional ones, which may be dropped. */
u32 vrdma_access_to_wire(int access)
{
	BUILD_BUG_ON(IB_ACCESS_LOCAL_WRITE != VIRTIO_RDMA_ACCESS_LOCAL_WRITE);
	BUILD_BUG_ON(IB_ACCESS_REMOTE_WRITE != VIRTIO_RDMA_ACCESS_REMOTE_WRITE);
	BUILD_BUG_ON(IB_ACCESS_REMOTE_READ != VIRTIO_RDMA_ACCESS_REMOTE_READ);
	BUILD_BUG_ON(IB_ACCESS_REMOTE_ATOMIC != VIRTIO_RDMA_ACCESS_REMOTE_ATOMIC);
	BUILD_BUG_ON(IB_ACCESS_MW_BIND != VIRTIO_RDMA_ACCESS_MW_BIND);
	BUILD_BUG_ON(IB_ZERO_BASED != VIRTIO_RDMA_ACCESS_ZERO_BASED);
#ifdef VRDMA_HAVE_FLUSH
	BUILD_BUG_ON(IB_ACCESS_FLUSH_GLOBAL != VIRTIO_RDMA_ACCESS_FLUSH_GLOBAL);
	BUILD_BUG_ON(IB_ACCESS_FLUSH_PERSISTENT != VIRTIO_RDMA_ACCESS_FLUSH_PERSISTENT);
#endif
	BUILD_BUG_ON(IB_ACCESS_RELAXED_ORDERING != VIRTIO_RDMA_ACCESS_RELAXED_ORDERING);
	return access & VRDMA_QP_ACCESS;
}

/* Takes the umem, which may be an error, and releases it if this fails. */
static struct ib_mr *vrdma_reg_umem(struct ib_pd *ibpd, struct ib_umem *umem, u64 iova, int access)
{
	struct vrdma_mr *mr;
	int err = -ENOMEM;

	if (IS_ERR(umem))
		return ERR_CAST(umem);
	mr = kzalloc(sizeof(*mr), GFP_KERNEL);
	if (!mr)
		goto err;
	mr->umem = umem;
	err = vrdma_reg_mr(to_vpd(ibpd), mr, iova, umem->length, access);
	if (err)
		goto err;
	mutex_init(&mr->lock);
	mr->access = access;
	mr->ibmr.length = umem->length;
	mr->ibmr.iova = iova;
	return &mr->ibmr;

err:
	ib_umem_release(umem);
	kfree(mr);
	return ERR_PTR(err);
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
	int err;

	err = vrdma_list_umem(hca, &list, mr->umem, &request.offset);
	if (err)
		return err;
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

/* Takes `umem`, unless it is NULL, in the place of the MR's when the device has changed over. */
static int vrdma_rereg_mr(struct vrdma_hca *hca, struct vrdma_mr *mr,
			  struct virtio_rdma_rereg_mr_request *request, struct ib_umem *umem)
{
	struct virtio_rdma_mr_answer answer;
	struct vrdma_page_list list = {};
	int err = 0;

	if (umem)
		err = vrdma_list_umem(hca, &list, umem, &request->offset);
	if (err)
		goto out;
	request->mrn = cpu_to_le32(mr->mrn);
	request->pages = list.wire;
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_REREG_MR, request, sizeof(*request), &answer,
			    sizeof(answer));
	vrdma_page_list_free(hca->vd, &list);
	if (err)
		goto out;

	mr->ibmr.lkey = le32_to_cpu(answer.lkey);
	mr->ibmr.rkey = le32_to_cpu(answer.rkey);
	if (umem)
		swap(umem, mr->umem);
out:
	ib_umem_release(umem);
	return err;
}

/* Whether the device has the rights. */
int vrdma_check_access(struct vrdma_hca *hca, int access)
{
	if (access & ~(VRDMA_MR_ACCESS | IB_ACCESS_OPTIONAL))
		return -EOPNOTSUPP;
	if (access & IB_ACCESS_MW_BIND && !(hca->capabilities & VIRTIO_RDMA_CAP_MW))
		return -EOPNOTSUPP;
	if (access & VRDMA_ACCESS_FLUSH && !(hca->capabilities & VIRTIO_RDMA_CAP_FLUSH))
		return -EOPNOTSUPP;
	return 0;
}

/* In pages as large as the memory allows. The caller frees the list. */
static int vrdma_list_umem(struct vrdma_hca *hca, struct vrdma_page_list *list,
			   struct ib_umem *umem, __le64 *offset)
{
	const u64 sizes = le64_to_cpu(hca->attr.page_size_cap) & GENMASK(30, VRDMA_PAGE_SHIFT);
	unsigned long page_size;

	/* By the process's address, for that of work requests need not be congruent to it. */
	page_size = ib_umem_find_best_pgsz(umem, sizes, umem->address);
	if (!page_size)
		return -EINVAL;
	*offset = cpu_to_le64(ib_umem_dma_offset(umem, page_size));
	return vrdma_page_list_of_umem(hca->vd, list, umem, page_size);
}
