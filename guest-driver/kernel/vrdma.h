/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The driver's own types, and what its files offer each other. The layouts shared with the device
 * are in virtio_rdma_abi.h, those shared with the provider in virtio_rdma_uapi.h.
 *
 * Two lifetimes: a vrdma_vdev lives as long as the virtio device is bound, a vrdma_hca as long as
 * the host has an HCA behind it (hotplug.c).
 */
#ifndef VRDMA_H
#define VRDMA_H

#include <linux/completion.h>
#include <linux/idr.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>
#include <rdma/ib_umem.h>
#include <rdma/ib_verbs.h>

#include "compat.h"
#include "virtio_rdma_abi.h"
#include "virtio_rdma_uapi.h"

/* A page in the sense of the device's page lists, whatever PAGE_SIZE is. */
#define VRDMA_PAGE_SHIFT 12
#define VRDMA_PAGE_SIZE (1UL << VRDMA_PAGE_SHIFT)

/* control.c: the control virtqueue. */
struct vrdma_control {
	struct virtqueue *vq;
	spinlock_t lock; /* of vq and sequence; taken in interrupts */
	u32 sequence;
	wait_queue_head_t room; /* waiters for free descriptors */
};

/* One completion vector. */
struct vrdma_vector {
	struct virtqueue *compq;
	struct virtqueue *doorbellq;
	struct vrdma_vdev *vd;
	spinlock_t lock; /* of compq; taken in interrupts */
	struct work_struct work; /* goes on where an interrupt has done its share */
	struct virtio_rdma_comp_event *events; /* buffers of compq */
	u32 num_events;
	phys_addr_t doorbell; /* of the notify page, or 0 when it can't be mapped */
	char compq_name[16];
	char doorbellq_name[20];
};

/* A virtio device with ID 42. */
struct vrdma_vdev {
	struct virtio_device *vdev;
	struct device *dma_dev;
	struct vrdma_control control;

	struct virtqueue *eventq;
	struct virtio_rdma_async_event *events; /* buffers of eventq */
	struct work_struct event_work;

	struct vrdma_vector *vectors;
	u32 num_vectors;

	struct virtio_rdma_vector_status *status; /* one page, written by the device */
	dma_addr_t status_dma;

	struct workqueue_struct *wq;
	struct work_struct hotplug_work;
	struct work_struct flush_work; /* work was posted to an HCA that has gone */
	struct mutex hotplug_lock; /* of registering and unregistering the HCA, and `leaving` */
	bool leaving; /* remove has begun */
	bool stale; /* the device forgot us: register anew */

	struct mutex broken_lock; /* one declares it broken, others wait for the reset */
	bool broken; /* it was reset and does not touch memory any more */

	spinlock_t hca_lock; /* of `hca`; taken in interrupts */
	struct vrdma_hca *hca; /* the registered one */

	struct xarray cqs; /* by CQN; its lock is taken in interrupts */
	struct xarray qps; /* by QPN; likewise */
	struct xarray srqs; /* by SRQN; likewise */
	struct xarray odp_mrs; /* those with `odp`, by MRN; likewise */
	struct xarray odp_keys; /* and by key */
};

/* A user access region: where pending work is shown (uctx.c). Kernel QPs share one. */
struct vrdma_uar {
	struct page *pages; /* contiguous */
	unsigned int order;
	dma_addr_t dma;
	u32 num_slots;
	u32 uarn;
	struct ida slots;
};

/* A buffer in kernel memory, of pages that need not be contiguous (pages.c). */
struct vrdma_buf {
	u32 num_pages;
	struct page **pages;
	dma_addr_t *dma;
	void *va;
};

/* An HCA behind the device: one ib_device. */
struct vrdma_hca {
	struct ib_device ibdev;
	struct vrdma_vdev *vd;
	u32 generation;
	bool gone; /* flush.c completes the work of kernel QPs */
	u32 max_slots; /* of all UARs together */
	atomic_t slots; /* of the UARs that there are */
	u64 capabilities; /* agreed in INIT */
	struct virtio_rdma_device_attr attr;
	struct virtio_rdma_port_attr port;
	struct vrdma_uar uar;

