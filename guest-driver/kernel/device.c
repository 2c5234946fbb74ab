// SPDX-License-Identifier: GPL-2.0
/*
 * The RDMA device as the ib core sees it: the table of its verbs, and the queries of device and
 * port.
 */
#include <linux/module.h>
#include <rdma/ib_mad.h>

#include "vrdma.h"

/* RoCE v2 only. MAD and CM need a GSI QP (QP1), and so a device that sends datagrams. */
#define VRDMA_PORT_CAPS (RDMA_CORE_CAP_PROT_ROCE_UDP_ENCAP | RDMA_CORE_CAP_ETH_AH)

static void vrdma_copy_device_attr(struct ib_device_attr *attr, const struct vrdma_hca *hca);
static void vrdma_set_cap_flags(struct ib_device_attr *attr, const struct vrdma_hca *hca);

static int vrdma_query_device(struct ib_device *ibdev, struct ib_device_attr *attr,
			      struct ib_udata *udata)
{
	if (udata && (udata->inlen || udata->outlen))
		return -EINVAL;
	vrdma_copy_device_attr(attr, to_vhca(ibdev));
	return 0;
}

/* May sleep. A port whose device is gone is down. */
int vrdma_query_port(struct ib_device *ibdev, u32 port, struct ib_port_attr *attr)
{
	struct vrdma_hca *hca = to_vhca(ibdev);
	struct virtio_rdma_port_attr wire;
	bool up = true;
	int err;

	err = vrdma_command_number(hca->vd, VIRTIO_RDMA_CMD_QUERY_PORT, port, &wire,
				   sizeof(wire));
	if (err == -ENODEV) {
		wire = hca->port;
		up = false;
	} else if (err) {
		return err;
	}
	/* Without its network device the port has no addresses and can't carry anything. */
	up = up && vrdma_netdev_running(hca);

	attr->state = up ? wire.state : IB_PORT_DOWN;
	attr->phys_state = up ? wire.phys_state : IB_PORT_PHYS_STATE_DISABLED;
	attr->max_mtu = clamp_t(u8, wire.max_mtu, IB_MTU_256, IB_MTU_4096);
	attr->active_mtu = clamp_t(u8, wire.active_mtu, IB_MTU_256, attr->max_mtu);
	/* The core has tables of this size; they can't grow. */
	attr->gid_tbl_len = le32_to_cpu(hca->port.gid_tbl_len);
	attr->pkey_tbl_len = le16_to_cpu(hca->port.pkey_tbl_len);
	attr->ip_gids = true;
	attr->port_cap_flags = le32_to_cpu(wire.port_cap_flags);
	attr->max_msg_sz = le32_to_cpu(wire.max_msg_sz);
	attr->bad_pkey_cntr = le32_to_cpu(wire.bad_pkey_cntr);
	attr->qkey_viol_cntr = le32_to_cpu(wire.qkey_viol_cntr);
	attr->max_vl_num = 1;
	attr->active_width = wire.active_width;
	attr->active_speed = le32_to_cpu(wire.active_speed);
	return 0;
}

static int vrdma_get_port_immutable(struct ib_device *ibdev, u32 port,
				    struct ib_port_immutable *immutable)
{
	struct vrdma_hca *hca = to_vhca(ibdev);

	immutable->gid_tbl_len = le32_to_cpu(hca->port.gid_tbl_len);
	immutable->pkey_tbl_len = le16_to_cpu(hca->port.pkey_tbl_len);
	immutable->core_cap_flags = VRDMA_PORT_CAPS;
	if (hca->capabilities & VIRTIO_RDMA_CAP_UD) {
		immutable->core_cap_flags = RDMA_CORE_PORT_IBA_ROCE_UDP_ENCAP;
		immutable->max_mad_size = IB_MGMT_MAD_SIZE;
	}
	return 0;
}

static enum rdma_link_layer vrdma_get_link_layer(struct ib_device *ibdev, u32 port)
{
	return IB_LINK_LAYER_ETHERNET;
}

