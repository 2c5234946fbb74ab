// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Device memory: the daemon's own, which nothing in the guest maps; the kernel has it copied. What is
 * in it and where it may be reached is checked there.
 */
#include <errno.h>
#include <stdlib.h>

#include <rdma/ib_user_ioctl_cmds.h>

#include "vrdma.h"

static int vrdma_copy_dm(struct ibv_dm *dm, uint64_t offset, const void *addr, size_t length,
			 bool write)
{
	DECLARE_COMMAND_BUFFER(cmd, UVERBS_OBJECT_DM, VIRTIO_RDMA_METHOD_COPY_DM, 2);
	struct virtio_rdma_ureq_copy_dm req = {
		.addr = (uintptr_t)addr,
		.offset = offset,
		.length = length,
		.write = write,
	};

	fill_attr_in_obj(cmd, VIRTIO_RDMA_ATTR_COPY_DM_HANDLE,
			 container_of(dm, struct verbs_dm, dm)->handle);
	fill_attr_in_ptr(cmd, VIRTIO_RDMA_ATTR_COPY_DM_REQUEST, &req);
	return execute_ioctl(dm->context, cmd);
}

static int vrdma_memcpy_to_dm(struct ibv_dm *dm, uint64_t offset, const void *addr, size_t length)
{
	return vrdma_copy_dm(dm, offset, addr, length, true);
}

static int vrdma_memcpy_from_dm(void *addr, struct ibv_dm *dm, uint64_t offset, size_t length)
{
	return vrdma_copy_dm(dm, offset, addr, length, false);
}

static struct verbs_dm *vrdma_new_dm(struct ibv_context *context)
{
	struct verbs_dm *dm = calloc(1, sizeof(*dm));

	if (!dm)
		return NULL;
	dm->dm.context = context;
	dm->dm.memcpy_to_dm = vrdma_memcpy_to_dm;
	dm->dm.memcpy_from_dm = vrdma_memcpy_from_dm;
	return dm;
}

struct ibv_dm *vrdma_alloc_dm(struct ibv_context *context, struct ibv_alloc_dm_attr *attr)
{
	struct verbs_dm *dm;
	int err;

	if (attr->comp_mask) {
		errno = EINVAL;
		return NULL;
	}
	dm = vrdma_new_dm(context);
	if (!dm)
		return NULL;
	err = ibv_cmd_alloc_dm(context, attr, dm, NULL);
	if (err) {
		free(dm);
		errno = err;
		return NULL;
	}
	return &dm->dm;
}

int vrdma_free_dm(struct ibv_dm *ibv_dm)
{
	struct verbs_dm *dm = container_of(ibv_dm, struct verbs_dm, dm);
	int err = ibv_cmd_free_dm(dm);

	if (!err)
		free(dm);
	return err;
}

struct ibv_dm *vrdma_import_dm(struct ibv_context *context, uint32_t handle)
{
	struct verbs_dm *dm = vrdma_new_dm(context);
	int err;

	if (!dm)
		return NULL;
	dm->handle = handle;
	/* A copy of nothing tells whether the handle names device memory. */
	err = vrdma_copy_dm(&dm->dm, 0, NULL, 0, false);
	if (err) {
		free(dm);
		errno = err;
		return NULL;
	}
	return &dm->dm;
}

void vrdma_unimport_dm(struct ibv_dm *dm)
{
	free(container_of(dm, struct verbs_dm, dm));
}

struct ibv_mr *vrdma_reg_dm_mr(struct ibv_pd *pd, struct ibv_dm *dm, uint64_t offset, size_t length,
			       unsigned int access)
{
	struct verbs_mr *mr = calloc(1, sizeof(*mr));
	int err;

	if (!mr)
		return NULL;
	err = ibv_cmd_reg_dm_mr(pd, container_of(dm, struct verbs_dm, dm), offset, length, access,
				mr, NULL);
	if (err) {
		free(mr);
		errno = err;
		return NULL;
	}
	return &mr->ibv_mr;
}
