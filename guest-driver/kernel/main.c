// SPDX-License-Identifier: GPL-2.0
/*
 * The virtio driver: probe and remove, virtqueues, and what is done with a device that is broken.
 * The RDMA device on top comes and goes in hotplug.c.
 */
#include <linux/dma-mapping.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/pci.h>

#include "vrdma.h"

/* What stands before the vectors' queues. */
#define VRDMA_FIRST_QUEUES VIRTIO_RDMA_QUEUE_COMP_FIRST

static int vrdma_check_addresses(struct vrdma_vdev *vd);
static int vrdma_status_page_alloc(struct vrdma_vdev *vd);
static void vrdma_status_page_free(struct vrdma_vdev *vd);
static int vrdma_setup_queues(struct vrdma_vdev *vd);
static void vrdma_reset(struct vrdma_vdev *vd);
static bool vrdma_is_present(struct vrdma_vdev *vd);

static int vrdma_probe(struct virtio_device *vdev)
{
	struct vrdma_vdev *vd;
	u16 major, vectors;
	int err;
	u32 v;

	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev,
			"the device offers no VIRTIO_F_VERSION_1: legacy virtio is not supported, start the VM without disable-modern=on\n");
		return -EINVAL;
	}

	virtio_cread_le(vdev, struct virtio_rdma_config, abi_major, &major);
	if (major != VIRTIO_RDMA_ABI_MAJOR) {
		dev_err(&vdev->dev,
			"the device speaks version %u of the interface, this driver version %u: install the %s that fits the other\n",
			major, VIRTIO_RDMA_ABI_MAJOR,
			major > VIRTIO_RDMA_ABI_MAJOR ? "driver" : "vhost-rdma");
		return -EPROTONOSUPPORT;
	}
	virtio_cread_le(vdev, struct virtio_rdma_config, num_comp_vectors, &vectors);
	if (!vectors || vectors > VIRTIO_RDMA_MAX_COMP_VECTORS) {
		dev_err(&vdev->dev, "the device has %u completion vectors, not 1 to %u\n", vectors,
			VIRTIO_RDMA_MAX_COMP_VECTORS);
		return -EPROTO;
	}

	vd = kzalloc(sizeof(*vd), GFP_KERNEL);
	if (!vd)
		return -ENOMEM;
	vdev->priv = vd;
	vd->vdev = vdev;
	vd->dma_dev = vdev->dev.parent;
	vd->num_vectors = min_t(u32, vectors, num_online_cpus());
	vrdma_control_init(&vd->control);
	INIT_WORK(&vd->event_work, vrdma_event_work);
	INIT_WORK(&vd->hotplug_work, vrdma_hotplug_work);
	INIT_WORK(&vd->flush_work, vrdma_flush_work);
	mutex_init(&vd->hotplug_lock);
	mutex_init(&vd->broken_lock);
	spin_lock_init(&vd->hca_lock);
	xa_init_flags(&vd->cqs, XA_FLAGS_LOCK_IRQ);
	xa_init_flags(&vd->qps, XA_FLAGS_LOCK_IRQ);
	xa_init_flags(&vd->srqs, XA_FLAGS_LOCK_IRQ);
	xa_init_flags(&vd->odp_mrs, XA_FLAGS_LOCK_IRQ);
	xa_init_flags(&vd->odp_keys, XA_FLAGS_LOCK_IRQ);

	err = vrdma_check_addresses(vd);
	if (err)
		goto err_free;
	err = vrdma_status_page_alloc(vd);
	if (err)
		goto err_free;
	vd->wq = alloc_workqueue("virtio_rdma", WQ_UNBOUND, 0);
	if (!vd->wq) {
		err = -ENOMEM;
		goto err_status;
	}
	err = vrdma_setup_queues(vd);
	if (err)
		goto err_wq;
	err = vrdma_events_start(vd);
	if (err)
		goto err_queues;

	virtio_device_ready(vdev);
	virtqueue_kick(vd->eventq);
	for (v = 0; v < vd->num_vectors; v++)
		virtqueue_kick(vd->vectors[v].compq);
	vrdma_doorbells_find(vd);

	/* Without an HCA the device stays and waits for one. */
	vrdma_hotplug_work(&vd->hotplug_work);
	if (vrdma_is_gone(vd)) {
		err = -EIO;
		goto err_started;
	}
	return 0;

err_started:
	vrdma_hotplug_stop(vd);
	vrdma_reset(vd);
	vrdma_events_cancel(vd);
	vrdma_control_fail_all(vd);
err_queues:
	vrdma_events_stop(vd);
	vdev->config->del_vqs(vdev);
	vrdma_events_free(vd);
	kfree(vd->vectors);
