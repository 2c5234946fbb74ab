/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the tests of the verbs put in the place of kernel and device: commands that succeed, a UAR,
 * a status page, and a doorbell that remembers what was written to it.
 */
#ifndef VRDMA_TEST_STUBS_H
#define VRDMA_TEST_STUBS_H

#include <stdio.h>
#include <stdlib.h>

#include "vrdma.h"

#define CHECK(condition)                                                                     \
	do {                                                                                 \
		if (!(condition)) {                                                          \
			fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__,     \
				__func__, #condition);                                       \
			exit(1);                                                             \
		}                                                                            \
	} while (0)

/* Limits of the device that is not there. */
#define STUB_MAX_WR 1024
#define STUB_MAX_SGE 30
#define STUB_MAX_INLINE 1024
#define STUB_MAX_CQE 4096

/* A context with one vector, as alloc_context would leave it. */
struct vrdma_context *stub_context(void);
void stub_context_free(struct vrdma_context *ctx);

/* What the last create command said of the buffer. */
extern struct virtio_rdma_ureq_create_qp stub_last_qp;
extern struct virtio_rdma_ureq_create_cq stub_last_cq;
/* Times that a doorbell was rung, and the last vector. */
extern unsigned int stub_rings;
extern uint32_t stub_ring_vector;

extern struct virtio_rdma_ureq_create_srq stub_last_srq;
extern struct virtio_rdma_ureq_resize_cq stub_last_resize;
/* What the next resizing answers: an errno, or 0 and the CQEs of the old ring. */
extern int stub_resize_error;
extern uint32_t stub_resize_old_cqes;

/* As the device: writes CQE number `n` of a ring. */
void stub_put_cqe(struct vrdma_ring_cq *ring, uint32_t n, uint32_t qpn, uint64_t wr_id,
		  uint32_t count, uint8_t flags);

#endif
