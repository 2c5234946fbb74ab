// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Drives ring.h and doorbell.h, as the provider does, against a device in another thread, for very
 * many rounds: no doorbell may be lost, no WQE torn, no CQE lost, doubled or out of order, no CQ
 * overrun. `ring_stress ROUNDS [CASE]` prints a line for each case (or the one, counted from 1) and
 * exits with 0, or says what went wrong and exits with 1.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "device.h"

/* One thread's work on one QP. */
struct worker {
	struct test_world *world;
	struct test_qp *qp;
	uint32_t rounds, random;
	/* Of the thread that polls: the next WQE whose completion may come. */
	uint32_t expected;
	/* Of the thread that posts: see must_signal(). */
	uint32_t unsignaled;
	/* The flags of every WQE, so that whoever polls knows which completions to expect. */
	uint8_t *flags;
	/* WQEs posted, for a poller in another thread. */
	_Atomic uint32_t published;
};

static void *pages(size_t bytes)
{
	void *addr = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);

	if (!addr)
		test_fail("no memory");
	memset(addr, 0, bytes);
	return addr;
}

static void world_init(struct test_world *world)
{
	memset(world, 0, sizeof(*world));
	world->uar = pages(VIRTIO_RDMA_UAR_MAX_BYTES);
	world->status = pages(4096);
	sem_init(&world->kick, 0, 0);
}

static void cq_init(struct test_cq *cq, uint8_t shift)
{
	memset(cq, 0, sizeof(*cq));
	cq->ring.entries_shift = shift;
	cq->ring.entries = 1u << shift;
	cq->ring.buf = pages(VIRTIO_RDMA_CQ_RING_OFFSET +
			     (size_t)VIRTIO_RDMA_CQE_BYTES * cq->ring.entries);
	sem_init(&cq->event, 0, 0);
}

static struct test_qp *qp_add(struct test_world *world, struct test_cq *cq, uint32_t slot,
			      uint8_t shift)
{
	struct test_qp *qp = &world->qps[world->num_qps];
	const size_t ring_offset = 1u << TEST_STRIDE_SHIFT;

	qp->buf = pages(ring_offset + ((size_t)1 << shift << TEST_STRIDE_SHIFT));
	qp->sq.ring = qp->buf + ring_offset;
	qp->sq.entries = 1u << shift;
	qp->sq.entries_shift = shift;
	qp->sq.stride_shift = TEST_STRIDE_SHIFT;
	qp->cq = cq;
	qp->slot = slot;
	qp->qpn = 0x100 + (uint32_t)world->num_qps++;
	vrdma_doorbell_init(&qp->doorbell, world->uar, slot, qp->buf, world->status, 1);
	return qp;
}

static void world_free(struct test_world *world)
{
	for (int i = 0; i < world->num_qps; i++)
		free(world->qps[i].buf);
	free(world->uar);
	free(world->status);
}

/* Posts WQE number `posted` with random flags; the last of a batch makes a completion. */
static void post_one(struct worker *worker, bool last)
{
	struct vrdma_wq *sq = &worker->qp->sq;
	uint32_t n = sq->posted, length = test_length(n);
	struct virtio_rdma_send_wqe *wqe = vrdma_wq_slot(sq, 0);
	char *data = (char *)wqe + VIRTIO_RDMA_WQE_SEND_DATA;
	uint32_t flags = VIRTIO_RDMA_SEND_INLINE, r = test_random(&worker->random);

	/* A queue full of WQEs without completion would never be free again. */
	if (last || r % 3 == 0 || worker->unsignaled + 1 == sq->entries)
		flags |= VIRTIO_RDMA_SEND_SIGNALED;
	if (r % 5 == 0)
		flags |= VIRTIO_RDMA_SEND_SOLICITED;
	worker->unsignaled = flags & VIRTIO_RDMA_SEND_SIGNALED ? 0 : worker->unsignaled + 1;
	for (uint32_t i = 0; i < length; i++)
		data[i] = (char)test_pattern(worker->qp->qpn, n, i);
	wqe->wr_id = htole64(n);
	wqe->inline_length = htole32(length);
	worker->flags[n % (2 * sq->entries)] = (uint8_t)flags;
	vrdma_wq_publish(sq, wqe, VIRTIO_RDMA_WR_SEND | flags << 8, 0);
}

