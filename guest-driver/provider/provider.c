// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The provider as libibverbs sees it: which devices are ours, opening and closing them, and the
 * verbs about the device and its port. All kinds of objects have files of their own.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <rdma/ib_user_ioctl_cmds.h>

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

/* The device's clock, in units of hca_core_clock, as completion timestamps are. */
static int vrdma_query_rt_values(struct ibv_context *context, struct ibv_values_ex *values)
{
	DECLARE_COMMAND_BUFFER(cmd, VIRTIO_RDMA_OBJECT_DOORBELL, VIRTIO_RDMA_METHOD_QUERY_CLOCK, 1);
	uint32_t wanted = values->comp_mask & IBV_VALUES_MASK_RAW_CLOCK;
	struct virtio_rdma_uresp_clock clock = {};
	int err;

	values->comp_mask = 0;
	if (!wanted)
		return 0;
	if (!vrdma_has(to_vctx(context), VIRTIO_RDMA_CAP_TIMESTAMP))
		return EOPNOTSUPP;
	fill_attr_out_ptr(cmd, VIRTIO_RDMA_ATTR_CLOCK_ANSWER, &clock);
	err = execute_ioctl(context, cmd);
	if (err)
		return err;
	values->raw_clock.tv_sec = 0;
	values->raw_clock.tv_nsec = (long)clock.timestamp;
	values->comp_mask = wanted;
	return 0;
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
	.advise_mr = vrdma_advise_mr,
	.alloc_dm = vrdma_alloc_dm,
	.alloc_mw = vrdma_alloc_mw,
	.alloc_parent_domain = vrdma_alloc_parent_domain,
	.alloc_pd = vrdma_alloc_pd,
	.alloc_td = vrdma_alloc_td,
	.attach_mcast = ibv_cmd_attach_mcast,
	.bind_mw = vrdma_bind_mw,
	.close_xrcd = vrdma_close_xrcd,
	.create_ah = vrdma_create_ah,
	.create_cq = vrdma_create_cq,
	.create_cq_ex = vrdma_create_cq_ex,
	.create_qp = vrdma_create_qp,
	.create_qp_ex = vrdma_create_qp_ex,
	.create_srq = vrdma_create_srq,
	.create_srq_ex = vrdma_create_srq_ex,
	.dealloc_mw = vrdma_dealloc_mw,
	.dealloc_pd = vrdma_dealloc_pd,
	.dealloc_td = vrdma_dealloc_td,
	.dereg_mr = vrdma_dereg_mr,
	.destroy_ah = vrdma_destroy_ah,
	.destroy_cq = vrdma_destroy_cq,
	.destroy_qp = vrdma_destroy_qp,
	.destroy_srq = vrdma_destroy_srq,
	.detach_mcast = ibv_cmd_detach_mcast,
	.free_context = vrdma_free_context,
	.free_dm = vrdma_free_dm,
	.get_srq_num = vrdma_get_srq_num,
	.import_dm = vrdma_import_dm,
	.import_mr = vrdma_import_mr,
	.import_pd = vrdma_import_pd,
	.modify_cq = vrdma_modify_cq,
	.modify_qp = vrdma_modify_qp,
	.modify_srq = vrdma_modify_srq,
	.open_qp = vrdma_open_qp,
	.open_xrcd = vrdma_open_xrcd,
	.poll_cq = vrdma_poll_cq,
	.post_recv = vrdma_post_recv,
	.post_send = vrdma_post_send,
	.post_srq_recv = vrdma_post_srq_recv,
	.query_device_ex = vrdma_query_device,
	.query_port = vrdma_query_port,
	.query_qp = vrdma_query_qp,
	.query_rt_values = vrdma_query_rt_values,
	.query_srq = vrdma_query_srq,
	.reg_dm_mr = vrdma_reg_dm_mr,
	.reg_dmabuf_mr = vrdma_reg_dmabuf_mr,
	.reg_mr = vrdma_reg_mr,
	.req_notify_cq = vrdma_req_notify_cq,
	.rereg_mr = vrdma_rereg_mr,
	.resize_cq = vrdma_resize_cq,
	.unimport_dm = vrdma_unimport_dm,
	.unimport_mr = vrdma_unimport_mr,
	.unimport_pd = vrdma_unimport_pd,
};

/* A context of the kernel's own making, or one that the process has open already. */
static int vrdma_get_context(struct vrdma_context *ctx, bool import)
{
	struct vrdma_get_context_resp resp = {};
	struct ibv_get_context cmd = {};

	if (import) {
		DECLARE_COMMAND_BUFFER(attrs, UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_CONTEXT,
				       1);
		int err;

		fill_attr_out_ptr(attrs, VIRTIO_RDMA_ATTR_CONTEXT_ANSWER, &resp.drv);
		err = ibv_cmd_query_context(&ctx->ibv_ctx.context, attrs);
		if (err)
			return err;
	} else {
		int err = ibv_cmd_get_context(&ctx->ibv_ctx, &cmd, sizeof(cmd), &resp.ibv_resp,
					      sizeof(resp));

		if (err)
			return err;
	}
	if (!vrdma_info_valid(&resp.drv)) {
		verbs_err(&ctx->ibv_ctx, "the kernel driver's answer makes no sense\n");
		return EPROTO;
	}
	ctx->info = resp.drv;
	return 0;
}

static struct verbs_context *vrdma_open_context(struct ibv_device *device, int cmd_fd, bool import)
{
	struct vrdma_context *ctx;
	int err;

	ctx = verbs_init_and_alloc_context(device, cmd_fd, ctx, ibv_ctx, RDMA_DRIVER_UNKNOWN);
	if (!ctx)
		return NULL;
	pthread_mutex_init(&ctx->qp_table_mutex, NULL);
	ctx->page_size = (size_t)sysconf(_SC_PAGESIZE);

	err = vrdma_get_context(ctx, import);
	if (err)
		goto fail;
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

static struct verbs_context *vrdma_alloc_context(struct ibv_device *device, int cmd_fd,
						 void *private_data)
{
	(void)private_data;
	return vrdma_open_context(device, cmd_fd, false);
}

static struct verbs_context *vrdma_import_context(struct ibv_device *device, int cmd_fd)
{
	return vrdma_open_context(device, cmd_fd, true);
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
	.import_context = vrdma_import_context,
	.uninit_device = vrdma_uninit_device,
};
PROVIDER_DRIVER(virtio_rdma, vrdma_device_ops);