	struct vrdma_buf ah_table; /* read by the device */
	u32 num_ahs; /* entries of the table, or 0 */
	struct ida ah_indices;

	u8 mac[ETH_ALEN]; /* of the paired network device */
	struct notifier_block netdev_nb;
	struct work_struct netdev_work;
	spinlock_t netdev_lock; /* of `netdev` */
	struct net_device *netdev; /* held */
	bool port_active; /* as told to the ib core last; netdev_work's */
};

struct vrdma_ucontext {
	struct ib_ucontext ibuc;
	struct vrdma_uar uar;
	struct rdma_user_mmap_entry *uar_entry;
	struct rdma_user_mmap_entry *status_entry;
	struct rdma_user_mmap_entry **doorbell_entries; /* one a vector, or NULL */
};

struct vrdma_pd {
	struct ib_pd ibpd;
	u32 pdn;
};

/* An entry of the table. */
struct vrdma_ah {
	struct ib_ah ibah;
	u32 index;
	struct virtio_rdma_address_vector av;
};

struct vrdma_xrcd {
	struct ib_xrcd ibxrcd;
	u32 xrcdn;
};

struct vrdma_mr {
	struct ib_mr ibmr;
	u32 mrn;

	/* Of user memory: */
	struct ib_umem *umem;
	int access;
	struct mutex lock; /* of re-registration */

	struct vrdma_odp *odp; /* of user memory on demand (odp.c); NULL otherwise */

	/* For fast registration: the list, shared with the device (fastreg.c). */
	struct vrdma_buf list;
	u32 max_pages;
	u32 num_pages;
	u32 offset; /* of the first byte in its page */
};

struct vrdma_mw {
	struct ib_mw ibmw;
	u32 mwn;
};

/* The tables of a virtio_rdma_page_list while a command refers to them (pages.c). */
struct vrdma_page_list {
	struct virtio_rdma_page_list wire;
	struct vrdma_table *tables;
	u32 num_tables;
};

struct vrdma_cq {
	struct ib_cq ibcq;
	u32 cqn;
	u32 entries; /* a power of two */
	struct ib_umem *umem; /* user CQs */
	struct mutex resize_lock; /* of `umem` and `entries`, where they change */
	struct vrdma_buf buf; /* kernel CQs */

	/* Kernel CQs only. */
	spinlock_t lock;
	struct virtio_rdma_cq_guest_line *guest;
	struct virtio_rdma_cqe *ring;
	u32 consumer;
	u32 arm;

	/* Event handlers at work, and one for the CQ's existence. */
	refcount_t refs;
	struct completion unused;
};

/* A send, receive or shared receive queue in kernel memory. */
struct vrdma_ring {
	spinlock_t lock;
	u8 *slots;
	u32 entries; /* a power of two, or 0 */
	u8 stride_shift;
	u32 max_sge;
	u32 posted; /* free-running */
	u32 freed; /* free-running; written under the CQ's lock */
};

struct vrdma_srq {
	struct ib_srq ibsrq;
	u32 srqn;
	u32 slot;
	struct vrdma_uar *uar;
	u32 entries; /* a power of two */
	u32 max_sge;
	struct ib_umem *umem; /* user SRQs */
	struct mutex resize_lock; /* user SRQs: entries and umem change together */
	struct vrdma_buf buf; /* kernel SRQs */

	/* Kernel SRQs only. What is free says the device, in `line`. */
	struct virtio_rdma_srq_device_line *line;
	struct vrdma_ring ring;

	/* Event handlers at work, and one for the SRQ's existence. */
	refcount_t refs;
	struct completion unused;
};

