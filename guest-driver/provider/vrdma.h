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
	/* What the kernel driver said: limits, sizes, number of vectors, capabilities. */
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

/* A promise of the program: what belongs to it is used by one thread at a time. */
struct vrdma_td {
	struct ibv_td ibv_td;
	/* Parent domains that name it. */
	atomic_uint users;
};

/* A protection domain, or a parent domain: one with a view on another's. */
struct vrdma_pd {
	struct ibv_pd ibv_pd;
	/* Parent domains made of it, or memory that its allocator gave. */
	atomic_uint users;
	/* Of a parent domain: the protection domain, else NULL; and what it adds to that, or NULL. */
	struct vrdma_pd *protection_domain;
	struct vrdma_td *td;
	void *(*alloc)(struct ibv_pd *pd, void *pd_context, size_t size, size_t alignment,
		       uint64_t resource_type);
	void (*free)(struct ibv_pd *pd, void *pd_context, void *ptr, uint64_t resource_type);
	void *pd_context;
};

/* What a parent domain's allocators are told that memory is for. */
enum vrdma_resource {
	VRDMA_RESOURCE_QP = 1,
	VRDMA_RESOURCE_CQ = 2,
	VRDMA_RESOURCE_SRQ = 3,
};

/* Memory of rings. */
struct vrdma_buf {
	char *addr;
	size_t bytes;
	/* The parent domain whose allocator it is from; NULL: pages of our own. */
	struct vrdma_pd *parent;
	enum vrdma_resource resource;
};

/* One ring of a CQ. A CQ has another one after each resizing. */
struct vrdma_cq_ring {
	struct vrdma_ring_cq ring;
	struct vrdma_buf buf;
	/* The ring that is polled when `end` CQEs of this one have been; NULL: this is the newest. */
	struct vrdma_cq_ring *next;
	uint32_t end;
};

/* A walk along the CQEs of a CQ, under its lock: see poll.c. */
struct vrdma_poll {
	struct vrdma_cq_ring *ring;
	struct vrdma_give_back give;
	/* The next CQE, and the next one as far as the device knows. */
	uint32_t next, told;
	/* The last word of the CQE at hand. */
	uint64_t last;
};

struct vrdma_cq {
	union {
		struct verbs_cq vcq;
		struct ibv_cq ibv_cq;
	};
	struct vrdma_lock lock;
	/*
	 * The ring being polled, which who looks at without the lock may still do when it is not any
	 * more: so rings live as long as their CQ. All but the first are on the heap.
	 */
	struct vrdma_cq_ring *_Atomic current;
	struct vrdma_cq_ring *newest;
	struct vrdma_cq_ring first;
	/* The QP of the last CQE polled, or NULL. */
	struct vrdma_qp *last_qp;
	/* SRQs of XRC domains that complete here, for QPs that may be another process's. */
	uint32_t xrc_srqs;
	uint32_t cqn;
	/* Of ibv_start_poll: between its start and its end, and the CQE at hand. */
	struct vrdma_poll poll;
	const struct virtio_rdma_cqe *cqe;
};

struct vrdma_srq {
	struct verbs_srq vsrq;
	struct vrdma_buf buf;
	uint32_t max_sge;
	struct vrdma_lock lock;
	struct vrdma_doorbell doorbell;
	/* The device frees slots when it takes WQEs, and counts them in the buffer's first line. */
	struct vrdma_wq wq;
};

struct vrdma_qp {
	struct verbs_qp vqp;
	/* Device line, send queue, receive queue. */
	struct vrdma_buf buf;
	struct ibv_qp_cap cap;
	/* IBV_SEND_SIGNALED if every send WQE makes a completion (sq_sig_all), else 0. */
	uint8_t sq_flags;
	/* The VRDMA_OP_* that every request must have, and those that none may have (wqe.h). */
	uint16_t transport_op, refused_op;