static int vrdma_query_pkey(struct ib_device *ibdev, u32 port, u16 index, u16 *pkey)
{
	if (index)
		return -EINVAL;
	*pkey = IB_DEFAULT_PKEY_FULL;
	return 0;
}

static void vrdma_get_fw_str(struct ib_device *ibdev, char *str)
{
	u64 version = le64_to_cpu(to_vhca(ibdev)->attr.fw_ver);

	snprintf(str, IB_FW_VERSION_NAME_MAX, "%u.%u.%u", (u32)(version >> 32) & 0xffff,
		 (u32)(version >> 16) & 0xffff, (u32)version & 0xffff);
}

static void vrdma_copy_device_attr(struct ib_device_attr *attr, const struct vrdma_hca *hca)
{
	const struct virtio_rdma_device_attr *wire = &hca->attr;

	memset(attr, 0, sizeof(*attr));
	attr->fw_ver = le64_to_cpu(wire->fw_ver);
	memcpy(&attr->sys_image_guid, wire->sys_image_guid, sizeof(attr->sys_image_guid));
	attr->max_mr_size = le64_to_cpu(wire->max_mr_size);
	attr->page_size_cap = le64_to_cpu(wire->page_size_cap);
	attr->vendor_id = le32_to_cpu(wire->vendor_id);
	attr->vendor_part_id = le32_to_cpu(wire->vendor_part_id);
	attr->hw_ver = le32_to_cpu(wire->hw_ver);
	attr->max_qp = le32_to_cpu(wire->max_qp);
	attr->max_qp_wr = le32_to_cpu(wire->max_qp_wr);
	attr->max_send_sge = le32_to_cpu(wire->max_send_sge);
	attr->max_recv_sge = le32_to_cpu(wire->max_recv_sge);
	attr->max_sge_rd = le32_to_cpu(wire->max_sge_rd);
	attr->max_cq = le32_to_cpu(wire->max_cq);
	attr->max_cqe = le32_to_cpu(wire->max_cqe);
	attr->max_mr = le32_to_cpu(wire->max_mr);
	attr->max_pd = le32_to_cpu(wire->max_pd);
	attr->max_qp_rd_atom = le32_to_cpu(wire->max_qp_rd_atom);
	attr->max_qp_init_rd_atom = le32_to_cpu(wire->max_qp_init_rd_atom);
	attr->max_res_rd_atom = le32_to_cpu(wire->max_res_rd_atom);
	attr->atomic_cap = min_t(u32, le32_to_cpu(wire->atomic_cap), IB_ATOMIC_GLOB);
	attr->max_pkeys = le16_to_cpu(wire->max_pkeys);
	attr->local_ca_ack_delay = wire->local_ca_ack_delay;
	attr->max_ah = hca->num_ahs;
	if (hca->capabilities & VIRTIO_RDMA_CAP_SRQ) {
		attr->max_srq = le32_to_cpu(wire->max_srq);
		attr->max_srq_wr = le32_to_cpu(wire->max_srq_wr);
		attr->max_srq_sge = le32_to_cpu(wire->max_srq_sge);
	}
	if (hca->capabilities & VIRTIO_RDMA_CAP_FAST_REG)
		attr->max_fast_reg_page_list_len = le32_to_cpu(wire->max_fast_reg_page_list_len);
	if (hca->capabilities & VIRTIO_RDMA_CAP_MW)
		attr->max_mw = le32_to_cpu(wire->max_mw);
	if (hca->capabilities & VIRTIO_RDMA_CAP_MCAST) {
		attr->max_mcast_grp = le32_to_cpu(wire->max_mcast_grp);
		attr->max_mcast_qp_attach = le32_to_cpu(wire->max_mcast_qp_attach);
		attr->max_total_mcast_qp_attach = le32_to_cpu(wire->max_total_mcast_qp_attach);
	}
	if (hca->capabilities & VIRTIO_RDMA_CAP_CQ_MODERATION) {
		attr->cq_caps.max_cq_moderation_count = le16_to_cpu(wire->max_cq_count);
		attr->cq_caps.max_cq_moderation_period = le16_to_cpu(wire->max_cq_period);
	}
	if (hca->capabilities & VIRTIO_RDMA_CAP_TIMESTAMP) {
		attr->timestamp_mask = U64_MAX;
		attr->hca_core_clock = le64_to_cpu(wire->hca_core_clock);
	}
	if (hca->capabilities & VIRTIO_RDMA_CAP_DEVICE_MEMORY)
		attr->max_dm_size = le64_to_cpu(wire->max_dm_size);
	if (hca->capabilities & VIRTIO_RDMA_CAP_ON_DEMAND) {
		/* Numbered alike. */
		attr->odp_caps.general_caps = le32_to_cpu(wire->odp_caps);
		attr->odp_caps.per_transport_caps.rc_odp_caps = le32_to_cpu(wire->odp_rc);
		attr->odp_caps.per_transport_caps.uc_odp_caps = le32_to_cpu(wire->odp_uc);
		attr->odp_caps.per_transport_caps.ud_odp_caps = le32_to_cpu(wire->odp_ud);
		attr->odp_caps.per_transport_caps.xrc_odp_caps = le32_to_cpu(wire->odp_xrc);
		attr->kernel_cap_flags |= IBK_ON_DEMAND_PAGING;
	}
	vrdma_set_cap_flags(attr, hca);
}

