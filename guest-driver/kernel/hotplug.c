// SPDX-License-Identifier: GPL-2.0
/*
 * The HCA behind the device comes and goes while the VM runs: this registers and unregisters the
 * RDMA device to match. What the device says in its configuration space is the truth; events
 * only say when to look.
 */
#include "vrdma.h"

#ifdef CONFIG_INFINIBAND_ON_DEMAND_PAGING
#define VRDMA_CAP_ON_DEMAND VIRTIO_RDMA_CAP_ON_DEMAND
#else
#define VRDMA_CAP_ON_DEMAND 0
#endif

/* What this driver can make use of. */
#define VRDMA_CAPABILITIES                                                                       \
	(VIRTIO_RDMA_CAP_UC | VIRTIO_RDMA_CAP_UD | VIRTIO_RDMA_CAP_SRQ |                         \
	 VIRTIO_RDMA_CAP_CQ_RESIZE | VIRTIO_RDMA_CAP_CQ_MODERATION | VIRTIO_RDMA_CAP_TIMESTAMP | \
	 VIRTIO_RDMA_CAP_FAST_REG | VIRTIO_RDMA_CAP_MW | VIRTIO_RDMA_CAP_REREG_MR |              \
	 VIRTIO_RDMA_CAP_MCAST | VIRTIO_RDMA_CAP_XRC | VIRTIO_RDMA_CAP_ATOMIC_WRITE |            \
	 VIRTIO_RDMA_CAP_FLUSH | VIRTIO_RDMA_CAP_LOCAL_DMA_LKEY |                                \
	 VIRTIO_RDMA_CAP_SRQ_RESIZE | VIRTIO_RDMA_CAP_DEVICE_MEMORY | VRDMA_CAP_ON_DEMAND)

static struct vrdma_hca *vrdma_register(struct vrdma_vdev *vd, u32 generation);
static int vrdma_init_hca(struct vrdma_hca *hca);
static int vrdma_check_attr(struct vrdma_hca *hca);
static void vrdma_unregister(struct vrdma_vdev *vd, bool lost);

/* Looks again whether there is an HCA. Any context. */
void vrdma_resync(struct vrdma_vdev *vd, bool stale)
{
	if (stale)
		WRITE_ONCE(vd->stale, true);
	queue_work(vd->wq, &vd->hotplug_work);
}

void vrdma_hotplug_work(struct work_struct *work)
{
	struct vrdma_vdev *vd = container_of(work, struct vrdma_vdev, hotplug_work);
	u32 generation;
	u8 present;

	mutex_lock(&vd->hotplug_lock);
	if (vd->leaving)
		goto out;

	virtio_cread_le(vd->vdev, struct virtio_rdma_config, hca_generation, &generation);
	virtio_cread(vd->vdev, struct virtio_rdma_config, hca_present, &present);

	if (vd->hca &&
	    (!present || generation != vd->hca->generation || READ_ONCE(vd->stale))) {
		dev_info(&vd->vdev->dev, "%s: the host has taken the HCA away\n",
			 dev_name(&vd->hca->ibdev.dev));
		/* Consumers learn that it failed before their remove is called. */
		vrdma_dispatch(vd, IB_EVENT_DEVICE_FATAL);
		vrdma_unregister(vd, true);
	}
	if (!vd->hca && !vrdma_is_gone(vd)) {
		struct vrdma_hca *hca = NULL;

		WRITE_ONCE(vd->stale, false);
		if (present)
			hca = vrdma_register(vd, generation);
		else
			dev_warn(&vd->vdev->dev,
				 "the host has no HCA for this device now: waiting for one (see the log of vhost-rdma)\n");
		if (IS_ERR(hca))
			dev_err(&vd->vdev->dev, "cannot register the RDMA device: %pe\n", hca);
	}
out:
	mutex_unlock(&vd->hotplug_lock);
}

/* For good: the driver leaves the device. */
void vrdma_hotplug_stop(struct vrdma_vdev *vd)
{
	mutex_lock(&vd->hotplug_lock);
	vd->leaving = true;
	mutex_unlock(&vd->hotplug_lock);
	cancel_work_sync(&vd->hotplug_work);
	if (vd->hca)
		vrdma_unregister(vd, vrdma_is_gone(vd));
}

