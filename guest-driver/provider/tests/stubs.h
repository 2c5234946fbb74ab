/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the tests of the verbs put in the place of kernel and device: commands that succeed, a UAR,
 * a status page, and a doorbell that remembers what was written to it.
 */
#ifndef VRDMA_TEST_STUBS_H
#define VRDMA_TEST_STUBS_H

#include "vrdma.h"

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

#endif
