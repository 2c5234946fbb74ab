// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The provider as libibverbs sees it: which devices are ours, opening and closing them, and the
 * verbs that the kernel carries out alone (device, port, PD, MR). QPs, CQs and the fast path have
 * files of their own.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vrdma.h"

/* Size of the status page and distance of the vectors' doorbells, as the kernel maps them. */
#define VRDMA_MAP_UNIT 4096

struct vrdma_get_context_resp {
	struct ib_uverbs_get_context_resp ibv_resp;
	struct virtio_rdma_uresp_alloc_ucontext drv;
};
static_assert(offsetof(struct vrdma_get_context_resp, drv) ==
		      sizeof(struct ib_uverbs_get_context_resp),
	      "the driver's part follows the core's without a gap");

struct vrdma_alloc_pd_resp {
	struct ib_uverbs_alloc_pd_resp ibv_resp;
	struct virtio_rdma_uresp_alloc_pd drv;
};
static_assert(offsetof(struct vrdma_alloc_pd_resp, drv) == sizeof(struct ib_uverbs_alloc_pd_resp),
	      "the driver's part follows the core's without a gap");

/*
 * The kernel driver has no number of its own among the RDMA drivers, so devices are known by the
 * modalias of the parent of the ib_device, which is the virtio device.
 */
static const struct verbs_match_ent vrdma_match_table[] = {
	VERBS_MODALIAS_MATCH("virtio:d0000002Av*", NULL), /* VIRTIO_RDMA_DEVICE_ID */
	{},
};

static int vrdma_query_device(struct ibv_context *context,
			      const struct ibv_query_device_ex_input *input,
			      struct ibv_device_attr_ex *attr, size_t attr_size)
{
	struct ib_uverbs_ex_query_device_resp resp;
	size_t resp_size = sizeof(resp);
	uint64_t fw_ver;
	int err;

	err = ibv_cmd_query_device_any(context, input, attr, attr_size, &resp, &resp_size);
	if (err)
		return err;
	fw_ver = resp.base.fw_ver;
	snprintf(attr->orig_attr.fw_ver, sizeof(attr->orig_attr.fw_ver), "%u.%u.%u",
		 (unsigned int)(fw_ver >> 32) & 0xffff, (unsigned int)(fw_ver >> 16) & 0xffff,
		 (unsigned int)fw_ver & 0xffff);
	return 0;
}

static int vrdma_query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr)
{
	struct ibv_query_port cmd;

	return ibv_cmd_query_port(context, port, attr, &cmd, sizeof(cmd));
}

static struct ibv_pd *vrdma_alloc_pd(struct ibv_context *context)
{
	struct vrdma_alloc_pd_resp resp;
	struct ibv_alloc_pd cmd;
	struct ibv_pd *pd;
	int err;

	pd = calloc(1, sizeof(*pd));
	if (!pd)
		return NULL;
	err = ibv_cmd_alloc_pd(context, pd, &cmd, sizeof(cmd), &resp.ibv_resp, sizeof(resp));
	if (err) {
		free(pd);
		errno = err;
		return NULL;
	}
	return pd;
}

static int vrdma_dealloc_pd(struct ibv_pd *pd)
{
	int err = ibv_cmd_dealloc_pd(pd);

	if (!err)
		free(pd);
	return err;
}

static struct ibv_mr *vrdma_reg_mr(struct ibv_pd *pd, void *addr, size_t length, uint64_t hca_va,
				   int access)
{
	struct ib_uverbs_reg_mr_resp resp;
	struct ibv_reg_mr cmd;
	struct verbs_mr *mr;
	int err;

	mr = calloc(1, sizeof(*mr));
	if (!mr)
		return NULL;
	err = ibv_cmd_reg_mr(pd, addr, length, hca_va, access, mr, &cmd, sizeof(cmd), &resp,
			     sizeof(resp));
	if (err) {
		free(mr);
		errno = err;
		return NULL;
	}
	return &mr->ibv_mr;
}

