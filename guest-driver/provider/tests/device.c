// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The device's side of the ring test. It polls QPs that were active lately, arms them again after
 * some looks in vain, and sleeps when it polls none for a while; how long each takes is random.
 */
#include "device.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

void test_fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "FAILED: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	fflush(NULL);
	_Exit(1);
}

bool test_wait(sem_t *sem)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += TEST_PATIENCE_SECONDS;
	while (sem_timedwait(sem, &until)) {
		if (errno != EINTR)
			return false;
	}
	return true;
}

static _Atomic __le32 *mode_word(struct test_qp *qp)
{
	return (_Atomic __le32 *)(qp->buf + offsetof(struct virtio_rdma_qp_device_line, sq_mode));
}

/* Writes the CQE of WQE number `n`, the word with the phase last. */
static void complete(struct test_world *world, struct test_qp *qp, uint32_t n, bool solicited)
{
	struct test_cq *cq = qp->cq;
	struct virtio_rdma_cq_guest_line *guest = (void *)cq->ring.buf;
	struct virtio_rdma_cqe *cqe = vrdma_cq_slot(&cq->ring, cq->producer);
	uint32_t consumer = le32toh(atomic_load_explicit((_Atomic __le32 *)&guest->consumer,
							  memory_order_acquire));
	uint64_t last = qp->qpn | (uint64_t)VIRTIO_RDMA_WC_OP_SEND << 40 |
			(uint64_t)VIRTIO_RDMA_CQE_SEND_QUEUE << 48 |
			(uint64_t)vrdma_phase(cq->producer, cq->ring.entries_shift) << 56;

	if (cq->producer - consumer >= cq->ring.entries)
		test_fail("QP %u: the CQ is full: %u written, %u polled", qp->qpn, cq->producer,
			  consumer);
	cqe->wr_id = htole64(n);
	cqe->wqe_count = htole32(n + 1);
	cqe->byte_len = htole32(test_length(n));
	atomic_store_explicit((_Atomic uint64_t *)((char *)cqe + VRDMA_CQE_LAST), htole64(last),
			      memory_order_release);
	cq->producer++;
	cq->fresh = true;
	cq->solicited |= solicited;
	world->cqes++;
}

/* After a burst of CQEs: the event, if the CQ is armed for what the burst brought. */
static void fire(struct test_world *world, struct test_cq *cq)
{
	struct virtio_rdma_cq_guest_line *guest = (void *)cq->ring.buf;
	struct virtio_rdma_cq_device_line *device = (void *)(cq->ring.buf + sizeof(*guest));
	uint32_t arm, fired;

	if (!cq->fresh)
		return;
	vrdma_full_fence();
	arm = le32toh(atomic_load_explicit((_Atomic __le32 *)&guest->arm, memory_order_acquire));
	fired = le32toh(atomic_load_explicit((_Atomic __le32 *)&device->fired,
					     memory_order_relaxed));
	if (arm != fired && (!(arm & 1) || cq->solicited)) {
		atomic_store_explicit((_Atomic __le32 *)&device->fired, htole32(arm),
				      memory_order_relaxed);
		sem_post(&cq->event);
		world->events++;
	}
	cq->fresh = false;
	cq->solicited = false;
}

/* Takes the next WQE, if there is one, checks every byte of it, and completes it. */
static bool take_one(struct test_world *world, struct test_qp *qp)
{
	uint64_t index = qp->taken & (qp->sq.entries - 1);
	const char *slot = qp->sq.ring + (index << TEST_STRIDE_SHIFT);
	const struct virtio_rdma_send_wqe *wqe = (const void *)slot;
	uint64_t first = le64toh(atomic_load_explicit((const _Atomic uint64_t *)slot,
						      memory_order_acquire));
	uint32_t n = qp->taken, length = test_length(n);
	uint8_t flags = (uint8_t)(first >> 8);

	if (((first >> 24) & 1) != vrdma_phase(n, qp->sq.entries_shift))
		return false;
	if ((uint8_t)first != VIRTIO_RDMA_WR_SEND || (first >> 24 & 0xfe) ||
	    le64toh(wqe->wr_id) != n || !(flags & VIRTIO_RDMA_SEND_INLINE) ||
	    le32toh(wqe->inline_length) != length)
		test_fail("QP %u: WQE %u is wrong: first word %016llx, wr_id %llu, length %u",
			  qp->qpn, n, (unsigned long long)first,
			  (unsigned long long)le64toh(wqe->wr_id), le32toh(wqe->inline_length));
	for (uint32_t i = 0; i < length; i++) {
		if ((uint8_t)slot[VIRTIO_RDMA_WQE_SEND_DATA + i] != test_pattern(qp->qpn, n, i))
			test_fail("QP %u: byte %u of WQE %u is wrong", qp->qpn, i, n);
	}
	qp->taken++;
	world->wqes++;
	if (flags & VIRTIO_RDMA_SEND_SIGNALED)
		complete(world, qp, n, flags & VIRTIO_RDMA_SEND_SOLICITED);
	return true;
}