/* What is in the answer to INIT, in the terms of the ib core. */
static void vrdma_set_cap_flags(struct ib_device_attr *attr, const struct vrdma_hca *hca)
{
	attr->device_cap_flags = IB_DEVICE_PORT_ACTIVE_EVENT | IB_DEVICE_SYS_IMAGE_GUID |
				 IB_DEVICE_CURR_QP_STATE_MOD;
	if (le64_to_cpu(hca->attr.device_caps) & VIRTIO_RDMA_DEVICE_CAP_RC_RNR_NAK_GEN)
		attr->device_cap_flags |= IB_DEVICE_RC_RNR_NAK_GEN;
	if (hca->capabilities & VIRTIO_RDMA_CAP_FAST_REG)
		attr->device_cap_flags |= IB_DEVICE_MEM_MGT_EXTENSIONS;
	if (hca->capabilities & VIRTIO_RDMA_CAP_MW)
		attr->device_cap_flags |= IB_DEVICE_MEM_WINDOW | IB_DEVICE_MEM_WINDOW_TYPE_2B;
	if (hca->capabilities & VIRTIO_RDMA_CAP_XRC)
		attr->device_cap_flags |= IB_DEVICE_XRC;
	if (hca->capabilities & VIRTIO_RDMA_CAP_SRQ_RESIZE)
		attr->device_cap_flags |= IB_DEVICE_SRQ_RESIZE;
#ifdef VRDMA_HAVE_FLUSH
	if (hca->capabilities & VIRTIO_RDMA_CAP_FLUSH)
		attr->device_cap_flags |= IB_DEVICE_FLUSH_GLOBAL;
	if (hca->capabilities & VIRTIO_RDMA_CAP_ATOMIC_WRITE)
		attr->device_cap_flags |= IB_DEVICE_ATOMIC_WRITE;
#endif
	if (hca->capabilities & VIRTIO_RDMA_CAP_LOCAL_DMA_LKEY)
		attr->kernel_cap_flags |= IBK_LOCAL_DMA_LKEY;
	if (hca->capabilities & VIRTIO_RDMA_CAP_MCAST)
		attr->kernel_cap_flags |= IBK_BLOCK_MULTICAST_LOOPBACK;
}