struct vrdma_qp {
	struct ib_qp ibqp;
	u32 qpn;
	u32 slot;
	struct vrdma_uar *uar;
	struct mutex lock; /* of state */
	enum ib_qp_state state;
	struct ib_umem *umem; /* user QPs */
	struct vrdma_buf buf; /* kernel QPs, and XRC targets */
	u32 max_inline;
	struct ib_qp_cap cap;
	enum ib_sig_type sig_type;

	/* Kernel QPs only. */
	struct virtio_rdma_qp_device_line *line;
	struct vrdma_ring sq;
	struct vrdma_ring rq;

	/* Event handlers at work, and one for the QP's existence. */
	refcount_t refs;
	struct completion unused;
};

/* main.c */
bool vrdma_is_gone(struct vrdma_vdev *vd);
void vrdma_declare_broken(struct vrdma_vdev *vd, const char *why);

/* hotplug.c */
void vrdma_hotplug_work(struct work_struct *work);
void vrdma_hotplug_stop(struct vrdma_vdev *vd);
void vrdma_resync(struct vrdma_vdev *vd, bool stale);
void vrdma_dispatch(struct vrdma_vdev *vd, enum ib_event_type type);

/* control.c */
void vrdma_control_init(struct vrdma_control *control);
void vrdma_control_callback(struct virtqueue *vq);
void vrdma_control_fail_all(struct vrdma_vdev *vd);
int vrdma_command(struct vrdma_vdev *vd, u16 command, const void *request, size_t request_len,
		  void *answer, size_t answer_len);
int vrdma_command_number(struct vrdma_vdev *vd, u16 command, u32 number, void *answer,
			 size_t answer_len);
int vrdma_destroy(struct vrdma_vdev *vd, u16 command, u32 number);
struct vrdma_message *vrdma_message_alloc(void);
void vrdma_message_free(struct vrdma_message *msg);
int vrdma_command_reserved(struct vrdma_vdev *vd, struct vrdma_message *msg, u16 command,
			   const void *request, size_t request_len);

/* pages.c */
int vrdma_buf_alloc(struct vrdma_vdev *vd, struct vrdma_buf *buf, size_t bytes);
void vrdma_buf_free(struct vrdma_vdev *vd, struct vrdma_buf *buf);
int vrdma_page_list_of_buf(struct vrdma_vdev *vd, struct vrdma_page_list *list,
			   const struct vrdma_buf *buf);
int vrdma_page_list_of_umem(struct vrdma_vdev *vd, struct vrdma_page_list *list,
			    struct ib_umem *umem, unsigned long page_size);
void vrdma_page_list_free(struct vrdma_vdev *vd, struct vrdma_page_list *list);
struct ib_umem *vrdma_ring_umem(struct vrdma_hca *hca, struct vrdma_page_list *list, u64 addr,
				u32 buf_bytes, u64 bytes);

/* device.c */
extern const struct ib_device_ops vrdma_device_ops;
int vrdma_query_port(struct ib_device *ibdev, u32 port, struct ib_port_attr *attr);

/* netdev.c */
int vrdma_netdev_start(struct vrdma_hca *hca);
void vrdma_netdev_stop(struct vrdma_hca *hca);
bool vrdma_netdev_bind(struct vrdma_hca *hca);
void vrdma_netdev_unbind(struct vrdma_hca *hca);
bool vrdma_netdev_running(struct vrdma_hca *hca);
int vrdma_add_gid(const struct ib_gid_attr *attr, void **context);
int vrdma_del_gid(const struct ib_gid_attr *attr, void **context);