	struct vrdma_lock sq_lock;
	struct vrdma_doorbell sq_doorbell;
	struct vrdma_wq sq;
	/* The batch of ibv_wr_*, under sq_lock: requests begun, the last of them, what went wrong. */
	uint32_t wr_count;
	uint32_t wr_low, wr_imm;
	uint16_t wr_op;
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

static inline struct vrdma_pd *to_vpd(struct ibv_pd *pd)
{
	return container_of(pd, struct vrdma_pd, ibv_pd);
}

static inline struct vrdma_cq *to_vcq(struct ibv_cq *cq)
{
	return container_of(cq, struct vrdma_cq, ibv_cq);
}

static inline struct vrdma_srq *to_vsrq(struct ibv_srq *srq)
{
	return container_of(srq, struct vrdma_srq, vsrq.srq);
}

static inline struct vrdma_qp *to_vqp(struct ibv_qp *qp)
{
	return container_of(qp, struct vrdma_qp, vqp.qp);
}

static inline struct ibv_qp *vrdma_ibv_qp(struct vrdma_qp *qp)
{
	return &qp->vqp.qp;
}

/* Whether driver and device have agreed on a VIRTIO_RDMA_CAP_*. */
static inline bool vrdma_has(const struct vrdma_context *ctx, uint64_t capability)
{
	return (ctx->info.capabilities & capability) != 0;
}

/* Whether the program says that what belongs to this PD is used by one thread at a time. */
static inline bool vrdma_single_threaded(struct ibv_pd *pd)
{
	return pd && to_vpd(pd)->td;
}

/* The smallest n with 2^n >= value, and n >= min. */
static inline uint8_t vrdma_shift_for(uint32_t value, uint8_t min)
{
	uint8_t shift = min;

	while (shift < 31 && (UINT32_C(1) << shift) < value)
		shift++;
	return shift;
}

/* Whether the UAR has a bit for that slot. */
static inline bool vrdma_slot_valid(const struct vrdma_context *ctx, uint32_t slot)
{
	return slot / 8 < ctx->info.uar_bytes - VIRTIO_RDMA_UAR_BITMAP_OFFSET;
}

/* provider.c: wakes the worker of `vector`. May make a system call. */
void vrdma_ring_doorbell(struct vrdma_context *ctx, uint32_t vector);

/* memory.c: zeroed pages for rings, which a fork does not take away. NULL and errno on failure. */
void *vrdma_alloc_pages(size_t bytes);
void vrdma_free_pages(void *pages, size_t bytes);
/*
 * The same in a buffer of at least `bytes`, by the allocators of `pd` if it is a parent domain that
 * has some. 0 or an errno. `pd` may be NULL.
 */
int vrdma_buf_alloc(struct vrdma_context *ctx, struct vrdma_buf *buf, size_t bytes,
		    struct ibv_pd *pd, enum vrdma_resource resource);
void vrdma_buf_free(struct vrdma_buf *buf);
/* The content is not needed any more, but it must go on being readable. */
void vrdma_buf_forget(struct vrdma_buf *buf);

/* pd.c */
struct ibv_pd *vrdma_alloc_pd(struct ibv_context *context);
struct ibv_pd *vrdma_alloc_parent_domain(struct ibv_context *context,
					 struct ibv_parent_domain_init_attr *attr);
int vrdma_dealloc_pd(struct ibv_pd *pd);
struct ibv_pd *vrdma_import_pd(struct ibv_context *context, uint32_t handle);
void vrdma_unimport_pd(struct ibv_pd *pd);
struct ibv_td *vrdma_alloc_td(struct ibv_context *context, struct ibv_td_init_attr *attr);
int vrdma_dealloc_td(struct ibv_td *td);
struct ibv_xrcd *vrdma_open_xrcd(struct ibv_context *context, struct ibv_xrcd_init_attr *attr);
int vrdma_close_xrcd(struct ibv_xrcd *xrcd);

/* mr.c: memory regions and windows. */
struct ibv_mr *vrdma_reg_mr(struct ibv_pd *pd, void *addr, size_t length, uint64_t hca_va,
			    int access);
struct ibv_mr *vrdma_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova,
				   int fd, int access);
int vrdma_advise_mr(struct ibv_pd *pd, enum ibv_advise_mr_advice advice, uint32_t flags,
		    struct ibv_sge *sg_list, uint32_t num_sge);
int vrdma_rereg_mr(struct verbs_mr *mr, int flags, struct ibv_pd *pd, void *addr, size_t length,
		   int access);