/* Tells clients of the RDMA device of an event of the port or of the whole. Any context. */
void vrdma_dispatch(struct vrdma_vdev *vd, enum ib_event_type type)
{
	struct ib_event event = { .event = type };
	unsigned long flags;

	spin_lock_irqsave(&vd->hca_lock, flags);
	if (vd->hca) {
		event.device = &vd->hca->ibdev;
		event.element.port_num = 1;
		ib_dispatch_event(&event);
	}
	spin_unlock_irqrestore(&vd->hca_lock, flags);
}

static struct vrdma_hca *vrdma_register(struct vrdma_vdev *vd, u32 generation)
{
	struct vrdma_hca *hca;
	struct ib_device *ibdev;
	int err;

	hca = ib_alloc_device(vrdma_hca, ibdev);
	if (!hca)
		return ERR_PTR(-ENOMEM);
	hca->vd = vd;
	spin_lock_init(&hca->netdev_lock);
	hca->generation = generation;
	virtio_cread_bytes(vd->vdev, offsetof(struct virtio_rdma_config, mac), hca->mac,
			   sizeof(hca->mac));
	err = vrdma_init_hca(hca);
	if (err)
		goto err_dealloc;
	err = vrdma_uar_create(hca, &hca->uar, le32_to_cpu(hca->attr.max_qp));
	if (err)
		goto err_dealloc;
	err = vrdma_ahs_create(hca);
	if (err)
		goto err_uar;

	ibdev = &hca->ibdev;
	ibdev->node_type = RDMA_NODE_IB_CA;
	memcpy(&ibdev->node_guid, hca->attr.node_guid, sizeof(ibdev->node_guid));
	strscpy(ibdev->node_desc, "virtio RDMA", sizeof(ibdev->node_desc));
	ibdev->phys_port_cnt = 1;
	ibdev->num_comp_vectors = vd->num_vectors;
	ibdev->local_dma_lkey = VIRTIO_RDMA_LOCAL_DMA_LKEY;
	ibdev->use_cq_dim = !!(hca->capabilities & VIRTIO_RDMA_CAP_CQ_MODERATION);
	/* The virtio device, by whose modalias the provider in user space is found. */
	ibdev->dev.parent = &vd->vdev->dev;
	ib_set_device_ops(ibdev, &vrdma_device_ops);
	if (IS_ENABLED(CONFIG_INFINIBAND_USER_ACCESS))
		ibdev->driver_def = vrdma_uapi;

	vrdma_netdev_bind(hca);
	err = ib_register_device(ibdev, "virtio_rdma%d", vd->dma_dev);
	if (err)
		goto err_ahs;

	spin_lock_irq(&vd->hca_lock);
	vd->hca = hca;
	spin_unlock_irq(&vd->hca_lock);

	err = vrdma_netdev_start(hca);
	if (err) {
		vrdma_unregister(vd, false);
		return ERR_PTR(err);
	}
	dev_info(&vd->vdev->dev, "%s: HCA generation %u, %u completion vectors, doorbells %s\n",
		 dev_name(&ibdev->dev), generation, vd->num_vectors,
		 vd->vectors[0].doorbell ? "mapped" : "by system call");
	return hca;

err_ahs:
	vrdma_netdev_unbind(hca);
	vrdma_ahs_free(hca);
err_uar:
	vrdma_uar_destroy(hca, &hca->uar);
err_dealloc:
	ib_dealloc_device(&hca->ibdev);
	return ERR_PTR(err);
}

