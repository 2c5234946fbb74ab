// SPDX-License-Identifier: GPL-2.0
/*
 * Counters of the device, as hw_counters of its port.
 */
#include "vrdma.h"

/* In the order of struct virtio_rdma_counters. */
static const struct rdma_stat_desc vrdma_stat_descs[] = {
	{ .name = "doorbell_kicks" },	 { .name = "send_wqes" },
	{ .name = "recv_wqes" },	 { .name = "completions" },
	{ .name = "cq_events" },	 { .name = "cq_interrupts" },
	{ .name = "worker_sleeps" },	 { .name = "tx_bytes" },
	{ .name = "rx_bytes" },		 { .name = "rnr_naks" },
	{ .name = "error_completions" }, { .name = "guest_errors" },
	{ .name = "duplicate_request" }, { .name = "out_of_seq_request" },
	{ .name = "rcvd_seq_err" },	 { .name = "rcvd_rnr_err" },
	{ .name = "retry_exceeded_err" }, { .name = "retry_rnr_exceeded_err" },
	{ .name = "rdma_sends" },	 { .name = "rdma_recvs" },
	{ .name = "bad_pkey" },		 { .name = "qkey_viol" },
	{ .name = "qp_moves" },
};

struct rdma_hw_stats *vrdma_alloc_hw_port_stats(struct ib_device *ibdev, u32 port)
{
	return rdma_alloc_hw_stats_struct(vrdma_stat_descs, ARRAY_SIZE(vrdma_stat_descs),
					  RDMA_HW_STATS_DEFAULT_LIFESPAN);
}

/* May sleep. */
int vrdma_get_hw_stats(struct ib_device *ibdev, struct rdma_hw_stats *stats, u32 port, int index)
{
	__le64 counters[ARRAY_SIZE(vrdma_stat_descs)];
	unsigned int i;
	int err;

	BUILD_BUG_ON(sizeof(counters) != sizeof(struct virtio_rdma_counters));
	err = vrdma_command(to_vhca(ibdev)->vd, VIRTIO_RDMA_CMD_QUERY_COUNTERS, NULL, 0, counters,
			    sizeof(counters));
	if (err)
		return err;
	for (i = 0; i < ARRAY_SIZE(counters); i++)
		stats->value[i] = le64_to_cpu(counters[i]);
	return ARRAY_SIZE(counters);
}