static int vrdma_dereg_mr(struct verbs_mr *mr)
{
	int err = ibv_cmd_dereg_mr(mr);

	if (!err)
		free(mr);
	return err;
}

/*
 * Wakes the worker of `vector`: by a store to the notify address of its doorbell, which is the
 * device's register, or where that can't be mapped by asking the kernel. A call that fails means
 * that the device is gone; the process is told so by an asynchronous event.
 */
void vrdma_ring_doorbell(struct vrdma_context *ctx, uint32_t vector)
{
	volatile uint16_t *doorbell = ctx->doorbells[vector];

	if (doorbell) {
		vrdma_full_fence();
		*doorbell = htole16(vrdma_doorbell_queue(vector));
	} else {
		DECLARE_COMMAND_BUFFER(cmd, VIRTIO_RDMA_OBJECT_DOORBELL, VIRTIO_RDMA_METHOD_RING, 1);
		int err = errno;

		fill_attr_in_uint32(cmd, VIRTIO_RDMA_ATTR_RING_VECTOR, vector);
		execute_ioctl(&ctx->ibv_ctx.context, cmd);
		errno = err;
	}
}

/* Maps `bytes` of the device's file. A child of a fork has no business there. NULL on failure. */
static void *vrdma_map(int fd, uint64_t offset, size_t bytes, int prot)
{
	void *addr = mmap(NULL, bytes, prot, MAP_SHARED, fd, (off_t)offset);

	if (addr == MAP_FAILED)
		return NULL;
	if (madvise(addr, bytes, MADV_DONTFORK)) {
		munmap(addr, bytes);
		return NULL;
	}
	return addr;
}

static void vrdma_unmap_all(struct vrdma_context *ctx)
{
	for (uint32_t v = 0; v < ctx->info.num_comp_vectors; v++)
		if (ctx->doorbells[v])
			munmap((char *)ctx->doorbells[v] - ctx->info.doorbell_in_page,
			       VRDMA_MAP_UNIT);
	if (ctx->status)
		munmap((void *)ctx->status, VRDMA_MAP_UNIT);
	if (ctx->uar)
		munmap(ctx->uar, ctx->info.uar_bytes);
}

/* Maps what the kernel driver offers. Doorbells that can't be mapped are rung by ioctl instead. */
static int vrdma_map_all(struct vrdma_context *ctx, int fd)
{
	const struct virtio_rdma_uresp_alloc_ucontext *info = &ctx->info;

	ctx->uar = vrdma_map(fd, info->uar_offset, info->uar_bytes, PROT_READ | PROT_WRITE);
	if (!ctx->uar)
		return errno;
	ctx->status = vrdma_map(fd, info->status_offset, VRDMA_MAP_UNIT, PROT_READ);
	if (!ctx->status)
		return errno;
	if (!info->doorbell_offset)
		return 0;
	for (uint32_t v = 0; v < info->num_comp_vectors; v++) {
		char *page = vrdma_map(fd, info->doorbell_offset + v * VRDMA_MAP_UNIT,
				       VRDMA_MAP_UNIT, PROT_WRITE);

		if (page)
			ctx->doorbells[v] =
				(volatile uint16_t *)(page + info->doorbell_in_page);
	}
	return 0;
}

/* Whether the provider can work with what the kernel driver said. */
static bool vrdma_info_valid(const struct virtio_rdma_uresp_alloc_ucontext *info)
{
	return info->num_comp_vectors >= 1 &&
	       info->num_comp_vectors <= VIRTIO_RDMA_MAX_COMP_VECTORS &&
	       info->uar_bytes > VIRTIO_RDMA_UAR_BITMAP_OFFSET &&
	       info->uar_bytes <= VIRTIO_RDMA_UAR_MAX_BYTES &&
	       info->doorbell_in_page <= VRDMA_MAP_UNIT - sizeof(uint16_t) &&
	       info->doorbell_in_page % sizeof(uint16_t) == 0;
}

