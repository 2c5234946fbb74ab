/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * How a driver learns whether it must ring after it has posted, and says what for: the driver's
 * half of the doorbell protocol, in one place. Needs virtio_rdma_abi.h and C11 atomics only, so
 * that tests/ can drive it against a device written as a thread. Neither the rings (ring.h) nor
 * the way a doorbell is rung (provider.c) are here.
 */
#ifndef VRDMA_DOORBELL_H
#define VRDMA_DOORBELL_H

#include <endian.h>
#include <stdatomic.h>
#include <stdint.h>

#include "virtio_rdma_abi.h"

/* vrdma_work_posted() says: nobody has to be woken. */
#define VRDMA_NO_RING (-1)

/* What a queue needs to know to tell the device of new work. Fixed for the life of a QP; that of an SRQ
 * which is resized has another mode word afterwards.
 */
struct vrdma_doorbell {
	/* The mode word of the queue; the device writes it. */
	const _Atomic __le32 *mode;
	/* The word of the UAR's bitmap that holds the QP's bit, and that bit. */
	_Atomic __le64 *pending;
	__le64 pending_bit;
	/* The UAR's summary, and the bit that stands for `pending` there. */
	_Atomic __le64 *summary;
	__le64 summary_bit;
	/* The status page: one line a vector. */
	const struct virtio_rdma_vector_status *status;
	/* Vectors that the status page has lines for. */
	uint32_t num_vectors;
};

/*
 * Orders every store before it against every load after it. A locked operation on the stack does
 * that on x86 and takes about half the time of mfence.
 *
 * The tests build it broken on purpose (VRDMA_TEST_BREAK_*, here and below), to prove that they
 * would notice.
 */
static inline void vrdma_full_fence(void)
{
#if defined(VRDMA_TEST_BREAK_FENCE)
	atomic_signal_fence(memory_order_seq_cst);
#elif defined(__x86_64__)
	__asm__ volatile("lock; orl $0, -8(%%rsp)" ::: "memory", "cc");
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

/*
 * Sets up `db` for the QP in bit `slot` of the UAR at `uar`, whose queue has the mode word `mode`.
 * The caller has checked that the slot lies inside the UAR.
 */
static inline void vrdma_doorbell_init(struct vrdma_doorbell *db, void *uar, uint32_t slot,
				       const void *mode, const void *status, uint32_t num_vectors)
{
	uint32_t word = slot / 64;

	db->mode = mode;
	db->pending = (_Atomic __le64 *)((char *)uar + VIRTIO_RDMA_UAR_BITMAP_OFFSET) + word;
	db->pending_bit = htole64(UINT64_C(1) << (slot % 64));
	db->summary = (_Atomic __le64 *)((char *)uar + offsetof(struct virtio_rdma_uar_header,
								 summary));
	db->summary_bit = htole64(UINT64_C(1) << (word % 64));
	db->status = status;
	db->num_vectors = num_vectors;
}

/*
 * To be called once after the WQEs of a call have been published. Returns the vector whose
 * doorbell must be rung, or VRDMA_NO_RING. Never sleeps, makes no system call.
 *
 * Every arrow is one half of a store-fence-load pair whose other half is in the device:
 *   phase of the WQE -> mode word        the device writes ARMED, then looks at the phase again;
 *   bit, summary bit -> sleeping         the device writes 1, then looks at the summary again.
 * So at least one side sees the other, and no work stays behind unseen. The summary bit follows
 * the bit it stands for: a device that finds it finds that one, too.
 */
static inline int vrdma_work_posted(const struct vrdma_doorbell *db)
{
	uint32_t mode, vector;
	const _Atomic __le32 *sleeping;

	vrdma_full_fence();
	mode = le32toh(atomic_load_explicit(db->mode, memory_order_relaxed));
	if (mode & VIRTIO_RDMA_MODE_POLLED)
		return VRDMA_NO_RING;

#if !defined(VRDMA_TEST_BREAK_PENDING)
	atomic_fetch_or_explicit(db->pending, db->pending_bit, memory_order_seq_cst);
#endif
	atomic_fetch_or_explicit(db->summary, db->summary_bit, memory_order_seq_cst);
#if !defined(__x86_64__)
	/* There a locked operation is a full fence by itself. */
	vrdma_full_fence();
#endif

	vector = mode >> VIRTIO_RDMA_MODE_VECTOR_SHIFT;
	if (vector >= db->num_vectors)
		return VRDMA_NO_RING; /* No such worker: nobody who could be asleep. */
	sleeping = (const _Atomic __le32 *)&db->status[vector].sleeping;
	if (!atomic_load_explicit(sleeping, memory_order_relaxed))
		return VRDMA_NO_RING;
	return (int)vector;
}

/* The number of the doorbell virtqueue of `vector`: what is written to its notify address. */
static inline uint16_t vrdma_doorbell_queue(uint32_t vector)
{
	return (uint16_t)(VIRTIO_RDMA_QUEUE_DOORBELL_FIRST + 2 * vector);
}

#endif