int vrdma_dereg_mr(struct verbs_mr *mr);
struct ibv_mr *vrdma_import_mr(struct ibv_pd *pd, uint32_t handle);
void vrdma_unimport_mr(struct ibv_mr *mr);
struct ibv_mw *vrdma_alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type);
int vrdma_dealloc_mw(struct ibv_mw *mw);
int vrdma_bind_mw(struct ibv_qp *qp, struct ibv_mw *mw, struct ibv_mw_bind *bind);

/* dm.c */
struct ibv_dm *vrdma_alloc_dm(struct ibv_context *context, struct ibv_alloc_dm_attr *attr);
int vrdma_free_dm(struct ibv_dm *dm);
struct ibv_dm *vrdma_import_dm(struct ibv_context *context, uint32_t handle);
void vrdma_unimport_dm(struct ibv_dm *dm);
struct ibv_mr *vrdma_reg_dm_mr(struct ibv_pd *pd, struct ibv_dm *dm, uint64_t offset, size_t length,
			       unsigned int access);

/* ah.c */
struct ibv_ah *vrdma_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr);
int vrdma_destroy_ah(struct ibv_ah *ah);

/* cq.c */
struct ibv_cq *vrdma_create_cq(struct ibv_context *context, int cqe,
			       struct ibv_comp_channel *channel, int comp_vector);
struct ibv_cq_ex *vrdma_create_cq_ex(struct ibv_context *context, struct ibv_cq_init_attr_ex *attr);
int vrdma_resize_cq(struct ibv_cq *cq, int cqe);
int vrdma_modify_cq(struct ibv_cq *cq, struct ibv_modify_cq_attr *attr);
int vrdma_destroy_cq(struct ibv_cq *cq);
/* Drops the CQEs of a QP that have not been polled. The caller holds the CQ's lock. */
void vrdma_cq_clean(struct vrdma_cq *cq, uint32_t qpn);
/* Goes to the next ring if the current one has come to its end. Likewise. */
void vrdma_cq_next_ring(struct vrdma_cq *cq);

/* poll.c */
int vrdma_poll_cq(struct ibv_cq *cq, int num_entries, struct ibv_wc *wc);
int vrdma_req_notify_cq(struct ibv_cq *cq, int solicited_only);
/* Sets the functions of ibv_start_poll and those that read what `wc_flags` asks for. */
void vrdma_cq_ex_init(struct ibv_cq_ex *cq, uint64_t wc_flags);

/* srq.c */
struct ibv_srq *vrdma_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr);
struct ibv_srq *vrdma_create_srq_ex(struct ibv_context *context, struct ibv_srq_init_attr_ex *attr);
int vrdma_modify_srq(struct ibv_srq *srq, struct ibv_srq_attr *attr, int attr_mask);
int vrdma_query_srq(struct ibv_srq *srq, struct ibv_srq_attr *attr);
int vrdma_destroy_srq(struct ibv_srq *srq);
int vrdma_get_srq_num(struct ibv_srq *srq, uint32_t *number);
int vrdma_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr);

/* qp.c */
struct ibv_qp *vrdma_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr);
struct ibv_qp *vrdma_create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr);
struct ibv_qp *vrdma_open_qp(struct ibv_context *context, struct ibv_qp_open_attr *attr);
int vrdma_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask);
int vrdma_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask,
		   struct ibv_qp_init_attr *init_attr);
int vrdma_destroy_qp(struct ibv_qp *qp);

/* qp_table.c: the QP with that number, or NULL. It lives while the lock of its CQ is held. */
struct vrdma_qp *vrdma_find_qp(struct vrdma_context *ctx, uint32_t qpn);
/* Makes `qp` (or nothing: NULL) what that number names. The caller holds the table's mutex. */
int vrdma_set_qp(struct vrdma_context *ctx, uint32_t qpn, struct vrdma_qp *qp);
void vrdma_free_qp_tables(struct vrdma_context *ctx);

/* post.c */
int vrdma_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr);
int vrdma_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr);

/* wr.c: sets the functions of ibv_wr_*. */
void vrdma_wr_init(struct ibv_qp_ex *qp);

#endif
