// SPDX-License-Identifier: GPL-2.0
/*
 * User contexts: the user access region (UAR) in which a process's QPs and SRQs show pending
 * work, what a process maps (UAR, status page, doorbell pages), the method that rings a doorbell
 * where it can't be mapped, and the one that reads the device's clocks. Processes are hostile to
 * each other: a UAR belongs to one of them, the status page is read-only, and a doorbell page
 * holds the notify address of one queue and nothing else.
 */
#include <linux/dma-mapping.h>
#include <linux/nospec.h>
#include <rdma/uverbs_ioctl.h>
#include <rdma/uverbs_std_types.h>

#include "vrdma.h"

#define UVERBS_MODULE_NAME virtio_rdma
#include <rdma/uverbs_named_ioctl.h>

/* Where things lie in the offsets of mmap, in pages. */
#define VRDMA_PGOFF_UAR 0x10
#define VRDMA_PGOFF_STATUS 0x20
#define VRDMA_PGOFF_DOORBELL 0x40

/* Slots of a UAR of one page. */
#define VRDMA_SLOTS_OF(bytes) (((bytes) - VIRTIO_RDMA_UAR_BITMAP_OFFSET) * BITS_PER_BYTE)

struct vrdma_mmap_entry {
	struct rdma_user_mmap_entry rdma;
	struct page *pages; /* memory; else: */
	phys_addr_t io;
	bool writable;
};

static void vrdma_describe_ucontext(struct vrdma_ucontext *uctx,
				    struct virtio_rdma_uresp_alloc_ucontext *resp);
static int vrdma_uar_try(struct vrdma_hca *hca, struct vrdma_uar *uar, unsigned int order);
static void vrdma_uar_free_pages(struct vrdma_vdev *vd, struct vrdma_uar *uar);
static int vrdma_add_mmap_entries(struct vrdma_hca *hca, struct vrdma_ucontext *uctx);
static void vrdma_remove_mmap_entries(struct vrdma_hca *hca, struct vrdma_ucontext *uctx);
static struct rdma_user_mmap_entry *vrdma_add_mmap_entry(struct vrdma_ucontext *uctx, u32 pgoff,
							 struct page *pages, phys_addr_t io,
							 size_t bytes, bool writable);
static int vrdma_mmap_pages(struct vrdma_mmap_entry *entry, struct vm_area_struct *vma);

/*
 * Makes a UAR with room for `num_slots` QPs while the device's slots are plenty; with one page of
 * them otherwise, so that a few processes with large ones do not keep all others out.
 */
int vrdma_uar_create(struct vrdma_hca *hca, struct vrdma_uar *uar, u32 num_slots)
{
	size_t bytes = VIRTIO_RDMA_UAR_BITMAP_OFFSET + DIV_ROUND_UP(num_slots, BITS_PER_BYTE);
	unsigned int order = get_order(min_t(size_t, bytes, VIRTIO_RDMA_UAR_MAX_BYTES));
	int err = -ENOMEM;

	if (atomic_read(&hca->slots) + VRDMA_SLOTS_OF(PAGE_SIZE << order) <= hca->max_slots / 2)
		err = vrdma_uar_try(hca, uar, order);
	if (err == -ENOMEM)
		err = vrdma_uar_try(hca, uar, 0);
	if (!err)
		atomic_add(uar->num_slots, &hca->slots);
	return err;
}

void vrdma_uar_destroy(struct vrdma_hca *hca, struct vrdma_uar *uar)
{
	/* Still in use, which the core excludes: keep the memory rather than give it away. */
	if (WARN_ON_ONCE(vrdma_destroy(hca->vd, VIRTIO_RDMA_CMD_DESTROY_UAR, uar->uarn)))
		return;
	atomic_sub(uar->num_slots, &hca->slots);
	vrdma_uar_free_pages(hca->vd, uar);
	ida_destroy(&uar->slots);
}

int vrdma_alloc_ucontext(struct ib_ucontext *ibuc, struct ib_udata *udata)
{
	struct vrdma_hca *hca = to_vhca(ibuc->device);
	struct vrdma_ucontext *uctx = to_vucontext(ibuc);
	struct virtio_rdma_uresp_alloc_ucontext resp = {};
	int err;

	err = vrdma_uar_create(hca, &uctx->uar, le32_to_cpu(hca->attr.max_qp));
	if (err)
		return err;
	err = vrdma_add_mmap_entries(hca, uctx);
	if (err)
		goto err_entries;

	vrdma_describe_ucontext(uctx, &resp);
	err = ib_copy_to_udata(udata, &resp, min(sizeof(resp), udata->outlen));
	if (err)
		goto err_entries;
	return 0;

err_entries:
	vrdma_remove_mmap_entries(hca, uctx);
	vrdma_uar_destroy(hca, &uctx->uar);
	return err;
}

