// SPDX-License-Identifier: GPL-2.0
/*
 * Where the notify addresses of the doorbell queues lie in physical memory, so that uctx.c can
 * map them into processes. The virtio bus does not tell its drivers; for a PCI device it stands
 * in the capabilities of the PCI function (virtio 1.2, 4.1.4.4).
 */
#include <linux/pci.h>
#include <linux/virtio_pci.h>

#include "vrdma.h"

#ifdef CONFIG_PCI

/* A structure that a vendor capability of virtio points to. */
struct vrdma_pci_cap {
	int pos; /* in PCI configuration space */
	u8 bar;
	u32 offset;
	u32 length;
};

static bool vrdma_find_cap(struct pci_dev *pdev, u8 type, u32 least, struct vrdma_pci_cap *cap);
static int vrdma_read_notify_off(struct pci_dev *pdev, void __iomem *common, u16 queue);

/*
 * Fills in vrdma_vector.doorbell of all vectors, or of none. Mapped into processes are only
 * pages that belong to one queue. Called once, by probe: the core does not select queues in
 * the device's common configuration at that time.
 */
void vrdma_doorbells_find(struct vrdma_vdev *vd)
{
	struct vrdma_pci_cap notify, common;
	void __iomem *common_base;
	struct pci_dev *pdev;
	u32 multiplier, v;

	/* Doorbells are VRDMA_PAGE_SIZE apart in the provider's eyes. */
	if (!dev_is_pci(vd->vdev->dev.parent) || PAGE_SIZE != VRDMA_PAGE_SIZE)
		return;
	pdev = to_pci_dev(vd->vdev->dev.parent);

	if (!vrdma_find_cap(pdev, VIRTIO_PCI_CAP_NOTIFY_CFG, 2, &notify) ||
	    !vrdma_find_cap(pdev, VIRTIO_PCI_CAP_COMMON_CFG,
			    offsetofend(struct virtio_pci_common_cfg, queue_notify_off), &common))
		return;
	pci_read_config_dword(pdev,
			      notify.pos + offsetof(struct virtio_pci_notify_cap,
						    notify_off_multiplier),
			      &multiplier);
	if (multiplier < PAGE_SIZE || !PAGE_ALIGNED(multiplier)) {
		dev_info(&vd->vdev->dev,
			 "doorbells share a page and are not mapped into processes: start the VM with page-per-vq=on\n");
		return;
	}

	common_base = pci_iomap_range(pdev, common.bar, common.offset, common.length);
	if (!common_base)
		return;
	for (v = 0; v < vd->num_vectors; v++) {
		struct vrdma_vector *vec = &vd->vectors[v];
		int off = vrdma_read_notify_off(pdev, common_base, vec->doorbellq->index);
		u64 in_cap = (u64)max(off, 0) * multiplier;
		phys_addr_t addr = pci_resource_start(pdev, notify.bar) + notify.offset + in_cap;

		if (off < 0 || in_cap + PAGE_SIZE > notify.length || !PAGE_ALIGNED(addr))
			goto none;
		vec->doorbell = addr;
	}
	pci_iounmap(pdev, common_base);
	return;

none:
	dev_info(&vd->vdev->dev, "doorbell %u does not have a page of its own\n", v);
	for (v = 0; v < vd->num_vectors; v++)
		vd->vectors[v].doorbell = 0;
	pci_iounmap(pdev, common_base);
}

/* The first capability of the type whose structure is long enough and lies in a memory BAR. */
static bool vrdma_find_cap(struct pci_dev *pdev, u8 type, u32 least, struct vrdma_pci_cap *cap)
{
	int pos;
	u8 cfg_type;

	for (pos = pci_find_capability(pdev, PCI_CAP_ID_VNDR); pos > 0;
	     pos = pci_find_next_capability(pdev, pos, PCI_CAP_ID_VNDR)) {
		pci_read_config_byte(pdev, pos + offsetof(struct virtio_pci_cap, cfg_type),
				     &cfg_type);
		if (cfg_type != type)
			continue;
		cap->pos = pos;
		pci_read_config_byte(pdev, pos + offsetof(struct virtio_pci_cap, bar), &cap->bar);
		pci_read_config_dword(pdev, pos + offsetof(struct virtio_pci_cap, offset),
				      &cap->offset);
		pci_read_config_dword(pdev, pos + offsetof(struct virtio_pci_cap, length),
				      &cap->length);
		if (cap->bar < PCI_STD_NUM_BARS && cap->length >= least &&
		    (pci_resource_flags(pdev, cap->bar) & IORESOURCE_MEM) &&
		    (u64)cap->offset + cap->length <= pci_resource_len(pdev, cap->bar))
			return true;
	}
	return false;
}

/* The queue's queue_notify_off, or an error. */
static int vrdma_read_notify_off(struct pci_dev *pdev, void __iomem *common, u16 queue)
{
	iowrite16(queue, common + offsetof(struct virtio_pci_common_cfg, queue_select));
	if (ioread16(common + offsetof(struct virtio_pci_common_cfg, queue_select)) != queue)
		return -EIO;
	return ioread16(common + offsetof(struct virtio_pci_common_cfg, queue_notify_off));
}

#else

void vrdma_doorbells_find(struct vrdma_vdev *vd)
{
}

#endif