static bool take_all(struct test_world *world, struct test_qp *qp)
{
	bool any = false;

	while (take_one(world, qp)) {
		any = true;
		fire(world, qp->cq);
	}
	return any;
}

/* Arms the queue, and looks once more: the driver may have posted before it could see that. */
static void stop_polling(struct test_world *world, struct test_qp *qp)
{
	atomic_store_explicit(mode_word(qp), htole32(0), memory_order_relaxed);
	vrdma_full_fence();
	qp->polled = false;
	if (take_all(world, qp)) {
		qp->polled = true;
		qp->idle = 0;
		atomic_store_explicit(mode_word(qp), htole32(VIRTIO_RDMA_MODE_POLLED),
				      memory_order_relaxed);
		world->rearms++;
	}
}

static bool poll_qps(struct test_world *world, uint32_t *random)
{
	bool polling = false;

	for (int i = 0; i < world->num_qps; i++) {
		struct test_qp *qp = &world->qps[i];

		if (!qp->polled)
			continue;
		if (take_all(world, qp))
			qp->idle = 0;
		else if (++qp->idle > test_random(random) % 64)
			stop_polling(world, qp);
		polling |= qp->polled;
	}
	return polling;
}

/* The QP of a slot found pending: taken care of once, or polled from now on. */
static void activate(struct test_world *world, uint32_t slot, uint32_t *random)
{
	for (int i = 0; i < world->num_qps; i++) {
		struct test_qp *qp = &world->qps[i];

		if (qp->slot != slot)
			continue;
		if (test_random(random) % 4) {
			qp->polled = true;
			qp->idle = 0;
			atomic_store_explicit(mode_word(qp), htole32(VIRTIO_RDMA_MODE_POLLED),
					      memory_order_relaxed);
		}
		take_all(world, qp);
		return;
	}
	test_fail("slot %u is pending, and no QP has it", slot);
}

/* Looks at the UAR. A summary bit stands for every 64th word of the bitmap. */
static bool scan_pending(struct test_world *world, uint32_t *random)
{
	_Atomic __le64 *bitmap = (void *)((char *)world->uar + VIRTIO_RDMA_UAR_BITMAP_OFFSET);
	const uint32_t words = (VIRTIO_RDMA_UAR_MAX_BYTES - VIRTIO_RDMA_UAR_BITMAP_OFFSET) / 8;
	uint64_t summary;

	if (!atomic_load_explicit((_Atomic __le64 *)world->uar, memory_order_relaxed))
		return false;
	summary = le64toh(atomic_exchange((_Atomic __le64 *)world->uar, 0));
	for (uint32_t word = 0; word < words; word++) {
		uint64_t bits;

		if (!(summary >> (word % 64) & 1))
			continue;
		bits = le64toh(atomic_exchange(&bitmap[word], 0));
		for (; bits; bits &= bits - 1)
			activate(world, word * 64 + (uint32_t)__builtin_ctzll(bits), random);
	}
	return true;
}

/* Sleeps until the doorbell rings, unless there is work already. */
static void sleep_until_kicked(struct test_world *world)
{
	_Atomic __le32 *sleeping = (_Atomic __le32 *)&world->status[0].sleeping;

	atomic_store_explicit(sleeping, htole32(1), memory_order_relaxed);
	vrdma_full_fence();
	if (!atomic_load_explicit((_Atomic __le64 *)world->uar, memory_order_relaxed) &&
	    !atomic_load(&world->stop)) {
		world->sleeps++;
		/*
		 * The drivers notice if it sleeps for ever: their completions do not come. So it
		 * waits a little longer than they do.
		 */
		if (!test_wait(&world->kick) && !test_wait(&world->kick))
			test_fail("the device was not woken");
		world->kicks++;
	}
	atomic_store_explicit(sleeping, htole32(0), memory_order_relaxed);
}

void *test_device(void *arg)
{
	struct test_world *world = arg;
	uint32_t random = 0x2545f491;
	uint32_t idle = 0;

	while (!atomic_load_explicit(&world->stop, memory_order_relaxed)) {
		bool busy = poll_qps(world, &random);

		busy |= scan_pending(world, &random);
		if (busy) {
			idle = 0;
		} else if (++idle > test_random(&random) % 64) {
			sleep_until_kicked(world);
			idle = 0;
		}
		test_delay(&random);
	}
	return NULL;
}
