// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that the device is told of: buffers in kernel memory, and the page lists (trees of
 * tables) that describe buffers and user memory in commands. What lies in them is other files'.
 *
 * The device reads the tables while it executes the command, and not later.
 */
#include <linux/dma-mapping.h>
#include <linux/vmalloc.h>

#include "vrdma.h"

/* Addresses in a table, and levels of tables (see struct virtio_rdma_page_list). */
#define VRDMA_TABLE_ENTRIES 512
#define VRDMA_MAX_DEPTH 3
/* Page sizes that a page list may have. */
#define VRDMA_RING_PAGE_SIZES GENMASK(30, VRDMA_PAGE_SHIFT)

struct vrdma_table {
	__le64 *entries;
	dma_addr_t dma; /* valid once `mapped` */
	bool mapped;
};

static int vrdma_page_list_start(struct vrdma_page_list *list, u64 num_pages, u8 page_shift);
static void vrdma_page_list_put(struct vrdma_page_list *list, u32 index, dma_addr_t page);
static int vrdma_page_list_finish(struct vrdma_vdev *vd, struct vrdma_page_list *list);

/* Zeroed memory for a ring, mapped for the device. May sleep. */
int vrdma_buf_alloc(struct vrdma_vdev *vd, struct vrdma_buf *buf, size_t bytes)
{
	u32 n = DIV_ROUND_UP(bytes, PAGE_SIZE);
	int err = -ENOMEM;

	buf->num_pages = 0;
	buf->va = NULL;
	buf->pages = kvcalloc(n, sizeof(*buf->pages), GFP_KERNEL);
	buf->dma = kvcalloc(n, sizeof(*buf->dma), GFP_KERNEL);
	if (!buf->pages || !buf->dma)
		goto err;

	while (buf->num_pages < n) {
		struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);
		dma_addr_t dma;

		if (!page)
			goto err;
		dma = dma_map_page(vd->dma_dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
		if (dma_mapping_error(vd->dma_dev, dma)) {
			__free_page(page);
			goto err;
		}
		buf->pages[buf->num_pages] = page;
		buf->dma[buf->num_pages++] = dma;
	}
	buf->va = vmap(buf->pages, n, VM_MAP, PAGE_KERNEL);
	if (!buf->va)
		goto err;
	return 0;
err:
	vrdma_buf_free(vd, buf);
	return err;
}

void vrdma_buf_free(struct vrdma_vdev *vd, struct vrdma_buf *buf)
{
	u32 i;

	vunmap(buf->va);
	for (i = 0; i < buf->num_pages; i++) {
		dma_unmap_page(vd->dma_dev, buf->dma[i], PAGE_SIZE, DMA_BIDIRECTIONAL);
		__free_page(buf->pages[i]);
	}
	kvfree(buf->dma);
	kvfree(buf->pages);
	memset(buf, 0, sizeof(*buf));
}

int vrdma_page_list_of_buf(struct vrdma_vdev *vd, struct vrdma_page_list *list,
			   const struct vrdma_buf *buf)
{
	int err;
	u32 i;

	err = vrdma_page_list_start(list, buf->num_pages, PAGE_SHIFT);
	if (err)
		return err;
	for (i = 0; i < buf->num_pages; i++)
		vrdma_page_list_put(list, i, buf->dma[i]);
	return vrdma_page_list_finish(vd, list);
}

/* `page_size` comes from ib_umem_find_best_pgsz(). */
int vrdma_page_list_of_umem(struct vrdma_vdev *vd, struct vrdma_page_list *list,
			    struct ib_umem *umem, unsigned long page_size)
{
	struct ib_block_iter biter;
	u32 i = 0;
	int err;

	err = vrdma_page_list_start(list, ib_umem_num_dma_blocks(umem, page_size),
				    __ffs(page_size));
	if (err)
		return err;
	rdma_umem_for_each_dma_block(umem, &biter, page_size)
		vrdma_page_list_put(list, i++, rdma_block_iter_dma_address(&biter));
	return vrdma_page_list_finish(vd, list);
}

void vrdma_page_list_free(struct vrdma_vdev *vd, struct vrdma_page_list *list)
{
	u32 i;

	for (i = 0; i < list->num_tables; i++) {
		struct vrdma_table *table = &list->tables[i];

		if (table->mapped)
			dma_unmap_page(vd->dma_dev, table->dma, VRDMA_PAGE_SIZE, DMA_TO_DEVICE);
		kfree(table->entries);
		cond_resched();
	}
	kvfree(list->tables);
	memset(list, 0, sizeof(*list));
}