/* For a process that was given the context's file by another. */
int vrdma_query_ucontext(struct ib_ucontext *ibuc, struct uverbs_attr_bundle *attrs)
{
	struct virtio_rdma_uresp_alloc_ucontext resp = {};

	vrdma_describe_ucontext(to_vucontext(ibuc), &resp);
	return uverbs_copy_to_struct_or_zero(attrs, VIRTIO_RDMA_ATTR_CONTEXT_ANSWER, &resp,
					     sizeof(resp));
}

static void vrdma_describe_ucontext(struct vrdma_ucontext *uctx,
				    struct virtio_rdma_uresp_alloc_ucontext *resp)
{
	struct vrdma_hca *hca = to_vhca(uctx->ibuc.device);
	struct vrdma_vdev *vd = hca->vd;

	resp->uar_offset = rdma_user_mmap_get_offset(uctx->uar_entry);
	resp->status_offset = rdma_user_mmap_get_offset(uctx->status_entry);
	if (uctx->doorbell_entries)
		resp->doorbell_offset = rdma_user_mmap_get_offset(uctx->doorbell_entries[0]);
	resp->uar_bytes = PAGE_SIZE << uctx->uar.order;
	resp->num_comp_vectors = vd->num_vectors;
	resp->max_inline = le32_to_cpu(hca->attr.max_inline);
	resp->max_send_sge = le32_to_cpu(hca->attr.max_send_sge);
	resp->max_recv_sge = le32_to_cpu(hca->attr.max_recv_sge);
	resp->max_qp_wr = le32_to_cpu(hca->attr.max_qp_wr);
	resp->max_cqe = le32_to_cpu(hca->attr.max_cqe);
	if (hca->capabilities & VIRTIO_RDMA_CAP_SRQ) {
		resp->max_srq_wr = le32_to_cpu(hca->attr.max_srq_wr);
		resp->max_srq_sge = le32_to_cpu(hca->attr.max_srq_sge);
	}
	resp->capabilities = hca->capabilities;
}

void vrdma_dealloc_ucontext(struct ib_ucontext *ibuc)
{
	struct vrdma_hca *hca = to_vhca(ibuc->device);
	struct vrdma_ucontext *uctx = to_vucontext(ibuc);

	vrdma_remove_mmap_entries(hca, uctx);
	vrdma_uar_destroy(hca, &uctx->uar);
}

/*
 * The device goes while the process has it open. The core destroys its objects and takes the
 * doorbell pages from it; UAR and status page are memory, which stays until it is unmapped.
 */
void vrdma_disassociate_ucontext(struct ib_ucontext *ibuc)
{
}

int vrdma_mmap(struct ib_ucontext *ibuc, struct vm_area_struct *vma)
{
	struct rdma_user_mmap_entry *rdma_entry;
	struct vrdma_mmap_entry *entry;
	int err;

	/* Finds only entries that begin here and have the size of the area. */
	rdma_entry = rdma_user_mmap_entry_get(ibuc, vma);
	if (!rdma_entry)
		return -EINVAL;
	entry = container_of(rdma_entry, struct vrdma_mmap_entry, rdma);

	if (!(vma->vm_flags & VM_SHARED) || (vma->vm_flags & VM_EXEC) ||
	    (!entry->writable && (vma->vm_flags & VM_WRITE))) {
		err = -EPERM;
	} else if (entry->pages) {
		vm_flags_clear(vma, VM_MAYEXEC);
		if (!entry->writable)
			vm_flags_clear(vma, VM_MAYWRITE);
		err = vrdma_mmap_pages(entry, vma);
	} else {
		vm_flags_clear(vma, VM_MAYEXEC);
		err = rdma_user_mmap_io(ibuc, vma, PHYS_PFN(entry->io), PAGE_SIZE,
					pgprot_noncached(vma->vm_page_prot), rdma_entry);
	}
	rdma_user_mmap_entry_put(rdma_entry);
	return err;
}

void vrdma_mmap_free(struct rdma_user_mmap_entry *rdma_entry)
{
	kfree(container_of(rdma_entry, struct vrdma_mmap_entry, rdma));
}