/* uctx.c */
extern const struct uapi_definition vrdma_uapi[];
int vrdma_uar_create(struct vrdma_hca *hca, struct vrdma_uar *uar, u32 num_slots);
void vrdma_uar_destroy(struct vrdma_hca *hca, struct vrdma_uar *uar);
int vrdma_query_ucontext(struct ib_ucontext *ibuc, struct uverbs_attr_bundle *attrs);
int vrdma_alloc_ucontext(struct ib_ucontext *ibuc, struct ib_udata *udata);
void vrdma_dealloc_ucontext(struct ib_ucontext *ibuc);
void vrdma_disassociate_ucontext(struct ib_ucontext *ibuc);
int vrdma_mmap(struct ib_ucontext *ibuc, struct vm_area_struct *vma);
void vrdma_mmap_free(struct rdma_user_mmap_entry *entry);

/* doorbell.c */
void vrdma_doorbells_find(struct vrdma_vdev *vd);

/* ah.c */
int vrdma_ahs_create(struct vrdma_hca *hca);
void vrdma_ahs_free(struct vrdma_hca *hca);
int vrdma_create_ah(struct ib_ah *ibah, struct rdma_ah_init_attr *attr, struct ib_udata *udata);
int vrdma_destroy_ah(struct ib_ah *ibah, u32 flags);
int vrdma_query_ah(struct ib_ah *ibah, struct rdma_ah_attr *attr);
int vrdma_av_to_wire(const struct rdma_ah_attr *ah, struct virtio_rdma_address_vector *av);
void vrdma_av_from_wire(struct ib_device *ibdev, const struct virtio_rdma_address_vector *av,
			struct rdma_ah_attr *ah);

/* mr.c */
int vrdma_alloc_pd(struct ib_pd *ibpd, struct ib_udata *udata);
int vrdma_dealloc_pd(struct ib_pd *ibpd, struct ib_udata *udata);
struct ib_mr *vrdma_get_dma_mr(struct ib_pd *ibpd, int access);
#ifdef VRDMA_HAVE_DMAH
struct ib_mr *vrdma_reg_user_mr(struct ib_pd *ibpd, u64 start, u64 length, u64 iova, int access,
				struct ib_dmah *dmah, struct ib_udata *udata);
#else
struct ib_mr *vrdma_reg_user_mr(struct ib_pd *ibpd, u64 start, u64 length, u64 iova, int access,
				struct ib_udata *udata);
#endif
struct ib_mr *vrdma_reg_user_mr_dmabuf(struct ib_pd *ibpd, u64 offset, u64 length, u64 iova, int fd,
				       int access, VRDMA_REG_DMABUF_ARGS);
struct ib_mr *vrdma_rereg_user_mr(struct ib_mr *ibmr, int flags, u64 start, u64 length, u64 iova,
				  int access, struct ib_pd *ibpd, struct ib_udata *udata);
int vrdma_dereg_mr(struct ib_mr *ibmr, struct ib_udata *udata);
u32 vrdma_access_to_wire(int access);
int vrdma_check_access(struct vrdma_hca *hca, int access);
int vrdma_alloc_xrcd(struct ib_xrcd *ibxrcd, struct ib_udata *udata);
int vrdma_dealloc_xrcd(struct ib_xrcd *ibxrcd, struct ib_udata *udata);

/* odp.c */
#ifdef CONFIG_INFINIBAND_ON_DEMAND_PAGING
struct ib_mr *vrdma_odp_reg_mr(struct ib_pd *ibpd, u64 start, u64 length, u64 iova, int access);
void vrdma_odp_ending(struct vrdma_mr *mr, bool ending);
void vrdma_odp_release(struct vrdma_mr *mr);
void vrdma_odp_event(struct vrdma_vdev *vd, u32 mrn);
int vrdma_advise_mr(struct ib_pd *ibpd, enum ib_uverbs_advise_mr_advice advice, u32 flags,
		    struct ib_sge *sg_list, u32 num_sge, struct uverbs_attr_bundle *attrs);
#else
static inline struct ib_mr *vrdma_odp_reg_mr(struct ib_pd *ibpd, u64 start, u64 length, u64 iova,
					     int access)
{
	return ERR_PTR(-EOPNOTSUPP);
}
static inline void vrdma_odp_ending(struct vrdma_mr *mr, bool ending)
{
}
static inline void vrdma_odp_release(struct vrdma_mr *mr)
{
}
static inline void vrdma_odp_event(struct vrdma_vdev *vd, u32 mrn)
{
}
#endif