/*
 * Pins the first `bytes` of a process's buffer, and lists their pages. The buffer must start at a
 * page and be long enough. On success the caller frees both.
 */
struct ib_umem *vrdma_ring_umem(struct vrdma_hca *hca, struct vrdma_page_list *list, u64 addr,
				u32 buf_bytes, u64 bytes)
{
	unsigned long page_size;
	struct ib_umem *umem;
	int err;

	if (!PAGE_ALIGNED(addr) || buf_bytes < bytes || addr != (unsigned long)addr)
		return ERR_PTR(-EINVAL);
	umem = ib_umem_get_va(&hca->ibdev, addr, bytes, IB_ACCESS_LOCAL_WRITE);
	if (IS_ERR(umem))
		return umem;
	/* 0, since a ring begins where its first page does. */
	page_size = ib_umem_find_best_pgsz(umem, VRDMA_RING_PAGE_SIZES, 0);
	err = page_size ? vrdma_page_list_of_umem(hca->vd, list, umem, page_size) : -EINVAL;
	if (err) {
		ib_umem_release(umem);
		return ERR_PTR(err);
	}
	return umem;
}

/* Allocates all tables: those of the lowest level first, the topmost last. */
static int vrdma_page_list_start(struct vrdma_page_list *list, u64 num_pages, u8 page_shift)
{
	u64 level, total = 0;
	u8 depth = 0;

	memset(list, 0, sizeof(*list));
	if (!num_pages || num_pages > U32_MAX)
		return -EINVAL;
	for (level = num_pages; level > 1;) {
		level = DIV_ROUND_UP_ULL(level, VRDMA_TABLE_ENTRIES);
		total += level;
		depth++;
	}
	if (depth > VRDMA_MAX_DEPTH)
		return -E2BIG;

	list->wire.num_pages = cpu_to_le32(num_pages);
	list->wire.page_shift = page_shift;
	list->wire.depth = depth;
	if (!total)
		return 0;
	list->tables = kvcalloc(total, sizeof(*list->tables), GFP_KERNEL);
	if (!list->tables)
		return -ENOMEM;
	/* A kmalloc of a power of two is aligned to it. */
	for (; list->num_tables < total; list->num_tables++) {
		list->tables[list->num_tables].entries = kzalloc(VRDMA_PAGE_SIZE, GFP_KERNEL);
		if (!list->tables[list->num_tables].entries)
			goto err;
		cond_resched();
	}
	return 0;
err:
	while (list->num_tables)
		kfree(list->tables[--list->num_tables].entries);
	kvfree(list->tables);
	memset(list, 0, sizeof(*list));
	return -ENOMEM;
}

static void vrdma_page_list_put(struct vrdma_page_list *list, u32 index, dma_addr_t page)
{
	if (!list->wire.depth)
		list->wire.root = cpu_to_le64(page);
	else
		list->tables[index / VRDMA_TABLE_ENTRIES]
			.entries[index % VRDMA_TABLE_ENTRIES] = cpu_to_le64(page);
}

/* Maps the tables, level by level, entering each one's address in the level above. */
static int vrdma_page_list_finish(struct vrdma_vdev *vd, struct vrdma_page_list *list)
{
	u32 first = 0, count = DIV_ROUND_UP(le32_to_cpu(list->wire.num_pages),
					    VRDMA_TABLE_ENTRIES);
	u8 level;
	u32 i;

	for (level = 0; level < list->wire.depth; level++) {
		struct vrdma_table *above = &list->tables[first + count];

		for (i = 0; i < count; i++) {
			struct vrdma_table *table = &list->tables[first + i];

			table->dma = dma_map_page(vd->dma_dev, virt_to_page(table->entries),
						  offset_in_page(table->entries),
						  VRDMA_PAGE_SIZE, DMA_TO_DEVICE);
			if (dma_mapping_error(vd->dma_dev, table->dma)) {
				vrdma_page_list_free(vd, list);
				return -ENOMEM;
			}
			table->mapped = true;
			if (level + 1 < list->wire.depth)
				above[i / VRDMA_TABLE_ENTRIES].entries[i % VRDMA_TABLE_ENTRIES] =
					cpu_to_le64(table->dma);
			else
				list->wire.root = cpu_to_le64(table->dma);
			cond_resched();
		}
		first += count;
		count = DIV_ROUND_UP(count, VRDMA_TABLE_ENTRIES);
	}
	return 0;
}
