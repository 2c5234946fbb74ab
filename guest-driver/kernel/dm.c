// SPDX-License-Identifier: GPL-2.0
/*
 * Device memory: memory of the daemon's, which processes reach by a method of the driver's own (there
 * is nothing of it to map in the guest) and by work requests. Everything here may sleep.
 */
#include <linux/dma-mapping.h>
#include <linux/sched/signal.h>
#include <rdma/uverbs_ioctl.h>
#include <rdma/uverbs_std_types.h>

#include "vrdma.h"

#define UVERBS_MODULE_NAME virtio_rdma
#include <rdma/uverbs_named_ioctl.h>

/* What offset and length of a copy are multiples of, as on other devices that have such memory. */
#define VRDMA_DM_ALIGN 4

struct vrdma_dm {
	struct ib_dm ibdm;
	u32 dmn;
};

static struct vrdma_dm *to_vdm(struct ib_dm *ibdm)
{
	return container_of(ibdm, struct vrdma_dm, ibdm);
}

struct ib_dm *vrdma_alloc_dm(struct ib_device *ibdev, struct ib_ucontext *context,
			     struct ib_dm_alloc_attr *attr, struct uverbs_attr_bundle *attrs)
{
	struct vrdma_hca *hca = to_vhca(ibdev);
	struct virtio_rdma_alloc_dm_request request = { .length = cpu_to_le64(attr->length) };
	struct virtio_rdma_number_answer answer;
	struct vrdma_dm *dm;
	int err;

	if (!(hca->capabilities & VIRTIO_RDMA_CAP_DEVICE_MEMORY))
		return ERR_PTR(-EOPNOTSUPP);
	/* Addresses begin at 0 in every piece, so they are aligned to anything; this is what makes sense. */
	if (attr->alignment > PAGE_SHIFT)
		return ERR_PTR(-EINVAL);
	dm = kzalloc(sizeof(*dm), GFP_KERNEL);
	if (!dm)
		return ERR_PTR(-ENOMEM);
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_ALLOC_DM, &request, sizeof(request), &answer,
			    sizeof(answer));
	if (err) {
		kfree(dm);
		return ERR_PTR(err);
	}
	dm->dmn = le32_to_cpu(answer.number);
	return &dm->ibdm;
}

int vrdma_dealloc_dm(struct ib_dm *ibdm, struct uverbs_attr_bundle *attrs)
{
	int err = vrdma_destroy(to_vhca(ibdm->device)->vd, VIRTIO_RDMA_CMD_FREE_DM,
				to_vdm(ibdm)->dmn);

	if (!err)
		kfree(to_vdm(ibdm));
	return err;
}

/* The core has checked that the range lies in the device memory, and that it is zero-based. */
struct ib_mr *vrdma_reg_dm_mr(struct ib_pd *ibpd, struct ib_dm *ibdm, struct ib_dm_mr_attr *attr,
			      struct uverbs_attr_bundle *attrs)
{
	struct virtio_rdma_reg_dm_mr_request request = {
		.pdn = cpu_to_le32(to_vpd(ibpd)->pdn),
		.access = cpu_to_le32(vrdma_access_to_wire(attr->access_flags)),
		.dmn = cpu_to_le32(to_vdm(ibdm)->dmn),
		.offset = cpu_to_le64(attr->offset),
		.length = cpu_to_le64(attr->length),
	};
	struct virtio_rdma_mr_answer answer;
	struct vrdma_mr *mr;
	int err;

	err = vrdma_check_access(to_vhca(ibpd->device), attr->access_flags);
	if (err)
		return ERR_PTR(err);
	mr = kzalloc(sizeof(*mr), GFP_KERNEL);
	if (!mr)
		return ERR_PTR(-ENOMEM);
	err = vrdma_command(to_vhca(ibpd->device)->vd, VIRTIO_RDMA_CMD_REG_DM_MR, &request,
			    sizeof(request), &answer, sizeof(answer));
	if (err) {
		kfree(mr);
		return ERR_PTR(err);
	}
	mutex_init(&mr->lock);
	mr->mrn = le32_to_cpu(answer.mrn);
	mr->ibmr.lkey = le32_to_cpu(answer.lkey);
	mr->ibmr.rkey = le32_to_cpu(answer.rkey);
	mr->ibmr.length = attr->length;
	return &mr->ibmr;
}