err_wq:
	destroy_workqueue(vd->wq);
err_status:
	vrdma_status_page_free(vd);
err_free:
	kfree(vd);
	return err;
}

/* Also when the device has been pulled out: then all commands fail at once. */
static void vrdma_remove(struct virtio_device *vdev)
{
	struct vrdma_vdev *vd = vdev->priv;

	vrdma_hotplug_stop(vd);
	vrdma_reset(vd);
	vrdma_events_cancel(vd);
	vrdma_control_fail_all(vd);
	vrdma_events_stop(vd);
	vdev->config->del_vqs(vdev);
	vrdma_events_free(vd);
	destroy_workqueue(vd->wq);
	WARN_ON(!xa_empty(&vd->cqs));
	WARN_ON(!xa_empty(&vd->qps));
	WARN_ON(!xa_empty(&vd->srqs));
	WARN_ON(!xa_empty(&vd->odp_mrs));
	WARN_ON(!xa_empty(&vd->odp_keys));
	vrdma_status_page_free(vd);
	kfree(vd->vectors);
	kfree(vd);
}

static void vrdma_config_changed(struct virtio_device *vdev)
{
	struct vrdma_vdev *vd = vdev->priv;

	if (vd)
		vrdma_resync(vd, false);
}

/* The device will not answer: it was pulled out, or declared broken. */
bool vrdma_is_gone(struct vrdma_vdev *vd)
{
	return READ_ONCE(vd->broken) || virtqueue_is_broken(vd->control.vq);
}

/*
 * Resets a device that cannot be worked with any more. When this returns, all commands have
 * ended, and the device does not touch memory. May sleep.
 */
void vrdma_declare_broken(struct vrdma_vdev *vd, const char *why)
{
	bool first = false;

	mutex_lock(&vd->broken_lock);
	if (!vd->broken) {
		first = true;
		WRITE_ONCE(vd->broken, true);
		vrdma_reset(vd);
		vrdma_control_fail_all(vd);
	}
	mutex_unlock(&vd->broken_lock);

	/* When the machine goes down, the virtio core breaks all devices. */
	if (!first || system_state != SYSTEM_RUNNING)
		return;
	if (vrdma_is_present(vd))
		dev_err(&vd->vdev->dev,
			"the device was reset, since %s: see the log of vhost-rdma, then unbind and bind the driver\n",
			why);
	else
		dev_err(&vd->vdev->dev, "the device was pulled out\n");
	vrdma_dispatch(vd, IB_EVENT_DEVICE_FATAL);
	vrdma_dispatch(vd, IB_EVENT_PORT_ERR);
}

/*
 * The device is told addresses of memory. Without VIRTIO_F_ACCESS_PLATFORM it takes them for
 * physical ones, so refuse where DMA addresses are something else.
 */
