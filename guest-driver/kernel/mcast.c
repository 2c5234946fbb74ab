// SPDX-License-Identifier: GPL-2.0
/*
 * Membership of datagram QPs in multicast groups. Where a datagram to a group goes is the
 * device's business; that the network's switches let it pass, the ib core's and the network
 * stack's. Everything here may sleep.
 */
#include "vrdma.h"

static int vrdma_mcast(struct ib_qp *ibqp, const union ib_gid *gid, u16 command)
{
	struct vrdma_hca *hca = to_vhca(ibqp->device);
	struct virtio_rdma_mcast_request request = {
		.qpn = cpu_to_le32(to_vqp(ibqp)->qpn),
	};

	if (!(hca->capabilities & VIRTIO_RDMA_CAP_MCAST))
		return -EOPNOTSUPP;
	memcpy(request.gid, gid->raw, sizeof(request.gid));
	return vrdma_command(hca->vd, command, &request, sizeof(request), NULL, 0);
}

int vrdma_attach_mcast(struct ib_qp *ibqp, union ib_gid *gid, u16 lid)
{
	return vrdma_mcast(ibqp, gid, VIRTIO_RDMA_CMD_ATTACH_MCAST);
}

/* A device that is gone has no members any more. */
int vrdma_detach_mcast(struct ib_qp *ibqp, union ib_gid *gid, u16 lid)
{
	int err = vrdma_mcast(ibqp, gid, VIRTIO_RDMA_CMD_DETACH_MCAST);

	return err == -ENODEV ? 0 : err;
}