/* Posts a batch as far as there is room, and rings if it must. */
static void post_batch(struct worker *worker)
{
	struct vrdma_wq *sq = &worker->qp->sq;
	uint32_t want = 1 + test_random(&worker->random) % 4;
	uint32_t before = sq->posted;

	if (want > worker->rounds - sq->posted)
		want = worker->rounds - sq->posted;
	for (; want && vrdma_wq_has_room(sq, 0); want--)
		post_one(worker, want == 1 || sq->posted + 1 - sq->freed_seen == sq->entries);
	if (sq->posted == before) {
		/* The queue is full: let the others have the CPU. */
		sched_yield();
		return;
	}
	atomic_store_explicit(&worker->published, sq->posted, memory_order_release);
	if (vrdma_work_posted(&worker->qp->doorbell) != VRDMA_NO_RING)
		sem_post(&worker->world->kick);
}

/* The number of the next WQE from `n` on that makes a completion. */
static uint32_t next_signaled(const struct worker *worker, uint32_t n)
{
	while (!(worker->flags[n % (2 * worker->qp->sq.entries)] & VIRTIO_RDMA_SEND_SIGNALED))
		n++;
	return n;
}

static struct worker *worker_of(struct worker *workers, int count, uint32_t qpn)
{
	for (int i = 0; i < count; i++)
		if (workers[i].qp->qpn == qpn)
			return &workers[i];
	test_fail("a CQE of QP %u, which there is not", qpn);
}

/* Polls up to `max` CQEs of the workers' common CQ and checks them. Returns how many. */
static uint32_t poll(struct worker *workers, int count, uint32_t max)
{
	struct vrdma_ring_cq *cq = &workers[0].qp->cq->ring;
	struct vrdma_give_back give = {};
	uint32_t at = vrdma_cq_consumer(cq), polled = 0;
	uint64_t last;

	if (vrdma_cq_empty(cq))
		return 0;
	for (; polled < max && vrdma_cqe_valid(cq, at, &last); polled++, at++) {
		const struct virtio_rdma_cqe *cqe = vrdma_cq_slot(cq, at);
		struct worker *worker = worker_of(workers, count, vrdma_cqe_qpn(last));
		uint32_t n = next_signaled(worker, worker->expected);

		if (vrdma_cqe_status(last) != VIRTIO_RDMA_WC_SUCCESS ||
		    vrdma_cqe_opcode(last) != VIRTIO_RDMA_WC_OP_SEND ||
		    vrdma_cqe_flags(last) != VIRTIO_RDMA_CQE_SEND_QUEUE ||
		    le64toh(cqe->wr_id) != n || le32toh(cqe->wqe_count) != n + 1 ||
		    le32toh(cqe->byte_len) != test_length(n))
			test_fail("QP %u: expected the completion of WQE %u, got that of %llu",
				  worker->qp->qpn, n, (unsigned long long)le64toh(cqe->wr_id));
		worker->expected = n + 1;
		vrdma_give_back(&give, cq, at, &worker->qp->sq, n + 1);
	}
	if (polled)
		vrdma_give_back_now(&give, cq, at);
	return polled;
}

/* Polls; with nothing there, arms the CQ, polls again, and waits for the event. */
static void poll_or_wait(struct worker *workers, int count)
{
	struct test_cq *cq = workers[0].qp->cq;
	uint32_t *random = &workers[0].random;
	/* Mostly it spins, so that both sides run at the same time, where the races are. */
	uint32_t tries = test_random(random) % 16 ? 20000 : test_random(random) % 32;

	for (uint32_t i = 0; i <= tries; i++)
		if (poll(workers, count, 1 + test_random(random) % 8))
			return;
	vrdma_cq_arm(&cq->ring, false);
	/* Armed for any completion it stays, whatever comes after. */
	if (test_random(random) % 8 == 0)
		vrdma_cq_arm(&cq->ring, true);
	if (poll(workers, count, 8))
		return;
	if (!test_wait(&cq->event))
		test_fail("no completion event; the first QP has %u WQEs posted, %u completed, "
			  "%u taken",
			  workers[0].qp->sq.posted, workers[0].expected, workers[0].qp->taken);
	/* Nothing may be there: a CQE polled before the event came. */
	poll(workers, count, 8);
}

static bool all_done(const struct worker *workers, int count)
{
	for (int i = 0; i < count; i++)
		if (workers[i].expected != workers[i].rounds)
			return false;
	return true;
}

