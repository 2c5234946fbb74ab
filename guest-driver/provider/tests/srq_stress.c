// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Two threads post to an SRQ's ring, as the provider does, and a third one takes the WQEs, as the
 * device does: none may be torn, lost, doubled, or overwritten before it was taken. `srq_stress
 * ROUNDS` says so, or what went wrong.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lock.h"
#include "ring.h"

#define STRIDE_SHIFT 6
#define SGES 3
#define POSTERS 2

struct srq {
	struct vrdma_lock lock;
	struct vrdma_wq wq;
	/* The device's line. */
	_Atomic __le32 taken;
	uint32_t rounds;
};

struct poster {
	struct srq *srq;
	uint64_t number;
	pthread_t thread;
};

static void fail(const char *what, uint64_t value)
{
	fprintf(stderr, "srq_stress: %s: %" PRIu64 "\n", what, value);
	exit(1);
}

/* Posts WQEs whose every word says whose they are and the how manieth. */
static void *post(void *arg)
{
	struct poster *poster = arg;
	struct srq *srq = poster->srq;

	for (uint32_t n = 0; n < srq->rounds;) {
		struct virtio_rdma_recv_wqe *wqe;
		struct virtio_rdma_sge *sges;

		vrdma_lock(&srq->lock);
		if (!vrdma_wq_has_room_behind(&srq->wq, &srq->taken)) {
			vrdma_unlock(&srq->lock);
			sched_yield();
			continue;
		}
		wqe = vrdma_wq_slot(&srq->wq, 0);
		sges = (struct virtio_rdma_sge *)((char *)wqe + VIRTIO_RDMA_WQE_RECV_DATA);
		wqe->wr_id = htole64(poster->number << 32 | n);
		for (uint32_t i = 0; i < SGES; i++) {
			sges[i].addr = htole64(poster->number << 32 | n);
			sges[i].length = htole32(n);
			sges[i].lkey = htole32(i);
		}
		vrdma_wq_publish(&srq->wq, wqe, SGES << 16, 0);
		vrdma_unlock(&srq->lock);
		n++;
	}
	return NULL;
}

/* As the device: takes a copy of each WQE in order, checks it, and only then counts it. */
static void take_all(struct srq *srq)
{
	uint32_t next[POSTERS] = {};

	for (uint32_t n = 0; n < POSTERS * srq->rounds; n++) {
		char *slot = srq->wq.ring + ((size_t)(n % srq->wq.entries) << STRIDE_SHIFT);
		struct virtio_rdma_recv_wqe wqe;
		struct virtio_rdma_sge sges[SGES];
		union vrdma_first_word first;
		uint64_t id, number;

		for (;;) {
			first.word = atomic_load_explicit((_Atomic uint64_t *)slot,
							  memory_order_acquire);
			if (((le32toh(first.half[0]) >> 24) & 1) ==
			    vrdma_phase(n, srq->wq.entries_shift))
				break;
			sched_yield();
		}
		memcpy(&wqe, slot, sizeof(wqe));
		memcpy(sges, slot + VIRTIO_RDMA_WQE_RECV_DATA, sizeof(sges));
		id = le64toh(wqe.wr_id);
		number = id >> 32;
		if (wqe.num_sge != SGES || number >= POSTERS)
			fail("a WQE of nobody", id);
		if ((uint32_t)id != next[number]++)
			fail("not the next one of its poster", id);
		for (uint32_t i = 0; i < SGES; i++)
			if (le64toh(sges[i].addr) != id || le32toh(sges[i].length) != (uint32_t)id ||
			    le32toh(sges[i].lkey) != i)
				fail("torn", id);
		atomic_store_explicit(&srq->taken, htole32(n + 1), memory_order_release);
	}
}

int main(int argc, char **argv)
{
	uint32_t rounds = argc == 2 ? (uint32_t)strtoul(argv[1], NULL, 0) : 0;

	if (!rounds) {
		fprintf(stderr, "usage: srq_stress ROUNDS\n");
		return 2;
	}
	for (uint8_t shift = 0; shift < 5; shift += 2) {
		struct poster posters[POSTERS];
		struct srq srq = { .rounds = rounds };

		vrdma_lock_init(&srq.lock, false);
		srq.wq.entries_shift = shift;
		srq.wq.entries = 1u << shift;
		srq.wq.stride_shift = STRIDE_SHIFT;
		srq.wq.ring = aligned_alloc(4096, 4096);
		if (!srq.wq.ring)
			fail("no memory", 4096);
		memset(srq.wq.ring, 0, 4096);
		for (uint64_t i = 0; i < POSTERS; i++) {
			posters[i] = (struct poster){ .srq = &srq, .number = i };
			if (pthread_create(&posters[i].thread, NULL, post, &posters[i]))
				fail("no thread", i);
		}
		take_all(&srq);
		for (int i = 0; i < POSTERS; i++)
			pthread_join(posters[i].thread, NULL);
		free(srq.wq.ring);
		printf("an SRQ of %2u slots, two threads that post %9u WQEs each\n", 1u << shift,
		       rounds);
	}
	return 0;
}
