// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The memory of rings. Nothing here knows what is in it.
 */
#include <errno.h>
#include <stddef.h>
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