/* Copies at most a page between the device memory and `page`, which is mapped at `dma`. */
static int vrdma_copy_dm_page(struct vrdma_vdev *vd, struct vrdma_dm *dm, u64 offset, u32 length,
			      bool write, dma_addr_t dma)
{
	struct virtio_rdma_copy_dm_request request = {
		.dmn = cpu_to_le32(dm->dmn),
		.write = write,
		.dm_offset = cpu_to_le64(offset),
		.length = cpu_to_le64(length),
		.pages.root = cpu_to_le64(dma),
		.pages.num_pages = cpu_to_le32(1),
		.pages.page_shift = VRDMA_PAGE_SHIFT,
	};

	return vrdma_command(vd, VIRTIO_RDMA_CMD_COPY_DM, &request, sizeof(request), NULL, 0);
}

static int vrdma_copy_dm(struct vrdma_vdev *vd, struct vrdma_dm *dm,
			 const struct virtio_rdma_ureq_copy_dm *req)
{
	void __user *user = u64_to_user_ptr(req->addr);
	const u32 most = 1U << VRDMA_PAGE_SHIFT;
	dma_addr_t dma;
	void *page;
	int err = 0;
	u64 done;

	page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	dma = dma_map_single(vd->dma_dev, page, most, DMA_BIDIRECTIONAL);
	if (dma_mapping_error(vd->dma_dev, dma)) {
		free_page((unsigned long)page);
		return -ENOMEM;
	}
	for (done = 0; !err && done < req->length; done += most) {
		u32 length = min_t(u64, req->length - done, most);

		if (fatal_signal_pending(current))
			err = -EINTR;
		else if (req->write && copy_from_user(page, user + done, length))
			err = -EFAULT;
		else
			err = vrdma_copy_dm_page(vd, dm, req->offset + done, length, req->write,
						 dma);
		if (!err && !req->write && copy_to_user(user + done, page, length))
			err = -EFAULT;
	}
	dma_unmap_single(vd->dma_dev, dma, most, DMA_BIDIRECTIONAL);
	free_page((unsigned long)page);
	return err;
}

static int UVERBS_HANDLER(VIRTIO_RDMA_METHOD_COPY_DM)(struct uverbs_attr_bundle *attrs)
{
	struct ib_uobject *uobject = uverbs_attr_get_uobject(attrs, VIRTIO_RDMA_ATTR_COPY_DM_HANDLE);
	struct virtio_rdma_ureq_copy_dm req;
	struct ib_dm *ibdm;
	int err;

	if (IS_ERR(uobject))
		return PTR_ERR(uobject);
	ibdm = uobject->object;
	err = uverbs_copy_from(&req, attrs, VIRTIO_RDMA_ATTR_COPY_DM_REQUEST);
	if (err)
		return err;
	if (req.write > 1 || req.reserved || req.offset % VRDMA_DM_ALIGN ||
	    req.length % VRDMA_DM_ALIGN || req.offset > ibdm->length ||
	    req.length > ibdm->length - req.offset)
		return -EINVAL;
	return vrdma_copy_dm(to_vhca(ibdm->device)->vd, to_vdm(ibdm), &req);
}

DECLARE_UVERBS_NAMED_METHOD(VIRTIO_RDMA_METHOD_COPY_DM,
			    UVERBS_ATTR_IDR(VIRTIO_RDMA_ATTR_COPY_DM_HANDLE, UVERBS_OBJECT_DM,
					    UVERBS_ACCESS_READ, UA_MANDATORY),
			    UVERBS_ATTR_PTR_IN(VIRTIO_RDMA_ATTR_COPY_DM_REQUEST,
					       UVERBS_ATTR_STRUCT(struct virtio_rdma_ureq_copy_dm,
								  reserved),
					       UA_MANDATORY));

ADD_UVERBS_METHODS(virtio_rdma_dm, UVERBS_OBJECT_DM, &UVERBS_METHOD(VIRTIO_RDMA_METHOD_COPY_DM));

const struct uapi_definition vrdma_dm_uapi[] = {
	UAPI_DEF_CHAIN_OBJ_TREE(UVERBS_OBJECT_DM, &virtio_rdma_dm),
	{},
};
