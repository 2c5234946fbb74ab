/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Slots, phases and counters of the rings that driver and device share: how a WQE is published,
 * how a CQE is recognised, how a CQ is armed. Like doorbell.h it needs virtio_rdma_abi.h and C11
 * atomics only. What goes into a WQE (post.c) or comes out of a CQE (cq.c) is not here.
 */
#ifndef VRDMA_RING_H
#define VRDMA_RING_H

#include <endian.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "doorbell.h"

/* Offset in a CQE of the 8 bytes that are written last: QPN, status, opcode, flags, phase. */
#define VRDMA_CQE_LAST offsetof(struct virtio_rdma_cqe, qpn)
static_assert(VRDMA_CQE_LAST == 56, "the last word of a CQE holds the phase");
static_assert(offsetof(struct virtio_rdma_send_wqe, imm) == 4, "first word of a send WQE");
static_assert(offsetof(struct virtio_rdma_recv_wqe, wr_id) == 8, "first word of a receive WQE");

/* A send or receive queue, from the side that posts. `posted` and `freed` run freely. */
struct vrdma_wq {
	char *ring;
	/* 2^entries_shift slots of 2^stride_shift bytes; entries is 0 if there is no such queue. */
	uint32_t entries;
	uint8_t entries_shift;
	uint8_t stride_shift;
	/* WQEs posted. Only whoever posts touches it. */
	uint32_t posted;
	/* The last value of `freed` that whoever posts has seen. */
	uint32_t freed_seen;
	/* WQEs whose slots the device has given back. Whoever polls stores it: a line of its own. */
	_Alignas(64) _Atomic uint32_t freed;
};

/* The phase, 0 or 1, of slot number `n`, counted without end, in a ring of 2^shift slots. */
static inline uint32_t vrdma_phase(uint32_t n, uint8_t shift)
{
	return ((n >> shift) & 1) ^ 1;
}

/* Makes the queue empty again, as it was when it was created. The device must not touch it. */
static inline void vrdma_wq_reset(struct vrdma_wq *wq)
{
	wq->posted = 0;
	wq->freed_seen = 0;
	atomic_store_explicit(&wq->freed, 0, memory_order_relaxed);
}

/*
 * Whether a slot is free after `ahead` slots more than those posted. Acquire pairs with the release
 * of whoever polled: the device has read the slot before it is written again.
 */
static inline bool vrdma_wq_has_room(struct vrdma_wq *wq, uint32_t ahead)
{
	if (wq->posted + ahead - wq->freed_seen < wq->entries)
		return true;
	wq->freed_seen = atomic_load_explicit(&wq->freed, memory_order_acquire);
	return wq->posted + ahead - wq->freed_seen < wq->entries;
}

/*
 * The same for a queue whose slots the device frees when it has taken the WQE, as an SRQ's: `taken`
 * is its free-running count. Acquire pairs with the device's release: it has read those slots.
 */
static inline bool vrdma_wq_has_room_behind(struct vrdma_wq *wq, const _Atomic __le32 *taken)
{
	if (wq->posted - wq->freed_seen < wq->entries)
		return true;
	wq->freed_seen = le32toh(atomic_load_explicit(taken, memory_order_acquire));
	return wq->posted - wq->freed_seen < wq->entries;
}

/* The slot that is filled next, or that `ahead` slots after it. */
static inline void *vrdma_wq_slot(const struct vrdma_wq *wq, uint32_t ahead)
{
	uint64_t index = (wq->posted + ahead) & (wq->entries - 1);

	return wq->ring + (index << wq->stride_shift);
}

/* The first 8 bytes of a WQE, as in memory. */
union vrdma_first_word {
	uint32_t half[2];
	uint64_t word;
};

/*
 * Publishes the slot: `low` is the first 4 bytes of the WQE as a little-endian number without the
 * phase, `high` the next 4, in the order of memory. Everything else must have been written. One
 * store of 8 bytes, so the device sees all of the WQE or nothing of it.
 */
static inline void vrdma_wq_publish(struct vrdma_wq *wq, void *slot, uint32_t low, uint32_t high)
{
	union vrdma_first_word first;

	low |= vrdma_phase(wq->posted, wq->entries_shift) << 24;
	first.half[0] = htole32(low);
	first.half[1] = high;
	atomic_store_explicit((_Atomic uint64_t *)slot, first.word, memory_order_release);
	wq->posted++;
}

/*
 * Writes the first word of the slot `ahead` of the next one with the phase that the slot had: to
 * the device it still is not new. vrdma_wq_publish_aside() publishes the next slot so prepared.
 */
static inline void vrdma_wq_set_aside(struct vrdma_wq *wq, uint32_t ahead, void *slot,
				      uint32_t low, uint32_t high)
{
	union vrdma_first_word first;

	low |= (vrdma_phase(wq->posted + ahead, wq->entries_shift) ^ 1) << 24;
	first.half[0] = htole32(low);
	first.half[1] = high;
	atomic_store_explicit((_Atomic uint64_t *)slot, first.word, memory_order_relaxed);
}

static inline void vrdma_wq_publish_aside(struct vrdma_wq *wq)
{
	_Atomic uint64_t *slot = vrdma_wq_slot(wq, 0);
	union vrdma_first_word first;

	first.word = atomic_load_explicit(slot, memory_order_relaxed);
	vrdma_wq_publish(wq, slot, le32toh(first.half[0]) & 0xffffff, first.half[1]);
}

/* A completion queue, from the side that polls. */
struct vrdma_ring_cq {
	/* The buffer: guest line, device line, ring. */
	char *buf;
	uint32_t entries;
	uint8_t entries_shift;
	/* CQEs polled. Runs freely. Only whoever holds the CQ's lock stores it. */
	_Atomic uint32_t consumer;
	/* The last arm word stored. */
	uint32_t arm;
};

