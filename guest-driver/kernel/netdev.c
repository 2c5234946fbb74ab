// SPDX-License-Identifier: GPL-2.0
/*
 * The network device whose addresses are the RDMA device's GIDs. It is the one with the MAC that
 * the device's configuration names; it may appear, change and go at any time. The ib core makes
 * GIDs of its addresses and hands them to vrdma_add_gid and vrdma_del_gid.
 */
#include <linux/etherdevice.h>
#include <linux/if_arp.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <rdma/ib_cache.h>

#include "vrdma.h"

static int vrdma_netdev_event(struct notifier_block *nb, unsigned long event, void *ptr);
static void vrdma_netdev_work(struct work_struct *work);
static void vrdma_netdev_set(struct vrdma_hca *hca, struct net_device *netdev);
static struct net_device *vrdma_netdev_find(const u8 *mac);
static bool vrdma_netdev_fits(struct net_device *netdev, const u8 *mac);

/* Follows the network device from here on. The RDMA device is registered. May sleep. */
int vrdma_netdev_start(struct vrdma_hca *hca)
{
	struct device *dev = &hca->vd->vdev->dev;
	int err;

	if (is_zero_ether_addr(hca->mac))
		dev_err(dev,
			"%s: no network device is paired with this device, so it has no GIDs and cannot connect: give vhost-user-rdma-pci the property mac= with the MAC of the VM's network device\n",
			dev_name(&hca->ibdev.dev));
	else if (!hca->netdev)
		dev_warn(dev,
			 "%s: there is no network device with MAC %pM here (yet), so no GIDs: load its driver, or give the VM a network device with this mac=\n",
			 dev_name(&hca->ibdev.dev), hca->mac);

	INIT_WORK(&hca->netdev_work, vrdma_netdev_work);
	hca->port_active = vrdma_netdev_running(hca);
	hca->netdev_nb.notifier_call = vrdma_netdev_event;
	err = register_netdevice_notifier(&hca->netdev_nb);
	if (err)
		hca->netdev_nb.notifier_call = NULL;
	return err;
}

/* Before the RDMA device is unregistered. May sleep. */
void vrdma_netdev_stop(struct vrdma_hca *hca)
{
	if (hca->netdev_nb.notifier_call)
		unregister_netdevice_notifier(&hca->netdev_nb);
	cancel_work_sync(&hca->netdev_work);
	vrdma_netdev_unbind(hca);
}

/* Looks for the network device, and binds the RDMA device to it. True if that changed. May sleep. */
bool vrdma_netdev_bind(struct vrdma_hca *hca)
{
	struct net_device *netdev;
	bool changed;

	rtnl_lock();
	netdev = hca->netdev;
	if (!netdev || !vrdma_netdev_fits(netdev, hca->mac))
		netdev = vrdma_netdev_find(hca->mac);
	dev_hold(netdev);
	rtnl_unlock();

	changed = netdev != hca->netdev;
	if (changed)
		vrdma_netdev_set(hca, netdev);
	dev_put(netdev);
	return changed;
}

void vrdma_netdev_unbind(struct vrdma_hca *hca)
{
	if (hca->netdev)
		vrdma_netdev_set(hca, NULL);
}

/* The network device is there, up, and has a carrier. Any context. */
bool vrdma_netdev_running(struct vrdma_hca *hca)
{
	unsigned long flags;
	bool running;

	spin_lock_irqsave(&hca->netdev_lock, flags);
	running = hca->netdev && netif_running(hca->netdev) && netif_carrier_ok(hca->netdev);
	spin_unlock_irqrestore(&hca->netdev_lock, flags);
	return running;
}