/* Makes the device forget what it may still have of us, and learns what it can do. */
static int vrdma_init_hca(struct vrdma_hca *hca)
{
	struct vrdma_vdev *vd = hca->vd;
	struct virtio_rdma_init_request init = {
		.abi_major = cpu_to_le16(VIRTIO_RDMA_ABI_MAJOR),
		.abi_minor = cpu_to_le16(VIRTIO_RDMA_ABI_MINOR),
		.num_comp_vectors = cpu_to_le32(vd->num_vectors),
		.status_page = cpu_to_le64(vd->status_dma),
		.capabilities = cpu_to_le64(VRDMA_CAPABILITIES),
	};
	struct virtio_rdma_init_answer answer;
	int err;

	memset(vd->status, 0, VRDMA_PAGE_SIZE);
	err = vrdma_command(vd, VIRTIO_RDMA_CMD_INIT, &init, sizeof(init), &answer,
			    sizeof(answer));
	if (err)
		return err;
	hca->max_slots = le32_to_cpu(answer.max_slots);
	hca->capabilities = le64_to_cpu(answer.capabilities);

	err = vrdma_command(vd, VIRTIO_RDMA_CMD_QUERY_DEVICE, NULL, 0, &hca->attr,
			    sizeof(hca->attr));
	if (err)
		return err;
	err = vrdma_command_number(vd, VIRTIO_RDMA_CMD_QUERY_PORT, 1, &hca->port,
				   sizeof(hca->port));
	if (err)
		return err;
	return vrdma_check_attr(hca);
}

/* The driver reckons with these; it does not trust them. */
static int vrdma_check_attr(struct vrdma_hca *hca)
{
	const struct virtio_rdma_device_attr *attr = &hca->attr;
	const u32 stride = 1 << VIRTIO_RDMA_WQE_STRIDE_SHIFT_MAX;
	const char *what = NULL;

	if (!(le64_to_cpu(attr->page_size_cap) & VRDMA_PAGE_SIZE))
		what = "page_size_cap";
	else if (!le32_to_cpu(attr->max_qp) || le32_to_cpu(attr->max_qp) > BIT(24))
		what = "max_qp";
	else if (le32_to_cpu(attr->max_send_sge) >
		 (stride - VIRTIO_RDMA_WQE_SEND_DATA) / sizeof(struct virtio_rdma_sge))
		what = "max_send_sge";
	else if (le32_to_cpu(attr->max_recv_sge) >
		 (stride - VIRTIO_RDMA_WQE_RECV_DATA) / sizeof(struct virtio_rdma_sge))
		what = "max_recv_sge";
	else if (le32_to_cpu(attr->max_inline) > stride - VIRTIO_RDMA_WQE_SEND_DATA)
		what = "max_inline";
	else if (!le32_to_cpu(attr->max_qp_wr) || le32_to_cpu(attr->max_qp_wr) > BIT(20))
		what = "max_qp_wr";
	else if (le32_to_cpu(attr->max_srq_wr) > BIT(20))
		what = "max_srq_wr";
	else if (le32_to_cpu(attr->max_srq_sge) >
		 (stride - VIRTIO_RDMA_WQE_RECV_DATA) / sizeof(struct virtio_rdma_sge))
		what = "max_srq_sge";
	else if (!le32_to_cpu(attr->max_cqe) || le32_to_cpu(attr->max_cqe) > BIT(24))
		what = "max_cqe";
	else if (!le32_to_cpu(hca->port.gid_tbl_len) ||
		 le32_to_cpu(hca->port.gid_tbl_len) > BIT(16))
		what = "gid_tbl_len";
	else if (!le16_to_cpu(hca->port.pkey_tbl_len))
		what = "pkey_tbl_len";
	if (!what)
		return 0;

	dev_err(&hca->vd->vdev->dev, "the device reports a %s out of range\n", what);
	return -EPROTO;
}

/*
 * Returns when no client, and no process, holds anything of it any more. `lost`: the device does nothing
 * for it any more.
 */
static void vrdma_unregister(struct vrdma_vdev *vd, bool lost)
{
	struct vrdma_hca *hca = vd->hca;

	spin_lock_irq(&vd->hca_lock);
	vd->hca = NULL;
	spin_unlock_irq(&vd->hca_lock);

	vrdma_netdev_stop(hca);
	if (lost)
		vrdma_flush_start(hca);
	ib_unregister_device(&hca->ibdev);
	/* Nothing is left that could be posted to. */
	cancel_work_sync(&vd->flush_work);
	vrdma_ahs_free(hca);
	vrdma_uar_destroy(hca, &hca->uar);
	ib_dealloc_device(&hca->ibdev);
}