/* fastreg.c */
struct ib_mr *vrdma_alloc_mr(struct ib_pd *ibpd, enum ib_mr_type type, u32 max_num_sg);
int vrdma_map_mr_sg(struct ib_mr *ibmr, struct scatterlist *sg, int sg_nents,
		    unsigned int *sg_offset);
int vrdma_alloc_mw(struct ib_mw *ibmw, struct ib_udata *udata);
int vrdma_dealloc_mw(struct ib_mw *ibmw);

/* dm.c */
struct ib_dm *vrdma_alloc_dm(struct ib_device *ibdev, struct ib_ucontext *context,
			     struct ib_dm_alloc_attr *attr, struct uverbs_attr_bundle *attrs);
int vrdma_dealloc_dm(struct ib_dm *ibdm, struct uverbs_attr_bundle *attrs);
struct ib_mr *vrdma_reg_dm_mr(struct ib_pd *ibpd, struct ib_dm *ibdm, struct ib_dm_mr_attr *attr,
			      struct uverbs_attr_bundle *attrs);
extern const struct uapi_definition vrdma_dm_uapi[];

/* mcast.c */
int vrdma_attach_mcast(struct ib_qp *ibqp, union ib_gid *gid, u16 lid);
int vrdma_detach_mcast(struct ib_qp *ibqp, union ib_gid *gid, u16 lid);

/* restrack.c */
int vrdma_fill_mr(struct sk_buff *msg, struct ib_mr *ibmr);
int vrdma_fill_cq(struct sk_buff *msg, struct ib_cq *ibcq);
int vrdma_fill_qp(struct sk_buff *msg, struct ib_qp *ibqp);
#ifdef VRDMA_HAVE_FILL_SRQ
int vrdma_fill_srq(struct sk_buff *msg, struct ib_srq *ibsrq);
#endif

/* cq.c */
int vrdma_create_cq(struct ib_cq *ibcq, const struct ib_cq_init_attr *attr, VRDMA_CREATE_CQ_ARG);
int vrdma_resize_user_cq(struct ib_cq *ibcq, VRDMA_RESIZE_CQ_CQE cqe, struct ib_udata *udata);
int vrdma_modify_cq(struct ib_cq *ibcq, u16 count, u16 period);
int vrdma_destroy_cq(struct ib_cq *ibcq, struct ib_udata *udata);
int vrdma_poll_cq(struct ib_cq *ibcq, int num, struct ib_wc *wc);
int vrdma_req_notify_cq(struct ib_cq *ibcq, enum ib_cq_notify_flags flags);
void vrdma_cq_clean(struct vrdma_cq *cq, u32 qpn);

/* srq.c */
int vrdma_create_srq(struct ib_srq *ibsrq, struct ib_srq_init_attr *attr, struct ib_udata *udata);
int vrdma_modify_srq(struct ib_srq *ibsrq, struct ib_srq_attr *attr, enum ib_srq_attr_mask mask,
		     struct ib_udata *udata);
int vrdma_query_srq(struct ib_srq *ibsrq, struct ib_srq_attr *attr);
int vrdma_destroy_srq(struct ib_srq *ibsrq, struct ib_udata *udata);

/* qp.c */
bool vrdma_check_ring(u32 entries, u8 stride_shift, u32 offset, u32 least_stride,
		      u64 *buf_bytes);
u32 vrdma_recv_stride(u32 max_sge);
int vrdma_create_qp(struct ib_qp *ibqp, struct ib_qp_init_attr *attr, struct ib_udata *udata);
int vrdma_modify_qp(struct ib_qp *ibqp, struct ib_qp_attr *attr, int mask,
		    struct ib_udata *udata);
