// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The memory of rings. Nothing here knows what is in it.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include "vrdma.h"

/*
 * Pages of their own rather than a piece of the heap: they come zeroed, and MADV_DONTFORK, which
 * works on whole pages, takes nothing else from a child. Without it a fork would share the pages
 * copy-on-write, and the parent's next store would land in a copy that the device does not see.
 */
void *vrdma_alloc_pages(size_t bytes)
{
	void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pages == MAP_FAILED)
		return NULL;
	if (madvise(pages, bytes, MADV_DONTFORK)) {
		int err = errno;

		munmap(pages, bytes);
		errno = err;
		return NULL;
	}
	return pages;
}

void vrdma_free_pages(void *pages, size_t bytes)
{
	munmap(pages, bytes);
}

/*
 * Memory of the program's own allocator. It can only be kept from a fork as the program's other
 * registered memory is: if the program has called ibv_fork_init().
 */
static int vrdma_buf_alloc_by_parent(struct vrdma_context *ctx, struct vrdma_buf *buf,
				     struct vrdma_pd *parent)
{
	void *addr = parent->alloc(&parent->ibv_pd, parent->pd_context, buf->bytes, ctx->page_size,
				   buf->resource);
	int err = 0;

	if (addr == IBV_ALLOCATOR_USE_DEFAULT)
		return 0;
	if (!addr)
		return ENOMEM;
	if ((uintptr_t)addr % ctx->page_size)
		err = EINVAL;
	else if (ibv_dontfork_range(addr, buf->bytes))
		err = errno;
	if (err) {
		parent->free(&parent->ibv_pd, parent->pd_context, addr, buf->resource);
		return err;
	}
	memset(addr, 0, buf->bytes);
	atomic_fetch_add(&parent->users, 1);
	buf->addr = addr;
	buf->parent = parent;
	return 0;
}

int vrdma_buf_alloc(struct vrdma_context *ctx, struct vrdma_buf *buf, size_t bytes,
		    struct ibv_pd *pd, enum vrdma_resource resource)
{
	buf->addr = NULL;
	buf->bytes = (bytes + ctx->page_size - 1) & ~(ctx->page_size - 1);
	buf->parent = NULL;
	buf->resource = resource;
	if (pd && to_vpd(pd)->alloc) {
		int err = vrdma_buf_alloc_by_parent(ctx, buf, to_vpd(pd));

		if (err)
			return err;
	}
	if (!buf->addr) {
		buf->addr = vrdma_alloc_pages(buf->bytes);
		if (!buf->addr)
			return errno;
	}
	return 0;
}

void vrdma_buf_free(struct vrdma_buf *buf)
{
	struct vrdma_pd *parent = buf->parent;

	if (!buf->addr)
		return;
	if (parent) {
		ibv_dofork_range(buf->addr, buf->bytes);
		parent->free(&parent->ibv_pd, parent->pd_context, buf->addr, buf->resource);
		atomic_fetch_sub(&parent->users, 1);
	} else {
		vrdma_free_pages(buf->addr, buf->bytes);
	}
	buf->addr = NULL;
}

void vrdma_buf_forget(struct vrdma_buf *buf)
{
	if (!buf->parent)
		madvise(buf->addr, buf->bytes, MADV_DONTNEED);
}
