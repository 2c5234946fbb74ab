// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Domains of all kinds: protection domains, parent domains (a protection domain with memory
 * allocators and a promise about threads), thread domains, XRC domains.
 */
#include <errno.h>
#include <stdlib.h>

#include "vrdma.h"

struct vrdma_alloc_pd_resp {
	struct ib_uverbs_alloc_pd_resp ibv_resp;
	struct virtio_rdma_uresp_alloc_pd drv;
};
static_assert(offsetof(struct vrdma_alloc_pd_resp, drv) == sizeof(struct ib_uverbs_alloc_pd_resp),
	      "the driver's part follows the core's without a gap");

struct ibv_pd *vrdma_alloc_pd(struct ibv_context *context)
{
	struct vrdma_alloc_pd_resp resp;
	struct ibv_alloc_pd cmd;
	struct vrdma_pd *pd;
	int err;

	pd = calloc(1, sizeof(*pd));
	if (!pd)
		return NULL;
	err = ibv_cmd_alloc_pd(context, &pd->ibv_pd, &cmd, sizeof(cmd), &resp.ibv_resp,
			       sizeof(resp));
	if (err) {
		free(pd);
		errno = err;
		return NULL;
	}
	return &pd->ibv_pd;
}

/* To the kernel a parent domain is the protection domain it was made of: it has its handle. */
struct ibv_pd *vrdma_alloc_parent_domain(struct ibv_context *context,
					 struct ibv_parent_domain_init_attr *attr)
{
	struct vrdma_pd *parent, *pd = attr->pd ? to_vpd(attr->pd) : NULL;

	if (attr->comp_mask & ~(uint32_t)(IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS |
					  IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT)) {
		errno = EOPNOTSUPP;
		return NULL;
	}
	if (!pd || pd->protection_domain ||
	    ((attr->comp_mask & IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS) &&
	     (!attr->alloc || !attr->free))) {
		errno = EINVAL;
		return NULL;
	}
	parent = calloc(1, sizeof(*parent));
	if (!parent)
		return NULL;
	parent->ibv_pd.context = context;
	parent->ibv_pd.handle = pd->ibv_pd.handle;
	parent->protection_domain = pd;
	if (attr->comp_mask & IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS) {
		parent->alloc = attr->alloc;
		parent->free = attr->free;
	}
	if (attr->comp_mask & IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT)
		parent->pd_context = attr->pd_context;
	atomic_fetch_add(&pd->users, 1);
	if (attr->td) {
		parent->td = container_of(attr->td, struct vrdma_td, ibv_td);
		atomic_fetch_add(&parent->td->users, 1);
	}
	return &parent->ibv_pd;
}

int vrdma_dealloc_pd(struct ibv_pd *ibv_pd)
{
	struct vrdma_pd *pd = to_vpd(ibv_pd);
	int err;

	if (atomic_load(&pd->users))
		return EBUSY;
	if (pd->protection_domain) {
		atomic_fetch_sub(&pd->protection_domain->users, 1);
		if (pd->td)
			atomic_fetch_sub(&pd->td->users, 1);
		free(pd);
		return 0;
	}
	err = ibv_cmd_dealloc_pd(ibv_pd);
	if (!err)
		free(pd);
	return err;
}

/* A PD of another context on the same file, which may be another process's. */
struct ibv_pd *vrdma_import_pd(struct ibv_context *context, uint32_t handle)
{
	struct vrdma_pd *pd = calloc(1, sizeof(*pd));

	if (!pd)
		return NULL;
	pd->ibv_pd.context = context;
	pd->ibv_pd.handle = handle;
	return &pd->ibv_pd;
}

void vrdma_unimport_pd(struct ibv_pd *pd)
{
	free(to_vpd(pd));
}

struct ibv_td *vrdma_alloc_td(struct ibv_context *context, struct ibv_td_init_attr *attr)
{
	struct vrdma_td *td;

	if (attr->comp_mask) {
		errno = EOPNOTSUPP;
		return NULL;
	}
	td = calloc(1, sizeof(*td));
	if (!td)
		return NULL;
	td->ibv_td.context = context;
	return &td->ibv_td;
}

int vrdma_dealloc_td(struct ibv_td *ibv_td)
{
	struct vrdma_td *td = container_of(ibv_td, struct vrdma_td, ibv_td);

	if (atomic_load(&td->users))
		return EBUSY;
	free(td);
	return 0;
}

struct ibv_xrcd *vrdma_open_xrcd(struct ibv_context *context, struct ibv_xrcd_init_attr *attr)
{
	struct ib_uverbs_open_xrcd_resp resp = {};
	struct ibv_open_xrcd cmd = {};
	struct verbs_xrcd *xrcd = calloc(1, sizeof(*xrcd));
	int err;

	if (!xrcd)
		return NULL;
	err = ibv_cmd_open_xrcd(context, xrcd, sizeof(*xrcd), attr, &cmd, sizeof(cmd), &resp,
				sizeof(resp));
	if (err) {
		free(xrcd);
		errno = err;
		return NULL;
	}
	return &xrcd->xrcd;
}

int vrdma_close_xrcd(struct ibv_xrcd *ibv_xrcd)
{
	struct verbs_xrcd *xrcd = container_of(ibv_xrcd, struct verbs_xrcd, xrcd);
	int err = ibv_cmd_close_xrcd(xrcd);

	if (!err)
		free(xrcd);
	return err;
}