const struct ib_device_ops vrdma_device_ops = {
	.owner = THIS_MODULE,
	.driver_id = RDMA_DRIVER_UNKNOWN,
	.uverbs_abi_ver = VIRTIO_RDMA_UVERBS_ABI_VERSION,

	.add_gid = vrdma_add_gid,
#ifdef CONFIG_INFINIBAND_ON_DEMAND_PAGING
	.advise_mr = vrdma_advise_mr,
#endif
	.alloc_dm = vrdma_alloc_dm,
	.alloc_hw_port_stats = vrdma_alloc_hw_port_stats,
	.alloc_mr = vrdma_alloc_mr,
	.alloc_mw = vrdma_alloc_mw,
	.alloc_pd = vrdma_alloc_pd,
	.alloc_ucontext = vrdma_alloc_ucontext,
	.alloc_xrcd = vrdma_alloc_xrcd,
	.attach_mcast = vrdma_attach_mcast,
	.create_ah = vrdma_create_ah,
	.create_cq = vrdma_create_cq,
	.create_qp = vrdma_create_qp,
	.create_srq = vrdma_create_srq,
	.create_user_ah = vrdma_create_ah,
	.dealloc_dm = vrdma_dealloc_dm,
	.dealloc_mw = vrdma_dealloc_mw,
	.dealloc_pd = vrdma_dealloc_pd,
	.dealloc_ucontext = vrdma_dealloc_ucontext,
	.dealloc_xrcd = vrdma_dealloc_xrcd,
	.del_gid = vrdma_del_gid,
	.dereg_mr = vrdma_dereg_mr,
	.destroy_ah = vrdma_destroy_ah,
	.destroy_cq = vrdma_destroy_cq,
	.destroy_qp = vrdma_destroy_qp,
	.destroy_srq = vrdma_destroy_srq,
	.detach_mcast = vrdma_detach_mcast,
	.disassociate_ucontext = vrdma_disassociate_ucontext,
	.fill_res_cq_entry = vrdma_fill_cq,
	.fill_res_mr_entry = vrdma_fill_mr,
	.fill_res_qp_entry = vrdma_fill_qp,
#ifdef VRDMA_HAVE_FILL_SRQ
	.fill_res_srq_entry = vrdma_fill_srq,
#endif
	.get_dev_fw_str = vrdma_get_fw_str,
	.get_dma_mr = vrdma_get_dma_mr,
	.get_hw_stats = vrdma_get_hw_stats,
	.get_link_layer = vrdma_get_link_layer,
	.get_port_immutable = vrdma_get_port_immutable,
	.map_mr_sg = vrdma_map_mr_sg,
	.mmap = vrdma_mmap,
	.mmap_free = vrdma_mmap_free,
	.modify_cq = vrdma_modify_cq,
	.modify_qp = vrdma_modify_qp,
	.modify_srq = vrdma_modify_srq,
	.poll_cq = vrdma_poll_cq,
	.post_recv = vrdma_post_recv,
	.post_send = vrdma_post_send,
	.post_srq_recv = vrdma_post_srq_recv,
	.query_ah = vrdma_query_ah,
	.query_device = vrdma_query_device,
	.query_pkey = vrdma_query_pkey,
	.query_port = vrdma_query_port,
	.query_qp = vrdma_query_qp,
	.query_ucontext = vrdma_query_ucontext,
	.query_srq = vrdma_query_srq,
	.reg_dm_mr = vrdma_reg_dm_mr,
	.reg_user_mr = vrdma_reg_user_mr,
	.reg_user_mr_dmabuf = vrdma_reg_user_mr_dmabuf,
	.req_notify_cq = vrdma_req_notify_cq,
	.rereg_user_mr = vrdma_rereg_user_mr,
	.VRDMA_RESIZE_CQ_OP = vrdma_resize_user_cq,

	INIT_RDMA_OBJ_SIZE(ib_ah, vrdma_ah, ibah),
	INIT_RDMA_OBJ_SIZE(ib_cq, vrdma_cq, ibcq),
	INIT_RDMA_OBJ_SIZE(ib_mw, vrdma_mw, ibmw),
	INIT_RDMA_OBJ_SIZE(ib_pd, vrdma_pd, ibpd),
	INIT_RDMA_OBJ_SIZE(ib_qp, vrdma_qp, ibqp),
	INIT_RDMA_OBJ_SIZE(ib_srq, vrdma_srq, ibsrq),
	INIT_RDMA_OBJ_SIZE(ib_ucontext, vrdma_ucontext, ibuc),
	INIT_RDMA_OBJ_SIZE(ib_xrcd, vrdma_xrcd, ibxrcd),
};