static int UVERBS_HANDLER(VIRTIO_RDMA_METHOD_RING)(struct uverbs_attr_bundle *attrs)
{
	struct ib_ucontext *ibuc = ib_uverbs_get_ucontext(attrs);
	struct vrdma_vdev *vd;
	u32 vector;
	int err;

	if (IS_ERR(ibuc))
		return PTR_ERR(ibuc);
	vd = to_vhca(ibuc->device)->vd;
	err = uverbs_copy_from(&vector, attrs, VIRTIO_RDMA_ATTR_RING_VECTOR);
	if (err)
		return err;
	if (vector >= vd->num_vectors)
		return -EINVAL;
	vector = array_index_nospec(vector, vd->num_vectors);
	return virtqueue_notify(vd->vectors[vector].doorbellq) ? 0 : -EIO;
}

static int UVERBS_HANDLER(VIRTIO_RDMA_METHOD_QUERY_CLOCK)(struct uverbs_attr_bundle *attrs)
{
	struct ib_ucontext *ibuc = ib_uverbs_get_ucontext(attrs);
	struct virtio_rdma_uresp_clock resp = {};
	struct virtio_rdma_clock_answer answer;
	struct vrdma_hca *hca;
	int err;

	if (IS_ERR(ibuc))
		return PTR_ERR(ibuc);
	hca = to_vhca(ibuc->device);
	if (!(hca->capabilities & VIRTIO_RDMA_CAP_TIMESTAMP))
		return -EOPNOTSUPP;
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_QUERY_CLOCK, NULL, 0, &answer,
			    sizeof(answer));
	if (err)
		return err;
	resp.timestamp = le64_to_cpu(answer.timestamp);
	resp.wall_clock = le64_to_cpu(answer.wall_clock);
	return uverbs_copy_to_struct_or_zero(attrs, VIRTIO_RDMA_ATTR_CLOCK_ANSWER, &resp,
					     sizeof(resp));
}

DECLARE_UVERBS_NAMED_METHOD(VIRTIO_RDMA_METHOD_RING,
			    UVERBS_ATTR_PTR_IN(VIRTIO_RDMA_ATTR_RING_VECTOR,
					       UVERBS_ATTR_TYPE(u32), UA_MANDATORY));

DECLARE_UVERBS_NAMED_METHOD(VIRTIO_RDMA_METHOD_QUERY_CLOCK,
			    UVERBS_ATTR_PTR_OUT(VIRTIO_RDMA_ATTR_CLOCK_ANSWER,
						UVERBS_ATTR_STRUCT(struct virtio_rdma_uresp_clock,
								   wall_clock),
						UA_MANDATORY));

ADD_UVERBS_ATTRIBUTES_SIMPLE(vrdma_query_context, UVERBS_OBJECT_DEVICE,
			     UVERBS_METHOD_QUERY_CONTEXT,
			     UVERBS_ATTR_PTR_OUT(VIRTIO_RDMA_ATTR_CONTEXT_ANSWER,
						 UVERBS_ATTR_STRUCT(
							 struct virtio_rdma_uresp_alloc_ucontext,
							 capabilities),
						 UA_OPTIONAL));

DECLARE_UVERBS_GLOBAL_METHODS(VIRTIO_RDMA_OBJECT_DOORBELL,
			      &UVERBS_METHOD(VIRTIO_RDMA_METHOD_RING),
			      &UVERBS_METHOD(VIRTIO_RDMA_METHOD_QUERY_CLOCK));

const struct uapi_definition vrdma_uapi[] = {
	UAPI_DEF_CHAIN_OBJ_TREE_NAMED(VIRTIO_RDMA_OBJECT_DOORBELL),
	UAPI_DEF_CHAIN(vrdma_dm_uapi),
	UAPI_DEF_CHAIN_OBJ_TREE(UVERBS_OBJECT_DEVICE, &vrdma_query_context),
	{},
};

