// SPDX-License-Identifier: GPL-2.0
/*
 * What `rdma resource show -dd` tells of objects beyond what the ib core knows: the device's
 * numbers, by which its log names them, and how full the kernel's rings are.
 */
#include <net/netlink.h>
#include <rdma/rdma_netlink.h>
#include <rdma/restrack.h>

#include "vrdma.h"

static int vrdma_fill_ring(struct sk_buff *msg, const char *size, const char *posted,
			   const char *freed, const struct vrdma_ring *ring);
static int vrdma_close(struct sk_buff *msg, struct nlattr *table, int err);

int vrdma_fill_mr(struct sk_buff *msg, struct ib_mr *ibmr)
{
	struct nlattr *table = nla_nest_start(msg, RDMA_NLDEV_ATTR_DRIVER);
	struct vrdma_mr *mr = to_vmr(ibmr);
	int err;

	if (!table)
		return -EMSGSIZE;
	err = rdma_nl_put_driver_u32(msg, "mrn", mr->mrn);
	if (!err && mr->max_pages)
		err = rdma_nl_put_driver_u32(msg, "max_pages", mr->max_pages);
	return vrdma_close(msg, table, err);
}

int vrdma_fill_cq(struct sk_buff *msg, struct ib_cq *ibcq)
{
	struct nlattr *table = nla_nest_start(msg, RDMA_NLDEV_ATTR_DRIVER);
	struct vrdma_cq *cq = to_vcq(ibcq);
	int err;

	if (!table)
		return -EMSGSIZE;
	err = rdma_nl_put_driver_u32_hex(msg, "cqn", cq->cqn);
	/* Of the memory of a process only that process knows. */
	if (!err && !cq->umem)
		err = rdma_nl_put_driver_u32(msg, "polled", READ_ONCE(cq->consumer));
	return vrdma_close(msg, table, err);
}

int vrdma_fill_qp(struct sk_buff *msg, struct ib_qp *ibqp)
{
	struct nlattr *table = nla_nest_start(msg, RDMA_NLDEV_ATTR_DRIVER);
	struct vrdma_qp *qp = to_vqp(ibqp);
	int err;

	if (!table)
		return -EMSGSIZE;
	err = rdma_nl_put_driver_u32(msg, "slot", qp->slot);
	if (!err && !vrdma_is_user_qp(qp))
		err = vrdma_fill_ring(msg, "sq_entries", "sq_posted", "sq_freed", &qp->sq);
	if (!err && !vrdma_is_user_qp(qp) && !ibqp->srq)
		err = vrdma_fill_ring(msg, "rq_entries", "rq_posted", "rq_freed", &qp->rq);
	return vrdma_close(msg, table, err);
}

#ifdef VRDMA_HAVE_FILL_SRQ
int vrdma_fill_srq(struct sk_buff *msg, struct ib_srq *ibsrq)
{
	struct nlattr *table = nla_nest_start(msg, RDMA_NLDEV_ATTR_DRIVER);
	struct vrdma_srq *srq = to_vsrq(ibsrq);
	int err;

	if (!table)
		return -EMSGSIZE;
	err = rdma_nl_put_driver_u32_hex(msg, "srqn", srq->srqn);
	if (!err && !srq->umem)
		err = vrdma_fill_ring(msg, "entries", "posted", "freed", &srq->ring);
	return vrdma_close(msg, table, err);
}
#endif

static int vrdma_fill_ring(struct sk_buff *msg, const char *size, const char *posted,
			   const char *freed, const struct vrdma_ring *ring)
{
	if (rdma_nl_put_driver_u32(msg, size, ring->entries) ||
	    rdma_nl_put_driver_u32(msg, posted, READ_ONCE(ring->posted)) ||
	    rdma_nl_put_driver_u32(msg, freed, READ_ONCE(ring->freed)))
		return -EMSGSIZE;
	return 0;
}

static int vrdma_close(struct sk_buff *msg, struct nlattr *table, int err)
{
	if (err) {
		nla_nest_cancel(msg, table);
		return -EMSGSIZE;
	}
	nla_nest_end(msg, table);
	return 0;
}
