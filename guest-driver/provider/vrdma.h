/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The objects of the provider, and which file does what with them. Layouts shared with the device
 * are in virtio_rdma_abi.h, those shared with the kernel driver in virtio_rdma_uapi.h.
 */
#ifndef VRDMA_H
#define VRDMA_H

#include <infiniband/driver.h>
#include <pthread.h>

#include "lock.h"
#include "ring.h"
#include "virtio_rdma_uapi.h"

/* QPs are found by number in tables of 2^12 entries that are made when first needed. */
#define VRDMA_QP_TABLE_SHIFT 12
#define VRDMA_QP_TABLE_SIZE (1u << VRDMA_QP_TABLE_SHIFT)
/* QPNs have 24 bits (IBA 3.5.3). */
#define VRDMA_QPN_BITS 24

struct vrdma_qp;

struct vrdma_context {
	struct verbs_context ibv_ctx;
	/* What the kernel driver said: limits, sizes, number of vectors. */
	struct virtio_rdma_uresp_alloc_ucontext info;
	/* The UAR of this process, read and write. */
	void *uar;
	/* The status page of the device, read only. */
	const struct virtio_rdma_vector_status *status;
	/* The notify address of each vector's doorbell; NULL: ring by the ioctl method. */
	volatile uint16_t *doorbells[VIRTIO_RDMA_MAX_COMP_VECTORS];
	size_t page_size;
	/* Held while entries of the table change, and from a QP's end to its entry's. */
	pthread_mutex_t qp_table_mutex;
	/* Tables are never freed before the context is: whoever polls reads them without a lock. */
	_Atomic(struct vrdma_qp *) *_Atomic qp_tables[1u << (VRDMA_QPN_BITS - VRDMA_QP_TABLE_SHIFT)];
};

struct vrdma_cq {
	struct ibv_cq ibv_cq;
	struct vrdma_lock lock;
	struct vrdma_ring_cq ring;
	/* The QP of the last CQE polled, or NULL. */
	struct vrdma_qp *last_qp;
	uint32_t cqn;
	size_t buf_bytes;
};

struct vrdma_qp {
	struct verbs_qp vqp;
	/* Device line, send queue, receive queue. */
	char *buf;
	size_t buf_bytes;
	struct ibv_qp_cap cap;
	/* IBV_SEND_SIGNALED if every send WQE makes a completion (sq_sig_all), else 0. */
	uint8_t sq_flags;
	/* The VRDMA_OP_* that every request must have (wqe.h). */
	uint8_t transport_op;

	struct vrdma_lock sq_lock;
	struct vrdma_doorbell sq_doorbell;
	struct vrdma_wq sq;
	/* The batch of ibv_wr_*, under sq_lock: requests begun, the last of them, what went wrong. */
	uint32_t wr_count;
	uint32_t wr_low, wr_imm;
	uint8_t wr_op;
	int wr_err;
	struct virtio_rdma_send_wqe *wr_wqe;

	struct vrdma_lock rq_lock;
	struct vrdma_doorbell rq_doorbell;
	struct vrdma_wq rq;
};

struct vrdma_ah {
	struct ibv_ah ibv_ah;
	/* What a WQE names. */
	uint32_t index;
};

static inline struct vrdma_ah *to_vah(struct ibv_ah *ah)
{
	return container_of(ah, struct vrdma_ah, ibv_ah);
}

static inline struct vrdma_context *to_vctx(struct ibv_context *context)
{
	return container_of(context, struct vrdma_context, ibv_ctx.context);
}

static inline struct vrdma_cq *to_vcq(struct ibv_cq *cq)
{
	return container_of(cq, struct vrdma_cq, ibv_cq);
}

static inline struct vrdma_qp *to_vqp(struct ibv_qp *qp)
{
	return container_of(qp, struct vrdma_qp, vqp.qp);
}

static inline struct ibv_qp *vrdma_ibv_qp(struct vrdma_qp *qp)
{
	return &qp->vqp.qp;
}

/* provider.c: wakes the worker of `vector`. May make a system call. */
void vrdma_ring_doorbell(struct vrdma_context *ctx, uint32_t vector);

/* memory.c: zeroed pages for rings, which a fork does not take away. NULL and errno on failure. */
void *vrdma_alloc_pages(size_t bytes);
void vrdma_free_pages(void *pages, size_t bytes);

/* ah.c */
struct ibv_ah *vrdma_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr);
int vrdma_destroy_ah(struct ibv_ah *ah);

/* cq.c */
struct ibv_cq *vrdma_create_cq(struct ibv_context *context, int cqe,
			       struct ibv_comp_channel *channel, int comp_vector);
int vrdma_destroy_cq(struct ibv_cq *cq);
int vrdma_poll_cq(struct ibv_cq *cq, int num_entries, struct ibv_wc *wc);
int vrdma_req_notify_cq(struct ibv_cq *cq, int solicited_only);
/* Drops the CQEs of a QP that have not been polled. The caller holds the CQ's lock. */
void vrdma_cq_clean(struct vrdma_cq *cq, uint32_t qpn);

/* qp.c */
struct ibv_qp *vrdma_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr);
struct ibv_qp *vrdma_create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr);
int vrdma_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask);
int vrdma_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask,
		   struct ibv_qp_init_attr *init_attr);
int vrdma_destroy_qp(struct ibv_qp *qp);
/* The QP with that number, or NULL. What it points to lives while the lock of its CQ is held. */
struct vrdma_qp *vrdma_find_qp(struct vrdma_context *ctx, uint32_t qpn);
void vrdma_free_qp_tables(struct vrdma_context *ctx);

/* post.c */
int vrdma_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr);
int vrdma_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr);

/* wr.c: sets the functions of ibv_wr_*. */
void vrdma_wr_init(struct ibv_qp_ex *qp);

#endif