/* The slot of CQE number `n`. */
static inline struct virtio_rdma_cqe *vrdma_cq_slot(const struct vrdma_ring_cq *cq, uint32_t n)
{
	uint64_t index = n & (cq->entries - 1);

	return (struct virtio_rdma_cqe *)(cq->buf + VIRTIO_RDMA_CQ_RING_OFFSET +
					  index * VIRTIO_RDMA_CQE_BYTES);
}

/*
 * Whether CQE number `n` has arrived; then `last` is its last word in the CPU's order (see the
 * vrdma_cqe_* functions), and the rest of it may be read.
 */
static inline bool vrdma_cqe_valid(const struct vrdma_ring_cq *cq, uint32_t n, uint64_t *last)
{
	const char *slot = (const char *)vrdma_cq_slot(cq, n);
	uint64_t word = atomic_load_explicit((const _Atomic uint64_t *)(slot + VRDMA_CQE_LAST),
					     memory_order_acquire);

	*last = le64toh(word);
	return ((*last >> 56) & 1) == vrdma_phase(n, cq->entries_shift);
}

static inline uint32_t vrdma_cqe_qpn(uint64_t last)
{
	return (uint32_t)last;
}

static inline uint8_t vrdma_cqe_status(uint64_t last)
{
	return (uint8_t)(last >> 32);
}

static inline uint8_t vrdma_cqe_opcode(uint64_t last)
{
	return (uint8_t)(last >> 40);
}

static inline uint8_t vrdma_cqe_flags(uint64_t last)
{
	return (uint8_t)(last >> 48);
}

/* CQEs polled so far, for whoever holds the CQ's lock. */
static inline uint32_t vrdma_cq_consumer(const struct vrdma_ring_cq *cq)
{
	return atomic_load_explicit(&cq->consumer, memory_order_relaxed);
}

/*
 * Whether there is nothing to poll, seen without the CQ's lock. Others may poll meanwhile: that the
 * count is the same before and after means that the slot was looked at for the right lap.
 */
static inline bool vrdma_cq_empty(const struct vrdma_ring_cq *cq)
{
	uint32_t n = atomic_load_explicit(&cq->consumer, memory_order_acquire);
	uint64_t last;

	return !vrdma_cqe_valid(cq, n, &last) &&
	       atomic_load_explicit(&cq->consumer, memory_order_relaxed) == n;
}

/* Tells the device that the CQEs before number `n` are gone. Release: their slots have been read. */
static inline void vrdma_cq_store_consumer(struct vrdma_ring_cq *cq, uint32_t n)
{
	struct virtio_rdma_cq_guest_line *line = (struct virtio_rdma_cq_guest_line *)cq->buf;

	atomic_store_explicit(&cq->consumer, n, memory_order_release);
	atomic_store_explicit((_Atomic __le32 *)&line->consumer, htole32(n),
			      memory_order_release);
}

/*
 * The slots that the CQEs polled give back to one queue. They may be used again only when the
 * device knows that the CQEs are gone: or another thread could post at once, and the device would
 * find no room for the completion in a CQ that is just large enough. So the consumer index is
 * stored first; and to store it once a call, the latest count of a queue waits here.
 */
struct vrdma_give_back {
	struct vrdma_wq *wq;
	uint32_t freed;
};

/* Stores the consumer index, `n`, and gives the slots back. */
static inline void vrdma_give_back_now(struct vrdma_give_back *give, struct vrdma_ring_cq *cq,
				       uint32_t n)
{
	vrdma_cq_store_consumer(cq, n);
	if (give->wq)
		atomic_store_explicit(&give->wq->freed, give->freed, memory_order_release);
}

/* Takes down that CQE number `n` says of queue `wq` that `freed` of its slots are free. */
static inline void vrdma_give_back(struct vrdma_give_back *give, struct vrdma_ring_cq *cq,
				   uint32_t n, struct vrdma_wq *wq, uint32_t freed)
{
	if (give->wq != wq) {
		if (give->wq)
			vrdma_give_back_now(give, cq, n);
		give->wq = wq;
	}
	give->freed = freed;
#if defined(VRDMA_TEST_BREAK_GIVE_BACK)
	/* The slot is given back before its CQE is: long enough for the poster to notice. */
	atomic_store_explicit(&wq->freed, freed, memory_order_release);
	test_hold_open();
#endif
}

/*
 * Arms the CQ for one event: of the next CQE, or of the next solicited one. The caller polls once
 * more afterwards, since a CQE may have come before. An arm for any CQE that has not fired yet is
 * not weakened to one for solicited CQEs (IBA 11.4.2.2).
 */
static inline void vrdma_cq_arm(struct vrdma_ring_cq *cq, bool solicited_only)
{
	struct virtio_rdma_cq_guest_line *guest = (struct virtio_rdma_cq_guest_line *)cq->buf;
	const struct virtio_rdma_cq_device_line *device =
		(const struct virtio_rdma_cq_device_line *)(cq->buf + sizeof(*guest));
	uint32_t fired = le32toh(atomic_load_explicit((const _Atomic __le32 *)&device->fired,
						      memory_order_relaxed));

	uint32_t sequence = (cq->arm >> 1) + 1;

	if (cq->arm && !(cq->arm & 1) && fired != cq->arm)
		solicited_only = false;
	if (sequence > UINT32_MAX / 2)
		sequence = 1; /* 0 means: never armed. */
	cq->arm = sequence * 2 + solicited_only;
	atomic_store_explicit((_Atomic __le32 *)&guest->arm, htole32(cq->arm),
			      memory_order_release);
	vrdma_full_fence();
}

#endif