/* Case 1: each thread posts and polls; several QPs share a CQ and a thread. */
static void post_and_poll(struct worker *workers, int count)
{
	while (!all_done(workers, count)) {
		for (int i = 0; i < count; i++) {
			struct worker *worker = &workers[i];

			if (test_random(&worker->random) % 2 && worker->qp->sq.posted != worker->rounds)
				post_batch(worker);
			test_delay(&worker->random);
		}
		for (int i = 0; i < count; i++)
			if (workers[i].expected != workers[i].qp->sq.posted) {
				poll_or_wait(workers, count);
				break;
			}
	}
}

/* Case 2: one thread posts as soon as a slot is free, another polls. */
static void *post_only(void *arg)
{
	struct worker *worker = arg;

	while (worker->qp->sq.posted != worker->rounds)
		post_batch(worker);
	return NULL;
}

static void poll_only(struct worker *worker)
{
	struct worker view = { .qp = worker->qp, .flags = worker->flags, .random = 0x1234567,
			       .rounds = worker->rounds };

	while (view.expected != view.rounds) {
		/* Only a completion that is under way can be waited for. */
		if (atomic_load_explicit(&worker->published, memory_order_acquire) !=
		    view.expected)
			poll_or_wait(&view, 1);
	}
}

static void report(const char *name, const struct test_world *world)
{
	printf("%-42s %9lu WQEs %9lu CQEs %8lu events %7lu sleeps %7lu kicks %6lu re-arms\n", name,
	       world->wqes, world->cqes, world->events, world->sleeps, world->kicks,
	       world->rearms);
	fflush(stdout);
}

static void run(const char *name, uint32_t rounds, int num_qps, uint8_t shift, bool two_threads)
{
	/* Words 0, 1 and 65 of the bitmap; the last two share a bit of the summary. */
	static const uint32_t slots[TEST_MAX_QPS] = { 5, 64 + 63, 65 * 64 + 1, 6 };
	static struct test_world world;
	struct worker workers[TEST_MAX_QPS] = {};
	pthread_t device, poster;
	struct test_cq cq;

	world_init(&world);
	/* Just large enough: an overrun shows an index that is stored too late. */
	cq_init(&cq, (uint8_t)(shift + (num_qps > 1 ? 2 : 0)));
	for (int i = 0; i < num_qps; i++) {
		workers[i].world = &world;
		workers[i].qp = qp_add(&world, &cq, slots[i], shift);
		workers[i].rounds = rounds / (uint32_t)num_qps;
		workers[i].random = 0x9e3779b9u * (uint32_t)(i + 1);
		workers[i].flags = pages((size_t)2 << shift);
	}
	pthread_create(&device, NULL, test_device, &world);
	if (two_threads) {
		pthread_create(&poster, NULL, post_only, &workers[0]);
		poll_only(&workers[0]);
		pthread_join(poster, NULL);
	} else {
		post_and_poll(workers, num_qps);
	}
	atomic_store(&world.stop, true);
	sem_post(&world.kick);
	pthread_join(device, NULL);
	for (int i = 0; i < num_qps; i++) {
		if (workers[i].qp->taken != workers[i].rounds)
			test_fail("%s: %u WQEs posted, %u taken", name, workers[i].rounds,
				  workers[i].qp->taken);
		free(workers[i].flags);
	}
	report(name, &world);
	free(cq.ring.buf);
	world_free(&world);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int num_qps;
		uint8_t shift;
		bool two_threads;
	} cases[] = {
		{ "one QP with a ring of 1", 1, 0, false },
		{ "one QP with a ring of 2", 1, 1, false },
		{ "one QP with a ring of 16", 1, 4, false },
		{ "four QPs that share a CQ", 4, 2, false },
		{ "one QP, posted to and polled by two threads", 1, 2, true },
	};
	const int count = sizeof(cases) / sizeof(cases[0]);
	uint32_t rounds = argc >= 2 ? (uint32_t)strtoul(argv[1], NULL, 0) : 0;
	int only = argc >= 3 ? atoi(argv[2]) : 0;

	if (!rounds || only < 0 || only > count) {
		fprintf(stderr, "usage: ring_stress ROUNDS [CASE]\n");
		return 2;
	}
	for (int i = 0; i < count; i++)
		if (!only || only == i + 1)
			run(cases[i].name, rounds, cases[i].num_qps, cases[i].shift,
			    cases[i].two_threads);
	return 0;
}
