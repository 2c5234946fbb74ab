/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Differences between the kernels that this driver builds for (6.1 up), and nothing else. The
 * VRDMA_HAVE_* macros come from Kbuild, which looks into the headers of the kernel at hand.
 */
#ifndef VRDMA_COMPAT_H
#define VRDMA_COMPAT_H

#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <rdma/ib_umem.h>
#include <rdma/ib_verbs.h>
#include <rdma/uverbs_ioctl.h>
#ifdef VRDMA_HAVE_ITER_H
#include <rdma/iter.h>
#endif

#ifndef VRDMA_HAVE_UMEM_GET_VA
static inline struct ib_umem *ib_umem_get_va(struct ib_device *device, unsigned long addr,
					     size_t size, int access)
{
	return ib_umem_get(device, addr, size, access);
}
#endif

#ifndef VRDMA_HAVE_VM_FLAGS_CLEAR
static inline void vm_flags_clear(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags &= ~flags;
}
#endif

/* The last argument of create_cq: the udata of the command, or the bundle that holds it. */
#ifdef VRDMA_CREATE_CQ_ATTRS
#define VRDMA_CREATE_CQ_ARG struct uverbs_attr_bundle *arg
static inline struct ib_udata *vrdma_create_cq_udata(struct uverbs_attr_bundle *arg)
{
	return arg ? &arg->driver_udata : NULL;
}
#else
#define VRDMA_CREATE_CQ_ARG struct ib_udata *arg
static inline struct ib_udata *vrdma_create_cq_udata(struct ib_udata *arg)
{
	return arg;
}
#endif

/* What the registration of a dma-buf is told after the rights. */
#if defined(VRDMA_HAVE_DMAH)
#define VRDMA_REG_DMABUF_ARGS struct ib_dmah *dmah, struct uverbs_attr_bundle *attrs
#elif defined(VRDMA_REG_DMABUF_ATTRS)
#define VRDMA_REG_DMABUF_ARGS struct uverbs_attr_bundle *attrs
#else
#define VRDMA_REG_DMABUF_ARGS struct ib_udata *udata
#endif

/* Resizing: the operation's name, and the type of its number of CQEs. */
#ifdef VRDMA_HAVE_RESIZE_USER_CQ
#define VRDMA_RESIZE_CQ_OP resize_user_cq
#define VRDMA_RESIZE_CQ_CQE unsigned int
#else
#define VRDMA_RESIZE_CQ_OP resize_cq
#define VRDMA_RESIZE_CQ_CQE int
#endif

/* Finds virtqueues by names and callbacks. May sleep. */
static inline int vrdma_find_vqs(struct virtio_device *vdev, unsigned int n,
				 struct virtqueue **vqs, vq_callback_t **callbacks,
				 const char **names)
{
#ifdef VRDMA_HAVE_VIRTQUEUE_INFO
	struct virtqueue_info *info;
	unsigned int i;
	int err;

	info = kcalloc(n, sizeof(*info), GFP_KERNEL);
	if (!info)
		return -ENOMEM;
	for (i = 0; i < n; i++) {
		info[i].name = names[i];
		info[i].callback = callbacks[i];
	}
	err = virtio_find_vqs(vdev, n, vqs, info, NULL);
	kfree(info);
	return err;
#else
	return virtio_find_vqs(vdev, n, vqs, callbacks, (const char * const *)names, NULL);
#endif
}

#endif
