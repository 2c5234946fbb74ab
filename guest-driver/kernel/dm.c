// SPDX-License-Identifier: GPL-2.0
/*
 * Device memory of processes. The device works in the guest's memory at full speed, so its own
 * memory would only be further away: what is given out is memory of the guest's kernel, which the
 * process can name by keys and map, and which no file and no other process can reach. Everything
 * here may sleep.
 */
#include "vrdma.h"

/* Of one allocation, and of all in a guest: like others' kernel memory, it can't be paged out. */
#define VRDMA_DM_MAX_BYTES SZ_1M
#define VRDMA_DM_MAX_PAGES (SZ_32M >> PAGE_SHIFT)
/* Where it begins in the offsets of mmap, in pages. */
#define VRDMA_PGOFF_DM 0x10000

u64 vrdma_max_dm_size(const struct vrdma_hca *hca)
{
	return min_t(u64, VRDMA_DM_MAX_BYTES, le64_to_cpu(hca->attr.max_mr_size));
}

struct ib_dm *vrdma_alloc_dm(struct ib_device *ibdev, struct ib_ucontext *ibuc,
			     struct ib_dm_alloc_attr *attr, struct uverbs_attr_bundle *attrs)
{
	struct vrdma_hca *hca = to_vhca(ibdev);
	struct vrdma_dm *dm;
	u32 num_pages;
	int err;

	if (!attr->length || attr->flags || attr->alignment > PAGE_SHIFT)
		return ERR_PTR(-EINVAL);
	if (attr->length > vrdma_max_dm_size(hca))
		return ERR_PTR(-ENOMEM);
	num_pages = DIV_ROUND_UP(attr->length, PAGE_SIZE);
	if (atomic_add_return(num_pages, &hca->dm_pages) > VRDMA_DM_MAX_PAGES) {
		err = -ENOMEM;
		goto err_count;
	}

	err = -ENOMEM;
	dm = kzalloc(sizeof(*dm), GFP_KERNEL_ACCOUNT);
	if (!dm)
		goto err_count;
	dm->length = attr->length;
	dm->entry = kzalloc(sizeof(*dm->entry), GFP_KERNEL_ACCOUNT);
	if (!dm->entry)
		goto err_free;
	err = vrdma_buf_alloc(hca->vd, &dm->entry->buf, attr->length);
	if (err)
		goto err_entry;
	dm->entry->writable = true;
	err = rdma_user_mmap_entry_insert_range(ibuc, &dm->entry->rdma,
						num_pages * PAGE_SIZE, VRDMA_PGOFF_DM,
						U32_MAX);
	if (err)
		goto err_buf;
	return &dm->ibdm;

err_buf:
	vrdma_buf_free(hca->vd, &dm->entry->buf);
err_entry:
	kfree(dm->entry);
err_free:
	kfree(dm);
err_count:
	atomic_sub(num_pages, &hca->dm_pages);
	return ERR_PTR(err);
}

/* No MR of it is left. A mapping that is left keeps its pages until it is unmapped. */
int vrdma_dealloc_dm(struct ib_dm *ibdm, struct uverbs_attr_bundle *attrs)
{
	struct vrdma_hca *hca = to_vhca(ibdm->device);
	struct vrdma_dm *dm = to_vdm(ibdm);

	atomic_sub(dm->entry->buf.num_pages, &hca->dm_pages);
	rdma_user_mmap_entry_remove(&dm->entry->rdma);
	kfree(dm);
	return 0;
}

/* The core has checked that the MR lies in the memory; its addresses count from 0. */
struct ib_mr *vrdma_reg_dm_mr(struct ib_pd *ibpd, struct ib_dm *ibdm, struct ib_dm_mr_attr *attr,
			      struct uverbs_attr_bundle *attrs)
{
	struct vrdma_hca *hca = to_vhca(ibpd->device);
	struct virtio_rdma_reg_mr_request request = {
		.access = cpu_to_le32(vrdma_access_to_wire(attr->access_flags)),
		.length = cpu_to_le64(attr->length),
		.offset = cpu_to_le64(offset_in_page(attr->offset)),
	};
	struct vrdma_dm *dm = to_vdm(ibdm);
	struct vrdma_page_list list;
	struct vrdma_mr *mr;
	int err;

	err = vrdma_check_access(hca, attr->access_flags);
	if (err)
		return ERR_PTR(err);
	if (!attr->length)
		return ERR_PTR(-EINVAL);
	mr = kzalloc(sizeof(*mr), GFP_KERNEL);
	if (!mr)
		return ERR_PTR(-ENOMEM);
	mutex_init(&mr->lock);
	err = vrdma_page_list_of_part(hca->vd, &list, &dm->entry->buf,
				      attr->offset >> PAGE_SHIFT,
				      DIV_ROUND_UP(offset_in_page(attr->offset) + attr->length,
						   PAGE_SIZE));
	if (err)
		goto err;
	request.pages = list.wire;
	err = vrdma_reg_mr(to_vpd(ibpd), mr, &request);
	vrdma_page_list_free(hca->vd, &list);
	if (err)
		goto err;
	mr->ibmr.length = attr->length;
	return &mr->ibmr;
err:
	kfree(mr);
	return ERR_PTR(err);
}

void vrdma_query_dm(struct ib_dm *ibdm, struct virtio_rdma_uresp_query_dm *resp)
{
	struct vrdma_dm *dm = to_vdm(ibdm);

	resp->offset = rdma_user_mmap_get_offset(&dm->entry->rdma);
	resp->map_bytes = (u64)dm->entry->buf.num_pages * PAGE_SIZE;
	resp->length = dm->length;
}
