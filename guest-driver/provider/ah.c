// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Address handles: the kernel driver keeps them where the device reads them; here is their number.
 */
#include <errno.h>
#include <stdlib.h>

#include "vrdma.h"

struct vrdma_create_ah_resp {
	struct ib_uverbs_create_ah_resp ibv_resp;
	struct virtio_rdma_uresp_create_ah drv;
};
static_assert(offsetof(struct vrdma_create_ah_resp, drv) == sizeof(struct ib_uverbs_create_ah_resp),
	      "the driver's part follows the core's without a gap");

struct ibv_ah *vrdma_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr)
{
	struct vrdma_create_ah_resp resp = {};
	struct vrdma_ah *ah = calloc(1, sizeof(*ah));
	int err;

	if (!ah)
		return NULL;
	err = ibv_cmd_create_ah(pd, &ah->ibv_ah, attr, &resp.ibv_resp, sizeof(resp));
	if (err) {
		free(ah);
		errno = err;
		return NULL;
	}
	ah->index = resp.drv.ah;
	return &ah->ibv_ah;
}

int vrdma_destroy_ah(struct ibv_ah *ibv_ah)
{
	int err = ibv_cmd_destroy_ah(ibv_ah);

	if (!err)
		free(to_vah(ibv_ah));
	return err;
}