static int vrdma_uar_try(struct vrdma_hca *hca, struct vrdma_uar *uar, unsigned int order)
{
	struct virtio_rdma_create_uar_request request = {};
	struct virtio_rdma_number_answer answer;
	struct vrdma_vdev *vd = hca->vd;
	size_t bytes = PAGE_SIZE << order;
	int err;

	uar->order = order;
	uar->num_slots = VRDMA_SLOTS_OF(bytes);
	uar->pages = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO, order);
	if (!uar->pages)
		return -ENOMEM;
	/* Pages of their own, each of which a mapping may keep alive. */
	split_page(uar->pages, order);
	uar->dma = dma_map_page(vd->dma_dev, uar->pages, 0, bytes, DMA_BIDIRECTIONAL);
	if (dma_mapping_error(vd->dma_dev, uar->dma)) {
		err = -ENOMEM;
		uar->dma = DMA_MAPPING_ERROR;
		goto err;
	}

	request.pages.root = cpu_to_le64(uar->dma);
	request.pages.num_pages = cpu_to_le32(bytes >> VRDMA_PAGE_SHIFT);
	request.pages.page_shift = VRDMA_PAGE_SHIFT;
	err = vrdma_command(vd, VIRTIO_RDMA_CMD_CREATE_UAR, &request, sizeof(request), &answer,
			    sizeof(answer));
	if (err)
		goto err;
	uar->uarn = le32_to_cpu(answer.number);
	ida_init(&uar->slots);
	return 0;
err:
	vrdma_uar_free_pages(vd, uar);
	return err;
}

static void vrdma_uar_free_pages(struct vrdma_vdev *vd, struct vrdma_uar *uar)
{
	u32 i;

	if (uar->dma != DMA_MAPPING_ERROR)
		dma_unmap_page(vd->dma_dev, uar->dma, PAGE_SIZE << uar->order,
			       DMA_BIDIRECTIONAL);
	for (i = 0; i < 1U << uar->order; i++)
		__free_page(uar->pages + i);
	uar->pages = NULL;
}

static int vrdma_add_mmap_entries(struct vrdma_hca *hca, struct vrdma_ucontext *uctx)
{
	struct vrdma_vdev *vd = hca->vd;
	u32 v;

	uctx->uar_entry = vrdma_add_mmap_entry(uctx, VRDMA_PGOFF_UAR, uctx->uar.pages, 0,
					       PAGE_SIZE << uctx->uar.order, true);
	if (!uctx->uar_entry)
		return -ENOMEM;
	uctx->status_entry = vrdma_add_mmap_entry(uctx, VRDMA_PGOFF_STATUS,
						  virt_to_page(vd->status), 0, PAGE_SIZE, false);
	if (!uctx->status_entry)
		return -ENOMEM;
	/* All or none. */
	if (!vd->vectors[0].doorbell)
		return 0;
	uctx->doorbell_entries = kcalloc(vd->num_vectors, sizeof(*uctx->doorbell_entries),
					 GFP_KERNEL);
	if (!uctx->doorbell_entries)
		return -ENOMEM;
	for (v = 0; v < vd->num_vectors; v++) {
		uctx->doorbell_entries[v] =
			vrdma_add_mmap_entry(uctx, VRDMA_PGOFF_DOORBELL + v, NULL,
					     vd->vectors[v].doorbell, PAGE_SIZE, true);
		if (!uctx->doorbell_entries[v])
			return -ENOMEM;
	}
	return 0;
}

static void vrdma_remove_mmap_entries(struct vrdma_hca *hca, struct vrdma_ucontext *uctx)
{
	u32 v;

	rdma_user_mmap_entry_remove(uctx->uar_entry);
	rdma_user_mmap_entry_remove(uctx->status_entry);
	if (!uctx->doorbell_entries)
		return;
	for (v = 0; v < hca->vd->num_vectors; v++)
		rdma_user_mmap_entry_remove(uctx->doorbell_entries[v]);
	kfree(uctx->doorbell_entries);
}

static struct rdma_user_mmap_entry *vrdma_add_mmap_entry(struct vrdma_ucontext *uctx, u32 pgoff,
							 struct page *pages, phys_addr_t io,
							 size_t bytes, bool writable)
{
	struct vrdma_mmap_entry *entry;

	entry = kzalloc(sizeof(*entry), GFP_KERNEL);
	if (!entry)
		return NULL;
	entry->pages = pages;
	entry->io = io;
	entry->writable = writable;
	if (rdma_user_mmap_entry_insert_exact(&uctx->ibuc, &entry->rdma, bytes, pgoff)) {
		kfree(entry);
		return NULL;
	}
	return &entry->rdma;
}

static int vrdma_mmap_pages(struct vrdma_mmap_entry *entry, struct vm_area_struct *vma)
{
	unsigned long i;
	int err;

	for (i = 0; i < vma_pages(vma); i++) {
		err = vm_insert_page(vma, vma->vm_start + i * PAGE_SIZE, entry->pages + i);
		if (err)
			return err;
	}
	return 0;
}