int vrdma_query_qp(struct ib_qp *ibqp, struct ib_qp_attr *attr, int mask,
		   struct ib_qp_init_attr *init_attr);
int vrdma_destroy_qp(struct ib_qp *ibqp, struct ib_udata *udata);

/* post.c */
void vrdma_ring_reset(struct vrdma_ring *ring);
int vrdma_post_send(struct ib_qp *ibqp, const struct ib_send_wr *wr,
		    const struct ib_send_wr **bad_wr);
int vrdma_post_recv(struct ib_qp *ibqp, const struct ib_recv_wr *wr,
		    const struct ib_recv_wr **bad_wr);
int vrdma_post_srq_recv(struct ib_srq *ibsrq, const struct ib_recv_wr *wr,
			const struct ib_recv_wr **bad_wr);

/* flush.c */
void vrdma_flush_start(struct vrdma_hca *hca);
void vrdma_flush_work(struct work_struct *work);
int vrdma_flush_cq(struct vrdma_vdev *vd, struct vrdma_cq *cq, int num, struct ib_wc *wc);

/* event.c */
struct vrdma_cq *vrdma_cq_get(struct vrdma_vdev *vd, u32 cqn);
void vrdma_cq_put(struct vrdma_cq *cq);
int vrdma_events_start(struct vrdma_vdev *vd);
void vrdma_events_cancel(struct vrdma_vdev *vd);
void vrdma_events_stop(struct vrdma_vdev *vd);
void vrdma_events_free(struct vrdma_vdev *vd);
void vrdma_event_work(struct work_struct *work);
void vrdma_eventq_callback(struct virtqueue *vq);
void vrdma_compq_callback(struct virtqueue *vq);
void vrdma_compq_work(struct work_struct *work);

/* counters.c */
struct rdma_hw_stats *vrdma_alloc_hw_port_stats(struct ib_device *ibdev, u32 port);
int vrdma_get_hw_stats(struct ib_device *ibdev, struct rdma_hw_stats *stats, u32 port, int index);

static inline struct vrdma_hca *to_vhca(struct ib_device *ibdev)
{
	return container_of(ibdev, struct vrdma_hca, ibdev);
}

static inline struct vrdma_ucontext *to_vucontext(struct ib_ucontext *ibuc)
{
	return container_of(ibuc, struct vrdma_ucontext, ibuc);
}

static inline struct vrdma_pd *to_vpd(struct ib_pd *ibpd)
{
	return container_of(ibpd, struct vrdma_pd, ibpd);
}

static inline struct vrdma_xrcd *to_vxrcd(struct ib_xrcd *ibxrcd)
{
	return container_of(ibxrcd, struct vrdma_xrcd, ibxrcd);
}

static inline struct vrdma_mw *to_vmw(struct ib_mw *ibmw)
{
	return container_of(ibmw, struct vrdma_mw, ibmw);
}

static inline struct vrdma_ah *to_vah(struct ib_ah *ibah)
{
	return container_of(ibah, struct vrdma_ah, ibah);
}

static inline struct vrdma_mr *to_vmr(struct ib_mr *ibmr)
{
	return container_of(ibmr, struct vrdma_mr, ibmr);
}

static inline struct vrdma_cq *to_vcq(struct ib_cq *ibcq)
{
	return container_of(ibcq, struct vrdma_cq, ibcq);
}

static inline struct vrdma_srq *to_vsrq(struct ib_srq *ibsrq)
{
	return container_of(ibsrq, struct vrdma_srq, ibsrq);
}

static inline struct vrdma_qp *to_vqp(struct ib_qp *ibqp)
{
	return container_of(ibqp, struct vrdma_qp, ibqp);
}

/* Nothing of it is the kernel's to post or to poll. */
static inline bool vrdma_is_user_qp(const struct vrdma_qp *qp)
{
	return qp->umem || qp->ibqp.qp_type == IB_QPT_XRC_TGT;
}

#endif