/* May sleep. */
int vrdma_add_gid(const struct ib_gid_attr *attr, void **context)
{
	struct vrdma_hca *hca = to_vhca(attr->device);
	struct virtio_rdma_add_gid_request request = {
		.index = cpu_to_le32(attr->index),
		.gid_type = VIRTIO_RDMA_GID_TYPE_ROCE_V2,
	};
	u16 vlan;
	int err;

	if (attr->gid_type != IB_GID_TYPE_ROCE_UDP_ENCAP)
		return -EOPNOTSUPP;
	err = rdma_read_gid_l2_fields(attr, &vlan, request.mac);
	if (err)
		return err;
	request.vlan = cpu_to_le16(vlan);
	memcpy(request.gid, attr->gid.raw, sizeof(request.gid));
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_ADD_GID, &request, sizeof(request), NULL, 0);
	if (err == -EPERM || err == -EBUSY)
		dev_err(&hca->vd->vdev->dev,
			"%s: the host refuses the GID %pI6c: another VM has it, or it is not in the list of GIDs that this VM may have\n",
			dev_name(&hca->ibdev.dev), attr->gid.raw);
	return err;
}

/* May sleep. */
int vrdma_del_gid(const struct ib_gid_attr *attr, void **context)
{
	return vrdma_destroy(to_vhca(attr->device)->vd, VIRTIO_RDMA_CMD_DEL_GID, attr->index);
}

/* Runs with the RTNL held, which the work needs: so it only asks for that. */
static int vrdma_netdev_event(struct notifier_block *nb, unsigned long event, void *ptr)
{
	struct vrdma_hca *hca = container_of(nb, struct vrdma_hca, netdev_nb);

	switch (event) {
	case NETDEV_REGISTER:
	case NETDEV_UNREGISTER:
	case NETDEV_UP:
	case NETDEV_DOWN:
	case NETDEV_CHANGE:
	case NETDEV_CHANGEADDR:
	case NETDEV_CHANGEUPPER:
		queue_work(hca->vd->wq, &hca->netdev_work);
		break;
	}
	return NOTIFY_DONE;
}

static void vrdma_netdev_work(struct work_struct *work)
{
	struct vrdma_hca *hca = container_of(work, struct vrdma_hca, netdev_work);
	bool active;

	if (vrdma_netdev_bind(hca)) {
		if (hca->netdev)
			dev_info(&hca->vd->vdev->dev, "%s: bound to %s\n",
				 dev_name(&hca->ibdev.dev), netdev_name(hca->netdev));
		else
			dev_warn(&hca->vd->vdev->dev,
				 "%s: the network device with MAC %pM is gone\n",
				 dev_name(&hca->ibdev.dev), hca->mac);
		/* The addresses that it already has. */
		rdma_roce_rescan_device(&hca->ibdev);
	}
	active = vrdma_netdev_running(hca);
	if (active != hca->port_active) {
		hca->port_active = active;
		vrdma_dispatch(hca->vd, active ? IB_EVENT_PORT_ACTIVE : IB_EVENT_PORT_ERR);
	}
}

static void vrdma_netdev_set(struct vrdma_hca *hca, struct net_device *netdev)
{
	struct net_device *old;

	dev_hold(netdev);
	spin_lock_irq(&hca->netdev_lock);
	old = hca->netdev;
	hca->netdev = netdev;
	spin_unlock_irq(&hca->netdev_lock);
	dev_put(old);
	ib_device_set_netdev(&hca->ibdev, netdev, 1);
}

/* With the RTNL held. */
static struct net_device *vrdma_netdev_find(const u8 *mac)
{
	struct net_device *netdev, *other = NULL;

	for_each_netdev(&init_net, netdev) {
		if (!vrdma_netdev_fits(netdev, mac))
			continue;
		/* A real device goes before a virtual one that was given the same MAC. */
		if (netdev->dev.parent)
			return netdev;
		if (!other)
			other = netdev;
	}
	return other;
}

/*
 * VLAN, bond, bridge and macvlan devices share the MAC of the device below them and are not
 * meant. A member of a bond may have lost its MAC to the bond, but not the permanent one.
 * With the RTNL held.
 */
static bool vrdma_netdev_fits(struct net_device *netdev, const u8 *mac)
{
	struct list_head *iter = &netdev->adj_list.lower;

	return netdev->reg_state == NETREG_REGISTERED && netdev->type == ARPHRD_ETHER &&
	       !is_zero_ether_addr(mac) &&
	       (ether_addr_equal(netdev->dev_addr, mac) ||
		ether_addr_equal(netdev->perm_addr, mac)) &&
	       !netdev_lower_get_next(netdev, &iter);
}
