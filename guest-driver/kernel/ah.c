// SPDX-License-Identifier: GPL-2.0
/*
 * Address vectors, and the table of address handles: memory that the device reads by itself, so
 * that a handle is made and ended without telling it. Only finding the table may sleep.
 */
#include <rdma/ib_cache.h>

#include "vrdma.h"

/* Handles at the most; the device may accept fewer. */
#define VRDMA_MAX_AHS 16384

/* Gives the device the table, if it sends datagrams. */
int vrdma_ahs_create(struct vrdma_hca *hca)
{
	struct virtio_rdma_set_ah_table_request request = {};
	struct vrdma_page_list list;
	int err;

	ida_init(&hca->ah_indices);
	if (!(hca->capabilities & VIRTIO_RDMA_CAP_UD))
		return 0;
	hca->num_ahs = min_t(u32, le32_to_cpu(hca->attr.max_ah), VRDMA_MAX_AHS);
	if (!hca->num_ahs)
		return -EPROTO;
	err = vrdma_buf_alloc(hca->vd, &hca->ah_table,
			      hca->num_ahs * sizeof(struct virtio_rdma_ah_entry));
	if (err)
		return err;
	err = vrdma_page_list_of_buf(hca->vd, &list, &hca->ah_table);
	if (err)
		goto err_free;
	request.entries = cpu_to_le32(hca->num_ahs);
	request.pages = list.wire;
	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_SET_AH_TABLE, &request, sizeof(request),
			    NULL, 0);
	vrdma_page_list_free(hca->vd, &list);
	if (err)
		goto err_free;
	return 0;

err_free:
	vrdma_ahs_free(hca);
	return err;
}

/* When the device reads the table no more. */
void vrdma_ahs_free(struct vrdma_hca *hca)
{
	if (hca->num_ahs)
		vrdma_buf_free(hca->vd, &hca->ah_table);
	hca->num_ahs = 0;
	ida_destroy(&hca->ah_indices);
}

/* Sleeps only if the flags allow it. */
int vrdma_create_ah(struct ib_ah *ibah, struct rdma_ah_init_attr *attr, struct ib_udata *udata)
{
	gfp_t gfp = attr->flags & RDMA_CREATE_AH_SLEEPABLE ? GFP_KERNEL : GFP_ATOMIC;
	struct vrdma_hca *hca = to_vhca(ibah->device);
	struct virtio_rdma_uresp_create_ah resp = {};
	struct virtio_rdma_ah_entry *entry;
	struct vrdma_ah *ah = to_vah(ibah);
	int err, index;

	err = vrdma_av_to_wire(attr->ah_attr, &ah->av);
	if (err)
		return err;
	if (!hca->num_ahs)
		return -EOPNOTSUPP;
	index = ida_alloc_max(&hca->ah_indices, hca->num_ahs - 1, gfp);
	if (index < 0)
		return -ENOMEM;
	ah->index = index;

	entry = (struct virtio_rdma_ah_entry *)hca->ah_table.va + index;
	entry->pdn = cpu_to_le32(to_vpd(ibah->pd)->pdn);
	entry->av = ah->av;
	/* The device takes an entry for what it is once the flag is there. */
	smp_store_release((__force u32 *)&entry->flags,
			  (__force u32)cpu_to_le32(VIRTIO_RDMA_AH_VALID));

	resp.ah = index;
	if (udata && udata->outlen) {
		err = ib_copy_to_udata(udata, &resp, min(sizeof(resp), udata->outlen));
		if (err) {
			vrdma_destroy_ah(ibah, 0);
			return err;
		}
	}
	return 0;
}

/* Never sleeps. */
int vrdma_destroy_ah(struct ib_ah *ibah, u32 flags)
{
	struct vrdma_hca *hca = to_vhca(ibah->device);
	struct virtio_rdma_ah_entry *entry;

	entry = (struct virtio_rdma_ah_entry *)hca->ah_table.va + to_vah(ibah)->index;
	WRITE_ONCE(entry->flags, 0);
	ida_free(&hca->ah_indices, to_vah(ibah)->index);
	return 0;
}

/* Never sleeps. */
int vrdma_query_ah(struct ib_ah *ibah, struct rdma_ah_attr *attr)
{
	vrdma_av_from_wire(ibah->device, &to_vah(ibah)->av, attr);
	return 0;
}

/* The core has found out the MAC of the next hop. */
int vrdma_av_to_wire(const struct rdma_ah_attr *ah, struct virtio_rdma_address_vector *av)
{
	const struct ib_global_route *grh = rdma_ah_read_grh(ah);
	u16 vlan = 0xffff;
	int err;

	if (ah->type != RDMA_AH_ATTR_TYPE_ROCE || !(rdma_ah_get_ah_flags(ah) & IB_AH_GRH) ||
	    !grh->sgid_attr)
		return -EINVAL;
	err = rdma_read_gid_l2_fields(grh->sgid_attr, &vlan, NULL);
	if (err)
		return err;
	memcpy(av->dgid, grh->dgid.raw, sizeof(av->dgid));
	av->sgid_index = cpu_to_le32(grh->sgid_attr->index);
	av->flow_label = cpu_to_le32(grh->flow_label & 0xfffff);
	memcpy(av->dmac, ah->roce.dmac, sizeof(av->dmac));
	av->vlan = cpu_to_le16(vlan);
	av->hop_limit = grh->hop_limit;
	av->traffic_class = grh->traffic_class;
	av->sl = rdma_ah_get_sl(ah);
	av->static_rate = rdma_ah_get_static_rate(ah);
	av->port = rdma_ah_get_port_num(ah);
	return 0;
}

void vrdma_av_from_wire(struct ib_device *ibdev,
			const struct virtio_rdma_address_vector *av,
			struct rdma_ah_attr *ah)
{
	memset(ah, 0, sizeof(*ah));
	ah->type = RDMA_AH_ATTR_TYPE_ROCE;
	rdma_ah_set_sl(ah, av->sl);
	rdma_ah_set_static_rate(ah, av->static_rate);
	rdma_ah_set_port_num(ah, av->port);
	rdma_ah_set_grh(ah, NULL, le32_to_cpu(av->flow_label), le32_to_cpu(av->sgid_index),
			av->hop_limit, av->traffic_class);
	memcpy(ah->grh.dgid.raw, av->dgid, sizeof(av->dgid));
	memcpy(ah->roce.dmac, av->dmac, sizeof(av->dmac));
}