static void vrdma_free_context(struct ibv_context *context)
{
	struct vrdma_context *ctx = to_vctx(context);

	vrdma_unmap_all(ctx);
	vrdma_free_qp_tables(ctx);
	pthread_mutex_destroy(&ctx->qp_table_mutex);
	verbs_uninit_context(&ctx->ibv_ctx);
	free(ctx);
}

static const struct verbs_context_ops vrdma_ops = {
	.alloc_pd = vrdma_alloc_pd,
	.create_ah = vrdma_create_ah,
	.create_cq = vrdma_create_cq,
	.create_qp = vrdma_create_qp,
	.create_qp_ex = vrdma_create_qp_ex,
	.dealloc_pd = vrdma_dealloc_pd,
	.dereg_mr = vrdma_dereg_mr,
	.destroy_ah = vrdma_destroy_ah,
	.destroy_cq = vrdma_destroy_cq,
	.destroy_qp = vrdma_destroy_qp,
	.free_context = vrdma_free_context,
	.modify_qp = vrdma_modify_qp,
	.poll_cq = vrdma_poll_cq,
	.post_recv = vrdma_post_recv,
	.post_send = vrdma_post_send,
	.query_device_ex = vrdma_query_device,
	.query_port = vrdma_query_port,
	.query_qp = vrdma_query_qp,
	.reg_mr = vrdma_reg_mr,
	.req_notify_cq = vrdma_req_notify_cq,
};

static struct verbs_context *vrdma_alloc_context(struct ibv_device *device, int cmd_fd,
						 void *private_data)
{
	struct vrdma_get_context_resp resp = {};
	struct ibv_get_context cmd = {};
	struct vrdma_context *ctx;
	int err;

	(void)private_data;
	ctx = verbs_init_and_alloc_context(device, cmd_fd, ctx, ibv_ctx, RDMA_DRIVER_UNKNOWN);
	if (!ctx)
		return NULL;
	pthread_mutex_init(&ctx->qp_table_mutex, NULL);
	ctx->page_size = (size_t)sysconf(_SC_PAGESIZE);

	err = ibv_cmd_get_context(&ctx->ibv_ctx, &cmd, sizeof(cmd), &resp.ibv_resp, sizeof(resp));
	if (err)
		goto fail;
	if (!vrdma_info_valid(&resp.drv)) {
		verbs_err(&ctx->ibv_ctx, "the kernel driver's answer makes no sense\n");
		err = EPROTO;
		goto fail;
	}
	ctx->info = resp.drv;
	err = vrdma_map_all(ctx, cmd_fd);
	if (err)
		goto fail;

	verbs_set_ops(&ctx->ibv_ctx, &vrdma_ops);
	return &ctx->ibv_ctx;

fail:
	vrdma_unmap_all(ctx);
	pthread_mutex_destroy(&ctx->qp_table_mutex);
	verbs_uninit_context(&ctx->ibv_ctx);
	free(ctx);
	errno = err;
	return NULL;
}

static struct verbs_device *vrdma_alloc_device(struct verbs_sysfs_dev *sysfs_dev)
{
	(void)sysfs_dev;
	return calloc(1, sizeof(struct verbs_device));
}

static void vrdma_uninit_device(struct verbs_device *device)
{
	free(device);
}

static const struct verbs_device_ops vrdma_device_ops = {
	.name = "virtio_rdma",
	.match_min_abi_version = VIRTIO_RDMA_UVERBS_ABI_VERSION,
	.match_max_abi_version = VIRTIO_RDMA_UVERBS_ABI_VERSION,
	.match_table = vrdma_match_table,
	.alloc_context = vrdma_alloc_context,
	.alloc_device = vrdma_alloc_device,
	.uninit_device = vrdma_uninit_device,
};
PROVIDER_DRIVER(virtio_rdma, vrdma_device_ops);