static int vrdma_check_addresses(struct vrdma_vdev *vd)
{
	struct page *page;
	dma_addr_t dma;
	int err;

	err = dma_set_mask_and_coherent(vd->dma_dev, DMA_BIT_MASK(64));
	if (err) {
		dev_err(&vd->vdev->dev, "no 64-bit DMA: %d\n", err);
		return err;
	}
	if (virtio_has_feature(vd->vdev, VIRTIO_F_ACCESS_PLATFORM))
		return 0;

	page = alloc_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	dma = dma_map_page(vd->dma_dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
	if (dma_mapping_error(vd->dma_dev, dma)) {
		err = -ENOMEM;
	} else {
		if (dma != page_to_phys(page)) {
			dev_err(&vd->vdev->dev,
				"an IOMMU or bounce buffers (swiotlb) stand between this device and memory, and it does not offer VIRTIO_F_ACCESS_PLATFORM: boot with iommu=pt, or without the virtual IOMMU or memory encryption\n");
			err = -EOPNOTSUPP;
		}
		dma_unmap_page(vd->dma_dev, dma, PAGE_SIZE, DMA_BIDIRECTIONAL);
	}
	__free_page(page);
	return err;
}

static int vrdma_status_page_alloc(struct vrdma_vdev *vd)
{
	BUILD_BUG_ON(VIRTIO_RDMA_MAX_COMP_VECTORS * sizeof(*vd->status) > VRDMA_PAGE_SIZE);

	vd->status = (void *)get_zeroed_page(GFP_KERNEL);
	if (!vd->status)
		return -ENOMEM;
	vd->status_dma = dma_map_page(vd->dma_dev, virt_to_page(vd->status), 0, PAGE_SIZE,
				      DMA_BIDIRECTIONAL);
	if (dma_mapping_error(vd->dma_dev, vd->status_dma)) {
		free_page((unsigned long)vd->status);
		return -ENOMEM;
	}
	return 0;
}

static void vrdma_status_page_free(struct vrdma_vdev *vd)
{
	dma_unmap_page(vd->dma_dev, vd->status_dma, PAGE_SIZE, DMA_BIDIRECTIONAL);
	free_page((unsigned long)vd->status);
}

static int vrdma_setup_queues(struct vrdma_vdev *vd)
{
	unsigned int n = VRDMA_FIRST_QUEUES + 2 * vd->num_vectors;
	vq_callback_t **callbacks;
	struct virtqueue **vqs;
	const char **names;
	int err = -ENOMEM;
	u32 v;

	vqs = kcalloc(n, sizeof(*vqs), GFP_KERNEL);
	callbacks = kcalloc(n, sizeof(*callbacks), GFP_KERNEL);
	names = kcalloc(n, sizeof(*names), GFP_KERNEL);
	vd->vectors = kcalloc(vd->num_vectors, sizeof(*vd->vectors), GFP_KERNEL);
	if (!vqs || !callbacks || !names || !vd->vectors)
		goto out;

	callbacks[VIRTIO_RDMA_QUEUE_CONTROL] = vrdma_control_callback;
	names[VIRTIO_RDMA_QUEUE_CONTROL] = "control";
	callbacks[VIRTIO_RDMA_QUEUE_EVENT] = vrdma_eventq_callback;
	names[VIRTIO_RDMA_QUEUE_EVENT] = "event";
	for (v = 0; v < vd->num_vectors; v++) {
		struct vrdma_vector *vec = &vd->vectors[v];

		vec->vd = vd;
		spin_lock_init(&vec->lock);
		INIT_WORK(&vec->work, vrdma_compq_work);
		snprintf(vec->compq_name, sizeof(vec->compq_name), "comp.%u", v);
		snprintf(vec->doorbellq_name, sizeof(vec->doorbellq_name), "doorbell.%u", v);
		callbacks[VIRTIO_RDMA_QUEUE_COMP_FIRST + 2 * v] = vrdma_compq_callback;
		names[VIRTIO_RDMA_QUEUE_COMP_FIRST + 2 * v] = vec->compq_name;
		/* No callback: nothing is ever put into it. */
		names[VIRTIO_RDMA_QUEUE_DOORBELL_FIRST + 2 * v] = vec->doorbellq_name;
	}

	err = vrdma_find_vqs(vd->vdev, n, vqs, callbacks, names);
	if (err) {
		dev_err(&vd->vdev->dev, "no %u virtqueues: %d\n", n, err);
		goto out;
	}
	vd->control.vq = vqs[VIRTIO_RDMA_QUEUE_CONTROL];
	vd->eventq = vqs[VIRTIO_RDMA_QUEUE_EVENT];
	for (v = 0; v < vd->num_vectors; v++) {
		vd->vectors[v].compq = vqs[VIRTIO_RDMA_QUEUE_COMP_FIRST + 2 * v];
		vd->vectors[v].doorbellq = vqs[VIRTIO_RDMA_QUEUE_DOORBELL_FIRST + 2 * v];
	}
out:
	if (err) {
		kfree(vd->vectors);
		vd->vectors = NULL;
	}
	kfree(names);
	kfree(callbacks);
	kfree(vqs);
	return err;
}

/*
 * No callback of a virtqueue begins after this; its queues are of no further use. A device that
 * was pulled out has no status register left that could be waited for.
 */
static void vrdma_reset(struct vrdma_vdev *vd)
{
	virtio_break_device(vd->vdev);
	if (vrdma_is_present(vd))
		virtio_reset_device(vd->vdev);
}

static bool vrdma_is_present(struct vrdma_vdev *vd)
{
#ifdef CONFIG_PCI
	if (dev_is_pci(vd->dma_dev))
		return pci_device_is_present(to_pci_dev(vd->dma_dev));
#endif
	return true;
}

static const struct virtio_device_id vrdma_id_table[] = {
	{ VIRTIO_RDMA_DEVICE_ID, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, vrdma_id_table);

static struct virtio_driver vrdma_driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
	.id_table = vrdma_id_table,
	.probe = vrdma_probe,
	.remove = vrdma_remove,
	.config_changed = vrdma_config_changed,
};
module_virtio_driver(vrdma_driver);

MODULE_DESCRIPTION("RDMA device of a virtual machine (virtio device ID 42)");
MODULE_AUTHOR("The vhost-rdma authors");
MODULE_LICENSE("GPL");
